//! The writer thread: takes everything that waits, writes it as one flush, syncs once, tells all who wait.

use std::{
    cell::Cell,
    io,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    LogError,
    active::{Active, Beginning, Frame, Free, Supply},
    index::Index,
    queue::{Item, Queue, Taken},
    record::{Kind, Record},
    scrub::ScrubState,
    segment::{free_name, name},
    sidecar,
    space::SpaceWatch,
};
use crate::{
    env::{Disk, is_full},
    limits::{LOG_CONFIRM_AFTER, LOG_FULL_RETRY_MAX, LOG_FULL_RETRY_MIN, LOG_LAST_RESERVE},
};

/// Called once, with the reason.
pub(super) type OnFailure = Box<dyn FnOnce(String) + Send>;

/// What callers and the writer share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// The writer waits here for work.
    pub(super) work: Condvar,
    /// Callers wait here while the queue is full.
    pub(super) space: Condvar,
    /// Callers await here that the queue has room.
    pub(super) room: Notify,
    /// The scrub waits here.
    pub(super) scrubs: Condvar,
    /// The log has failed; for those who ask often.
    pub(super) ended: AtomicBool,
    /// Those who wait for space, or for time to pass, wait here: the end of the log wakes them.
    pub(super) closing: Condvar,
    pub(super) disk_space: SpaceWatch,
    /// A [`super::Driver`] awaits work here.
    pub(super) driven: Notify,
    /// Nobody waits for space.
    impatient: AtomicBool,
    /// The writer's thread, which must not wait for itself.
    pub(super) thread: OnceLock<ThreadId>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) segment_bytes: u64,
}

/// What the mutex guards.
pub(super) struct State {
    pub(super) index: Index,
    pub(super) queue: Queue,
    /// Why the log has ended.
    pub(super) failed: Option<LogError>,
    pub(super) on_failure: Vec<OnFailure>,
    /// The last handle is gone.
    pub(super) closed: bool,
    /// Files that wait to be segments again. What is too many is removed, one after the other.
    pub(super) free: Free,
    /// So far the last segment is synced.
    pub(super) synced: u64,
    pub(super) scrub: ScrubState,
    /// Bytes left in the segment that is being written.
    pub(super) left_bytes: u64,
    /// The writer waits for work.
    idle: bool,
    /// Somebody waits until the queue is less full.
    pub(super) crowded: bool,
}

impl State {
    /// Whether only the reserve of the last segment is left, of the usual size or larger.
    pub(super) fn is_near_end(&self, segment_bytes: u64) -> bool {
        self.free.is_empty() && self.left_bytes < segment_bytes / LOG_LAST_RESERVE
    }

    /// Of the files that wait to be segments again.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Shared {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        index: Index,
        free: Free,
        synced: u64,
        segment_bytes: u64,
    ) -> Self {
        let state = State {
            index,
            queue: Queue::default(),
            failed: None,
            on_failure: Vec::new(),
            closed: false,
            free,
            synced,
            scrub: ScrubState::default(),
            left_bytes: segment_bytes,
            idle: false,
            crowded: false,
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            space: Condvar::new(),
            room: Notify::new(),
            scrubs: Condvar::new(),
            ended: AtomicBool::new(false),
            closing: Condvar::new(),
            disk_space: SpaceWatch::default(),
            driven: Notify::new(),
            impatient: AtomicBool::new(false),
            thread: OnceLock::new(),
            disk,
            dir,
            segment_bytes,
        }
    }

    /// A full disk is an error from now on: nobody may wait for space on the thread of a simulation.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn never_wait(&self) {
        self.impatient.store(true, Ordering::Relaxed);
    }

    /// Tells the writer that there is work. Waking somebody is a system call even when nobody sleeps, so that is asked first.
    pub(super) fn wake(&self, mut state: MutexGuard<'_, State>) {
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        if idle {
            self.work.notify_one();
        }
        self.driven.notify_one();
    }

    /// The state. No holder of the lock can panic half-way, so a poisoned lock guards a whole state.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a file that waits to be the next segment.
    fn take_file(&self) -> Option<PathBuf> {
        let free = self.lock().free.pop_front();
        free.map(|(path, _)| path).or_else(|| self.disk_space.take_spare())
    }

    /// Whether a file waits to be the next segment.
    pub(super) fn has_file(&self) -> bool {
        !self.lock().free.is_empty() || self.disk_space.has_spare()
    }

    /// Waits for a time, or until the log is closed. Whether it is.
    pub(super) fn pause(&self, time: Duration) -> bool {
        let waited = self.closing.wait_timeout_while(self.lock(), time, |state| !state.closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }
}

