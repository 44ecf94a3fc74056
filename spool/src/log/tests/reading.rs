//! Reads that find damage, or a disk that does not answer: what is served, what is marked, what a restart does.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{super::*, entry, wait};
use crate::env::sim::{Lies, SimDisk};
use crate::limits::LOG_READ_TRIES;

fn open(disk: &SimDisk) -> Result<Log, LogError> {
    let options = Options { dir: PathBuf::from("/log"), segment_bytes: 64 * 1024, cache_bytes: 0 };
    Log::open(Arc::new(disk.clone()), options)
}

/// A log with three entries of 300 bytes, none in memory.
fn written() -> (SimDisk, Log) {
    let disk = SimDisk::new(1, Lies::default());
    let log = open(&disk).unwrap();
    for index in 0..3 {
        let entries = vec![entry(1, index, vec![0xa5; 300])];
        wait(|done| log.append(1, entries, done)).unwrap();
    }
    (disk, log)
}

fn segment_path() -> PathBuf {
    Path::new("/log").join(segment::name(1))
}

fn marked(disk: &SimDisk) -> bool {
    disk.list(Path::new("/log")).unwrap().iter().any(|name| name == mark::NAME)
}

#[test]
fn damage_ends_the_log_and_every_later_start() {
    let (disk, log) = written();
    let told = Arc::new(AtomicUsize::new(0));
    let tell = Arc::clone(&told);
    log.on_failure(Box::new(move |why| {
        assert!(why.contains("rejoin"), "{why}");
        tell.fetch_add(1, Ordering::SeqCst);
    }));
    disk.flip(&segment_path(), 300, 3);
    let damage = log.read(1, 0..3, usize::MAX).unwrap_err();
    let LogError::Damaged { file, offset, .. } = &damage else { panic!("{damage}") };
    assert_eq!((file.as_str(), *offset), ("/log/0000000000000001.seg", 152));
    assert_eq!(told.load(Ordering::SeqCst), 1);

    // What is whole is not served either: this replica answers for nothing any longer.
    assert!(log.has_ended());
    assert!(matches!(log.read(1, 1..2, 1), Err(LogError::Damaged { .. })));
    let vote = wait(|done| log.save_vote(1, Bytes::new(), done));
    assert!(matches!(vote, Err(LogError::Damaged { .. })));
    drop(log);

    // Also if the bit comes back, and after a power cut.
    disk.flip(&segment_path(), 300, 3);
    disk.power_cut();
    let names = disk.list(Path::new("/log")).unwrap();
    for _ in 0..2 {
        let refused = open(&disk.next_life()).map(drop).unwrap_err();
        assert!(matches!(&refused, LogError::Damaged { offset: 152, .. }), "{refused}");
        let text = refused.to_string();
        for part in ["0000000000000001.seg", "checksum", "found earlier", "rejoin"] {
            assert!(text.contains(part), "{text}");
        }
    }
    assert_eq!(disk.list(Path::new("/log")).unwrap(), names);
}

#[test]
fn a_read_that_succeeds_at_last_harms_nobody() {
    let (disk, log) = written();
    disk.fail_reads(u64::from(LOG_READ_TRIES) - 1);
    assert_eq!(log.read(1, 0..3, usize::MAX).unwrap().len(), 3);
    assert!(!marked(&disk) && !log.has_ended());
}

#[test]
fn what_a_working_disk_does_not_give_is_damage() {
    let (disk, log) = written();
    disk.fail_reads(u64::from(LOG_READ_TRIES));
    let damage = log.read(1, 1..2, 1).unwrap_err();
    assert!(matches!(&damage, LogError::Damaged { what, .. } if what.contains("EIO")), "{damage}");
    drop(log);
    assert!(matches!(open(&disk.next_life()).map(drop), Err(LogError::Damaged { .. })));
}

/// All nodes of a room may lose a path to their disks at once, and each must be whole when it is back.
#[test]
fn a_disk_that_is_away_as_a_whole_is_no_damage() {
    let (disk, log) = written();
    disk.stop();
    disk.fail_reads(u64::MAX);
    let failed = log.read(1, 1..2, 1).unwrap_err();
    assert!(matches!(&failed, LogError::Disk(what) if what.contains("EIO")), "{failed}");
    assert!(matches!(log.read(1, 1..2, 1), Err(LogError::Disk(_))));
    drop(log);
    let disk = disk.next_life();
    disk.fail_reads(0);
    assert!(!marked(&disk));
    assert_eq!(open(&disk).unwrap().read(1, 0..3, usize::MAX).unwrap().len(), 3);
}

#[test]
fn a_mark_that_is_not_understood_is_a_mark() {
    let (disk, log) = written();
    drop(log);
    disk.create(&Path::new("/log").join(mark::NAME)).unwrap();
    let refused = open(&disk).map(drop).unwrap_err();
    assert!(refused.to_string().contains("/log/DAMAGED"), "{refused}");
}
