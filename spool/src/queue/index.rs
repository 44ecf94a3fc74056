//! The queue index: the deterministic state of a partition, and how each entry changes it.
//!
//! Nothing in here asks for the time or knows who leads, except for the takeover grace, which is the leader's own.

mod apply;
mod keep;
mod key;
mod pins;
mod slot;
#[cfg(test)]
mod view;
mod written;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

pub(super) use self::{keep::Keeper, key::Key, written::Kept};
use self::{
    key::Due,
    pins::Pins,
    slot::{Head, Slot},
    written::Changed,
};
#[cfg(test)]
pub(super) use view::View;

use super::{
    entry::Tried,
    history::{History, Volume},
    message::{Attempt, MessageId, QueuedMessage, Turn},
};
use crate::{NodeId, env::UnixMs, group::Position};

/// The queue as of some index of the log.
#[derive(Debug, Default)]
pub(super) struct Index {
    applied: Option<u64>,
    /// Term of that entry.
    term: u64,
    messages: BTreeMap<Key, Slot>,
    /// Uploads that no `Accept` has claimed.
    partials: BTreeMap<MessageId, Partial>,
    /// Queued messages by turn and when they are due, but those in `grace`.
    due: BTreeSet<Due>,
    /// Messages with an attempt that has begun and has no outcome yet: those whose slots say so.
    begun: BTreeSet<Key>,
    grace: Grace,
    /// First index of every message and upload.
    pins: Pins,
    history: History,
    volume: Volume,
    bytes: u64,
    /// Bytes of the log that the messages need, about.
    live: u64,
    held: usize,
    /// The highest id seen of each node.
    highest: BTreeMap<u16, MessageId>,
    handover: Option<Handover>,
    /// Not replicated: what a local checkpoint lacks.
    changed: Changed,
}

/// Chunks of a message that is not yet accepted: number to index and length.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Partial {
    chunks: BTreeMap<u32, (u64, u64)>,
    pin: u64,
    /// Term of the first chunk.
    term: u64,
}

/// Messages that a former leader may have had in flight. Not replicated.
#[derive(Debug, Default)]
struct Grace {
    until: UnixMs,
    waiting: BTreeSet<Due>,
}

/// The last hand-over in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handover {
    pub(super) term: u64,
    pub(super) to: NodeId,
}

/// What an entry did, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    pub(super) accepted: u64,
    pub(super) completed: u64,
    pub(super) aborted: u64,
}

/// Figures of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Messages that wait for an attempt.
    pub queued: usize,
    /// Messages on hold.
    pub held: usize,
    /// Messages that are being received.
    pub uploads: usize,
    /// Bytes of all messages.
    pub bytes: u64,
    /// When the oldest message was received.
    pub oldest: Option<UnixMs>,
}

/// An entry that was not applied, and why.
type Refusal = String;

impl Index {
    /// An empty queue that knows the ids of a checkpoint.
    pub(super) fn restored(highest: Vec<MessageId>) -> Self {
        let mut index = Self::default();
        highest.into_iter().for_each(|id| index.see(id));
        index
    }

    /// Goes past an entry of `term` that nobody can apply.
    pub(super) fn refuse(&mut self, at: Position, bytes: u64) {
        self.term = at.term;
        self.pass(at.index, bytes);
    }

    /// Goes past an entry.
    pub(super) fn pass(&mut self, index: u64, bytes: u64) {
        self.applied = Some(index);
        self.history.advance(index);
        self.volume.add(index, bytes);
    }

    /// The highest index that a new replica need not see, when `applied` has been applied.
    pub(super) fn checkpoint(&mut self, applied: u64) -> Option<u64> {
        let upto = match self.pins.first() {
            Some(pin) => applied.min(pin.checked_sub(1)?),
            None => applied,
        };
        let start = self.history.start(upto)?;
        if Some(applied) >= self.applied {
            self.history.forget(start);
        }
        Some(start)
    }

    /// About how many bytes of entries lie behind `purged` up to `upto`.
    pub(super) fn bytes_between(&mut self, purged: Option<u64>, upto: u64) -> u64 {
        self.volume.between(purged, upto)
    }

    /// About how many bytes of entries lie behind `index`.
    pub(super) fn bytes_behind(&self, index: Option<u64>) -> u64 {
        self.volume.behind(index)
    }

