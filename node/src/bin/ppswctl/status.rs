//! `status` and `node list`.

use comfy_table::{Table, presets};
use ppsw_proto::control::{GroupStatus, NodeStatus, StatusReply, StatusRequest};
use serde_json::{Value, json};

use crate::{Failure, address::Admin};

pub(crate) async fn status(admin: &mut Admin, as_json: bool) -> Result<(), Failure> {
    let status = ask(admin).await?;
    if as_json {
        say!("{}", to_json(&status));
        return Ok(());
    }
    say!("cluster {}, asked node {}", status.cluster, status.asked);
    say!("{}", node_table(&status.nodes));
    say!("{}", group_table(&status));
    Ok(())
}

pub(crate) async fn nodes(admin: &mut Admin, as_json: bool) -> Result<(), Failure> {
    let status = ask(admin).await?;
    if as_json {
        say!("{}", Value::from_iter(status.nodes.iter().map(node_json)));
    } else {
        say!("{}", node_table(&status.nodes));
        for gone in &status.removed {
            say!("node {} has left: removed by {} ({})", gone.node, gone.by, gone.reason);
        }
    }
    Ok(())
}

/// The state of the cluster as the node at the other end sees it.
pub(crate) async fn ask(admin: &mut Admin) -> Result<StatusReply, Failure> {
    Ok(admin.status(StatusRequest {}).await?.into_inner())
}

/// The number of a node that is given by number or name.
pub(crate) fn find_node(status: &StatusReply, given: &str) -> Result<u64, Failure> {
    let members = status.nodes.iter().filter_map(|node| node.member.as_ref());
    let found = members
        .clone()
        .find(|member| given.parse() == Ok(member.id) || member.name == given)
        .map(|member| member.id);
    found.ok_or_else(|| {
        let known: Vec<String> = members.map(|member| member.id.to_string()).collect();
        Failure::Refused(format!(
            "no node {given:?} in this cluster; there are {}",
            known.join(", ")
        ))
    })
}

fn to_json(status: &StatusReply) -> Value {
    json!({
        "cluster": status.cluster,
        "asked": status.asked,
        "nodes": status.nodes.iter().map(node_json).collect::<Value>(),
        "partitions": status.partitions.iter().map(group_json).collect::<Value>(),
        "control": status.control.as_ref().map(group_json),
        "placement": {
            "voters": status.settings.unwrap_or_default().voters,
            "replace_after_ms": status.settings.unwrap_or_default().replace_after_ms,
        },
        "removed": status.removed.iter().map(|removal| json!({
            "id": removal.node,
            "since": removal.since_ms,
            "by": removal.by,
            "reason": removal.reason,
        })).collect::<Value>(),
    })
}

fn node_json(node: &NodeStatus) -> Value {
    let member = node.member.clone().unwrap_or_default();
    let report = node.report.as_ref();
    json!({
        "id": member.id,
        "name": member.name,
        "state": node.state,
        "control": member.control,
        "http": member.http,
        "version": report.map(|r| r.version.clone()),
        "not_ready": report.map(|r| r.not_ready.clone()),
        "shedding": report.and_then(|r| r.shedding.as_ref()).map(|shedding| json!({
            "signal": shedding.signal,
            "percent": shedding.percent,
        })),
        "away_since": node.away.as_ref().map(|away| away.since_ms),
        "removing": node.removal.as_ref().map(|removal| json!({
            "since": removal.since_ms,
            "by": removal.by,
            "reason": removal.reason,
            "forced": removal.forced,
            "left": node.groups,
        })),
    })
}

fn group_json(group: &GroupStatus) -> Value {
    json!({
        "id": group.id,
        "leader": (group.leader != 0).then_some(group.leader),
        "voters": group.voters,
        "learners": group.learners,
        "wanted": group.wanted,
        "term": group.term,
        "messages": group.messages,
        "orphaned": group.orphaned,
    })
}

fn node_table(nodes: &[NodeStatus]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["node", "state", "control", "http", "notes"]);
    for node in nodes {
        let member = node.member.clone().unwrap_or_default();
        table.add_row([
            format!("{} {}", member.id, member.name),
            node.state.clone(),
            member.control,
            member.http,
            notes(node),
        ]);
    }
    table
}

/// What an operator should know of a node: what is left of its removal, its absence, why it is not ready.
fn notes(node: &NodeStatus) -> String {
    let mut notes = Vec::new();
    if let Some(removal) = &node.removal {
        notes.push(format!("leaves ({}): {}", removal.reason, left(&node.groups)));
    }
    if node.away.is_some() {
        notes.push("silent for long: others have its votes".to_owned());
    }
    notes.extend(node.report.iter().flat_map(|report| report.not_ready.iter().cloned()));
    if let Some(shedding) = node.report.as_ref().and_then(|report| report.shedding.as_ref()) {
        let (signal, percent) = (&shedding.signal, shedding.percent);
        notes.push(format!("turns away {percent} % of strangers' sessions ({signal})"));
    }
    notes.join("; ")
}

/// Groups that still have a replica on a node, in words.
pub(crate) fn left(groups: &[u32]) -> String {
    if groups.is_empty() {
        return "nothing is left on it".to_owned();
    }
    let names = groups.iter().map(|group| match group {
        0 => "the control group".to_owned(),
        id => format!("partition {id}"),
    });
    format!("still on it: {}", names.collect::<Vec<_>>().join(", "))
}

fn group_table(status: &StatusReply) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["group", "leader", "voters", "wanted", "term", "messages"]);
    let groups = status.control.iter().map(|group| ("control".to_owned(), group));
    let partitions = status.partitions.iter().map(|group| {
        let note = if group.orphaned { ", no home" } else { "" };
        (format!("partition {}{note}", group.id), group)
    });
    for (name, group) in groups.chain(partitions) {
        let leader = if group.leader == 0 { "none".to_owned() } else { group.leader.to_string() };
        table.add_row([
            name,
            leader,
            if group.learners.is_empty() {
                numbers(&group.voters)
            } else {
                format!("{} + {}", numbers(&group.voters), numbers(&group.learners))
            },
            numbers(&group.wanted),
            group.term.to_string(),
            group.messages.to_string(),
        ]);
    }
    table
}

fn numbers(all: &[u64]) -> String {
    all.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}
