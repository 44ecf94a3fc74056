//! A message as the queue knows it: plain data, shared by front end, deliverer and operators.

use std::{collections::BTreeSet, fmt, str::FromStr};

use bytes::Bytes;

use crate::{
    env::UnixMs,
    limits::{EXPAND_PART_BYTES, NODE_IN_ID_MAX, OUTCOME_PART_CREATES, OUTCOME_PART_RESULTS},
};

/// `tttttt-nnnnnn-pp`: second, counter within the second, node; base 62, unique in the cluster, never reused.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// Seconds since 1970.
    pub second: u64,
    /// Below 62^6.
    pub counter: u64,
    /// The node that accepted it; below 62^2.
    pub node: u16,
}

impl MessageId {
    /// Its numbers have the digits that a text has for them. Entries with other ids are refused.
    pub(super) fn is_writable(&self) -> bool {
        let six_digits = 62_u64.pow(6);
        self.second < six_digits
            && self.counter < six_digits
            && u64::from(self.node) <= NODE_IN_ID_MAX
    }
}

/// Where a message came from: for `Received`, logs and policy at delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Client address and port, empty for messages made here (bounces).
    pub client: String,
    /// Verified reverse name, empty if none.
    pub client_name: String,
    pub helo: String,
    /// Server address and port that the client connected to.
    pub server: String,
    /// Personality: `mx`, `smart`, `submit`, `local`.
    pub personality: String,
    /// `SMTP`, `ESMTP`, `ESMTPS`, `ESMTPA`, `ESMTPSA`, `UTF8SMTP…` (RFC 3848, RFC 6531).
    pub protocol: String,
    /// Authenticated user, empty if none.
    pub authenticated: String,
    /// `AUTH=` of MAIL (RFC 4954), empty if none.
    pub auth_sender: String,
    /// TLS version and cipher, empty without TLS.
    pub tls: String,
}

/// What the front end knows when it accepts a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// Reverse-path without brackets; empty for a bounce.
    pub sender: String,
    /// Forward-paths, in the order given, with their DSN parameters.
    pub recipients: Vec<Recipient>,
    pub origin: Origin,
    pub received: UnixMs,
    /// Header fields (whole lines, CRLF) put before what was received: `Received`, fix-ups.
    pub prepend: Bytes,
    /// `BODY=8BITMIME` was given, or the content is 8-bit.
    pub eight_bit: bool,
    /// `SMTPUTF8` was given.
    pub smtputf8: bool,
    /// NUL bytes in the content.
    pub nul_count: u64,
    /// `RET=` of MAIL: true for HDRS.
    pub return_headers_only: bool,
    /// `ENVID=` of MAIL, as given (xtext).
    pub envelope_id: String,
    /// `Message-ID` field's value for the log, cut at 256 bytes; empty if none.
    pub message_id_field: String,
    /// How many `Received` fields were there.
    pub received_count: u32,
}

/// One forward-path of an envelope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipient {
    pub address: String,
    /// `NOTIFY=` as given (`NEVER`, `SUCCESS,FAILURE`), empty if absent.
    pub notify: String,
    /// `ORCPT=` as given, empty if absent.
    pub original: String,
}

/// State of a message in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageState {
    /// Waits for its next attempt.
    Queued,
    /// An operator holds it, or it is a bounce that failed.
    Held,
}

/// State of one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecipientState {
    /// Not yet tried.
    New,
    /// Tried; some or all of its addresses are to be tried again.
    Deferred,
    /// Delivered to every address that it led to.
    Delivered,
    /// Failed for good; its sender has been told.
    Failed,
}

/// One recipient of a queued message with its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub recipient: Recipient,
    pub state: RecipientState,
    /// Attempts made.
    pub attempts: u32,
    /// Text of the last failure, as the peer gave it; at most 1 KiB.
    pub last_error: String,
    /// When the next attempt is due.
    pub next_due: UnixMs,
    /// Addresses that this recipient led to (by aliases) and that are done: delivered, failed and reported, or expanded.
    /// When it is finished, its own address is left out; without any, it is that which is done.
    pub done: BTreeSet<String>,
    /// The expansion that it comes from, by number; `None`: the front end accepted it.
    pub expansion: Option<u32>,
}

impl Attempt {
    /// Something is left to be done for this recipient.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, RecipientState::New | RecipientState::Deferred)
    }
}

