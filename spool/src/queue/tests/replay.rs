//! Any history, replayed from any legal start, gives the same queue (design §4).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    group::Position,
    queue::{
        entry::{self, BodyBytes},
        index::{Index, View},
    },
};

/// Window of the replicas in here: short, so that starts come to lie everywhere …
pub(super) const WINDOW: u64 = 5;
/// … or long enough that a `Settle` cuts it.
pub(super) const LONG_WINDOW: u64 = 24;
const CHUNK: &[u8] = b"ten bytes.";

/// What may happen next; numbers choose messages, recipients and earlier entries.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// An entry of Raft's own.
    Blank,
    Chunk(u64, u32),
    AcceptInline(u64),
    AcceptChunks(u64, u32),
    Abort(u64, bool),
    Outcome {
        id: u64,
        recipient: u32,
        verdict: u8,
        finish: bool,
        creates: Option<u64>,
    },
    Hold(u64),
    Release(u64),
    Begin(u64, u64),
    Handover,
    Edit(u64, u32),
    /// The recipient itself, or an address that it leads to; more to come, or not.
    Expand(u64, u32, Option<bool>),
    /// The leader takes a message's record (after writing its chunks again) …
    TakeRecord(u64),
    /// … and its entry arrives now, in time or late.
    Carry(usize),
    /// Every recipient is done.
    Finish(u64),
    /// All but so many of the last entries are settled.
    Settle(u64),
    /// An entry of before once more.
    Again(usize),
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let (id, recipient) = (0..6_u64, 0..3_u32);
    prop_oneof![
        1 => Just(Step::Blank),
        4 => (id.clone(), 0..3_u32).prop_map(|(id, n)| Step::Chunk(id, n)),
        4 => id.clone().prop_map(Step::AcceptInline),
        3 => (id.clone(), 0..3_u32).prop_map(|(id, n)| Step::AcceptChunks(id, n)),
        2 => (id.clone(), any::<bool>()).prop_map(|(id, only)| Step::Abort(id, only)),
        9 => (id.clone(), recipient.clone(), 0..3_u8, prop::bool::weighted(0.7), prop::option::of(0..8_u64))
            .prop_map(|(id, recipient, verdict, finish, creates)| {
                Step::Outcome { id, recipient, verdict, finish, creates }
            }),
        1 => id.clone().prop_map(Step::Hold),
        1 => id.clone().prop_map(Step::Release),
        3 => (id.clone(), id.clone()).prop_map(|(a, b)| Step::Begin(a, b)),
        1 => Just(Step::Handover),
        1 => (id.clone(), recipient.clone()).prop_map(|(id, r)| Step::Edit(id, r)),
        2 => (id.clone(), recipient, any::<Option<bool>>())
            .prop_map(|(id, r, address)| Step::Expand(id, r, address)),
        4 => id.prop_map(Step::TakeRecord),
        4 => any::<usize>().prop_map(Step::Carry),
        1 => (0..6_u64).prop_map(Step::Finish),
        2 => (0..6_u64).prop_map(Step::Settle),
        2 => any::<usize>().prop_map(Step::Again),
    ]
}

/// A log under construction, with the replica that has read all of it.
pub(super) struct Full {
    window: u64,
    pub(super) log: Vec<Option<Bytes>>,
    pub(super) index: Index,
    /// The queue after each entry.
    pub(super) views: Vec<View>,
    /// Where a replay may start that is ordered after each entry.
    pub(super) starts: Vec<Option<u64>>,
    records: Vec<Bytes>,
}

impl Full {
    pub(super) fn new(window: u64) -> Self {
        let index = Index::with_history(window);
        Self { window, log: vec![], index, views: vec![], starts: vec![], records: vec![] }
    }

    fn push(&mut self, payload: Option<Bytes>) {
        let at = self.log.len() as u64;
        apply(&mut self.index, at, payload.as_ref());
        self.log.push(payload);
        self.views.push(self.index.view());
        self.starts.push(self.index.checkpoint(at));
    }

