//! `ppswctl status`.

use ppsw_proto::control::{GroupStatus, NodeStatus, StatusReply};
use serde_json::{Value, json};

use crate::{
    session::{Failure, Session},
    show,
};

pub(crate) async fn run(session: &mut Session, json: bool) -> Result<(), Failure> {
    let status = session.status().await?;
    if json {
        show::json(&to_json(&status));
    } else {
        print(&status);
    }
    Ok(())
}

/// A node as `status` and `node list` show it.
pub(crate) fn node_json(node: &NodeStatus) -> Value {
    let member = node.member.clone().unwrap_or_default();
    let drain = node
        .drain
        .as_ref()
        .map(|drain| json!({ "since": show::time(drain.since_ms), "by": drain.by }));
    json!({
        "id": member.id,
        "name": member.name,
        "state": node.state,
        "control": member.control,
        "http": (!member.http.is_empty()).then_some(member.http),
        "joined": show::time(member.joined_ms),
        "version": node.report.as_ref().map(|report| &report.version),
        "ready": node.report.as_ref().is_some_and(|report| report.not_ready.is_empty()),
        "not_ready": node.report.as_ref().map(|report| &report.not_ready),
        "drain": drain,
    })
}

fn to_json(status: &StatusReply) -> Value {
    let group = |group: &GroupStatus| {
        json!({
            "id": group.id,
            "leader": show::number(group.leader),
            "voters": group.voters,
            "learners": group.learners,
            "wanted": group.wanted,
            "term": group.term,
            "messages": group.messages,
        })
    };
    let control = status.control.clone().unwrap_or_default();
    let messages: u64 = status.partitions.iter().map(|partition| partition.messages).sum();
    json!({
        "cluster": status.cluster,
        "asked": status.asked,
        "control": {
            "leader": show::number(control.leader),
            "voters": control.voters,
            "term": control.term,
        },
        "nodes": status.nodes.iter().map(node_json).collect::<Vec<_>>(),
        "partitions": status.partitions.iter().map(group).collect::<Vec<_>>(),
        "queue": { "messages": messages },
    })
}

fn print(status: &StatusReply) {
    let control = status.control.clone().unwrap_or_default();
    let leader = |node: u64| if node == 0 { "nobody".to_owned() } else { node.to_string() };
    show::line(&format!(
        "cluster {}, control group led by {} (voters {})",
        status.cluster,
        leader(control.leader),
        show::list(&control.voters)
    ));
    let mut nodes = show::table(&["NODE", "NAME", "STATE", "CONTROL", "LEADS", "NOTE"]);
    for node in &status.nodes {
        let member = node.member.clone().unwrap_or_default();
        let led = status.partitions.iter().filter(|p| p.leader == member.id);
        let leads: Vec<u64> = led.map(|p| u64::from(p.id)).collect();
        nodes.add_row([
            member.id.to_string(),
            member.name,
            node.state.clone(),
            member.control,
            show::list(&leads),
            node.report.as_ref().map(|r| r.not_ready.join("; ")).unwrap_or_default(),
        ]);
    }
    show::print(&nodes);
    let mut partitions =
        show::table(&["PARTITION", "LEADER", "VOTERS", "TERM", "MESSAGES", "NOTE"]);
    for group in &status.partitions {
        let (mut voters, mut wanted) = (group.voters.clone(), group.wanted.clone());
        voters.sort_unstable();
        wanted.sort_unstable();
        let note = if voters == wanted {
            String::new()
        } else {
            format!("wanted {}", show::list(&wanted))
        };
        partitions.add_row([
            group.id.to_string(),
            leader(group.leader),
            show::list(&group.voters),
            group.term.to_string(),
            group.messages.to_string(),
            note,
        ]);
    }
    show::print(&partitions);
}
