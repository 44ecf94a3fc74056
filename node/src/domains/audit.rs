//! The detailed check of a managed domain: what its aliases lead to, by the routers and tables that are active.
//!
//! Warnings only: an alias may lead to an address that does not exist yet, and nobody else is harmed by it.

use futures::{StreamExt, stream};
use tokio::time::timeout;

use super::aliases::{REQUIRED, addresses_of, table_name};
use crate::{
    dns::Dns,
    limits,
    policy::Configuration,
    route::{self, About, Fate, Target},
};

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Audit {
    pub(crate) aliases: usize,
    /// Texts for people, each about one alias.
    pub(crate) warnings: Vec<String>,
    /// Why the warnings are not all that there is to say.
    pub(crate) incomplete: Vec<String>,
}

/// An alias and what is wrong with it.
struct Finding {
    warnings: Vec<String>,
    /// Somewhere DNS gave no answer.
    unknown: bool,
}

/// Checks the live copy of a domain; `None` if it has none.
pub(crate) async fn audit(
    configuration: &Configuration,
    dns: &dyn Dns,
    domain: &str,
) -> Option<Audit> {
    let table = table_name(domain);
    let tables = &configuration.tables;
    if !tables.has(&table) {
        return None;
    }
    let mut aliases: Vec<(&str, &str)> =
        tables.entries(&table).map(|(alias, value, _)| (alias, value)).collect();
    aliases.sort_unstable();
    let mut audit = Audit { aliases: aliases.len(), ..Audit::default() };
    for alias in REQUIRED {
        if tables.get(&table, alias).is_none() {
            audit.warnings.push(format!("{alias}: this alias is missing"));
        }
    }
    let checker = Checker { configuration, dns, domain };
    let work = async {
        let enabled = checker.is_enabled(&aliases).await;
        if !enabled {
            audit.incomplete.push(format!(
                "{domain} is not enabled here: its aliases are not used yet, and loops are not looked for"
            ));
        }
        let mut findings = stream::iter(0..aliases.len())
            .map(|number| checker.look(aliases[number], enabled))
            .buffered(limits::CHECK_CONCURRENT);
        let (mut done, mut unknown) = (0_usize, 0_usize);
        while let Some(finding) = findings.next().await {
            done += 1;
            unknown += usize::from(finding.unknown);
            audit.warnings.extend(finding.warnings);
            if audit.warnings.len() > limits::CHECK_WARNINGS_MAX {
                audit.warnings.truncate(limits::CHECK_WARNINGS_MAX);
                let left = aliases.len() - done;
                audit.incomplete.push(format!(
                    "there are more warnings than {}, and {left} aliases were not looked at",
                    limits::CHECK_WARNINGS_MAX
                ));
                break;
            }
        }
        if unknown > 0 {
            audit.incomplete.push(format!(
                "of {unknown} aliases it is not known where they lead to: DNS gave no answer"
            ));
        }
    };
    if timeout(limits::CHECK_TIME, work).await.is_err() {
        audit.incomplete.push(format!(
            "after {} s not all aliases had been looked at",
            limits::CHECK_TIME.as_secs()
        ));
    }
    Some(audit)
}

struct Checker<'a> {
    configuration: &'a Configuration,
    dns: &'a dyn Dns,
    domain: &'a str,
}

impl Checker<'_> {
    /// Whether mail to the domain goes by its aliases: not while it is being prepared.
    async fn is_enabled(&self, aliases: &[(&str, &str)]) -> bool {
        let leads_on = |(alias, value): &&(&str, &str)| {
            addresses_of(value).next().is_some_and(|address| !self.is_own(alias, address))
        };
        let Some((alias, _)) = aliases.iter().find(leads_on) else { return true };
        let own = format!("{alias}@{}", self.domain);
        let targets = route::route(self.configuration, self.dns, &About::default(), &own).await;
        targets.iter().any(|target| !target.parents.is_empty())
    }

    fn is_own(&self, alias: &str, address: &str) -> bool {
        address.rsplit_once('@').is_some_and(|(local, domain)| {
            local.eq_ignore_ascii_case(alias) && domain.eq_ignore_ascii_case(self.domain)
        })
    }

    async fn look(&self, (alias, value): (&str, &str), enabled: bool) -> Finding {
        let mut finding = Finding { warnings: Vec::new(), unknown: false };
        let own = format!("{alias}@{}", self.domain);
        let starts = if enabled { vec![own.as_str()] } else { addresses_of(value).collect() };
        for start in starts {
            let about = About::default();
            for target in route::route(self.configuration, self.dns, &about, start).await {
                self.judge(alias, &target, &mut finding);
            }
        }
        finding
    }

    fn judge(&self, alias: &str, target: &Target, finding: &mut Finding) {
        let address = &target.address;
        let why = match &target.fate {
            // Whoever only asks is told where an expansion ends.
            Fate::Deliver(_) | Fate::Expand(_) => return,
            Fate::Fail(why) => {
                if let Some(way) = self.way_back(target) {
                    finding.warnings.push(short(&format!("{alias}: loops ({way})")));
                    return;
                }
                why
            }
            // Not a question of DNS: many redirections, or data that no router understands.
            Fate::Defer(why) if is_fault(why) => why,
            Fate::Defer(_) => {
                finding.unknown = true;
                return;
            }
        };
        finding
            .warnings
            .push(short(&format!("{alias}: mail for {address} cannot be routed: {why}")));
    }

    /// How an address that is an alias failed all the same: no router redirects an address twice on one way
    /// (docs/policy.md), so it leads back to where it came from.
    fn way_back(&self, target: &Target) -> Option<String> {
        let (local, domain) = target.address.rsplit_once('@')?;
        let value = self.configuration.tables.get(&table_name(domain), local)?;
        let mut way: Vec<&str> = target.parents.iter().map(String::as_str).collect();
        way.push(&target.address);
        let again = addresses_of(value)
            .find(|address| way.iter().any(|passed| passed.eq_ignore_ascii_case(address)))?;
        way.push(again);
        Some(way.join(" → "))
    }
}