    pub(super) fn step(&mut self, step: Step) {
        let due = UnixMs(self.log.len() as u64);
        let payload = match step {
            Step::Blank => None,
            Step::Chunk(n, number) => Some(entry::chunk(id(n), number, Bytes::from_static(CHUNK))),
            Step::AcceptInline(n) => {
                let body = BodyBytes::Inline(Bytes::from_static(b"small"));
                Some(entry::accept(id(n), &envelope(2), body))
            }
            Step::AcceptChunks(n, count) => {
                let body = BodyBytes::Chunks { count, bytes: u64::from(count) * 10 };
                Some(entry::accept(id(n), &envelope(2), body))
            }
            Step::Abort(n, only) => Some(entry::abort(id(n), only)),
            Step::Outcome { id: n, recipient, verdict: verdict_number, finish, creates } => {
                let verdict = match verdict_number {
                    0 => Verdict::Delivered,
                    1 => Verdict::Failed,
                    _ => Verdict::Deferred { next_due: due },
                };
                let mut made = outcome(id(n), recipient, verdict, finish);
                made.goes_on = verdict_number == 0 && !finish;
                made.creates
                    .extend(creates.map(|n| (id(n), envelope(1), Bytes::from_static(b"sorry"))));
                Some(entry::outcome(&made))
            }
            Step::Hold(n) => Some(entry::hold(id(n))),
            Step::Release(n) => Some(entry::release(id(n), Some(due))),
            Step::Begin(a, b) => Some(entry::begin(&[id(a), id(b)])),
            Step::Handover => Some(entry::handover(2)),
            Step::Edit(n, recipient) => Some(entry::edit(id(n), recipient, "x@example.org", due)),
            Step::Expand(n, recipient, address) => {
                let first = self.index.get(id(n)).map_or(0, |m| m.recipients.len() as u32);
                let address = address.map_or(String::new(), |goes_on| format!("l{goes_on}@x"));
                let goes_on = address == "ltrue@x";
                let from = Expansion { recipient, address, ..Expansion::default() };
                let (message, into) = (id(n), envelope(1).recipients);
                Some(entry::expand(&Expand { message, from, into, due, first, goes_on }))
            }
            Step::TakeRecord(n) => return self.take_record(id(n)),
            Step::Carry(_) if self.records.is_empty() => return,
            Step::Carry(n) => {
                let before = self.index.view().but_places();
                // Rather one of the last: older ones are refused for their age.
                let back = n % self.records.len().min(3);
                self.push(Some(self.records[self.records.len() - 1 - back].clone()));
                // Late or in time, it moves bytes and changes nothing else: what is done stays done.
                assert_eq!(self.index.view().but_places(), before);
                return;
            }
            Step::Finish(n) => {
                for recipient in 0..self.index.get(id(n)).map_or(0, |m| m.recipients.len()) {
                    let done = outcome(id(n), recipient as u32, Verdict::Delivered, true);
                    self.push(Some(entry::outcome(&done)));
                }
                return;
            }
            Step::Settle(open) => match (self.log.len() as u64).checked_sub(open + 1) {
                Some(upto) => Some(entry::settle(upto)),
                None => return,
            },
            Step::Again(_) if self.log.is_empty() => return,
            Step::Again(n) => self.log[n % self.log.len()].clone(),
        };
        self.push(payload);
    }

    fn take_record(&mut self, id: MessageId) {
        let Some(message) = self.index.get(id) else { return };
        let body = match &message.body {
            Body::Inline { .. } => BodyBytes::Inline(Bytes::from_static(b"small")),
            Body::Chunks { indexes } => {
                let count = indexes.len() as u32;
                for number in 0..count {
                    self.push(Some(entry::chunk(id, number, Bytes::from_static(CHUNK))));
                }
                BodyBytes::Chunks { count, bytes: u64::from(count) * 10 }
            }
        };
        let made_at = self.log.len() as u64 - 1;
        // What the index leaves to the log.
        let mut message = QueuedMessage::clone(&message);
        message.envelope.prepend = envelope(1).prepend;
        self.records.push(entry::carry(&message, self.index.tried(id), made_at, body));
    }
}

pub(super) fn apply(index: &mut Index, at: u64, payload: Option<&Bytes>) {
    if let Some(payload) = payload {
        let change = entry::decode(payload).unwrap();
        let _ = index.apply(Position { term: 1, index: at }, payload.len() as u64, change);
    }
}

