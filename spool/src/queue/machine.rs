//! The state machine of a partition as its Raft group sees it: the index, who leads, and the figures.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use metrics::{Gauge, counter, gauge};
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use super::{
    Pulse,
    entry::{self, Change, Unread},
    ids::Ids,
    index::{Effects, Index},
    message::MessageId,
};
use crate::{
    NodeId, PartitionId,
    env::Clock,
    faults::{self, Fault},
    group::{Checkpoint, Leadership, Machine, Position, Reply},
    limits::TAKEOVER_GRACE,
};

/// The queue of one partition on this node.
pub(super) struct QueueMachine {
    partition: PartitionId,
    node: NodeId,
    clock: Arc<dyn Clock>,
    takeover_grace: Duration,
    ids: Arc<Ids>,
    state: Mutex<State>,
    local: Mutex<Local>,
    pulse: watch::Sender<Pulse>,
    /// Counts changes of leadership in all partitions of the node.
    elections: watch::Sender<u64>,
    upkeep: Notify,
    gauges: Gauges,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) index: Index,
    /// The term in which this replica leads.
    pub(super) leading: Option<u64>,
    /// Why this program is too old for what it was given.
    outdated: Option<String>,
}

/// What a machine knows of its local checkpoint.
#[derive(Default)]
enum Local {
    /// There is none: nobody asks for changes.
    #[default]
    Off,
    /// One is written, perhaps from the beginning.
    Kept,
    /// One was read, with what the group noted; the group has not yet said whether it fits.
    Offered(Box<Index>, Bytes),
    /// It was taken over.
    Taken,
}

/// What this node's queues hold; zero while another node leads, so that the sum over nodes is the cluster's.
struct Gauges {
    queued: Gauge,
    held: Gauge,
    bytes: Gauge,
}

impl QueueMachine {
    pub(super) fn new(
        partition: PartitionId,
        node: NodeId,
        clock: Arc<dyn Clock>,
        ids: Arc<Ids>,
        elections: watch::Sender<u64>,
    ) -> Self {
        let label = partition.to_string();
        let gauges = Gauges {
            queued: gauge!("ppsw_queue_messages", "state" => "queued", "partition" => label.clone()),
            held: gauge!("ppsw_queue_messages", "state" => "held", "partition" => label.clone()),
            bytes: gauge!("ppsw_queue_bytes", "partition" => label),
        };
        Self {
            partition,
            node,
            clock,
            takeover_grace: TAKEOVER_GRACE,
            ids,
            state: Mutex::default(),
            local: Mutex::default(),
            pulse: watch::Sender::default(),
            elections,
            upkeep: Notify::new(),
            gauges,
        }
    }

    /// Offers what a local checkpoint holds to the group, which is about to be opened, or only has changes noted.
    pub(super) fn offer(&self, checkpoint: Option<(Index, Bytes)>) {
        *self.local() = match checkpoint {
            Some((index, note)) => Local::Offered(Box::new(index), note),
            None => Local::Kept,
        };
    }

    /// What was offered has been taken over.
    pub(super) fn has_recalled(&self) -> bool {
        matches!(*self.local(), Local::Taken)
    }

    fn local(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another time that messages wait after an unplanned takeover.
    pub(super) fn with_takeover_grace(self, takeover_grace: Duration) -> Self {
        Self { takeover_grace, ..self }
    }

    pub(super) fn partition(&self) -> PartitionId {
        self.partition
    }

    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The term in which this replica leads, if it does.
    pub(super) fn leading(&self) -> Option<u64> {
        self.lock().leading
    }

    /// The log says that this leader has handed over, though it still leads: it may not deliver until it has taken
    /// that back in the log.
    pub(super) fn handed_over(&self) -> bool {
        let state = self.lock();
        let Some(handover) = state.index.handover() else { return false };
        Some(handover.term) == state.leading && handover.to != self.node
    }

    pub(super) fn watch(&self) -> watch::Receiver<Pulse> {
        self.pulse.subscribe()
    }

    /// Asks for upkeep now.
    pub(super) fn wake_upkeep(&self) {
        self.upkeep.notify_one();
    }

    /// Resolves when upkeep has been asked for.
    pub(super) async fn upkeep_wanted(&self) {
        self.upkeep.notified().await;
    }

    /// The replica is closed: its figures are nobody's.
    pub(super) fn retire(&self) {
        let mut state = self.lock();
        state.leading = None;
        self.tell(state);
    }

    /// Tells those who watch, and the gauges.
    fn tell(&self, state: MutexGuard<'_, State>) {
        let leading = state.leading.is_some();
        let summary = if leading { state.index.figures() } else { Default::default() };
        drop(state);
        self.pulse.send_modify(|pulse| {
            pulse.changes = pulse.changes.wrapping_add(1);
            pulse.leading = leading;
        });
        self.gauges.queued.set(summary.queued as f64);
        self.gauges.held.set(summary.held as f64);
        self.gauges.bytes.set(summary.bytes as f64);
    }

    fn begin_leading(&self, state: &mut State, term: u64) {
        let planned = state
            .index
            .handover()
            // The term directly behind: nobody else can have led, and delivered, between.
            .is_some_and(|handover| handover.to == self.node && handover.term + 1 == term);
        if planned {
            info!(partition = self.partition, term, "leading, as planned");
        } else {
            let waiting = state.index.begin_grace(self.clock.now().plus(self.takeover_grace));
            counter!("ppsw_possible_duplicates_total").increment(waiting as u64);
            info!(
                partition = self.partition,
                term, waiting, "leading; what may be in flight waits"
            );
        }
        state.leading = Some(term);
    }
}

impl Machine for QueueMachine {
    fn apply(&self, at: Position, payload: &Bytes) -> Reply {
        let bytes = payload.len() as u64;
        let change = entry::decode(payload);
        let mut state = self.lock();
        let result = match change {
            Ok(change) => {
                ids_of(&change).for_each(|id| self.ids.seen(id));
                state.index.apply(at, bytes, change)
            }
            Err(Unread::Newer(why)) => {
                state.outdated = Some(why.clone());
                return Reply::Refused(why);
            }
            Err(Unread::Bad(why)) => {
                warn!(partition = self.partition, index = at.index, "entry refused: {why}");
                state.index.refuse(at, bytes);
                return Reply::Refused(why);
            }
        };
        let leading = state.leading.is_some();
        match result {
            Ok(effects) => {
                self.tell(state);
                if leading {
                    count(effects);
                }
                Reply::Done
            }
            Err(why) => {
                drop(state);
                if leading {
                    info!(partition = self.partition, index = at.index, "entry refused: {why}");
                } else {
                    debug!(partition = self.partition, index = at.index, "entry refused: {why}");
                }
                Reply::Refused(why)
            }
        }
    }

