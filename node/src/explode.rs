//! `ppswd explode-list`: a list program that changes nothing. It hands a list's message back to this machine's node, for
//! the list's `-outgoing` address, which only this machine may use. What a real one does besides (who may post,
//! moderation, footers) it does between reading and handing back.

use std::{io, net::SocketAddr, os::fd::AsFd};

use async_trait::async_trait;
use bytes::Bytes;
use memchr::memchr;
use ppsw_spool::log::LogError;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{
    deliver::{
        connect::TcpConnector,
        seams::{BodySource, Fence},
        session::{Line, Remote, Session},
        transaction::{self, Answer, Mail, Rcpt},
    },
    limits::{CONNECT_TIMEOUT, HEADER_BYTES_MAX},
    route::{ClientOptions, Protocol, Tls},
    trace::Tracer,
};

/// The header field by which a list knows its own messages.
const LOOP_FIELD: &str = "X-Loop";

/// Bytes that are read at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Codes of `sysexits.h`.
const EX_USAGE: u8 = 64;
const EX_DATAERR: u8 = 65;
const EX_UNAVAILABLE: u8 = 69;
/// It is to be tried again.
pub const EX_TEMPFAIL: u8 = 75;

/// What a list program knows of its message: from its environment.
#[derive(Clone, Debug, Default)]
pub struct Posting {
    /// `LOCAL_PART` and `DOMAIN`: the list.
    pub list: String,
    pub domain: String,
    /// `SENDER`: empty for a bounce.
    pub sender: String,
    /// `PPSW_SMTP`: where the node of this machine takes mail of this machine.
    pub smtp: Option<SocketAddr>,
}

/// How it ended: for the transport that started it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: u8,
    /// Empty if all went well.
    pub text: String,
}

impl Ended {
    fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl Posting {
    /// What the environment says.
    pub fn from_environment() -> Result<Self, Ended> {
        let get = |name: &str| std::env::var(name).unwrap_or_default();
        let smtp = match get("PPSW_SMTP").as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                Ended::new(EX_USAGE, format!("PPSW_SMTP={text}: expected ADDRESS:PORT"))
            })?),
        };
        let posting =
            Self { list: get("LOCAL_PART"), domain: get("DOMAIN"), sender: get("SENDER"), smtp };
        if posting.list.is_empty() || posting.domain.is_empty() {
            let text =
                "expected LOCAL_PART and DOMAIN in the environment: run it from a pipe transport";
            return Err(Ended::new(EX_USAGE, text));
        }
        Ok(posting)
    }

    fn address(&self) -> String {
        format!("{}@{}", self.list, self.domain)
    }

    /// Hands the message that `input` has back to the node.
    pub async fn pass_on<R: AsyncRead + Send + Unpin>(&self, mut input: R) -> Ended {
        let Some(smtp) = self.smtp else {
            let text = "nowhere to hand it back: give ppswd.toml a local_smtp, or --smtp";
            return Ended::new(EX_TEMPFAIL, text);
        };
        let head = match head(&mut input).await {
            Ok(head) => head,
            Err(ended) => return ended,
        };
        if has_field(&head, LOOP_FIELD, &self.address()) {
            let list = self.address();
            let text = format!("this message has been through the list {list} already");
            return Ended::new(EX_UNAVAILABLE, text);
        }
        let field = format!("{LOOP_FIELD}: {}\n", self.address());
        let ahead = [field.as_bytes(), &head].concat();
        let eight_bit = !ahead.is_ascii();
        let mut body = Body { input, ahead: Some(ahead), after_cr: false };
        // The node takes mail for -outgoing from itself only: from the address that it listens on.
        let connector = TcpConnector::from(smtp.ip());
        let line = Line {
            from: None,
            to: smtp,
            protocol: Protocol::Smtp,
            tls: Tls::Never,
            certificate: None,
            auth: None,
        };
        let tracer = Tracer::default();
        let remote = Remote { line: &line, name: "localhost", tracer: &tracer };
        let opened = Session::open(&connector, remote, "localhost", CONNECT_TIMEOUT).await;
        let mut session = match opened {
            Ok(session) => session,
            Err(error) => return Ended::new(EX_TEMPFAIL, error.to_string()),
        };
        let mail = Mail { sender: self.sender.clone(), eight_bit, ..Mail::default() };
        let outgoing = format!("{}-outgoing@{}", self.list, self.domain);
        let recipient = Rcpt { address: outgoing, ..Rcpt::default() };
        let client = ClientOptions::default();
        let outcome =
            transaction::send(&mut session, &client, &mail, &[recipient], &mut body, &NoFence)
                .await;
        session.quit().await;
        match outcome.answers.into_iter().next() {
            Some(Answer::Delivered(_)) => Ended::new(0, ""),
            Some(Answer::Failed(text)) => Ended::new(EX_UNAVAILABLE, text),
            Some(
                Answer::Deferred { text, .. }
                | Answer::Unread(text)
                | Answer::Suspended { text, .. },
            ) => Ended::new(EX_TEMPFAIL, text),
            Some(Answer::Fenced) | None => Ended::new(EX_TEMPFAIL, "no answer"),
        }
    }
}

