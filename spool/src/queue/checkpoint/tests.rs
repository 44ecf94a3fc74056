//! The file by itself, and what writes it.

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tokio::sync::watch;

use super::*;
use crate::{
    env::{Disk as _, SystemClock, SystemDisk, UnixMs},
    group::{Checkpoint, Machine as _, Position},
    limits::KEPT_GROWTH_MIN,
    queue::{
        entry::{self, BodyBytes},
        ids::Ids,
        index::View,
        message::{Envelope, MessageId, Recipient},
    },
};

const OWNER: Owner = Owner { node: 1, partition: 3, identity: [5; 16] };

struct World {
    dir: tempfile::TempDir,
    machine: Arc<QueueMachine>,
    keeper: Keeper,
    next: u64,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Arc::new(QueueMachine::new(
            3,
            1,
            Arc::new(SystemClock),
            Arc::new(Ids::new(1)),
            watch::Sender::new(0),
        ));
        machine.offer(None);
        machine.lock().index.track();
        let place = Place { disk: Arc::new(SystemDisk), dir: dir.path().to_owned() };
        let keeper = Keeper {
            machine: Arc::clone(&machine),
            note: Box::new(|at| Some(Bytes::from(at.index.to_string()))),
            place,
            owner: OWNER,
            writer: None,
            written: None,
            ending: Arc::new(AtomicBool::new(false)),
        };
        Self { dir, machine, keeper, next: 0 }
    }

    fn apply(&mut self, payload: &Bytes) {
        self.machine.apply(Position { term: 2, index: self.next }, payload);
        self.next += 1;
    }

    fn accept(&mut self, counter: u64, text: &str) {
        let recipient = Recipient { address: text.to_owned(), ..Recipient::default() };
        let envelope = Envelope {
            recipients: vec![recipient],
            received: UnixMs(1_000_000),
            ..Envelope::default()
        };
        let body = BodyBytes::Inline(Bytes::from_static(b"body"));
        self.apply(&entry::accept(id(counter), &envelope, body));
    }

    fn round(&mut self) {
        self.keeper.round(Pace::Hurried);
    }

    fn files(&self) -> Vec<PathBuf> {
        self.keeper.place.files(3).unwrap().into_values().collect()
    }

    fn file(&self) -> PathBuf {
        let mut files = self.files();
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }

    fn view(&self) -> View {
        self.machine.lock().index.view()
    }
}

fn id(counter: u64) -> MessageId {
    MessageId { second: 1_000, counter, node: 1 }
}

fn read(path: &Path) -> Result<file::Read, file::Unusable> {
    file::read(&SystemDisk, path, &OWNER)
}

#[test]
fn rounds_add_what_has_changed_and_are_read_back() {
    let mut world = World::new();
    world.round();
    assert_eq!(world.files().len(), 0, "nothing has been applied");
    for counter in 0..2500 {
        world.accept(counter, "a@example.org");
    }
    world.round();
    let first = SystemDisk.open(&world.file()).unwrap().len().unwrap();
    world.accept(9999, "b@example.org");
    world.apply(&entry::abort(id(7), false));
    world.round();
    let second = SystemDisk.open(&world.file()).unwrap().len().unwrap();
    assert!(second - first < first / 2, "only what changed was written: {first}, {second}");
    world.round();
    assert_eq!(SystemDisk.open(&world.file()).unwrap().len().unwrap(), second, "nothing changed");

    let file::Read { index, note, writer } = read(&world.file()).unwrap();
    assert_eq!((index.view(), &note[..]), (world.view(), &b"2501"[..]));
    // Goes on where it ended.
    world.keeper.writer = Some(writer);
    world.accept(10_000, "c@example.org");
    world.round();
    assert_eq!(read(&world.file()).unwrap().index.view(), world.view());
}

#[test]
fn a_round_that_is_not_complete_does_not_count() {
    let mut world = World::new();
    world.accept(1, "a@example.org");
    world.keeper.note = Box::new(|_| None);
    world.round();
    let path = world.file();
    assert!(matches!(read(&path), Err(file::Unusable::Damaged(_))));
    world.accept(2, "b@example.org");
    world.keeper.note = Box::new(|_| Some(Bytes::new()));
    world.round();
    assert_eq!(read(&path).unwrap().index.view(), world.view(), "the next one completes it");
    let before = world.view();
    world.accept(3, "c@example.org");
    world.keeper.note = Box::new(|_| None);
    world.round();
    assert_eq!(read(&path).unwrap().index.view(), before);
}