/// On one line, and not too long.
fn short(text: &str) -> String {
    let short = text.chars().take(limits::CHECK_WARNING_CHARS_MAX);
    short.map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Whether a deferral is one that waiting does not cure.
fn is_fault(why: &str) -> bool {
    ["probably a loop", "in the data of router", "leads to more than"]
        .iter()
        .any(|fault| why.contains(fault))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dev::configuration::tests::loaded_with, policy::golden::dns};

    async fn checked(aliases: &str) -> Audit {
        let table = "domains/botolph.cam.ac.uk/aliases";
        let configuration = loaded_with(&[(table, aliases)]);
        audit(&configuration, &dns(), "botolph.cam.ac.uk").await.unwrap()
    }

    const GOOD: &str = "postmaster: spqr1@hermes.cam.ac.uk\nwebmaster: spqr2@hermes.cam.ac.uk\n\
                        abuse: postmaster@botolph.cam.ac.uk\n";

    #[tokio::test]
    async fn a_good_domain_has_no_warnings() {
        let audit = checked(GOOD).await;
        assert_eq!(audit, Audit { aliases: 3, ..Audit::default() });
    }

    #[tokio::test]
    async fn loops_and_targets_that_do_not_exist_are_told() {
        let text = format!(
            "{GOOD}a: b@botolph.cam.ac.uk\nb: c@botolph.cam.ac.uk, spqr1@hermes.cam.ac.uk\n\
             c: A@botolph.cam.ac.uk\nself: self@botolph.cam.ac.uk\n\
             gone: spqr77@hermes.cam.ac.uk, spqr1@hermes.cam.ac.uk\nnobody: x@nowhere.invalid\n"
        );
        let audit = checked(&text).await;
        let told = audit.warnings.join("\n");
        for expected in [
            "a: loops (a@botolph.cam.ac.uk → b@botolph.cam.ac.uk → c@botolph.cam.ac.uk → A@botolph.cam.ac.uk)",
            "b: loops (b@botolph.cam.ac.uk → ",
            "c: loops (c@botolph.cam.ac.uk → ",
            "self: loops (self@botolph.cam.ac.uk → self@botolph.cam.ac.uk)",
            "gone: mail for spqr77@hermes.cam.ac.uk cannot be routed: \"spqr77@hermes.cam.ac.uk\" is not",
            "nobody: mail for x@nowhere.invalid cannot be routed: Invalid domain part",
        ] {
            assert!(told.contains(expected), "{expected} is missing in:\n{told}");
        }
        assert_eq!(audit.warnings.len(), 6, "{told}");
        assert_eq!(audit.incomplete, Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_is_missing_or_not_known_is_told() {
        let audit = checked("postmaster: x@broken.example.org\n").await;
        assert_eq!(
            audit.warnings,
            ["webmaster: this alias is missing", "abuse: this alias is missing"]
        );
        assert_eq!(audit.incomplete.len(), 1, "{audit:?}");
        assert!(audit.incomplete[0].contains("of 1 aliases it is not known"), "{audit:?}");
    }

    #[tokio::test]
    async fn a_domain_that_is_prepared_is_checked_by_its_addresses() {
        let text = format!("{GOOD}gone: spqr77@hermes.cam.ac.uk\n");
        let configuration = loaded_with(&[("domains/new.cam.ac.uk/aliases", &text)]);
        let audit = audit(&configuration, &dns(), "new.cam.ac.uk").await.unwrap();
        assert!(audit.incomplete[0].contains("not enabled here"), "{audit:?}");
        assert_eq!(audit.warnings.len(), 1, "{audit:?}");
        assert!(audit.warnings[0].starts_with("gone: mail for spqr77@"), "{audit:?}");
        assert_eq!(super::audit(&configuration, &dns(), "no.cam.ac.uk").await, None);
    }

    #[tokio::test]
    async fn warnings_are_bounded() {
        use std::fmt::Write as _;
        let mut text = GOOD.to_owned();
        for n in 0..limits::CHECK_WARNINGS_MAX + 50 {
            let _ = writeln!(text, "gone{n:04}: spqr77@hermes.cam.ac.uk");
        }
        let audit = checked(&text).await;
        assert_eq!(audit.warnings.len(), limits::CHECK_WARNINGS_MAX);
        assert!(audit.incomplete[0].contains("more warnings"), "{:?}", audit.incomplete);
    }
}