/// The message.
///
/// # Errors
/// There is no standard input.
pub fn standard_input() -> io::Result<tokio::fs::File> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    Ok(tokio::fs::File::from_std(input.into()))
}

/// The header with the empty line behind it, and perhaps more.
async fn head<R: AsyncRead + Send + Unpin>(input: &mut R) -> Result<Vec<u8>, Ended> {
    let mut head = Vec::new();
    loop {
        let begin = head.len();
        let mut piece = vec![0; PIECE_BYTES];
        let length = input.read(&mut piece).await;
        let length = length.map_err(|error| {
            Ended::new(EX_TEMPFAIL, format!("standard input cannot be read: {error}"))
        })?;
        head.extend_from_slice(piece.get(..length).unwrap_or_default());
        if length == 0 || header_end(&head, begin.saturating_sub(2)).is_some() {
            return Ok(head);
        }
        if head.len() > HEADER_BYTES_MAX {
            let text = format!("its header is longer than {HEADER_BYTES_MAX} bytes");
            return Err(Ended::new(EX_DATAERR, text));
        }
    }
}

/// Where the empty line behind the header ends, looked for from `from` on.
fn header_end(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(line) = memchr(b'\n', text.get(at..)?) {
        let begin = at + line + 1;
        match text.get(begin..)? {
            [b'\n', ..] => return Some(begin + 1),
            [b'\r', b'\n', ..] => return Some(begin + 2),
            _ => at = begin,
        }
    }
    None
}

/// Whether the header of a message has a field with this value.
fn has_field(head: &[u8], name: &str, value: &str) -> bool {
    let header = &head[..header_end(head, 0).unwrap_or(head.len())];
    header.split(|byte| *byte == b'\n').any(|line| {
        let line = String::from_utf8_lossy(line);
        line.split_once(':').is_some_and(|(field, text)| {
            field.trim().eq_ignore_ascii_case(name) && text.trim().eq_ignore_ascii_case(value)
        })
    })
}

/// A message with the line ends of this machine, as SMTP wants it.
struct Body<R> {
    input: R,
    /// What was read of it before.
    ahead: Option<Vec<u8>>,
    after_cr: bool,
}

#[async_trait]
impl<R: AsyncRead + Send + Unpin> BodySource for Body<R> {
    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        let piece = match self.ahead.take() {
            Some(ahead) => ahead,
            None => {
                let mut piece = vec![0; PIECE_BYTES];
                let length = self.input.read(&mut piece).await;
                let length = length.map_err(|error| LogError::Misuse(error.to_string()))?;
                piece.truncate(length);
                piece
            }
        };
        if piece.is_empty() {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(piece.len() + piece.len() / 32);
        for byte in piece {
            if byte == b'\n' && !self.after_cr {
                out.push(b'\r');
            }
            self.after_cr = byte == b'\r';
            out.push(byte);
        }
        Ok(Some(out.into()))
    }
}

/// A program that is not a leader of anything.
pub(crate) struct NoFence;

#[async_trait]
impl Fence for NoFence {
    fn holds(&self) -> bool {
        true
    }
    async fn begun(&self) -> bool {
        true
    }
    fn is_open(&self) -> bool {
        true
    }
    async fn broken(&self) {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_knows_its_own_messages() {
        let list = "punting@lists.cam.ac.uk";
        for (head, is) in [
            (&b"X-Loop: punting@lists.cam.ac.uk\n\nbody"[..], true),
            (b"Subject: x\r\nx-loop:PUNTING@lists.cam.ac.uk \r\n\r\n", true),
            (b"Subject: x\n\nX-Loop: punting@lists.cam.ac.uk\n", false),
            (b"X-Loop: other@lists.cam.ac.uk\n\n", false),
            (b"\nX-Loop: punting@lists.cam.ac.uk\n", false),
            (b"X-Loop: punting@lists.cam.ac.uk", true),
            (b"", false),
        ] {
            let head =
                if head.starts_with(b"\n") { [b"A: b\n", head].concat() } else { head.to_vec() };
            assert_eq!(
                has_field(&head, LOOP_FIELD, list),
                is,
                "{}",
                String::from_utf8_lossy(&head)
            );
        }
    }

    #[tokio::test]
    async fn line_ends_become_those_of_smtp() {
        let (mut body, mut out) =
            (Body { input: &b"c\r"[..], ahead: Some(b"a\nb\r".to_vec()), after_cr: false }, vec![]);
        while let Some(piece) = body.next().await.unwrap() {
            out.extend_from_slice(&piece);
        }
        assert_eq!(out, b"a\r\nb\rc\r");
    }

    #[tokio::test]
    async fn without_a_node_it_is_tried_again() {
        let posting = Posting { list: "x".into(), domain: "y".into(), ..Posting::default() };
        assert_eq!(posting.pass_on(&b"A: b\n\n"[..]).await.code, EX_TEMPFAIL);
    }
}
