//! Tests of the whole log: on the machine's disk here, on a simulated one in the modules.

#![allow(clippy::disallowed_methods, reason = "a test waits for threads of its own")]

mod damage;
mod full;
mod golden;
mod history;
mod model;
mod reading;
mod rot;
mod scrubbing;
mod sidecars;

use std::sync::mpsc;

use super::*;
use crate::env::{Clock as _, SystemClock, SystemDisk};

pub(super) fn entry(term: u64, index: u64, payload: impl Into<Bytes>) -> Entry {
    Entry { position: Position { term, index }, payload: payload.into() }
}

/// Calls, and waits for `done`.
pub(super) fn wait(call: impl FnOnce(Done)) -> Result<(), LogError> {
    let (tell, told) = mpsc::channel();
    call(Box::new(move |result| {
        let _ = tell.send(result);
    }));
    told.recv().expect("done is always called")
}

/// Waits until the spare is there: from then on only the writer uses the disk, until it has taken it.
pub(super) fn settle(log: &Log) {
    let begun = SystemClock.instant();
    while !log.inner.shared.disk_space.has_spare() {
        assert!((SystemClock.instant() - begun).as_secs() < 30, "no spare was made");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn options(dir: &std::path::Path) -> Options {
    Options { dir: dir.join("log"), segment_bytes: 64 * 1024, cache_bytes: 16 * 1024 }
}

fn open(dir: &std::path::Path) -> Log {
    Log::open(Arc::new(SystemDisk), options(dir)).unwrap()
}

#[test]
fn everything_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    assert_eq!(log.state(1).last, None);
    wait(|done| log.save_vote(1, Bytes::from_static(b"vote"), done)).unwrap();
    wait(|done| log.save_checkpoint(2, Bytes::from_static(b"point"), done)).unwrap();
    let entries: Vec<Entry> = (0..50).map(|i| entry(1, i, vec![7; 5000])).collect();
    wait(|done| log.append(1, entries.clone(), done)).unwrap();
    wait(|done| log.append(2, vec![entry(3, 0, "x")], done)).unwrap();
    wait(|done| log.truncate_after(1, Some(Position { term: 1, index: 39 }), done)).unwrap();
    wait(|done| log.purge(1, Position { term: 1, index: 19 }, done)).unwrap();
    let check = |log: &Log| {
        assert_eq!(log.groups(), [1, 2]);
        let state = log.state(1);
        assert_eq!(state.vote.as_deref(), Some(&b"vote"[..]));
        assert_eq!(state.purged, Some(Position { term: 1, index: 19 }));
        assert_eq!(state.last, Some(Position { term: 1, index: 39 }));
        assert_eq!(log.state(2).checkpoint.as_deref(), Some(&b"point"[..]));
        assert_eq!(log.read(1, 20..40, usize::MAX).unwrap(), entries[20..40]);
        assert_eq!(log.read(1, 20..40, 1).unwrap().len(), 1);
        assert!(matches!(log.read(1, 19..20, 1), Err(LogError::Missing { index: 19, .. })));
        assert!(matches!(log.read(1, 39..41, 999_999), Err(LogError::Missing { index: 40, .. })));
        assert_eq!(log.read(2, 0..1, 1).unwrap(), [entry(3, 0, "x")]);
    };
    check(&log);
    drop(log);
    check(&open(dir.path()));
}
