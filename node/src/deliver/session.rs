//! One connection to a server, as SMTP (RFC 5321) or LMTP (RFC 2033) client.
//!
//! Own code: the client crates know no pipelining, no LMTP, and hold a whole message in memory. TLS is not offered:
//! the paper sends without (`hosts_avoid_tls`).

use std::{net::SocketAddr, time::Duration};

use tokio::{io::AsyncWriteExt, time::timeout};

use super::{
    connect::{Connector, Stream},
    reply::{Reply, ReplyBuffer, ReplyError},
};
use crate::{
    limits::{DATA_WRITE_TIMEOUT, QUIT_TIMEOUT, REMOTE_REPLY_TIMEOUT},
    route::Protocol,
};

/// What the server offers (RFC 5321 §4.1.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    pub(crate) pipelining: bool,
    pub(crate) size: bool,
    pub(crate) eight_bit: bool,
    pub(crate) smtputf8: bool,
    pub(crate) dsn: bool,
}

/// Why a session cannot go on. The text says at which command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    /// No connection.
    #[error("{0}")]
    Connect(String),
    /// The server refused the session as a whole: greeting, EHLO, or 421 at any time.
    #[error("SMTP error from remote mail server after {stage}: {}", .reply.text())]
    Refused { stage: &'static str, reply: Reply },
    #[error("no answer from remote mail server after {stage} within {limit:?}")]
    Timeout { stage: &'static str, limit: Duration },
    #[error("{error} after {stage}")]
    Broken { stage: &'static str, error: ReplyError },
    /// The bytes of the message cannot be read here.
    #[error("message cannot be read from the spool: {0}")]
    Spool(String),
    /// This node may no longer deliver from the partition; the server did not get the final dot.
    #[error("the partition moved during the transaction")]
    Fenced,
}

/// An open session, between transactions.
pub(crate) struct Session {
    stream: Box<dyn Stream>,
    buffer: ReplyBuffer,
    pub(crate) peer: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) extensions: Extensions,
    /// Transactions begun.
    pub(crate) transactions: u32,
}

impl Session {
    /// Connects within `limit`, and greets as `name`.
    pub(crate) async fn open(
        connector: &dyn Connector,
        peer: SocketAddr,
        protocol: Protocol,
        name: &str,
        limit: Duration,
    ) -> Result<Self, SessionError> {
        let stream = connector
            .connect(peer, limit)
            .await
            .map_err(|error| SessionError::Connect(format!("{peer}: {error}")))?;
        let mut session = Self {
            stream,
            buffer: ReplyBuffer::default(),
            peer,
            protocol,
            extensions: Extensions::default(),
            transactions: 0,
        };
        session.greet(name).await?;
        Ok(session)
    }

    async fn greet(&mut self, name: &str) -> Result<(), SessionError> {
        let stage = "initial connection";
        let greeting = self.reply(stage, REMOTE_REPLY_TIMEOUT).await?;
        if !greeting.is_positive() {
            return Err(SessionError::Refused { stage, reply: greeting });
        }
        let (stage, verb) = match self.protocol {
            Protocol::Smtp | Protocol::Pipe => ("EHLO", "EHLO"),
            Protocol::Lmtp => ("LHLO", "LHLO"),
        };
        let reply = self.command(stage, &format!("{verb} {name}\r\n")).await?;
        if reply.is_positive() {
            self.extensions = extensions(&reply);
            return Ok(());
        }
        // RFC 5321 §3.2: a server that knows no EHLO gets HELO. LMTP has no older form.
        if self.protocol == Protocol::Lmtp || !reply.is_permanent() {
            return Err(SessionError::Refused { stage, reply });
        }
        let stage = "HELO";
        let reply = self.command(stage, &format!("HELO {name}\r\n")).await?;
        if reply.is_positive() { Ok(()) } else { Err(SessionError::Refused { stage, reply }) }
    }

    /// Sends one command and reads its reply.
    pub(crate) async fn command(
        &mut self,
        stage: &'static str,
        line: &str,
    ) -> Result<Reply, SessionError> {
        self.write(stage, line.as_bytes()).await?;
        self.reply(stage, REMOTE_REPLY_TIMEOUT).await
    }

    /// Writes and flushes.
    pub(crate) async fn write(
        &mut self,
        stage: &'static str,
        bytes: &[u8],
    ) -> Result<(), SessionError> {
        let broken = |error: std::io::Error| SessionError::Broken {
            stage,
            error: ReplyError::Io(error.to_string()),
        };
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        match timeout(DATA_WRITE_TIMEOUT, write).await {
            Ok(result) => result.map_err(broken),
            Err(_) => Err(SessionError::Timeout { stage, limit: DATA_WRITE_TIMEOUT }),
        }
    }

    /// Reads one reply. 421 ends the session whatever it answers (RFC 5321 §3.8).
    pub(crate) async fn reply(
        &mut self,
        stage: &'static str,
        limit: Duration,
    ) -> Result<Reply, SessionError> {
        match timeout(limit, self.buffer.read(&mut self.stream)).await {
            Ok(Ok(reply)) if reply.code == 421 => Err(SessionError::Refused { stage, reply }),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(SessionError::Broken { stage, error }),
            Err(_) => Err(SessionError::Timeout { stage, limit }),
        }
    }

    /// Whether the session can carry another transaction: the server has said nothing since the last one.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        if !self.buffer.is_empty() {
            return false;
        }
        // A closed or talking server makes the read ready at once.
        let reply = timeout(Duration::ZERO, self.buffer.read(&mut self.stream)).await;
        reply.is_err() && self.buffer.is_empty()
    }

    /// Ends the session politely; nothing depends on it.
    pub(crate) async fn quit(mut self) {
        let goodbye = async {
            self.write("QUIT", b"QUIT\r\n").await?;
            self.reply("QUIT", QUIT_TIMEOUT).await
        };
        let _ = timeout(QUIT_TIMEOUT, goodbye).await;
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("peer", &self.peer).finish_non_exhaustive()
    }
}

fn extensions(reply: &Reply) -> Extensions {
    let mut out = Extensions::default();
    for line in reply.lines.iter().skip(1) {
        let keyword = line.split([' ', '=']).next().unwrap_or_default();
        match keyword.to_ascii_uppercase().as_str() {
            "PIPELINING" => out.pipelining = true,
            "SIZE" => out.size = true,
            "8BITMIME" => out.eight_bit = true,
            "SMTPUTF8" => out.smtputf8 = true,
            "DSN" => out.dsn = true,
            _ => {}
        }
    }
    out
}
