//! The queue index: the deterministic state of a partition, and how each entry changes it.
//!
//! Nothing in here asks for the time or knows who leads, except for the takeover grace, which is the leader's own.

mod apply;
#[cfg(test)]
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

#[cfg(test)]
pub(super) use view::View;

use super::{
    history::{History, Volume},
    message::{Attempt, MessageId, MessageState, QueuedMessage},
};
use crate::{NodeId, env::UnixMs};

/// The queue as of some index of the log.
#[derive(Debug, Default)]
pub(super) struct Index {
    applied: Option<u64>,
    messages: BTreeMap<MessageId, Slot>,
    /// Uploads that no `Accept` has claimed.
    partials: BTreeMap<MessageId, Partial>,
    /// Queued messages by when they are due, but those in `grace`.
    due: BTreeSet<(UnixMs, MessageId)>,
    grace: Grace,
    /// First index of every message and upload, with how many have it.
    pins: BTreeMap<u64, u32>,
    history: History,
    volume: Volume,
    bytes: u64,
    held: usize,
    /// The highest id seen of each node.
    highest: BTreeMap<u16, MessageId>,
    handover: Option<Handover>,
}

/// A message with what only the index needs of it.
#[derive(Clone, Debug)]
struct Slot {
    message: Arc<QueuedMessage>,
    /// The oldest entry without which a replay would not have this message.
    pin: u64,
    /// An outcome has been recorded.
    tried: bool,
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
    waiting: BTreeSet<(UnixMs, MessageId)>,
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

    /// Goes past an entry that nobody can apply.
    pub(super) fn pass(&mut self, index: u64, bytes: u64) {
        self.applied = Some(index);
        self.history.advance(index);
        self.volume.add(index, bytes);
    }

    /// The highest index that a new replica need not see, when `applied` has been applied.
    pub(super) fn checkpoint(&mut self, applied: u64) -> Option<u64> {
        let upto = match self.pins.first_key_value() {
            Some((&pin, _)) => applied.min(pin.checked_sub(1)?),
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
        self.messages.get(&id).map(|slot| self.shown(slot))
    }

    pub(super) fn tried(&self, id: MessageId) -> bool {
        self.messages.get(&id).is_some_and(|slot| slot.tried)
    }

    pub(super) fn list(&self) -> Vec<Arc<QueuedMessage>> {
        self.messages.values().map(|slot| self.shown(slot)).collect()
    }

    pub(super) fn summary(&self) -> Summary {
        Summary {
            queued: self.messages.len() - self.held,
            held: self.held,
            uploads: self.partials.len(),
            bytes: self.bytes,
            oldest: self.messages.first_key_value().map(|(_, slot)| slot.message.envelope.received),
        }
    }

    /// Up to `limit` messages due at `now`, earliest first, behind `after`.
    pub(super) fn due(
        &mut self,
        now: UnixMs,
        limit: usize,
        after: Option<(UnixMs, MessageId)>,
    ) -> Vec<(UnixMs, Arc<QueuedMessage>)> {
        if self.grace.until <= now {
            self.end_grace();
        }
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.due
            .range((from, Bound::Included((now, MessageId::MAX))))
            .take(limit)
            .filter_map(|(due, id)| Some((*due, Arc::clone(&self.messages.get(id)?.message))))
            .collect()
    }

    pub(super) fn next_due(&self) -> Option<UnixMs> {
        let first = self.due.first().map(|(due, _)| *due);
        let waiting = (!self.grace.waiting.is_empty()).then_some(self.grace.until);
        first.into_iter().chain(waiting).min()
    }

    /// Makes the messages that are due at `now` wait until `until`; returns how many.
    pub(super) fn begin_grace(&mut self, now: UnixMs, until: UnixMs) -> usize {
        self.end_grace();
        let later =
            self.due.split_off(&(now.plus(std::time::Duration::from_millis(1)), MessageId::MIN));
        let waiting = std::mem::replace(&mut self.due, later);
        self.grace = Grace { until, waiting };
        self.grace.waiting.len()
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

    fn insert(&mut self, slot: Slot) {
        let message = &slot.message;
        self.bytes += message.size;
        self.held += usize::from(message.state == MessageState::Held);
        self.due.extend(due_key(message));
        self.pin(slot.pin);
        self.messages.insert(slot.message.id, slot);
    }

    fn remove(&mut self, id: MessageId) {
        let Some(slot) = self.messages.remove(&id) else { return };
        let message = &slot.message;
        self.bytes -= message.size;
        self.held -= usize::from(message.state == MessageState::Held);
        if let Some(key) = due_key(message) {
            self.due.remove(&key);
            self.grace.waiting.remove(&key);
        }
        self.unpin(slot.pin);
    }

    /// Changes a message; true if every recipient of it is finished now.
    fn update(&mut self, id: MessageId, change: impl FnOnce(&mut QueuedMessage)) -> bool {
        let Some(slot) = self.messages.get_mut(&id) else { return false };
        if let Some(key) = due_key(&slot.message) {
            self.due.remove(&key);
            self.grace.waiting.remove(&key);
        }
        self.held -= usize::from(slot.message.state == MessageState::Held);
        let message = Arc::make_mut(&mut slot.message);
        change(message);
        self.held += usize::from(message.state == MessageState::Held);
        self.due.extend(due_key(message));
        !message.recipients.iter().any(Attempt::is_open)
    }

    fn take_partial(&mut self, id: MessageId) -> Option<Partial> {
        let partial = self.partials.remove(&id)?;
        self.unpin(partial.pin);
        Some(partial)
    }

    fn pin(&mut self, index: u64) {
        *self.pins.entry(index).or_insert(0) += 1;
    }

    fn unpin(&mut self, index: u64) {
        if let Some(count) = self.pins.get_mut(&index) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&index);
            }
        }
    }

    /// The key of a message that waits for the end of the grace.
    fn waits(&self, id: MessageId) -> Option<(UnixMs, MessageId)> {
        let key = due_key(&self.messages.get(&id)?.message)?;
        self.grace.waiting.contains(&key).then_some(key)
    }

    /// The message with its grace, if it is in it.
    fn shown(&self, slot: &Slot) -> Arc<QueuedMessage> {
        if self.waits(slot.message.id).is_none() {
            return Arc::clone(&slot.message);
        }
        let mut message = QueuedMessage::clone(&slot.message);
        message.not_before = self.grace.until;
        Arc::new(message)
    }
}

/// When and as what a message stands among the due ones; `None` while it is held.
fn due_key(message: &QueuedMessage) -> Option<(UnixMs, MessageId)> {
    if message.state == MessageState::Held {
        return None;
    }
    let open = message.recipients.iter().filter(|attempt| attempt.is_open());
    open.map(|attempt| attempt.next_due).min().map(|due| (due, message.id))
}
