//! The replicated spool: a message is in the logs of a majority of its partition's voters, synced to
//! disk, before anybody says `250`.
//!
//! Layers, each using only those before it:
//!
//! * [`env`]: clock and disk, the only way to either;
//! * [`log`]: one segmented log per node, group commit, recovery;
//! * [`group`]: Raft groups on that log, and their network;
//! * [`queue`]: the state machine of a partition (the queue index), writing and reading of messages.
//!
//! Nothing here knows SMTP.

pub mod env;
mod faults;
mod figures;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    //! Entry points of the targets in `fuzz/`. No part of the API.
    pub use crate::{
        group::fuzzing::raft_wire,
        log::fuzzing::log_record,
        queue::fuzzing::{queue_entry, queue_entry_input},
    };
}
pub mod group;
pub mod limits;
pub mod log;
pub mod queue;

/// A node's number: given by the control group, never reused.
pub type NodeId = u64;

/// A partition's number: that of its home node. Group 0 is the control group.
pub type PartitionId = u32;
