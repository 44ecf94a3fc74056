//! The content of one message on its way from the wire to the spool. Memory: the header block (bounded) and one
//! buffer of what was read at once; the body is never held.

use std::sync::Arc;

use ppsw_spool::queue::AcceptError;
use tokio::time::timeout;

use super::{
    Policy,
    data::ContentReader,
    intake::Incoming,
    reply::{self, Reply},
};
use crate::{
    limits::{COMMIT_DEADLINE, HEADER_BYTES_MAX, HEADER_PIECE_BYTES, RECEIVED_FIELDS_MAX},
    message::{HeaderEnd, HeaderFacts, HeaderScan, Submitter, fix_up, scan_header},
    policy::Rewriting,
};

/// What submission fix-ups need to know.
#[derive(Clone, Debug)]
pub(super) struct FixUp {
    /// Authenticated user with domain.
    pub(super) authenticated: Option<String>,
    pub(super) envelope_sender: String,
    pub(super) sender_retain: bool,
    pub(super) host_name: String,
    pub(super) date: String,
}

/// Why a message cannot be taken, known before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    TooBig,
    HeaderTooLong,
    TooManyHops(u32),
    BareLineEnd,
    /// The spool has no room.
    NoSpace,
    /// Any other trouble of the spool, in words for the log.
    Spool(String),
}

impl Failure {
    pub(super) fn reply(&self) -> Reply {
        match self {
            Self::TooBig => {
                Reply::new(552, reply::TOO_BIG, "Message is larger than this service takes")
            }
            Self::HeaderTooLong => Reply::new(552, reply::TOO_BIG, "Message header is too long"),
            Self::TooManyHops(hops) => Reply::new(
                550,
                reply::LOOP,
                format!("Too many hops ({hops} Received fields): mail loop"),
            ),
            Self::BareLineEnd => Reply::new(
                550,
                reply::BARE_LINE_END,
                "Message has a bare CR or LF; lines must end with CRLF (RFC 5321 2.3.8)",
            ),
            Self::NoSpace => Reply::new(452, reply::SPOOL_FULL, "Spool is full, try again later"),
            Self::Spool(_) => Reply::new(
                451,
                reply::SYSTEM_LATER,
                "Message cannot be stored now, try again later",
            ),
        }
    }
}

impl From<AcceptError> for Failure {
    fn from(error: AcceptError) -> Self {
        match error {
            AcceptError::NoSpace => Self::NoSpace,
            error => Self::Spool(error.to_string()),
        }
    }
}

/// Which part is arriving.
enum Part {
    /// Fields are collected, to be counted and edited.
    Header(HeaderScan),
    Body,
}

/// Reads, checks and passes on one message.
pub(super) struct Content {
    reader: ContentReader,
    /// `None` after a failure: what still arrives is thrown away.
    writer: Option<Box<dyn Incoming>>,
    part: Part,
    header: Vec<u8>,
    decoded: Vec<u8>,
    fix_up: Option<FixUp>,
    /// Rewrites addresses in the header.
    policy: Option<Arc<dyn Policy>>,
    limit: u64,
    /// Bytes as they came.
    raw: u64,
    failure: Option<Failure>,
    ends_with_crlf: bool,
    /// Bytes of content, after fix-ups.
    pub(super) size: u64,
    pub(super) nul_count: u64,
    pub(super) eight_bit: bool,
    pub(super) facts: HeaderFacts,
    /// Fields that the fix-ups add.
    pub(super) added: String,
    /// Addresses in the header that are others now.
    pub(super) rewritten: Vec<Rewriting>,
}

impl Content {
    /// `limit`: bytes of content. `policy`: if it rewrites headers.
    pub(super) fn new(
        reader: ContentReader,
        writer: Box<dyn Incoming>,
        fix_up: Option<FixUp>,
        policy: Option<Arc<dyn Policy>>,
        limit: u64,
    ) -> Self {
        Self {
            reader,
            writer: Some(writer),
            part: Part::Header(HeaderScan::default()),
            header: Vec::new(),
            decoded: Vec::new(),
            fix_up,
            policy,
            limit,
            raw: 0,
            failure: None,
            ends_with_crlf: true,
            size: 0,
            nul_count: 0,
            eight_bit: false,
            facts: HeaderFacts::default(),
            added: String::new(),
            rewritten: Vec::new(),
        }
    }

    /// Takes from `input` what belongs to the message; returns how much that was.
    pub(super) async fn feed(&mut self, input: &[u8]) -> usize {
        let mut decoded = std::mem::take(&mut self.decoded);
        decoded.clear();
        let used = self.reader.read(input, &mut decoded);
        self.raw = self.raw.saturating_add(used as u64);
        self.take(&decoded).await;
        self.decoded = decoded;
        used
    }

