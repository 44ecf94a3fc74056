//! A message as the index keeps it: encoded, in one allocation, and made into a [`QueuedMessage`] when asked for.
//!
//! The bytes are also what a local checkpoint holds of the message. In front stand, as varints, what the index itself
//! needs; behind them, a `Kept` of `queue.proto`.

use std::collections::BTreeMap;

use bytes::Bytes;
use ppsw_proto::queue as pb;
use prost::{
    Message as _,
    encoding::{
        DecodeContext, WireType, decode_key, decode_varint, encode_varint, encoded_len_varint,
        skip_field,
    },
};

use super::key::{Due, Key};
use crate::{
    env::UnixMs,
    limits::ENTRY_OVERHEAD_BYTES,
    queue::{
        entry::{
            Tried, read_attempts, read_envelope, read_expansion, write_attempt, write_envelope,
            write_expansion,
        },
        message::{Attempt, Body, MessageId, MessageState, QueuedMessage, Turn},
    },
};

/// Flags in the first field.
const HELD: u64 = 1;
const TRIED: u64 = 2;
const WARNED: u64 = 4;
const CHUNKED: u64 = 8;
const BEGUN: u64 = 16;
/// Programs that know no expansions read the log instead.
const EXPANDED: u64 = 32;
const FLAGS: u64 = HELD | TRIED | WARNED | CHUNKED | BEGUN | EXPANDED;

/// The tag of `recipients` in a `Kept`.
const KEPT_RECIPIENTS: u32 = 2;

/// An encoded message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::queue) struct Slot {
    bytes: Box<[u8]>,
}

/// What the index needs to know of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) held: bool,
    pub(super) tried: Tried,
    warned: bool,
    chunked: bool,
    expanded: bool,
    /// When the next attempt is due; `None`: nothing is left to be done.
    next: Option<UnixMs>,
    pub(super) size: u64,
    /// The oldest entry without which a replay would not have this message.
    pub(super) pin: u64,
    /// The entry that holds the envelope, added headers included, and an inline body.
    pub(super) record: u64,
}

impl Head {
    /// When an attempt is to be made; `None` while it is held.
    fn due(&self) -> Option<UnixMs> {
        self.next.filter(|_| !self.held)
    }

    /// Its place among those that wait for an attempt.
    pub(super) fn due_entry(&self, key: Key) -> Option<Due> {
        let turn = if self.tried.recorded { Turn::Again } else { Turn::First };
        self.due().map(|due| Due::new(turn, due, key))
    }

    /// That of a message whose oldest record is at `pin`, and its envelope at `record`.
    pub(super) fn new(message: &QueuedMessage, pin: u64, record: u64, tried: Tried) -> Self {
        let open = message.recipients.iter().filter(|attempt| attempt.is_open());
        Self {
            held: message.state == MessageState::Held,
            tried,
            warned: message.warned,
            chunked: matches!(message.body, Body::Chunks { .. }),
            expanded: !message.expansions.is_empty(),
            next: open.map(|attempt| attempt.next_due).min(),
            size: message.size,
            pin,
            record,
        }
    }

    fn fields(&self) -> [u64; 5] {
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        let flags = flag(self.held, HELD)
            | flag(self.tried.recorded, TRIED)
            | flag(self.tried.begun, BEGUN)
            | flag(self.warned, WARNED)
            | flag(self.chunked, CHUNKED)
            | flag(self.expanded, EXPANDED);
        let next = self.next.map_or(0, |due| due.0.saturating_add(1));
        [flags, next, self.size, self.pin, self.record.wrapping_sub(self.pin)]
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let mut next = || decode_varint(bytes).ok();
        let [flags, due, size, pin, behind] = [next()?, next()?, next()?, next()?, next()?];
        if flags & !FLAGS != 0 {
            return None;
        }
        Some(Self {
            held: flags & HELD != 0,
            tried: Tried { recorded: flags & TRIED != 0, begun: flags & BEGUN != 0 },
            warned: flags & WARNED != 0,
            chunked: flags & CHUNKED != 0,
            expanded: flags & EXPANDED != 0,
            next: due.checked_sub(1).map(UnixMs),
            size,
            pin,
            record: pin.checked_add(behind)?,
        })
    }
}

