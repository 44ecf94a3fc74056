//! A log that version 1 wrote: every later version reads it.

#![allow(clippy::disallowed_methods, reason = "files of the repository")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{super::*, entry, model::Model, wait};
use crate::env::{SystemDisk, sim::SimDisk};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/log-v1")
}

fn options(dir: PathBuf) -> Options {
    Options { dir, segment_bytes: 4096, cache_bytes: 0 }
}

/// Every kind of record, and more than two segments.
fn fill(log: &Log) {
    let upto = |index| Position { term: 3, index };
    for index in 0..24 {
        let payload = vec![u8::try_from(index).unwrap(); 600];
        wait(|done| log.append(1, vec![entry(3, index, payload)], done)).unwrap();
    }
    wait(|done| log.purge(2, Position { term: 5, index: 6 }, done)).unwrap();
    wait(|done| log.append(2, vec![entry(5, 7, "behind a purge")], done)).unwrap();
    wait(|done| log.save_vote(1, "vote".into(), done)).unwrap();
    wait(|done| log.save_checkpoint(1, "checkpoint".into(), done)).unwrap();
    wait(|done| log.save_vote(3, "forgotten".into(), done)).unwrap();
    wait(|done| log.forget(3, done)).unwrap();
    wait(|done| log.truncate_after(1, Some(upto(20)), done)).unwrap();
    wait(|done| log.purge(1, upto(2), done)).unwrap();
}

/// The files as version 1 wrote them are never made again: this is for the next version's own.
#[test]
#[ignore = "writes into the repository"]
fn write() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(Arc::new(SystemDisk), options(dir.path().to_owned())).unwrap();
    fill(&log);
    drop(log);
    fs::create_dir_all(golden()).unwrap();
    for file in fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), golden().join(file.file_name())).unwrap();
    }
}

fn files() -> BTreeMap<PathBuf, Vec<u8>> {
    let all = fs::read_dir(golden()).unwrap().map(|file| file.unwrap().path());
    all.map(|path| (Path::new("/log").join(path.file_name().unwrap()), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn the_log_of_version_1_is_read() {
    let new = SimDisk::with(BTreeMap::new());
    let expected = Log::open(Arc::new(new), options("/log".into())).unwrap();
    fill(&expected);
    let expected = Model::of(&expected).unwrap();
    for index_files in [true, false] {
        let mut files = files();
        files.retain(|path, _| index_files || path.extension().is_none_or(|e| e != "idx"));
        assert!(files.len() > 3, "{:?}", files.keys());
        let disk = SimDisk::with(files);
        let log = Log::open(Arc::new(disk), options("/log".into())).unwrap();
        assert_eq!(Model::of(&log).unwrap(), expected);
    }
}

/// Its newest segment by name, or its oldest: refused with what was found, and nothing is touched.
#[test]
fn a_segment_of_a_newer_version_is_refused_and_left_alone() {
    let segments: Vec<PathBuf> =
        files().into_keys().filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
    for path in [segments.first().unwrap(), segments.last().unwrap()] {
        let mut files = files();
        let bytes = files.get_mut(path).unwrap();
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..segment::SEGMENT_HEADER - 4]);
        bytes[segment::SEGMENT_HEADER - 4..segment::SEGMENT_HEADER]
            .copy_from_slice(&crc.to_le_bytes());
        let disk = SimDisk::with(files.clone());
        let refused = Log::open(Arc::new(disk.clone()), options("/log".into())).map(drop);
        let Err(error @ LogError::Version { found: 2, supported: 1, .. }) = refused else {
            panic!("{refused:?}")
        };
        let text = error.to_string();
        let name = path.display().to_string();
        assert!(text.contains(&name) && text.contains("use a newer ppswd"), "{text}");
        assert_eq!(disk.files(), files);
    }
}
