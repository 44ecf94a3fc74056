//! Managed domains whose aliases are fetched (docs/managed-domains.md).

use std::sync::Arc;

use ppsw_proto::control::{self as pb, record_fetch::Result as Fetched, record_letter::About};

use super::{State, check_text};
use crate::limits;

impl State {
    pub(super) fn set_https_domain(&mut self, set: pb::SetHttpsDomain) -> Result<(), String> {
        let pb::SetHttpsDomain { domain, url, user, sealed_password, ca_pem, by, at_ms } = set;
        check_text("name", &by)?;
        check_text("domain", &domain)?;
        check_text("user", &user)?;
        // The sealed form is a few bytes longer than the password.
        let bounded = url.len() <= limits::URL_BYTES_MAX
            && ca_pem.len() <= limits::CA_PEM_BYTES_MAX
            && sealed_password.len() <= 2 * limits::PASSWORD_BYTES_MAX;
        if !bounded {
            return Err("the URL, password or CA file is too long".to_owned());
        }
        let before = self.https_domains.get(&domain);
        if before.is_none() && self.https_domains.len() >= limits::HTTPS_DOMAINS_MAX {
            return Err(format!(
                "{} domains are fetched already, and no more are possible",
                limits::HTTPS_DOMAINS_MAX
            ));
        }
        let kept = before.map(|before| pb::HttpsDomain {
            live: before.live.clone().map(without_validators),
            succeeded_ms: before.succeeded_ms,
            changed_ms: before.changed_ms,
            reported_ms: before.reported_ms,
            ..pb::HttpsDomain::default()
        });
        let fresh = || pb::HttpsDomain { reported_ms: at_ms, ..pb::HttpsDomain::default() };
        let entry = pb::HttpsDomain {
            domain: domain.clone(),
            url,
            user,
            sealed_password,
            ca_pem,
            by,
            at_ms,
            // Counted up after this command: no other one has it.
            setting: self.revision + 1,
            // At once.
            next_due_ms: at_ms,
            ..kept.unwrap_or_else(fresh)
        };
        self.https_domains.insert(domain, Arc::new(entry));
        Ok(())
    }

    pub(super) fn unset_https_domain(
        &mut self,
        unset: &pb::UnsetHttpsDomain,
    ) -> Result<(), String> {
        self.https_domains.remove(&unset.domain).map(|_| ()).ok_or_else(|| {
            format!("{} is not fetched: `ppswctl domains list` shows which are", unset.domain)
        })
    }

    pub(super) fn record_fetch(&mut self, record: pb::RecordFetch) -> Result<(), String> {
        let pb::RecordFetch { domain, setting, began_ms, next_due_ms, result } = record;
        let entry = self.set_by(&domain, setting)?;
        if began_ms < entry.fetched_ms {
            return Err(format!("{domain} was fetched again meanwhile"));
        }
        entry.fetched_ms = began_ms;
        entry.next_due_ms = next_due_ms;
        match result {
            Some(Fetched::Live(live)) => {
                if live.changed {
                    entry.changed_ms = began_ms;
                }
                entry.live = Some(bounded(live));
            }
            Some(Fetched::NotModified(_)) => {}
            Some(Fetched::Problem(mut problem)) => {
                let before = entry.problem.take();
                let same = before.filter(|before| before.fingerprint == problem.fingerprint);
                problem.since_ms = same.map_or(began_ms, |before| before.since_ms);
                cut(&mut problem.text, limits::PROBLEM_BYTES_MAX);
                cut(&mut problem.kind, limits::NAME_BYTES_MAX);
                entry.problem = Some(problem);
                return Ok(());
            }
            None => {
                return Err("a fetch with a result of an unknown kind: update ppswd".to_owned());
            }
        }
        entry.succeeded_ms = began_ms;
        entry.problem = None;
        // If it comes back, it is told again.
        entry.told_fingerprint.clear();
        Ok(())
    }

    pub(super) fn record_letter(&mut self, record: pb::RecordLetter) -> Result<(), String> {
        let pb::RecordLetter { domain, setting, at_ms, about } = record;
        let entry = self.set_by(&domain, setting)?;
        match about {
            Some(About::Problem(fingerprint)) => {
                entry.told_fingerprint = fingerprint;
                entry.told_ms = at_ms;
            }
            Some(About::Report(_)) => entry.reported_ms = at_ms,
            None => {
                return Err("a letter of an unknown kind: update ppswd on all nodes".to_owned());
            }
        }
        Ok(())
    }

