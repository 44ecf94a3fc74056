//! What was promised, checked against what happened: Jepsen's total-queue, for mail.
//!
//! A `250` after the final dot is an acknowledged enqueue, a final dot that a sink answered with `250` is a dequeue.
//! Each recipient of each message is an item of its own. Time counts from the start of the history.

use std::{collections::BTreeMap, fmt, time::Duration};

use sha2::{Digest as _, Sha256};

/// From a next hop's `250` until the outcome is committed, at most: what is answered so short before a fault may be
/// delivered again.
const RECORDING: Duration = Duration::from_secs(2);
/// From the end of a fault until leaders and leases are settled: what is answered then may be delivered again.
const SETTLING: Duration = Duration::from_secs(2);
/// Violations of one kind that are described one by one.
const DESCRIBED_MAX: usize = 10;

/// Hash of a body.
pub(crate) type BodyHash = [u8; 32];

/// Hash of what a message says, without what a relay may add in front.
pub(crate) fn body_hash(body: &[u8]) -> BodyHash {
    Sha256::digest(body).into()
}

/// One recipient of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Item {
    pub(crate) message: u64,
    pub(crate) recipient: u16,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.message, self.recipient)
    }
}

/// What a client knows of one time that it handed a message in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 250 after the final dot: it must be delivered.
    Acknowledged,
    /// The final dot was sent, and no answer seen: it may be delivered.
    Unknown,
    /// The final dot was answered with a refusal. It should not be delivered, but a commit may come after a `451`.
    Refused,
    /// The final dot was never sent: it must not be delivered.
    NotOffered,
}

/// A final dot at a sink.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) body: BodyHash,
    /// When the final dot came.
    pub(crate) dot: Duration,
    /// When 250 was written; `None`: the connection was cut before, so that the other side has to come again.
    pub(crate) answered: Option<Duration>,
}

/// A fault of some length, zero for a kill.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) name: String,
    pub(crate) begin: Duration,
    pub(crate) end: Duration,
    /// Attempts in flight may be made again. Not so for what an operator plans: a drain, a restart one by one.
    pub(crate) excuses_duplicates: bool,
}

#[derive(Clone, Debug, Default)]
struct Record {
    body: BodyHash,
    answers: Vec<Answer>,
    deliveries: Vec<Delivery>,
    /// The node that made each delivery, where it is known.
    deliverers: Vec<Option<u16>>,
    bounces: u32,
}

/// Everything that clients, sinks and the maker of faults saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    records: BTreeMap<Item, Record>,
    /// Deliveries of what nobody sent.
    strange: Vec<String>,
    /// With the nodes whose attempts they interrupt; none: those of all.
    faults: Vec<(Fault, Vec<u16>)>,
    /// Messages that are left in the queue after everything was given time to end; `None`: nobody could tell.
    left: Option<u64>,
}

/// How many of each kind, and what was violated.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Verdict {
    pub(crate) acknowledged: u64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
    pub(crate) unexpected: u64,
    pub(crate) duplicated: u64,
    /// Deliveries that were in flight at a fault: as many duplicates can be excused.
    pub(crate) in_flight: u64,
    pub(crate) unknown: u64,
    /// Delivered although every answer was a refusal after the final dot.
    pub(crate) late: u64,
    pub(crate) left: Option<u64>,
    /// One line each.
    pub(crate) violations: Vec<String>,
}

impl History {
    /// A client begins to hand an item in; again with the same body if it did so before.
    pub(crate) fn offer(&mut self, item: Item, body: BodyHash) {
        self.records.entry(item).or_default().body = body;
    }

    /// How that ended.
    pub(crate) fn answer(&mut self, item: Item, answer: Answer) {
        self.records.entry(item).or_default().answers.push(answer);
    }

    /// A sink got an item.
    pub(crate) fn deliver(&mut self, item: Item, delivery: Delivery) {
        self.add(None, item, delivery);
    }

    /// The same, from a node that is known.
    pub(crate) fn deliver_from(&mut self, node: u16, item: Item, delivery: Delivery) {
        self.add(Some(node), item, delivery);
    }

    fn add(&mut self, node: Option<u16>, item: Item, delivery: Delivery) {
        match self.records.get_mut(&item) {
            Some(record) => {
                record.deliveries.push(delivery);
                record.deliverers.push(node);
            }
            None => self.stranger(format!("{item}, which nobody sent")),
        }
    }

