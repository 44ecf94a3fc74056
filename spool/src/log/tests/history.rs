//! Any history of calls, crashes, power cuts and disk errors: what was acknowledged is there afterwards, in
//! order, and nothing that was never asked for.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use proptest::{
    prelude::*,
    test_runner::{Config, TestError, TestRunner},
};

use super::{
    super::*,
    model::{Change, Model},
    wait,
};
use crate::env::sim::{Lies, SimDisk, Trouble};

/// A call, with numbers that are fitted to the state of its moment.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Append { count: u8, payload: u16 },
    Vote(u16),
    Checkpoint(u16),
    Truncate(u8),
    Purge(u8),
    Forget,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// The last handle is dropped.
    Close,
    /// kill -9: the machine's cache survives.
    Kill,
    PowerCut,
}

/// One life of the process.
#[derive(Clone, Debug)]
pub(super) struct Life {
    calls: Vec<(GroupId, Call, bool)>,
    trouble: Option<(u64, Trouble)>,
    pub(super) end: End,
}

impl Life {
    pub(super) fn without_trouble(&self) -> Self {
        Self { trouble: None, ..self.clone() }
    }
}

#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) seed: u64,
    pub(super) segment_bytes: u64,
    pub(super) cache_bytes: usize,
    pub(super) lives: Vec<Life>,
}

pub(super) fn histories() -> impl Strategy<Value = History> {
    let call = prop_oneof![
        10 => (1..6_u8, 0..1500_u16).prop_map(|(count, payload)| Call::Append { count, payload }),
        2 => (0..200_u16).prop_map(Call::Vote),
        1 => (0..600_u16).prop_map(Call::Checkpoint),
        2 => any::<u8>().prop_map(Call::Truncate),
        4 => any::<u8>().prop_map(Call::Purge),
        1 => Just(Call::Forget),
    ];
    let trouble = prop_oneof![
        3 => Just(Trouble::Stop),
        1 => Just(Trouble::Error),
        2 => (1..4_u64).prop_map(Trouble::Full),
    ];
    let end = prop_oneof![Just(End::Close), Just(End::Kill), Just(End::PowerCut)];
    let life = (
        proptest::collection::vec((0..3_u32, call, any::<bool>()), 0..40),
        proptest::option::of((1..80_u64, trouble)),
        end,
    )
        .prop_map(|(calls, trouble, end)| Life { calls, trouble, end });
    (
        any::<u64>(),
        prop_oneof![Just(600_u64), 1000..4000_u64, Just(16_384)],
        0..6000_usize,
        proptest::collection::vec(life, 1..7),
    )
        .prop_map(|(seed, segment_bytes, cache_bytes, lives)| History {
            seed,
            segment_bytes,
            cache_bytes,
            lives,
        })
}

/// What may be on the disk: all states since the last that is known to be durable.
pub(super) struct Expected {
    states: Vec<Model>,
    /// Record that the payloads are made from, so that no two are alike.
    made: u64,
}

impl From<Model> for Expected {
    fn from(model: Model) -> Self {
        Self { states: vec![model], made: 0 }
    }
}

impl Expected {
    fn now(&self) -> &Model {
        self.states.last().unwrap()
    }

    fn payload(&mut self, len: u16) -> Bytes {
        self.made += 1;
        let mut bytes = self.made.to_le_bytes().to_vec();
        let fill = u8::try_from(self.made % 251).unwrap();
        bytes.resize(usize::from(len).max(8), fill);
        bytes.into()
    }

    /// The changes that a call makes at this moment.
    fn changes(&mut self, group: GroupId, call: &Call) -> Vec<Change> {
        let state = self.now().groups.get(&group).cloned().unwrap_or_default();
        let next = state.next();
        let first = state.purged.map_or(0, |purged| purged.index + 1);
        match *call {
            Call::Append { count, payload } => (next..next + u64::from(count))
                .map(|index| {
                    let position = Position { term: self.made / 7, index };
                    Change::Append(Entry { position, payload: self.payload(payload) })
                })
                .collect(),
            Call::Vote(len) => vec![Change::Vote(self.payload(len))],
            Call::Checkpoint(len) => vec![Change::Checkpoint(self.payload(len))],
            Call::Truncate(back) => {
                let keep = next.saturating_sub(u64::from(back % 6)).max(first);
                let last = keep.checked_sub(1).map(|index| Position { term: 1, index });
                vec![Change::Truncate(last)]
            }
            // Now and then behind the last entry.
            Call::Purge(back) => {
                let index = (next + 2).saturating_sub(u64::from(back % 16));
                vec![Change::Purge(Position { term: 1, index })]
            }
            Call::Forget => vec![Change::Forget],
        }
    }
}

fn call(log: &Log, group: GroupId, changes: &[Change], done: Done) {
    match changes {
        [Change::Vote(vote)] => log.save_vote(group, vote.clone(), done),
        [Change::Checkpoint(checkpoint)] => log.save_checkpoint(group, checkpoint.clone(), done),
        [Change::Truncate(last)] => log.truncate_after(group, *last, done),
        [Change::Purge(upto)] => log.purge(group, *upto, done),
        [Change::Forget] => log.forget(group, done),
        appends => {
            let entries = appends.iter().filter_map(|change| match change {
                Change::Append(entry) => Some(entry.clone()),
                _ => None,
            });
            log.append(group, entries.collect(), done);
        }
    }
}

