//! Replies: codes, texts and their form on the wire (RFC 5321 §4.2, RFC 2034, RFC 3463).

use std::borrow::Cow;

use bytes::BufMut;

use crate::limits::REPLY_LINE_BYTES_MAX;

/// An enhanced status code (RFC 3463; registry: RFC 5248).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enhanced(pub &'static str);

/// Everything went well (RFC 3463 §3.1).
pub const OK: Enhanced = Enhanced("2.0.0");
/// The sender is fine (RFC 3463 §3.2).
pub const SENDER_OK: Enhanced = Enhanced("2.1.0");
/// The recipient is fine (RFC 3463 §3.2, X.1.5).
pub const RECIPIENT_OK: Enhanced = Enhanced("2.1.5");
/// Security question answered (RFC 4954 §6).
pub const AUTH_OK: Enhanced = Enhanced("2.7.0");
/// Local trouble (RFC 3463 §3.4, X.3.0).
pub const SYSTEM_LATER: Enhanced = Enhanced("4.3.0");
/// The spool is full (X.3.1).
pub const SPOOL_FULL: Enhanced = Enhanced("4.3.1");
/// Not taking messages now (X.3.2).
pub const NOT_ACCEPTING: Enhanced = Enhanced("4.3.2");
/// The client was silent for too long (X.4.2).
pub const TIMED_OUT: Enhanced = Enhanced("4.4.2");
/// Too many recipients in one transaction (X.5.3).
pub const TOO_MANY_RECIPIENTS: Enhanced = Enhanced("4.5.3");
/// Policy or a limit, for now (X.7.0).
pub const POLICY_LATER: Enhanced = Enhanced("4.7.0");
/// Policy of this kind of sender or recipient, for now (X.7.1).
pub const REFUSED_LATER: Enhanced = Enhanced("4.7.1");
/// Bad destination mailbox syntax (X.1.3).
pub const BAD_RECIPIENT: Enhanced = Enhanced("5.1.3");
/// Bad sender mailbox syntax (X.1.7).
pub const BAD_SENDER: Enhanced = Enhanced("5.1.7");
/// The message is too big for us (X.3.4).
pub const TOO_BIG: Enhanced = Enhanced("5.3.4");
/// The message loops (X.4.6).
pub const LOOP: Enhanced = Enhanced("5.4.6");
/// Protocol error of no other kind (X.5.0).
pub const PROTOCOL: Enhanced = Enhanced("5.5.0");
/// Command not known, or not now (X.5.1).
pub const BAD_COMMAND: Enhanced = Enhanced("5.5.1");
/// Syntax error (X.5.2).
pub const SYNTAX: Enhanced = Enhanced("5.5.2");
/// Parameter unknown or wrong (X.5.4).
pub const BAD_PARAMETER: Enhanced = Enhanced("5.5.4");
/// Authentication exchange line is too long (X.5.6, RFC 4954 §4).
pub const AUTH_LINE: Enhanced = Enhanced("5.5.6");
/// Non-ASCII addresses without SMTPUTF8 (X.6.7, RFC 6531 §3.5).
pub const NEEDS_SMTPUTF8: Enhanced = Enhanced("5.6.7");
/// Bare CR or LF: the content cannot be taken as it is (X.6.11, "Invalid content").
pub const BARE_LINE_END: Enhanced = Enhanced("5.6.11");
/// Policy (X.7.0).
pub const POLICY: Enhanced = Enhanced("5.7.0");
/// Not allowed (X.7.1).
pub const REFUSED: Enhanced = Enhanced("5.7.1");
/// Wrong user or password (X.7.8, RFC 4954 §6).
pub const BAD_CREDENTIALS: Enhanced = Enhanced("5.7.8");
/// Needs TLS first (X.7.11, RFC 4954 §6).
pub const NEEDS_TLS: Enhanced = Enhanced("5.7.11");

/// Classes of replies, as labels.
pub const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// One reply of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    enhanced: Option<Enhanced>,
    /// Lines separated by `\n`.
    text: Cow<'static, str>,
    closes: bool,
}

