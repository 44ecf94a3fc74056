//! Raft groups on the node's log. The only module that knows openraft.

mod batches;
mod commit_time;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod groups;
mod handle;
mod leadership;
mod lease;
mod local;
mod machine;
mod network;
mod news;
mod pace;
mod service;
mod space;
mod store;
mod transfer;
mod types;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

pub use self::{groups::Groups, handle::Group};
use crate::NodeId;
pub use crate::log::{GroupId, Position};

/// The deterministic state machine of one group. Volatile: rebuilt at start from the checkpoint and the log.
pub trait Machine: Send + Sync + 'static {
    /// Applies one committed entry. Must not block and must not fail: an entry that does not fit the state is
    /// refused the same way on every replica.
    fn apply(&self, at: Position, payload: &Bytes) -> Reply;
    /// Where a replica that starts now must begin, given that everything up to `applied` has been applied here.
    fn checkpoint(&self, applied: Position) -> Checkpoint;
    /// Forgets all state and takes that of a checkpoint (at start, or when the leader sends one).
    fn restore(&self, checkpoint: &Checkpoint);
    /// Takes the state that this node has kept by itself, if it has one and `fits` accepts what was noted with it
    /// ([`Group::note`]); true then. Asked once, at start, behind `restore`. `fits` has no effect unless true is
    /// returned.
    fn recall(&self, fits: &mut dyn FnMut(&Bytes) -> bool) -> bool {
        let _ = fits;
        false
    }

    /// Why this program is too old for an entry or a checkpoint that it was given, if it was: a newer one wrote it. The
    /// replica stops then, before it has applied anything behind: what others apply and it skips would be lost here.
    fn outdated(&self) -> Option<String> {
        None
    }
    /// Whether followers may hear of commits a moment later than they could ([`limits::COMMIT_NEWS_MAX`]). Not where somebody
    /// may ask another node for what this one has just said.
    fn can_wait_for_news(&self) -> bool {
        false
    }
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
    /// The end of the last saved checkpoint: what lies up to it may be purged.
    pub checkpoint_index: Option<u64>,
    /// On the leader: the last index known to be on each other replica.
    pub matched: BTreeMap<NodeId, Option<u64>>,
    /// On the leader: milliseconds since each other replica last answered a heartbeat; `None`: not since this replica
    /// leads.
    pub heard_ms: BTreeMap<NodeId, Option<u64>>,
    /// On the leader: milliseconds since a majority last answered; `None`: never, or not leading.
    pub quorum_age_ms: Option<u64>,
}
