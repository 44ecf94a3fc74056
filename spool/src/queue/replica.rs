//! One replica of a partition: its state machine, its Raft group, and the messages that are being written here.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tracing::warn;

use super::{machine::QueueMachine, marks::Marks, message::MessageId, places::ChunkPlaces};
use crate::{
    NodeId,
    env::Clock,
    faults::{self, Fault},
    group::{ChangeError, Group, ProposeError, Reply},
    limits::{DOOMED_MAX, ENTRY_BYTES_MAX},
    log::LogError,
};

/// What a partition asks of its Raft group. [`Group`] is the real one; tests of the writer have one that fails.
#[async_trait]
pub(super) trait Proposals: Send + Sync + 'static {
    fn propose<'a>(
        &'a self,
        payload: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Reply, ProposeError>> {
        self.propose_within(payload, Duration::ZERO, deadline)
    }
    /// As `propose`, up to `patience` later, with others.
    async fn propose_within(
        &self,
        payload: Bytes,
        patience: Duration,
        deadline: Duration,
    ) -> Result<Reply, ProposeError>;
    /// Proposes through the leader that this replica knows of.
    async fn forward(&self, payload: Bytes, deadline: Duration) -> Result<Reply, ProposeError>;
    async fn read(&self, index: u64) -> Result<Bytes, LogError>;
    async fn transfer(&self, to: NodeId, deadline: Duration) -> Result<(), ChangeError>;
    async fn checkpoint(&self) -> Result<(), ChangeError>;
    fn has_lease(&self) -> bool;
    /// Bytes of new mail that a majority of the voters can take.
    fn headroom(&self) -> u64;
    /// This node's own disk is low.
    fn is_low(&self) -> bool;
    /// The last index that is no longer in the log.
    fn purged(&self) -> Option<u64>;
    /// Up to which index a node of the group wants the log to go.
    fn trim_wanted(&self) -> watch::Receiver<Option<u64>>;
}

#[async_trait]
impl Proposals for Group {
    async fn propose_within(
        &self,
        payload: Bytes,
        patience: Duration,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        Self::propose_within(self, payload, patience, deadline).await
    }

    async fn forward(&self, payload: Bytes, deadline: Duration) -> Result<Reply, ProposeError> {
        Self::forward(self, payload, deadline).await
    }

    async fn read(&self, index: u64) -> Result<Bytes, LogError> {
        Self::read(self, index).await
    }

    async fn transfer(&self, to: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        Self::transfer(self, to, deadline).await
    }

    async fn checkpoint(&self) -> Result<(), ChangeError> {
        Self::checkpoint(self).await
    }

    fn has_lease(&self) -> bool {
        Self::has_lease(self)
    }

    fn headroom(&self) -> u64 {
        Self::headroom(self)
    }

    fn is_low(&self) -> bool {
        Self::is_low(self)
    }

    fn purged(&self) -> Option<u64> {
        self.status().purged_index
    }

    fn trim_wanted(&self) -> watch::Receiver<Option<u64>> {
        Self::trim_wanted(self)
    }
}

/// What clones of a [`super::Partition`] share.
pub(super) struct Replica {
    pub(super) machine: Arc<QueueMachine>,
    pub(super) raft: Arc<dyn Proposals>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) marks: Marks,
    /// For chunks that are not yet committed.
    pub(super) places: ChunkPlaces,
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    /// Messages with a live writer.
    writing: HashSet<MessageId>,
    /// Messages whose writer has given up, until their abort is applied.
    doomed: BTreeSet<MessageId>,
    /// No new attempts in this term.
    quiesced: Option<u64>,
    /// No new messages, whoever leads.
    closed: bool,
}

impl Replica {
    pub(super) fn new(
        machine: Arc<QueueMachine>,
        raft: Arc<dyn Proposals>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (marks, sessions) = (Marks::default(), Mutex::default());
        let places = ChunkPlaces::new(Arc::clone(&clock));
        Self { machine, raft, clock, marks, places, sessions }
    }

    /// Proposes an entry. One that the log could not hold is refused here.
    pub(super) async fn propose(
        &self,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        self.propose_within(payload, Duration::ZERO, deadline).await
    }

    /// As `propose`, up to `patience` later, with others.
    pub(super) async fn propose_within(
        &self,
        payload: Bytes,
        patience: Duration,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        if payload.len() > ENTRY_BYTES_MAX {
            let bytes = payload.len();
            let why = format!("an entry of {bytes} bytes; at most {ENTRY_BYTES_MAX} are possible");
            return Ok(Reply::Refused(why));
        }
        self.raft.propose_within(payload, patience, deadline).await
    }

    /// No new message begins here from now on, or may again.
    pub(super) fn set_closed(&self, closed: bool) {
        self.sessions().closed = closed;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sessions().closed
    }

    /// Closed, and no message is being written or waits for its abort.
    pub(super) fn is_still(&self) -> bool {
        let sessions = self.sessions();
        sessions.closed && sessions.writing.is_empty() && sessions.doomed.is_empty()
    }

    /// A writer of a new message begins, if the partition is open to it.
    pub(super) fn admit(&self, id: MessageId) -> bool {
        let mut sessions = self.sessions();
        !sessions.closed && sessions.writing.insert(id)
    }

    /// A writer begins.
    pub(super) fn enter(&self, id: MessageId) {
        self.sessions().writing.insert(id);
    }

    /// A writer ends; with `doomed`, what it has proposed is to be aborted.
    pub(super) fn leave(&self, id: MessageId, doomed: bool) {
        let mut sessions = self.sessions();
        sessions.writing.remove(&id);
        if !doomed {
            return;
        }
        if sessions.doomed.len() < DOOMED_MAX {
            sessions.doomed.insert(id);
            drop(sessions);
            self.machine.wake_upkeep();
        } else {
            warn!(%id, "too many aborts are waiting; left to the sweep of uploads");
        }
    }

    pub(super) fn is_writing(&self, id: MessageId) -> bool {
        self.sessions().writing.contains(&id)
    }

    pub(super) fn is_doomed(&self, id: MessageId) -> bool {
        self.sessions().doomed.contains(&id)
    }

    pub(super) fn doomed(&self) -> Vec<MessageId> {
        self.sessions().doomed.iter().copied().collect()
    }

    pub(super) fn aborted(&self, id: MessageId) {
        self.sessions().doomed.remove(&id);
    }

    pub(super) fn quiesce(&self) {
        let term = self.machine.leading();
        self.sessions().quiesced = term;
    }

    pub(super) fn resume(&self) {
        self.sessions().quiesced = None;
        // A hand-over that stands in the log is taken back by the upkeep before anything is delivered.
        self.machine.wake_upkeep();
    }

    pub(super) fn is_quiesced(&self) -> bool {
        let quiesced = self.sessions().quiesced;
        quiesced.is_some() && quiesced == self.machine.leading()
    }

    pub(super) fn may_deliver(&self) -> bool {
        self.machine.leading().is_some()
            && !self.is_quiesced()
            && !self.machine.handed_over()
            && (self.raft.has_lease() || faults::active(Fault::DeliverWithoutLease))
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
