//! The partitions of a node, and where a new message goes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use metrics::{describe_counter, describe_gauge};
use tokio::sync::watch;

use super::{
    AcceptError, MessageWriter, Partition, ids::Ids, machine::QueueMachine, replica::Replica,
};
use crate::{
    NodeId, PartitionId,
    env::Clock,
    group::{Groups, Machine},
    limits::LEASE_POLL,
    log::LogError,
};

/// The spool of this node: the partitions that it carries.
#[derive(Clone)]
pub struct Spool {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    groups: Groups,
    clock: Arc<dyn Clock>,
    ids: Arc<Ids>,
    elections: watch::Sender<u64>,
    partitions: Mutex<BTreeMap<PartitionId, Partition>>,
    /// Held while a partition is opened or closed.
    changing: tokio::sync::Mutex<()>,
}

impl Spool {
    /// The spool of node `node`; no partition is open yet.
    pub fn new(node: NodeId, groups: Groups, clock: Arc<dyn Clock>) -> Self {
        describe_metrics();
        Self {
            inner: Arc::new(Inner {
                node,
                groups,
                clock,
                ids: Arc::new(Ids::new(node)),
                elections: watch::Sender::new(0),
                partitions: Mutex::default(),
                changing: tokio::sync::Mutex::new(()),
            }),
        }
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
        let machine =
            Arc::new(QueueMachine::new(id, inner.node, clock, ids, inner.elections.clone()));
        let group = inner.groups.open(id, Arc::clone(&machine) as Arc<dyn Machine>).await?;
        let replica = Replica::new(machine, Arc::new(group.clone()), Arc::clone(&inner.clock));
        let partition = Partition::start(Arc::new(replica), group);
        self.partitions_mut().insert(id, partition.clone());
        Ok(partition)
    }

    /// Stops and forgets this node's replica of a partition.
    ///
    /// # Errors
    /// What the log says.
    pub async fn close(&self, id: PartitionId) -> Result<(), LogError> {
        let _changing = self.inner.changing.lock().await;
        let closed = self.partitions_mut().remove(&id);
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
    /// `NoPartition` if this node leads none, `NoMajority` if it leads without a majority.
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
            if left.is_zero() {
                return Err(error);
            }
            // A lease that is renewed tells nobody: look now and then.
            let _ = tokio::time::timeout(left.min(LEASE_POLL), elections.changed()).await;
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
            let id = inner.ids.next(inner.clock.now()).ok_or_else(|| {
                AcceptError::Stopped(format!("node number {} does not fit into ids", inner.node))
            })?;
            if let Some(writer) = partition.writer(id, term) {
                return Ok(writer);
            }
        }
        Err(error)
    }

    /// A new message id, for a message that an [`super::Outcome`] creates. `None` if the node's number does not fit
    /// into ids.
    pub fn new_id(&self) -> Option<super::MessageId> {
        self.inner.ids.next(self.inner.clock.now())
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
    describe_counter!(
        "ppsw_possible_duplicates_total",
        "Messages that may have been in flight elsewhere when this node took their partition over"
    );
}
