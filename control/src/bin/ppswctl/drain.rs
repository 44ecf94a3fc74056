//! `ppswctl drain` and `undrain`: asks for it, then shows how it goes.

use std::time::{Duration, Instant};

use ppsw_proto::control::{
    DrainProgress, DrainRequest, StatusReply, UndrainRequest, admin_client::AdminClient,
    drain_progress::Phase,
};
use ppsw_spool::env::{Clock, SystemClock};
use serde_json::json;
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::{
    session::{Failure, Session},
    show,
};

/// Between two looks.
const POLL: Duration = Duration::from_millis(200);

pub(crate) async fn drain(
    session: &mut Session,
    json: bool,
    name: &str,
    timeout: Duration,
    force: bool,
) -> Result<(), Failure> {
    let begun = SystemClock.instant();
    let node = session.find(name).await?.member.unwrap_or_default().id;
    let request = DrainRequest { node, force };
    session.call(async |mut client: AdminClient<Channel>| client.drain(request).await).await?;
    let mut teller = Teller::new(json);
    teller.tell(format!("node {node}: drain is recorded, not ready for new sessions"));
    loop {
        let step = look_at_drain(&session.status().await?, node);
        match step {
            Step::Done { messages } => {
                report_drained(json, node, messages, begun);
                return Ok(());
            }
            Step::Ended => {
                return Err(Failure::Refused(format!(
                    "the drain of node {node} was undone by somebody else"
                )));
            }
            Step::Going(text) => {
                teller.tell(format!("node {node}: {text}"));
                if elapsed(begun) >= timeout {
                    return Err(Failure::TimedOut(format!(
                        "node {node} is not drained after {}: {text}. The drain goes on: the same command waits \
                         again, `ppswctl undrain {node}` undoes it",
                        humantime::format_duration(timeout)
                    )));
                }
            }
        }
        sleep(POLL).await;
    }
}

pub(crate) async fn undrain(
    session: &mut Session,
    json: bool,
    name: &str,
    timeout: Duration,
) -> Result<(), Failure> {
    let begun = SystemClock.instant();
    let node = session.find(name).await?.member.unwrap_or_default().id;
    let request = UndrainRequest { node };
    session.call(async |mut client: AdminClient<Channel>| client.undrain(request).await).await?;
    let mut teller = Teller::new(json);
    teller.tell(format!("node {node}: the drain is undone"));
    loop {
        let Err(text) = look_at_home(&session.status().await?, node) else {
            if json {
                show::json(&json!({ "node": node, "state": "up", "seconds": seconds(begun) }));
            } else {
                show::line(&format!("node {node} is up and leads partition {node}"));
            }
            return Ok(());
        };
        teller.tell(format!("node {node}: {text}"));
        if elapsed(begun) >= timeout {
            return Err(Failure::TimedOut(format!(
                "node {node} is not back in service after {}: {text}. The same command waits again",
                humantime::format_duration(timeout)
            )));
        }
        sleep(POLL).await;
    }
}

/// Where a drain stands.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Going(String),
    /// With the messages that other nodes now have of the node's home partition.
    Done {
        messages: u64,
    },
    /// It is not drained (any more).
    Ended,
}

fn look_at_drain(status: &StatusReply, node: u64) -> Step {
    let Some(entry) = status.nodes.iter().find(|n| n.member.as_ref().is_some_and(|m| m.id == node))
    else {
        return Step::Ended;
    };
    if entry.drain.is_none() {
        return Step::Ended;
    }
    let home = status.partitions.iter().find(|partition| u64::from(partition.id) == node);
    let done = Step::Done { messages: home.map_or(0, |home| home.messages) };
    let led: Vec<u64> =
        status.partitions.iter().filter(|p| p.leader == node).map(|p| u64::from(p.id)).collect();
    let orphans: Vec<u64> =
        status.partitions.iter().filter(|p| p.leader == 0).map(|p| u64::from(p.id)).collect();
    let Some(report) = &entry.report else {
        // It can't tell, but the others can.
        return if led.is_empty() && orphans.is_empty() {
            done
        } else {
            Step::Going(format!(
                "does not answer; no other node leads partition {}",
                show::list(&orphans)
            ))
        };
    };
    let progress = report.drain.clone().unwrap_or_default();
    match progress.phase() {
        Phase::Safe if led.is_empty() => done,
        Phase::None => Step::Going("phase 1, not ready".to_owned()),
        Phase::Sessions => Step::Going(format!(
            "phase 2, waiting for {}",
            show::count(progress.open_transactions, "SMTP transaction")
        )),
        Phase::Partitions | Phase::Safe => Step::Going(handing_over(&progress)),
    }
}

