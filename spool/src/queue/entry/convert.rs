//! The parts of entries: our types to those of the format and back.

use bytes::Bytes;
use ppsw_proto::queue as pb;

use super::{Record, Tried, cut};
use crate::{
    env::UnixMs,
    queue::message::{
        Attempt, Delivered, Envelope, Expand, Expansion, MessageId, MessageState, Origin, Outcome,
        Recipient, RecipientState, Verdict,
    },
};

pub(in crate::queue) fn write_id(id: MessageId) -> pb::MessageId {
    pb::MessageId { second: id.second, counter: id.counter, node: u32::from(id.node) }
}

pub(in crate::queue) fn read_id(id: Option<pb::MessageId>) -> Result<MessageId, String> {
    let id = id.ok_or("an entry without a message id")?;
    let node = u16::try_from(id.node).map_err(|_| format!("no node has number {}", id.node))?;
    let id = MessageId { second: id.second, counter: id.counter, node };
    if id.is_writable() { Ok(id) } else { Err(format!("{id:?} is no message id: out of bounds")) }
}

pub(super) fn write_recipient(recipient: &Recipient) -> pb::Recipient {
    pb::Recipient {
        address: recipient.address.clone(),
        notify: recipient.notify.clone(),
        original: recipient.original.clone(),
    }
}

pub(super) fn read_recipient(recipient: pb::Recipient) -> Recipient {
    Recipient { address: recipient.address, notify: recipient.notify, original: recipient.original }
}

pub(in crate::queue) fn write_envelope(envelope: &Envelope) -> pb::Envelope {
    let origin = &envelope.origin;
    pb::Envelope {
        sender: envelope.sender.clone(),
        recipients: envelope.recipients.iter().map(write_recipient).collect(),
        origin: Some(pb::Origin {
            client: origin.client.clone(),
            client_name: origin.client_name.clone(),
            helo: origin.helo.clone(),
            server: origin.server.clone(),
            personality: origin.personality.clone(),
            protocol: origin.protocol.clone(),
            authenticated: origin.authenticated.clone(),
            auth_sender: origin.auth_sender.clone(),
            tls: origin.tls.clone(),
        }),
        received_ms: envelope.received.0,
        prepend: envelope.prepend.clone(),
        eight_bit: envelope.eight_bit,
        smtputf8: envelope.smtputf8,
        nul_count: envelope.nul_count,
        return_headers_only: envelope.return_headers_only,
        envelope_id: envelope.envelope_id.clone(),
        message_id_field: envelope.message_id_field.clone(),
        received_count: envelope.received_count,
    }
}

pub(in crate::queue) fn read_envelope(envelope: Option<pb::Envelope>) -> Result<Envelope, String> {
    let envelope = envelope.ok_or("a message without an envelope")?;
    let origin = envelope.origin.unwrap_or_default();
    Ok(Envelope {
        sender: envelope.sender,
        recipients: envelope.recipients.into_iter().map(read_recipient).collect(),
        origin: Origin {
            client: origin.client,
            client_name: origin.client_name,
            helo: origin.helo,
            server: origin.server,
            personality: origin.personality,
            protocol: origin.protocol,
            authenticated: origin.authenticated,
            auth_sender: origin.auth_sender,
            tls: origin.tls,
        },
        received: UnixMs(envelope.received_ms),
        // A copy: a slice would keep the whole entry with its body in memory.
        prepend: Bytes::copy_from_slice(&envelope.prepend),
        eight_bit: envelope.eight_bit,
        smtputf8: envelope.smtputf8,
        nul_count: envelope.nul_count,
        return_headers_only: envelope.return_headers_only,
        envelope_id: envelope.envelope_id,
        message_id_field: envelope.message_id_field,
        received_count: envelope.received_count,
    })
}

pub(super) fn write_delivered(result: &Delivered) -> pb::Delivered {
    let (verdict, next_due_ms) = match result.verdict {
        Verdict::Delivered => (pb::Verdict::Delivered, 0),
        Verdict::Failed => (pb::Verdict::Failed, 0),
        Verdict::Deferred { next_due } => (pb::Verdict::Deferred, next_due.0),
    };
    pb::Delivered {
        recipient: result.recipient,
        address: result.address.clone(),
        verdict: verdict.into(),
        next_due_ms,
        text: cut(&result.text).to_owned(),
    }
}

