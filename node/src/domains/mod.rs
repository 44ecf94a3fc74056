//! Managed mail domains (docs/managed-domains.md): those whose aliases are fetched from a web server, and the detailed
//! check of any.
//!
//! [`aliases`] reads a file, [`review`] says whether it may be live, [`audit`] what could be better; [`fetch`] gets it,
//! [`schedule`] says when, [`letter`] tells its managers; [`round`] is what the control leader does about all of them.

mod aliases;
mod audit;
mod fetch;
mod letter;
mod node;
mod review;
mod round;
mod schedule;
mod seams;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use ppsw_control::{https::Url, versions::BlobHash};
use ppsw_proto::control::{self as pb, fetch_domain_reply, record_fetch};
use ppsw_spool::env::{Clock, UnixMs};

pub use node::Parts;

use crate::dns::Dns;
use aliases::Size;
use audit::Audit;
use fetch::{Fetch, Fetched, Source, Validators};
use letter::Letter;
use seams::{LiveCopies, Post, Registry};

/// How often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Periods {
    pub(crate) fetch: Duration,
    pub(crate) report: Duration,
}

/// The managed domains of the cluster, as one node sees them. Clones share it.
#[derive(Clone)]
pub struct Domains {
    registry: Arc<dyn Registry>,
    live: Arc<dyn LiveCopies>,
    fetcher: Arc<dyn Fetch>,
    post: Arc<dyn Post>,
    dns: Arc<dyn Dns>,
    clock: Arc<dyn Clock>,
    periods: Periods,
}

/// What a fetch came to.
type Outcome = record_fetch::Result;

impl Domains {
    /// Does the rounds whenever this node leads the control group. Never returns.
    pub async fn run(self) {
        round::Rounds::default().run(self).await;
    }

    /// The managed domains, or one.
    #[must_use]
    pub fn list(&self, only: &str) -> Vec<pb::DomainInfo> {
        let configuration = self.live.current();
        let tables = &configuration.tables;
        let fetched = self.registry.domains();
        let mut names: Vec<&str> = tables.names().filter_map(domain_of_table).collect();
        names.extend(fetched.iter().map(|domain| domain.domain.as_str()));
        names.sort_unstable();
        names.dedup();
        names.retain(|name| only.is_empty() || *name == only);
        let info = |name: &str| {
            let size = Size::live(tables, name);
            let https = fetched.iter().find(|domain| domain.domain == name);
            let shown = |domain: &Arc<pb::HttpsDomain>| pb::HttpsDomain {
                sealed_password: Default::default(),
                ca_pem: String::new(),
                ..pb::HttpsDomain::clone(domain)
            };
            pb::DomainInfo {
                domain: name.to_owned(),
                live: size.is_some(),
                aliases: size.map_or(0, |size| size.aliases as u64),
                addresses: size.map_or(0, |size| size.addresses as u64),
                managers: tables.len(&format!("domains/{name}/managers")) as u64,
                https: https.map(shown),
                own_ca: https.is_some_and(|domain| !domain.ca_pem.is_empty()),
            }
        };
        names.into_iter().map(info).collect()
    }

    /// Fetches a domain now; with `force` also if its file has shrunk.
    ///
    /// # Errors
    /// If it is not fetched, or what came of it could not be recorded.
    pub async fn fetch(&self, name: &str, force: bool) -> Result<pb::FetchDomainReply, String> {
        use fetch_domain_reply::Result as Reply;
        let domain = self.fetched(name).ok_or_else(|| {
            format!("{name} is not fetched: `ppswctl domains list` shows which are")
        })?;
        let result = match self.fetch_and_record(&domain, force).await? {
            Outcome::Live(live) => Reply::Live(live),
            Outcome::NotModified(yes) => Reply::NotModified(yes),
            Outcome::Problem(problem) => Reply::Problem(problem),
        };
        Ok(pb::FetchDomainReply { result: Some(result) })
    }

    /// The detailed check of a domain; with `mail` its managers get it, too.
    ///
    /// # Errors
    /// If there is no such domain, or the letter was not taken.
    pub async fn check(&self, name: &str, mail: bool) -> Result<pb::CheckDomainReply, String> {
        let https = self.fetched(name);
        let audit = match self.audit(name).await {
            Some(audit) => audit,
            None if https.is_some() => Audit::default(),
            None => {
                return Err(format!(
                    "there is no managed domain {name}: `ppswctl domains list` shows all"
                ));
            }
        };
        let letter = Letter::of_report(name, &audit, https.as_deref()).filter(|_| mail);
        let letter = match letter {
            Some(letter) => self.post.send(&letter).await?.to_string(),
            None => String::new(),
        };
        let mut warnings = audit.warnings;
        let live = https.as_ref().and_then(|domain| domain.live.as_ref());
        warnings.extend(live.map(|live| live.remarks.clone()).unwrap_or_default());
        Ok(pb::CheckDomainReply {
            domain: name.to_owned(),
            aliases: audit.aliases as u64,
            warnings,
            incomplete: audit.incomplete,
            problem: https.and_then(|domain| domain.problem.clone()),
            letter,
        })
    }

