//! Nodes and groups on the status page.

use maud::{Markup, html};
use ppsw_control::ClusterView;
use ppsw_proto::control::{GroupStatus, NodeStatus, drain_progress::Phase};

use super::{
    verdict::{grade, node_word},
    words,
};
use crate::limits::{PAGE_NODES_MAX, PAGE_REASONS_MAX};

pub(super) fn table(view: &ClusterView) -> Markup {
    let nodes = &view.status.nodes;
    html! {
        table.cards {
            thead { tr {
                th { "node" } th { "state" } th { "leads" } th { "program" } th { "up for" } th { "policy and tables" }
            } }
            tbody { @for node in nodes.iter().take(PAGE_NODES_MAX) { (row(node, view)) } }
        }
        (more(nodes.len(), PAGE_NODES_MAX))
    }
}

fn row(node: &NodeStatus, view: &ClusterView) -> Markup {
    let member = node.member.clone().unwrap_or_default();
    let report = node.report.as_ref();
    let notes = notes(node, view);
    let more = notes.len().saturating_sub(PAGE_REASONS_MAX);
    let up = report.map(|report| words::span(view.taken.0.saturating_sub(report.started_ms)));
    html! {
        tr id={ "node-" (member.id) } {
            th scope="row" { "node " (member.id) " " span.soft { bdi { (words::name(&member.name)) } } }
            td {
                span class={ "chip " (grade(node).class()) } { (node_word(node)) }
                @for note in notes.iter().take(PAGE_REASONS_MAX) { div.note { (note) } }
                @if more > 0 { div.note { "and " (more) " more" } }
            }
            td data-label="leads" { div { (led(member.id, view)) } }
            td data-label="program" { div { (report.map_or("–", |report| report.version.as_str())) } }
            td data-label="up for" { div { (up.unwrap_or_else(|| "–".to_owned())) } }
            td data-label="policy and tables" { div { (tables(node, view)) } }
        }
    }
}

fn led(node: u64, view: &ClusterView) -> String {
    let led = |group: &&GroupStatus| group.leader == node;
    let partitions: Vec<String> =
        view.status.partitions.iter().filter(led).map(|group| group.id.to_string()).collect();
    let shown = partitions.iter().take(PAGE_REASONS_MAX).cloned().collect::<Vec<_>>().join(", ");
    let cut = if partitions.len() > PAGE_REASONS_MAX { ", …" } else { "" };
    let control = view.status.control.as_ref().is_some_and(|group| group.leader == node);
    match (partitions.is_empty(), control) {
        (true, false) => "nothing".to_owned(),
        (true, true) => "control group".to_owned(),
        (false, false) => format!("partition {shown}{cut}"),
        (false, true) => format!("partition {shown}{cut}; control group"),
    }
}

fn tables(node: &NodeStatus, view: &ClusterView) -> String {
    let Some(tables) = node.report.as_ref().and_then(|report| report.tables.as_ref()) else {
        return "–".to_owned();
    };
    if view.generation == 0 {
        return "its own directory".to_owned();
    }
    let behind = if tables.generation == view.generation {
        String::new()
    } else {
        format!(", behind: {} is active, generation {}", view.version, view.generation)
    };
    format!("version {}, generation {}{behind}", tables.version, tables.generation)
}

/// Why a node is not ready, and what else should be known of it.
fn notes(node: &NodeStatus, view: &ClusterView) -> Vec<String> {
    let mut notes = Vec::new();
    let since = |ms: u64| words::span(view.taken.0.saturating_sub(ms));
    if let Some(drain) = &node.drain {
        notes.push(format!("asked to drain {} ago", since(drain.since_ms)));
    }
    let Some(report) = &node.report else {
        if node.away.is_some() {
            notes.push("silent for long: others have its votes".to_owned());
        }
        return notes;
    };
    if let Some(progress) = report.drain.as_ref().filter(|_| node.drain.is_some()) {
        match progress.phase() {
            Phase::None => {}
            Phase::Sessions => {
                notes.push(format!("waits for {} transactions", progress.open_transactions));
            }
            Phase::Partitions => {
                notes.push(format!("{} groups to hand over", progress.partitions.len()));
            }
            Phase::Safe => notes.push("safe to stop".to_owned()),
        }
        if !progress.trouble.is_empty() {
            notes.push(words::name(&progress.trouble));
        }
    }
    if let Some(removal) = &node.removal {
        notes.push(format!(
            "removed {} ago, {} groups left on it",
            since(removal.since_ms),
            node.groups.len()
        ));
    }
    notes.extend(report.not_ready.iter().map(|reason| words::name(reason)));
    if let Some(shedding) = &report.shedding {
        notes.push(format!(
            "turns away {} % of strangers' sessions ({})",
            shedding.percent,
            words::name(&shedding.signal)
        ));
    }
    notes
}

pub(super) fn groups(view: &ClusterView) -> Markup {
    let groups: Vec<&GroupStatus> =
        view.status.control.iter().chain(&view.status.partitions).collect();
    html! {
        div.box {
            table {
                thead { tr {
                    th { "group" } th { "leader" } th.n { "term" } th { "voters" } th.n { "messages" }
                } }
                tbody {
                    @for group in groups.iter().take(PAGE_NODES_MAX) {
                        tr id={ "group-" (group.id) } {
                            th scope="row" {
                                @if group.id == 0 { "control" } @else { (group_name(group.id)) }
                                @if group.orphaned { span.note { " its node has left" } }
                            }
                            td {
                                @if group.leader == 0 { span.chip.bad { "none" } }
                                @else { "node " (group.leader) }
                            }
                            td.n { (words::count(group.term)) }
                            td { (numbers(&group.voters)) @if !group.learners.is_empty() {
                                span.note { " learning: " (numbers(&group.learners)) }
                            } }
                            td.n { @if group.id == 0 { "" } @else { (words::count(group.messages)) } }
                        }
                    }
                }
            }
        }
        (more(groups.len(), PAGE_NODES_MAX))
    }
}

pub(super) fn group_name(id: u32) -> String {
    if id == 0 { "control group".to_owned() } else { format!("partition {id}") }
}

fn numbers(nodes: &[u64]) -> String {
    nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

/// A line for what did not fit.
pub(super) fn more(all: usize, shown: usize) -> Markup {
    html! { @if all > shown { p.note { "and " (all - shown) " more" } } }
}