pub(super) fn read_outcome(outcome: pb::Outcome) -> Result<Outcome, String> {
    let mut results = Vec::with_capacity(outcome.results.len());
    for result in outcome.results {
        let verdict = match result.verdict() {
            pb::Verdict::Delivered => Verdict::Delivered,
            pb::Verdict::Failed => Verdict::Failed,
            pb::Verdict::Deferred => Verdict::Deferred { next_due: UnixMs(result.next_due_ms) },
            pb::Verdict::Unspecified => {
                return Err(format!("unknown verdict {}", result.verdict));
            }
        };
        let pb::Delivered { recipient, address, text, .. } = result;
        results.push(Delivered { recipient, address, verdict, text });
    }
    let mut creates = Vec::with_capacity(outcome.creates.len());
    for made in outcome.creates {
        creates.push((read_id(made.message)?, read_envelope(made.envelope)?, made.body));
    }
    Ok(Outcome {
        message: read_id(outcome.message)?,
        results,
        finished: outcome.finished,
        creates,
        warned: outcome.warned,
        goes_on: outcome.goes_on,
    })
}

pub(in crate::queue) fn write_attempt(attempt: &Attempt) -> pb::Attempt {
    let state = match attempt.state {
        RecipientState::New => pb::RecipientState::New,
        RecipientState::Deferred => pb::RecipientState::Deferred,
        RecipientState::Delivered => pb::RecipientState::Delivered,
        RecipientState::Failed => pb::RecipientState::Failed,
    };
    pb::Attempt {
        recipient: Some(write_recipient(&attempt.recipient)),
        state: state.into(),
        attempts: attempt.attempts,
        last_error: attempt.last_error.clone(),
        next_due_ms: attempt.next_due.0,
        done: attempt.done.iter().cloned().collect(),
        expansion: attempt.expansion.map_or(0, |number| number.saturating_add(1)),
    }
}

/// Attempts as they were written. One without a recipient has that of the envelope at its place.
pub(in crate::queue) fn read_attempts(
    attempts: Vec<pb::Attempt>,
    accepted: &[Recipient],
) -> Result<Vec<Attempt>, String> {
    let mut recipients = Vec::with_capacity(attempts.len());
    for (number, attempt) in attempts.into_iter().enumerate() {
        let state = match attempt.state() {
            pb::RecipientState::New => RecipientState::New,
            pb::RecipientState::Deferred => RecipientState::Deferred,
            pb::RecipientState::Delivered => RecipientState::Delivered,
            pb::RecipientState::Failed => RecipientState::Failed,
            pb::RecipientState::Unspecified => {
                return Err(format!("unknown state {} of a recipient", attempt.state));
            }
        };
        let recipient = attempt.recipient.map(read_recipient);
        recipients.push(Attempt {
            recipient: recipient.or_else(|| accepted.get(number).cloned()).unwrap_or_default(),
            state,
            attempts: attempt.attempts,
            last_error: attempt.last_error,
            next_due: UnixMs(attempt.next_due_ms),
            done: attempt.done.into_iter().collect(),
            expansion: attempt.expansion.checked_sub(1),
        });
    }
    Ok(recipients)
}

pub(in crate::queue) fn write_expansion(from: &Expansion) -> pb::Expansion {
    pb::Expansion {
        recipient: from.recipient,
        address: from.address.clone(),
        parents: from.parents.clone(),
        errors_to: from.errors_to.clone(),
    }
}

pub(in crate::queue) fn read_expansion(from: pb::Expansion) -> Expansion {
    let pb::Expansion { recipient, address, parents, errors_to } = from;
    Expansion { recipient, address, parents, errors_to }
}

pub(super) fn write_expand(expand: &Expand) -> pb::Expand {
    let from = write_expansion(&expand.from);
    pb::Expand {
        message: Some(write_id(expand.message)),
        recipient: from.recipient,
        into: expand.into.iter().map(write_recipient).collect(),
        due_ms: expand.due.0,
        address: from.address,
        parents: from.parents,
        errors_to: from.errors_to,
        first: expand.first,
        goes_on: expand.goes_on,
    }
}

pub(super) fn read_expand(e: pb::Expand) -> Result<Expand, String> {
    let (recipient, address) = (e.recipient, e.address);
    Ok(Expand {
        message: read_id(e.message)?,
        from: Expansion { recipient, address, parents: e.parents, errors_to: e.errors_to },
        into: e.into.into_iter().map(read_recipient).collect(),
        due: UnixMs(e.due_ms),
        first: e.first,
        goes_on: e.goes_on,
    })
}

pub(super) fn read_record(record: pb::Record) -> Result<Record, String> {
    let recipients = read_attempts(record.recipients, &[])?;
    let state = if record.held { MessageState::Held } else { MessageState::Queued };
    let envelope = read_envelope(record.envelope)?;
    let tried = Tried { recorded: record.tried, begun: record.begun };
    let expansions = record.expansions.into_iter().map(read_expansion).collect();
    Ok(Record { envelope, state, recipients, expansions, warned: record.warned, tried })
}
