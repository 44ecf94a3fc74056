//! The log's files: `mainlog` and `events.jsonl`, written by one thread.

#![allow(clippy::disallowed_methods, reason = "the log's own files are opened here, and only here")]

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use metrics::counter;
use ppsw_spool::env::Clock;
use tokio::sync::mpsc;
use tracing::error;

use super::{
    event::{Event, JsonLine, Record},
    line::main_line,
};
use crate::{
    limits::{LOG_GATHER_TIME, LOG_REOPEN_INTERVAL},
    message::date::Stamps,
};

/// What the writer shares with those who log.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// Open the files anew (SIGHUP).
    pub(super) reopen: AtomicBool,
    /// Events that found the queue full.
    pub(super) lost: AtomicU64,
}

/// What the writer is given. Not boxed: almost all entries are events.
#[allow(clippy::large_enum_variant, reason = "the other variant comes once")]
pub(super) enum Entry {
    Event(Record),
    /// The node stops: write what came before, and end.
    End,
}

pub(super) struct Writer {
    pub(super) node: u64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) events: mpsc::Receiver<Entry>,
    pub(super) signals: Arc<Signals>,
    pub(super) main: LogFile,
    pub(super) json: LogFile,
    pub(super) stamps: Stamps,
}

impl Writer {
    /// Writes until it is told to end, or the last sender is gone.
    pub(super) fn run(mut self) {
        let mut checked = self.clock.instant();
        let (mut ended, mut full) = (false, false);
        while !ended && let Some(first) = self.events.blocking_recv() {
            let (mut main, mut json) = (String::new(), Vec::new());
            // The end is not waited for: nothing comes behind it.
            if !full && matches!(first, Entry::Event(_)) {
                std::thread::sleep(LOG_GATHER_TIME);
            }
            let mut next = Some(first);
            while let Some(entry) = next {
                match entry {
                    Entry::Event(record) => self.render(&record, &mut main, &mut json),
                    Entry::End => ended = true,
                }
                full = main.len() > 1 << 16;
                next = if ended || full { None } else { self.events.try_recv().ok() };
            }
            let lost = self.signals.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let event = Event::Lost { count: lost };
                let record = Record { time: self.clock.now(), event };
                self.render(&record, &mut main, &mut json);
            }
            self.reopen(&mut checked);
            self.main.append(main.as_bytes());
            self.json.append(&json);
        }
    }

    fn render(&mut self, record: &Record, main: &mut String, json: &mut Vec<u8>) {
        let Record { time, event } = record;
        main.push_str(&self.stamps.log_time(*time));
        main.push(' ');
        main_line(main, event);
        main.push('\n');
        let start = json.len();
        let line = JsonLine { time: &self.stamps.rfc3339(*time), node: self.node, event };
        if serde_json::to_writer(&mut *json, &line).is_err() {
            json.truncate(start);
        } else {
            json.push(b'\n');
        }
    }

    fn reopen(&mut self, checked: &mut Instant) {
        let asked = self.signals.reopen.swap(false, Ordering::Relaxed);
        let now = self.clock.instant();
        if asked || now.saturating_duration_since(*checked) >= LOG_REOPEN_INTERVAL {
            *checked = now;
            self.main.follow();
            self.json.follow();
        }
    }
}

/// A file that is only appended to, found again when its name leads elsewhere.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    /// `None`: its disk did not let it be opened. It is tried again from time to time.
    open: Option<Open>,
    /// The last write failed; said once.
    failing: bool,
    /// The file ends within a line: a disk that became full took only part of it.
    torn: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: (u64, u64),
}

impl LogFile {
    /// Opens or makes a log file. One whose disk is in trouble is opened later: no reason not to take mail.
    ///
    /// # Errors
    /// What an operator has set wrong: a directory that is missing, or not ours.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut this = Self { path: path.to_owned(), open: None, failing: false, torn: false };
        match Open::new(path) {
            Ok(open) => this.open = Some(open),
            Err(why) if is_trouble(&why) => this.complain(&why),
            Err(why) => return Err(why),
        }
        Ok(this)
    }

    /// Opens the file anew if it was renamed or removed, or could not be opened.
    fn follow(&mut self) {
        let there = std::fs::metadata(&self.path).map(|m| inode(&m)).ok();
        if there.is_some() && there == self.open.as_ref().map(|open| open.inode) {
            return;
        }
        match Open::new(&self.path) {
            Ok(open) => {
                self.open = Some(open);
                self.torn = false;
            }
            Err(why) => self.complain(&why),
        }
    }

    /// A log that cannot be written must not stop mail: the loss is counted, and said once.
    fn append(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let Some(open) = &mut self.open else {
            counter!("ppsw_maillog_errors_total").increment(1);
            return;
        };
        match write(&mut open.file, self.torn, bytes) {
            Ok(()) => (self.failing, self.torn) = (false, false),
            Err((written, why)) => {
                self.torn |= written;
                counter!("ppsw_maillog_errors_total").increment(1);
                self.complain(&why);
            }
        }
    }

    fn complain(&mut self, why: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            error!(path = %self.path.display(), "cannot write the log, mail goes on without: {why}");
        }
    }
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let inode = inode(&file.metadata()?);
        Ok(Self { file, inode })
    }
}

/// Writes all, on a new line if the file ends within one. With an error: whether something was written before it.
fn write(file: &mut File, torn: bool, bytes: &[u8]) -> Result<(), (bool, io::Error)> {
    let mut written = false;
    let pieces = if torn { [b"\n".as_slice(), bytes] } else { [b"".as_slice(), bytes] };
    for mut rest in pieces {
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(some) => {
                    written = true;
                    rest = &rest[some..];
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err((written, why)),
            }
        }
    }
    Ok(())
}

/// Whether an error is a disk's, not an operator's.
fn is_trouble(why: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied};
    !matches!(why.kind(), NotFound | PermissionDenied | io::ErrorKind::IsADirectory)
}

fn inode(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
