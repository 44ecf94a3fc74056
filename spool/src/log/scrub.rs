//! The scrub: the log is read through now and then, so that damage is found while other replicas are whole.
//!
//! A thread of its own, because it reads files and mostly sleeps. It checks what opening would check: header, every
//! flush with its marker, the seal; in the last segment as far as it was synced.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    Log, LogError,
    reader::ReadFault,
    record::{ALIGN, HEADER, Kind, Parsed, Stamp, add_check, marker_fits, padded, parse, u32_at},
    scrub_date::{Basis, ScrubDate},
    segment::{self, SEGMENT_HEADER},
    writer::{Shared, State},
};
use crate::{
    env::{Clock, DiskFile, UnixMs},
    limits::{
        LOG_READ_TRIES, LOG_RECORD_BYTES_MAX, SCRUB_BYTES_PER_SECOND, SCRUB_READ_BYTES,
        SCRUB_START_SPREAD,
    },
};

/// What the scrub has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// It reads now.
    pub running: bool,
    /// When it was last through, perhaps in an earlier process.
    pub completed: Option<UnixMs>,
}

/// What the thread and those who ask it share, behind the log's mutex.
#[derive(Default)]
pub(super) struct ScrubState {
    wanted: bool,
    status: ScrubStatus,
}

impl Log {
    /// Starts a thread that reads the whole log once in `period`. Damage ends the log, as on any read. The thread
    /// ends with the log. To be called once.
    ///
    /// # Errors
    /// `Disk` if there can be no thread.
    pub fn start_scrub(&self, clock: Arc<dyn Clock>, period: Duration) -> Result<(), LogError> {
        let shared = Arc::clone(&self.inner.shared);
        let scrub = Scrub { shared, clock, period, bytes_per_second: SCRUB_BYTES_PER_SECOND };
        std::thread::Builder::new()
            .name("ppsw-scrub".to_owned())
            .spawn(move || scrub.run())
            .map_err(|e| LogError::Disk(format!("starting the log's scrub: {e}")))?;
        Ok(())
    }

    /// Has the scrub begin now, if it was started and does not run already.
    pub fn scrub_now(&self) {
        self.inner.shared.lock().scrub.wanted = true;
        self.inner.shared.scrubs.notify_all();
    }

    /// What the scrub has done.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        self.inner.shared.lock().scrub.status
    }
}

/// The thread's own state.
pub(super) struct Scrub {
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) period: Duration,
    pub(super) bytes_per_second: u64,
}

/// Why a pass did not come to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// The log is closed, or has failed.
    Ended,
    /// Bytes of a segment are not right.
    Fault { offset: u64, fault: ReadFault },
}

/// A begun segment, and how to know where it ends.
pub(super) struct Subject {
    file: Arc<dyn DiskFile>,
    stamp: Stamp,
    end: End,
}

enum End {
    /// The first record of the next segment says it, and a seal stands there.
    Sealed { next: Arc<dyn DiskFile>, stamp: Stamp },
    /// So far the segment being written was synced.
    Synced(u64),
}

impl Scrub {
    fn run(self) {
        let mut date = self.first_date();
        while self.wait_for(date) {
            if self.pass().is_err() {
                return;
            }
            let now = self.clock.now();
            date = ScrubDate { basis: Basis::Completed, at: now };
            self.remember(date);
            // Written first: who sees that it is through may end the process.
            self.shared.lock().scrub.status.completed = Some(now);
            metrics::gauge!("ppsw_log_scrub_completed_timestamp_seconds").set(now.0 as f64 / 1e3);
        }
    }