    fn now(&self) -> UnixMs {
        self.clock.now()
    }

    fn fetched(&self, name: &str) -> Option<Arc<pb::HttpsDomain>> {
        self.registry.domains().into_iter().find(|domain| domain.domain == name)
    }

    async fn audit(&self, name: &str) -> Option<Audit> {
        let configuration = self.live.current();
        audit::audit(&configuration, &*self.dns, name).await
    }

    /// Errors are ours: the managers are not told of them.
    async fn fetch_and_record(
        &self,
        domain: &pb::HttpsDomain,
        may_shrink: bool,
    ) -> Result<Outcome, String> {
        let (began, begun) = (self.now(), self.clock.instant());
        let outcome = self.attempt(domain, may_shrink).await;
        let label = match &outcome {
            Ok(Outcome::Live(live)) if live.changed => "changed",
            Ok(Outcome::Live(_)) => "unchanged",
            Ok(Outcome::NotModified(_)) => "not-modified",
            Ok(Outcome::Problem(problem)) => problem_label(problem),
            Err(_) => "internal",
        };
        metrics::counter!("ppsw_https_fetches_total", "result" => label).increment(1);
        let took = self.clock.instant().saturating_duration_since(begun);
        metrics::histogram!("ppsw_https_fetch_seconds").record(took.as_secs_f64());
        let outcome = outcome?;
        let name = &domain.domain;
        match &outcome {
            Outcome::Live(live) if live.changed => {
                tracing::info!(domain = name, aliases = live.aliases, "a fetched file is live");
            }
            Outcome::Problem(problem) => {
                let (kind, text) = (&problem.kind, &problem.text);
                tracing::warn!(domain = name, kind, text, "a file cannot be fetched or used");
            }
            Outcome::Live(_) | Outcome::NotModified(_) => {}
        }
        let record = pb::RecordFetch {
            domain: name.clone(),
            setting: domain.setting,
            began_ms: began.0,
            next_due_ms: schedule::next_fetch(name, self.now(), self.periods.fetch).0,
            result: Some(outcome.clone()),
        };
        self.registry.record_fetch(record).await?;
        Ok(outcome)
    }

    async fn attempt(&self, domain: &pb::HttpsDomain, may_shrink: bool) -> Result<Outcome, String> {
        let name = &domain.domain;
        let source = Source {
            url: Url::parse(&domain.url)?,
            user: domain.user.clone(),
            password: self.registry.password(domain)?,
            ca_pem: domain.ca_pem.clone(),
        };
        let copy = self.live.find(name).await?;
        let before = copy.map(|copy| copy.hash);
        // Only if what is live is what was fetched: somebody may have set something else in between.
        let known = domain.live.as_ref().filter(|live| {
            before.is_some_and(|hash| live.table_hash == hash.to_bytes()) && !may_shrink
        });
        let known = known.map(|live| Validators {
            etag: live.etag.clone(),
            last_modified: live.last_modified.clone(),
        });
        let known = known.filter(|known| *known != Validators::default());
        let (content, validators) = match self.fetcher.fetch(&source, known.as_ref()).await {
            Ok(Fetched::NotModified) => return Ok(Outcome::NotModified(true)),
            Ok(Fetched::File { content, validators }) => (content, validators),
            Err(error) => return Ok(Outcome::Problem(review::unfetched(&error))),
        };
        let size = copy.map(|copy| copy.size);
        let reviewed = match review::review(&content, size, may_shrink) {
            Ok(reviewed) => reviewed,
            Err(problem) => return Ok(Outcome::Problem(problem)),
        };
        let hash = BlobHash::of(reviewed.table.as_bytes());
        let changed = before != Some(hash);
        if changed {
            self.live.publish(name, reviewed.table, before).await?;
        }
        Ok(Outcome::Live(pb::LiveFile {
            etag: validators.etag,
            last_modified: validators.last_modified,
            table_hash: hash.to_bytes(),
            aliases: reviewed.size.aliases as u64,
            addresses: reviewed.size.addresses as u64,
            remarks: reviewed.remarks,
            changed,
        }))
    }
}

impl std::fmt::Debug for Domains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Domains").finish_non_exhaustive()
    }
}

fn domain_of_table(table: &str) -> Option<&str> {
    let (domain, _) = table.strip_prefix("domains/")?.split_once('/')?;
    Some(domain)
}

/// The kind of a problem as a label: bounded, whatever its text is.
fn problem_label(problem: &pb::Problem) -> &'static str {
    const KINDS: [&str; 15] = [
        "dns",
        "connection",
        "certificate",
        "tls",
        "password",
        "status",
        "redirection",
        "timeout",
        "size",
        "truncated",
        "protocol",
        "settings",
        "unparsable",
        "incomplete",
        "shrunk",
    ];
    KINDS.into_iter().find(|kind| *kind == problem.kind).unwrap_or("other")
}
