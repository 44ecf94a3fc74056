//! `status --log`: how long the nodes' logs are, and why their oldest segments are kept.

use comfy_table::{Table, presets};
use ppsw_proto::control::{KeptLog, LogRequest, NodeLog, kept_log::Reason};
use serde_json::{Value, json};

use crate::{Failure, address::Admin, age};

pub(crate) async fn log(admin: &mut Admin, as_json: bool) -> Result<(), Failure> {
    let reply = admin.log(LogRequest {}).await?.into_inner();
    if as_json {
        let nodes: Value = reply.nodes.iter().map(node_json).collect();
        say!("{}", json!({ "nodes": nodes, "silent": reply.silent }));
        return Ok(());
    }
    say!("{}", length_table(&reply.nodes));
    say!("{}", kept_table(&reply.nodes));
    for node in &reply.silent {
        eprintln!("ppswctl: node {node} did not answer");
    }
    Ok(())
}

fn length_table(nodes: &[NodeLog]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["node", "segments", "bytes", "live", "carries from", "free"]);
    for node in nodes {
        table.add_row([
            node.node.to_string(),
            node.segments.to_string(),
            size(node.bytes),
            size(node.live_bytes),
            size(node.bound_bytes),
            size(node.free_bytes),
        ]);
    }
    table
}

fn kept_table(nodes: &[NodeLog]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["node", "group", "keeps segments", "bytes", "because of"]);
    for node in nodes {
        for kept in &node.kept {
            table.add_row([
                node.node.to_string(),
                group(kept.group),
                kept.segments.to_string(),
                size(kept.bytes),
                because(kept),
            ]);
        }
    }
    table
}

fn because(kept: &KeptLog) -> String {
    match &kept.reason {
        Some(Reason::Message(message)) => {
            format!("message {}, {} old", message.id, age::span(message.age_ms))
        }
        Some(Reason::Upload(id)) => format!("message {id}, which is being received"),
        Some(Reason::History(_)) => "its latest entries".to_owned(),
        Some(Reason::Checkpoint(entries)) => {
            format!("nothing: {entries} entries wait for the next checkpoint")
        }
        Some(Reason::Voter(voter)) => match voter.silent_ms {
            Some(ms) => {
                format!("node {}, which lags; it answered {} ago", voter.node, age::span(ms))
            }
            None => format!("node {}, which does not answer", voter.node),
        },
        None if kept.group == 0 => "its state".to_owned(),
        None => "a replica that does not run here any more".to_owned(),
    }
}

fn group(number: u32) -> String {
    if number == 0 { "control".to_owned() } else { format!("partition {number}") }
}

fn node_json(node: &NodeLog) -> Value {
    json!({
        "id": node.node,
        "segments": node.segments,
        "bytes": node.bytes,
        "live_bytes": node.live_bytes,
        "bound_bytes": node.bound_bytes,
        "free_bytes": node.free_bytes,
        "kept": node.kept.iter().map(kept_json).collect::<Value>(),
    })
}

fn kept_json(kept: &KeptLog) -> Value {
    let reason = match &kept.reason {
        Some(Reason::Message(message)) => json!({
            "kind": "message",
            "id": message.id,
            "received": age::rfc3339(message.received_ms),
            "age_seconds": message.age_ms / 1000,
        }),
        Some(Reason::Upload(id)) => json!({ "kind": "upload", "id": id }),
        Some(Reason::History(_)) => json!({ "kind": "history" }),
        Some(Reason::Checkpoint(entries)) => json!({ "kind": "checkpoint", "entries": entries }),
        Some(Reason::Voter(voter)) => {
            json!({ "kind": "voter", "node": voter.node, "silent_ms": voter.silent_ms })
        }
        None => json!({ "kind": "other" }),
    };
    json!({
        "group": kept.group,
        "first_index": kept.first_index,
        "segments": kept.segments,
        "bytes": kept.bytes,
        "reason": reason,
    })
}

/// Bytes in the largest unit of which there is one.
fn size(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_reasons_read_well() {
        assert_eq!(
            (size(0), size(1 << 10), size(3 << 29)),
            ("0 B".into(), "1.0 KiB".into(), "1.5 GiB".into())
        );
        let message = ppsw_proto::control::KeptMessage {
            id: "1abcDE-000001-02".into(),
            received_ms: 1_000,
            age_ms: 90_061_000,
        };
        let kept =
            KeptLog { group: 2, reason: Some(Reason::Message(message)), ..KeptLog::default() };
        assert_eq!(because(&kept), "message 1abcDE-000001-02, 1d01h old");
        assert_eq!(kept_json(&kept)["reason"]["age_seconds"], 90_061);
    }
}
