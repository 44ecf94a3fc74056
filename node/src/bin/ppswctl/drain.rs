//! `drain` and `undrain`: asks for it, and shows how it goes until it is done.

use std::time::Duration;

use ppsw_proto::control::{
    DrainProgress, DrainRequest, StatusReply, UndrainRequest, drain_progress::Phase,
};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::{
    Failure,
    address::{self, Cluster},
    status,
};

/// How often the progress is asked for.
pub(crate) const POLL: Duration = Duration::from_millis(200);

pub(crate) async fn drain(
    cluster: &Cluster,
    given: &str,
    patience: Duration,
    force: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let mut admin = address::connect(cluster).await?;
    let node = status::find_node(&status::ask(&mut admin).await?, given)?;
    let mut tell = |text: &str| {
        if !as_json {
            say!("node {node}: {text}");
        }
    };
    quietly(cluster, node, patience, force, &mut tell).await?;
    if as_json {
        say!("{}", json!({ "node": node, "state": "drained", "safe_to_stop": true }));
    } else {
        say!("node {node}: drained, safe to stop");
    }
    Ok(())
}

/// Drains, and tells each step.
pub(crate) async fn quietly(
    cluster: &Cluster,
    node: u64,
    patience: Duration,
    force: bool,
    tell: &mut dyn FnMut(&str),
) -> Result<(), Failure> {
    let mut admin = address::connect(cluster).await?;
    admin.drain(DrainRequest { node, force }).await?;
    let mut shown = String::new();
    let waited = timeout(patience, async {
        loop {
            if let Some(status) = fresh_status(cluster).await {
                let (safe, text) = stand(&status, node);
                if text != shown {
                    tell(&text);
                }
                shown = text;
                if safe {
                    return;
                }
            }
            sleep(POLL).await;
        }
    });
    if waited.await.is_err() {
        return Err(Failure::TimedOut(format!(
            "node {node} is not drained after {patience:?} ({shown}); the drain goes on, run this again to watch it"
        )));
    }
    Ok(())
}

pub(crate) async fn undrain(
    cluster: &Cluster,
    given: &str,
    patience: Duration,
    as_json: bool,
) -> Result<(), Failure> {
    let mut admin = address::connect(cluster).await?;
    let node = status::find_node(&status::ask(&mut admin).await?, given)?;
    take_back(cluster, node, patience).await?;
    if as_json {
        say!("{}", json!({ "node": node, "state": "up" }));
    } else {
        say!("node {node}: back in service, leads its own partition");
    }
    Ok(())
}

/// Undrains, until it leads its own partition.
pub(crate) async fn take_back(
    cluster: &Cluster,
    node: u64,
    patience: Duration,
) -> Result<(), Failure> {
    let mut admin = address::connect(cluster).await?;
    admin.undrain(UndrainRequest { node }).await?;
    let waited = timeout(patience, async {
        while !is_home(cluster, node).await {
            sleep(POLL).await;
        }
    });
    if waited.await.is_err() {
        return Err(Failure::TimedOut(format!(
            "node {node} takes mail again, and does not lead its own partition after {patience:?}; see `ppswctl status`"
        )));
    }
    Ok(())
}

pub(crate) async fn fresh_status(cluster: &Cluster) -> Option<StatusReply> {
    // A node that is busy or restarting is asked again, or another one is.
    let mut admin = address::connect(cluster).await.ok()?;
    status::ask(&mut admin).await.ok()
}

/// Whether a drained node is safe to stop, and how far it is in words. One that does not answer is, when others lead
/// every partition.
fn stand(status: &StatusReply, node: u64) -> (bool, String) {
    let found = status.nodes.iter().find(|n| n.member.as_ref().is_some_and(|m| m.id == node));
    let leads = status.partitions.iter().any(|partition| partition.leader == node);
    match found.and_then(|node| node.report.as_ref()) {
        Some(report) => {
            let progress = report.drain.clone().unwrap_or_default();
            (progress.phase() == Phase::Safe && !leads, describe(&progress))
        }
        None => {
            let orphan = status.partitions.iter().find(|partition| partition.leader == 0);
            let text = orphan.map_or_else(
                || "does not answer, and others lead all partitions".to_owned(),
                |partition| format!("does not answer; nobody leads partition {}", partition.id),
            );
            (orphan.is_none() && !leads, text)
        }
    }
}

async fn is_home(cluster: &Cluster, node: u64) -> bool {
    let Some(status) = fresh_status(cluster).await else { return false };
    let up = status
        .nodes
        .iter()
        .any(|n| n.member.as_ref().is_some_and(|m| m.id == node) && n.state == "up");
    up && status.partitions.iter().any(|p| u64::from(p.id) == node && p.leader == node)
}

fn describe(progress: &DrainProgress) -> String {
    let mut text = match progress.phase() {
        Phase::None => "has not heard of the drain yet".to_owned(),
        Phase::Sessions => {
            format!("waits for {} SMTP transactions to end", progress.open_transactions)
        }
        Phase::Partitions => {
            let left: Vec<String> = progress
                .partitions
                .iter()
                .map(|p| match p.partition {
                    0 => "control group".to_owned(),
                    id => format!(
                        "partition {id} ({} messages, {} attempts in flight)",
                        p.messages, p.attempts
                    ),
                })
                .collect();
            format!("hands over {}", left.join(", "))
        }
        Phase::Safe => "leads nothing".to_owned(),
    };
    if !progress.trouble.is_empty() {
        text.push_str(&format!("; trouble: {}", progress.trouble));
    }
    text
}
