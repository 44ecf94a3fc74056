//! What clients, sinks and the maker of faults saw in one simulation, and the checks that need the whole view.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ppsw_spool::{NodeId, PartitionId, queue::MessageId};

use crate::checker::{Answer, BodyHash, Delivery, Fault, History, Item, Verdict};

/// Violations of invariants that are kept: the first says what is wrong, the rest follow from it.
const VIOLATIONS_MAX: usize = 20;

/// Shared by everything in a simulation. Nodes use it as the outside world would: it is not part of them.
#[derive(Clone, Default)]
pub(crate) struct Ledger {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    history: History,
    messages: u64,
    /// Recipients whose outcome is in the log: nobody may deliver them again.
    recorded: BTreeSet<(MessageId, u32)>,
    /// The leader of the highest term seen.
    leaders: BTreeMap<PartitionId, (u64, NodeId)>,
    elections: u64,
    forwarded: u64,
    violations: Vec<String>,
    trace: DefaultHasher,
    last_ack: Duration,
    pause: Duration,
    faults: BTreeMap<String, u32>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mixes an event into the trace, by which two runs of a seed are compared.
    pub(crate) fn trace(&self, at: Duration, event: &str) {
        tracing::debug!(?at, "{event}");
        let mut inner = self.lock();
        at.hash(&mut inner.trace);
        event.hash(&mut inner.trace);
    }

    /// Something that must never be.
    pub(crate) fn violation(&self, at: Duration, what: &str) {
        tracing::error!(?at, "violation: {what}");
        let mut inner = self.lock();
        if inner.violations.len() < VIOLATIONS_MAX {
            inner.violations.push(format!("{what} (at {:.3} s)", at.as_secs_f64()));
        }
    }

    /// A number for a new message.
    pub(crate) fn next_message(&self) -> u64 {
        let mut inner = self.lock();
        inner.messages += 1;
        inner.messages
    }

    pub(crate) fn offer(&self, item: Item, body: BodyHash) {
        self.lock().history.offer(item, body);
    }

    pub(crate) fn answer(&self, at: Duration, item: Item, answer: Answer) {
        self.trace(at, &format!("{item} {answer:?}"));
        let mut inner = self.lock();
        inner.history.answer(item, answer);
        if answer == Answer::Acknowledged {
            inner.pause = inner.pause.max(at.saturating_sub(inner.last_ack));
            inner.last_ack = at;
        }
    }

    pub(crate) fn bounced(&self, at: Duration, item: Item) {
        self.trace(at, &format!("{item} bounced"));
        self.lock().history.bounce(item);
    }

    pub(crate) fn delivered(&self, at: Duration, item: Item, delivery: Delivery) {
        self.trace(at, &format!("{item} delivered, answered: {}", delivery.answered.is_some()));
        self.lock().history.deliver(item, delivery);
    }

    pub(crate) fn stranger(&self, what: String) {
        self.lock().history.stranger(what);
    }

    /// A node is about to send a final dot. `claims`: it believes that it leads, in this term.
    pub(crate) fn dot(
        &self,
        at: Duration,
        node: NodeId,
        partition: PartitionId,
        message: MessageId,
        recipients: &[u32],
        claims: Option<u64>,
    ) {
        let (leader, again) = {
            let inner = self.lock();
            let again =
                recipients.iter().find(|n| inner.recorded.contains(&(message, **n))).copied();
            (inner.leaders.get(&partition).copied(), again)
        };
        if let Some((term, leader)) = leader
            && leader != node
            && claims.is_none_or(|mine| mine < term)
        {
            self.violation(
                at,
                &format!(
                    "fencing: node {node} (term {claims:?}) sends the final dot of {message} while node {leader} \
                     leads partition {partition} in term {term}"
                ),
            );
        }
        if let Some(recipient) = again {
            self.violation(
                at,
                &format!("node {node} delivers recipient {recipient} of {message}, whose outcome was recorded"),
            );
        }
    }

    /// A node was told that an outcome is in the log.
    pub(crate) fn recorded(&self, at: Duration, message: MessageId, finished: &[u32]) {
        self.trace(at, &format!("{message} recorded {finished:?}"));
        let mut inner = self.lock();
        inner.recorded.extend(finished.iter().map(|number| (message, *number)));
    }

    pub(crate) fn forwarded(&self) {
        self.lock().forwarded += 1;
    }

    /// A node is seen leading.
    pub(crate) fn leads(&self, at: Duration, partition: PartitionId, term: u64, node: NodeId) {
        let known = {
            let mut inner = self.lock();
            let known = inner.leaders.get(&partition).copied();
            if known.is_none_or(|(newest, _)| newest < term) {
                inner.leaders.insert(partition, (term, node));
                inner.elections += 1;
            }
            known
        };
        if known.is_none_or(|(newest, _)| newest < term) {
            self.trace(at, &format!("node {node} leads partition {partition} in term {term}"));
        }
    }

    pub(crate) fn fault(&self, at: Duration, fault: Fault) {
        self.trace(at, &format!("fault: {}", fault.name));
        let mut inner = self.lock();
        let kind = fault.name.split(' ').next().unwrap_or_default().to_owned();
        *inner.faults.entry(kind).or_default() += 1;
        inner.history.fault(fault);
    }

    /// How many messages are left; `None`: nobody leads some partition.
    pub(crate) fn left(&self, left: Option<u64>) {
        self.lock().history.left(left);
    }

    /// Acknowledged and not delivered yet.
    pub(crate) fn missing(&self) -> usize {
        self.lock().history.missing()
    }

    /// The figures, with the violations of invariants in front of those of the promises.
    pub(crate) fn verdict(&self) -> Verdict {
        let inner = self.lock();
        let mut verdict = inner.history.check();
        let mut violations = inner.violations.clone();
        violations.append(&mut verdict.violations);
        verdict.violations = violations;
        verdict
    }

    /// Hash of all that happened.
    pub(crate) fn trace_hash(&self) -> u64 {
        self.lock().trace.finish()
    }

    /// Faults by kind, for the table.
    pub(crate) fn faults(&self) -> String {
        let inner = self.lock();
        let named: Vec<String> =
            inner.faults.iter().map(|(name, count)| format!("{name}:{count}")).collect();
        named.join(" ")
    }

    pub(crate) fn pause(&self) -> Duration {
        self.lock().pause
    }

    /// Elections, and outcomes that went to another node's log.
    pub(crate) fn figures(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.elections, inner.forwarded)
    }
}
