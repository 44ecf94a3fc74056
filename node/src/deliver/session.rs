//! One connection to a server, as SMTP (RFC 5321) or LMTP (RFC 2033) client.
//!
//! Own code: the client crates know no pipelining, no LMTP, and hold a whole message in memory.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use metrics::counter;
use tokio::{io::AsyncWriteExt, time::timeout};
use tracing::info;
use zeroize::Zeroizing;

use super::{
    connect::{Connector, Stream},
    hosts::Candidate,
    reply::{Reply, ReplyBuffer, ReplyError},
    retry::Cause,
    tls,
};
use crate::{
    files,
    limits::{
        AUTH_MECHANISMS_MAX, DATA_WRITE_TIMEOUT, PASSWORD_FILE_BYTES_MAX, QUIT_TIMEOUT,
        REMOTE_REPLY_TIMEOUT,
    },
    route::{Auth, Destination, Protocol, Tls},
    trace::{Direction, Tap, Tracer},
};

/// Ends a message that `DATA` began (RFC 5321 §4.1.1.4).
pub(crate) const FINAL_DOT: &[u8] = b".\r\n";

/// What the server offers (RFC 5321 §4.1.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    pub(crate) starttls: bool,
    pub(crate) pipelining: bool,
    pub(crate) size: bool,
    pub(crate) eight_bit: bool,
    pub(crate) smtputf8: bool,
    pub(crate) dsn: bool,
    pub(crate) chunking: bool,
}

/// Why a session cannot go on. The text says at which command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    /// No connection.
    #[error("{text}")]
    Connect { text: String, cause: Cause },
    /// The server refused the session as a whole: greeting, EHLO, or 421 at any time.
    #[error("SMTP error from remote mail server after {stage}: {}", .reply.text())]
    Refused { stage: &'static str, reply: Reply },
    #[error("no answer from remote mail server after {stage} within {limit:?}")]
    Timeout { stage: &'static str, limit: Duration },
    #[error("{error} after {stage}")]
    Broken { stage: &'static str, error: ReplyError },
    /// TLS was begun, or must be used, and did not come about.
    #[error("TLS with remote mail server: {0}")]
    Tls(String),
    /// The server does not take us for who we are, or we cannot say it.
    #[error("AUTH with remote mail server: {0}")]
    Auth(String),
    /// The bytes of the message cannot be read here.
    #[error("message cannot be read from the spool: {0}")]
    Spool(String),
    /// This node may no longer deliver from the partition; the server did not get the final dot.
    #[error("the partition moved during the transaction")]
    Fenced,
}

impl SessionError {
    /// As retry rules have it.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Connect { cause, .. } => *cause,
            Self::Refused { stage, reply } => reply.cause(stage),
            Self::Timeout { .. } => Cause::Timeout,
            Self::Broken { error: ReplyError::Closed | ReplyError::Io(_), .. } => {
                Cause::LostConnection
            }
            Self::Tls(_) => Cause::Tls,
            Self::Broken { .. } | Self::Auth(_) | Self::Spool(_) | Self::Fenced => Cause::Other,
        }
    }
}

/// What a session is for: those that are equal are as good as each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Our own address; the operating system's choice if not given.
    pub(crate) from: Option<IpAddr>,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) tls: Tls,
    /// The name that the certificate must be for, and who answers for it: only with [`Tls::Verify`].
    pub(crate) certificate: Option<(String, Option<PathBuf>)>,
    pub(crate) auth: Option<Auth>,
}

/// Whom a session is with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote<'a> {
    pub(crate) line: &'a Line,
    /// Its name, for the certificate that it chooses.
    pub(crate) name: &'a str,
    /// Shows the session to operators.
    pub(crate) tracer: &'a Tracer,
}

impl Line {
    /// To a host of a destination.
    pub(crate) fn new(destination: &Destination, host: &Candidate, from: Option<IpAddr>) -> Self {
        let Destination { protocol, tls, ref client, .. } = *destination;
        let certificate =
            (tls == Tls::Verify).then(|| (host.name.clone(), client.tls_ca_file.clone()));
        let auth = client.auth.clone();
        Self { from, to: host.address, protocol, tls, certificate, auth }
    }
}

