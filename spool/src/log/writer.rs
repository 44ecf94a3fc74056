//! The writer thread: takes everything that waits, writes it as one flush, syncs once, tells all who wait.

use std::{
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread::ThreadId,
};

use tokio::sync::Notify;

use super::{
    LogError,
    active::{Active, Beginning, Frame, Free},
    index::Index,
    queue::{Item, Queue, Taken},
    record::{Kind, Record},
    segment::{free_name, name},
};
use crate::{
    env::Disk,
    limits::{LOG_CONFIRM_AFTER, LOG_FREE_SEGMENTS_MAX},
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
    /// A [`super::Driver`] awaits work here.
    pub(super) driven: Notify,
    /// The writer's thread, which must not wait for itself.
    pub(super) thread: OnceLock<ThreadId>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
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
    /// Bytes in files that wait for reuse.
    pub(super) free_bytes: u64,
}

impl Shared {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf, index: Index) -> Self {
        let state = State {
            index,
            queue: Queue::default(),
            failed: None,
            on_failure: Vec::new(),
            closed: false,
            free_bytes: 0,
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            space: Condvar::new(),
            room: Notify::new(),
            driven: Notify::new(),
            thread: OnceLock::new(),
            disk,
            dir,
        }
    }

    /// Tells the writer that there is work.
    pub(super) fn wake(&self) {
        self.work.notify_one();
        self.driven.notify_one();
    }

    /// The state. No holder of the lock can panic half-way, so a poisoned lock guards a whole state.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
}

/// The thread's own state.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) active: Active,
    pub(super) free: Free,
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
        let _ = self.shared.thread.set(std::thread::current().id());
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
        let mut state = self.shared.lock();
        loop {
            if let Some(work) = self.take(&mut state, release) {
                return work;
            }
            if !confirm {
                let woken = self.shared.work.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let woken = self.shared.work.wait_timeout(state, LOG_CONFIRM_AFTER);
            let (guard, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if timeout.timed_out() && state.queue.is_empty() && !state.closed {
                return Work::Confirm;
            }
        }
    }

    /// Work that is there now, whose callers are told that the queue has room again.
    pub(super) fn take(&self, state: &mut State, release: bool) -> Option<Work> {
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
        self.shared.space.notify_all();
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
        if release {
            self.frame.push(stamp, &Record::plain(Kind::Release, 0, needed));
        }
        if !offsets.is_empty() || release {
            let start = self.active.write(&mut self.frame)?;
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
        Ok(())
    }

    /// An empty flush behind the last: proof that the last was synced.
    fn confirm(&mut self) -> Result<(), LogError> {
        if self.wants_confirmation() {
            self.frame.clear();
            self.active.write(&mut self.frame)?;
        }
        Ok(())
    }

    /// Begins the next segment, whose first record will have `first` bytes.
    fn rotate(&mut self, first: usize) -> Result<(), LogError> {
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
        let next = Active::begin(&**disk, dir, &mut self.free, &beginning)?;
        self.active.seal()?;
        self.shared.lock().index.begin(next.stamp, Arc::clone(&next.file), next.size);
        self.active = next;
        self.retire(released)
    }

    /// Puts away the segments before a generation. Only after the disk says that none of them is needed.
    fn retire(&mut self, released: u64) -> Result<(), LogError> {
        self.released = released;
        let retired = self.shared.lock().index.take_before(released);
        for (generation, segment) in retired {
            let Shared { disk, dir, .. } = &*self.shared;
            put_away(&**disk, dir, generation, segment.bytes, &mut self.free)?;
        }
        self.report();
        Ok(())
    }

    pub(super) fn report(&self) {
        let mut state = self.shared.lock();
        state.free_bytes = self.free.iter().map(|(_, bytes)| bytes).sum();
        metrics::gauge!("ppsw_log_segments").set(state.index.usage().0 as f64);
    }

    /// Ends the log: all who wait are told, and all who come.
    pub(super) fn fail(&mut self, error: &LogError) {
        tracing::error!(%error, "the log has failed; the process must end");
        let mut state = self.shared.lock();
        state.failed = Some(error.clone());
        let waiting = state.queue.drain();
        let told = std::mem::take(&mut state.on_failure);
        drop(state);
        self.shared.room.notify_waiters();
        self.shared.space.notify_all();
        for done in self.batch.drain(..).chain(waiting).filter_map(|item| item.done) {
            done(Err(error.clone()));
        }
        for tell in told {
            tell(error.to_string());
        }
    }
}

/// Keeps a segment's file for reuse, or removes it if enough are kept. That need not be durable: after a power
/// cut it is found below what is needed, and put away again.
pub(super) fn put_away(
    disk: &dyn Disk,
    dir: &std::path::Path,
    generation: u64,
    bytes: u64,
    free: &mut Free,
) -> Result<(), LogError> {
    let path = dir.join(name(generation));
    let failed = |e| LogError::Disk(format!("putting away {}: {e}", path.display()));
    if free.len() < LOG_FREE_SEGMENTS_MAX {
        let kept = dir.join(free_name(generation));
        disk.rename(&path, &kept).map_err(failed)?;
        free.push_back((kept, bytes));
        Ok(())
    } else {
        disk.remove(&path).map_err(failed)
    }
}