/// One expansion of a recipient: where others come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// Index into `QueuedMessage::recipients`.
    pub recipient: u32,
    /// The address that became others, among those to which the recipient led.
    pub address: String,
    /// The addresses between the recipient and this one, recipient first; empty if it is the recipient's own.
    pub parents: Vec<String>,
    /// Sender of what goes to the others; `None`: the message's.
    pub errors_to: Option<String>,
}

/// An expansion that is to be recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expand {
    pub message: MessageId,
    /// Whence. With an empty address the recipient itself is replaced and finished (version 1 knew only that).
    pub from: Expansion,
    pub into: Vec<Recipient>,
    /// When the others are due.
    pub due: UnixMs,
    /// How many recipients the message has before: what is proposed twice is recorded once.
    pub first: u32,
    /// More will come of this expansion.
    pub goes_on: bool,
}

/// Where the bytes of a message lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Inside the `Accept` entry at this index.
    Inline { index: u64 },
    /// In `Chunk` entries at these indexes, in order.
    Chunks { indexes: Vec<u64> },
}

/// Whether an attempt would be the first: those come before others, so that a queue that waits for servers that are down
/// does not delay new mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// No outcome of an attempt is recorded.
    First,
    Again,
}

/// A message in the queue. Immutable: a change makes a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedMessage {
    pub id: MessageId,
    /// As accepted, but `prepend` is empty: it is in the log, and read with the body.
    pub envelope: Envelope,
    pub state: MessageState,
    pub recipients: Vec<Attempt>,
    /// Where recipients come from that the front end did not accept.
    pub expansions: Vec<Expansion>,
    pub body: Body,
    /// Bytes of added headers and body together.
    pub size: u64,
    /// A delay warning has been sent.
    pub warned: bool,
    /// Not to be tried before this, whatever the recipients say (takeover grace).
    pub not_before: UnixMs,
}

/// What became of one address in one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next hop took responsibility.
    Delivered,
    /// Failed for good.
    Failed,
    /// To be tried again at `next_due`.
    Deferred { next_due: UnixMs },
}

/// The result for one address to which recipient number `recipient` led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Index into `QueuedMessage::recipients`.
    pub recipient: u32,
    /// The final address (the recipient's own, if no alias changed it).
    pub address: String,
    pub verdict: Verdict,
    /// Reply of the next hop, or our reason; at most 1 KiB.
    pub text: String,
}

/// Everything that one attempt did to one message: one log entry, so all or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub message: MessageId,
    pub results: Vec<Delivered>,
    /// Recipients (indexes) for which every address is done now: they leave the queue.
    pub finished: Vec<u32>,
    /// Messages that this outcome creates (bounces, delay warnings), with their whole bytes: queued in the same
    /// entry, so that no failure is recorded without its bounce. At most 64 KiB of bytes each.
    pub creates: Vec<(MessageId, Envelope, Bytes)>,
    /// A delay warning is among `creates`.
    pub warned: bool,
    /// More will come of this attempt: its mark in the log stays.
    pub goes_on: bool,
}

impl QueuedMessage {
    /// The expansion that recipient number `recipient` comes from.
    #[must_use]
    pub fn expansion_of(&self, recipient: u32) -> Option<&Expansion> {
        let attempt = self.recipients.get(recipient as usize)?;
        self.expansions.get(attempt.expansion? as usize)
    }

    /// The addresses from which recipient number `recipient` was made by expansions, oldest first; empty for one that was accepted.
    #[must_use]
    pub fn ancestors(&self, recipient: u32) -> Vec<&str> {
        let (mut found, mut number) = (Vec::new(), recipient);
        // An expansion is of an earlier recipient, so this ends.
        while let Some(from) = self.expansion_of(number).filter(|from| from.recipient < number) {
            found.push(from.address.as_str());
            found.extend(from.parents.iter().rev().map(String::as_str));
            number = from.recipient;
        }
        found.reverse();
        found
    }
}

impl Expansion {
    /// What stands in [`Attempt::done`] when it is recorded. Never an address: those have no blanks outside of quotes.
    #[must_use]
    pub fn key(address: &str) -> String {
        format!("{address} expanded")
    }
}