    /// From when the period counts. It survives restarts: else a node that is restarted more often than once in a
    /// period would never be through. The nodes of a cluster begin at different times.
    pub(super) fn first_date(&self) -> ScrubDate {
        let now = self.clock.now();
        let found = ScrubDate::read(&*self.shared.disk, &self.shared.dir);
        let Some(found) = found.filter(|found| found.at <= now) else {
            let ago = self.period.mul_f64(rand::random());
            let at = UnixMs(now.0.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(now.0)));
            let date = ScrubDate { basis: Basis::Begun, at };
            self.remember(date);
            return date;
        };
        if found.basis == Basis::Completed {
            self.shared.lock().scrub.status.completed = Some(found.at);
            metrics::gauge!("ppsw_log_scrub_completed_timestamp_seconds")
                .set(found.at.0 as f64 / 1e3);
        }
        found
    }

    /// Nothing is lost if this fails, or is lost in a power cut: the log is read through sooner or later than need be.
    fn remember(&self, date: ScrubDate) {
        if let Err(error) = date.write(&*self.shared.disk, &self.shared.dir) {
            tracing::warn!(%error, "the date of the log's scrub was not written");
        }
    }

    /// When the next pass begins. One that is overdue, not at once: a start has enough to do.
    pub(super) fn due(&self, date: ScrubDate) -> UnixMs {
        let now = self.clock.now();
        let due = date.at.plus(self.period);
        let spread = SCRUB_START_SPREAD.min(self.period).mul_f64(rand::random());
        if due < now { now.plus(spread) } else { due }
    }

    /// Waits until a pass is due, or asked for. False: the log has ended.
    fn wait_for(&self, date: ScrubDate) -> bool {
        let patience = self.due(date).since(self.clock.now());
        let begun = self.clock.instant();
        loop {
            // By the clock that nobody sets.
            let waited = self.clock.instant().saturating_duration_since(begun);
            let left = patience.saturating_sub(waited);
            let mut state = self.shared.lock();
            if state.closed || state.failed.is_some() {
                return false;
            }
            if left.is_zero() || state.scrub.wanted {
                state.scrub.wanted = false;
                return true;
            }
            let woken = self.shared.scrubs.wait_timeout(state, left);
            drop(woken.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Reads the log through.
    ///
    /// # Errors
    /// `Ended`; a fault has been dealt with and has ended the log.
    pub(super) fn pass(&self) -> Result<(), Stop> {
        self.shared.lock().scrub.status.running = true;
        let mut next = 0;
        let done = loop {
            let Some(generation) = self.shared.lock().index.segment_from(next) else {
                break Ok(());
            };
            if let Err(stop) = self.segment(generation) {
                break Err(stop);
            }
            next = generation + 1;
        };
        self.shared.lock().scrub.status.running = false;
        done
    }

    /// Checks one segment. One that is recycled meanwhile is not asked for any more.
    fn segment(&self, generation: u64) -> Result<(), Stop> {
        let mut tries = 1;
        while let Some(subject) = self.subject(generation)? {
            let Err(stop) = self.check(&subject) else { return Ok(()) };
            let Stop::Fault { offset, fault } = stop else { return Err(stop) };
            if self.subject(generation)?.is_none() {
                return Ok(());
            }
            if tries == LOG_READ_TRIES {
                self.shared.condemn(&segment::name(generation), offset, fault);
                return Err(Stop::Ended);
            }
            metrics::counter!("ppsw_log_read_retries_total").increment(1);
            tries += 1;
            self.rest(fault.pause())?;
        }
        Ok(())
    }

    /// A segment that is still needed.
    pub(super) fn subject(&self, generation: u64) -> Result<Option<Subject>, Stop> {
        let state = self.shared.lock();
        if state.closed || state.failed.is_some() {
            return Err(Stop::Ended);
        }
        let Some(segment) = state.index.segment(generation) else { return Ok(None) };
        let end = match state.index.segment(generation + 1) {
            Some(next) => End::Sealed { next: Arc::clone(&next.file), stamp: next.stamp },
            None => End::Synced(state.synced),
        };
        Ok(Some(Subject { file: Arc::clone(&segment.file), stamp: segment.stamp, end }))
    }

    pub(super) fn check(&self, subject: &Subject) -> Result<(), Stop> {
        let Subject { file, stamp, end } = subject;
        let mut walk = Walk::new(self, &**file, *stamp);
        walk.header()?;
        match end {
            End::Synced(end) => walk.flushes(*end),
            End::Sealed { next, stamp } => {
                let head = Walk::new(self, &**next, *stamp).head().map_err(|stop| match stop {
                    // Its own turn comes: here only the end is not known.
                    Stop::Fault { fault, .. } => Stop::Fault { offset: 0, fault: next_head(fault) },
                    ended => ended,
                })?;
                walk.flushes(head.index)?;
                walk.seal()
            }
        }
    }

    /// Sleeps. An error if the log ends.
    fn rest(&self, time: Duration) -> Result<(), Stop> {
        let goes_on = |state: &mut State| !state.closed && state.failed.is_none();
        let state = self.shared.lock();
        let woken = self.shared.scrubs.wait_timeout_while(state, time, goes_on);
        let (mut state, _): (MutexGuard<'_, State>, _) =
            woken.unwrap_or_else(PoisonError::into_inner);
        if goes_on(&mut state) { Ok(()) } else { Err(Stop::Ended) }
    }

    /// Reads from the medium, not from the page cache, and leaves the cache as it was for those who need it. Then
    /// rests for as long as the rate asks.
    fn read(&self, file: &dyn DiskFile, at: u64, buf: &mut [u8]) -> Result<(), Stop> {
        let len = buf.len() as u64;
        file.uncache(at, len);
        file.read_at(at, buf).map_err(|e| Stop::Fault { offset: at, fault: e.into() })?;
        file.uncache(at, len);
        metrics::counter!("ppsw_log_scrub_bytes_total").increment(len);
        let rate = self.bytes_per_second.max(1) as f64;
        self.rest(Duration::from_secs_f64(len as f64 / rate))
    }
}

fn next_head(fault: ReadFault) -> ReadFault {
    match fault {
        ReadFault::Wrong(what) => {
            ReadFault::Wrong(format!("the head of the segment behind it: {what}"))
        }
        unreadable @ ReadFault::Unreadable(_) => unreadable,
    }
}

/// Goes through a segment record by record, with a window of the file in memory.
struct Walk<'a> {
    scrub: &'a Scrub,
    file: &'a dyn DiskFile,
    stamp: Stamp,
    /// The next record.
    at: u64,
    /// The file may be read up to here.
    limit: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Walk<'a> {
    fn new(scrub: &'a Scrub, file: &'a dyn DiskFile, stamp: Stamp) -> Self {
        let at = SEGMENT_HEADER as u64;
        Self { scrub, file, stamp, at, limit: at, window: Vec::new(), window_at: 0 }
    }

    fn header(&mut self) -> Result<(), Stop> {
        let mut bytes = [0; SEGMENT_HEADER];
        self.scrub.read(self.file, 0, &mut bytes)?;
        if bytes == segment::header(self.stamp) {
            return Ok(());
        }
        self.at = 0;
        Err(self.wrong("the segment's header is not the one that was written"))
    }

    /// The segment's first record.
    fn head(&mut self) -> Result<Parsed, Stop> {
        self.limit = self.at + padded(0) as u64;
        let (parsed, _) = self.record()?;
        if parsed.kind == Kind::Head { Ok(parsed) } else { Err(self.wrong("it is no head")) }
    }

    /// All flushes up to `end`.
    fn flushes(&mut self, end: u64) -> Result<(), Stop> {
        self.limit = end;
        let (mut flushes, mut begin, mut count, mut check) = (0, self.at, 0, 0);
        while self.at < end {
            let (parsed, bytes) = self.record()?;
            if parsed.kind != Kind::Commit {
                (count, check) = (count + 1, add_check(check, bytes));
                self.at += padded(parsed.len) as u64;
                continue;
            }
            if !marker_fits(&parsed, bytes, (flushes, begin, count, check)) {
                return Err(self.wrong("the commit marker does not fit the records before it"));
            }
            self.at += padded(parsed.len) as u64;
            (flushes, begin, count, check) = (flushes + 1, self.at, 0, 0);
        }
        if count == 0 { Ok(()) } else { Err(self.wrong("the last flush has no commit marker")) }
    }

    fn seal(&mut self) -> Result<(), Stop> {
        self.limit = self.at + padded(0) as u64;
        let (parsed, _) = self.record()?;
        if parsed.kind == Kind::Seal && parsed.index == self.at {
            return Ok(());
        }
        Err(self.wrong("the segment's seal is damaged"))
    }

    /// The record at the place where the walk is, with its bytes.
    fn record(&mut self) -> Result<(Parsed, &[u8]), Stop> {
        let len = u32_at(self.bytes(HEADER)?, 4) as usize;
        // What is longer is wrong, and `parse` says so without its payload.
        let bytes = self.bytes(padded(len.min(LOG_RECORD_BYTES_MAX + ALIGN)))?.len();
        let from = usize::try_from(self.at - self.window_at).unwrap_or(usize::MAX);
        let bytes = self.window.get(from..).and_then(|b| b.get(..bytes)).unwrap_or_default();
        match parse(self.stamp, bytes) {
            Ok(parsed) => Ok((parsed, bytes)),
            Err(fault) => {
                Err(Stop::Fault { offset: self.at, fault: ReadFault::Wrong(fault.to_string()) })
            }
        }
    }

    /// Bytes at the place where the walk is: `wanted` of them, or what is left up to the limit.
    fn bytes(&mut self, wanted: usize) -> Result<&[u8], Stop> {
        let left = self.limit.saturating_sub(self.at);
        let wanted = wanted.min(usize::try_from(left).unwrap_or(usize::MAX));
        let have = self.window_at + self.window.len() as u64;
        if self.at < self.window_at || self.at + wanted as u64 > have {
            let len = (wanted.max(SCRUB_READ_BYTES) as u64).min(left);
            let mut window = std::mem::take(&mut self.window);
            window.resize(usize::try_from(len).unwrap_or(wanted), 0);
            self.scrub.read(self.file, self.at, &mut window)?;
            (self.window, self.window_at) = (window, self.at);
        }
        let from = usize::try_from(self.at - self.window_at).unwrap_or(usize::MAX);
        Ok(self.window.get(from..).and_then(|b| b.get(..wanted)).unwrap_or_default())
    }

    fn wrong(&self, what: &str) -> Stop {
        Stop::Fault { offset: self.at, fault: ReadFault::Wrong(what.to_owned()) }
    }
}
