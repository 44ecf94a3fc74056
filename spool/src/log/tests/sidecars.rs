//! The index files beside segments: opening reads them instead, and nothing depends on them.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::{
    super::{segment::Image, *},
    entry,
    model::Model,
    wait,
};
use crate::env::sim::{Lies, SimDisk};

fn dir() -> &'static Path {
    Path::new("/log")
}

fn open(disk: &SimDisk) -> Result<Log, LogError> {
    let options = Options { dir: dir().to_path_buf(), segment_bytes: 4096, cache_bytes: 0 };
    Log::open(Arc::new(disk.clone()), options)
}

/// A log of some segments with every kind of record.
fn written(disk: &SimDisk) -> Model {
    let log = open(disk).unwrap();
    let append = |group, term, index, bytes: usize| {
        wait(|done| log.append(group, vec![entry(term, index, vec![7; bytes])], done)).unwrap();
    };
    for i in 0..25 {
        append(1, 1, i, 600);
        append(2, 1, i, 60);
        wait(|done| log.save_vote(2, vec![i as u8; 9].into(), done)).unwrap();
    }
    wait(|done| log.save_checkpoint(1, vec![9; 300].into(), done)).unwrap();
    wait(|done| log.truncate_after(1, Some(Position { term: 1, index: 19 }), done)).unwrap();
    wait(|done| log.purge(2, Position { term: 1, index: 7 }, done)).unwrap();
    append(3, 5, 40, 100);
    wait(|done| log.forget(3, done)).unwrap();
    for i in 20..35 {
        append(1, 2, i, 900);
    }
    // Frees the oldest segment.
    wait(|done| log.purge(1, Position { term: 1, index: 5 }, done)).unwrap();
    append(1, 2, 35, 900);
    append(1, 2, 36, 900);
    Model::of(&log).unwrap()
}

fn sidecars(disk: &SimDisk) -> Vec<u64> {
    let names = disk.list(dir()).unwrap();
    names.iter().filter_map(|name| sidecar::generation_of(name)).collect()
}

fn path(generation: u64) -> PathBuf {
    dir().join(sidecar::name(generation))
}

fn segments(disk: &SimDisk) -> Vec<u64> {
    let names = disk.list(dir()).unwrap();
    names.iter().filter_map(|name| segment::generation_of(name)).collect()
}

#[test]
fn each_sealed_segment_has_a_true_index() {
    let disk = SimDisk::new(1, Lies::default());
    written(&disk);
    let mut all = segments(&disk);
    assert!(all[0] > 1, "one has been released");
    all.pop();
    assert!(all.len() > 3);
    assert_eq!(sidecars(&disk), all, "and no other file has one");
    for generation in all {
        let scan = Image::load(&disk, dir(), generation).unwrap().scan_last().unwrap().unwrap();
        let (_, known) = sidecar::closed(&disk, dir(), generation, scan.end as u64).unwrap();
        assert_eq!((known.stamp, known.end, known.sealed), (scan.stamp, scan.end, true));
        let records = |scan: &segment::Scan| -> Vec<_> {
            scan.records.iter().map(|f| (f.parsed, f.offset, f.payload.clone())).collect()
        };
        assert_eq!(records(&known), records(&scan));
    }
}

#[test]
fn opening_does_not_read_the_bodies_of_sealed_segments() {
    let disk = SimDisk::new(1, Lies::default());
    written(&disk);
    let log = open(&disk).unwrap();
    let Some(Place::Disk { slot, .. }) = log.inner.shared.lock().index.locate(1, 10) else {
        panic!("entry 10 is on the disk");
    };
    drop(log);
    let segment = dir().join(segment::name(slot.generation));
    disk.flip(&segment, slot.offset as usize + 100, 0);
    let log = open(&disk.next_life()).unwrap();
    log.read(1, 9..10, 1).unwrap();
    assert!(matches!(log.read(1, 10..11, 1), Err(LogError::Damaged { .. })), "never served");
}

#[test]
fn without_index_files_they_are_made_anew() {
    let disk = SimDisk::new(1, Lies::default());
    let model = written(&disk);
    let before = sidecars(&disk);
    for generation in &before {
        disk.remove(&path(*generation)).unwrap();
    }
    let disk = disk.next_life();
    assert_eq!(Model::of(&open(&disk).unwrap()).unwrap(), model);
    assert_eq!(sidecars(&disk), before);
    // One of an earlier use of the number, and one that nobody needs.
    let (first, second) = (path(before[0]), path(before[1]));
    disk.remove(&second).unwrap();
    disk.rename(&first, &second).unwrap();
    disk.create(&path(999)).unwrap();
    let disk = disk.next_life();
    assert_eq!(Model::of(&open(&disk).unwrap()).unwrap(), model);
    assert_eq!(sidecars(&disk), before);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_index_file_costs_only_time(which in 0..3_usize, place in 0.0..1.0_f64, bit in 0..8_u8) {
        let disk = SimDisk::new(1, Lies::default());
        let model = written(&disk);
        let generation = sidecars(&disk)[which];
        let len = disk.open(&path(generation)).unwrap().len().unwrap();
        disk.flip(&path(generation), (place * len as f64) as usize, bit);
        let disk = disk.next_life();
        prop_assert_eq!(Model::of(&open(&disk).unwrap()).unwrap(), model);
        // It has been made anew.
        let all = sidecars(&disk);
        prop_assert!(all.contains(&generation));
        let segment = dir().join(segment::name(generation));
        disk.flip(&segment, 200, 1);
        prop_assert!(open(&disk.next_life()).is_ok());
    }
}