    /// A sink got something that is no item.
    pub(crate) fn stranger(&mut self, what: String) {
        self.strange.push(what);
    }

    /// The sender got a bounce for an item.
    pub(crate) fn bounce(&mut self, item: Item) {
        match self.records.get_mut(&item) {
            Some(record) => record.bounces += 1,
            None => self.stranger(format!("a bounce of {item}, which nobody sent")),
        }
    }

    /// A fault that interrupts attempts of all nodes.
    pub(crate) fn fault(&mut self, fault: Fault) {
        self.fault_at(fault, vec![]);
    }

    /// A fault that interrupts attempts of these nodes only.
    pub(crate) fn fault_at(&mut self, fault: Fault, nodes: Vec<u16>) {
        self.faults.push((fault, nodes));
    }

    /// How many messages are in the queue at the end.
    pub(crate) fn left(&mut self, messages: Option<u64>) {
        self.left = messages;
    }

    /// Acknowledged items without a delivery or bounce: what a harness waits for.
    pub(crate) fn missing(&self) -> usize {
        self.records.values().filter(|record| record.acknowledged() && !record.arrived()).count()
    }

    /// Compares.
    pub(crate) fn check(&self) -> Verdict {
        let mut verdict = Verdict { left: self.left, ..Verdict::default() };
        let mut found = Violations::default();
        for (item, record) in &self.records {
            self.check_item(*item, record, &mut verdict, &mut found);
        }
        for what in &self.strange {
            verdict.unexpected += 1;
            found.add("unexpected", what.clone());
        }
        match self.left {
            Some(0) => {}
            Some(left) => found.add("queue", format!("{left} messages are left in it")),
            None => found.add("queue", "nobody could tell what is left in it".to_owned()),
        }
        if verdict.duplicated > verdict.in_flight {
            let (surplus, excused) = (verdict.duplicated, verdict.in_flight);
            let mut text = format!("{surplus}, but only {excused} were in flight at the faults:");
            for (fault, _) in &self.faults {
                text += &format!(" {} ({:.1?} to {:.1?})", fault.name, fault.begin, fault.end);
            }
            found.add("duplicated", text);
        }
        verdict.violations = found.lines();
        verdict
    }

    fn check_item(
        &self,
        item: Item,
        record: &Record,
        verdict: &mut Verdict,
        found: &mut Violations,
    ) {
        let count = |wanted| record.answers.iter().filter(|answer| **answer == wanted).count();
        let (acknowledged, unknown) = (count(Answer::Acknowledged), count(Answer::Unknown));
        let taken: Vec<(&Delivery, Option<u16>)> = record
            .deliveries
            .iter()
            .zip(record.deliverers.iter().copied())
            .filter(|(delivery, _)| delivery.answered.is_some())
            .collect();
        verdict.acknowledged += u64::from(acknowledged > 0);
        verdict.unknown += u64::from(acknowledged == 0 && unknown > 0);
        verdict.delivered += u64::from(!taken.is_empty());
        verdict.in_flight +=
            taken.iter().filter(|(delivery, node)| self.excuse(delivery, *node).is_some()).count()
                as u64;
        if record.acknowledged() && !record.arrived() {
            verdict.lost += 1;
            found.add(
                "lost",
                format!("{item} was answered 250 and came neither to a sink nor back"),
            );
        }
        for delivery in &record.deliveries {
            if delivery.body != record.body {
                verdict.unexpected += 1;
                found.add(
                    "unexpected",
                    format!("{item} came with another body at {:?}", delivery.dot),
                );
            }
        }
        if !record.deliveries.is_empty() && acknowledged + unknown == 0 {
            if count(Answer::Refused) > 0 {
                verdict.late += 1;
            } else {
                verdict.unexpected += 1;
                found.add("unexpected", format!("{item} came though its final dot was never sent"));
            }
        }
        // A client that saw no answer sends again: as many copies are its own doing.
        let copies = (acknowledged + unknown + count(Answer::Refused)).max(1);
        let surplus = taken.len().saturating_sub(copies);
        verdict.duplicated += surplus as u64;
        // All but the last delivery need an excuse.
        let mut inexcusable: Vec<_> = taken.split_last().map_or(vec![], |(_, earlier)| {
            earlier.iter().filter(|(taken, node)| self.excuse(taken, *node).is_none()).collect()
        });
        inexcusable.truncate(surplus.min(inexcusable.len().saturating_sub(copies - 1)));
        for (delivery, node) in inexcusable {
            let (again, by) = taken.last().map(|(again, by)| (again.dot, *by)).unwrap_or_default();
            let text = format!(
                "{item}: answered 250 by the sink at {:.3?} (node {}), not in flight at a fault, and came again at \
                 {again:.3?} (node {})",
                delivery.answered.unwrap_or_default(),
                node.unwrap_or_default(),
                by.unwrap_or_default(),
            );
            found.add("duplicated", text);
        }
    }