/// An open session, between transactions.
pub(crate) struct Session {
    stream: Box<dyn Stream>,
    buffer: ReplyBuffer,
    tap: Tap,
    /// Name of the other end, for those who watch.
    host: String,
    pub(crate) protocol: Protocol,
    /// What was wanted of it.
    pub(crate) line: Line,
    /// Version and cipher; empty without TLS.
    pub(crate) cipher: String,
    pub(crate) extensions: Extensions,
    /// Of AUTH, as offered.
    mechanisms: Vec<String>,
    /// Transactions begun.
    pub(crate) transactions: u32,
}

impl Session {
    /// Connects within `limit`, and greets as `name`. If TLS is not a must, and fails where the server has offered it, once
    /// more without.
    pub(crate) async fn open(
        connector: &dyn Connector,
        remote: Remote<'_>,
        name: &str,
        limit: Duration,
    ) -> Result<Self, SessionError> {
        let result = match Self::connect(connector, remote, name, limit).await {
            Err(SessionError::Tls(why)) if remote.line.tls == Tls::May => {
                info!(peer = %remote.line.to, why, "no TLS although it was offered: without");
                let line = Line { tls: Tls::Never, ..remote.line.clone() };
                let plain = Remote { line: &line, ..remote };
                let mut opened = Self::connect(connector, plain, name, limit).await;
                if let Ok(session) = &mut opened {
                    session.line.tls = Tls::May;
                }
                counter!("ppsw_delivery_connections_total", "tls" => "failed").increment(1);
                return opened;
            }
            result => result,
        };
        if let Ok(session) = &result {
            let tls = if session.cipher.is_empty() { "no" } else { "yes" };
            counter!("ppsw_delivery_connections_total", "tls" => tls).increment(1);
        }
        result
    }

    async fn connect(
        connector: &dyn Connector,
        remote: Remote<'_>,
        name: &str,
        limit: Duration,
    ) -> Result<Self, SessionError> {
        let line = remote.line;
        let mut tap = Tap::new(remote.tracer.clone(), Direction::Out, line.to.ip());
        if tap.is_on() {
            tap.note([Some(remote.name), None], &format!("connects to {}", line.to));
        }
        let stream = connector.connect(line.from, line.to, limit).await.map_err(|error| {
            if tap.is_on() {
                tap.note([Some(remote.name), None], &format!("no connection: {error}"));
            }
            let cause = match error.kind() {
                io::ErrorKind::ConnectionRefused => Cause::Refused,
                io::ErrorKind::TimedOut => Cause::TimeoutConnect,
                _ => Cause::Other,
            };
            SessionError::Connect { text: format!("{}: {error}", line.to), cause }
        })?;
        let mut session = Self {
            stream,
            buffer: ReplyBuffer::default(),
            tap,
            host: remote.name.to_owned(),
            protocol: line.protocol,
            line: line.clone(),
            cipher: String::new(),
            extensions: Extensions::default(),
            mechanisms: Vec::new(),
            transactions: 0,
        };
        let stage = "initial connection";
        let greeting = session.reply(stage, REMOTE_REPLY_TIMEOUT).await?;
        if !greeting.is_positive() {
            return Err(SessionError::Refused { stage, reply: greeting });
        }
        session.greet(name).await?;
        let mut session = match (line.tls, session.extensions.starttls) {
            (Tls::Never, _) | (Tls::May, false) => session,
            (Tls::Must | Tls::Verify, false) => {
                let why = "it is required here, and not offered there";
                return Err(SessionError::Tls(why.to_owned()));
            }
            (Tls::May | Tls::Must | Tls::Verify, true) => session.encrypted(remote, name).await?,
        };
        if let Some(auth) = &line.auth {
            session.authenticate(auth).await?;
        }
        Ok(session)
    }

