//! The node's one log: append-only segments that carry the records of every Raft group of the node.

//!
//! docs/log-format.md says what is on the disk at each instant. It is an own log because no store of the
//! registry keeps entries of a kilobyte to a megabyte once, with one sync per batch over all groups, and gives
//! their space back by whole files.

mod active;
mod cache;
#[cfg(any(test, feature = "simulation"))]
mod driver;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod identity;
mod index;
mod mark;
mod queue;
mod reader;
mod record;
mod recovery;
mod scrub;
mod scrub_date;
mod segment;
mod sidecar;
mod slots;
mod space;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread::JoinHandle,
};

pub use self::space::{Space, SpaceLimits};

use bytes::Bytes;

#[cfg(any(test, feature = "simulation"))]
pub use self::driver::Driver;
pub use self::scrub::ScrubStatus;
use self::{
    active::Frame,
    index::Place,
    queue::Item,
    record::Record,
    recovery::{Recovered, recover},
    writer::{Shared, State, Writer},
};
use crate::{
    env::Disk,
    limits::{LOG_RECORD_BYTES_MAX, LOG_SEGMENT_BYTES_MAX},
};

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
    /// Index of the first entry that is there.
    pub first: Option<u64>,
    /// The last entry that was purged; entries begin behind it.
    pub purged: Option<Position>,
    /// The last entry; `purged` if there is none behind that.
    pub last: Option<Position>,
    /// The last saved checkpoint (small: what a Raft snapshot holds), in the encoding of [`crate::group`].
    pub checkpoint: Option<Bytes>,
}

/// How the log is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the segment files; made if missing.
    pub dir: PathBuf,
    /// Size of a segment file, preallocated; at most 1 GiB. A segment is larger if what it begins with, or the
    /// first record after that, needs it.
    pub segment_bytes: u64,
    /// Memory for recently appended entries, over all groups.
    pub cache_bytes: usize,
}

/// Called on the writer thread when a write is durable, or has failed. A failed write has ended the log:
/// every later call fails too, and the process is expected to end. Called on the caller's thread, before the
/// call returns, with `Misuse`, and by calls to a log that has ended; on a reader's thread if that finds damage.
/// Must not block.
pub type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Why the log could not do something.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The disk failed a write or a sync; nothing after it can be trusted.
    #[error("the log's disk failed: {0}")]
    Disk(String),
    /// The disk is full. Passes by itself: only told when the log is closed while it waits for space.
    #[error("the log's disk is full: {0}")]
    NoSpace(String),
    /// A record on the disk is damaged where none may be: before the last commit marker. Or it was found to be so
    /// earlier, and the log is marked.
    #[error(
        "damaged log: {file} at byte {offset}: {what}. This node's copy of the queue must be re-seeded from its \
         peers: run `ppswd rejoin`"
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
    /// Segments that may hold something needed.
    pub segments: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Bytes that the log can still take: free space of the file system, and files that wait for reuse.
    pub free_bytes: u64,
}

/// What a group keeps in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub group: GroupId,
    /// Index of its first entry.
    pub first: u64,
    /// Generation of the segment with that.
    pub generation: u64,
}

/// What is in the log's segments, and because of whom.
#[derive(Clone, Debug, Default)]
pub struct Retention {
    /// Generations and file sizes, oldest first; the last one is being written.
    pub segments: Vec<(u64, u64)>,
    /// Groups that have entries on the disk.
    pub holds: Vec<Hold>,
}

