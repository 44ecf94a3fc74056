//! The block `retry`: which rule an address has, by what went wrong. The first that fits decides, as in Exim.

use kdl::{KdlDocument, KdlNode};

use super::{
    Configuration,
    compile::Compiler,
    list::{Kind, List, Subject},
    source::{Setting, text},
};
use crate::{
    deliver::retry::{RetryRule, Trouble, TroublePattern},
    limits::RETRY_RULES_MAX,
};

/// Words of the block.
#[cfg(test)]
pub(super) const WORDS: [&str; 5] = ["retry", "rule", "domains", "addresses", "errors"];

/// The rules; empty: those that are built in.
#[derive(Debug, Default)]
pub(crate) struct RetryRules {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    domains: Option<List>,
    addresses: Option<List>,
    /// Empty: whatever went wrong.
    troubles: Vec<TroublePattern>,
    rule: RetryRule,
}

impl Configuration {
    /// The retry rule of the policy for an address; `None`: the policy has none.
    pub(crate) fn retry_rule(&self, address: &str, trouble: &Trouble) -> Option<&RetryRule> {
        let domain = address.rsplit_once('@').map_or("", |(_, domain)| domain);
        let fits = |line: &&Line| {
            let listed = |list: &Option<List>, subject| {
                list.as_ref().is_none_or(|list| self.holds(list, subject))
            };
            listed(&line.domains, Subject::Domain(domain))
                && listed(&line.addresses, Subject::Address(address))
                && (line.troubles.is_empty() || line.troubles.iter().any(|p| p.matches(trouble)))
        };
        self.compiled.retry.lines.iter().find(fits).map(|line| &line.rule)
    }
}

pub(super) fn compile(node: Option<&KdlNode>, compiler: &mut Compiler<'_>) -> RetryRules {
    let Some(node) = node else { return RetryRules::default() };
    let children = node.children().map_or(&[][..], KdlDocument::nodes);
    let mut lines = Vec::new();
    for child in children {
        let setting = Setting::node(child);
        if setting.name != "rule" {
            compiler.errors.unknown(setting.span, "statement", setting.name, ["rule"]);
            continue;
        }
        lines.extend(line(&setting, compiler));
    }
    let last = lines.last();
    let for_all = last.is_some_and(|line| {
        line.domains.is_none() && line.addresses.is_none() && line.troubles.is_empty()
    });
    if !for_all && compiler.errors.is_empty() {
        let what = "expected a last rule without domains, addresses and errors: what fits none would fail at once";
        compiler.errors.at(node.name().span(), what);
    }
    if lines.len() > RETRY_RULES_MAX {
        let what = format!("expected at most {RETRY_RULES_MAX} rules");
        compiler.errors.at(node.name().span(), what);
    }
    RetryRules { lines }
}

