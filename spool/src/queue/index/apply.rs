//! What each kind of entry does to the index.

use std::collections::{BTreeMap, BTreeSet};

use super::{Effects, Handover, Index, Partial, Refusal};
use crate::{
    env::UnixMs,
    group::Position,
    limits::CHUNKS_PER_MESSAGE_MAX,
    queue::{
        entry::{Change, NewBody, Record, Tried, cut},
        message::{
            Attempt, Body, Envelope, Expand, Expansion, MessageId, MessageState, Outcome,
            QueuedMessage, Recipient, RecipientState, Verdict,
        },
    },
};

impl Index {
    /// Applies the entry at `at`, of `bytes` bytes. An entry that does not fit is refused, by every replica alike.
    pub(in crate::queue) fn apply(
        &mut self,
        at: Position,
        bytes: u64,
        change: Change,
    ) -> Result<Effects, Refusal> {
        self.term = at.term;
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
                // The leader has waited for its attempts to end.
                self.end_begun();
                self.history.touch_all(at.index);
                Ok(Effects::default())
            }
            Change::Begin { ids } => {
                for id in ids {
                    self.begin(id);
                    self.touch(at.index, id, false);
                }
                Ok(Effects::default())
            }
            Change::Settle { upto } => self.settle(at.index, upto),
            Change::Expand(Expand { message: id, .. })
            | Change::Hold { id }
            | Change::Release { id, .. }
            | Change::Edit { id, .. } => {
                let result = self.revise(id, change);
                self.touch(at.index, id, false);
                result
            }
        }
    }

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
            self.pins.add(at.index);
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
        if let Some(head) = self.head(id) {
            self.history.refused(index, head.pin);
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
        self.insert(&fresh(id, envelope, body, bytes), pin, index, Tried::default());
        Ok(())
    }

    fn abort(&mut self, id: MessageId, upload_only: bool) -> Result<(), Refusal> {
        let upload = self.take_partial(id).is_some();
        match self.head(id) {
            Some(head) if !upload_only && (head.tried.recorded || head.tried.begun) => {
                Err(format!("{id} cannot be aborted: an attempt has begun"))
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
        let (head, mut message) = self.open(id).ok_or_else(|| unknown(id))?;
        let pin = head.pin.min(index);
        check_outcome(&message, &outcome)?;
        let mut effects = Effects::default();
        for (made, envelope, body) in &outcome.creates {
            // The same outcome again (its proposer timed out and tried once more) must not make a second bounce.
            let present = self.head(*made).map(|head| head.pin);
            if let Some(because) = present.or_else(|| self.history.created(*made)) {
                self.history.refused(index, because);
            } else if !envelope.recipients.is_empty() {
                let body_bytes = body.len() as u64;
                let message = fresh(*made, envelope.clone(), Body::Inline { index }, body_bytes);
                self.insert(&message, pin, index, Tried::default());
                self.history.made(index, *made);
                effects.accepted += 1;
            }
        }
        record(&mut message, &outcome);
        let begun = head.tried.begun && outcome.goes_on;
        let tried = Tried { recorded: true, begun };
        let waits = begun && self.is_waiting(id, &head);
        effects.completed += u64::from(self.replace(&head, &message, tried));
        if waits {
            // More is to come of the attempt of a former leader.
            self.wait(id);
        }
        Ok(effects)
    }

    /// Operators' changes and expansion: the message must be there, and the recipient be unfinished.
    fn revise(&mut self, id: MessageId, change: Change) -> Result<Effects, Refusal> {
        let (head, mut message) = self.open(id).ok_or_else(|| unknown(id))?;
        let unfinished = match &change {
            Change::Expand(expand) => Some(expand.from.recipient),
            Change::Edit { recipient, .. } => Some(*recipient),
            _ => None,
        };
        if let Some(recipient) = unfinished {
            let found = message.recipients.get(recipient as usize);
            if !found.is_some_and(Attempt::is_open) {
                return Err(format!("{id} has no unfinished recipient {recipient}"));
            }
        }
        match change {
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
            Change::Expand(expand) => expand_into(&mut message, expand)?,
            _ => {}
        }
        let completed = u64::from(self.replace(&head, &message, head.tried));
        Ok(Effects { completed, ..Effects::default() })
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
        if let Some(settled) = self.history.settled_behind(made_at) {
            self.history.refused(index, settled);
            return Err(format!("the record of {id} as of {made_at} comes behind a settle"));
        }
        if let Some(last) = self.history.last_of_all(made_at) {
            // A hand-over ended the attempts that the record may have as begun.
            self.history.refused(index, last);
            return Err(format!(
                "the record of {id} as of {made_at} comes behind a hand-over or settle"
            ));
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
        let Record { envelope, state, recipients, expansions, warned, tried } = record;
        let mut message = fresh(id, envelope, body, bytes);
        (message.state, message.recipients, message.warned) = (state, recipients, warned);
        message.expansions = expansions;
        self.insert(&message, pin, index, tried);
        if let Some(due) = waits.filter(|due| self.due.remove(due)) {
            self.grace.waiting.insert(due);
        }
        Ok(())
    }
}

impl Index {
    fn settle(&mut self, index: u64, upto: u64) -> Result<Effects, Refusal> {
        if upto >= index {
            return Err(format!("a settle at {index} cannot reach up to {upto}"));
        }
        self.history.settle(index, upto);
        Ok(Effects::default())
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
        expansions: Vec::new(),
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
        expansion: None,
    }
}

/// Adds the recipients of an expansion.
fn expand_into(message: &mut QueuedMessage, expand: Expand) -> Result<(), Refusal> {
    let Expand { from, into, due, first, goes_on, .. } = expand;
    let known = message.recipients.len();
    let Some(attempt) = message.recipients.get_mut(from.recipient as usize) else {
        return Err(format!("{} has no recipient {}", message.id, from.recipient));
    };
    if from.address.is_empty() {
        attempt.state = RecipientState::Delivered;
        attempt.done.clear();
        message.recipients.extend(into.into_iter().map(|to| untried(to, due)));
        return Ok(());
    }
    let key = Expansion::key(&from.address);
    if attempt.done.contains(&key) {
        return Err(format!("<{}> of {} is expanded already", from.address, message.id));
    }
    if known != first as usize {
        return Err(format!("{} has {known} recipients, and not {first}", message.id));
    }
    if !goes_on {
        attempt.done.insert(key);
    }
    let number = match message.expansions.iter().position(|one| *one == from) {
        Some(number) => number,
        None => {
            message.expansions.push(from);
            message.expansions.len() - 1
        }
    };
    let expansion = u32::try_from(number).ok();
    let attempt = |to| Attempt { expansion, ..untried(to, due) };
    message.recipients.extend(into.into_iter().map(attempt));
    Ok(())
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
            // Another recipient may yet lead to an address that is done. That of the recipient itself is understood.
            if attempt.expansion.is_some() {
                attempt.done = BTreeSet::new();
            }
            attempt.done.remove(&attempt.recipient.address);
        }
    }
    message.warned |= outcome.warned;
}

fn created_ids(outcome: &Outcome) -> Vec<MessageId> {
    outcome.creates.iter().map(|(id, ..)| *id).collect()
}

fn unknown(id: MessageId) -> Refusal {
    format!("{id} is not in the queue")
}