impl Reply {
    /// A reply with an enhanced code. Lines of `text` are separated by `\n`.
    pub fn new(code: u16, enhanced: Enhanced, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, enhanced: Some(enhanced), text: text.into(), closes: false }
    }

    /// A reply that must not have an enhanced code: banner, EHLO, 3xx (RFC 2034 §4).
    pub fn plain(code: u16, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, enhanced: None, text: text.into(), closes: false }
    }

    /// The same, and the session ends after it.
    #[must_use]
    pub fn closing(self) -> Self {
        Self { closes: true, ..self }
    }

    pub fn code(&self) -> u16 {
        self.code
    }

    /// The session ends after this reply.
    pub fn closes(&self) -> bool {
        self.closes
    }

    pub fn is_error(&self) -> bool {
        self.code >= 400
    }

    /// Text for the log: code, enhanced code and text in one line.
    pub fn summary(&self) -> String {
        let text = self.text.replace('\n', " ");
        match self.enhanced {
            Some(enhanced) => format!("{} {} {text}", self.code, enhanced.0),
            None => format!("{} {text}", self.code),
        }
    }

    /// One of [`CLASSES`].
    pub fn class(&self) -> &'static str {
        let [done, more, later, never] = CLASSES;
        match self.code / 100 {
            2 => done,
            3 => more,
            4 => later,
            _ => never,
        }
    }

    /// Appends the reply as it goes over the wire. Every line has code and enhanced code (RFC 2034 §4), is ASCII
    /// without controls, and is cut into several where it would be longer than RFC 5321 §4.5.3.1.5 allows.
    pub fn write(&self, out: &mut impl BufMut) {
        let enhanced = self.enhanced.map_or("", |enhanced| enhanced.0);
        let space = if enhanced.is_empty() { "" } else { " " };
        let room =
            REPLY_LINE_BYTES_MAX - "250-".len() - enhanced.len() - space.len() - "\r\n".len();
        // Three digits: RFC 5321 §4.2.
        let code = self.code.to_string();
        let mut line = |mark: &str, text: &str| {
            for part in [&*code, mark, enhanced, space, text, "\r\n"] {
                out.put_slice(part.as_bytes());
            }
        };
        let clean = self.clean();
        let mut lines = clean.split('\n').peekable();
        while let Some(mut rest) = lines.next() {
            while rest.len() > room {
                // ASCII only, so every index is a boundary.
                let cut = rest[..room].rfind(' ').filter(|at| *at > 0).unwrap_or(room);
                line("-", &rest[..cut]);
                rest = rest[cut..].trim_start();
            }
            line(if lines.peek().is_some() { "-" } else { " " }, rest);
        }
    }

    /// The text without what must not go over the wire.
    fn clean(&self) -> Cow<'_, str> {
        let fine = |c: char| c == '\n' || matches!(c, ' '..='~');
        if self.text.chars().all(fine) {
            return Cow::Borrowed(&self.text);
        }
        Cow::Owned(self.text.chars().map(|c| if fine(c) { c } else { '?' }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_line_carries_both_codes() {
        let reply = Reply::new(550, REFUSED, "No such user\nSee https://mail.example/");
        assert_eq!(
            wire(&reply),
            "550-5.7.1 No such user\r\n550 5.7.1 See https://mail.example/\r\n"
        );
        assert_eq!(reply.summary(), "550 5.7.1 No such user See https://mail.example/");
    }

    #[test]
    fn nothing_from_outside_breaks_a_reply_line() {
        let reply = Reply::new(550, REFUSED, "caf\u{e9}\r250 fine\0");
        assert_eq!(wire(&reply), "550 5.7.1 caf??250 fine?\r\n");
    }

    #[test]
    fn long_lines_are_cut_below_the_limit() {
        let reply = Reply::new(550, REFUSED, "word ".repeat(500));
        let text = wire(&reply);
        assert!(text.lines().count() > 4);
        assert!(text.split_inclusive("\r\n").all(|l| l.len() <= REPLY_LINE_BYTES_MAX));
        assert!(wire(&Reply::plain(250, "x".repeat(2000))).lines().all(|l| l.len() <= 510));
    }
}