impl Slot {
    /// Encodes a message. Its added header fields are left out.
    pub(super) fn new(head: &Head, message: &QueuedMessage) -> Self {
        let chunks = match &message.body {
            Body::Inline { .. } => Vec::new(),
            Body::Chunks { indexes } => {
                indexes.iter().map(|index| index.wrapping_sub(head.pin)).collect()
            }
        };
        let recipients = message.recipients.iter().enumerate().map(|(number, attempt)| {
            let mut kept = write_attempt(attempt);
            if message.envelope.recipients.get(number) == Some(&attempt.recipient) {
                kept.recipient = None;
            }
            kept
        });
        let mut envelope = write_envelope(&message.envelope);
        envelope.prepend = Bytes::new();
        let kept = pb::Kept {
            envelope: Some(envelope),
            recipients: recipients.collect(),
            chunks,
            expansions: message.expansions.iter().map(write_expansion).collect(),
        };
        let fields = head.fields();
        let heading: usize = fields.iter().map(|field| encoded_len_varint(*field)).sum();
        // Exactly as long as needed, so that it does not move when it is boxed.
        let mut bytes = Vec::with_capacity(heading + kept.encoded_len());
        fields.iter().for_each(|field| encode_varint(*field, &mut bytes));
        bytes.extend_from_slice(&kept.encode_to_vec());
        Self { bytes: bytes.into_boxed_slice() }
    }

    /// Notes whether an attempt has begun that has no outcome yet.
    pub(super) fn mark_begun(&mut self, begun: bool) {
        // All flags are in the first byte: they are below 128.
        if let Some(flags) = self.bytes.first_mut() {
            *flags = if begun { *flags | BEGUN as u8 } else { *flags & !(BEGUN as u8) };
        }
    }

    /// About how many bytes of the log the message needs: its own, and a record in which recipients stand twice.
    pub(super) fn weight(&self, head: &Head) -> u64 {
        let record = (2 * self.bytes.len()).saturating_add(ENTRY_OVERHEAD_BYTES);
        head.size.saturating_add(record as u64)
    }

    /// Takes over encoded bytes from a checkpoint; `None` if they are not.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let slot = Self { bytes: bytes.into() };
        slot.open(MessageId { second: 0, counter: 0, node: 0 })?;
        Some(slot)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the index needs. `None` never comes: only what [`Self::new`] made is kept.
    pub(super) fn head(&self) -> Option<Head> {
        Head::read(&mut &*self.bytes)
    }

    /// Whether all of these addresses are still to be delivered to; each with the number of the recipient that led there.
    /// Decodes only these recipients: it is asked before each transaction, and a list has very many.
    pub(super) fn are_open(&self, addresses: &[(u32, &str)]) -> bool {
        let mut wanted: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
        for (number, address) in addresses {
            wanted.entry(*number).or_default().push(address);
        }
        let mut rest = &*self.bytes;
        if Head::read(&mut rest).is_none() {
            return false;
        }
        let is_open = |bytes: &[u8], addresses: &[&str]| {
            let attempt = pb::Attempt::decode(bytes).ok();
            attempt.is_some_and(|attempt| {
                let open = [pb::RecipientState::New, pb::RecipientState::Deferred];
                open.contains(&attempt.state())
                    && addresses.iter().all(|a| !attempt.done.iter().any(|done| done == a))
            })
        };
        let mut number = 0;
        while !wanted.is_empty() {
            let Ok((tag, wire)) = decode_key(&mut rest) else { return false };
            if (tag, wire) != (KEPT_RECIPIENTS, WireType::LengthDelimited) {
                if skip_field(wire, tag, &mut rest, DecodeContext::default()).is_err() {
                    return false;
                }
                continue;
            }
            let len = decode_varint(&mut rest).ok().and_then(|len| usize::try_from(len).ok());
            let Some((bytes, behind)) = len.and_then(|len| rest.split_at_checked(len)) else {
                return false;
            };
            rest = behind;
            if let Some(addresses) = wanted.remove(&number)
                && !is_open(bytes, &addresses)
            {
                return false;
            }
            number += 1;
        }
        true
    }

    /// The message. `None` as above.
    pub(super) fn open(&self, id: MessageId) -> Option<(Head, QueuedMessage)> {
        let mut rest = &*self.bytes;
        let head = Head::read(&mut rest)?;
        let kept = pb::Kept::decode(rest).ok()?;
        let envelope = read_envelope(kept.envelope).ok()?;
        let recipients: Vec<Attempt> = read_attempts(kept.recipients, &envelope.recipients).ok()?;
        let body = if head.chunked {
            let indexes = kept.chunks.iter().map(|behind| head.pin.wrapping_add(*behind));
            Body::Chunks { indexes: indexes.collect() }
        } else {
            Body::Inline { index: head.record }
        };
        let state = if head.held { MessageState::Held } else { MessageState::Queued };
        let (size, warned) = (head.size, head.warned);
        let not_before = UnixMs(0);
        let expansions = kept.expansions.into_iter().map(read_expansion).collect();
        let message = QueuedMessage {
            id,
            envelope,
            state,
            recipients,
            expansions,
            body,
            size,
            warned,
            not_before,
        };
        Some((head, message))
    }
}
