//! Real logs of random histories, several faults at once: opening and reading never panics, never loses without a
//! word what was durable before the damage, and never invents anything. Files beside the segments never matter.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use proptest::{
    prelude::*,
    sample::Index as Pick,
    test_runner::{Config, TestRunner},
};

use super::{
    super::{
        record::{ALIGN, Kind, Parsed, Stamp, padded, parse, u32_at},
        segment::{SEGMENT_HEADER, free_generation_of, generation_of, name},
        *,
    },
    entry,
    history::{End, Expected, History, histories, live},
    model::{Change, Model},
    wait,
};
use crate::env::sim::{Lies, SimDisk};

const DIR: &str = "/log";

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// What happens to the files. Numbers are fitted to what is there.
#[derive(Clone, Debug)]
enum Fault {
    Flip {
        file: Pick,
        at: Pick,
        bit: u8,
    },
    /// A range of zeros, as of a write that was lost.
    Zero {
        file: Pick,
        at: Pick,
        len: usize,
    },
    /// A range of anything.
    Scribble {
        file: Pick,
        at: Pick,
        bytes: Vec<u8>,
    },
    /// Every other sector is as it was before it was written.
    Tear {
        file: Pick,
        at: Pick,
        len: usize,
    },
    Cut {
        file: Pick,
        at: Pick,
    },
    Extend {
        file: Pick,
        len: usize,
    },
    Remove(Pick),
    Swap(Pick, Pick),
    /// One file's content under another's name.
    Duplicate(Pick, Pick),
    /// Under the name of the segment that would come next.
    Ahead(Pick),
    /// The content that a file had in the middle of the history.
    Older(Pick),
}

fn faults() -> impl Strategy<Value = Fault> {
    let (pick, len) = (any::<Pick>, 1..3000_usize);
    prop_oneof![
        4 => (pick(), pick(), 0..8_u8).prop_map(|(file, at, bit)| Fault::Flip { file, at, bit }),
        2 => (pick(), pick(), len.clone()).prop_map(|(file, at, len)| Fault::Zero { file, at, len }),
        2 => (pick(), pick(), prop::collection::vec(any::<u8>(), 1..100))
            .prop_map(|(file, at, bytes)| Fault::Scribble { file, at, bytes }),
        2 => (pick(), pick(), len.clone()).prop_map(|(file, at, len)| Fault::Tear { file, at, len }),
        2 => (pick(), pick()).prop_map(|(file, at)| Fault::Cut { file, at }),
        1 => (pick(), len).prop_map(|(file, len)| Fault::Extend { file, len }),
        1 => pick().prop_map(Fault::Remove),
        1 => (pick(), pick()).prop_map(|(a, b)| Fault::Swap(a, b)),
        1 => (pick(), pick()).prop_map(|(a, b)| Fault::Duplicate(a, b)),
        1 => pick().prop_map(Fault::Ahead),
        2 => pick().prop_map(Fault::Older),
    ]
}

/// Places are near records: most of a segment may be empty. Any byte up to a little behind the last that is not zero.
fn place(bytes: &[u8], at: &Pick) -> usize {
    let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    at.index((used + 100).min(bytes.len()).max(1))
}