    /// RFC 4954 §4, with the initial response in the command.
    async fn authenticate(&mut self, auth: &Auth) -> Result<(), SessionError> {
        let refused = |why: String| SessionError::Auth(why);
        let (mechanism, response) = match auth {
            // RFC 4422 §A.2; RFC 4954 §4 writes an empty response as "=".
            Auth::External { identity } if identity.is_empty() => {
                ("EXTERNAL", Zeroizing::new("=".to_owned()))
            }
            Auth::External { identity } => {
                ("EXTERNAL", Zeroizing::new(BASE64_STANDARD.encode(identity)))
            }
            Auth::Plain { .. } if self.cipher.is_empty() => {
                return Err(refused("no password is sent without TLS".to_owned()));
            }
            Auth::Plain { user, password_file } => {
                let password = password(password_file).map_err(refused)?;
                let plain = Zeroizing::new(format!("\0{user}\0{}", *password));
                ("PLAIN", Zeroizing::new(BASE64_STANDARD.encode(plain.as_bytes())))
            }
        };
        if !self.mechanisms.iter().any(|offered| offered == mechanism) {
            return Err(refused(format!("{mechanism} is not offered")));
        }
        let command = Zeroizing::new(format!("AUTH {mechanism} {}\r\n", *response));
        let reply = self.command("AUTH", &command).await?;
        if reply.code == 334 {
            // It wants more than there is to say: RFC 4954 §4 cancels with "*".
            let reply = self.command("AUTH", "*\r\n").await?;
            let why = format!("it wants more than it was told, then {}", reply.text());
            return Err(refused(why));
        }
        if reply.code == 235 { Ok(()) } else { Err(refused(reply.text())) }
    }

    /// RFC 3207: nothing that was said before the handshake counts behind it.
    async fn encrypted(mut self, remote: Remote<'_>, name: &str) -> Result<Self, SessionError> {
        let reply = self.command("STARTTLS", "STARTTLS\r\n").await?;
        if reply.code != 220 {
            // It has said what it wants, and goes on in plain.
            return match remote.line.tls {
                Tls::Must | Tls::Verify => {
                    Err(SessionError::Tls(format!("after STARTTLS: {}", reply.text())))
                }
                Tls::Never | Tls::May => Ok(self),
            };
        }
        if !self.buffer.is_empty() {
            let why = "something came in plain behind the reply to STARTTLS";
            return Err(SessionError::Tls(why.to_owned()));
        }
        let authorities = match &remote.line.certificate {
            Some((_, file)) => tls::Trust::Authorities(file.as_deref()),
            None => tls::Trust::Anybody,
        };
        let (stream, cipher) =
            tls::handshake(self.stream, remote.name, remote.line.to.ip(), authorities)
                .await
                .map_err(SessionError::Tls)?;
        let (extensions, mechanisms) = (Extensions::default(), Vec::new());
        let mut session = Self { stream, cipher, extensions, mechanisms, ..self };
        if session.tap.is_on() {
            session.tap.note([Some(&session.host), None], &format!("TLS: {}", session.cipher));
        }
        session.greet(name).await?;
        Ok(session)
    }

