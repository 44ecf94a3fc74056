//! The log entries of a partition: our types to bytes and back.

mod convert;

use bytes::Bytes;
pub(super) use convert::{
    read_attempts, read_envelope, read_expansion, read_id, write_attempt, write_envelope,
    write_expansion, write_id,
};
use convert::{read_expand, read_outcome, read_record, write_delivered, write_expand};
use ppsw_proto::queue as pb;
use prost::Message as _;

use super::message::{
    Attempt, Envelope, Expand, Expansion, MessageId, MessageState, Outcome, QueuedMessage,
};
use crate::{NodeId, env::UnixMs, limits::OUTCOME_TEXT_BYTES_MAX};

/// Version of the entry format that this program writes at most; it reads all up to it.
pub(super) const VERSION: u32 = 2;

/// The version of all entries but those that tell where recipients of an expansion come from: programs before them
/// must not go on without that.
const FIRST_VERSION: u32 = 1;

/// Version of the state of a checkpoint.
const CHECKPOINT_VERSION: u32 = 1;

/// A decoded entry. Bodies are only counted: their bytes stay in the log.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Chunk { id: MessageId, number: u32, bytes: u64 },
    Accept { id: MessageId, envelope: Envelope, body: NewBody },
    Abort { id: MessageId, upload_only: bool },
    Outcome(Outcome),
    Expand(Expand),
    Hold { id: MessageId },
    Release { id: MessageId, due: Option<UnixMs> },
    Edit { id: MessageId, recipient: u32, address: String, due: UnixMs },
    Carry { id: MessageId, made_at: u64, record: Record, body: NewBody },
    Handover { to: NodeId },
    Settle { upto: u64 },
    Begin { ids: Vec<MessageId> },
}

/// Where an `Accept` or `Carry` says that its body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewBody {
    /// In the entry itself.
    Inline { bytes: u64 },
    /// In the chunks 0 to `count` - 1, `bytes` in all.
    Chunks { count: u32, bytes: u64 },
}

/// A message's state as a `Carry` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) envelope: Envelope,
    pub(super) state: MessageState,
    pub(super) recipients: Vec<Attempt>,
    pub(super) expansions: Vec<Expansion>,
    pub(super) warned: bool,
    pub(super) tried: Tried,
}

/// How far the attempts of a message have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tried {
    /// An outcome has been recorded.
    pub(super) recorded: bool,
    /// One has begun that has no outcome yet.
    pub(super) begun: bool,
}

/// The body of a message in an entry to be written.
#[derive(Clone, Debug)]
pub(super) enum BodyBytes {
    Inline(Bytes),
    Chunks { count: u32, bytes: u64 },
}

/// Why an entry was not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unread {
    /// It makes no sense: every replica must refuse it.
    #[error("{0}")]
    Bad(String),
    /// A newer program wrote it: this one must not go on without it.
    #[error("{0}")]
    Newer(String),
}

/// Reads an entry.
pub(super) fn decode(payload: &Bytes) -> Result<Change, Unread> {
    let entry = pb::SpoolEntry::decode(payload.clone())
        .map_err(|error| Unread::Bad(format!("the entry cannot be decoded: {error}")))?;
    if entry.version > VERSION {
        return Err(Unread::Newer(format!(
            "it has format {}, this program reads up to {VERSION}: use a newer ppswd",
            entry.version
        )));
    }
    if entry.version < FIRST_VERSION {
        return Err(Unread::Bad(format!("format {} was never written", entry.version)));
    }
    let newer = || Unread::Newer("its kind is not known to this program: use a newer ppswd".into());
    read_kind(entry.kind.ok_or_else(newer)?).map_err(Unread::Bad)
}

