//! Space: how much the disk has left, the spare segment that is made ahead of need, and files that are too many
//! (docs/log-format.md §10).
//!
//! A thread of its own sees to them, so that neither an allocation nor a file system that hangs stands in the way of
//! the writer.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{LogError, active::create, writer::Shared};
use crate::{
    env::{Disk, DiskFile, is_full},
    limits::{
        LOG_FREE_SEGMENTS_MIN, LOG_FULL_RETRY_MAX, LOG_FULL_RETRY_MIN, LOG_REMOVE_PAUSE,
        LOG_REMOVE_STEPS, SPACE_POLL,
    },
};

/// Below what the disk counts as low.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceLimits {
    /// Bytes that should be free.
    pub bytes: u64,
    /// Files that it should be possible to make.
    pub inodes: u64,
}

/// Space as it was measured last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that the log can still take: free space of the file system, and files that wait for reuse.
    pub free_bytes: u64,
    /// Files that can still be made; `u64::MAX` if the file system has no limit.
    pub free_inodes: u64,
    /// What [`super::Log::limit_space`] set.
    pub limits: SpaceLimits,
    /// No file waits to be the next segment, and none can be made.
    pub short: bool,
}

impl Space {
    /// Bytes that may be written before the disk is low; 0: it is.
    #[must_use]
    pub const fn headroom(&self) -> u64 {
        if self.short || self.free_inodes < self.limits.inodes {
            return 0;
        }
        self.free_bytes.saturating_sub(self.limits.bytes)
    }
}

impl Default for Space {
    /// Before anything was measured.
    fn default() -> Self {
        let limits = SpaceLimits::default();
        Self { free_bytes: u64::MAX, free_inodes: u64::MAX, limits, short: false }
    }
}

/// What the writer, the spare's thread and callers share.
#[derive(Default)]
pub(super) struct SpaceWatch {
    state: Mutex<WatchState>,
    wake: Condvar,
}

/// Held over no system call.
#[derive(Default)]
struct WatchState {
    space: Space,
    /// How long the log may be, with the files that wait for reuse. `None`: nobody has said so, all stay.
    kept_bytes: Option<u64>,
    spare: Option<PathBuf>,
    woken: bool,
}

impl SpaceWatch {
    pub(super) fn limit(&self, limits: SpaceLimits) {
        self.lock().space.limits = limits;
    }

    pub(super) fn keep(&self, bytes: u64) {
        self.lock().kept_bytes = Some(bytes);
    }

    pub(super) fn last(&self) -> Space {
        self.lock().space
    }

    /// Takes the spare; the thread makes the next one.
    pub(super) fn take_spare(&self) -> Option<PathBuf> {
        let spare = self.lock().spare.take();
        self.wake();
        spare
    }

    pub(super) fn has_spare(&self) -> bool {
        self.lock().spare.is_some()
    }

    /// Lets the thread look at once.
    pub(super) fn wake(&self) {
        self.lock().woken = true;
        self.wake.notify_all();
    }

    /// Waits for a wake, or for so long.
    fn wait(&self, time: Duration) {
        let waited = self.wake.wait_timeout_while(self.lock(), time, |state| !state.woken);
        waited.unwrap_or_else(PoisonError::into_inner).0.woken = false;
    }

    fn lock(&self) -> MutexGuard<'_, WatchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls a function that a full disk refuses until it does not.
///
/// # Errors
/// Any other error than `NoSpace`.
pub(super) fn patiently<T>(work: impl Fn() -> Result<T, LogError>) -> Result<T, LogError> {
    let mut time = LOG_FULL_RETRY_MIN;
    loop {
        match work() {
            Err(LogError::NoSpace(what)) => {
                if time == LOG_FULL_RETRY_MIN {
                    tracing::error!("{what}; the log is opened when there is space");
                }
                std::thread::sleep(time);
                time = (time * 2).min(LOG_FULL_RETRY_MAX);
            }
            done => return done,
        }
    }
}

/// What became of an attempt to have a spare.
enum Made {
    Ready(PathBuf),
    Full,
    /// Another error, which the writer will meet too, or not.
    Failed,
}

/// The thread's own state.
pub(super) struct SpareMaker {
    shared: Arc<Shared>,
    /// Number in the next spare's name.
    number: u64,
    /// A spare that an earlier process left.
    left: Option<PathBuf>,
    /// An error was complained about; the next only when one was made in between.
    complained: bool,
    leaving: Option<Leaving>,
}

/// A file that is being removed: nobody can take it any more. It gets shorter step by step; what a process leaves of it is removed
/// at the next opening.
struct Leaving {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    bytes: u64,
    /// Bytes that it gets shorter by at once.
    step: u64,
}

impl Leaving {
    /// Makes it shorter by a step, or removes what is left of it. What is to be done later.
    fn shorten(mut self, disk: &dyn Disk) -> Option<Self> {
        self.bytes = self.bytes.saturating_sub(self.step);
        let done = match self.bytes {
            0 => disk.remove(&self.path),
            bytes => self.file.shorten(bytes),
        };
        match done {
            Ok(()) => (self.bytes > 0).then_some(self),
            Err(error) => {
                stays(&self.path, &error);
                None
            }
        }
    }
}

fn stays(path: &Path, error: &io::Error) {
    tracing::warn!(path = %path.display(), %error, "a file that is not needed stays until the next start");
}

impl SpareMaker {
    /// Looks for a spare of an earlier process, and measures for the first time.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let names = shared.disk.list(&shared.dir).unwrap_or_default();
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        let number = numbers.iter().max().map_or(0, |last| last + 1);
        let left = numbers.pop().map(|number| shared.dir.join(name(number)));
        for number in numbers {
            // One is enough; what stays only costs space until the next start.
            let _ = shared.disk.remove(&shared.dir.join(name(number)));
        }
        let maker = Self { shared, number, left, complained: false, leaving: None };
        maker.measure(false);
        maker
    }