/// What there is to do.
pub(super) enum Work {
    Flush(Vec<Item>),
    Rotate(usize),
    /// Only a release is due.
    Release,
    /// The last flush is to be confirmed: nothing came for a while.
    Confirm,
    Stop,
    /// Somebody else has ended the log.
    Ended,
}

/// The thread's own state.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) active: Active,
    /// What the active segment holds.
    pub(super) sidecar: sidecar::Builder,
    /// Oldest generation that the disk says is needed.
    pub(super) released: u64,
    pub(super) segment_bytes: u64,
    pub(super) cache_bytes: usize,
    pub(super) frame: Frame,
    /// What is being flushed.
    pub(super) batch: Vec<Item>,
}

impl Writer {
    /// Works until the last handle is gone and all is written, or until the disk fails.
    pub(super) fn run(mut self) {
        let _ = self.shared.thread.set(thread::current().id());
        if let Err(error) = self.work() {
            self.fail(&error);
        }
    }

    fn work(&mut self) -> Result<(), LogError> {
        self.report();
        loop {
            let needed = self.needed();
            let work = self.wait(needed > self.released);
            if !self.perform(work, needed)? {
                return Ok(());
            }
        }
    }

    /// Does one piece of work; false: it was the last. `needed`: the oldest generation that must be kept.
    pub(super) fn perform(&mut self, work: Work, needed: u64) -> Result<bool, LogError> {
        match work {
            Work::Flush(batch) => {
                self.batch = batch;
                self.flush(needed)?;
            }
            Work::Rotate(first) => self.rotate(first)?,
            Work::Release if self.active.space().is_none() => self.rotate(0)?,
            Work::Release => self.flush(needed)?,
            Work::Confirm => self.confirm()?,
            Work::Stop => return self.confirm().map(|()| false),
            Work::Ended => return Ok(false),
        }
        Ok(true)
    }

    /// The oldest generation that must be kept, by what is durable.
    pub(super) fn needed(&self) -> u64 {
        let generation = self.active.stamp.generation;
        self.shared.lock().index.oldest_live().unwrap_or(generation)
    }