fn read_kind(kind: pb::spool_entry::Kind) -> Result<Change, String> {
    use pb::spool_entry::Kind;
    Ok(match kind {
        Kind::Chunk(e) => {
            Change::Chunk { id: read_id(e.message)?, number: e.number, bytes: e.data.len() as u64 }
        }
        Kind::Accept(e) => {
            let body = match e.body.ok_or("Accept without a body")? {
                pb::accept::Body::Inline(data) => NewBody::Inline { bytes: data.len() as u64 },
                pb::accept::Body::Chunks(count) => NewBody::Chunks { count, bytes: e.body_bytes },
            };
            Change::Accept { id: read_id(e.message)?, envelope: read_envelope(e.envelope)?, body }
        }
        Kind::Abort(e) => Change::Abort { id: read_id(e.message)?, upload_only: e.upload_only },
        Kind::Outcome(e) => Change::Outcome(read_outcome(e)?),
        Kind::Expand(e) => Change::Expand(read_expand(e)?),
        Kind::Hold(e) => Change::Hold { id: read_id(e.message)? },
        Kind::Release(e) => Change::Release { id: read_id(e.message)?, due: e.due_ms.map(UnixMs) },
        Kind::Edit(e) => Change::Edit {
            id: read_id(e.message)?,
            recipient: e.recipient,
            address: e.address,
            due: UnixMs(e.due_ms),
        },
        Kind::Carry(e) => {
            let record = e.record.ok_or("Carry without a record")?;
            let body = match e.body.ok_or("Carry without a body")? {
                pb::carry::Body::Inline(data) => NewBody::Inline { bytes: data.len() as u64 },
                pb::carry::Body::Chunks(count) => {
                    NewBody::Chunks { count, bytes: record.body_bytes }
                }
            };
            let (id, made_at) = (read_id(e.message)?, e.made_at);
            Change::Carry { id, made_at, record: read_record(record)?, body }
        }
        Kind::Handover(e) => Change::Handover { to: e.to },
        Kind::Settle(e) => Change::Settle { upto: e.upto },
        Kind::Begin(e) => {
            let ids = e.messages.into_iter().map(|id| read_id(Some(id)));
            Change::Begin { ids: ids.collect::<Result<_, _>>()? }
        }
    })
}

/// A piece of body and whose it is, from whichever kind of entry holds it. Shares the entry's buffer.
pub(super) fn body_of(payload: Bytes, id: MessageId, part: Part) -> Result<Bytes, String> {
    use pb::spool_entry::Kind;
    let entry = pb::SpoolEntry::decode(payload).map_err(|error| error.to_string())?;
    let ours = |message: Option<pb::MessageId>| read_id(message).is_ok_and(|found| found == id);
    let found = match (part, entry.kind) {
        (Part::Chunk(number), Some(Kind::Chunk(e))) if e.number == number && ours(e.message) => {
            Some(e.data)
        }
        (Part::Whole, Some(Kind::Accept(e))) if ours(e.message) => match e.body {
            Some(pb::accept::Body::Inline(data)) => Some(data),
            _ => None,
        },
        (Part::Whole, Some(Kind::Carry(e))) if ours(e.message) => match e.body {
            Some(pb::carry::Body::Inline(data)) => Some(data),
            _ => None,
        },
        (Part::Whole, Some(Kind::Outcome(e))) => {
            e.creates.into_iter().find(|made| ours(made.message)).map(|made| made.body)
        }
        _ => None,
    };
    found.ok_or_else(|| format!("expected {part:?} of message {id}, found another entry"))
}

/// The header fields that were added to a message, from the entry that holds its envelope. Shares the entry's buffer.
pub(super) fn prepend_of(payload: Bytes, id: MessageId) -> Result<Bytes, String> {
    use pb::spool_entry::Kind;
    let entry = pb::SpoolEntry::decode(payload).map_err(|error| error.to_string())?;
    let ours = |message: Option<pb::MessageId>| read_id(message).is_ok_and(|found| found == id);
    let found = match entry.kind {
        Some(Kind::Accept(e)) if ours(e.message) => e.envelope,
        Some(Kind::Carry(e)) if ours(e.message) => e.record.and_then(|record| record.envelope),
        Some(Kind::Outcome(e)) => {
            e.creates.into_iter().find(|made| ours(made.message)).and_then(|made| made.envelope)
        }
        _ => None,
    };
    found
        .map(|envelope| envelope.prepend)
        .ok_or_else(|| format!("expected the envelope of message {id}, found another entry"))
}

/// Which bytes [`body_of`] is to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A chunk, by number.
    Chunk(u32),
    /// An inline body.
    Whole,
}

pub(super) fn chunk(id: MessageId, number: u32, data: Bytes) -> Bytes {
    let message = Some(write_id(id));
    encode(pb::spool_entry::Kind::Chunk(pb::Chunk { message, number, data }))
}

pub(super) fn accept(id: MessageId, envelope: &Envelope, body: BodyBytes) -> Bytes {
    let (body_bytes, body) = match body {
        BodyBytes::Inline(data) => (data.len() as u64, pb::accept::Body::Inline(data)),
        BodyBytes::Chunks { count, bytes } => (bytes, pb::accept::Body::Chunks(count)),
    };
    encode(pb::spool_entry::Kind::Accept(pb::Accept {
        message: Some(write_id(id)),
        envelope: Some(write_envelope(envelope)),
        body: Some(body),
        body_bytes,
    }))
}

pub(super) fn abort(id: MessageId, upload_only: bool) -> Bytes {
    encode(pb::spool_entry::Kind::Abort(pb::Abort { message: Some(write_id(id)), upload_only }))
}

