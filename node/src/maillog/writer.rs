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
    event::{Event, Record},
    line::main_line,
    record,
};
use crate::limits::LOG_REOPEN_INTERVAL;

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
}

impl Writer {
    /// Writes until it is told to end, or the last sender is gone.
    pub(super) fn run(mut self) {
        let mut checked = self.clock.instant();
        let mut ended = false;
        while !ended && let Some(first) = self.events.blocking_recv() {
            let (mut main, mut json) = (String::new(), Vec::new());
            let mut next = Some(first);
            while let Some(entry) = next {
                match entry {
                    Entry::Event(event) => render(&event, &mut main, &mut json),
                    Entry::End => ended = true,
                }
                next =
                    if ended || main.len() > 1 << 16 { None } else { self.events.try_recv().ok() };
            }
            let lost = self.signals.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let event = Event::Lost { count: lost };
                render(&record(&*self.clock, self.node, event), &mut main, &mut json);
            }
            self.reopen(&mut checked);
            self.main.append(main.as_bytes());
            self.json.append(&json);
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

fn render(record: &Record, main: &mut String, json: &mut Vec<u8>) {
    main.push_str(&main_line(record));
    main.push('\n');
    let start = json.len();
    if serde_json::to_writer(&mut *json, record).is_err() {
        json.truncate(start);
    } else {
        json.push(b'\n');
    }
}

/// A file that is only appended to, found again when its name leads elsewhere.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    inode: (u64, u64),
    failing: bool,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let inode = inode(&file.metadata()?);
        Ok(Self { path: path.to_owned(), file, inode, failing: false })
    }

    /// Opens the file anew if it was renamed or removed.
    fn follow(&mut self) {
        let there = std::fs::metadata(&self.path).map(|m| inode(&m)).ok();
        if there == Some(self.inode) {
            return;
        }
        match Self::open(&self.path) {
            Ok(new) => *self = new,
            Err(why) => error!(path = %self.path.display(), "cannot open the log anew: {why}"),
        }
    }

    /// A log that cannot be written must not stop mail: the loss is counted, and said once.
    fn append(&mut self, bytes: &[u8]) {
        match self.file.write_all(bytes) {
            Ok(()) => self.failing = false,
            Err(why) => {
                counter!("ppsw_maillog_errors_total").increment(1);
                if !std::mem::replace(&mut self.failing, true) {
                    error!(path = %self.path.display(), "cannot write the log: {why}");
                }
            }
        }
    }
}

fn inode(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