impl Fault {
    fn apply(&self, files: &mut Files, older: &Files) {
        let paths: Vec<PathBuf> = files.keys().cloned().collect();
        if paths.is_empty() {
            return;
        }
        let path = |pick: &Pick| paths[pick.index(paths.len())].clone();
        let change = |files: &mut Files, file: &Pick, at: &Pick, change: &dyn Fn(&mut [u8])| {
            let bytes = files.get_mut(&path(file)).unwrap();
            let at = place(bytes, at);
            change(&mut bytes[at..]);
        };
        match self {
            Self::Flip { file, at, bit } => change(files, file, at, &|bytes| {
                if let Some(byte) = bytes.first_mut() {
                    *byte ^= 1 << bit;
                }
            }),
            Self::Zero { file, at, len } => {
                change(files, file, at, &|bytes| bytes.iter_mut().take(*len).for_each(|b| *b = 0));
            }
            Self::Scribble { file, at, bytes: new } => change(files, file, at, &|bytes| {
                bytes.iter_mut().zip(new).for_each(|(byte, new)| *byte = *new);
            }),
            Self::Tear { file, at, len } => change(files, file, at, &|bytes| {
                let len = bytes.len().min(*len);
                for sector in bytes[..len].chunks_mut(512).step_by(2) {
                    sector.fill(0);
                }
            }),
            Self::Cut { file, at } => {
                let bytes = files.get_mut(&path(file)).unwrap();
                bytes.truncate(place(bytes, at));
            }
            Self::Extend { file, len } => {
                let bytes = files.get_mut(&path(file)).unwrap();
                bytes.resize(bytes.len() + len, 0xdb);
            }
            Self::Remove(file) => {
                files.remove(&path(file));
            }
            Self::Swap(a, b) => {
                let (a, b) = (path(a), path(b));
                let (of_a, of_b) = (files[&a].clone(), files[&b].clone());
                files.insert(a, of_b);
                files.insert(b, of_a);
            }
            Self::Duplicate(from, to) => {
                files.insert(path(to), files[&path(from)].clone());
            }
            Self::Ahead(from) => {
                let last = generations(files).last().copied().unwrap_or(0);
                files.insert(Path::new(DIR).join(name(last + 1)), files[&path(from)].clone());
            }
            Self::Older(file) => {
                if let Some(bytes) = older.get(&path(file)) {
                    files.insert(path(file), bytes.clone());
                }
            }
        }
    }
}

