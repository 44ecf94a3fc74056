//! Whether the golden cases meet every clause of the university's policy, both ways.

use std::collections::BTreeMap;

use super::{
    super::{
        AskedCondition, TriedRule,
        condition::Condition,
        rule::{Acl, Body, Rule, Step, Test},
    },
    CAMBRIDGE, DECISIONS, cambridge, dns, follow, world,
};
use crate::dev::configuration::tests::loaded;

/// How often rules and conditions of a policy held, and did not.
#[derive(Default)]
pub(super) struct Coverage {
    /// By the line of the rule; `later` is neither.
    rules: BTreeMap<u32, [usize; 2]>,
    /// By the line of the rule, and the place in it and in its groups.
    conditions: BTreeMap<(u32, Vec<usize>), [usize; 2]>,
}

impl Coverage {
    pub(super) fn add(&mut self, rules: &[TriedRule]) {
        for rule in rules {
            let counts = self.rules.entry(rule.place.line).or_default();
            match rule.conditions.last().map_or("yes", |last| last.answer) {
                "yes" => counts[0] += 1,
                "no" => counts[1] += 1,
                _ => {}
            }
            self.add_conditions(rule.place.line, &[], &rule.conditions);
        }
    }

    fn add_conditions(&mut self, line: u32, group: &[usize], asked: &[AskedCondition]) {
        for (number, condition) in asked.iter().enumerate() {
            let place = [group, &[number]].concat();
            let counts = self.conditions.entry((line, place.clone())).or_default();
            match condition.answer {
                "yes" => counts[0] += 1,
                "no" => counts[1] += 1,
                _ => {}
            }
            self.add_conditions(line, &place, &condition.conditions);
            self.add(&condition.rules);
        }
    }

    /// What of an ACL's rules was never seen to hold, or not to hold.
    fn missing(&self, acl: &Acl) -> Vec<String> {
        let rules: Vec<&Rule> = match &acl.body {
            Body::Stages(stages) => stages.values().flatten().collect(),
            Body::Rules(rules) => rules.iter().collect(),
        };
        let mut missing = Vec::new();
        let mut note = |what: String, counts: Option<&[usize; 2]>, ways: usize| {
            let [yes, no] = counts.copied().unwrap_or_default();
            if yes == 0 {
                missing.push(format!("{what} never holds"));
            }
            if no == 0 && ways == 2 {
                missing.push(format!("{what} always holds"));
            }
        };
        for rule in rules {
            let line = rule.place.line;
            let tests: Vec<&Test> = rule
                .steps
                .iter()
                .filter_map(|step| if let Step::Test(test) = step { Some(test) } else { None })
                .collect();
            let what = format!("acl {:?}, line {line}: {}", acl.name, rule.place.text);
            let ways = if tests.is_empty() { 1 } else { 2 };
            note(what.clone(), self.rules.get(&line), ways);
            let mut waiting: Vec<(Vec<usize>, &Test)> =
                tests.into_iter().enumerate().map(|(at, test)| (vec![at], test)).collect();
            while let Some((place, test)) = waiting.pop() {
                let counts = self.conditions.get(&(line, place.clone()));
                note(format!("{what}: {}", test.text), counts, 2);
                if let Condition::Any(inner) | Condition::All(inner) = &test.condition {
                    let inner = inner.iter().enumerate();
                    waiting.extend(inner.map(|(at, test)| ([&place[..], &[at]].concat(), test)));
                }
            }
        }
        missing
    }
}

/// The rule before this one has refused everybody for whom it could not hold.
const ALWAYS: [&str; 1] = [
    "deny hosts=\"!+relay\" domains=\"{name}\" verify=\"!recipient\" callout=\"use-sender defer-ok\": \
                           domains=\"{name}\" always holds",
];

/// Each rule of the university's policy, and each of its conditions, is met both ways by some case.
#[tokio::test]
async fn every_clause_is_hit_both_ways() {
    let configuration = cambridge();
    let (_, mut coverage) = follow(&configuration, &world(), CAMBRIDGE).await;
    // The policy of a dev cluster is the same with other values, line by line.
    let (_, of_dev) = follow(&loaded(), &dns(), DECISIONS).await;
    for (line, [yes, no]) in of_dev.rules {
        let counts = coverage.rules.entry(line).or_default();
        *counts = [counts[0] + yes, counts[1] + no];
    }
    for (place, [yes, no]) in of_dev.conditions {
        let counts = coverage.conditions.entry(place).or_default();
        *counts = [counts[0] + yes, counts[1] + no];
    }
    let mut missing: Vec<String> =
        configuration.compiled.acls.iter().flat_map(|acl| coverage.missing(acl)).collect();
    for known in ALWAYS {
        assert!(missing.iter().any(|what| what.ends_with(known)), "{known}: no longer");
        missing.retain(|what| !what.ends_with(known));
    }
    assert!(missing.is_empty(), "{} clauses:\n{}", missing.len(), missing.join("\n"));
    // Somebody who is never asked is noticed.
    coverage.rules.clear();
    assert!(!coverage.missing(&configuration.compiled.acls[0]).is_empty());
}
