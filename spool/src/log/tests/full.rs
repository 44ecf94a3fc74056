//! Full disks: nothing that was acknowledged is lost, nothing is acknowledged that is not there, and the log goes on
//! when there is space.

#![allow(clippy::disallowed_methods, reason = "a test waits for threads of its own")]

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use super::{super::*, entry, model::Model, settle, wait};
use crate::{
    env::{
        Clock as _, SystemClock,
        sim::{Lies, SimDisk, Trouble},
    },
    limits::LOG_QUEUE_RECORDS_HARD,
};

const SEGMENT: u64 = 4096;
/// Far more than any of this takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn open(disk: &SimDisk) -> Result<Log, LogError> {
    let dir = PathBuf::from("/log");
    Log::open(Arc::new(disk.clone()), Options { dir, segment_bytes: SEGMENT, cache_bytes: 0 })
}

fn position(index: u64) -> Position {
    Position { term: 1, index }
}

fn append(log: &Log, index: u64, bytes: usize) -> Result<(), LogError> {
    wait(|done| log.append(1, vec![entry(1, index, vec![0xa5; bytes])], done))
}

/// Appends without waiting for it.
fn append_later(log: &Log, index: u64, bytes: usize) -> mpsc::Receiver<Result<(), LogError>> {
    let (tell, told) = mpsc::channel();
    let done: Done = Box::new(move |result| tell.send(result).unwrap());
    log.append(1, vec![entry(1, index, vec![0xa5; bytes])], done);
    told
}

/// A disk without space for another segment, and a log on it whose next entry of 1000 bytes, the fourth, needs one.
fn filled() -> (SimDisk, Log) {
    let disk = SimDisk::new(1, Lies::default());
    disk.limit(SEGMENT);
    let log = open(&disk).unwrap();
    for i in 0..3 {
        append(&log, i, 1000).unwrap();
    }
    (disk, log)
}

