//! The node's one log: append-only segments that carry the records of every Raft group of the node.

//!
//! The bytes: [`record`](self::record), [`segment`](self::segment); what a crash leaves and what start makes of it:
//! `docs/log-format.md`. A log of our own because none that exists multiplexes several Raft groups with one sync for
//! all of them *and* writes bodies of many megabytes once (docs/decisions/001-log.md).

mod index;
mod record;
mod recovery;
mod segment;
mod writer;

use std::{ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;

use self::{
    record::{HEADER_BYTES, Kind},
    writer::{Action, Op, Shared, Writer},
};
use crate::{env::Disk, limits};

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
    /// Index of the first entry that is there.
    pub first: Option<u64>,
    /// The last entry; the last purged one if nothing came after it.
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

/// The log. Clones share it; when the last one is dropped, what waits is written and the writer thread ends.
#[derive(Clone)]
pub struct Log {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A writer that panicked has already made the log fail.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Log {
    /// Opens or creates the log in `options.dir`, recovers it, and starts its writer thread.
    ///
    /// # Errors
    /// `Damaged`, `Version`, or `Disk`.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Self, LogError> {
        let fault = |e: std::io::Error| LogError::Disk(format!("{}: {e}", options.dir.display()));
        if !(limits::SEGMENT_BYTES_MIN..=limits::SEGMENT_BYTES_MAX).contains(&options.segment_bytes)
        {
            return Err(LogError::Misuse(format!(
                "segments of {} bytes; expected {} to {}",
                options.segment_bytes,
                limits::SEGMENT_BYTES_MIN,
                limits::SEGMENT_BYTES_MAX
            )));
        }
        disk.create_dir(&options.dir).map_err(fault)?;
        let recovered = recovery::recover(&*disk, &options.dir)?;
        let shared = Arc::new(Shared::new(recovered.index, &recovered.segments));
        let mut writer = Writer::new(
            disk,
            options,
            shared.clone(),
            recovered.segments,
            recovered.free,
            recovered.flush,
            recovered.generation,
        );
        // Writing always goes on in a new segment: what a torn flush left behind is never read again.
        writer.rotate_first()?;
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| LogError::Disk(format!("cannot start the log's thread: {e}")))?;
        Ok(Self { handle: Arc::new(Handle { shared, thread: Some(thread) }) })
    }

    /// What is on disk for a group (all `None` for a new one).
    #[must_use]
    pub fn state(&self, group: GroupId) -> GroupState {
        let state = self.shared().state();
        state.index.groups.get(&group).map(index::GroupIndex::state).unwrap_or_default()
    }

    /// Groups that have records.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        self.shared().state().index.groups.keys().copied().collect()
    }

    /// Appends entries, consecutive and directly behind the last one. Readable at return; durable at `done`. Waits
    /// while more than [`limits::LOG_QUEUE_BYTES_MAX`] wait for the disk.
    pub fn append(&self, group: GroupId, entries: Vec<Entry>, done: Done) {
        let too_long = entries.iter().any(|e| e.payload.len() > limits::LOG_RECORD_BYTES_MAX);
        if too_long {
            return done(Err(LogError::Misuse(format!(
                "an entry of more than {} bytes",
                limits::LOG_RECORD_BYTES_MAX
            ))));
        }
        let actions = entries.iter().map(|e| Action::entry(group, e)).collect();
        self.shared().submit(Op { actions, done }, |index| index.append(group, &entries));
    }

    /// Saves the group's vote. In one order with all other writes.
    pub fn save_vote(&self, group: GroupId, vote: Bytes, done: Done) {
        let action = Action::state(Kind::Vote, group, vote.clone());
        self.shared().submit(Op { actions: vec![action], done }, |index| {
            index.groups.entry(group).or_default().vote = Some(vote);
            Ok(())
        });
    }

    /// Saves the group's checkpoint, replacing the one before; kept over rotation and recycling of segments.
    pub fn save_checkpoint(&self, group: GroupId, checkpoint: Bytes, done: Done) {
        if checkpoint.len() > limits::LOG_RECORD_BYTES_MAX {
            return done(Err(LogError::Misuse("a checkpoint that is too long".to_owned())));
        }
        let action = Action::state(Kind::Checkpoint, group, checkpoint.clone());
        self.shared().submit(Op { actions: vec![action], done }, |index| {
            index.groups.entry(group).or_default().checkpoint = Some(checkpoint);
            Ok(())
        });
    }

    /// Drops all entries behind `last` (all entries if `None`).
    pub fn truncate_after(&self, group: GroupId, last: Option<Position>, done: Done) {
        let payload = Bytes::from_static(if last.is_some() { b"1" } else { b"" });
        let action = Action {
            position: last.unwrap_or_default(),
            ..Action::state(Kind::Truncate, group, payload)
        };
        self.shared().submit(Op { actions: vec![action], done }, |index| {
            let state = index.groups.entry(group).or_default();
            let freed = state.truncate_after(last);
            index.cached_bytes -= freed;
            Ok(())
        });
    }

    /// Drops all entries up to and including `upto`, which may lie behind the last entry (after a checkpoint
    /// from the leader). Segments in which no group has an entry left are recycled.
    pub fn purge(&self, group: GroupId, upto: Position, done: Done) {
        let action = Action { position: upto, ..Action::state(Kind::Purge, group, Bytes::new()) };
        self.shared().submit(Op { actions: vec![action], done }, |index| {
            let freed = index.groups.entry(group).or_default().purge(upto);
            index.cached_bytes -= freed;
            Ok(())
        });
    }

    /// Removes everything of a group that this node no longer carries.
    pub fn forget(&self, group: GroupId, done: Done) {
        let action = Action::state(Kind::Forget, group, Bytes::new());
        self.shared().submit(Op { actions: vec![action], done }, |index| {
            let freed = index.groups.remove(&group).map_or(0, |mut g| g.truncate_after(None));
            index.cached_bytes -= freed;
            Ok(())
        });
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
        let slots = self.shared().state().index.collect(group, range, bytes_max)?;
        slots
            .into_iter()
            .map(|(position, slot)| {
                let payload = match slot.payload {
                    Some(payload) => payload,
                    None => self.read_from_disk(group, position, slot.place)?,
                };
                Ok(Entry { position, payload })
            })
            .collect()
    }

    /// Whether all of a range is in memory, so that [`Log::read`] would not touch the disk.
    #[must_use]
    pub fn is_cached(&self, group: GroupId, range: Range<u64>, bytes_max: usize) -> bool {
        let slots = self.shared().state().index.collect(group, range, bytes_max);
        slots.is_ok_and(|slots| slots.iter().all(|(_, slot)| slot.payload.is_some()))
    }

    /// Calls `then` when the log has failed for good, with the reason; at once if it already has.
    pub fn on_failure(&self, then: Box<dyn FnOnce(String) + Send>) {
        self.shared().on_failure(then);
    }

    /// Figures for operators.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.shared().state().usage
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    fn read_from_disk(
        &self,
        group: GroupId,
        position: Position,
        place: index::Place,
    ) -> Result<Bytes, LogError> {
        let segment = self.shared().state().segments.get(&place.generation).cloned();
        let missing = LogError::Missing { group, index: position.index };
        let Some(segment) = segment else { return Err(missing) };
        let mut record = vec![0_u8; HEADER_BYTES + place.payload_bytes as usize];
        segment
            .file
            .read_at(u64::from(place.offset), &mut record)
            .map_err(|e| LogError::Disk(format!("{}: {e}", segment.name)))?;
        let mut header = [0_u8; HEADER_BYTES];
        header.copy_from_slice(&record[..HEADER_BYTES]);
        let checked = record::decode(segment.seal, &header, &record[HEADER_BYTES..]);
        let expected = |h: &record::Header| {
            h.kind == Kind::Entry && h.group == group && h.position == position
        };
        if checked.as_ref().is_ok_and(expected) {
            return Ok(Bytes::from(record).slice(HEADER_BYTES..));
        }
        // Purged and its segment used again while we read: gone, not damaged.
        let still = self.shared().state().segments.contains_key(&place.generation);
        Err(if still {
            LogError::Damaged {
                file: segment.name,
                offset: u64::from(place.offset),
                what: format!("entry {} of group {group}: {checked:?}", position.index),
            }
        } else {
            missing
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::env::SystemDisk;

    fn open(dir: &std::path::Path) -> Log {
        let options = Options {
            dir: dir.to_owned(),
            segment_bytes: limits::SEGMENT_BYTES_MIN,
            cache_bytes: 64 * 1024,
        };
        Log::open(Arc::new(SystemDisk), options).expect("opens")
    }

    fn durable(write: impl FnOnce(Done)) {
        let (tell, told) = mpsc::channel();
        write(Box::new(move |result| tell.send(result).expect("somebody waits")));
        told.recv().expect("answered").expect("written");
    }

    fn entry(term: u64, index: u64, bytes: usize) -> Entry {
        let payload = Bytes::from(vec![u8::try_from(index % 251).expect("small"); bytes]);
        Entry { position: Position { term, index }, payload }
    }

    #[test]
    fn what_was_written_is_there_after_reopening_and_rotation() {
        let dir = tempfile::tempdir().expect("dir");
        let log = open(dir.path());
        durable(|done| log.save_vote(1, Bytes::from_static(b"vote"), done));
        for index in 0..40 {
            durable(|done| log.append(1, vec![entry(1, index, 500_000)], done));
            durable(|done| log.append(2, vec![entry(1, index, 10)], done));
        }
        durable(|done| log.truncate_after(2, Some(Position { term: 1, index: 30 }), done));
        durable(|done| log.append(2, vec![entry(2, 31, 7)], done));
        drop(log);
        let log = open(dir.path());
        assert_eq!(log.state(1).vote, Some(Bytes::from_static(b"vote")));
        assert_eq!(log.state(2).last, Some(Position { term: 2, index: 31 }));
        for index in 0..40 {
            assert_eq!(
                log.read(1, index..index + 1, 1).expect("read")[0],
                entry(1, index, 500_000)
            );
        }
        assert!(matches!(log.read(2, 31..33, 1 << 20), Err(LogError::Missing { index: 32, .. })));
    }

    #[test]
    fn purged_segments_are_used_again() {
        let dir = tempfile::tempdir().expect("dir");
        let log = open(dir.path());
        for index in 0..200 {
            durable(|done| log.append(1, vec![entry(1, index, 500_000)], done));
            if index > 4 {
                durable(|done| log.purge(1, Position { term: 1, index: index - 4 }, done));
            }
        }
        drop(log);
        let files = std::fs::read_dir(dir.path()).expect("dir").count();
        assert!(files < 10, "{files} files for 2.5 MB of live entries");
        let log = open(dir.path());
        assert_eq!(log.state(1).purged, Some(Position { term: 1, index: 195 }));
        assert_eq!(log.read(1, 196..200, 1 << 30).expect("read").len(), 4);
    }

    #[test]
    fn a_flipped_bit_before_the_last_flush_is_damage() {
        let dir = tempfile::tempdir().expect("dir");
        let log = open(dir.path());
        for index in 0..5 {
            durable(|done| log.append(1, vec![entry(1, index, 1000)], done));
        }
        drop(log);
        let file = dir.path().join(segment::segment_name(1));
        let mut bytes = std::fs::read(&file).expect("read");
        bytes[1500] ^= 4;
        std::fs::write(&file, bytes).expect("write");
        let options =
            Options { dir: dir.path().to_owned(), segment_bytes: 1 << 23, cache_bytes: 0 };
        let opened = Log::open(Arc::new(SystemDisk), options);
        assert!(matches!(opened, Err(LogError::Damaged { .. })), "{opened:?}");
    }
}
