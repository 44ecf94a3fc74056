//! The segment that is being written: flushes, seal, and the beginning of the next (docs/log-format.md §3, §4).

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;

use super::{
    LogError,
    record::{HEADER, Kind, MARKER, Record, Stamp, add_check, marker},
    segment::{SEGMENT_HEADER, header, name},
};
use crate::{
    env::{Clock, Disk, DiskFile, SystemClock, is_full},
    faults::{self, Fault},
};

/// Payloads up to this size are copied next to their headers; longer ones are written from where they are.
const COPIED_MAX: usize = 8 * 1024;

/// What a flush needs besides its callers' records: a release and the marker.
const FLUSH_OVERHEAD: usize = HEADER + MARKER;

/// What is left to the end of a segment for the seal, and a confirmation before it.
const ENDING: usize = MARKER + HEADER;

/// What each flush leaves free in a segment: its ending, and one release without any other record, which gives files
/// back when the disk is full.
const RESERVE: usize = FLUSH_OVERHEAD + ENDING;

/// The bytes of one flush. Kept and used again, for its buffer.
#[derive(Default)]
pub(super) struct Frame {
    staged: Vec<u8>,
    pieces: Vec<Piece>,
    len: usize,
    count: u32,
    check: u32,
}

enum Piece {
    Staged(Range<usize>),
    Shared(Bytes),
}

impl Frame {
    /// Empties the frame.
    pub(super) fn clear(&mut self) {
        self.staged.clear();
        self.pieces.clear();
        (self.len, self.count, self.check) = (0, 0, 0);
    }

    /// Adds a record. Returns where it begins in the frame.
    pub(super) fn push(&mut self, stamp: Stamp, record: &Record) -> u64 {
        let begin = self.len;
        let head = record.header(stamp);
        self.check = add_check(self.check, &head);
        self.count += 1;
        self.stage(&head);
        if record.payload.len() <= COPIED_MAX {
            self.stage(&record.payload);
        } else {
            self.pieces.push(Piece::Shared(record.payload.clone()));
            self.len += record.payload.len();
        }
        let padding = begin + record.bytes() - self.len;
        self.stage(&[0; 8][..padding]);
        begin as u64
    }

    /// Adds bytes to the last staged piece.
    fn stage(&mut self, bytes: &[u8]) {
        let begin = self.staged.len();
        self.staged.extend_from_slice(bytes);
        self.len += bytes.len();
        match self.pieces.last_mut() {
            Some(Piece::Staged(range)) => range.end = self.staged.len(),
            _ => self.pieces.push(Piece::Staged(begin..self.staged.len())),
        }
    }

    fn slices(&self) -> Vec<&[u8]> {
        let pieces = self.pieces.iter().map(|piece| match piece {
            Piece::Staged(range) => self.staged.get(range.clone()).unwrap_or_default(),
            Piece::Shared(bytes) => bytes,
        });
        pieces.collect()
    }
}

/// Files that wait to be segments again, with their sizes.
pub(super) type Free = VecDeque<(PathBuf, u64)>;

/// Asked when the disk is full: waits, and says whether to try again.
pub(super) type Again<'a> = dyn Fn(&io::Error) -> bool + 'a;

/// For those who do not wait.
pub(super) const NEVER: &Again<'static> = &|_| false;

/// Where the file of a new segment comes from.
pub(super) struct Supply<'a> {
    /// Takes one that waits, if there is one.
    pub(super) waiting: &'a dyn Fn() -> Option<PathBuf>,
    pub(super) again: &'a Again<'a>,
}

/// The segment being written.
pub(super) struct Active {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
    /// Where the next flush begins.
    pub(super) offset: u64,
    /// Size of the file.
    pub(super) size: u64,
    /// Flushes so far, the head's included: the number of the next.
    pub(super) flushes: u64,
    /// The last flush has records, and nothing behind it proves yet that it was synced.
    pub(super) unconfirmed: bool,
}

/// What a new segment begins with.
pub(super) struct Beginning<'a> {
    pub(super) generation: u64,
    /// Oldest generation that is needed, this one if none before is.
    pub(super) released: u64,
    /// Where the segment before ends.
    pub(super) previous_end: u64,
    /// The state of all groups.
    pub(super) records: &'a [Record],
    /// Size of the file, unless more is needed.
    pub(super) segment_bytes: u64,
    /// Length of the record that comes first after the head.
    pub(super) first: usize,
}

impl Active {
    /// Begins a segment, in a file that waits for that if there is one. It counts when this returns: its name is
    /// durable before anything is written into it, and its head is synced.
    ///
    /// # Errors
    /// `Disk`; `NoSpace` when there is none and it is not to be waited for.
    pub(super) fn begin(
        disk: &dyn Disk,
        dir: &Path,
        supply: &Supply<'_>,
        beginning: &Beginning<'_>,
    ) -> Result<Self, LogError> {
        let path = dir.join(name(beginning.generation));
        let failed = |e| LogError::of(&format!("beginning {}", path.display()), &e);
        let stamp = Stamp { generation: beginning.generation, salt: rand::random() };
        let mut frame = Frame::default();
        frame.push(stamp, &Record::plain(Kind::Head, beginning.released, beginning.previous_end));
        for record in beginning.records {
            frame.push(stamp, record);
        }
        let head = SEGMENT_HEADER + frame.len + MARKER;
        let least = (head + FLUSH_OVERHEAD + beginning.first + RESERVE) as u64;
        let size = beginning.segment_bytes.max(least);

        let file = supply.file(disk, &path, size).map_err(failed)?;
        if file.len().map_err(failed)? < size {
            retry(supply.again, || file.allocate(size)).map_err(failed)?;
        }
        let size = file.len().map_err(failed)?;
        // Only now may it be written into: else a file that goes back to being free in a power cut could hold
        // records of this generation, which its next use may have again.
        disk.sync_dir(dir).map_err(|e| unsynced(dir, &e))?;
        retry(supply.again, || file.write_at(0, &[&header(stamp)])).map_err(failed)?;
        let offset = SEGMENT_HEADER as u64;
        let mut active = Self { file, path, stamp, offset, size, flushes: 0, unconfirmed: false };
        active.write(&mut frame, supply.again)?;
        // The seal of the segment before does for the head what a later flush does for others.
        active.unconfirmed = false;
        Ok(active)
    }