#[test]
fn a_file_that_has_grown_is_written_anew() {
    let mut world = World::new();
    let long = "x".repeat(100_000);
    world.accept(0, "a@example.org");
    world.round();
    let first = world.file();
    let mut written = 0;
    for ten in 1.. {
        for counter in 10 * ten..10 * ten + 10 {
            world.accept(counter, &long);
            written += long.len() as u64;
        }
        world.round();
        for counter in 10 * ten..10 * ten + 10 {
            world.apply(&entry::abort(id(counter), false));
        }
        if written > 2 * KEPT_GROWTH_MIN {
            break;
        }
    }
    world.round();
    assert_ne!(world.file(), first);
    assert!(SystemDisk.open(&world.file()).unwrap().len().unwrap() < 2 * KEPT_GROWTH_MIN);
    assert_eq!(read(&world.file()).unwrap().index.view(), world.view());
}

#[test]
fn a_checkpoint_from_the_leader_begins_a_new_file() {
    let mut world = World::new();
    world.accept(1, "a@example.org");
    world.round();
    world.machine.restore(&Checkpoint { upto: Some(99), state: Bytes::new() });
    world.round();
    assert_eq!(read(&world.file()).unwrap().index.len(), 1, "nothing has been applied since");
    world.next = 100;
    world.accept(2, "b@example.org");
    world.round();
    assert_eq!(read(&world.file()).unwrap().index.view(), world.view());
    assert_eq!(world.view().len(), 1);
}

#[test]
fn a_disk_that_fails_is_tried_again() {
    let mut world = World::new();
    world.accept(1, "a@example.org");
    let place = world.keeper.place.dir.clone();
    world.keeper.place.dir = place.join("nowhere");
    world.round();
    assert!(world.machine.lock().index.all_changed());
    world.keeper.place.dir = place;
    world.round();
    assert_eq!(read(&world.file()).unwrap().index.view(), world.view());
}

#[test]
fn a_file_is_only_for_its_node_partition_and_log() {
    let mut world = World::new();
    world.accept(1, "a@example.org");
    world.round();
    let path = world.file();
    let others = [
        Owner { node: 2, ..OWNER },
        Owner { partition: 4, ..OWNER },
        Owner { identity: [6; 16], ..OWNER },
    ];
    for other in others {
        let found = file::read(&SystemDisk, &path, &other);
        assert!(matches!(found, Err(file::Unusable::Foreign { .. })));
    }
    let file = SystemDisk.open(&path).unwrap();
    let mut head = [0; 64];
    file.read_at(0, &mut head).unwrap();
    head[8] = 9;
    let crc = crc32c::crc32c(&head[..60]).to_le_bytes();
    head[60..].copy_from_slice(&crc);
    file.write_at(0, &[&head]).unwrap();
    let why = read(&path).err().unwrap().to_string();
    assert_eq!(why, "it has format 9, this program reads format 1: a newer ppswd wrote it");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Whatever happens to a file, what is read is the queue as of one of its marks, or nothing.
    #[test]
    fn damage_gives_an_earlier_state_or_none(
        flips in prop::collection::vec((0.0..1.0_f64, 1..=255_u8), 0..3),
        cut in prop::option::of(0.0..1.0_f64),
        zeros in prop::option::of((0.0..1.0_f64, 1..600_usize)),
    ) {
        let mut world = World::new();
        let mut views = Vec::new();
        for counter in 0..6 {
            world.accept(counter, "a@example.org");
            world.accept(100 + counter, "b@example.org");
            if counter > 2 {
                world.apply(&entry::hold(id(counter - 2)));
                world.apply(&entry::abort(id(100 + counter - 1), false));
            }
            world.round();
            views.push(world.view());
        }
        let source = SystemDisk.open(&world.file()).unwrap();
        let mut bytes = vec![0; source.len().unwrap() as usize];
        source.read_at(0, &mut bytes).unwrap();
        prop_assert_eq!(read(&world.file()).unwrap().index.view(), world.view());
        let len = bytes.len() as f64;
        for (at, flip) in &flips {
            bytes[(at * len) as usize] ^= flip;
        }
        if let Some((at, many)) = zeros {
            let at = (at * len) as usize;
            let end = (at + many).min(bytes.len());
            bytes[at..end].fill(0);
        }
        if let Some(cut) = cut {
            bytes.truncate((cut * len) as usize);
        }
        let damaged = world.dir.path().join("damaged");
        SystemDisk.create(&damaged).unwrap().write_at(0, &[&bytes]).unwrap();
        if let Ok(found) = read(&damaged) {
            prop_assert!(views.contains(&found.index.view()));
        }
    }
}