    /// Waits for work. `release`: there is some without anything in the queue.
    fn wait(&self, release: bool) -> Work {
        let confirm = self.wants_confirmation();
        loop {
            // Whoever is ready to run on this processor goes first: what it may append goes into this flush instead of the
            // next. Where nothing else is to be done this takes no time (docs/decisions/034-batches.md).
            thread::yield_now();
            let mut state = self.shared.lock();
            if let Some(work) = self.take(&mut state, release) {
                return work;
            }
            state.idle = true;
            if !confirm {
                drop(self.shared.work.wait(state));
                continue;
            }
            let woken = self.shared.work.wait_timeout(state, LOG_CONFIRM_AFTER);
            let (state, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() && state.queue.is_empty() && !state.closed {
                return Work::Confirm;
            }
        }
    }

    /// Work that is there now, whose callers are told that the queue has room again.
    pub(super) fn take(&self, state: &mut State, release: bool) -> Option<Work> {
        if state.failed.is_some() {
            return Some(Work::Ended);
        }
        let work = match state.queue.take(self.active.space()) {
            Taken::Batch(batch) => Work::Flush(batch),
            Taken::NoRoom(first) => Work::Rotate(first),
            Taken::Empty if release => Work::Release,
            Taken::Empty if state.closed => Work::Stop,
            Taken::Empty => return None,
        };
        if state.queue.has_room() {
            self.shared.room.notify_waiters();
        }
        if std::mem::take(&mut state.crowded) {
            self.shared.space.notify_all();
        }
        Some(work)
    }

    /// The last flush has no proof yet that it was synced.
    pub(super) fn wants_confirmation(&self) -> bool {
        self.active.unconfirmed && self.active.confirmable()
    }

    /// Writes the batch, and the release of older segments if one is due.
    fn flush(&mut self, needed: u64) -> Result<(), LogError> {
        let release = needed > self.released;
        self.frame.clear();
        let stamp = self.active.stamp;
        let mut offsets = Vec::with_capacity(self.batch.len());
        for record in self.batch.iter().filter_map(|item| item.record.as_ref()) {
            offsets.push(self.frame.push(stamp, record));
        }
        let released = Record::plain(Kind::Release, 0, needed);
        let release_at = release.then(|| self.frame.push(stamp, &released));
        if !offsets.is_empty() || release {
            let again = Waiting::new(&self.shared);
            let start = self.active.write(&mut self.frame, &|e| again.again(e))?;
            drop(again);
            let records = self.batch.iter().filter_map(|item| item.record.as_ref()).zip(&offsets);
            for (record, at) in records.chain(release_at.iter().map(|at| (&released, at))) {
                self.sidecar.push(record, start + at);
            }
            metrics::counter!("ppsw_log_records_total").increment(offsets.len() as u64);
            self.account(start, &offsets)?;
        }
        for item in self.batch.drain(..) {
            if let Some(done) = item.done {
                done(Ok(()));
            }
        }
        if release {
            self.retire(needed)?;
        }
        Ok(())
    }

    /// Tells the index where the batch lies, now that it is durable.
    fn account(&self, start: u64, offsets: &[u64]) -> Result<(), LogError> {
        let generation = self.active.stamp.generation;
        let mut state = self.shared.lock();
        let records = self.batch.iter().filter_map(|i| i.record.as_ref().map(|r| (r, i.ticket)));
        for ((record, ticket), offset) in records.zip(offsets) {
            state
                .index
                .place(record, record.payload.len(), generation, start + offset)
                .map_err(LogError::Misuse)?;
            if let Some(ticket) = ticket {
                state.index.placed(record.group, ticket);
            }
        }
        state.index.evict(self.cache_bytes);
        state.synced = self.active.offset;
        state.left_bytes = self.active.size.saturating_sub(self.active.offset);
        Ok(())
    }

    /// An empty flush behind the last: proof that the last was synced.
    fn confirm(&mut self) -> Result<(), LogError> {
        if self.wants_confirmation() {
            self.frame.clear();
            let again = Waiting::new(&self.shared);
            self.active.write(&mut self.frame, &|e| again.again(e))?;
        }
        Ok(())
    }

    /// Begins the next segment, whose first record will have `first` bytes.
    fn rotate(&mut self, first: usize) -> Result<(), LogError> {
        self.release_early()?;
        let generation = self.active.stamp.generation + 1;
        let (records, released) = {
            let state = self.shared.lock();
            (state.index.head_records(), state.index.oldest_live().unwrap_or(generation))
        };
        let beginning = Beginning {
            generation,
            released,
            previous_end: self.active.offset,
            records: &records,
            segment_bytes: self.segment_bytes,
            first,
        };
        let Shared { disk, dir, .. } = &*self.shared;
        let waiting = Waiting::new(&self.shared);
        let again = |e: &io::Error| waiting.again(e);
        let supply = Supply { waiting: &|| self.shared.take_file(), again: &again };
        let next = Active::begin(&**disk, dir, &supply, &beginning)?;
        self.active.seal(&again)?;
        drop(waiting);
        {
            let mut state = self.shared.lock();
            state.index.begin(next.stamp, Arc::clone(&next.file), next.size);
            state.synced = next.offset;
        }
        let begun = sidecar::Builder::begin(next.stamp, released, self.active.offset, &records);
        let full = std::mem::replace(&mut self.sidecar, begun);
        if released < generation {
            full.write(&**disk, dir, self.active.offset);
        }
        self.active = next;
        self.retire(released)
    }

    /// When no file waits to be the next segment: gives back the segments that are not needed, if there are any. The
    /// next segment's head would do that too, but it would have to find a place first.
    pub(super) fn release_early(&mut self) -> Result<(), LogError> {
        let needed = self.needed();
        if self.shared.has_file() || needed <= self.released || !self.active.releasable() {
            return Ok(());
        }
        self.flush(needed)
    }

    /// Puts away the segments before a generation. Only after the disk says that none of them is needed.
    fn retire(&mut self, released: u64) -> Result<(), LogError> {
        self.released = released;
        let retired = self.shared.lock().index.take_before(released);
        for (generation, segment) in retired {
            let Shared { disk, dir, .. } = &*self.shared;
            let free = put_away(&**disk, dir, generation, segment.bytes)?;
            self.shared.lock().free.extend(free);
        }
        self.report();
        Ok(())
    }

    pub(super) fn report(&self) {
        let mut state = self.shared.lock();
        state.left_bytes = self.active.size.saturating_sub(self.active.offset);
        metrics::gauge!("ppsw_log_segments").set(state.index.usage().0 as f64);
        drop(state);
        // A spare may be wanted now, or less wanted.
        self.shared.disk_space.wake();
    }

    /// Ends the log, and tells those whose records were being written.
    pub(super) fn fail(&mut self, error: &LogError) {
        let error = self.shared.fail(error);
        for done in self.batch.drain(..).filter_map(|item| item.done) {
            done(Err(error.clone()));
        }
    }
}

/// Keeps a segment's file for reuse; gives its new name and its bytes. That need not be durable: after a power cut it is found
/// below what is needed, and put away again.
pub(super) fn put_away(
    disk: &dyn Disk,
    dir: &std::path::Path,
    generation: u64,
    bytes: u64,
) -> Result<Option<(PathBuf, u64)>, LogError> {
    sidecar::remove(disk, dir, generation);
    let path = dir.join(name(generation));
    let failed = |e| LogError::Disk(format!("putting away {}: {e}", path.display()));
    let kept = dir.join(free_name(generation));
    match disk.rename(&path, &kept) {
        Ok(()) => return Ok(Some((kept, bytes))),
        // The directory has no room for the longer name.
        Err(error) if is_full(&error) => {}
        Err(error) => return Err(failed(error)),
    }
    match disk.remove(&path) {
        Err(error) if is_full(&error) => {
            tracing::warn!(path = %path.display(), %error, "a segment stays until the next start");
        }
        done => done.map_err(failed)?,
    }
    Ok(None)
}

/// One wait for space on a full disk.
struct Waiting<'a> {
    shared: &'a Shared,
    next: Cell<Duration>,
}

impl<'a> Waiting<'a> {
    const fn new(shared: &'a Shared) -> Self {
        Self { shared, next: Cell::new(LOG_FULL_RETRY_MIN) }
    }

    /// Waits; whether to try again. Not if the log is being closed: then nobody waits for it any longer.
    fn again(&self, error: &io::Error) -> bool {
        if self.shared.impatient.load(Ordering::Relaxed) {
            return false;
        }
        if self.next.get() == LOG_FULL_RETRY_MIN {
            tracing::error!(dir = %self.shared.dir.display(), %error, "the log waits for space");
            metrics::counter!("ppsw_log_full_waits_total").increment(1);
        }
        self.shared.disk_space.wake();
        let time = self.next.get();
        self.next.set((time * 2).min(LOG_FULL_RETRY_MAX));
        !self.shared.pause(time)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.next.get() != LOG_FULL_RETRY_MIN {
            tracing::info!(dir = %self.shared.dir.display(), "the log's wait for space has ended");
        }
    }
}
