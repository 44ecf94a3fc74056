//! How long this node's log may get, what keeps it, and what is done about it (docs/spool.md, "A log that does not grow
//! for ever").

use std::sync::Weak;

use metrics::gauge;
use rand::Rng as _;
use tracing::{debug, warn};

use super::{
    Partition,
    index::Keeper,
    message::MessageId,
    spool::{Inner, Spool},
};
use crate::{
    NodeId,
    env::UnixMs,
    group::{Group, GroupId},
    limits::{RETENTION_PERIOD, RETENTION_PERIOD_LONG_LOG},
    log::{Hold, Retention, Usage},
};

/// The node's log: how long it is, and what keeps it.
#[derive(Clone, Debug, Default)]
pub struct LogReport {
    pub usage: Usage,
    /// Bytes that the messages in this node's partitions need of it, about.
    pub live_bytes: u64,
    /// From this length on, what is old is carried.
    pub bound_bytes: u64,
    /// Groups with entries in it, the one that keeps most first.
    pub kept: Vec<Kept>,
}

/// What a group keeps in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub group: GroupId,
    /// Index of its first entry.
    pub first: u64,
    /// Segments from the one with that entry to the end of the log.
    pub segments: u64,
    /// Bytes of these.
    pub bytes: u64,
    pub reason: KeptFor,
}

/// What a group keeps its oldest segment for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptFor {
    /// A message that lives.
    Message { id: MessageId, received: UnixMs },
    /// A message that is being received.
    Upload { id: MessageId },
    /// Entries that those which are still to come may be judged by.
    History,
    /// Nothing: `entries` can go, with a checkpoint, which is taken when it frees enough.
    Checkpoint { entries: u64 },
    /// The checkpoint is taken, and a voter is being sent what should go.
    Voter { node: NodeId, silent_ms: Option<u64> },
    /// It is the control group's state, or of a group that does not run here any more.
    Other,
}

/// Watches the log's length until the spool is gone.
pub(super) async fn run(inner: Weak<Inner>) {
    let mut too_long = false;
    loop {
        let period = if too_long { RETENTION_PERIOD_LONG_LOG } else { RETENTION_PERIOD };
        let pause = period.mul_f64(rand::rng().random_range(0.75..1.25));
        tokio::time::sleep(pause).await;
        let Some(inner) = inner.upgrade() else { return };
        too_long = Spool::from_inner(inner).retain().await;
    }
}

impl Spool {
    /// The node's log. Asks the file system.
    #[must_use]
    pub fn log_report(&self) -> LogReport {
        let log = self.groups().log();
        let (usage, retention) = (log.usage(), log.retention());
        let live_bytes = self.live_bytes();
        let mut kept: Vec<Kept> =
            retention.holds.iter().map(|hold| self.kept(*hold, &retention)).collect();
        kept.sort_by_key(|kept| (std::cmp::Reverse(kept.segments), kept.group));
        LogReport { usage, live_bytes, bound_bytes: self.bound_bytes(live_bytes), kept }
    }

    /// Takes the checkpoints that shorten the log if it is too long, and asks leaders for what they can do. True if it
    /// is too long.
    async fn retain(&self) -> bool {
        let retention = self.groups().log().retention();
        let bytes: u64 = retention.segments.iter().map(|(_, bytes)| bytes).sum();
        let live = self.live_bytes();
        let bound = self.bound_bytes(live);
        self.groups().log().keep_files(bound);
        gauge!("ppsw_log_bytes").set(bytes as f64);
        gauge!("ppsw_log_live_bytes").set(live as f64);
        for hold in &retention.holds {
            let segments = kept_segments(*hold, &retention).0;
            gauge!("ppsw_log_oldest_entry_segments", "group" => hold.group.to_string())
                .set(segments as f64);
        }
        let Some(needed) = first_needed(&retention, bound) else { return false };
        for hold in retention.holds.iter().filter(|hold| hold.generation < needed) {
            let Some(upto) = self.groups().log().last_before(hold.group, needed) else { continue };
            self.release(*hold, upto).await;
        }
        true
    }