/// The log. Clones share it; when the last is dropped, what waits is written and the writer thread ends.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    identity: [u8; 16],
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// A `Driver` writes, not a thread.
    driven: bool,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Log {
    /// Opens or creates the log in `options.dir`, recovers it, and starts its threads. Nobody else may have the
    /// directory open. Waits, without an end, for space if the disk is full and it cannot be opened so.
    ///
    /// # Errors
    /// `Damaged`, `Version`, or `Disk`.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Self, LogError> {
        let (writer, spare) = space::patiently(|| prepare(Arc::clone(&disk), options.clone()))?;
        let shared = Arc::clone(&writer.shared);
        let identity = identity::identity(&*disk, &options.dir);
        let inner = Inner { shared, identity, threads: Mutex::default(), driven: false };
        let log = Self { inner: Arc::new(inner) };
        log.start("ppsw-log", || writer.run())?;
        log.start("ppsw-spare", || spare.run())?;
        Ok(log)
    }

    /// Opens the log without threads: nothing is written unless the [`Driver`] runs. So a simulation decides when.
    ///
    /// # Errors
    /// As of [`Self::open`]; also `NoSpace`, because nothing waits for space.
    #[cfg(any(test, feature = "simulation"))]
    pub fn open_driven(disk: Arc<dyn Disk>, options: Options) -> Result<(Self, Driver), LogError> {
        let (writer, spare) = prepare(disk, options)?;
        writer.shared.never_wait();
        let shared = Arc::clone(&writer.shared);
        let identity = identity::identity(&*shared.disk, &shared.dir);
        let inner = Inner { shared, identity, threads: Mutex::default(), driven: true };
        Ok((Self { inner: Arc::new(inner) }, Driver::new(writer, spare)))
    }

    fn start(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), LogError> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map_err(|e| LogError::Disk(format!("starting the log's threads: {e}")))?;
        self.inner.threads().push(thread);
        Ok(())
    }

    /// What is on disk for a group, and what is about to be (all `None` for a new one).
    pub fn state(&self, group: GroupId) -> GroupState {
        self.inner.shared.lock().index.state(group)
    }

    /// Groups that have records.
    pub fn groups(&self) -> Vec<GroupId> {
        self.inner.shared.lock().index.groups()
    }

    /// Appends entries, consecutive and directly behind the last one (a group that has neither entries nor a
    /// purge may begin anywhere). Readable at return; durable at `done`. Waits for nothing, unless twice as much
    /// is queued as [`Self::room`] allows.
    pub fn append(&self, group: GroupId, entries: Vec<Entry>, done: Done) {
        let longest = entries.iter().map(|entry| entry.payload.len()).max().unwrap_or_default();
        self.submit(done, longest, |state| {
            state.index.check_append(group, &entries)?;
            let records = entries.iter().map(|entry| {
                let (record, ticket) = state.index.append(group, entry);
                (record, Some(ticket))
            });
            Ok(records.collect())
        });
    }

    /// Saves the group's vote. In one order with all other writes.
    pub fn save_vote(&self, group: GroupId, vote: Bytes, done: Done) {
        self.submit(done, vote.len(), |state| Ok(vec![(state.index.save_vote(group, vote), None)]));
    }

    /// Saves the group's checkpoint, replacing the one before; kept over rotation and recycling of segments.
    pub fn save_checkpoint(&self, group: GroupId, checkpoint: Bytes, done: Done) {
        self.submit(done, checkpoint.len(), |state| {
            Ok(vec![(state.index.save_checkpoint(group, checkpoint), None)])
        });
    }

    /// Drops all entries behind `last` (all entries if `None`).
    pub fn truncate_after(&self, group: GroupId, last: Option<Position>, done: Done) {
        self.submit(done, 0, |state| {
            let record = state.index.truncate(group, last)?;
            Ok(record.map(|record| (record, None)).into_iter().collect())
        });
    }

    /// Drops all entries up to and including `upto`, which may lie behind the last entry (after a checkpoint
    /// from the leader). Segments in which no group has an entry left are recycled.
    pub fn purge(&self, group: GroupId, upto: Position, done: Done) {
        self.submit(done, 0, |state| {
            let record = state.index.purge(group, upto);
            Ok(record.map(|record| (record, None)).into_iter().collect())
        });
    }

    /// Removes everything of a group that this node no longer carries.
    pub fn forget(&self, group: GroupId, done: Done) {
        self.submit(done, 0, |state| {
            let record = state.index.forget(group);
            Ok(record.map(|record| (record, None)).into_iter().collect())
        });
    }

    /// A number that no other log has, for what is made from this one and kept elsewhere.
    pub fn identity(&self) -> [u8; 16] {
        self.inner.identity
    }

    /// The position of an entry that is there, or of the last that was purged.
    pub fn position(&self, group: GroupId, index: u64) -> Option<Position> {
        self.inner.shared.lock().index.position(group, index)
    }

    /// Resolves when the writer's queue has room. Await it before an append: it is what bounds memory when the
    /// disk is slower than the callers.
    pub async fn room(&self) {
        loop {
            let notified = self.inner.shared.room.notified();
            {
                let state = self.inner.shared.lock();
                if state.queue.has_room() || state.failed.is_some() {
                    return;
                }
            }
            notified.await;
        }
    }

    /// Whether [`Log::read`] of this range would be answered from memory.
    #[must_use]
    pub fn is_cached(&self, group: GroupId, range: Range<u64>, bytes_max: usize) -> bool {
        let state = self.inner.shared.lock();
        let mut bytes = 0;
        for index in range {
            match state.index.locate(group, index) {
                Some(Place::Memory(entry)) => bytes += entry.payload.len(),
                _ => return false,
            }
            if bytes >= bytes_max {
                break;
            }
        }
        true
    }

    /// Sets below which free space the disk counts as low. Until then, and by default, it is low when it is full.
    pub fn limit_space(&self, limits: SpaceLimits) {
        self.inner.shared.disk_space.limit(limits);
    }

    /// Sets how many bytes all files may have together, so that those that hold nothing any more wait to be segments again.
    /// [`crate::limits::LOG_FREE_SEGMENTS_MIN`] wait besides. Until this is set all stay. Cheap.
    pub fn keep_files(&self, bytes: u64) {
        self.inner.shared.disk_space.keep(bytes);
    }

    /// Free space as last measured, at most a second ago. Cheap.
    #[must_use]
    pub fn space(&self) -> Space {
        self.inner.shared.disk_space.last()
    }

    /// Whether entries from leaders are to be taken: `false` if the disk is full and only the reserve for votes,
    /// purges and checkpoints is left. Cheap.
    #[must_use]
    pub fn takes_entries(&self) -> bool {
        let shared = &*self.inner.shared;
        !shared.disk_space.last().short || !shared.lock().is_near_end(shared.segment_bytes)
    }

    /// Whether everything runs on the caller's thread: reads, too, must not go to another.
    pub(crate) fn is_driven(&self) -> bool {
        self.inner.driven
    }

    /// Figures for operators. Asks the file system.
    pub fn usage(&self) -> Usage {
        let Shared { disk, dir, .. } = &*self.inner.shared;
        let disk_free = disk.free_bytes(dir).unwrap_or(0);
        let state = self.inner.shared.lock();
        let (segments, bytes) = state.index.usage();
        Usage { segments, bytes, free_bytes: disk_free.saturating_add(state.free_bytes()) }
    }

    /// What keeps the segments: nothing but the entries of the groups does.
    #[must_use]
    pub fn retention(&self) -> Retention {
        let state = self.inner.shared.lock();
        Retention { segments: state.index.segments(), holds: state.index.holds() }
    }

    /// The last entry of a group in the segments before a generation: with it purged, the group keeps none of them.
    #[must_use]
    pub fn last_before(&self, group: GroupId, generation: u64) -> Option<u64> {
        self.inner.shared.lock().index.last_before(group, generation)
    }

    /// Whether the log has failed for good: nothing is read or written any longer. Cheap.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.inner.shared.ended.load(Ordering::Acquire)
    }

    /// Why the log has failed for good, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<LogError> {
        self.inner.shared.lock().failed.clone()
    }

    /// Calls `tell` once with the reason when the log has failed for good, at once if it has already. On the
    /// thread that noticed: must not block.
    pub fn on_failure(&self, tell: Box<dyn FnOnce(String) + Send>) {
        let mut state = self.inner.shared.lock();
        if let Some(error) = state.failed.clone() {
            drop(state);
            tell(error.to_string());
        } else {
            state.on_failure.push(tell);
        }
    }

    /// Changes what callers see and queues the records that say so, as one step.
    fn submit(
        &self,
        done: Done,
        longest: usize,
        change: impl FnOnce(&mut State) -> Result<Vec<(Record, Option<u64>)>, String>,
    ) {
        if longest > LOG_RECORD_BYTES_MAX {
            let what =
                format!("a record of {longest} bytes, at most {LOG_RECORD_BYTES_MAX} may be");
            return done(Err(LogError::Misuse(what)));
        }
        let shared = &*self.inner.shared;
        let mut state = shared.lock();
        let on_writer = shared.thread.get() == Some(&std::thread::current().id());
        while state.failed.is_none() && state.queue.is_full() && !on_writer {
            state.crowded = true;
            state = shared.space.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(error) = state.failed.clone() {
            drop(state);
            return done(Err(error));
        }
        let mut records = match change(&mut state) {
            Ok(records) => records,
            Err(what) => {
                drop(state);
                return done(Err(LogError::Misuse(what)));
            }
        };
        let last = records.pop();
        for (record, ticket) in records {
            state.queue.push(Item { record: Some(record), ticket, done: None });
        }
        let (record, ticket) = last.map_or((None, None), |(record, ticket)| (Some(record), ticket));
        state.queue.push(Item { record, ticket, done: Some(done) });
        shared.wake(state);
    }
}

