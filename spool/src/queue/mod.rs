//! A partition: its state machine (the queue index), and writing and reading of its messages.
//!
//! `docs/spool.md` describes the states of a message in the log, and what recovery makes of each.

mod carry;
mod checkpoint;
mod entry;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod history;
mod ids;
mod index;
mod machine;
mod marks;
mod message;
mod partition;
mod places;
mod reader;
mod replica;
mod retention;
mod spool;
mod upkeep;
mod writer;

pub use carry::CarryError;
pub use checkpoint::Checkpoints;
pub use index::Summary;
pub use machine::accepted_total;
pub use message::{
    Attempt, Body, Delivered, Envelope, Expand, Expansion, MessageId, MessageState, Origin,
    Outcome, QueuedMessage, Recipient, RecipientState, Turn, Verdict,
};
pub use partition::Partition;
pub use reader::BodyReader;
pub use retention::{Kept, KeptFor, LogReport};
pub use spool::{Spool, SpoolOptions};
pub use writer::MessageWriter;

/// Why a message was not taken. The front end answers `451 4.3.0` to all of them (`452 4.3.1` to `NoSpace`, and
/// `552 5.3.4` to `TooLarge`).
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
    /// Fewer than a majority of the partition's voters have space on their disks for new mail.
    #[error("the disks of the partition's voters are low")]
    NoSpace,
    /// The envelope, or the message, is larger than the spool can hold: the caller's own limits are above it.
    #[error("{bytes} bytes are more than the {limit} that the spool takes")]
    TooLarge { bytes: usize, limit: usize },
    /// The spool has stopped.
    #[error("the spool has stopped: {0}")]
    Stopped(String),
}

/// What `Partition::watch` tells: a number that grows with every change of the queue, and who leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    pub changes: u64,
    pub leading: bool,
}

#[cfg(test)]
mod tests;
