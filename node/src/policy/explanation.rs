//! How rules came to a decision: for people who ask why.

use super::{Place, Stage};

/// What was asked in one stage, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub stage: Stage,
    /// Name of the personality's rules.
    pub acl: String,
    pub rules: Vec<TriedRule>,
}

/// A rule that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriedRule {
    pub place: Place,
    /// Conditions up to the one that decided.
    pub conditions: Vec<AskedCondition>,
    /// What its modifiers did.
    pub effects: Vec<String>,
    /// `accept`, `deny` and so on; `None`: the next rule is tried.
    pub verdict: Option<&'static str>,
}

/// A condition that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedCondition {
    pub text: Box<str>,
    /// `yes`, `no`, or `later`: not known now.
    pub answer: &'static str,
    /// On what the answer rests.
    pub why: String,
    /// The conditions of a group.
    pub conditions: Vec<Self>,
    /// The rules of an auxiliary ACL.
    pub rules: Vec<TriedRule>,
}

impl Explanation {
    /// The rule that spoke: the last one that was tried.
    pub fn speaker(&self) -> Option<&TriedRule> {
        self.rules.last()
    }
}

/// What is noted while rules run: the lists that are being filled.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) rules: Vec<TriedRule>,
    pub(super) conditions: Vec<AskedCondition>,
    pub(super) effects: Vec<String>,
}