impl Inner {
    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Recovers the log, and makes what goes on where it ends.
fn prepare(disk: Arc<dyn Disk>, options: Options) -> Result<(Writer, space::SpareMaker), LogError> {
    let segment_bytes = options.segment_bytes.min(LOG_SEGMENT_BYTES_MAX);
    let options = Options { segment_bytes, ..options };
    if let Some(damage) = mark::find(&*disk, &options.dir)? {
        return Err(damage);
    }
    let Recovered { index, active, sidecar, free, released } = recover(&*disk, &options)?;
    let shared = Shared::new(disk, options.dir, index, free, active.offset, segment_bytes);
    let shared = Arc::new(shared);
    let spare = space::SpareMaker::new(Arc::clone(&shared));
    let writer = Writer {
        shared,
        active,
        sidecar,
        released,
        segment_bytes,
        cache_bytes: options.cache_bytes,
        frame: Frame::default(),
        batch: Vec::new(),
    };
    Ok((writer, spare))
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.wake(state);
        self.shared.scrubs.notify_all();
        self.shared.closing.notify_all();
        self.shared.disk_space.wake();
        let threads = std::mem::take(&mut *self.threads());
        for thread in threads {
            if thread.thread().id() != std::thread::current().id() {
                // A panic of a thread has been reported by itself.
                let _ = thread.join();
            }
        }
    }
}