    pub(super) fn highest(&self) -> impl Iterator<Item = MessageId> + '_ {
        self.highest.values().copied()
    }

    pub(super) fn handover(&self) -> Option<Handover> {
        self.handover
    }

    pub(super) fn applied(&self) -> Option<u64> {
        self.applied
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn get(&self, id: MessageId) -> Option<Arc<QueuedMessage>> {
        let (head, message) = self.open(id)?;
        Some(self.shown(&head, message))
    }

    pub(super) fn tried(&self, id: MessageId) -> Tried {
        self.head(id).map(|head| head.tried).unwrap_or_default()
    }

    /// The log says that an attempt for this message may be under way.
    pub(super) fn is_begun(&self, id: MessageId) -> bool {
        Key::of(id).is_some_and(|key| self.begun.contains(&key))
    }

    /// The entry that holds a message's envelope, added headers included.
    pub(super) fn record_of(&self, id: MessageId) -> Option<u64> {
        self.head(id).map(|head| head.record)
    }

    /// Up to `limit` messages by id, behind `after`.
    pub(super) fn page(&self, after: Option<MessageId>, limit: usize) -> Vec<Arc<QueuedMessage>> {
        let from = after.and_then(Key::of).map_or(Bound::Unbounded, Bound::Excluded);
        self.messages
            .range((from, Bound::Unbounded))
            .take(limit)
            .filter_map(|(key, slot)| slot.open(key.id()))
            .map(|(head, message)| self.shown(&head, message))
            .collect()
    }

    pub(super) fn summary(&self) -> Summary {
        let first = self.messages.first_key_value().and_then(|(key, slot)| slot.open(key.id()));
        Summary { oldest: first.map(|(_, message)| message.envelope.received), ..self.figures() }
    }

    /// The summary without the oldest message, which has to be decoded.
    pub(super) fn figures(&self) -> Summary {
        Summary {
            queued: self.messages.len() - self.held,
            held: self.held,
            uploads: self.partials.len(),
            bytes: self.bytes,
            oldest: None,
        }
    }

    /// Whether all of these addresses are still to be delivered to; each with the number of the recipient that led there.
    pub(super) fn are_open(&self, id: MessageId, addresses: &[(u32, &str)]) -> bool {
        let slot = Key::of(id).and_then(|key| self.messages.get(&key));
        slot.is_some_and(|slot| slot.are_open(addresses))
    }

    /// Up to `limit` messages of a turn due at `now`, earliest first, behind `after`.
    pub(super) fn due(
        &mut self,
        now: UnixMs,
        turn: Turn,
        limit: usize,
        after: Option<(UnixMs, MessageId)>,
    ) -> Vec<(UnixMs, MessageId)> {
        if self.grace.until <= now {
            self.end_grace();
        }
        let after = after.and_then(|(due, id)| Some(Due::new(turn, due, Key::of(id)?)));
        let from = after.map_or_else(|| Bound::Included(Due::first_of(turn)), Bound::Excluded);
        let last = Due::last_at(turn, now);
        if after.is_some_and(|after| after >= last) {
            return Vec::new();
        }
        self.due
            .range((from, Bound::Included(last)))
            .take(limit)
            .map(|due| (due.due(), due.key().id()))
            .collect()
    }

    pub(super) fn next_due(&self) -> Option<UnixMs> {
        let first_of = |turn| self.due.range(Due::first_of(turn)..).next().map(|due| due.due());
        let first = [Turn::First, Turn::Again].into_iter().filter_map(first_of).min();
        let waiting = (!self.grace.waiting.is_empty()).then_some(self.grace.until);
        first.into_iter().chain(waiting).min()
    }

    /// Makes the messages that may be in flight wait until `until`; returns how many those are, held ones included.
    pub(super) fn begin_grace(&mut self, until: UnixMs) -> usize {
        self.end_grace();
        let in_flight = self.begun.iter().filter_map(|key| Some((key, self.messages.get(key)?)));
        let waiting: BTreeSet<_> =
            in_flight.filter_map(|(key, slot)| slot.head()?.due_entry(*key)).collect();
        waiting.iter().for_each(|due| _ = self.due.remove(due));
        self.grace = Grace { until, waiting };
        self.begun.len()
    }

    pub(super) fn end_grace(&mut self) {
        self.due.append(&mut self.grace.waiting);
    }

    /// Uploads in progress: id and the term in which they began.
    pub(super) fn uploads(&self) -> Vec<(MessageId, u64)> {
        self.partials.iter().map(|(id, partial)| (*id, partial.term)).collect()
    }
}

// === bookkeeping ===

impl Index {
    fn touch(&mut self, index: u64, id: MessageId, ends: bool) {
        self.history.touch(index, id, ends);
        self.see(id);
    }

    fn see(&mut self, id: MessageId) {
        let highest = self.highest.entry(id.node).or_insert(id);
        *highest = id.max(*highest);
    }