    /// Works until the log is closed.
    pub(super) fn run(mut self) {
        while !self.shared.lock().closed {
            self.look();
            let time = if self.leaving.is_some() { LOG_REMOVE_PAUSE } else { SPACE_POLL };
            self.shared.disk_space.wait(time);
        }
    }

    /// Makes a spare if one is wanted, removes a part of a file if too many wait, and measures.
    pub(super) fn look(&mut self) {
        let short = self.tend();
        let leaving = self.leaving.take().or_else(|| self.surplus());
        self.leaving = leaving.and_then(|leaving| leaving.shorten(&*self.shared.disk));
        self.measure(short);
    }

    /// Takes one of the files that wait, if they are too many.
    fn surplus(&self) -> Option<Leaving> {
        let kept_bytes = self.shared.disk_space.lock().kept_bytes?;
        // What a log is too long by for a moment, between two looks at it, is not made anew each time.
        let few = LOG_FREE_SEGMENTS_MIN as u64 * self.shared.segment_bytes;
        let (path, bytes) = {
            let mut state = self.shared.lock();
            let all = state.index.usage().1.saturating_add(state.free_bytes());
            let too_many =
                state.free.len() > LOG_FREE_SEGMENTS_MIN && all > kept_bytes.saturating_add(few);
            if too_many { state.free.pop_back() } else { None }
        }?;
        match self.shared.disk.open(&path) {
            Ok(file) => Some(Leaving { path, file, bytes, step: bytes.div_ceil(LOG_REMOVE_STEPS) }),
            Err(error) => {
                stays(&path, &error);
                None
            }
        }
    }

    /// Makes a spare if one is wanted. Whether the log is short.
    fn tend(&mut self) -> bool {
        let wanted = self.shared.lock().free.is_empty() || self.left.is_some();
        if !wanted || self.shared.disk_space.has_spare() {
            return false;
        }
        match self.make() {
            Made::Ready(path) => {
                self.complained = false;
                self.shared.disk_space.lock().spare = Some(path);
                false
            }
            Made::Full => self.shared.lock().free.is_empty(),
            Made::Failed => false,
        }
    }

    fn make(&mut self) -> Made {
        let Shared { disk, dir, segment_bytes, .. } = &*self.shared;
        let left = self.left.take();
        // An allocation that fails has taken all there was for a moment, from others too.
        let free = disk.free_bytes(dir).unwrap_or(u64::MAX);
        if left.is_none() && free < *segment_bytes {
            return Made::Full;
        }
        let path = left.clone().unwrap_or_else(|| dir.join(name(self.number)));
        self.number += 1;
        let made = match left {
            Some(_) => {
                disk.open(&path).and_then(|file| file.allocate(*segment_bytes).map(|()| file))
            }
            None => create(&**disk, &path, *segment_bytes),
        };
        match made.and_then(|file| file.sync_data()) {
            Ok(()) => Made::Ready(path),
            Err(error) => {
                let _ = disk.remove(&path);
                if is_full(&error) {
                    return Made::Full;
                }
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(path = %path.display(), %error, "no spare segment can be made");
                }
                Made::Failed
            }
        }
    }

    /// Asks the file system what is free. What it does not say stays as it was.
    fn measure(&self, short: bool) {
        let Shared { disk, dir, .. } = &*self.shared;
        let (bytes, inodes) = (disk.free_bytes(dir), disk.free_inodes(dir));
        let reusable = self.shared.lock().free_bytes();
        let space = {
            let mut state = self.shared.disk_space.lock();
            if let Ok(bytes) = bytes {
                state.space.free_bytes = bytes.saturating_add(reusable);
            }
            if let Ok(inodes) = inodes {
                state.space.free_inodes = inodes;
            }
            if short && !state.space.short {
                tracing::error!(dir = %dir.display(), "no space for another segment of the log");
            }
            state.space.short = short;
            state.space
        };
        metrics::gauge!("ppsw_disk_free_bytes").set(space.free_bytes as f64);
        if space.free_inodes != u64::MAX {
            metrics::gauge!("ppsw_disk_free_inodes").set(space.free_inodes as f64);
        }
    }
}

/// Name of a spare.
fn name(number: u64) -> String {
    format!("{number:016x}.spare")
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".spare")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}
