//! What is known at a moment, and the rates between two. Pure.

use std::{collections::BTreeMap, fmt::Write as _, time::Instant};

use ppsw_proto::control::{GroupStatus, NodeStatus, QueueSummary, StatusReply, Totals};
use serde_json::{Value, json};

use crate::{
    age::{rfc3339, span},
    gaps::Gaps,
};

/// The cluster at a moment.
pub(super) struct Snapshot {
    at: Instant,
    now_ms: u64,
    status: StatusReply,
}

impl Snapshot {
    pub(super) const fn new(at: Instant, now_ms: u64, status: StatusReply) -> Self {
        Self { at, now_ms, status }
    }

    /// The totals of a node's process, and when that began.
    fn totals(&self, node: u64) -> Option<(u64, Totals)> {
        let of = |status: &&NodeStatus| status.member.as_ref().is_some_and(|m| m.id == node);
        let report = self.status.nodes.iter().find(of)?.report.as_ref()?;
        Some((report.started_ms, report.totals?))
    }
}

/// Each second, so many.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) accepted: f64,
    pub(super) delivered: f64,
    pub(super) deferred: f64,
    pub(super) failed: f64,
}

/// What is shown.
pub(super) struct View {
    pub(super) now_ms: u64,
    pub(super) status: StatusReply,
    pub(super) queue: QueueSummary,
    /// By node; none of one that did not answer twice in a row, or was started in between.
    pub(super) rates: BTreeMap<u64, Rates>,
}

impl View {
    pub(super) fn new(before: Option<&Snapshot>, now: &Snapshot, queue: QueueSummary) -> Self {
        let members = now.status.nodes.iter().filter_map(|node| node.member.as_ref());
        let rates = members.filter_map(|member| {
            let before = before?;
            let (began, old) = before.totals(member.id)?;
            let (begins, new) = now.totals(member.id)?;
            let seconds = now.at.saturating_duration_since(before.at).as_secs_f64();
            if began != begins || seconds <= 0.0 {
                return None;
            }
            let rate = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds;
            let rates = Rates {
                accepted: rate(old.accepted, new.accepted),
                delivered: rate(old.delivered, new.delivered),
                deferred: rate(old.deferred, new.deferred),
                failed: rate(old.failed, new.failed),
            };
            Some((member.id, rates))
        });
        let rates = rates.collect();
        Self { now_ms: now.now_ms, status: now.status.clone(), queue, rates }
    }

    /// All groups, the control group first.
    pub(super) fn groups(&self) -> impl Iterator<Item = &GroupStatus> {
        self.status.control.iter().chain(&self.status.partitions)
    }

    /// Age of something, in words.
    pub(super) fn age(&self, since_ms: u64) -> String {
        if since_ms == 0 { "-".to_owned() } else { span(self.now_ms.saturating_sub(since_ms)) }
    }

    pub(super) fn to_json(&self) -> Value {
        let nodes = self.status.nodes.iter().map(|node| {
            let member = node.member.clone().unwrap_or_default();
            let rates = self.rates.get(&member.id).map(|rates| {
                json!({
                    "accepted": rates.accepted,
                    "delivered": rates.delivered,
                    "deferred": rates.deferred,
                    "failed": rates.failed,
                })
            });
            json!({ "id": member.id, "name": member.name, "state": node.state, "per_second": rates })
        });
        let partitions = self.status.partitions.iter().map(|group| {
            json!({
                "id": group.id,
                "leader": (group.leader != 0).then_some(group.leader),
                "term": group.term,
                "messages": group.messages,
            })
        });
        json!({
            "time": rfc3339(self.now_ms),
            "cluster": self.status.cluster,
            "nodes": Value::from_iter(nodes),
            "partitions": Value::from_iter(partitions),
            "control": self.status.control.as_ref().map(|group| group.leader),
            "queue": crate::queue::summary_json(&self.queue, &self.gaps()),
        })
    }

    /// Partitions that nobody leads, or one that did not answer for the queue.
    fn gaps(&self) -> Gaps {
        let silent = &self.queue.silent;
        let unled = self
            .status
            .partitions
            .iter()
            .filter(|group| group.leader == 0 || silent.contains(&group.leader));
        Gaps { nodes: silent.clone(), partitions: unled.map(|group| group.id).collect() }
    }

    /// A few lines for a pipe.
    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{} messages in the queue\n", self.queue.messages);
        for node in &self.status.nodes {
            let member = node.member.clone().unwrap_or_default();
            let rates = self.rates.get(&member.id).copied().unwrap_or_default();
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "node {} {}: {:.1} accepted, {:.1} delivered, {:.1} deferred, {:.1} failed per second",
                member.id,
                node.state,
                rates.accepted,
                rates.delivered,
                rates.deferred,
                rates.failed
            );
        }
        for group in self.groups().filter(|group| group.id != 0) {
            let leader = if group.leader == 0 {
                "nobody".to_owned()
            } else {
                format!("node {}", group.leader)
            };
            let _ = writeln!(
                text,
                "partition {}: led by {leader}, {} messages",
                group.id, group.messages
            );
        }
        text.truncate(text.trim_end().len());
        text
    }
}
