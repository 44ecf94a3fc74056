//! The byte stream of a session: lines in, replies out, both buffered, all waits bounded.

use std::io;

use super::{
    line::{Line, LineReader},
    reply::Reply,
    tls::{Acceptor, Negotiated},
};
use crate::limits::{
    CLOSE_LINGER, CLOSE_LINGER_BYTES_MAX, COMMAND_TIMEOUT, DATA_BLOCK_TIMEOUT, REPLY_TIMEOUT,
    SESSION_READ_BYTES_FIRST, SESSION_READ_BYTES_MAX, SESSION_READ_BYTES_MIN,
    SESSION_REPLY_BYTES_MAX, TLS_HANDSHAKE_TIMEOUT,
};
use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// A connection to a client: TCP, TLS over it, or a pipe in tests.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {
    /// Bytes have arrived that nobody has read.
    fn has_input(&self) -> bool {
        false
    }

    /// TLS begins without a handshake: the connection is made up, and so is the client.
    fn assumes_tls(&self) -> bool {
        false
    }
}

impl Transport for tokio::net::TcpStream {
    fn has_input(&self) -> bool {
        crate::net::has_input(self)
    }
}

impl Transport for tokio_rustls::server::TlsStream<Box<dyn Transport>> {}

impl Transport for tokio::io::DuplexStream {}

/// What stands in while a handshake has the stream.
impl Transport for tokio::io::Empty {}

/// Why there is no more input.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("connection closed by client")]
    Closed,
    #[error("timed out")]
    TimedOut,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
}

/// Reads and writes for one session.
pub(super) struct Wire {
    stream: Box<dyn Transport>,
    input: BytesMut,
    output: BytesMut,
    lines: LineReader,
    /// What the next read of content asks for, in bytes.
    block: usize,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Transport>) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            lines: LineReader::default(),
            block: SESSION_READ_BYTES_FIRST,
        }
    }

    /// The client has sent something before it was asked.
    pub(super) fn has_early_input(&self) -> bool {
        !self.input.is_empty() || self.stream.has_input()
    }

    /// Puts a reply into the buffer. It is sent when no further command waits (RFC 2920 §3.2), or the buffer is full.
    pub(super) async fn send(&mut self, reply: &Reply) -> Result<(), Lost> {
        reply.write(&mut self.output);
        if self.output.len() > SESSION_REPLY_BYTES_MAX { self.flush().await } else { Ok(()) }
    }

    /// Sends what is in the buffer.
    pub(super) async fn flush(&mut self) -> Result<(), Lost> {
        let all = async {
            while !self.output.is_empty() {
                if self.stream.write_buf(&mut self.output).await? == 0 {
                    return Err(io::Error::from(io::ErrorKind::WriteZero));
                }
            }
            self.stream.flush().await
        };
        timeout(REPLY_TIMEOUT, all).await.map_err(|_| Lost::TimedOut)??;
        if self.output.capacity() > SESSION_REPLY_BYTES_MAX {
            self.output = BytesMut::new();
        }
        Ok(())
    }

    /// The next line. The whole of it must arrive within [`COMMAND_TIMEOUT`]. May be cancelled without loss.
    pub(super) async fn line(&mut self, strict: bool) -> Result<Line, Lost> {
        let whole = async {
            loop {
                if let Some(line) = self.lines.next(&mut self.input, strict) {
                    return Ok(line);
                }
                self.flush().await?;
                self.fill(SESSION_READ_BYTES_MIN).await?;
            }
        };
        timeout(COMMAND_TIMEOUT, whole).await.map_err(|_| Lost::TimedOut)?
    }

    /// Bytes of content that have arrived, waiting for some if there are none (at most [`DATA_BLOCK_TIMEOUT`]).
    /// [`Self::consume`] those that were used.
    pub(super) async fn content(&mut self) -> Result<&[u8], Lost> {
        if self.input.is_empty() {
            self.flush().await?;
            let bytes = self.block;
            if bytes > SESSION_READ_BYTES_FIRST {
                // More of a long message waits in most cases: the lines and short messages of others go first.
                tokio::task::yield_now().await;
            }
            timeout(DATA_BLOCK_TIMEOUT, self.fill(bytes)).await.map_err(|_| Lost::TimedOut)??;
            if self.input.len() >= bytes {
                self.block = (2 * bytes).min(SESSION_READ_BYTES_MAX);
            }
        }
        Ok(&self.input)
    }

    /// Takes bytes off the input.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.input.advance(bytes);
    }

    /// Gives the memory back that a message needed, when the input is empty.
    pub(super) fn shrink(&mut self) {
        self.block = SESSION_READ_BYTES_FIRST;
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }

    /// Commands or content wait that have been read already.
    pub(super) fn has_buffered_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Puts TLS around the stream. Nothing that came in clear is ever taken for something that came over TLS
    /// (RFC 3207 §6; CVE-2011-0411): the caller has refused it, and it is dropped here.
    pub(super) async fn start_tls(&mut self, acceptor: &Acceptor) -> Result<Negotiated, Lost> {
        self.flush().await?;
        self.input = BytesMut::new();
        self.lines = LineReader::default();
        if self.stream.assumes_tls() {
            return Ok(Negotiated { description: "assumed".to_owned(), certificate: None });
        }
        let stream = std::mem::replace(&mut self.stream, Box::new(tokio::io::empty()));
        let accepted = timeout(TLS_HANDSHAKE_TIMEOUT, acceptor.tls().accept(stream)).await;
        let count = |result, version| {
            metrics::counter!("ppsw_smtp_tls_handshakes_total", "result" => result, "version" => version)
                .increment(1);
        };
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                count("failed", "none");
                return Err(Lost::Tls(error));
            }
            Err(_) => {
                count("timed_out", "none");
                return Err(Lost::TimedOut);
            }
        };
        count("done", super::tls::version(stream.get_ref().1));
        let negotiated = acceptor.negotiated(stream.get_ref().1);
        self.stream = Box::new(stream);
        Ok(negotiated)
    }

    /// Sends what is left and tells the client that nothing follows. Then reads on for a moment, because input that
    /// nobody has read makes the kernel reset the connection, and the client would not see our last reply.
    pub(super) async fn close(&mut self) {
        self.input = BytesMut::new();
        let leave = async {
            self.stream.shutdown().await?;
            let mut left = CLOSE_LINGER_BYTES_MAX;
            while left > 0 {
                self.input.clear();
                self.input.reserve(SESSION_READ_BYTES_MIN);
                match self.stream.read_buf(&mut self.input).await? {
                    0 => break,
                    bytes => left = left.saturating_sub(bytes),
                }
            }
            Ok::<_, io::Error>(())
        };
        // A failure means that the client has gone, which is what we want.
        let _ = timeout(CLOSE_LINGER, leave).await;
    }

    async fn fill(&mut self, bytes: usize) -> Result<(), Lost> {
        self.input.reserve(bytes);
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(Lost::Closed),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn others_have_their_turns_while_much_content_waits() {
        let all = 16 * SESSION_READ_BYTES_MAX;
        let (mut client, server) = tokio::io::duplex(all);
        client.write_all(&vec![b'x'; all]).await.unwrap();
        let mut wire = Wire::new(Box::new(server));
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&turns);
        let other = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let (mut left, mut reads) = (all, 0);
        while left > 0 {
            let bytes = wire.content().await.unwrap().len();
            wire.consume(bytes);
            left -= bytes;
            // The first read is all that a short message needs.
            assert!(turns.load(Ordering::Relaxed) >= reads, "before read {reads}");
            reads += 1;
        }
        other.abort();
        assert!(reads > 4, "{reads} reads");
    }
}