    /// Bytes of records that the next flush may have; `None`: none, not even a release.
    pub(super) fn space(&self) -> Option<usize> {
        let left = self.size.checked_sub(self.offset)?;
        usize::try_from(left).ok()?.checked_sub(FLUSH_OVERHEAD + RESERVE)
    }

    /// Whether a confirmation still fits in front of the seal.
    pub(super) const fn confirmable(&self) -> bool {
        self.offset + ENDING as u64 <= self.size
    }

    /// Whether a release without any other record still fits in front of the seal.
    pub(super) const fn releasable(&self) -> bool {
        self.offset + (FLUSH_OVERHEAD + HEADER) as u64 <= self.size
    }

    /// Writes a flush and its marker, and syncs. Returns where it began.
    ///
    /// # Errors
    /// `Disk`, `NoSpace`: nothing after it may be written, the log has ended.
    pub(super) fn write(&mut self, frame: &mut Frame, again: &Again<'_>) -> Result<u64, LogError> {
        let start = self.offset;
        self.unconfirmed = frame.count > 0;
        let end = marker(self.flushes, start, frame.count, frame.check);
        frame.push(self.stamp, &end);
        self.write_synced(start, &frame.slices(), again)?;
        metrics::counter!("ppsw_log_bytes_total").increment(frame.len as u64);
        self.offset += frame.len as u64;
        self.flushes += 1;
        Ok(start)
    }

    /// Marks this segment as complete, now that its successor counts.
    ///
    /// # Errors
    /// `Disk`, `NoSpace`.
    pub(super) fn seal(&self, again: &Again<'_>) -> Result<(), LogError> {
        let seal = Record::plain(Kind::Seal, self.stamp.generation + 1, self.offset);
        self.write_synced(self.offset, &[&seal.header(self.stamp)], again)
    }

    /// Writes the bytes of `range` again and zeros behind them up to `zero_to`, and syncs: what was read at
    /// recovery may have been in memory only, and what is behind the end must never be read.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) fn rewrite(
        &self,
        image: &[u8],
        range: Range<usize>,
        zero_to: usize,
    ) -> Result<(), LogError> {
        let zeros = vec![0; zero_to.saturating_sub(range.end)];
        let bytes = image.get(range.clone()).unwrap_or_default();
        self.write_synced(range.start as u64, &[bytes, &zeros], NEVER)
    }

    /// A write that a full disk refuses may be done again: nothing behind it was written, and nobody was told of it.
    /// A sync may not: the cache may call clean what never reached the disk.
    fn write_synced(&self, offset: u64, bufs: &[&[u8]], again: &Again<'_>) -> Result<(), LogError> {
        let what = || format!("writing {} at {offset}", self.path.display());
        retry(again, || self.file.write_at(offset, bufs)).map_err(|e| LogError::of(&what(), &e))?;
        let begun: Instant = SystemClock.instant();
        if !faults::active(Fault::SkipSync) {
            self.file.sync_data().map_err(|e| unsynced(&self.path, &e))?;
        }
        let took = SystemClock.instant().saturating_duration_since(begun);
        metrics::histogram!("ppsw_log_sync_seconds").record(took.as_secs_f64());
        metrics::counter!("ppsw_log_syncs_total").increment(1);
        Ok(())
    }
}

impl Supply<'_> {
    /// A file under its new name: one that waits for reuse, the spare, or a new one of `bytes`. What waits is looked for
    /// anew whenever the disk was full.
    fn file(&self, disk: &dyn Disk, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        loop {
            if let Some(old) = (self.waiting)() {
                retry(self.again, || disk.rename(&old, path))?;
                return disk.open(path);
            }
            match create(disk, path, bytes) {
                Err(error) if is_full(&error) && (self.again)(&error) => {}
                done => return done,
            }
        }
    }
}

/// Creates a file and allocates it, or leaves nothing.
pub(super) fn create(disk: &dyn Disk, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.create(path)?;
    match file.allocate(bytes) {
        Ok(()) => Ok(file),
        Err(error) => {
            // Without success the name is taken, and the next try says so.
            let _ = disk.remove(path);
            Err(error)
        }
    }
}

/// Does something until the disk is not too full for it.
fn retry<T>(again: &Again<'_>, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match work() {
            Err(error) if is_full(&error) && again(&error) => {}
            done => return done,
        }
    }
}

/// A sync that failed: whatever the reason, what the cache holds cannot be trusted any more.
pub(super) fn unsynced(path: &Path, error: &io::Error) -> LogError {
    LogError::Disk(format!("syncing {}: {error}", path.display()))
}

impl LogError {
    /// A disk error of anything but a sync.
    pub(super) fn of(what: &str, error: &io::Error) -> Self {
        let text = format!("{what}: {error}");
        if is_full(error) { Self::NoSpace(text) } else { Self::Disk(text) }
    }
}
