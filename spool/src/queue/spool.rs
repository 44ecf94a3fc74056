//! The partitions of a node, and where a new message goes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{describe_counter, describe_gauge};
use tokio::{sync::watch, task::AbortHandle};

use super::{
    AcceptError, Checkpoints, MessageWriter, Partition,
    checkpoint::{Continued, Loaded},
    ids::Ids,
    machine::QueueMachine,
    replica::Replica,
    retention,
};
use crate::{
    NodeId, PartitionId,
    env::Clock,
    figures,
    group::{Group, Groups, Machine},
    limits::{LEASE_POLL, LOG_FLOOR_BYTES, TAKEOVER_GRACE},
    log::LogError,
};

/// How a spool is kept.
pub struct SpoolOptions {
    /// How long messages that may have been in flight wait after an unplanned takeover.
    pub takeover_grace: Duration,
    /// Local checkpoints of the partitions; without, each start replays the whole log.
    pub checkpoints: Option<Checkpoints>,
}

impl Default for SpoolOptions {
    fn default() -> Self {
        Self { takeover_grace: TAKEOVER_GRACE, checkpoints: None }
    }
}

/// The spool of this node: the partitions that it carries.
#[derive(Clone)]
pub struct Spool {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    node: NodeId,
    groups: Groups,
    clock: Arc<dyn Clock>,
    takeover_grace: Duration,
    ids: Arc<Ids>,
    elections: watch::Sender<u64>,
    checkpoints: Option<Checkpoints>,
    partitions: Mutex<BTreeMap<PartitionId, Partition>>,
    /// Held while a partition is opened or closed.
    changing: tokio::sync::Mutex<()>,
    log_floor: AtomicU64,
    /// Watches the length of the log, once a partition is open.
    retention: OnceLock<AbortHandle>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = self.retention.get() {
            task.abort();
        }
    }
}

impl Spool {
    /// The spool of node `node`; no partition is open yet.
    pub fn new(node: NodeId, groups: Groups, clock: Arc<dyn Clock>) -> Self {
        Self::with_options(node, groups, clock, SpoolOptions::default())
    }

    /// The spool of node `node`, kept as `options` say; no partition is open yet.
    pub fn with_options(
        node: NodeId,
        groups: Groups,
        clock: Arc<dyn Clock>,
        options: SpoolOptions,
    ) -> Self {
        describe_metrics();
        figures::describe();
        let SpoolOptions { takeover_grace, checkpoints } = options;
        Self {
            inner: Arc::new(Inner {
                node,
                groups,
                clock,
                takeover_grace,
                ids: Arc::new(Ids::new(node)),
                elections: watch::Sender::new(0),
                checkpoints,
                partitions: Mutex::default(),
                changing: tokio::sync::Mutex::new(()),
                log_floor: AtomicU64::new(LOG_FLOOR_BYTES),
                retention: OnceLock::new(),
            }),
        }
    }

    /// Sets how long the log may get, in bytes of its files, before what is old in it is carried, however little is
    /// alive. [`LOG_FLOOR_BYTES`] unless set.
    pub fn set_log_floor(&self, bytes: u64) {
        self.inner.log_floor.store(bytes, Ordering::Relaxed);
    }