impl Expand {
    /// The same in several parts, for when one entry cannot hold it.
    pub(super) fn split(self) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        let mut room = 0;
        let empty = Self { into: Vec::new(), goes_on: true, ..self.clone() };
        for to in self.into {
            let bytes = to.address.len() + to.notify.len() + to.original.len() + 16;
            if room < bytes {
                let first = parts.iter().map(|part| part.into.len()).sum::<usize>();
                let first = self.first.saturating_add(u32::try_from(first).unwrap_or(u32::MAX));
                parts.push(Self { first, ..empty.clone() });
                room = EXPAND_PART_BYTES;
            }
            room = room.saturating_sub(bytes);
            if let Some(part) = parts.last_mut() {
                part.into.push(to);
            }
        }
        if parts.is_empty() {
            parts.push(empty);
        }
        if let Some(last) = parts.last_mut() {
            last.goes_on = self.goes_on;
        }
        parts
    }
}

impl Outcome {
    /// The same in several parts, for when one entry cannot hold it. What it creates comes first, so that still no
    /// failure is recorded without its bounce; a crash between two parts may create a message again.
    pub(super) fn split(self) -> Vec<Self> {
        let Self { message, results, finished, creates, warned, goes_on } = self;
        let empty = || Self {
            message,
            results: Vec::new(),
            finished: Vec::new(),
            creates: Vec::new(),
            warned: false,
            goes_on: true,
        };
        let mut parts = Vec::new();
        for some in creates.chunks(OUTCOME_PART_CREATES) {
            parts.push(Self { creates: some.to_vec(), warned, ..empty() });
        }
        // A recipient that is finished takes no more results: it finishes with its last one.
        let mut finished: BTreeSet<u32> = finished.into_iter().collect();
        let mut rest = &results[..];
        while !rest.is_empty() {
            let (some, later) = rest.split_at(rest.len().min(OUTCOME_PART_RESULTS));
            let open: BTreeSet<u32> = later.iter().map(|result| result.recipient).collect();
            let ends: BTreeSet<u32> = some
                .iter()
                .map(|result| result.recipient)
                .filter(|number| finished.contains(number) && !open.contains(number))
                .collect();
            finished.retain(|number| !ends.contains(number));
            parts.push(Self {
                results: some.to_vec(),
                finished: ends.into_iter().collect(),
                ..empty()
            });
            rest = later;
        }
        if !finished.is_empty() || warned {
            parts.push(Self { finished: finished.into_iter().collect(), warned, ..empty() });
        }
        if let Some(last) = parts.last_mut() {
            last.goes_on = goes_on;
        }
        parts
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = *b"000000-000000-00";
        base62(self.second, &mut text[..6]);
        base62(self.counter, &mut text[7..13]);
        base62(u64::from(self.node), &mut text[14..]);
        // Digits and hyphens.
        f.write_str(str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no message id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no message id; expected the form 1abcDE-000001-02")]
pub struct BadMessageId(String);

impl FromStr for MessageId {
    type Err = BadMessageId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadMessageId(text.chars().take(40).collect());
        let mut parts = text.split('-');
        let mut part = |digits: usize| {
            parts.next().filter(|p| p.len() == digits).and_then(from_base62).ok_or_else(bad)
        };
        let (second, counter, node) = (part(6)?, part(6)?, part(2)?);
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self { second, counter, node: u16::try_from(node).map_err(|_| bad())? })
    }
}

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Fills `out` with the last digits of `value`.
fn base62(mut value: u64, out: &mut [u8]) {
    for slot in out.iter_mut().rev() {
        // Below 62, so the cast is exact.
        *slot = DIGITS[(value % 62) as usize];
        value /= 62;
    }
}

fn from_base62(text: &str) -> Option<u64> {
    text.bytes().try_fold(0_u64, |value, byte| {
        let digit = DIGITS.iter().position(|d| *d == byte)?;
        value.checked_mul(62)?.checked_add(digit as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_sorts_by_time() {
        let early = MessageId { second: 1_700_000_000, counter: 61, node: 2 };
        let late = MessageId { second: 1_700_000_000, counter: 62, node: 1 };
        assert_eq!(early.to_string().parse(), Ok(early));
        assert!(early < late && early.to_string() < late.to_string());
        assert!("1abcDE-00000-02".parse::<MessageId>().is_err());
        assert!("1abcDE-000001-02-".parse::<MessageId>().is_err());
    }
}