    fn head(&self, id: MessageId) -> Option<Head> {
        self.messages.get(&Key::of(id)?)?.head()
    }

    fn open(&self, id: MessageId) -> Option<(Head, QueuedMessage)> {
        self.messages.get(&Key::of(id)?)?.open(id)
    }

    /// Adds a message, whose oldest record is at `pin` and its envelope at `record`.
    fn insert(&mut self, message: &QueuedMessage, pin: u64, record: u64, tried: Tried) {
        // Entries with other ids have been refused.
        let Some(key) = Key::of(message.id) else { return };
        let head = Head::new(message, pin, record, tried);
        self.add(key, &head, Slot::new(&head, message));
    }

    fn add(&mut self, key: Key, head: &Head, slot: Slot) {
        self.bytes += head.size;
        self.live += slot.weight(head);
        self.held += usize::from(head.held);
        self.due.extend(head.due_entry(key));
        self.pins.add(head.pin);
        self.changed.note(key);
        if head.tried.begun {
            self.begun.insert(key);
        }
        self.messages.insert(key, slot);
    }

    fn remove(&mut self, id: MessageId) {
        let Some(key) = Key::of(id) else { return };
        let removed = self.messages.remove(&key).and_then(|slot| Some((slot.head()?, slot)));
        let Some((head, slot)) = removed else { return };
        self.bytes -= head.size;
        self.changed.note(key);
        self.live -= slot.weight(&head);
        self.leave(key, &head);
        self.begun.remove(&key);
        self.pins.remove(head.pin);
    }

    /// An attempt has begun.
    fn begin(&mut self, id: MessageId) {
        let Some(key) = Key::of(id) else { return };
        if let Some(slot) = self.messages.get_mut(&key) {
            slot.mark_begun(true);
            self.changed.note(key);
            self.begun.insert(key);
        }
    }

    /// No attempt is under way.
    fn end_begun(&mut self) {
        for key in std::mem::take(&mut self.begun) {
            if let Some(slot) = self.messages.get_mut(&key) {
                slot.mark_begun(false);
                self.changed.note(key);
            }
        }
    }

    /// Takes a message out of what it is counted among.
    fn leave(&mut self, key: Key, head: &Head) {
        self.held -= usize::from(head.held);
        if let Some(due) = head.due_entry(key) {
            self.due.remove(&due);
            self.grace.waiting.remove(&due);
        }
    }

    /// Whether a message waits because of an unplanned takeover.
    fn is_waiting(&self, id: MessageId, head: &Head) -> bool {
        let due = Key::of(id).and_then(|key| head.due_entry(key));
        due.is_some_and(|due| self.grace.waiting.contains(&due))
    }

    /// Lets a message wait as those that may be in flight do.
    fn wait(&mut self, id: MessageId) {
        let due = self.head(id).zip(Key::of(id)).and_then(|(head, key)| head.due_entry(key));
        if let Some(due) = due.filter(|due| self.due.remove(due)) {
            self.grace.waiting.insert(due);
        }
    }

    /// Replaces a message by what became of it, or removes it when every recipient is finished now; true then.
    fn replace(&mut self, old: &Head, message: &QueuedMessage, tried: Tried) -> bool {
        if !message.recipients.iter().any(Attempt::is_open) {
            self.remove(message.id);
            return true;
        }
        let Some(key) = Key::of(message.id) else { return false };
        self.leave(key, old);
        let head = Head::new(message, old.pin, old.record, tried);
        self.held += usize::from(head.held);
        self.due.extend(head.due_entry(key));
        self.changed.note(key);
        if !tried.begun {
            self.begun.remove(&key);
        }
        let slot = Slot::new(&head, message);
        self.live += slot.weight(&head);
        if let Some(old_slot) = self.messages.insert(key, slot) {
            self.live -= old_slot.weight(old);
        }
        false
    }

    fn take_partial(&mut self, id: MessageId) -> Option<Partial> {
        let partial = self.partials.remove(&id)?;
        self.pins.remove(partial.pin);
        Some(partial)
    }

    /// The key of a message that waits for the end of the grace.
    fn waits(&self, id: MessageId) -> Option<Due> {
        let due = self.head(id)?.due_entry(Key::of(id)?)?;
        self.grace.waiting.contains(&due).then_some(due)
    }

    /// The message with its grace, if it is in it.
    fn shown(&self, head: &Head, mut message: QueuedMessage) -> Arc<QueuedMessage> {
        let due = Key::of(message.id).and_then(|key| head.due_entry(key));
        if due.is_some_and(|due| self.grace.waiting.contains(&due)) {
            message.not_before = self.grace.until;
        }
        Arc::new(message)
    }
}
