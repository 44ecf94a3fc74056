//! Raft groups on the node's log. The only module that knows openraft.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

pub use crate::log::{GroupId, Position};
use crate::{
    NodeId,
    env::Clock,
    log::{Log, LogError},
};

/// The deterministic state machine of one group. Volatile: rebuilt at start from the checkpoint and the log.
pub trait Machine: Send + Sync + 'static {
    /// Applies one committed entry. Must not block and must not fail: an entry that does not fit the state is
    /// refused the same way on every replica.
    fn apply(&self, at: Position, payload: &Bytes) -> Reply;
    /// Where a replica that starts now must begin, given that everything up to `applied` has been applied here.
    fn checkpoint(&self, applied: Position) -> Checkpoint;
    /// Forgets all state and takes that of a checkpoint (at start, or when the leader sends one).
    fn restore(&self, checkpoint: &Checkpoint);
    /// Leadership changed, as seen by this replica. `Leading` comes only after an entry of the new term is applied.
    fn leadership(&self, change: Leadership);
}

/// A starting point for replay (design §4: it never holds a message).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The last index that a new replica need not see; `None`: it must see all.
    pub upto: Option<u64>,
    /// The state as of `upto`, small. Empty for a partition.
    pub state: Bytes,
}

/// What applying an entry answered to its proposer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Applied.
    Done,
    /// Applied, with a result.
    Value(Bytes),
    /// Not applied, and why; every replica refuses it alike.
    Refused(String),
}

/// Who leads, as one replica sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// This replica leads in this term, and an entry of the term has been applied.
    Leading { term: u64 },
    /// This replica follows; the leader may be unknown.
    Following { leader: Option<NodeId> },
}

/// Why a proposal has no result.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Another node leads: nothing was written. Ask that one.
    #[error("node {} leads this group", .leader.map_or_else(|| "?".to_owned(), |n| n.to_string()))]
    NotLeader { leader: Option<NodeId> },
    /// No majority answered in time. The entry may still be committed later: unknown, not failed.
    #[error("no majority answered within {0:?}")]
    Timeout(Duration),
    /// The group has stopped (disk failure or shutdown); the process is about to end.
    #[error("the group has stopped: {0}")]
    Stopped(String),
}

/// Why a change of a group (membership, leader) did not happen.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The group is in no state for this change now; try again later.
    #[error("not now: {0}")]
    NotNow(String),
    /// The node to change is not fit for it.
    #[error("node {node} is not fit: {why}")]
    Unfit { node: NodeId, why: String },
}

/// The two connections to a peer: bulk must not delay heartbeats and votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Entries.
    Bulk,
    /// Heartbeats, votes, transfers.
    Control,
}

/// Connections to other nodes, with mutual TLS; given by the control crate.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// A (lazily connected) channel to a node. `None` if the node is not a member, or its address is unknown.
    fn channel(&self, node: NodeId, lane: Lane) -> Option<tonic::transport::Channel>;
}

/// Time-outs of the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Default for Timing {
    /// Measured: fails over in about 2 s, and is not disturbed by slow syncs.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(600),
            election_max: Duration::from_millis(1000),
        }
    }
}

/// What an operator wants to know of a group, as one replica sees it.
#[derive(Clone, Debug, Default)]
pub struct GroupStatus {
    pub id: GroupId,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    pub last_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub purged_index: Option<u64>,
    /// On the leader: the last index known to be on each other replica.
    pub matched: BTreeMap<NodeId, Option<u64>>,
    /// On the leader: milliseconds since a majority last answered; `None`: never, or not leading.
    pub quorum_age_ms: Option<u64>,
}

/// All groups of this node.
#[derive(Clone)]
pub struct Groups {
    _inner: Arc<()>,
}

/// One replica of one group. Clones share it.
#[derive(Clone)]
pub struct Group {
    _inner: Arc<()>,
}

#[allow(
    unused_variables,
    clippy::todo,
    clippy::unused_async,
    reason = "skeleton: replaced by the real groups"
)]
impl Groups {
    /// Groups of node `node` on `log`; none runs yet.
    pub fn new(
        node: NodeId,
        log: Log,
        clock: Arc<dyn Clock>,
        dial: Arc<dyn Dial>,
        timing: Timing,
    ) -> Self {
        todo!()
    }
    /// Starts this node's replica of a group (idempotent).
    ///
    /// # Errors
    /// What the log says.
    pub async fn open(&self, id: GroupId, machine: Arc<dyn Machine>) -> Result<Group, LogError> {
        todo!()
    }
    /// A group that runs here.
    pub fn get(&self, id: GroupId) -> Option<Group> {
        todo!()
    }
    /// Stops this node's replica of a group and forgets its records.
    pub async fn close(&self, id: GroupId) -> Result<(), LogError> {
        todo!()
    }
    /// The gRPC service that serves the other nodes. Mount it behind a check that the peer is a node of the cluster.
    pub fn service(&self) -> tonic::service::Routes {
        todo!()
    }
    /// Resolves when a group or the log has failed for good: the process must end.
    pub async fn failed(&self) -> String {
        todo!()
    }
    /// Stops all groups in an orderly way.
    pub async fn shutdown(&self) {
        todo!()
    }
}

#[allow(
    unused_variables,
    clippy::todo,
    clippy::unused_async,
    reason = "skeleton: replaced by the real groups"
)]
impl Group {
    pub fn id(&self) -> GroupId {
        todo!()
    }
    /// Makes a new group with these voters. Only for a group that nobody has initialised; done once ever.
    /// Does nothing if this replica already has log or vote.
    pub async fn initialise(&self, voters: &[NodeId]) -> Result<(), ChangeError> {
        todo!()
    }
    /// Proposes an entry and waits until it is applied here.
    pub async fn propose(&self, payload: Bytes, deadline: Duration) -> Result<Reply, ProposeError> {
        todo!()
    }
    /// The leader known to this replica.
    pub fn leader(&self) -> Option<NodeId> {
        todo!()
    }
    /// This replica leads, has applied an entry of its term, is not handing over, and a majority answered less
    /// than one lease ago. What the deliverer asks before each attempt and before each final dot. Cheap.
    pub fn has_lease(&self) -> bool {
        todo!()
    }
    /// This replica leads (perhaps without a majority now).
    pub fn leads(&self) -> bool {
        todo!()
    }
    pub fn status(&self) -> GroupStatus {
        todo!()
    }
    /// Adds a voter: first as learner until it has caught up, then as voter. Returns when committed.
    pub async fn add_voter(&self, node: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        todo!()
    }
    /// Removes a voter or learner.
    pub async fn remove_voter(&self, node: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        todo!()
    }
    /// Hands leadership to `to`; checks its lag first, aborts by a second transfer (to another voter) when stuck.
    pub async fn transfer(&self, to: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        todo!()
    }
    /// The voter (not this one) that has the most entries and answers; candidate for `transfer`.
    pub fn best_successor(&self) -> Option<NodeId> {
        todo!()
    }
    /// Takes a checkpoint from the machine, saves it, and purges the log up to it.
    pub async fn checkpoint(&self) -> Result<(), ChangeError> {
        todo!()
    }
    /// Reads one entry's payload of this group (CRC checked). For bodies.
    pub async fn read(&self, index: u64) -> Result<Bytes, LogError> {
        todo!()
    }
}