/// Lives one life. Returns how many states have been acknowledged.
pub(super) fn live(
    log: &Log,
    disk: &SimDisk,
    life: &Life,
    expected: &mut Expected,
) -> Result<usize, String> {
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let disorder = Arc::new(AtomicBool::new(false));
    if let Some((after, trouble)) = life.trouble {
        disk.trouble(after, trouble);
    }
    for (group, wanted, patient) in &life.calls {
        let changes = expected.changes(*group, wanted);
        for change in &changes {
            let mut next = expected.now().clone();
            next.apply(*group, change);
            expected.states.push(next);
        }
        let upto = expected.states.len() - 1;
        let (acknowledged, out_of_order) = (Arc::clone(&acknowledged), Arc::clone(&disorder));
        let done = move |tell: Option<Done>| -> Done {
            Box::new(move |result| {
                if result.is_ok() && acknowledged.fetch_max(upto, Ordering::SeqCst) > upto {
                    out_of_order.store(true, Ordering::SeqCst);
                }
                if let Some(tell) = tell {
                    tell(result);
                }
            })
        };
        let result = if *patient {
            wait(|tell| call(log, *group, &changes, done(Some(tell))))
        } else {
            call(log, *group, &changes, done(None));
            Ok(())
        };
        match (result, Model::of(log)) {
            (Err(LogError::Disk(_) | LogError::NoSpace(_)), _)
            | (_, Err(LogError::Disk(_) | LogError::NoSpace(_))) => break,
            (Err(e), _) | (_, Err(e)) => return Err(format!("in life: {e}")),
            (Ok(()), Ok(seen)) if seen == *expected.now() => {}
            // A call to a log that has failed changes nothing.
            (Ok(()), Ok(_)) if wait(|done| log.append(9, Vec::new(), done)).is_err() => break,
            (Ok(()), Ok(seen)) => {
                return Err(format!("readers see {seen:?}\nnot {:?}", expected.now()));
            }
        }
    }
    if disorder.load(Ordering::SeqCst) {
        return Err("acknowledged out of order".to_owned());
    }
    // Reading this before the crash is safe: what is acknowledged later only makes the log better.
    Ok(acknowledged.load(Ordering::SeqCst))
}

/// Why a life ended before it began.
enum Failure {
    Disk,
    Wrong(String),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Disk(_) | LogError::NoSpace(_) => Self::Disk,
            error => Self::Wrong(format!("opening: {error}")),
        }
    }
}

/// Opens the log, compares it with what may be there, lives. Returns how many states have been acknowledged.
fn open_and_live(
    disk: &SimDisk,
    options: &Options,
    keeps_few: bool,
    life: &Life,
    expected: &mut Expected,
) -> Result<usize, Failure> {
    let log = Log::open(Arc::new(disk.clone()), options.clone())?;
    if keeps_few {
        log.keep_files(0);
    }
    let found = Model::of(&log)?;
    let at = expected.states.iter().rposition(|state| *state == found).ok_or_else(|| {
        Failure::Wrong(format!("found {found:?}\nnone of the possible {:#?}", expected.states))
    })?;
    // What was read at opening is durable.
    expected.states = vec![expected.states.swap_remove(at)];
    let acknowledged = live(&log, disk, life, expected).map_err(Failure::Wrong)?;
    if !matches!(life.end, End::Close) {
        disk.stop();
    }
    drop(log);
    let all = matches!(life.end, End::Close) && life.trouble.is_none();
    Ok(if all { expected.states.len() - 1 } else { acknowledged })
}

/// Lives a history. The error says what was lost or wrong.
fn check(history: &History, lies: Lies) -> Result<(), String> {
    let mut disk = SimDisk::new(history.seed, lies);
    let mut expected = Expected { states: vec![Model::default()], made: 0 };
    let options = Options {
        dir: Path::new("/log").to_owned(),
        segment_bytes: history.segment_bytes,
        cache_bytes: history.cache_bytes,
    };
    // Of half the histories, dead segments are removed step by step.
    let keeps_few = history.seed.is_multiple_of(2);
    let close = Life { calls: Vec::new(), trouble: None, end: End::Close };
    for life in history.lives.iter().chain([&close, &close]) {
        // Half of the troubles come while the log is opened.
        let opening = life.trouble.filter(|(after, _)| after % 2 == 0);
        if let Some((after, trouble)) = opening {
            disk.trouble(after / 8 + 1, trouble);
        }
        let acknowledged = match open_and_live(&disk, &options, keeps_few, life, &mut expected) {
            Ok(acknowledged) => acknowledged,
            Err(Failure::Disk) if opening.is_some() => 0,
            Err(Failure::Disk) => return Err("the disk failed, and had no trouble".to_owned()),
            Err(Failure::Wrong(what)) => return Err(what),
        };
        expected.states.drain(..acknowledged);
        disk.stop();
        if matches!(life.end, End::PowerCut) {
            disk.power_cut();
        }
        disk = disk.next_life();
    }
    Ok(())
}

fn cases(count: u32) -> Config {
    Config { cases: count, failure_persistence: None, ..Config::default() }
}

#[test]
fn what_was_acknowledged_survives_any_history() {
    let count = std::env::var("PPSW_LOG_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    let mut runner = TestRunner::new(cases(count));
    let outcome =
        runner.run(&histories(), |h| check(&h, Lies::default()).map_err(TestCaseError::fail));
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// The check is tested too: a log whose syncs do nothing must not pass it.
fn is_caught(lies: Lies) {
    let mut runner = TestRunner::new(Config { max_shrink_iters: 0, ..cases(2000) });
    let outcome = runner.run(&histories(), |h| check(&h, lies).map_err(TestCaseError::fail));
    assert!(matches!(outcome, Err(TestError::Fail(..))), "{outcome:?}");
}

#[test]
fn a_log_without_syncs_is_caught() {
    is_caught(Lies { sync_data: true, sync_dir: false });
}

#[test]
fn a_log_without_synced_directories_is_caught() {
    is_caught(Lies { sync_data: false, sync_dir: true });
}
