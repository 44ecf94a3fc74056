//! What a partition does by itself: aborting what nobody continues, taking back a hand-over that did not happen,
//! and trimming its log.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use rand::Rng as _;
use tracing::{debug, warn};

use super::{entry, replica::Replica};
use crate::{
    group::{ChangeError, ProposeError},
    limits::{ABORT_COMMIT_MAX, TRIM_BYTES_MIN, TRIM_ENTRIES_MIN, UPKEEP_PERIOD},
};

/// Runs until the replica is gone.
pub(super) async fn run(replica: Weak<Replica>) {
    loop {
        let Some(machine) = replica.upgrade().map(|replica| Arc::clone(&replica.machine)) else {
            return;
        };
        let wanted = tokio::time::timeout(pause(), machine.upkeep_wanted()).await.is_ok();
        drop(machine);
        let Some(replica) = replica.upgrade() else { return };
        if let Err(error) = settle(&replica).await {
            debug!(partition = replica.machine.partition(), "aborts wait: {error}");
        }
        if !wanted && let Err(error) = trim(&replica).await {
            warn!(partition = replica.machine.partition(), "the log was not trimmed: {error}");
        }
    }
}

fn pause() -> Duration {
    UPKEEP_PERIOD.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// Proposes what has to be proposed, one after the other, until one fails; most of it only on the leader.
pub(super) async fn settle(replica: &Replica) -> Result<(), ProposeError> {
    let Some(term) = replica.machine.leading() else { return forward_aborts(replica).await };
    let propose = |payload| replica.raft.propose(payload, ABORT_COMMIT_MAX);
    if replica.machine.handed_over() && !replica.is_quiesced() {
        propose(entry::handover(replica.machine.node())).await?;
    }
    for id in replica.doomed() {
        // Refused if it has been tried or was never committed: nothing more to be done either way.
        propose(entry::abort(id, false)).await?;
        replica.aborted(id);
    }
    let uploads = replica.machine.lock().index.uploads();
    for (id, began) in uploads {
        // The front end of an earlier term has told its client `451`.
        if began < term || !replica.is_writing(id) {
            propose(entry::abort(id, true)).await?;
        }
    }
    Ok(())
}

/// Another node leads what a front end of this one has given up: it may be committed all the same.
async fn forward_aborts(replica: &Replica) -> Result<(), ProposeError> {
    for id in replica.doomed() {
        replica.raft.forward(entry::abort(id, false), ABORT_COMMIT_MAX).await?;
        replica.aborted(id);
    }
    Ok(())
}

/// Takes a checkpoint if that frees enough of the log, or anything at all when the disk is low. Every replica does so
/// for itself.
pub(super) async fn trim(replica: &Replica) -> Result<(), ChangeError> {
    let purged = replica.raft.purged();
    let (entries, bytes) = {
        let mut state = replica.machine.lock();
        let Some(applied) = state.index.applied() else { return Ok(()) };
        let Some(upto) = state.index.checkpoint(applied) else { return Ok(()) };
        let first = purged.map_or(0, |purged| purged.saturating_add(1));
        let entries = upto.saturating_add(1).saturating_sub(first);
        (entries, state.index.bytes_between(purged, upto))
    };
    let little = entries < TRIM_ENTRIES_MIN && bytes < TRIM_BYTES_MIN;
    if entries == 0 || (little && !replica.raft.is_low()) {
        return Ok(());
    }
    debug!(partition = replica.machine.partition(), entries, bytes, "trimming the log");
    replica.raft.checkpoint().await
}
