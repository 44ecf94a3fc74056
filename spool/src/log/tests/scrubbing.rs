//! The scrub: it finds every damaged byte that counts, and no other.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{
    super::{
        scrub::{Scrub, Stop},
        scrub_date::{Basis, ScrubDate},
        segment::Image,
        *,
    },
    entry, wait,
};
use crate::env::sim::{Lies, SimDisk};
use crate::{
    env::{Clock, SystemClock, UnixMs},
    limits::{SCRUB_PERIOD, SCRUB_START_SPREAD},
};

/// The day that it is told to be.
#[derive(Default)]
struct Day(AtomicU64);

impl Clock for Day {
    fn now(&self) -> UnixMs {
        UnixMs(self.0.load(Ordering::SeqCst))
    }
    fn instant(&self) -> Instant {
        SystemClock.instant()
    }
}

fn open(disk: &SimDisk) -> Log {
    let options = Options { dir: PathBuf::from("/log"), segment_bytes: 4096, cache_bytes: 0 };
    Log::open(Arc::new(disk.clone()), options).unwrap()
}

fn scrub(log: &Log) -> Scrub {
    Scrub {
        shared: Arc::clone(&log.inner.shared),
        clock: Arc::new(SystemClock),
        period: SCRUB_PERIOD,
        bytes_per_second: u64::MAX,
    }
}

fn append(log: &Log, index: u64, bytes: usize) {
    wait(|done| log.append(1, vec![entry(1, index, vec![0xa5; bytes])], done)).unwrap();
}

/// A log of several segments, and where in each the bytes end that count.
fn written(disk: &SimDisk) -> (Log, Vec<(PathBuf, usize)>) {
    let log = open(disk);
    for index in 0..20 {
        append(&log, index, 600);
        wait(|done| log.save_vote(1, vec![1; 9].into(), done)).unwrap();
    }
    let names = disk.list(Path::new("/log")).unwrap();
    let generations: Vec<u64> = names.iter().filter_map(|n| segment::generation_of(n)).collect();
    let ends = generations.iter().map(|&generation| {
        let image = Image::load(disk, Path::new("/log"), generation).unwrap();
        let scan = image.scan_last().unwrap().unwrap();
        let last = generations.last() == Some(&generation);
        (image.path, if last { scan.end } else { scan.end + record::HEADER })
    });
    let ends = ends.collect();
    (log, ends)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_flipped_bit_is_found(place in 0.0..1.0_f64, bit in 0..8_u8) {
        let disk = SimDisk::new(1, Lies::default());
        let (log, ends) = written(&disk);
        prop_assert!(ends.len() > 3);
        let scrub = scrub(&log);
        let segments: Vec<u64> = (1..=ends.len() as u64).collect();
        for generation in &segments {
            prop_assert!(scrub.check(&scrub.subject(*generation).unwrap().unwrap()).is_ok());
        }
        let all: usize = ends.iter().map(|(_, end)| end).sum();
        let mut at = (place * all as f64) as usize;
        for (path, end) in ends {
            if at < end {
                disk.flip(&path, at, bit);
                break;
            }
            at -= end;
        }
        let found = segments.iter().any(|generation| {
            let subject = scrub.subject(*generation).unwrap().unwrap();
            matches!(scrub.check(&subject), Err(Stop::Fault { .. }))
        });
        prop_assert!(found, "bit {bit} at {at}");
    }
}

#[test]
fn damage_ends_the_log_with_its_place() {
    let disk = SimDisk::new(1, Lies::default());
    let (log, ends) = written(&disk);
    let scrub = scrub(&log);
    scrub.pass().unwrap();
    disk.flip(&ends[1].0, ends[1].1 / 2, 5);
    assert!(matches!(scrub.pass(), Err(Stop::Ended)));
    let Some(LogError::Damaged { file, offset, .. }) = log.failure() else { panic!() };
    assert_eq!(Path::new(&file), ends[1].0);
    assert!(offset <= ends[1].1 as u64 / 2 && offset > 0, "{offset}");
    drop(log);
    let options = Options { dir: PathBuf::from("/log"), segment_bytes: 4096, cache_bytes: 0 };
    let again = Log::open(Arc::new(disk.next_life()), options);
    assert!(matches!(again.map(drop), Err(LogError::Damaged { .. })));
}