pub(super) fn outcome(outcome: &Outcome) -> Bytes {
    let results = outcome.results.iter().map(write_delivered).collect();
    let creates = outcome.creates.iter().map(|(id, envelope, body)| pb::Created {
        message: Some(write_id(*id)),
        envelope: Some(write_envelope(envelope)),
        body: body.clone(),
    });
    encode(pb::spool_entry::Kind::Outcome(pb::Outcome {
        message: Some(write_id(outcome.message)),
        results,
        finished: outcome.finished.clone(),
        creates: creates.collect(),
        warned: outcome.warned,
        goes_on: outcome.goes_on,
    }))
}

pub(super) fn expand(expand: &Expand) -> Bytes {
    encode(pb::spool_entry::Kind::Expand(write_expand(expand)))
}

pub(super) fn hold(id: MessageId) -> Bytes {
    encode(pb::spool_entry::Kind::Hold(pb::Hold { message: Some(write_id(id)) }))
}

pub(super) fn release(id: MessageId, due: Option<UnixMs>) -> Bytes {
    let message = Some(write_id(id));
    encode(pb::spool_entry::Kind::Release(pb::Release { message, due_ms: due.map(|due| due.0) }))
}

pub(super) fn edit(id: MessageId, recipient: u32, address: &str, due: UnixMs) -> Bytes {
    encode(pb::spool_entry::Kind::Edit(pb::Edit {
        message: Some(write_id(id)),
        recipient,
        address: address.to_owned(),
        due_ms: due.0,
    }))
}

/// A message as it stands after index `made_at`, to be written again.
pub(super) fn carry(message: &QueuedMessage, tried: Tried, made_at: u64, body: BodyBytes) -> Bytes {
    let (body_bytes, body) = match body {
        BodyBytes::Inline(data) => (data.len() as u64, pb::carry::Body::Inline(data)),
        BodyBytes::Chunks { count, bytes } => (bytes, pb::carry::Body::Chunks(count)),
    };
    let record = pb::Record {
        envelope: Some(write_envelope(&message.envelope)),
        recipients: message.recipients.iter().map(write_attempt).collect(),
        expansions: message.expansions.iter().map(write_expansion).collect(),
        held: message.state == MessageState::Held,
        warned: message.warned,
        tried: tried.recorded,
        begun: tried.begun,
        body_bytes,
    };
    encode(pb::spool_entry::Kind::Carry(pb::Carry {
        message: Some(write_id(message.id)),
        made_at,
        record: Some(record),
        body: Some(body),
    }))
}

pub(super) fn handover(to: NodeId) -> Bytes {
    encode(pb::spool_entry::Kind::Handover(pb::Handover { to }))
}

/// Nothing that was on its way before `upto` is still to come.
pub(super) fn settle(upto: u64) -> Bytes {
    encode(pb::spool_entry::Kind::Settle(pb::Settle { upto }))
}

pub(super) fn begin(ids: &[MessageId]) -> Bytes {
    let messages = ids.iter().copied().map(write_id).collect();
    encode(pb::spool_entry::Kind::Begin(pb::Begin { messages }))
}

/// The state of a checkpoint: the highest id of each node.
pub(super) fn checkpoint_state(highest: impl Iterator<Item = MessageId>) -> Bytes {
    let highest = highest.map(write_id).collect();
    pb::CheckpointState { version: CHECKPOINT_VERSION, highest }.encode_to_vec().into()
}

pub(super) fn read_checkpoint_state(state: &Bytes) -> Result<Vec<MessageId>, Unread> {
    if state.is_empty() {
        return Ok(Vec::new());
    }
    let state =
        pb::CheckpointState::decode(state.clone()).map_err(|e| Unread::Bad(e.to_string()))?;
    if state.version > CHECKPOINT_VERSION {
        return Err(Unread::Newer(format!(
            "it has format {}, this program reads up to {CHECKPOINT_VERSION}: use a newer ppswd",
            state.version
        )));
    }
    state.highest.into_iter().map(|id| read_id(Some(id)).map_err(Unread::Bad)).collect()
}

/// `text`, cut to what the index keeps of it.
pub(super) fn cut(text: &str) -> &str {
    let mut end = text.len().min(OUTCOME_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn encode(kind: pb::spool_entry::Kind) -> Bytes {
    use pb::spool_entry::Kind;
    let version = match &kind {
        Kind::Expand(e) if !e.address.is_empty() => VERSION,
        Kind::Carry(e) if e.record.as_ref().is_some_and(|r| !r.expansions.is_empty()) => VERSION,
        _ => FIRST_VERSION,
    };
    pb::SpoolEntry { version, kind: Some(kind) }.encode_to_vec().into()
}
