//! The node's one log: append-only segments that carry the records of every Raft group of the node.

use std::{ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;

use crate::env::Disk;

/// A Raft group's number. 0 is the control group, a partition's group has the partition's number.
pub type GroupId = u32;

/// Where an entry stands in its group's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Raft term of the leader that made the entry.
    pub term: u64,
    /// Index in the group's log; the first entry has index 0.
    pub index: u64,
}

/// One entry of a group's log. What the payload means is the business of [`crate::group`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub position: Position,
    pub payload: Bytes,
}

/// What a group had on disk when the log was opened.
#[derive(Clone, Debug, Default)]
pub struct GroupState {
    /// The last saved vote, in the encoding of [`crate::group`].
    pub vote: Option<Bytes>,
    /// The last entry that was purged; entries begin behind it.
    pub purged: Option<Position>,
    /// The last entry.
    pub last: Option<Position>,
    /// The last saved checkpoint (small: what a Raft snapshot holds), in the encoding of [`crate::group`].
    pub checkpoint: Option<Bytes>,
}

/// How the log is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the segment files; made if missing.
    pub dir: PathBuf,
    /// Size of a segment file, preallocated.
    pub segment_bytes: u64,
    /// Memory for recently appended entries, over all groups.
    pub cache_bytes: usize,
}

/// Called on the writer thread when a write is durable, or has failed. A failed write has ended the log:
/// every later call fails too, and the process is expected to end.
pub type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Why the log could not do something.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The disk failed a write or a sync; nothing after it can be trusted.
    #[error("the log's disk failed: {0}")]
    Disk(String),
    /// A record on the disk is damaged where none may be: before the last commit marker.
    #[error(
        "damaged log record in {file} at byte {offset}: {what}; this replica must be re-seeded"
    )]
    Damaged { file: String, offset: u64, what: String },
    /// The directory was written by a version that this program does not know.
    #[error(
        "log format {found} in {file}, this program reads up to {supported}: use a newer ppswd"
    )]
    Version { file: String, found: u32, supported: u32 },
    /// The caller asked for an entry that is not there (purged, or not yet appended).
    #[error("no entry {index} in group {group}")]
    Missing { group: GroupId, index: u64 },
    /// The caller broke the rules of the log (a hole, a position before the purge).
    #[error("misuse of the log: {0}")]
    Misuse(String),
}

/// Figures for operators.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub segments: u64,
    pub bytes: u64,
    pub free_bytes: u64,
}

/// The log. Clones share it.
#[derive(Clone)]
pub struct Log {
    _inner: Arc<()>,
}

#[allow(unused_variables, clippy::todo, reason = "skeleton: replaced by the real log")]
impl Log {
    /// Opens or creates the log in `options.dir`, recovers it, and starts its writer thread.
    ///
    /// # Errors
    /// `Damaged`, `Version`, or `Disk`.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Self, LogError> {
        todo!()
    }
    /// What is on disk for a group (all `None` for a new one).
    pub fn state(&self, group: GroupId) -> GroupState {
        todo!()
    }
    /// Groups that have records.
    pub fn groups(&self) -> Vec<GroupId> {
        todo!()
    }
    /// Appends entries, consecutive and directly behind the last one. Readable at return; durable at `done`.
    pub fn append(&self, group: GroupId, entries: Vec<Entry>, done: Done) {
        todo!()
    }
    /// Saves the group's vote. In one order with all other writes.
    pub fn save_vote(&self, group: GroupId, vote: Bytes, done: Done) {
        todo!()
    }
    /// Saves the group's checkpoint, replacing the one before; kept over rotation and recycling of segments.
    pub fn save_checkpoint(&self, group: GroupId, checkpoint: Bytes, done: Done) {
        todo!()
    }
    /// Drops all entries behind `last` (all entries if `None`).
    pub fn truncate_after(&self, group: GroupId, last: Option<Position>, done: Done) {
        todo!()
    }
    /// Drops all entries up to and including `upto`, which may lie behind the last entry (after a checkpoint
    /// from the leader). Segments in which no group has an entry left are recycled.
    pub fn purge(&self, group: GroupId, upto: Position, done: Done) {
        todo!()
    }
    /// Removes everything of a group that this node no longer carries.
    pub fn forget(&self, group: GroupId, done: Done) {
        todo!()
    }
    /// Reads entries of an index range until `bytes_max` payload bytes are reached (at least one entry).
    /// Blocks on the disk if they are no longer in the cache. The CRC of every record is checked.
    ///
    /// # Errors
    /// `Missing` for the first index that is not there, `Damaged`, `Disk`.
    pub fn read(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        todo!()
    }
    /// Figures for operators.
    pub fn usage(&self) -> Usage {
        todo!()
    }
}
