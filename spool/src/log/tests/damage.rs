//! Damage and failure, one case each.

#![allow(clippy::disallowed_methods, reason = "a test waits for threads of its own")]

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;

use super::{
    super::{segment::Image, *},
    entry,
    model::Model,
    settle, wait,
};
use crate::{
    env::{
        Clock as _, SystemClock,
        sim::{Lies, SimDisk, Trouble},
    },
    limits::{LOG_FREE_SEGMENTS_MIN, SPACE_POLL},
};

const SEGMENT: u64 = 4096;

fn options() -> Options {
    Options { dir: PathBuf::from("/log"), segment_bytes: SEGMENT, cache_bytes: 0 }
}

fn open(disk: &SimDisk) -> Result<Log, LogError> {
    Log::open(Arc::new(disk.clone()), options())
}

fn disk() -> SimDisk {
    SimDisk::new(1, Lies::default())
}

fn position(index: u64) -> Position {
    Position { term: 1, index }
}

fn append(log: &Log, group: GroupId, index: u64, bytes: usize) -> Result<(), LogError> {
    wait(|done| log.append(group, vec![entry(1, index, vec![0xa5; bytes])], done))
}

/// A log of several segments, two groups, votes and purges, closed in order.
fn written(disk: &SimDisk) -> Model {
    let log = open(disk).unwrap();
    for i in 0..30 {
        append(&log, 1, i, 700).unwrap();
        append(&log, 2, i, 50).unwrap();
        wait(|done| log.save_vote(1, vec![1; 9].into(), done)).unwrap();
    }
    wait(|done| log.purge(1, position(12), done)).unwrap();
    wait(|done| log.purge(2, position(14), done)).unwrap();
    append(&log, 1, 30, 100).unwrap();
    Model::of(&log).unwrap()
}

fn segments(disk: &SimDisk) -> Vec<u64> {
    let names = disk.list(Path::new("/log")).unwrap();
    names.iter().filter_map(|name| segment::generation_of(name)).collect()
}

/// Where each segment's records end: its seal included, for the last up to the marker that confirms.
fn ends(disk: &SimDisk) -> Vec<(PathBuf, usize)> {
    let all = segments(disk);
    all.iter()
        .map(|&generation| {
            let image = Image::load(disk, Path::new("/log"), generation).unwrap();
            let scan = image.scan_last().unwrap().unwrap();
            let last = all.last() == Some(&generation);
            (image.path, if last { scan.last_flush } else { scan.end + record::HEADER })
        })
        .collect()
}