    fn checkpoint(&self, applied: Position) -> Checkpoint {
        let mut state = self.lock();
        let upto = state.index.checkpoint(applied.index);
        let late = u64::from(faults::active(Fault::TruncateEarly));
        let upto = upto.map(|upto| upto.saturating_add(late).min(applied.index));
        Checkpoint { upto, state: entry::checkpoint_state(state.index.highest()) }
    }

    fn restore(&self, checkpoint: &Checkpoint) {
        let highest = entry::read_checkpoint_state(&checkpoint.state).unwrap_or_else(|error| {
            warn!(partition = self.partition, "ids of the checkpoint are lost: {error}");
            if let Unread::Newer(why) = error {
                self.lock().outdated = Some(why);
            }
            Vec::new()
        });
        highest.iter().for_each(|id| self.ids.seen(*id));
        let mut state = self.lock();
        state.index = Index::restored(highest);
        if !matches!(*self.local(), Local::Off) {
            state.index.track();
        }
        self.tell(state);
    }

    fn recall(&self, fits: &mut dyn FnMut(&Bytes) -> bool) -> bool {
        let offered = std::mem::take(&mut *self.local());
        let Local::Offered(mut index, note) = offered else {
            *self.local() = offered;
            return false;
        };
        let taken = fits(&note);
        *self.local() = if taken { Local::Taken } else { Local::Kept };
        if taken {
            index.highest().for_each(|id| self.ids.seen(id));
            index.none_changed();
            let mut state = self.lock();
            state.index = *index;
            self.tell(state);
        }
        taken
    }

    fn can_wait_for_news(&self) -> bool {
        // A queue is looked at where it is led.
        true
    }

    fn outdated(&self) -> Option<String> {
        self.lock().outdated.clone()
    }

    fn leadership(&self, change: Leadership) {
        let mut state = self.lock();
        match change {
            Leadership::Leading { term } if state.leading == Some(term) => return,
            Leadership::Leading { term } => self.begin_leading(&mut state, term),
            Leadership::Following { leader } => {
                if state.leading.take().is_some() {
                    info!(partition = self.partition, ?leader, "following");
                }
                state.index.end_grace();
            }
        }
        self.tell(state);
        self.elections.send_modify(|count| *count = count.wrapping_add(1));
        self.wake_upkeep();
    }
}

/// What the counter of accepted messages says, for those who ask the node itself.
static ACCEPTED: AtomicU64 = AtomicU64::new(0);

/// Messages that this process has accepted, or made, in all partitions since it was started.
pub fn accepted_total() -> u64 {
    ACCEPTED.load(Ordering::Relaxed)
}

fn count(effects: Effects) {
    if effects.accepted > 0 {
        counter!("ppsw_messages_accepted_total").increment(effects.accepted);
        ACCEPTED.fetch_add(effects.accepted, Ordering::Relaxed);
    }
    if effects.completed > 0 {
        counter!("ppsw_messages_completed_total").increment(effects.completed);
    }
    if effects.aborted > 0 {
        counter!("ppsw_messages_aborted_total").increment(effects.aborted);
    }
}

/// Ids that an entry brings into the world.
fn ids_of(change: &Change) -> impl Iterator<Item = MessageId> {
    let (subject, creates) = match change {
        Change::Chunk { id, .. }
        | Change::Accept { id, .. }
        | Change::Abort { id, .. }
        | Change::Carry { id, .. } => (Some(*id), &[][..]),
        Change::Outcome(outcome) => (None, &outcome.creates[..]),
        _ => (None, &[][..]),
    };
    subject.into_iter().chain(creates.iter().map(|(id, ..)| *id))
}