    /// The fault that a delivery was in flight at.
    fn excuse(&self, delivery: &Delivery, node: Option<u16>) -> Option<&Fault> {
        let answered = delivery.answered?;
        let faults = self
            .faults
            .iter()
            .filter(|(_, nodes)| nodes.is_empty() || node.is_none_or(|node| nodes.contains(&node)));
        faults.map(|(fault, _)| fault).find(|fault| {
            fault.excuses_duplicates
                && delivery.dot <= fault.end + SETTLING
                && answered + RECORDING >= fault.begin
        })
    }
}

impl Record {
    fn acknowledged(&self) -> bool {
        self.answers.contains(&Answer::Acknowledged)
    }

    fn arrived(&self) -> bool {
        self.bounces > 0 || self.deliveries.iter().any(|delivery| delivery.answered.is_some())
    }
}

impl Verdict {
    /// Adds another one's figures.
    pub(crate) fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.unexpected += other.unexpected;
        self.duplicated += other.duplicated;
        self.in_flight += other.in_flight;
        self.unknown += other.unknown;
        self.late += other.late;
        self.left = self.left.zip(other.left).map(|(a, b)| a + b);
        self.violations.extend(other.violations.iter().cloned());
    }
}

/// Violations by kind, the first of each kind in words.
#[derive(Default)]
struct Violations(BTreeMap<&'static str, Vec<String>>);

impl Violations {
    fn add(&mut self, kind: &'static str, what: String) {
        self.0.entry(kind).or_default().push(what);
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, all) in &self.0 {
            lines.extend(all.iter().take(DESCRIBED_MAX).map(|what| format!("{kind}: {what}")));
            if all.len() > DESCRIBED_MAX {
                lines.push(format!("{kind}: and {} more", all.len() - DESCRIBED_MAX));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Item = Item { message: 1, recipient: 0 };
    const BODY: &[u8] = b"text\r\n";

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn history(answers: &[Answer]) -> History {
        let mut history = History::default();
        history.offer(A, body_hash(BODY));
        answers.iter().for_each(|answer| history.answer(A, *answer));
        history.left(Some(0));
        history
    }

    fn taken(history: &mut History, at: u64) {
        let at = seconds(at);
        history.deliver(A, Delivery { body: body_hash(BODY), dot: at, answered: Some(at) });
    }

    fn kill(history: &mut History, at: u64) {
        history.fault(Fault {
            name: "kill".into(),
            begin: seconds(at),
            end: seconds(at),
            excuses_duplicates: true,
        });
    }

    fn kinds(history: &History) -> Vec<String> {
        let kind = |line: &String| line.split(':').next().unwrap().to_owned();
        let mut kinds: Vec<_> = history.check().violations.iter().map(kind).collect();
        kinds.dedup();
        kinds
    }

    #[test]
    fn what_was_acknowledged_and_came_once_is_good() {
        let mut history = history(&[Answer::Acknowledged]);
        taken(&mut history, 1);
        let verdict = history.check();
        assert!(verdict.violations.is_empty(), "{:?}", verdict.violations);
        assert_eq!((verdict.acknowledged, verdict.delivered, verdict.lost), (1, 1, 0));
    }

    #[test]
    fn what_was_acknowledged_and_did_not_come_is_lost() {
        assert_eq!(kinds(&history(&[Answer::Acknowledged])), ["lost"]);
        assert_eq!(kinds(&history(&[Answer::Unknown, Answer::Acknowledged])), ["lost"]);
        assert_eq!(history(&[Answer::Acknowledged]).missing(), 1);
    }

    #[test]
    fn a_dot_without_answer_is_no_delivery() {
        let mut history = history(&[Answer::Acknowledged]);
        history.deliver(A, Delivery { body: body_hash(BODY), dot: seconds(1), answered: None });
        assert_eq!(kinds(&history), ["lost"]);
        taken(&mut history, 2);
        let verdict = history.check();
        assert!(verdict.violations.is_empty() && verdict.duplicated == 0, "{verdict:?}");
    }

    #[test]
    fn a_bounce_is_an_answer_too() {
        let mut history = history(&[Answer::Acknowledged]);
        history.bounce(A);
        assert!(kinds(&history).is_empty());
    }

    #[test]
    fn unknown_may_come_or_not() {
        let mut history = history(&[Answer::Unknown]);
        assert!(kinds(&history).is_empty());
        assert_eq!(history.check().unknown, 1);
        taken(&mut history, 1);
        assert!(kinds(&history).is_empty());
    }

    #[test]
    fn what_was_never_sent_must_not_come() {
        let mut vanished = history(&[Answer::NotOffered]);
        assert!(kinds(&vanished).is_empty());
        taken(&mut vanished, 1);
        assert_eq!(kinds(&vanished), ["unexpected"]);
        let mut nothing = History::default();
        nothing.left(Some(0));
        taken(&mut nothing, 1);
        assert_eq!(kinds(&nothing), ["unexpected"]);
        nothing.bounce(A);
        assert_eq!(nothing.check().unexpected, 2);
    }

    #[test]
    fn another_body_is_unexpected() {
        let mut history = history(&[Answer::Acknowledged]);
        let body = body_hash(b"other");
        history.deliver(A, Delivery { body, dot: seconds(1), answered: Some(seconds(1)) });
        assert_eq!(kinds(&history), ["unexpected"]);
    }

    #[test]
    fn a_refused_message_that_comes_is_counted() {
        let mut history = history(&[Answer::Refused]);
        taken(&mut history, 1);
        let verdict = history.check();
        assert!(verdict.violations.is_empty() && verdict.late == 1, "{verdict:?}");
    }

    #[test]
    fn a_duplicate_without_a_fault_is_a_violation() {
        let mut history = history(&[Answer::Acknowledged]);
        taken(&mut history, 10);
        taken(&mut history, 50);
        assert_eq!(kinds(&history), ["duplicated"]);
        kill(&mut history, 50);
        assert_eq!(
            kinds(&history),
            ["duplicated"],
            "a fault at the second one is none at the first"
        );
        kill(&mut history, 11);
        let verdict = history.check();
        assert!(verdict.violations.is_empty(), "{verdict:?}");
        assert_eq!((verdict.duplicated, verdict.in_flight), (1, 2));
    }

    #[test]
    fn a_planned_change_excuses_nothing() {
        let mut history = history(&[Answer::Acknowledged]);
        taken(&mut history, 10);
        taken(&mut history, 12);
        history.fault(Fault {
            name: "drain".into(),
            begin: seconds(9),
            end: seconds(13),
            excuses_duplicates: false,
        });
        assert_eq!(kinds(&history), ["duplicated"]);
    }

    #[test]
    fn a_fault_of_one_node_does_not_excuse_another() {
        let made = |nodes: Vec<u16>| {
            let mut history = history(&[Answer::Acknowledged]);
            for at in [10, 50] {
                let (body, at) = (body_hash(BODY), seconds(at));
                history.deliver_from(2, A, Delivery { body, dot: at, answered: Some(at) });
            }
            let (name, begin) = ("kill".to_owned(), seconds(10));
            history.fault_at(Fault { name, begin, end: begin, excuses_duplicates: true }, nodes);
            kinds(&history)
        };
        assert_eq!(made(vec![1, 3]), ["duplicated"]);
        assert!(made(vec![2]).is_empty() && made(vec![]).is_empty());
    }

    #[test]
    fn a_resent_message_may_come_as_often_as_it_was_sent() {
        let mut history = history(&[Answer::Unknown, Answer::Acknowledged]);
        taken(&mut history, 10);
        taken(&mut history, 12);
        assert!(kinds(&history).is_empty(), "{:?}", history.check().violations);
        taken(&mut history, 14);
        assert_eq!(kinds(&history), ["duplicated"]);
    }

    #[test]
    fn a_queue_that_does_not_drain_is_a_violation() {
        let mut history = history(&[]);
        history.left(Some(3));
        assert_eq!(kinds(&history), ["queue"]);
        history.left(None);
        assert_eq!(kinds(&history), ["queue"]);
    }
}