    async fn greet(&mut self, name: &str) -> Result<(), SessionError> {
        let (stage, verb) = match self.protocol {
            Protocol::Smtp | Protocol::Pipe => ("EHLO", "EHLO"),
            Protocol::Lmtp => ("LHLO", "LHLO"),
        };
        let reply = self.command(stage, &format!("{verb} {name}\r\n")).await?;
        if reply.is_positive() {
            (self.extensions, self.mechanisms) = extensions(&reply);
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
        self.say(stage, line.as_bytes()).await?;
        self.reply(stage, REMOTE_REPLY_TIMEOUT).await
    }

    /// Sends commands.
    pub(crate) async fn say(
        &mut self,
        stage: &'static str,
        commands: &[u8],
    ) -> Result<(), SessionError> {
        if self.tap.is_on() {
            self.tap.said([Some(&self.host), None], commands);
        }
        self.write(stage, commands).await
    }

    /// Sends a piece of a message, which nobody is shown. As a chunk it has its command before it, in the same write.
    pub(crate) async fn send_content(
        &mut self,
        mut content: Vec<u8>,
        chunk: bool,
    ) -> Result<(), SessionError> {
        if chunk {
            self.announce_chunk(&mut content, "");
        } else {
            self.tap.count(content.len());
        }
        self.write("DATA", &content).await
    }

    /// Sends what is left of a message, which may be nothing, and its end, in one write: for a small message all of it
    /// is one packet.
    pub(crate) async fn send_end(
        &mut self,
        mut content: Vec<u8>,
        chunk: bool,
    ) -> Result<(), SessionError> {
        if chunk {
            self.announce_chunk(&mut content, " LAST");
        } else {
            self.tap.count(content.len());
            self.end_of_content();
            if self.tap.is_on() {
                self.tap.said([Some(&self.host), None], FINAL_DOT);
            }
            content.extend_from_slice(FINAL_DOT);
        }
        self.write("end of data", &content).await
    }

    /// The message has been sent, or was cut off.
    pub(crate) fn end_of_content(&mut self) {
        self.tap.end_of_content([Some(&self.host), None]);
    }

    /// Puts the command before a chunk (RFC 3030 §2).
    fn announce_chunk(&mut self, content: &mut Vec<u8>, last: &str) {
        let octets = content.len();
        let command = format!("BDAT {octets}{last}\r\n").into_bytes();
        if self.tap.is_on() {
            self.tap.said([Some(&self.host), None], &command);
        }
        self.tap.count(octets);
        self.end_of_content();
        content.splice(..0, command);
    }

    /// Writes and flushes.
    async fn write(&mut self, stage: &'static str, bytes: &[u8]) -> Result<(), SessionError> {
        let broken = |error: io::Error| SessionError::Broken {
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
        let read = timeout(limit, self.buffer.read(&mut self.stream)).await;
        if self.tap.is_on() {
            let host = [Some(self.host.as_str()), None];
            match &read {
                Ok(Ok(reply)) => self.tap.answered(host, reply.code, &reply.lines),
                Ok(Err(error)) => self.tap.note(host, &error.to_string()),
                Err(_) => self.tap.note(host, &format!("no answer within {limit:?}")),
            }
        }
        match read {
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
            self.say("QUIT", b"QUIT\r\n").await?;
            self.reply("QUIT", QUIT_TIMEOUT).await
        };
        let _ = timeout(QUIT_TIMEOUT, goodbye).await;
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("peer", &self.line.to).finish_non_exhaustive()
    }
}

/// The first line of a file, which each node has for itself.
fn password(file: &Path) -> Result<Zeroizing<String>, String> {
    let error = |what: String| format!("cannot read the password in {}: {what}", file.display());
    let bytes = files::read(file, PASSWORD_FILE_BYTES_MAX).map_err(|e| error(e.to_string()))?;
    let bytes = Zeroizing::new(bytes);
    let text = std::str::from_utf8(&bytes).map_err(|e| error(e.to_string()))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() || line.contains('\0') {
        return Err(error("expected it in the first line".to_owned()));
    }
    Ok(Zeroizing::new(line.to_owned()))
}

/// What is offered, and the mechanisms of AUTH.
fn extensions(reply: &Reply) -> (Extensions, Vec<String>) {
    let (mut out, mut mechanisms) = (Extensions::default(), Vec::new());
    for line in reply.lines.iter().skip(1) {
        let keyword = line.split([' ', '=']).next().unwrap_or_default();
        match keyword.to_ascii_uppercase().as_str() {
            "STARTTLS" => out.starttls = true,
            "PIPELINING" => out.pipelining = true,
            "SIZE" => out.size = true,
            "8BITMIME" => out.eight_bit = true,
            "SMTPUTF8" => out.smtputf8 = true,
            "DSN" => out.dsn = true,
            "CHUNKING" => out.chunking = true,
            // "AUTH=PLAIN" is how servers wrote it before there was a standard.
            "AUTH" => {
                let names = line.split([' ', '=']).skip(1).take(AUTH_MECHANISMS_MAX);
                mechanisms = names.map(str::to_ascii_uppercase).collect();
            }
            _ => {}
        }
    }
    (out, mechanisms)
}