    /// Starts this node's replica of a partition (idempotent).
    ///
    /// # Errors
    /// What the log says.
    pub async fn open(&self, id: PartitionId) -> Result<Partition, LogError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        if let Some(partition) = self.get(id) {
            return Ok(partition);
        }
        let (clock, ids) = (Arc::clone(&inner.clock), Arc::clone(&inner.ids));
        let machine = QueueMachine::new(id, inner.node, clock, ids, inner.elections.clone());
        let machine = Arc::new(machine.with_takeover_grace(inner.takeover_grace));
        let continued = self.offer_checkpoint(&machine).await;
        let group = inner.groups.open(id, Arc::clone(&machine) as Arc<dyn Machine>).await?;
        if let Some(checkpoints) = &inner.checkpoints {
            let continued = continued.filter(|_| machine.has_recalled());
            let noting = group.clone();
            let note = Box::new(move |at| noting.note(at));
            checkpoints.keep(Arc::clone(&machine), continued, note);
        }
        let replica = Replica::new(machine, Arc::new(group.clone()), Arc::clone(&inner.clock));
        let partition = Partition::start(Arc::new(replica), group);
        self.partitions_mut().insert(id, partition.clone());
        self.inner.retention.get_or_init(|| {
            tokio::spawn(retention::run(Arc::downgrade(&self.inner))).abort_handle()
        });
        Ok(partition)
    }

    /// Stops and forgets this node's replica of a partition.
    ///
    /// # Errors
    /// What the log says.
    pub async fn close(&self, id: PartitionId) -> Result<(), LogError> {
        let _changing = self.inner.changing.lock().await;
        let closed = self.partitions_mut().remove(&id);
        if let Some(checkpoints) = &self.inner.checkpoints {
            checkpoints.forget(id);
        }
        self.inner.groups.close(id).await?;
        if let Some(partition) = closed {
            partition.retire();
        }
        Ok(())
    }

    /// A partition with a replica here.
    pub fn get(&self, id: PartitionId) -> Option<Partition> {
        self.partitions_mut().get(&id).cloned()
    }

    /// All partitions with a replica here, by number.
    pub fn partitions(&self) -> Vec<Partition> {
        self.partitions_mut().values().cloned().collect()
    }

    /// Begins a message in the home partition if this node leads it, else in any that it leads. Waits up to
    /// `patience` for leadership.
    ///
    /// # Errors
    /// `NoPartition` if this node leads none, `NoMajority` if it leads without a majority, `NoSpace` (at once) if the
    /// disks of its voters are low.
    pub async fn begin(&self, patience: Duration) -> Result<MessageWriter, AcceptError> {
        let mut elections = self.inner.elections.subscribe();
        let begun = self.inner.clock.instant();
        loop {
            let error = match self.try_begin() {
                Ok(writer) => return Ok(writer),
                Err(error) => error,
            };
            let waited = self.inner.clock.instant().saturating_duration_since(begun);
            let left = patience.saturating_sub(waited);
            if left.is_zero() || matches!(error, AcceptError::NoSpace) {
                return Err(error);
            }
            // A lease that is renewed tells nobody: look now and then.
            let _ = tokio::time::timeout(left.min(LEASE_POLL), elections.changed()).await;
        }
    }

    /// Reads the local checkpoint of a partition that is about to be opened, without keeping this thread.
    async fn offer_checkpoint(&self, machine: &QueueMachine) -> Option<Continued> {
        let checkpoints = self.inner.checkpoints.clone()?;
        let partition = machine.partition();
        // A panic has been reported by its thread; without a checkpoint the log is replayed.
        let loaded = tokio::task::spawn_blocking(move || checkpoints.load(partition)).await.ok();
        let (offer, continued) = match loaded.flatten().map(Loaded::split) {
            Some((index, note, continued)) => (Some((index, note)), Some(continued)),
            None => (None, None),
        };
        machine.offer(offer);
        continued
    }

    /// Writes the local checkpoints, for an orderly end: the next start need not replay what came since the last time.
    pub async fn save(&self) {
        if let Some(checkpoints) = self.inner.checkpoints.clone() {
            // A panic has been reported by its thread.
            let _ = tokio::task::spawn_blocking(move || checkpoints.save()).await;
        }
    }

    fn try_begin(&self) -> Result<MessageWriter, AcceptError> {
        let inner = &self.inner;
        let mut led: Vec<_> = self.partitions().into_iter().filter(Partition::takes).collect();
        // Rather one that is not about to be handed over, rather the home.
        led.sort_by_key(|partition| {
            (partition.is_quiesced(), u64::from(partition.id()) != inner.node)
        });
        let mut error = AcceptError::NoPartition;
        for partition in led {
            let Some(term) = partition.leading() else { continue };
            if !partition.group().has_lease() {
                error = AcceptError::NoMajority;
                continue;
            }
            if partition.group().headroom() == 0 {
                error = AcceptError::NoSpace;
                continue;
            }
            let id = inner.ids.next(inner.clock.now()).ok_or_else(|| {
                AcceptError::Stopped(format!("node number {} does not fit into ids", inner.node))
            })?;
            if let Some(writer) = partition.writer(id, term) {
                return Ok(writer);
            }
        }
        Err(error)
    }

    /// Whether a message of `bytes` (0 if nobody knows) would find space now. `Ok` also if this node leads nothing that
    /// could take it: that is for [`Self::begin`] to say, which waits.
    ///
    /// # Errors
    /// `NoSpace`.
    pub fn check_space(&self, bytes: u64) -> Result<(), AcceptError> {
        let led = self.partitions().into_iter().filter(Partition::takes).map(|p| p.group());
        let headrooms = led.filter(Group::has_lease).map(|group| group.headroom());
        match headrooms.max() {
            Some(most) if most == 0 || most < bytes => Err(AcceptError::NoSpace),
            _ => Ok(()),
        }
    }

    /// A new message id, for a message that an [`super::Outcome`] creates. `None` if the node's number does not fit
    /// into ids.
    pub fn new_id(&self) -> Option<super::MessageId> {
        self.inner.ids.next(self.inner.clock.now())
    }

    pub(super) fn from_inner(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    pub(super) fn groups(&self) -> &Groups {
        &self.inner.groups
    }

    pub(super) fn log_floor(&self) -> u64 {
        self.inner.log_floor.load(Ordering::Relaxed)
    }

    fn partitions_mut(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Partition>> {
        self.inner.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn describe_metrics() {
    describe_gauge!(
        "ppsw_queue_messages",
        "Messages in the partitions that this node leads, by state (queued, held)"
    );
    describe_gauge!("ppsw_queue_bytes", "Bytes of the messages in partitions that this node leads");
    describe_counter!("ppsw_messages_accepted_total", "Messages accepted or made by this node");
    describe_counter!("ppsw_messages_completed_total", "Messages of which every recipient is done");
    describe_counter!("ppsw_messages_aborted_total", "Messages given up while they were received");
    describe_gauge!("ppsw_log_bytes", "Bytes of the segments of this node's log");
    describe_gauge!("ppsw_log_live_bytes", "Bytes of the log that messages need, about");
    describe_gauge!(
        "ppsw_log_oldest_entry_segments",
        "Segments from the one with a group's first entry to the end of the log"
    );
    describe_counter!(
        "ppsw_messages_carried_total",
        "Messages that this node wrote again at the head of the log, so that the log before can go"
    );
    describe_counter!(
        "ppsw_possible_duplicates_total",
        "Messages that may have been in flight elsewhere when this node took their partition over"
    );
}
