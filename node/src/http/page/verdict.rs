//! What is wrong, first of all: a word, a colour, and the reasons. Pure.

use maud::{Markup, html};
use ppsw_control::ClusterView;
use ppsw_proto::control::NodeStatus;

use super::words;
use crate::limits::PAGE_TROUBLES_MAX;

/// How bad something is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Grade {
    Good,
    Warn,
    Bad,
}

impl Grade {
    /// The class of the style sheet.
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// All that a person should know at once.
pub(super) struct Verdict {
    troubles: Vec<(Grade, String)>,
}

impl Verdict {
    pub(super) fn of(view: &ClusterView) -> Self {
        let mut troubles = Vec::new();
        for group in view.status.control.iter().chain(&view.status.partitions) {
            if group.leader == 0 {
                let name = super::nodes::group_name(group.id);
                troubles.push((Grade::Bad, format!("{name} has no leader that answers")));
            }
        }
        for node in &view.status.nodes {
            let id = node.member.as_ref().map_or(0, |member| member.id);
            let grade = grade(node);
            if grade != Grade::Good {
                troubles.push((grade, format!("node {id} is {}", node_word(node))));
            }
        }
        let answered = |node: &&u64| {
            let of = |status: &&NodeStatus| status.member.as_ref().is_some_and(|m| m.id == **node);
            view.status.nodes.iter().find(of).is_some_and(|status| status.report.is_some())
        };
        for node in view.queue.silent.iter().filter(answered) {
            let text = format!("node {node} did not say its queue in time: the figures lack it");
            troubles.push((Grade::Warn, text));
        }
        for rule in view.standing.iter().filter_map(|rule| rule.shed.as_ref()) {
            let text = format!(
                "an operator turns away {} % of the sessions of {}",
                rule.percent,
                words::name(&rule.personality)
            );
            troubles.push((Grade::Warn, text));
        }
        // Stable: the worst come first, else in the order above.
        troubles.sort_by_key(|(grade, _)| std::cmp::Reverse(*grade));
        Self { troubles }
    }

    fn grade(&self) -> Grade {
        self.troubles.first().map_or(Grade::Good, |(grade, _)| *grade)
    }

    pub(super) fn word(&self) -> &'static str {
        match self.grade() {
            Grade::Good => "all well",
            Grade::Warn => "take note",
            Grade::Bad => "trouble",
        }
    }

    pub(super) fn markup(&self) -> Markup {
        let more = self.troubles.len().saturating_sub(PAGE_TROUBLES_MAX);
        html! {
            div #verdict class={ "verdict " (self.grade().class()) } {
                strong { (self.word()) }
                @if !self.troubles.is_empty() {
                    ul {
                        @for (_, text) in self.troubles.iter().take(PAGE_TROUBLES_MAX) { li { (text) } }
                        @if more > 0 { li { "and " (more) " more" } }
                    }
                }
            }
        }
    }
}

/// What a node's state is called here.
pub(super) fn node_word(node: &NodeStatus) -> &'static str {
    match node.state.as_str() {
        "down" => "silent",
        "up" if node.report.as_ref().is_some_and(|report| !report.not_ready.is_empty()) => {
            "not ready"
        }
        "up" => "ready",
        "draining" => "draining",
        "drained" => "drained",
        "removing" => "leaving",
        "joined" => "joined, not started",
        _ => "unknown",
    }
}

/// How bad a node's state is.
pub(super) fn grade(node: &NodeStatus) -> Grade {
    match node_word(node) {
        "ready" => Grade::Good,
        "silent" => Grade::Bad,
        _ => Grade::Warn,
    }
}