fn until(what: &str, mut question: impl FnMut() -> bool) {
    let start = SystemClock.instant();
    while !question() {
        assert!(SystemClock.instant() - start < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Some of everything, over several segments that come and go.
fn work(disk: &SimDisk) -> Result<(), LogError> {
    let log = open(disk)?;
    for i in 0..24 {
        append(&log, i, 800)?;
        if i % 8 == 7 {
            wait(|done| log.save_vote(1, vec![7; 9].into(), done))?;
            wait(|done| log.purge(1, position(i - 3), done))?;
        }
    }
    Ok(())
}

#[test]
fn a_disk_that_is_full_at_any_operation_delays_and_loses_nothing() {
    let well = SimDisk::new(1, Lies::default());
    work(&well).unwrap();
    let expected = Model::of(&open(&well).unwrap()).unwrap();
    let (mut met, mut ended) = (0, 0);
    for at in 1.. {
        let disk = SimDisk::new(at, Lies::default());
        disk.trouble(at, Trouble::Full(2));
        let done = work(&disk);
        let hit = disk.met_full() > 0;
        match done {
            Ok(()) => {
                let found = Model::of(&open(&disk.next_life()).unwrap()).unwrap();
                assert_eq!(found, expected, "full at operation {at}");
            }
            // Only a sync that fails may end the log. It is opened again as after a crash.
            Err(LogError::Disk(why)) if why.starts_with("syncing") => {
                ended += 1;
                Model::of(&open(&disk.next_life()).unwrap()).unwrap();
            }
            Err(error) => panic!("full at operation {at}: {error}"),
        }
        met += u32::from(hit);
        if !hit {
            break;
        }
    }
    assert!(met > 60, "only {met} operations were tried");
    assert!(ended > 20, "only {ended} syncs were tried");
}

#[test]
fn a_full_disk_keeps_a_reserve_and_what_frees_space_gets_through() {
    let disk = SimDisk::new(1, Lies::default());
    let log = open(&disk).unwrap();
    settle(&log);
    assert!(!log.space().short && log.takes_entries());
    disk.limit(2 * SEGMENT);
    // The rest of the first segment, and most of the spare.
    let mut next = 0;
    while log.takes_entries() {
        append(&log, next, 300).unwrap();
        next += 1;
        let names = disk.list(Path::new("/log")).unwrap();
        if !names.iter().any(|name| name.ends_with(".spare")) {
            until("the log to be short", || log.space().short);
        }
    }
    assert!(next > 14, "{next} entries in two segments of {SEGMENT} bytes");
    assert_eq!(log.space().headroom(), 0);
    // A purge still fits. What needs another segment gets the one that is free then.
    wait(|done| log.purge(1, position(next - 1), done)).unwrap();
    let told = append_later(&log, next, 1500);
    told.recv_timeout(PATIENCE).unwrap().unwrap();
    until("the log not to be short", || !log.space().short && log.takes_entries());
    drop(log);
    let log = open(&disk.next_life()).unwrap();
    assert_eq!(log.state(1).last, Some(position(next)));
}

#[test]
fn a_log_without_any_space_waits_for_it_and_recovers_by_itself() {
    let (disk, log) = filled();
    let told = append_later(&log, 3, 1000);
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "acknowledged without space");
    assert!(log.space().short);
    disk.limit(4 * SEGMENT);
    told.recv_timeout(PATIENCE).unwrap().unwrap();
    drop(log);

    // A log that is closed while it waits fails what waits, and what was acknowledged is there.
    let disk = disk.next_life();
    let log = open(&disk).unwrap();
    disk.limit(0);
    let told: Vec<_> = (4..16).map(|i| append_later(&log, i, 1000)).collect();
    until("a wait for space", || disk.met_full() > 2);
    drop(log);
    let results: Vec<_> = told.iter().map(|told| told.recv().unwrap()).collect();
    let good = results.iter().take_while(|result| result.is_ok()).count() as u64;
    assert!(matches!(results.last(), Some(Err(LogError::NoSpace(_)))), "{results:?}");
    let log = open(&disk.next_life()).unwrap();
    assert_eq!(log.state(1).last, Some(position(3 + good)));
}

#[test]
fn who_appends_without_asking_waits_while_the_queue_is_full() {
    let (disk, log) = filled();
    // The writer waits for space.
    let told = append_later(&log, 3, 1000);
    let (tell, ended) = mpsc::channel();
    let many = log.clone();
    let thread = std::thread::spawn(move || {
        // Nothing of them goes to the disk.
        for _ in 0..=LOG_QUEUE_RECORDS_HARD {
            many.truncate_after(2, None, Box::new(|_| ()));
        }
        tell.send(()).unwrap();
    });
    until("the queue to be full", || log.inner.shared.lock().crowded);
    assert!(ended.try_recv().is_err(), "more than the bound was taken");
    disk.limit(4 * SEGMENT);
    ended.recv_timeout(PATIENCE).unwrap();
    told.recv_timeout(PATIENCE).unwrap().unwrap();
    thread.join().unwrap();
}

#[test]
fn a_full_disk_delays_opening_and_does_not_end_it() {
    let disk = SimDisk::new(1, Lies::default());
    disk.limit(SEGMENT - 1);
    let opening = std::thread::spawn({
        let disk = disk.clone();
        move || open(&disk).unwrap()
    });
    until("attempts to open", || disk.met_full() > 2);
    assert!(!opening.is_finished());
    disk.limit(SEGMENT);
    append(&opening.join().unwrap(), 0, 10).unwrap();
}

#[test]
fn low_is_what_the_limits_say() {
    let disk = SimDisk::new(1, Lies::default());
    disk.limit(100 * SEGMENT);
    let log = open(&disk).unwrap();
    until("a measurement", || log.space().headroom() <= 98 * SEGMENT);
    log.limit_space(SpaceLimits { bytes: 90 * SEGMENT, inodes: 1 });
    // The log's number takes some bytes, too.
    let headroom = log.space().headroom();
    assert!((8 * SEGMENT - 100..=8 * SEGMENT).contains(&headroom), "{headroom}");
    disk.limit(91 * SEGMENT);
    until("the disk to be low", || log.space().headroom() == 0);
    assert!(!log.space().short && log.takes_entries(), "low is not short");
    assert_eq!(Space { free_inodes: 0, ..log.space() }.headroom(), 0);
}
