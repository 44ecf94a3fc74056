//! What `dev` shows: plain lines in a pipe, a live screen in a terminal.

use std::io::{self, Write};

use super::{
    operator::ClusterStatus,
    plan::{NodeEntry, Plan},
};

/// Cursor home, and everything from there on erased.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Prints a line. Output that nobody reads any more must not end the cluster.
pub(super) fn line(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Says that the cluster is ready and how to use it.
pub(super) fn ready(plan: &Plan, nodes: &[NodeEntry]) {
    for text in endpoints(plan, nodes) {
        line(&text);
    }
    line(&format!("ready: {}", plan.path("cluster.json").display()));
}

/// Draws the screen anew.
pub(super) fn draw(plan: &Plan, nodes: &[NodeEntry], status: &Result<ClusterStatus, String>) {
    let mut screen = format!("{CLEAR}ppswitch dev, {}\n\n", plan.dir.display());
    for text in endpoints(plan, nodes) {
        screen.push_str(&text);
        screen.push('\n');
    }
    screen.push('\n');
    match status {
        Ok(status) => screen.push_str(&table(status)),
        Err(reason) => screen.push_str(&format!("no status: {reason}\n")),
    }
    screen.push_str("\nCtrl-C stops all of it.\n");
    let mut out = io::stdout();
    let _ = out.write_all(screen.as_bytes());
    let _ = out.flush();
}

fn endpoints(plan: &Plan, nodes: &[NodeEntry]) -> Vec<String> {
    let mut lines: Vec<String> = nodes
        .iter()
        .map(|node| {
            format!(
                "node {} (process {}): mx {} smart {} submission {} submissions {} control {} http http://{}/",
                node.id, node.pid, node.mx, node.smart, node.submission, node.submissions, node.control, node.http
            )
        })
        .collect();
    lines.push(format!(
        "sink: smtp {} lmtp {} maildir {}; dns {}",
        plan.sink_smtp(),
        plan.sink_lmtp(),
        plan.path("sink").display(),
        plan.dns()
    ));
    lines
}

fn table(status: &ClusterStatus) -> String {
    let mut text = String::new();
    for node in &status.nodes {
        text.push_str(&format!("node {}: {}\n", node.id, node.state));
    }
    text.push_str("\npartition  leader  voters      messages\n");
    for partition in &status.partitions {
        let leader =
            if partition.leader == 0 { "none".to_owned() } else { partition.leader.to_string() };
        let voters: Vec<String> = partition.voters.iter().map(u64::to_string).collect();
        text.push_str(&format!(
            "{:>9}  {leader:>6}  {:<10}  {:>8}\n",
            partition.id,
            voters.join(" "),
            partition.messages
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::operator::{NodeState, PartitionStatus};

    #[test]
    fn table_shows_leaders_and_queue() {
        let text = table(&ClusterStatus {
            nodes: vec![NodeState { id: 1, state: "up".to_owned() }],
            partitions: vec![PartitionStatus {
                id: 1,
                leader: 2,
                voters: vec![1, 2, 3],
                messages: 17,
            }],
        });
        assert!(text.contains("node 1: up"), "{text}");
        assert!(text.contains("        1       2  1 2 3             17"), "{text}");
    }
}