fn base(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn generations(files: &Files) -> Vec<u64> {
    files.keys().filter_map(|path| generation_of(base(path))).collect()
}

/// Where in the log: generation, and offset in its segment.
type Place = (u64, usize);

/// The log's state after each flush, by where the flush ends; told from the bytes without the code that opens logs.
fn states(files: &Files) -> Vec<(Place, Model)> {
    let mut all = vec![((0, 0), Model::default())];
    let mut model = Model::default();
    let mut released = 0;
    for generation in generations(files) {
        let bytes = &files[&Path::new(DIR).join(name(generation))];
        let stamp = Stamp { salt: u32_at(bytes, 12), generation };
        let (mut at, mut flush) = (SEGMENT_HEADER, Vec::new());
        while let Ok(parsed) = parse(stamp, &bytes[at..]) {
            let payload = &bytes[at + record::HEADER..at + record::HEADER + parsed.len];
            at += padded(parsed.len);
            match parsed.kind {
                Kind::Seal => break,
                Kind::Head => released = parsed.term,
                Kind::Release => released = parsed.index,
                Kind::Commit => {
                    for (group, change) in flush.drain(..) {
                        model.apply(group, &change);
                    }
                    all.push(((generation, at), model.clone()));
                }
                _ => flush.push((parsed.group, change(&parsed, payload))),
            }
        }
    }
    // Segments before that are nobody's, although their files may still be there.
    let oldest = (released, 0);
    all.retain(|(place, _)| *place == (0, 0) || *place > oldest);
    all
}

fn change(parsed: &Parsed, payload: &[u8]) -> Change {
    let position = Position { term: parsed.term, index: parsed.index };
    let payload = Bytes::copy_from_slice(payload);
    match parsed.kind {
        Kind::Entry => Change::Append(Entry { position, payload }),
        Kind::Vote => Change::Vote(payload),
        Kind::Checkpoint => Change::Checkpoint(payload),
        Kind::Truncate => Change::Truncate((!parsed.flag).then_some(position)),
        Kind::Purge => Change::Purge(position),
        Kind::Forget => Change::Forget,
        other => panic!("{other:?} is no change"),
    }
}

/// The first byte of the log that is not what it was. `None`: all that counts is whole.
fn damage(before: &Files, after: &Files) -> Option<Place> {
    let mut names: Vec<u64> = generations(before);
    names.extend(generations(after));
    names.sort_unstable();
    names.iter().find_map(|&generation| {
        let path = Path::new(DIR).join(name(generation));
        let empty = Vec::new();
        let (a, b) = (before.get(&path), after.get(&path));
        if a.is_some() != b.is_some() {
            return Some((generation, 0));
        }
        let (a, b) = (a.unwrap_or(&empty), b.unwrap_or(&empty));
        let differs = a.iter().zip(b).position(|(a, b)| a != b);
        let shorter = (a.len() != b.len()).then(|| a.len().min(b.len()));
        differs.or(shorter).map(|at| (generation, at))
    })
}

/// Whether what is left says that the log went on behind this place: it must not have been opened as its end.
///
/// A flush was synced if a later one was begun; a segment's end too, if its seal or the next segment's head is there.
fn went_on(end: Place, states: &[(Place, Model)], before: &Files, after: &Files) -> bool {
    let (generation, at) = match end {
        (0, _) => (generations(before)[0], SEGMENT_HEADER),
        end => end,
    };
    let is_left = |generation: u64, range: Range<usize>| {
        let path = Path::new(DIR).join(name(generation));
        let bytes =
            |files: &Files| files.get(&path).and_then(|b| b.get(range.clone())).map(<[u8]>::to_vec);
        bytes(before).is_some() && bytes(before) == bytes(after)
    };
    let here = states.iter().filter(|((g, end), _)| *g == generation && *end > at);
    let ends: Vec<usize> = here.map(|((_, end), _)| *end).collect();
    let head = states.iter().find(|((g, _), _)| *g == generation + 1).map(|((_, end), _)| *end);
    // The first of them began here, and may have been the last.
    ends.iter().skip(1).any(|&end| is_left(generation, end - record::MARKER..end))
        || head.is_some_and(|head| {
            ends.is_empty()
                && (is_left(generation, at..at + record::HEADER)
                    || is_left(generation + 1, 0..head))
        })
}

/// Where the last flush ends that opening found.
fn opened_at(disk: &SimDisk, log: &Log) -> Place {
    let last = generations(&disk.files()).last().copied().unwrap();
    (last, usize::try_from(log.inner.shared.lock().synced).unwrap())
}

/// Lives the history without troubles. The files at its end, and at half its time.
fn write(history: &History, options: &Options) -> (Files, Files) {
    let mut disk = SimDisk::new(history.seed, Lies::default());
    let mut expected = Expected::from(Model::default());
    let mut older = Files::new();
    for (number, life) in history.lives.iter().enumerate() {
        let log = Log::open(Arc::new(disk.clone()), options.clone()).unwrap();
        let life = life.without_trouble();
        live(&log, &disk, &life, &mut expected).unwrap();
        if number == history.lives.len() / 2 {
            older = disk.files();
        }
        if !matches!(life.end, End::Close) {
            disk.stop();
        }
        drop(log);
        // What was not durable when it was stopped may be missing from here on.
        disk = disk.next_life();
        let found = Model::of(&Log::open(Arc::new(disk.clone()), options.clone()).unwrap());
        expected = Expected::from(found.unwrap());
        disk = disk.next_life();
    }
    (disk.files(), older)
}

fn check(history: &History, faults: &[Fault]) -> Result<(), String> {
    let options = Options {
        dir: PathBuf::from(DIR),
        segment_bytes: history.segment_bytes,
        cache_bytes: history.cache_bytes,
    };
    let (before, older) = write(history, &options);
    let states = states(&before);
    let mut after = before.clone();
    for fault in faults {
        fault.apply(&mut after, &older);
    }
    let damage = damage(&before, &after);
    let least = states.iter().rposition(|(end, _)| damage.is_none_or(|at| *end <= at));
    let possible = &states[least.unwrap()..];

    let disk = SimDisk::with(after.clone());
    let open = |disk: &SimDisk| Log::open(Arc::new(disk.clone()), options.clone());
    let outcome = open(&disk).and_then(|log| Ok((Model::of(&log)?, log)));
    let (model, log) = match outcome {
        Ok(found) => found,
        Err(LogError::Damaged { .. }) if damage.is_some() => {
            // And it stays so: a second start must not go on with what the first has left.
            let again = open(&disk.next_life()).and_then(|log| Model::of(&log));
            return match again {
                Err(LogError::Damaged { .. }) => Ok(()),
                other => Err(format!("damaged at {damage:?}, and then {other:?}")),
            };
        }
        Err(error) => return Err(format!("damaged at {damage:?}, and opening said: {error}")),
    };
    // Where it was opened, before anything is written: the end of a flush, or a log that is new.
    let end = opened_at(&disk, &log);
    let found = possible.iter().find(|(place, _)| *place == end).unwrap_or(&possible[0]);
    if found.1 != model {
        return Err(format!("damaged at {damage:?}, found {model:?} at {end:?}, not {found:?}"));
    }
    if went_on(found.0, &states, &before, &after) {
        return Err(format!("damaged at {damage:?}, opened at {end:?}, but it had gone on"));
    }
    // What was opened is a log: it takes entries, and is found again as it was.
    let next = log.state(9).last.map_or(0, |last| last.index + 1);
    wait(|done| log.append(9, vec![entry(u64::MAX, next, "more")], done))
        .map_err(|e| e.to_string())?;
    let expected = Model::of(&log).map_err(|e| e.to_string())?;
    drop(log);
    let found = open(&disk.next_life()).and_then(|log| Model::of(&log));
    match found {
        Ok(found) if found == expected => Ok(()),
        other => Err(format!("after going on: {other:?}, expected {expected:?}")),
    }
}

fn cases(count: u32) -> Config {
    let count = std::env::var("PPSW_LOG_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(count);
    Config { cases: count, failure_persistence: None, ..Config::default() }
}

#[test]
fn several_faults_at_once_are_survived_or_said() {
    let mut runner = TestRunner::new(cases(300));
    let given = (histories(), prop::collection::vec(faults(), 0..5));
    let outcome = runner
        .run(&given, |(history, faults)| check(&history, &faults).map_err(TestCaseError::fail));
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// Bytes that look like nothing, under the names that count.
#[test]
fn files_of_anything_are_damage_or_a_new_log() {
    let mut runner = TestRunner::new(cases(300));
    let file = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..4000),
        // A header that is right, and then anything.
        (any::<u32>(), prop::collection::vec(any::<u8>(), 0..1000)).prop_map(|(salt, rest)| {
            let mut bytes = segment::header(Stamp { salt, generation: 1 }).to_vec();
            bytes.extend(rest);
            bytes
        }),
    ];
    let given = prop::collection::btree_map(1..4_u64, file, 1..4);
    let outcome = runner.run(&given, |segments| {
        let path = |generation: u64| Path::new(DIR).join(name(generation));
        let files: Files = segments.into_iter().map(|(g, bytes)| (path(g), bytes)).collect();
        let options = Options { dir: PathBuf::from(DIR), segment_bytes: 4096, cache_bytes: 0 };
        match Log::open(Arc::new(SimDisk::with(files)), options) {
            Ok(log) => prop_assert!(log.groups().is_empty()),
            Err(error) => prop_assert!(matches!(error, LogError::Damaged { .. }), "{error}"),
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

const _: () = assert!(SEGMENT_HEADER.is_multiple_of(ALIGN));

#[test]
fn names_are_what_they_are_taken_for() {
    assert_eq!(generation_of("000000000000000a.seg"), Some(10));
    for other in [
        "a.seg",
        "000000000000000a.free",
        "+00000000000000a.seg",
        "000000000000000g.seg",
        "ffffffffffffffff.seg",
    ] {
        assert_eq!(generation_of(other), None, "{other}");
    }
    assert_eq!(free_generation_of("000000000000000a.free"), Some(10));
}