fn remove_sidecars(disk: &SimDisk) {
    for name in disk.list(Path::new("/log")).unwrap() {
        if sidecar::generation_of(&name).is_some() {
            disk.remove(&Path::new("/log").join(name)).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_is_damage(place in 0.0..1.0_f64, bit in 0..8_u8) {
        let disk = disk();
        let model = written(&disk);
        let ends = ends(&disk);
        prop_assert!(ends.len() > 2);
        let all: usize = ends.iter().map(|(_, end)| end).sum();
        let mut at = (place * all as f64) as usize;
        for (path, end) in ends {
            if at < end {
                disk.flip(&path, at, bit);
                break;
            }
            at -= end;
        }
        // With the index files, what is damaged in an older segment is found when it is read.
        let outcome = open(&disk.next_life()).and_then(|log| Model::of(&log));
        match outcome {
            Ok(found) => prop_assert_eq!(found, model),
            Err(error) => prop_assert!(matches!(error, LogError::Damaged { .. }), "{error}"),
        }
        // Without them, everything is read.
        let disk = disk.next_life();
        remove_sidecars(&disk);
        let outcome = open(&disk);
        prop_assert!(matches!(outcome, Err(LogError::Damaged { .. })), "{:?}", outcome.err());
    }
}

#[test]
fn a_missing_segment_is_damage() {
    let disk = disk();
    let model = written(&disk);
    for generation in segments(&disk) {
        let path = Path::new("/log").join(segment::name(generation));
        let aside = Path::new("/log/aside");
        disk.rename(&path, aside).unwrap();
        assert!(matches!(open(&disk).map(drop), Err(LogError::Damaged { .. })), "{generation}");
        disk.rename(aside, &path).unwrap();
    }
    assert_eq!(Model::of(&open(&disk).unwrap()).unwrap(), model);
}

#[test]
fn damage_under_a_running_log_is_not_served() {
    let disk = disk();
    let log = open(&disk).unwrap();
    append(&log, 1, 0, 300).unwrap();
    assert_eq!(log.read(1, 0..1, 1).unwrap(), [entry(1, 0, vec![0xa5; 300])]);
    let path = Path::new("/log").join(segment::name(1));
    disk.flip(&path, 300, 3);
    assert!(matches!(log.read(1, 0..1, 1), Err(LogError::Damaged { .. })));
}

#[test]
fn a_failed_write_ends_the_log() {
    let disk = disk();
    let log = open(&disk).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let tell = || {
        let told = Arc::clone(&told);
        Box::new(move |_| {
            told.fetch_add(1, Ordering::SeqCst);
        })
    };
    log.on_failure(tell());
    settle(&log);
    disk.trouble(1, Trouble::Error);
    assert!(matches!(append(&log, 1, 0, 10), Err(LogError::Disk(_))));
    assert!(matches!(append(&log, 1, 0, 10), Err(LogError::Disk(_))));
    assert!(matches!(log.read(1, 0..1, 1), Err(LogError::Disk(_))));
    assert!(matches!(wait(|done| log.save_vote(1, Bytes::new(), done)), Err(LogError::Disk(_))));
    log.on_failure(tell());
    drop(log);
    assert_eq!(told.load(Ordering::SeqCst), 2);
}

/// A sync fails and leaves pages that the kernel calls clean, the process comes back and finds its records in
/// the page cache, and then the power goes: what was found must not have been a belief.
#[test]
fn what_a_failed_sync_left_in_the_cache_is_written_again() {
    for seed in 0..50 {
        let disk = SimDisk::new(seed, Lies::default());
        let log = open(&disk).unwrap();
        append(&log, 1, 0, 600).unwrap();
        settle(&log);
        disk.trouble(2, Trouble::Error);
        assert!(append(&log, 1, 1, 1500).is_err());
        drop(log);

        let disk = disk.next_life();
        let log = open(&disk).unwrap();
        let found = Model::of(&log).unwrap();
        disk.stop();
        drop(log);
        disk.power_cut();
        assert_eq!(Model::of(&open(&disk.next_life()).unwrap()).unwrap(), found, "seed {seed}");
    }
}

/// A power cut tears a flush in front of its marker; behind the end, nothing of it is left.
#[test]
fn a_torn_tail_is_zeroed() {
    let mut torn = 0;
    for seed in 0..50 {
        let disk = SimDisk::new(seed, Lies::default());
        let log = open(&disk).unwrap();
        append(&log, 1, 0, 600).unwrap();
        settle(&log);
        disk.trouble(2, Trouble::Stop);
        let entries = (1..4).map(|i| entry(1, i, vec![9; 800])).collect();
        assert!(wait(|done| log.append(1, entries, done)).is_err());
        drop(log);
        disk.power_cut();

        let disk = disk.next_life();
        let before = Image::load(&disk, Path::new("/log"), 1).unwrap();
        let end = before.scan_last().unwrap().unwrap().end;
        torn += usize::from(before.bytes[end..].iter().any(|&b| b != 0));
        open(&disk).unwrap();
        let after = Image::load(&disk, Path::new("/log"), 1).unwrap();
        // The confirmation at closing stands there now.
        assert!(after.bytes[end + record::MARKER..].iter().all(|&b| b == 0), "seed {seed}");
    }
    assert!(torn > 10, "{torn}");
}

#[test]
fn misuse_changes_nothing_and_harms_nobody() {
    let log = open(&disk()).unwrap();
    append(&log, 1, 0, 10).unwrap();
    assert!(matches!(append(&log, 1, 2, 10), Err(LogError::Misuse(_))));
    assert!(matches!(append(&log, 1, 0, 10), Err(LogError::Misuse(_))));
    assert!(matches!(append(&log, 1, 1, LOG_RECORD_BYTES_MAX + 1), Err(LogError::Misuse(_))));
    wait(|done| log.purge(1, position(5), done)).unwrap();
    let truncated = wait(|done| log.truncate_after(1, Some(position(4)), done));
    assert!(matches!(truncated, Err(LogError::Misuse(_))));
    assert!(matches!(append(&log, 1, 5, 10), Err(LogError::Misuse(_))));
    append(&log, 1, 6, 10).unwrap();
    assert_eq!(log.state(1).last, Some(position(6)));
}

#[test]
fn segments_are_recycled_and_few_are_kept() {
    let disk = disk();
    let log = open(&disk).unwrap();
    wait(|done| log.save_checkpoint(1, vec![9; 500].into(), done)).unwrap();
    let mut most = 0;
    for i in 0..200 {
        append(&log, 1, i, 700).unwrap();
        let names = disk.list(Path::new("/log")).unwrap();
        let files = names.iter().filter(|name| name.ends_with(".seg") || name.ends_with(".free"));
        most = most.max(files.count());
        if i % 40 == 39 {
            wait(|done| log.purge(1, position(i - 1), done)).unwrap();
        }
    }
    assert!(most < 24, "{most} files for what fills 10 at a time: they are not used again");
    wait(|done| log.save_vote(1, Bytes::new(), done)).unwrap();
    let free = || {
        let names = disk.list(Path::new("/log")).unwrap();
        names.iter().filter(|name| segment::free_generation_of(name).is_some()).count()
    };
    // All files may stay that the log may have; then the last of those that wait, one after the other, down to a few.
    let settles = |kept: usize| {
        let begun = SystemClock.instant();
        while free() != kept {
            let late = (SystemClock.instant() - begun).as_secs() >= 30;
            assert!(!late, "{} files are kept, not {kept}", free());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(2 * SPACE_POLL);
        assert_eq!(free(), kept);
    };
    // The flush is acknowledged a moment before the files are put away.
    std::thread::sleep(SPACE_POLL);
    let all = free();
    assert!(all > LOG_FREE_SEGMENTS_MIN + 2, "{all}");
    settles(all);
    // Two more than are kept in any case.
    log.keep_files(log.usage().bytes + 2 * SEGMENT);
    settles(LOG_FREE_SEGMENTS_MIN + 2);
    log.keep_files(0);
    settles(LOG_FREE_SEGMENTS_MIN);
    drop(log);
    let log = open(&disk).unwrap();
    assert_eq!(free(), LOG_FREE_SEGMENTS_MIN);
    assert_eq!(log.state(1).checkpoint, Some(vec![9; 500].into()));
    assert_eq!(log.state(1).purged, Some(position(198)));
    assert_eq!(log.read(1, 199..200, 1).unwrap().len(), 1);
    assert!(log.usage().bytes <= 2 * SEGMENT + 2000);
}

#[test]
fn a_file_that_is_removed_gets_shorter_and_its_rest_goes_at_opening() {
    rest_goes_at_opening(false);
}

#[test]
fn a_file_that_is_removed_goes_at_opening_though_its_new_name_was_lost() {
    rest_goes_at_opening(true);
}

fn rest_goes_at_opening(loses_name: bool) {
    let disk = disk();
    let log = open(&disk).unwrap();
    for i in 0..100 {
        append(&log, 1, i, 700).unwrap();
    }
    wait(|done| log.purge(1, position(98), done)).unwrap();
    wait(|done| log.save_vote(1, Bytes::new(), done)).unwrap();
    let lengths = |disk: &SimDisk| -> Vec<u64> {
        let free = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "free");
        let files = disk.files().into_iter();
        files.filter(|(path, _)| free(path)).map(|(_, bytes)| bytes.len() as u64).collect()
    };
    log.keep_files(0);
    let begun = SystemClock.instant();
    let short = loop {
        assert!((SystemClock.instant() - begun).as_secs() < 30, "no file gets shorter");
        let lengths = lengths(&disk);
        if lengths.iter().any(|length| (1..SEGMENT / 2).contains(length)) {
            break lengths;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    assert_eq!(short.iter().filter(|length| **length < SEGMENT).count(), 1, "{short:?}");
    disk.stop();
    drop(log);
    let disk = disk.next_life();
    if loses_name {
        let is_short = |(path, bytes): (PathBuf, Vec<u8>)| {
            let free = path.extension().is_some_and(|extension| extension == "free");
            (free && (bytes.len() as u64) < SEGMENT).then_some(path)
        };
        let path = disk.files().into_iter().find_map(is_short).unwrap();
        disk.rename(&path, &path.with_extension("seg")).unwrap();
    }
    let log = open(&disk).unwrap();
    assert_eq!(lengths(&disk), vec![SEGMENT; short.len() - 1]);
    assert_eq!(log.read(1, 99..100, 1).unwrap().len(), 1);
}

#[test]
fn a_record_longer_than_a_segment_has_a_segment_of_its_size() {
    let disk = disk();
    let log = open(&disk).unwrap();
    append(&log, 1, 0, LOG_RECORD_BYTES_MAX).unwrap();
    append(&log, 1, 1, 10).unwrap();
    wait(|done| log.save_checkpoint(2, vec![3; 100_000].into(), done)).unwrap();
    append(&log, 1, 2, LOG_RECORD_BYTES_MAX).unwrap();
    let model = Model::of(&log).unwrap();
    drop(log);
    assert_eq!(Model::of(&open(&disk).unwrap()).unwrap(), model);
}

#[tokio::test]
async fn room_comes_back_when_the_writer_has_taken_what_waits() {
    let log = open(&disk()).unwrap();
    for i in 0..20 {
        log.room().await;
        let done = Box::new(|result: Result<(), LogError>| assert!(result.is_ok()));
        log.append(1, vec![entry(1, i, vec![0; LOG_RECORD_BYTES_MAX])], done);
    }
    wait(|done| log.append(1, Vec::new(), done)).unwrap();
    assert_eq!(log.state(1).last, Some(position(19)));
}