fn handing_over(progress: &DrainProgress) -> String {
    let left: Vec<String> = progress
        .partitions
        .iter()
        .map(|p| match p.partition {
            0 => "the control group".to_owned(),
            id => format!(
                "partition {id} ({}, {} in flight)",
                show::count(p.messages, "message"),
                show::count(p.attempts, "attempt")
            ),
        })
        .collect();
    let trouble = if progress.trouble.is_empty() {
        String::new()
    } else {
        format!("; last try failed: {}", progress.trouble)
    };
    format!("phase 3, handing over {}{trouble}", left.join(", "))
}

/// `Err` with what is missing.
fn look_at_home(status: &StatusReply, node: u64) -> Result<(), String> {
    let entry = status.nodes.iter().find(|n| n.member.as_ref().is_some_and(|m| m.id == node));
    let state = entry.map_or("gone", |entry| entry.state.as_str());
    if state != "up" {
        return Err(format!("is {state}"));
    }
    match status.partitions.iter().find(|partition| u64::from(partition.id) == node) {
        Some(home) if home.leader == node => Ok(()),
        Some(home) if home.leader == 0 => Err(format!("partition {node} has no leader now")),
        Some(home) => {
            Err(format!("waiting for partition {node} to come home from node {}", home.leader))
        }
        None => Err(format!("partition {node} does not exist yet")),
    }
}

fn report_drained(json: bool, node: u64, messages: u64, begun: Instant) {
    if json {
        show::json(&json!({
            "node": node,
            "state": "drained",
            "message": "safe to stop",
            "messages": messages,
            "seconds": seconds(begun),
        }));
        return;
    }
    show::line(&format!(
        "node {node} is drained after {:.1} s: it leads nothing, partition {node} has {} elsewhere, safe to stop",
        seconds(begun),
        show::count(messages, "message")
    ));
}

fn elapsed(begun: Instant) -> Duration {
    SystemClock.instant().saturating_duration_since(begun)
}

fn seconds(begun: Instant) -> f64 {
    (elapsed(begun).as_secs_f64() * 10.0).round() / 10.0
}

/// Says each thing once; to standard error if the answer is JSON.
struct Teller {
    json: bool,
    last: String,
}

impl Teller {
    const fn new(json: bool) -> Self {
        Self { json, last: String::new() }
    }

    fn tell(&mut self, text: String) {
        if text == self.last {
            return;
        }
        if self.json {
            show::warn(&text);
        } else {
            show::line(&text);
        }
        self.last = text;
    }
}

#[cfg(test)]
mod tests {
    use ppsw_proto::control::{Drain, GroupStatus, Member, NodeReport, NodeStatus};

    use super::*;

    fn status(leader: u64, drained: bool, phase: Option<Phase>) -> StatusReply {
        let report = phase.map(|phase| NodeReport {
            drain: Some(DrainProgress { phase: phase.into(), ..DrainProgress::default() }),
            ..NodeReport::default()
        });
        let node = NodeStatus {
            member: Some(Member { id: 2, ..Member::default() }),
            state: "up".to_owned(),
            drain: drained.then(Drain::default),
            report,
        };
        let home = GroupStatus { id: 2, leader, messages: 7, ..GroupStatus::default() };
        StatusReply { nodes: vec![node], partitions: vec![home], ..StatusReply::default() }
    }

    #[test]
    fn done_means_that_somebody_else_leads() {
        let look = |leader, drained, phase| look_at_drain(&status(leader, drained, phase), 2);
        assert_eq!(look(1, true, Some(Phase::Safe)), Step::Done { messages: 7 });
        assert!(matches!(look(2, true, Some(Phase::Partitions)), Step::Going(_)));
        assert!(matches!(look(2, true, Some(Phase::Safe)), Step::Going(_)));
        assert_eq!(look(1, false, Some(Phase::None)), Step::Ended);
        assert_eq!(look(1, true, None), Step::Done { messages: 7 }, "dead, and taken over");
        assert!(matches!(look(0, true, None), Step::Going(_)));
        assert_eq!(look_at_home(&status(2, false, None), 2), Ok(()));
        assert!(look_at_home(&status(1, false, None), 2).unwrap_err().contains("from node 1"));
    }
}
