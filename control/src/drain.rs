//! The drain of this node (design §5): sessions end, then every partition is handed over, then it is safe to stop.
//! The control group holds that a node is drained; how far it has come is known here only, and found again from the
//! facts after a restart.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use ppsw_proto::control::{self as pb, drain_progress::Phase};
use ppsw_spool::{
    NodeId, PartitionId,
    group::{ChangeError, Group},
    queue::Partition,
};
use tokio::time::{sleep, timeout};

use crate::{
    limits,
    plane::{CONTROL, Shared},
};

/// How often what is waited for is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How often a drained node makes sure that it still leads nothing.
const WATCH: Duration = Duration::from_millis(200);

/// Drains this node and keeps it drained, until the task is aborted. New sessions are turned away after `notice`: balancers
/// are told at once that this node is not ready, and look when they look.
pub(crate) async fn run(shared: Arc<Shared>, notice: Duration) {
    shared.progress.send_replace(progress(Phase::Sessions));
    sleep(notice).await;
    shared.hooks.set_draining(true);
    tracing::info!("drain: waiting for SMTP transactions");
    end_transactions(&shared).await;
    let mut safe = false;
    loop {
        let partitions = shared.led();
        let control = shared.control.leads();
        if partitions.is_empty() && !control {
            if !safe {
                tracing::info!("drain: this node leads nothing, it is safe to stop");
                shared.progress.send_replace(progress(Phase::Safe));
            }
            safe = true;
            sleep(WATCH).await;
            continue;
        }
        safe = false;
        if let Err(trouble) = hand_all_over(&shared, &partitions, control).await {
            tracing::warn!(trouble, "drain: not everything was handed over, trying again");
            shared.progress.send_modify(|progress| progress.trouble = trouble);
            sleep(limits::HANDOVER_RETRY).await;
        }
    }
}

/// Hands a partition that this node leads over to a voter, after its attempts in flight have ended (bounded).
///
/// # Errors
/// Why it stays here; attempts go on then.
pub(crate) async fn give(
    shared: &Shared,
    partition: &Partition,
    to: NodeId,
) -> Result<(), ChangeError> {
    // Also when this future is dropped half-way. Nothing is lost by resuming where another node leads.
    let resume = Resume(partition);
    partition.quiesce();
    let id = partition.id();
    if !wait(limits::DRAIN_ATTEMPTS, || shared.hooks.attempts_in_flight(id) == 0).await {
        let attempts = shared.hooks.attempts_in_flight(id);
        metrics::counter!("ppsw_handover_attempts_in_flight_total").increment(attempts as u64);
        tracing::warn!(partition = id, attempts, "handing over with attempts in flight");
    }
    let given = partition.hand_over(to, limits::HANDOVER_DEADLINE).await;
    drop(resume);
    if given.is_ok() {
        tracing::info!(partition = id, to, "handed over");
    }
    given
}

struct Resume<'a>(&'a Partition);

impl Drop for Resume<'_> {
    fn drop(&mut self) {
        self.0.resume();
    }
}

async fn end_transactions(shared: &Shared) {
    let ended = wait(limits::DRAIN_TRANSACTIONS, || {
        let open_transactions = shared.hooks.open_transactions() as u64;
        shared.progress.send_if_modified(|now| {
            let next = pb::DrainProgress { open_transactions, ..progress(Phase::Sessions) };
            let changed = *now != next;
            *now = next;
            changed
        });
        open_transactions == 0
    });
    if !ended.await {
        tracing::warn!(
            open = shared.hooks.open_transactions(),
            "drain: some SMTP transactions have not ended, going on"
        );
    }
}

async fn hand_all_over(
    shared: &Shared,
    partitions: &[Partition],
    control: bool,
) -> Result<(), String> {
    let show = async {
        loop {
            shared.progress.send_modify(|now| {
                let trouble = std::mem::take(&mut now.trouble);
                *now = pb::DrainProgress { trouble, ..handovers(shared) };
            });
            sleep(WATCH).await;
        }
    };
    let work = async {
        let partitions = join_all(partitions.iter().map(|p| hand_one_over(shared, p)));
        let control = async { if control { give_control(shared).await } else { Ok(()) } };
        let (partitions, control) = futures::future::join(partitions, control).await;
        let troubles: Vec<String> =
            partitions.into_iter().chain([control]).filter_map(Result::err).collect();
        if troubles.is_empty() { Ok(()) } else { Err(troubles.join("; ")) }
    };
    tokio::select! {
        done = work => done,
        () = show => Ok(()),
    }
}

/// To the best successor; if that fails, to the next one.
async fn hand_one_over(shared: &Shared, partition: &Partition) -> Result<(), String> {
    let candidates = successors(shared, &partition.group());
    let mut trouble =
        format!("partition {}: no other voter is up and has caught up", partition.id());
    for to in candidates {
        match give(shared, partition, to).await {
            Ok(()) => return Ok(()),
            Err(_) if !partition.group().leads() => return Ok(()),
            Err(error) => trouble = format!("partition {} to node {to}: {error}", partition.id()),
        }
    }
    Err(trouble)
}

async fn give_control(shared: &Shared) -> Result<(), String> {
    let mut trouble = "the control group: no other voter is up and has caught up".to_owned();
    for to in successors(shared, &shared.control) {
        match shared.control.transfer(to, limits::HANDOVER_DEADLINE).await {
            Ok(()) => return Ok(()),
            Err(_) if !shared.control.leads() => return Ok(()),
            Err(error) => trouble = format!("the control group to node {to}: {error}"),
        }
    }
    Err(trouble)
}

/// Other voters, best first: those that are not drained themselves, and of them the most caught up.
fn successors(shared: &Shared, group: &Group) -> Vec<NodeId> {
    let state = shared.state();
    let status = group.status();
    let best = group.best_successor();
    let mut others: Vec<NodeId> =
        status.voters.iter().copied().filter(|node| *node != shared.node).collect();
    others.sort_by_key(|node| {
        let matched = status.matched.get(node).copied().flatten();
        (state.drained(*node), Some(*node) != best, std::cmp::Reverse(matched))
    });
    others
}

fn progress(phase: Phase) -> pb::DrainProgress {
    pb::DrainProgress { phase: phase.into(), ..pb::DrainProgress::default() }
}

fn handovers(shared: &Shared) -> pb::DrainProgress {
    let handover = |partition: PartitionId, attempts: usize, messages: usize| pb::Handover {
        partition,
        attempts: attempts as u64,
        messages: messages as u64,
    };
    let partitions = shared
        .led()
        .iter()
        .map(|p| handover(p.id(), shared.hooks.attempts_in_flight(p.id()), p.len()))
        .chain(shared.control.leads().then(|| handover(CONTROL, 0, 0)))
        .collect();
    pb::DrainProgress { partitions, ..progress(Phase::Partitions) }
}

/// Whether `done` became true in time.
async fn wait(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let poll = async {
        while !done() {
            sleep(POLL).await;
        }
    };
    timeout(patience, poll).await.is_ok()
}
