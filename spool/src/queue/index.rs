//! The queue index: the deterministic state of a partition, and how each entry changes it.
//!
//! Nothing in here asks for the time or knows who leads, except for the takeover grace, which is the leader's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use super::{
    entry::{Change, NewBody, Record, cut},
    history::{History, Volume},
    message::{
        Attempt, Body, Envelope, MessageId, MessageState, Outcome, QueuedMessage, Recipient,
        RecipientState, Verdict,
    },
};
use crate::{NodeId, env::UnixMs, group::Position, limits::CHUNKS_PER_MESSAGE_MAX};

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

    /// Applies the entry at `at`, of `bytes` bytes. An entry that does not fit is refused, by every replica alike.
    pub(super) fn apply(
        &mut self,
        at: Position,
        bytes: u64,
        change: Change,
    ) -> Result<Effects, Refusal> {
        self.pass(at.index, bytes);
        match change {
            Change::Chunk { id, number, bytes } => {
                let result = self.chunk(at, id, number, bytes);
                self.touch(at.index, id, false);
                result.map(|()| Effects::default())
            }
            Change::Accept { id, envelope, body } => {
                let result = self.accept(at.index, id, envelope, body);
                self.touch(at.index, id, false);
                result.map(|()| Effects { accepted: 1, ..Effects::default() })
            }
            Change::Abort { id, upload_only } => {
                let result = self.abort(id, upload_only);
                self.touch(at.index, id, true);
                result.map(|()| Effects { aborted: 1, ..Effects::default() })
            }
            Change::Outcome(outcome) => {
                let (id, created) = (outcome.message, created_ids(&outcome));
                let result = self.outcome(at.index, outcome);
                for made in created {
                    self.touch(at.index, made, false);
                }
                self.touch(at.index, id, false);
                result
            }
            Change::Carry { id, made_at, record, body } => {
                let result = self.carry(at.index, id, made_at, record, body);
                self.touch(at.index, id, false);
                result.map(|()| Effects::default())
            }
            Change::Handover { to } => {
                self.handover = Some(Handover { term: at.term, to });
                Ok(Effects::default())
            }
            Change::Expand { id, .. }
            | Change::Hold { id }
            | Change::Release { id, .. }
            | Change::Edit { id, .. } => {
                let result = self.revise(id, change);
                self.touch(at.index, id, false);
                result
            }
        }
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

// === one function per kind of entry ===

impl Index {
    fn chunk(
        &mut self,
        at: Position,
        id: MessageId,
        number: u32,
        bytes: u64,
    ) -> Result<(), Refusal> {
        if number >= CHUNKS_PER_MESSAGE_MAX {
            return Err(format!("chunk {number} of {id} is one too many"));
        }
        if let Some(ended) = self.history.ended(id) {
            self.history.refused(at.index, ended);
            return Err(format!("{id} was aborted before its chunk {number}"));
        }
        if !self.partials.contains_key(&id) {
            self.pin(at.index);
            let (chunks, term) = (BTreeMap::new(), at.term);
            self.partials.insert(id, Partial { chunks, pin: at.index, term });
        }
        if let Some(partial) = self.partials.get_mut(&id) {
            partial.chunks.insert(number, (at.index, bytes));
        }
        Ok(())
    }

    fn accept(
        &mut self,
        index: u64,
        id: MessageId,
        envelope: Envelope,
        body: NewBody,
    ) -> Result<(), Refusal> {
        let partial = self.take_partial(id);
        if let Some(slot) = self.messages.get(&id) {
            self.history.refused(index, slot.pin);
            return Err(format!("{id} is in the queue already"));
        }
        if let Some(ended) = self.history.ended(id) {
            self.history.refused(index, ended);
            return Err(format!("{id} was aborted before its acceptance"));
        }
        if envelope.recipients.is_empty() {
            return Err(format!("{id} has no recipient"));
        }
        let (body, bytes, pin) = place(index, id, body, partial)?;
        self.insert(Slot {
            message: Arc::new(fresh(id, envelope, body, bytes)),
            pin,
            tried: false,
        });
        Ok(())
    }

    fn abort(&mut self, id: MessageId, upload_only: bool) -> Result<(), Refusal> {
        let upload = self.take_partial(id).is_some();
        match self.messages.get(&id) {
            Some(slot) if !upload_only && slot.tried => {
                Err(format!("{id} cannot be aborted: it has been tried"))
            }
            Some(_) if !upload_only => {
                self.remove(id);
                Ok(())
            }
            _ if upload => Ok(()),
            _ => Err(format!("nothing of {id} is there to be aborted")),
        }
    }

    fn outcome(&mut self, index: u64, outcome: Outcome) -> Result<Effects, Refusal> {
        let id = outcome.message;
        let slot = self.messages.get(&id).ok_or_else(|| unknown(id))?;
        let pin = slot.pin.min(index);
        check_outcome(&slot.message, &outcome)?;
        let mut effects = Effects::default();
        for (made, envelope, body) in &outcome.creates {
            // The same outcome again (its proposer timed out and tried once more) must not make a second bounce.
            let present = self.messages.get(made).map(|slot| slot.pin);
            if let Some(because) = present.or_else(|| self.history.created(*made)) {
                self.history.refused(index, because);
            } else if !envelope.recipients.is_empty() {
                let body_bytes = body.len() as u64;
                let message = fresh(*made, envelope.clone(), Body::Inline { index }, body_bytes);
                self.insert(Slot { message: Arc::new(message), pin, tried: false });
                self.history.made(index, *made);
                effects.accepted += 1;
            }
        }
        let finished = self.update(id, |message| record(message, &outcome));
        if let Some(slot) = self.messages.get_mut(&id) {
            slot.tried = true;
        }
        if finished {
            self.remove(id);
            effects.completed += 1;
        }
        Ok(effects)
    }

    /// Operators' changes and expansion: the message must be there, and the recipient be unfinished.
    fn revise(&mut self, id: MessageId, change: Change) -> Result<Effects, Refusal> {
        let slot = self.messages.get(&id).ok_or_else(|| unknown(id))?;
        if let Change::Expand { recipient, .. } | Change::Edit { recipient, .. } = &change {
            let found = slot.message.recipients.get(*recipient as usize);
            if !found.is_some_and(Attempt::is_open) {
                return Err(format!("{id} has no unfinished recipient {recipient}"));
            }
        }
        let finished = self.update(id, |message| match change {
            Change::Hold { .. } => message.state = MessageState::Held,
            Change::Release { due, .. } => {
                message.state = MessageState::Queued;
                for attempt in message.recipients.iter_mut().filter(|attempt| attempt.is_open()) {
                    attempt.next_due = due.unwrap_or(attempt.next_due);
                }
            }
            Change::Edit { recipient, address, due, .. } => {
                if let Some(attempt) = message.recipients.get_mut(recipient as usize) {
                    attempt.recipient.address = address;
                    attempt.state = RecipientState::New;
                    attempt.next_due = due;
                    attempt.done.clear();
                }
            }
            Change::Expand { recipient, into, due, .. } => {
                if let Some(attempt) = message.recipients.get_mut(recipient as usize) {
                    attempt.state = RecipientState::Delivered;
                    attempt.done.clear();
                }
                message.recipients.extend(into.into_iter().map(|to| untried(to, due)));
            }
            _ => {}
        });
        let mut effects = Effects::default();
        if finished {
            self.remove(id);
            effects.completed += 1;
        }
        Ok(effects)
    }

    fn carry(
        &mut self,
        index: u64,
        id: MessageId,
        made_at: u64,
        record: Record,
        body: NewBody,
    ) -> Result<(), Refusal> {
        let partial = self.take_partial(id);
        if made_at >= index || index - made_at > self.history.entries() {
            return Err(format!("the record of {id} as of {made_at} comes too late at {index}"));
        }
        if let Some(last) = self.history.last(id).filter(|last| *last > made_at) {
            self.history.refused(index, last);
            return Err(format!("{id} has changed at {last}, its record is as of {made_at}"));
        }
        if !record.recipients.iter().any(Attempt::is_open) {
            return Err(format!("the record of {id} has no unfinished recipient"));
        }
        let (body, bytes, pin) = place(index, id, body, partial)?;
        let waits = self.waits(id);
        self.remove(id);
        let Record { envelope, state, recipients, warned, tried } = record;
        let mut message = fresh(id, envelope, body, bytes);
        (message.state, message.recipients, message.warned) = (state, recipients, warned);
        self.insert(Slot { message: Arc::new(message), pin, tried });
        if let Some(key) = waits.filter(|key| self.due.remove(key)) {
            self.grace.waiting.insert(key);
        }
        Ok(())
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

/// Where a new body is, its length, and the first index that it needs.
fn place(
    index: u64,
    id: MessageId,
    body: NewBody,
    partial: Option<Partial>,
) -> Result<(Body, u64, u64), Refusal> {
    let (count, bytes) = match body {
        NewBody::Inline { bytes } => return Ok((Body::Inline { index }, bytes, index)),
        NewBody::Chunks { count, bytes } => (count, bytes),
    };
    let chunks = partial.map(|partial| partial.chunks).unwrap_or_default();
    let (mut indexes, mut found) = (Vec::new(), 0_u64);
    for number in 0..count {
        let (at, length) = chunks.get(&number).ok_or_else(|| {
            format!("chunk {number} of {count} of {id} is not there: aborted, or never written")
        })?;
        indexes.push(*at);
        found = found.saturating_add(*length);
    }
    if found != bytes {
        return Err(format!("{id} has {bytes} bytes by its entry, {found} in its chunks"));
    }
    let pin = indexes.iter().copied().min().map_or(index, |first| first.min(index));
    Ok((Body::Chunks { indexes }, bytes, pin))
}

fn fresh(id: MessageId, envelope: Envelope, body: Body, body_bytes: u64) -> QueuedMessage {
    let due = envelope.received;
    QueuedMessage {
        id,
        state: MessageState::Queued,
        recipients: envelope.recipients.iter().map(|to| untried(to.clone(), due)).collect(),
        body,
        size: body_bytes.saturating_add(envelope.prepend.len() as u64),
        warned: false,
        not_before: UnixMs(0),
        envelope,
    }
}

fn untried(recipient: Recipient, due: UnixMs) -> Attempt {
    Attempt {
        recipient,
        state: RecipientState::New,
        attempts: 0,
        last_error: String::new(),
        next_due: due,
        done: BTreeSet::new(),
    }
}

/// Refuses an outcome that names what is not there, or that has been recorded already.
fn check_outcome(message: &QueuedMessage, outcome: &Outcome) -> Result<(), Refusal> {
    let named = || {
        outcome
            .results
            .iter()
            .map(|result| result.recipient)
            .chain(outcome.finished.iter().copied())
    };
    let mut open = false;
    for number in named() {
        let attempt = message.recipients.get(number as usize).ok_or_else(|| {
            format!("an outcome names recipient {number} of {}, which it has not", message.id)
        })?;
        open |= attempt.is_open();
    }
    if !open && named().next().is_some() {
        return Err(format!("this outcome of {} is recorded already", message.id));
    }
    Ok(())
}

/// Enters an attempt's results into a message.
fn record(message: &mut QueuedMessage, outcome: &Outcome) {
    let mut named = BTreeMap::<u32, (bool, Option<UnixMs>)>::new();
    for result in &outcome.results {
        let Some(attempt) = message.recipients.get_mut(result.recipient as usize) else { continue };
        if !attempt.is_open() {
            continue;
        }
        let (failed, next_due) = named.entry(result.recipient).or_insert((false, None));
        match result.verdict {
            Verdict::Delivered => {
                attempt.done.insert(result.address.clone());
            }
            Verdict::Failed => {
                *failed = true;
                attempt.done.insert(result.address.clone());
                cut(&result.text).clone_into(&mut attempt.last_error);
            }
            Verdict::Deferred { next_due: due } => {
                *next_due = Some(next_due.map_or(due, |earlier| earlier.min(due)));
                cut(&result.text).clone_into(&mut attempt.last_error);
            }
        }
    }
    for (number, (_, next_due)) in &named {
        let Some(attempt) = message.recipients.get_mut(*number as usize) else { continue };
        attempt.attempts = attempt.attempts.saturating_add(1);
        attempt.state = RecipientState::Deferred;
        attempt.next_due = next_due.unwrap_or(attempt.next_due);
    }
    for number in &outcome.finished {
        let Some(attempt) = message.recipients.get_mut(*number as usize) else { continue };
        if attempt.is_open() {
            let failed = named.get(number).is_some_and(|(failed, _)| *failed);
            attempt.state = if failed { RecipientState::Failed } else { RecipientState::Delivered };
            attempt.done = BTreeSet::new();
        }
    }
    message.warned |= outcome.warned;
}

/// When and as what a message stands among the due ones; `None` while it is held.
fn due_key(message: &QueuedMessage) -> Option<(UnixMs, MessageId)> {
    if message.state == MessageState::Held {
        return None;
    }
    let open = message.recipients.iter().filter(|attempt| attempt.is_open());
    open.map(|attempt| attempt.next_due).min().map(|due| (due, message.id))
}

fn created_ids(outcome: &Outcome) -> Vec<MessageId> {
    outcome.creates.iter().map(|(id, ..)| *id).collect()
}

fn unknown(id: MessageId) -> Refusal {
    format!("{id} is not in the queue")
}

/// Everything about a queue that replicas must agree on.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    messages: BTreeMap<MessageId, (QueuedMessage, bool)>,
    uploads: BTreeMap<MessageId, BTreeMap<u32, (u64, u64)>>,
    due: BTreeSet<(UnixMs, MessageId)>,
    bytes: u64,
    held: usize,
}

#[cfg(test)]
impl View {
    /// All but where bytes lie.
    pub(super) fn but_places(mut self) -> Self {
        self.uploads.clear();
        for (message, _) in self.messages.values_mut() {
            message.body = Body::Inline { index: 0 };
        }
        self
    }
}

#[cfg(test)]
impl Index {
    pub(super) fn with_history(entries: u64) -> Self {
        Self { history: History::new(entries), ..Self::default() }
    }

    pub(super) fn view(&self) -> View {
        let message = |slot: &Slot| (QueuedMessage::clone(&slot.message), slot.tried);
        View {
            messages: self.messages.iter().map(|(id, slot)| (*id, message(slot))).collect(),
            uploads: self.partials.iter().map(|(id, part)| (*id, part.chunks.clone())).collect(),
            due: self.due.clone(),
            bytes: self.bytes,
            held: self.held,
        }
    }
}
