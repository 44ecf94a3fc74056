//! A partition: its state machine (the queue index), and writing and reading of its messages.

mod message;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::watch;

pub use message::{
    Attempt, Body, Delivered, Envelope, MessageId, MessageState, Origin, Outcome, QueuedMessage,
    Recipient, RecipientState, Verdict,
};

use crate::{
    NodeId, PartitionId,
    env::{Clock, UnixMs},
    group::{Group, Groups, ProposeError},
    log::LogError,
};

/// Why a message was not taken. The front end answers `451 4.3.0` to all of them (`452 4.3.1` to `NoSpace`).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// This node leads no partition now.
    #[error("this node leads no partition")]
    NoPartition,
    /// No majority in time: unknown whether it was committed; an abort has been proposed.
    #[error("no majority of the partition's voters answered")]
    NoMajority,
    /// Leadership moved while the message was written.
    #[error("the partition has moved to another node")]
    Moved,
    /// The disk of a majority member is (nearly) full.
    #[error("the spool is full")]
    NoSpace,
    /// The spool has stopped.
    #[error("the spool has stopped: {0}")]
    Stopped(String),
}

/// The spool of this node: the partitions that it carries.
#[derive(Clone)]
pub struct Spool {
    _inner: Arc<()>,
}

/// One partition as this node carries it.
#[derive(Clone)]
pub struct Partition {
    _inner: Arc<()>,
}

/// A message that is being received. Dropping it without `accept` aborts it.
pub struct MessageWriter {
    _inner: Arc<()>,
}

/// Reads a message's bytes in order, chunk by chunk, CRC checked.
pub struct BodyReader {
    _inner: Arc<()>,
}

/// What `Partition::watch` tells: a number that grows with every change of the queue, and who leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    pub changes: u64,
    pub leading: bool,
}

#[allow(
    unused_variables,
    clippy::todo,
    clippy::unused_async,
    missing_debug_implementations,
    reason = "skeleton"
)]
impl Spool {
    pub fn new(node: NodeId, groups: Groups, clock: Arc<dyn Clock>) -> Self {
        todo!()
    }
    /// Starts this node's replica of a partition (idempotent).
    pub async fn open(&self, id: PartitionId) -> Result<Partition, LogError> {
        todo!()
    }
    /// Stops and forgets this node's replica of a partition.
    pub async fn close(&self, id: PartitionId) -> Result<(), LogError> {
        todo!()
    }
    pub fn get(&self, id: PartitionId) -> Option<Partition> {
        todo!()
    }
    /// All partitions with a replica here, by number.
    pub fn partitions(&self) -> Vec<Partition> {
        todo!()
    }
    /// Begins a message in the home partition if this node leads it, else in any that it leads. Waits up to
    /// `patience` for leadership.
    pub async fn begin(&self, patience: Duration) -> Result<MessageWriter, AcceptError> {
        todo!()
    }
}

#[allow(unused_variables, clippy::todo, clippy::unused_async, reason = "skeleton")]
impl MessageWriter {
    /// The id that the message has or will have.
    pub fn id(&self) -> MessageId {
        todo!()
    }
    /// Adds bytes. Small messages stay in memory (up to `INLINE_BODY_BYTES_MAX`), larger ones go to the log in
    /// chunks while they arrive; waits when `CHUNKS_IN_FLIGHT_MAX` are not yet committed.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), AcceptError> {
        todo!()
    }
    /// Makes the message the cluster's: returns when a majority has it on disk. On a time-out (`deadline`) an
    /// abort is proposed and `NoMajority` returned.
    pub async fn accept(
        self,
        envelope: Envelope,
        deadline: Duration,
    ) -> Result<MessageId, AcceptError> {
        todo!()
    }
    /// Gives the message up.
    pub async fn abort(self) {
        todo!()
    }
}

#[allow(unused_variables, clippy::todo, clippy::unused_async, reason = "skeleton")]
impl Partition {
    pub fn id(&self) -> PartitionId {
        todo!()
    }
    pub fn group(&self) -> Group {
        todo!()
    }
    /// Changes of queue and leadership.
    pub fn watch(&self) -> watch::Receiver<Pulse> {
        todo!()
    }
    /// Number of messages, of any state.
    pub fn len(&self) -> usize {
        todo!()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn get(&self, id: MessageId) -> Option<Arc<QueuedMessage>> {
        todo!()
    }
    /// All messages, oldest first.
    pub fn list(&self) -> Vec<Arc<QueuedMessage>> {
        todo!()
    }
    /// Up to `limit` messages whose next attempt is due at `now`, earliest first, leaving out those for which
    /// `skip` is true (those in flight).
    pub fn due(
        &self,
        now: UnixMs,
        limit: usize,
        skip: &dyn Fn(MessageId) -> bool,
    ) -> Vec<Arc<QueuedMessage>> {
        todo!()
    }
    /// When the next message becomes due.
    pub fn next_due(&self) -> Option<UnixMs> {
        todo!()
    }
    /// This node may deliver from here now: it has the lease and is not handing over.
    pub fn may_deliver(&self) -> bool {
        todo!()
    }
    /// Records the outcome of an attempt. If this node no longer leads, `NotLeader` tells who does: forward it.
    pub async fn record(&self, outcome: Outcome, deadline: Duration) -> Result<(), ProposeError> {
        todo!()
    }
    /// The bytes of a message: added headers first, then the body as received.
    pub fn body(&self, message: &QueuedMessage) -> BodyReader {
        todo!()
    }
    /// Stops new attempts (`may_deliver` is false from now on). The deliverer ends those in flight, then calls
    /// `hand_over`. `resume` undoes it.
    pub fn quiesce(&self) {
        todo!()
    }
    pub fn resume(&self) {
        todo!()
    }
    /// Marks the hand-over in the log (so that the successor need not wait the takeover grace) and transfers.
    pub async fn hand_over(
        &self,
        to: NodeId,
        deadline: Duration,
    ) -> Result<(), crate::group::ChangeError> {
        todo!()
    }
}

#[allow(unused_variables, clippy::todo, clippy::unused_async, reason = "skeleton")]
impl BodyReader {
    /// The next bytes, at most a chunk; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        todo!()
    }
}