    /// The aliases of a fetched domain are what was fetched, and nobody sets them otherwise; nor does a fetch that was
    /// slow set those of a domain that is not fetched any more.
    pub(super) fn check_fetched(&self, change: &pb::ChangePaths) -> Result<(), String> {
        let fetch = change.source() == pb::Source::Https;
        for path in change.paths.iter().map(|change| change.path.as_str()) {
            let domain =
                path.strip_prefix("domains/").and_then(|path| path.strip_suffix("/aliases"));
            match domain.map(|domain| (domain, self.https_domains.get(domain))) {
                Some((domain, Some(https))) if !fetch => {
                    return Err(format!(
                        "the aliases of {domain} are fetched from {} and cannot be set otherwise: change them there, or \
                         begin with `ppswctl domains unset {domain}`",
                        https.url
                    ));
                }
                Some((domain, None)) if fetch => {
                    return Err(format!("{domain} is not fetched any more"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A domain as long as it is set as it was.
    fn set_by(&mut self, domain: &str, setting: u64) -> Result<&mut pb::HttpsDomain, String> {
        let entry = self.https_domains.get_mut(domain).filter(|entry| entry.setting == setting);
        // Readers keep what they have.
        entry.map(Arc::make_mut).ok_or_else(|| format!("{domain} was set anew meanwhile"))
    }
}

/// What is left of a file when the URL is another.
fn without_validators(mut live: pb::LiveFile) -> pb::LiveFile {
    live.etag.clear();
    live.last_modified.clear();
    live
}

fn bounded(mut live: pb::LiveFile) -> pb::LiveFile {
    let mut left = limits::PROBLEM_BYTES_MAX;
    live.remarks.retain(|remark| {
        left = left.saturating_sub(remark.len());
        left > 0
    });
    cut(&mut live.etag, limits::NAME_BYTES_MAX + 1);
    cut(&mut live.last_modified, limits::NAME_BYTES_MAX + 1);
    live
}

fn cut(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        let mut end = bytes;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use ppsw_proto::control::command::Change;
    use ppsw_spool::group::Reply;

    use super::{
        super::{encode_command, tests::cluster},
        *,
    };

    const D: &str = "d.example";

    fn apply(state: &mut State, change: Change) -> Result<(), String> {
        match state.apply(&encode_command(change)) {
            Reply::Refused(why) => Err(why),
            _ => Ok(()),
        }
    }

    fn set(url: &str, at_ms: u64) -> Change {
        Change::SetHttpsDomain(pb::SetHttpsDomain {
            domain: D.to_owned(),
            url: url.to_owned(),
            user: "u".to_owned(),
            sealed_password: b"sealed".as_slice().into(),
            by: "admin".to_owned(),
            at_ms,
            ..pb::SetHttpsDomain::default()
        })
    }

    fn fetched(state: &State, began_ms: u64, result: Fetched) -> Change {
        Change::RecordFetch(pb::RecordFetch {
            domain: D.to_owned(),
            setting: state.https_domains[D].setting,
            began_ms,
            next_due_ms: began_ms + 3_600_000,
            result: Some(result),
        })
    }

    fn problem(fingerprint: &'static [u8]) -> Fetched {
        Fetched::Problem(pb::Problem {
            kind: "status".to_owned(),
            fingerprint: fingerprint.into(),
            ..pb::Problem::default()
        })
    }

    fn live(etag: &str) -> Fetched {
        Fetched::Live(pb::LiveFile { etag: etag.to_owned(), changed: true, ..Default::default() })
    }

    #[test]
    fn what_came_of_fetches_is_kept_over_a_checkpoint() {
        let mut state = cluster(3);
        apply(&mut state, set("https://x.example/", 1_000)).unwrap();
        assert_eq!(state.https_domains[D].next_due_ms, 1_000, "at once");
        let change = fetched(&state, 2_000, live("\"1\""));
        apply(&mut state, change).unwrap();
        for began in [3_000, 4_000] {
            let change = fetched(&state, began, problem(b"a"));
            apply(&mut state, change).unwrap();
        }
        let entry = &state.https_domains[D];
        assert_eq!(entry.problem.as_ref().unwrap().since_ms, 3_000, "the same since then");
        assert_eq!((entry.succeeded_ms, entry.changed_ms, entry.fetched_ms), (2_000, 2_000, 4_000));
        assert_eq!(entry.next_due_ms, 3_604_000);
        let again = State::from_proto(state.to_proto()).unwrap();
        assert_eq!(again, state);

        let letter = |about| {
            let setting = state.https_domains[D].setting;
            let domain = D.to_owned();
            Change::RecordLetter(pb::RecordLetter { domain, setting, at_ms: 5, about: Some(about) })
        };
        let (told, reported) =
            (letter(About::Problem(b"a".as_slice().into())), letter(About::Report(true)));
        apply(&mut state, told).unwrap();
        apply(&mut state, reported).unwrap();
        let entry = &state.https_domains[D];
        assert_eq!((entry.told_fingerprint.as_ref(), entry.told_ms), (b"a".as_slice(), 5));
        assert_eq!(entry.reported_ms, 5);

        let change = fetched(&state, 6_000, Fetched::NotModified(true));
        apply(&mut state, change).unwrap();
        let entry = &state.https_domains[D];
        assert!(entry.problem.is_none() && entry.told_fingerprint.is_empty());
        assert_eq!((entry.succeeded_ms, entry.changed_ms), (6_000, 2_000));
        assert_eq!(entry.live.as_ref().unwrap().etag, "\"1\"");
    }

    #[test]
    fn what_comes_too_late_is_not_recorded() {
        let mut state = cluster(3);
        apply(&mut state, set("https://x.example/", 1_000)).unwrap();
        let old = fetched(&state, 2_000, live("\"old\""));
        let new = fetched(&state, 3_000, live("\"new\""));
        apply(&mut state, new.clone()).unwrap();
        assert!(apply(&mut state, old).unwrap_err().contains("fetched again meanwhile"));
        apply(&mut state, set("https://y.example/", 4_000)).unwrap();
        assert!(apply(&mut state, new).unwrap_err().contains("set anew"));
        let entry = &state.https_domains[D];
        assert_eq!(entry.live.as_ref().unwrap().etag, "", "of another server");
        assert_eq!((entry.succeeded_ms, entry.reported_ms), (3_000, 1_000));
        let unset = Change::UnsetHttpsDomain(pb::UnsetHttpsDomain { domain: D.to_owned() });
        apply(&mut state, unset.clone()).unwrap();
        assert!(apply(&mut state, unset).unwrap_err().contains("is not fetched"));
    }

    #[test]
    fn nobody_sets_the_aliases_of_a_fetched_domain() {
        let mut state = cluster(3);
        let change = |source: pb::Source, path: &str| pb::ChangePaths {
            source: source.into(),
            paths: vec![pb::PathChange { path: path.to_owned(), ..Default::default() }],
            ..Default::default()
        };
        let (edit, https) = (pb::Source::Edit, pb::Source::Https);
        let aliases = "domains/d.example/aliases";
        assert!(state.check_fetched(&change(edit, aliases)).is_ok());
        assert!(state.check_fetched(&change(https, aliases)).unwrap_err().contains("any more"));
        apply(&mut state, set("https://x.example/", 1_000)).unwrap();
        let why = apply(&mut state, Change::ChangePaths(change(edit, aliases))).unwrap_err();
        assert!(why.contains("https://x.example/") && why.contains("domains unset"), "{why}");
        assert!(state.check_fetched(&change(https, aliases)).is_ok());
        for path in ["domains/d.example/managers", "domains/e.example/aliases", "lists/x/members"] {
            assert!(state.check_fetched(&change(edit, path)).is_ok(), "{path}");
        }
    }

    #[test]
    fn the_state_is_bounded() {
        let mut state = cluster(1);
        for n in 0..limits::HTTPS_DOMAINS_MAX {
            let change = pb::SetHttpsDomain { domain: format!("d{n}"), ..Default::default() };
            apply(&mut state, Change::SetHttpsDomain(change)).unwrap();
        }
        assert!(apply(&mut state, set("https://x.example/", 1)).unwrap_err().contains("no more"));
        let again = pb::SetHttpsDomain { domain: "d0".to_owned(), ..Default::default() };
        apply(&mut state, Change::SetHttpsDomain(again)).unwrap();
        let long = pb::SetHttpsDomain {
            domain: "d1".to_owned(),
            url: "x".repeat(limits::URL_BYTES_MAX + 1),
            ..Default::default()
        };
        assert!(apply(&mut state, Change::SetHttpsDomain(long)).is_err());
        let record = |result| {
            Change::RecordFetch(pb::RecordFetch {
                domain: "d1".to_owned(),
                setting: state.https_domains["d1"].setting,
                began_ms: 9,
                next_due_ms: 10,
                result: Some(result),
            })
        };
        let text = "é".repeat(limits::PROBLEM_BYTES_MAX);
        let long = record(Fetched::Problem(pb::Problem { text, ..Default::default() }));
        let remarks = vec!["é".repeat(100); limits::PROBLEM_BYTES_MAX];
        let many = record(Fetched::Live(pb::LiveFile { remarks, ..Default::default() }));
        apply(&mut state, long).unwrap();
        let kept = state.https_domains["d1"].problem.as_ref().unwrap().text.len();
        assert!(kept <= limits::PROBLEM_BYTES_MAX && kept > limits::PROBLEM_BYTES_MAX - 2);
        apply(&mut state, many).unwrap();
        let live = state.https_domains["d1"].live.as_ref().unwrap();
        assert!(live.remarks.len() <= limits::PROBLEM_BYTES_MAX / 200);
    }
}