/// Replays from behind `start`; from when `from` is applied, the queue must be as it was. Returns the starts that
/// this replica would give to others, with the index from which they are good.
fn replay(full: &Full, start: u64, from: u64) -> Result<BTreeSet<(u64, u64)>, TestCaseError> {
    let mut index = Index::with_history(full.window);
    let mut starts = BTreeSet::new();
    for at in start + 1..full.log.len() as u64 {
        apply(&mut index, at, full.log[at as usize].as_ref());
        if at >= from {
            let expected = &full.views[at as usize];
            prop_assert_eq!(&index.view(), expected, "from {} for {}, at {}", start, from, at);
            let next = index.checkpoint(at).unwrap_or(start);
            prop_assert!(next >= start, "the start went back from {start} to {next}");
            starts.insert((next, at));
        }
    }
    Ok(starts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_replay_from_any_legal_start_gives_the_same_queue(
        window in prop_oneof![Just(WINDOW), Just(LONG_WINDOW)],
        steps in prop::collection::vec(step(), 1..70)
    ) {
        let mut full = Full::new(window);
        steps.into_iter().for_each(|step| full.step(step));
        check(&full)?;
    }
}

/// Replays from every start.
fn check(full: &Full) -> Result<(), TestCaseError> {
    let starts = full.starts.iter().enumerate();
    let mut open: BTreeSet<(u64, u64)> =
        starts.filter_map(|(at, start)| Some(((*start)?, at as u64))).collect();
    // Starts of starts of starts: a replica that began in the middle checkpoints, too.
    let mut seen = BTreeMap::new();
    while let Some((start, from)) = open.pop_first() {
        if seen.len() < 300 && seen.insert((start, from), ()).is_none() {
            let more = replay(full, start, from)?;
            open.extend(more.into_iter().filter(|key| !seen.contains_key(key)));
        }
    }
    Ok(())
}

#[test]
fn a_start_keeps_every_record_of_a_message_that_lives() {
    let mut full = Full::new(WINDOW);
    full.step(Step::AcceptInline(1));
    for _ in 0..20 {
        full.step(Step::Blank);
    }
    assert_eq!(full.starts.last(), Some(&None), "the first entry is needed");
    full.step(Step::TakeRecord(1));
    full.step(Step::Carry(0));
    full.step(Step::Hold(9));
    let carried = full.log.len() as u64 - 2;
    assert_eq!(full.index.checkpoint(carried + 1), Some(carried - 1));
    let finish =
        |recipient| Step::Outcome { id: 1, recipient, verdict: 0, finish: true, creates: None };
    full.step(finish(0));
    full.step(finish(1));
    let end = full.log.len() as u64 + WINDOW;
    full.index.pass(end, 0);
    assert_eq!(full.index.checkpoint(end), Some(end), "nothing lives: all may go");
}

#[test]
fn a_bounce_keeps_the_record_of_the_message_that_it_came_from() {
    let mut full = Full::new(WINDOW);
    full.step(Step::Blank);
    full.step(Step::AcceptInline(1));
    full.step(Step::Outcome { id: 1, recipient: 0, verdict: 1, finish: true, creates: None });
    full.step(Step::Outcome { id: 1, recipient: 1, verdict: 1, finish: true, creates: Some(2) });
    assert!(full.index.get(id(1)).is_none() && full.index.get(id(2)).is_some());
    full.index.pass(100, 0);
    assert_eq!(full.index.checkpoint(100), Some(0), "without the message, no bounce of it");
}

#[test]
fn behind_a_settle_the_past_may_go_and_its_records_come_too_late() {
    let mut full = Full::new(LONG_WINDOW);
    full.step(Step::AcceptInline(1));
    full.step(Step::TakeRecord(1));
    full.step(Step::Hold(2));
    full.step(Step::Carry(0));
    full.step(Step::Blank);
    assert_eq!(full.starts.last(), Some(&None), "idle, and all of it is still in the window");
    full.step(Step::TakeRecord(1));
    full.step(Step::Blank);
    full.step(Step::Settle(0));
    let settle = full.log.len() as u64 - 1;
    assert_eq!(full.starts.last(), Some(&Some(1)), "the message as it was carried");
    full.step(Step::Carry(0));
    let (late, live) = (settle + 1, full.index.get(id(1)).unwrap());
    assert_eq!(live.body, Body::Inline { index: 2 }, "the late record was refused");
    full.step(Step::TakeRecord(1));
    full.step(Step::Carry(0));
    // The late record, at `late`, is about the message, so it is kept with its reason.
    assert_eq!(full.starts.last(), Some(&Some(settle - 1)));
    full.step(Step::Settle(0));
    assert_eq!(
        full.starts.last(),
        Some(&Some(late)),
        "none between the settle and what it refused"
    );
    full.step(Step::Settle(9));
    assert_eq!(full.starts.last(), Some(&Some(late)), "an earlier one changes nothing");
    let next = full.log.len() as u64;
    let beyond = entry::decode(&entry::settle(next)).unwrap();
    let at = Position { term: 1, index: next };
    assert!(full.index.apply(at, 9, beyond).is_err(), "it cannot settle what is to come");
}

#[test]
fn a_record_behind_a_settle_does_not_bring_a_message_back() {
    let mut full = Full::new(LONG_WINDOW);
    let steps = [
        Step::AcceptInline(1),
        Step::TakeRecord(1),
        Step::Finish(1),
        Step::Settle(0),
        // A start here sees the settle; without it, the next entry would not be refused.
        Step::Blank,
        Step::Carry(0),
        // Up to the settle before: what it refused stays, and so must it.
        Step::Settle(2),
        Step::Blank,
    ];
    steps.into_iter().for_each(|step| full.step(step));
    assert_eq!(full.starts[full.log.len() - 4], Some(2), "{:?}", full.starts);
    assert_eq!(full.starts.last(), Some(&Some(2)), "{:?}", full.starts);
    check(&full).unwrap();
}