    /// Makes a group let go of its entries up to `upto`, as far as it can, and its leader do the rest.
    async fn release(&self, hold: Hold, upto: u64) {
        let Some(group) = self.groups().get(hold.group) else { return };
        if group.status().checkpoint_index >= Some(upto) {
            // They are about to go.
            return;
        }
        let Some(partition) = self.get(hold.group) else {
            // The control group: its checkpoint is its whole state.
            return take_checkpoint(&group).await;
        };
        let start = partition.start_index();
        if start >= Some(hold.first) {
            take_checkpoint(&group).await;
        }
        if start < Some(upto)
            && let Err(why) = self.groups().ask_trim(hold.group, upto).await
        {
            debug!(partition = hold.group, upto, "nobody to ask for a shorter log: {why}");
        }
    }

    fn bound_bytes(&self, live: u64) -> u64 {
        self.log_floor().max(live.saturating_mul(2))
    }

    fn live_bytes(&self) -> u64 {
        self.partitions().iter().map(Partition::live_bytes).sum()
    }

    fn kept(&self, hold: Hold, retention: &Retention) -> Kept {
        let (segments, bytes) = kept_segments(hold, retention);
        let reason = self.reason(hold);
        Kept { group: hold.group, first: hold.first, segments, bytes, reason }
    }

    fn reason(&self, hold: Hold) -> KeptFor {
        let Some(partition) = self.get(hold.group) else { return KeptFor::Other };
        if let Some(reason) = voter_that_lags(&partition.group(), hold.first) {
            return reason;
        }
        let oldest_ends = self.groups().log().last_before(hold.group, hold.generation + 1);
        match partition.keeper() {
            // The oldest segment would go.
            (first, _) if Some(first) > oldest_ends => {
                KeptFor::Checkpoint { entries: first.saturating_sub(hold.first) }
            }
            (_, Keeper::Message(id)) => partition.get(id).map_or(KeptFor::History, |message| {
                KeptFor::Message { id, received: message.envelope.received }
            }),
            (_, Keeper::Upload(id)) => KeptFor::Upload { id },
            (_, Keeper::History | Keeper::Nobody) => KeptFor::History,
        }
    }
}

async fn take_checkpoint(group: &Group) {
    if let Err(error) = group.checkpoint().await {
        warn!(group = group.id(), "the log is too long and was not trimmed: {error}");
    }
}

/// The voter because of which entries from `first` on are not purged although a checkpoint is behind them.
fn voter_that_lags(group: &Group, first: u64) -> Option<KeptFor> {
    let status = group.status();
    let checkpoint = status.checkpoint_index.filter(|index| *index >= first)?;
    let (node, matched) = status.matched.iter().min_by_key(|(_, matched)| **matched)?;
    let silent_ms = status.heard_ms.get(node).copied().flatten();
    (*matched < Some(checkpoint)).then_some(KeptFor::Voter { node: *node, silent_ms })
}

/// Segments from the one with a group's first entry on, and their bytes.
fn kept_segments(hold: Hold, retention: &Retention) -> (u64, u64) {
    let behind = retention.segments.iter().filter(|(generation, _)| *generation >= hold.generation);
    behind.fold((0, 0), |(count, sum), (_, bytes)| (count + 1, sum + bytes))
}

/// The first generation that may stay so that the log is not longer than `bound`; `None` if it is not. The one that is
/// being written always stays.
fn first_needed(retention: &Retention, bound: u64) -> Option<u64> {
    let mut bytes: u64 = retention.segments.iter().map(|(_, bytes)| bytes).sum();
    let mut needed = None;
    for pair in retention.segments.windows(2) {
        if bytes <= bound {
            break;
        }
        bytes -= pair[0].1;
        needed = Some(pair[1].0);
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_segments_go_until_the_rest_is_short_enough() {
        let segments = vec![(3, 10), (4, 10), (5, 15), (6, 10)];
        let retention = Retention { segments, holds: Vec::new() };
        assert_eq!(first_needed(&retention, 45), None);
        assert_eq!(first_needed(&retention, 44), Some(4));
        assert_eq!(first_needed(&retention, 25), Some(5));
        assert_eq!(first_needed(&retention, 24), Some(6));
        assert_eq!(first_needed(&retention, 0), Some(6), "never the one that is being written");
        let hold = Hold { group: 1, first: 7, generation: 5 };
        assert_eq!(kept_segments(hold, &retention), (2, 25));
    }
}