    /// The final dot was read (DATA).
    pub(super) fn ended(&self) -> bool {
        self.reader.ended()
    }

    /// The client sends so much too much that reading on is a waste.
    pub(super) fn is_hopeless(&self) -> bool {
        self.raw > self.limit.saturating_mul(2).saturating_add(HEADER_BYTES_MAX as u64)
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The content is complete. Afterwards [`Self::take_writer`] has everything but the envelope.
    pub(super) async fn finish(&mut self) {
        let mut rest = Vec::new();
        self.reader.finish(&mut rest);
        self.take(&rest).await;
        if !self.ends_with_crlf {
            // BDAT may leave the last line open (RFC 3030 §4.1); the next hop may need DATA.
            self.take(b"\r\n").await;
        }
        if let Part::Header(_) = self.part {
            let end = HeaderEnd { fields: self.header.len(), separator_missing: false };
            self.end_header(end).await;
        }
        if self.reader.is_refused() {
            self.fail(Failure::BareLineEnd).await;
        }
    }

    /// The writer, unless the message failed.
    pub(super) fn take_writer(&mut self) -> Option<Box<dyn Incoming>> {
        self.writer.take()
    }

    /// Gives the message up.
    pub(super) async fn abort(&mut self) {
        self.header = Vec::new();
        if let Some(writer) = self.writer.take() {
            writer.abort().await;
        }
    }

    async fn take(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        // The reader lets a LF out only behind a CR.
        self.ends_with_crlf = *last == b'\n';
        self.size = self.size.saturating_add(bytes.len() as u64);
        self.nul_count += memchr::memchr_iter(0, bytes).count() as u64;
        self.eight_bit = self.eight_bit || !bytes.is_ascii();
        if self.failure.is_some() {
            return;
        }
        if self.size > self.limit {
            return self.fail(Failure::TooBig).await;
        }
        let mut rest = bytes;
        while let Part::Header(scan) = &mut self.part {
            if rest.is_empty() {
                return;
            }
            // Most of what is read at once is the body, which is not copied for this.
            let (piece, behind) = rest.split_at(rest.len().min(HEADER_PIECE_BYTES));
            self.header.extend_from_slice(piece);
            rest = behind;
            match scan.end(&self.header) {
                Some(end) => self.end_header(end).await,
                None if self.header.len() > HEADER_BYTES_MAX => {
                    self.fail(Failure::HeaderTooLong).await;
                }
                None => {}
            }
            if self.failure.is_some() {
                return;
            }
        }
        self.store(rest).await;
    }

    /// The fields are complete: reads and edits them, and passes on everything that is there.
    async fn end_header(&mut self, end: HeaderEnd) {
        self.part = Part::Body;
        if end.fields > HEADER_BYTES_MAX {
            return self.fail(Failure::HeaderTooLong).await;
        }
        let mut fields = std::mem::take(&mut self.header);
        let body = fields.split_off(end.fields);
        let rewritten = self.policy.as_ref().and_then(|policy| policy.rewrite_header(&fields));
        if let Some((new, rewritten)) = rewritten {
            self.size = self.size - fields.len() as u64 + new.len() as u64;
            (fields, self.rewritten) = (new, rewritten);
        }
        self.facts = scan_header(&fields);
        if self.facts.received_count > RECEIVED_FIELDS_MAX {
            return self.fail(Failure::TooManyHops(self.facts.received_count)).await;
        }
        if let (Some(fix), Some(writer)) = (&self.fix_up, &self.writer) {
            let by = Submitter {
                authenticated: fix.authenticated.as_deref(),
                envelope_sender: &fix.envelope_sender,
                sender_retain: fix.sender_retain,
                id: writer.id(),
                host_name: &fix.host_name,
                date: &fix.date,
            };
            let before = fields.len();
            self.added = fix_up(&mut fields, &self.facts, &by);
            self.size -= (before - fields.len()) as u64;
        }
        self.store(&fields).await;
        if end.separator_missing {
            self.size += 2;
            self.store(b"\r\n").await;
        }
        self.store(&body).await;
    }

    async fn store(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.failure.is_some() {
            return;
        }
        let Some(writer) = &mut self.writer else { return };
        match timeout(COMMIT_DEADLINE, writer.write(bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(error.into()).await,
            Err(_) => self.fail(AcceptError::NoMajority.into()).await,
        }
    }

    /// The first failure is the one that is told; the spool forgets the message at once.
    async fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() {
            self.failure = Some(failure);
        }
        self.abort().await;
    }
}