fn line(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<Line> {
    setting.only(&["domains", "addresses", "errors"], &mut compiler.errors);
    let entry = setting.value("a rule like \"F,2h,15m; F,5d,8h\"", &mut compiler.errors)?;
    let rule = text(entry, "a rule like \"F,2h,15m; F,5d,8h\"", &mut compiler.errors)?;
    let rule = rule.parse::<RetryRule>();
    if let Err(error) = &rule {
        compiler.errors.at(entry.span(), error.to_string());
    }
    let mut list = |name: &str, kind| {
        setting.option(name).map(|entry| {
            let mut items = Vec::new();
            compiler.words(kind, entry, &mut items);
            List { items }
        })
    };
    let (domains, addresses) = (list("domains", Kind::Domains), list("addresses", Kind::Addresses));
    let mut troubles = Vec::new();
    if let Some(entry) = setting.option("errors") {
        let words = text(entry, "names of errors", &mut compiler.errors).unwrap_or_default();
        for word in words.split_whitespace() {
            match TroublePattern::parse(word) {
                Some(pattern) => troubles.push(pattern),
                None => {
                    compiler.errors.unknown(entry.span(), "error", word, TroublePattern::NAMES);
                }
            }
        }
    }
    Some(Line { domains, addresses, troubles, rule: rule.ok()? })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc, time::Duration};

    use super::*;
    use crate::{
        deliver::retry::{Cause, Stage},
        policy::POLICY,
    };

    const DAY: Duration = Duration::from_secs(86_400);

    fn loaded(rules: &str) -> Result<Arc<Configuration>, String> {
        let policy = format!("domains \"ours\" \"a.example\"\nretry {{\n{rules}\n}}\n");
        let files = BTreeMap::from([(POLICY.to_owned(), policy.into_bytes())]);
        Configuration::from_files(&files).map_err(|errors| format!("{errors:?}"))
    }

    #[test]
    fn the_rules_of_the_paper() {
        let paper = loaded(
            r#"rule "F,2h,15m; F,8h,30m; F,7d,60m; F,14d,2h" domains="+ours"
               rule "F,2h,15m; G,16h,30m,1.5" errors="refused_A timeout_connect_A"
               rule "F,2h,15m; G,16h,30m,1.5; F,5d,8h""#,
        );
        let paper = paper.unwrap();
        let trouble = |cause, mx| Trouble { cause, mx: Some(mx) };
        for (address, trouble, expected) in [
            ("x@A.example", trouble(Cause::Refused, false), 14 * DAY),
            ("x@b.example", trouble(Cause::Refused, false), DAY * 2 / 3),
            ("x@b.example", trouble(Cause::TimeoutConnect, false), DAY * 2 / 3),
            ("x@b.example", trouble(Cause::Refused, true), 5 * DAY),
            ("x@b.example", trouble(Cause::Timeout, false), 5 * DAY),
            ("x@b.example", Trouble::default(), 5 * DAY),
        ] {
            let rule = paper.retry_rule(address, &trouble).unwrap();
            assert_eq!(rule.expires_after(), expected, "{address} {trouble:?}");
        }
        assert!(loaded("").unwrap_err().contains("expected a last rule"));
        let none = Configuration::from_files(&BTreeMap::from([(POLICY.to_owned(), Vec::new())]));
        assert!(none.unwrap().retry_rule("x@b.example", &Trouble::default()).is_none());
    }

    #[test]
    fn addresses_and_replies_have_rules_of_their_own() {
        let rules = r#"rule "F,1h,10m" addresses="boss@a.example" errors="quota"
                       rule "F,2h,10m" errors="rcpt_45x"
                       rule "F,3h,10m""#;
        let rules = loaded(rules).unwrap();
        let hours = |address, code, full| {
            let cause = Cause::Reply { to: Stage::Rcpt, code, full };
            let rule = rules.retry_rule(address, &Trouble { cause, mx: None }).unwrap();
            rule.expires_after().as_secs() / 3_600
        };
        assert_eq!(hours("boss@a.example", 452, true), 1);
        assert_eq!(hours("boss@a.example", 452, false), 2);
        assert_eq!(hours("clerk@a.example", 452, true), 2);
        assert_eq!(hours("clerk@a.example", 421, false), 3);
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let last = "\nrule \"F,5d,8h\"";
        for (rule, expected) in [
            ("rule \"F,2h\"", "retry rule"),
            ("rule", "rule like"),
            ("rul \"F,2h,15m\"", "did you mean"),
            ("rule \"F,2h,15m\" errors=\"refusd_A\"", "refused_A"),
            ("rule \"F,2h,15m\" domain=\"+ours\"", "domains"),
            ("rule \"F,2h,15m\" domains=\"+oars\"", "ours"),
        ] {
            let why = loaded(&format!("{rule}{last}")).unwrap_err();
            assert!(why.contains(expected), "{rule}: {why}");
        }
        let unconditional = loaded("rule \"F,2h,15m\" errors=\"refused\"").unwrap_err();
        assert!(unconditional.contains("expected a last rule"), "{unconditional}");
        let many = "rule \"F,5d,8h\"\n".repeat(RETRY_RULES_MAX + 1);
        assert!(loaded(&many).unwrap_err().contains("at most"));
    }
}