#[test]
fn an_older_copy_of_a_segment_is_damage() {
    let disk = SimDisk::new(1, Lies::default());
    let log = open(&disk);
    append(&log, 0, 100);
    let path = Path::new("/log").join(segment::name(1));
    let before = disk.content(&path);
    append(&log, 1, 100);
    scrub(&log).pass().unwrap();
    disk.replace(&path, &before);
    assert!(matches!(scrub(&log).pass(), Err(Stop::Ended)));
}

/// What is behind the end is nobody's: a torn flush, an older use of the file.
#[test]
fn bytes_behind_the_end_do_not_count() {
    let disk = SimDisk::new(1, Lies::default());
    let (log, ends) = written(&disk);
    let (path, end) = ends.last().unwrap();
    disk.flip(path, *end, 1);
    scrub(&log).pass().unwrap();
}

#[test]
fn segments_that_are_recycled_meanwhile_are_no_damage() {
    let disk = SimDisk::new(1, Lies::default());
    let log = open(&disk);
    let scrub = scrub(&log);
    let passes = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for index in 0..3000 {
                append(&log, index, 700);
                if index % 8 == 7 {
                    let upto = Position { term: 1, index: index - 2 };
                    wait(|done| log.purge(1, upto, done)).unwrap();
                }
            }
        });
        let mut passes = 0;
        while !writer.is_finished() {
            scrub.pass().unwrap();
            passes += 1;
        }
        passes
    });
    assert!(passes > 20 && !log.has_ended(), "{passes}");
}

#[test]
fn the_thread_begins_when_asked_and_the_date_survives() {
    let disk = SimDisk::new(1, Lies::default());
    let (log, _) = written(&disk);
    let day = Arc::new(Day(AtomicU64::new(1_000_000_000)));
    log.start_scrub(Arc::clone(&day) as _, SCRUB_PERIOD).unwrap();
    log.scrub_now();
    let begun = SystemClock.instant();
    while log.scrub_status().completed.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(log.scrub_status().completed, Some(day.now()));
    // Written just before.
    let date = ScrubDate::read(&disk, Path::new("/log")).unwrap();
    assert_eq!(date, ScrubDate { basis: Basis::Completed, at: day.now() });
    drop(log);

    let log = open(&disk.next_life());
    let scrub = Scrub { clock: day, ..scrub(&log) };
    assert_eq!(scrub.first_date(), date);
    assert_eq!(log.scrub_status().completed, Some(date.at));
}

#[test]
fn the_first_period_counts_from_a_random_day_and_not_anew_at_each_start() {
    let disk = SimDisk::new(1, Lies::default());
    let (log, _) = written(&disk);
    let now = UnixMs(SCRUB_PERIOD.as_millis() as u64 * 100);
    let day = Arc::new(Day(AtomicU64::new(now.0)));
    let scrub = Scrub { clock: Arc::clone(&day) as _, ..scrub(&log) };
    let first = scrub.first_date();
    assert_eq!(first.basis, Basis::Begun);
    assert!(first.at <= now && first.at.plus(SCRUB_PERIOD) >= now, "{first:?}");
    day.0.fetch_add(1000, Ordering::SeqCst);
    assert_eq!(scrub.first_date(), first);
    // A date in the future is a clock that was wrong.
    ScrubDate { basis: Basis::Completed, at: now.plus(SCRUB_PERIOD) }
        .write(&disk, Path::new("/log"))
        .unwrap();
    assert_eq!(scrub.first_date().basis, Basis::Begun);
    // Overdue by far: not at once, all nodes may be starting.
    let due = scrub.due(ScrubDate { basis: Basis::Begun, at: UnixMs(0) });
    assert!(due >= day.now() && due <= day.now().plus(SCRUB_START_SPREAD), "{due:?}");
    assert_eq!(scrub.due(ScrubDate { basis: Basis::Begun, at: now }), now.plus(SCRUB_PERIOD));
}
