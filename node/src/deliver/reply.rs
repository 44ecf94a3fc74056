//! Replies of SMTP and LMTP servers.
//!
//! Own code rather than `smtp-proto`'s receiver: a reply is bounded in lines and bytes here, and its text is kept as
//! the server wrote it, for log and bounce.

use tokio::io::{AsyncRead, AsyncReadExt};

use super::retry::{Cause, Stage};
use crate::limits::{REASON_BYTES_MAX, REMOTE_REPLY_LINE_BYTES_MAX, REMOTE_REPLY_LINES_MAX};

/// A whole reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    /// The lines without code, printable.
    pub(crate) lines: Vec<String>,
}

impl Reply {
    pub(crate) fn is_positive(&self) -> bool {
        (200..300).contains(&self.code)
    }

    pub(crate) fn is_permanent(&self) -> bool {
        self.code >= 500
    }

    /// What it is for retry rules, as an answer to the command that `stage` begins with.
    pub(crate) fn cause(&self, stage: &str) -> Cause {
        let to = match stage.split(' ').next() {
            Some("MAIL") => Stage::Mail,
            Some("RCPT") => Stage::Rcpt,
            Some("DATA" | "end") => Stage::Data,
            _ => return Cause::Other,
        };
        // RFC 3463 §3.3: "Mailbox full".
        let full = self.lines.first().is_some_and(|line| line.starts_with("4.2.2"));
        Cause::Reply { to, code: self.code, full }
    }

    /// Code and text in one line, at most 1 KiB.
    pub(crate) fn text(&self) -> String {
        printable(&format!("{} {}", self.code, self.lines.join(" ")))
    }
}

/// Why there was no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplyError {
    #[error("remote host closed the connection")]
    Closed,
    #[error("connection failed: {0}")]
    Io(String),
    #[error("remote host sent something that is no SMTP reply: {0}")]
    Malformed(String),
}

/// Bytes that were read and belong to replies to come.
#[derive(Debug, Default)]
pub(crate) struct ReplyBuffer {
    bytes: Vec<u8>,
}

impl ReplyBuffer {
    /// Something arrived that nobody asked for (a connection in this state is not to be used again).
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads one reply (RFC 5321 §4.2). No time-out of its own.
    pub(crate) async fn read(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin + ?Sized),
    ) -> Result<Reply, ReplyError> {
        let mut lines = Vec::new();
        loop {
            let line = self.line(stream).await?;
            let (code, last, text) = parse_line(&line)?;
            lines.push(text);
            if last {
                return Ok(Reply { code, lines });
            }
            if lines.len() == REMOTE_REPLY_LINES_MAX {
                return Err(ReplyError::Malformed("a reply of too many lines".to_owned()));
            }
        }
    }

    async fn line(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin + ?Sized),
    ) -> Result<Vec<u8>, ReplyError> {
        loop {
            if let Some(end) = self.bytes.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
                while matches!(line.last(), Some(b'\n' | b'\r')) {
                    line.pop();
                }
                return Ok(line);
            }
            if self.bytes.len() > REMOTE_REPLY_LINE_BYTES_MAX {
                return Err(ReplyError::Malformed("a line without end".to_owned()));
            }
            let mut chunk = [0_u8; 2048];
            match stream.read(&mut chunk).await {
                Ok(0) => return Err(ReplyError::Closed),
                Ok(n) => self.bytes.extend_from_slice(&chunk[..n]),
                Err(error) => return Err(ReplyError::Io(error.to_string())),
            }
        }
    }
}

/// Code, whether it is the last line, and text. The separator may be missing (RFC 5321 §4.2 asks for tolerance).
fn parse_line(line: &[u8]) -> Result<(u16, bool, String), ReplyError> {
    let malformed = || ReplyError::Malformed(printable(&String::from_utf8_lossy(line)));
    let digits =
        line.get(..3).filter(|d| d.iter().all(u8::is_ascii_digit)).ok_or_else(malformed)?;
    let code = digits.iter().fold(0_u16, |code, d| code * 10 + u16::from(d - b'0'));
    if !(200..600).contains(&code) {
        return Err(malformed());
    }
    let (last, text) = match line.get(3) {
        None => (true, &[][..]),
        Some(b'-') => (false, &line[4..]),
        Some(b' ') => (true, &line[4..]),
        Some(_) => return Err(malformed()),
    };
    Ok((code, last, printable(&String::from_utf8_lossy(text))))
}

/// One line of at most 1 KiB without control characters: fit for queue, log and bounce.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        let character = if character.is_control() { ' ' } else { character };
        if out.len() + character.len_utf8() > REASON_BYTES_MAX {
            break;
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Result<Reply, ReplyError> {
        ReplyBuffer::default().read(&mut &bytes[..]).await
    }

    #[tokio::test]
    async fn replies_are_read_whole() {
        let reply = read(b"250-first\r\n250 second\r\nrest").await.unwrap();
        assert_eq!(reply.text(), "250 first second");
        assert_eq!(read(b"220\n").await.unwrap().text(), "220 ");
        assert_eq!(read(b"250-first\r\n").await, Err(ReplyError::Closed));
        assert!(matches!(read(b"hello there\r\n").await, Err(ReplyError::Malformed(_))));
        assert!(matches!(read(b"999 odd\r\n").await, Err(ReplyError::Malformed(_))));
        assert!(matches!(read(&b"250-x\r\n".repeat(1000)).await, Err(ReplyError::Malformed(_))));
        assert!(matches!(read(&b"2".repeat(10_000)).await, Err(ReplyError::Malformed(_))));
        assert_eq!(read(b"550 \x1b[2J\0bad\r\n").await.unwrap().text(), "550  [2J bad");
    }
}
