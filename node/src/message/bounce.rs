//! Bounces and delay warnings: delivery status notifications as RFC 3464 has them, with a first part that a person
//! understands.
//!
//! Own code: the builders of MIME messages know no `multipart/report`, and every byte here has to be bounded.

use std::fmt::Write;

use bytes::Bytes;
use ppsw_spool::{
    env::UnixMs,
    queue::{Envelope, MessageId, Origin, Recipient},
};

use super::rfc5322_date;
use crate::limits::BOUNCE_RECIPIENTS_BYTES_MAX;

/// Longest line that we make, where words allow it.
const LINE_BYTES: usize = 76;
/// Longest line that a word may make (RFC 5322 §2.1.1: 998).
const WORD_BYTES: usize = 900;

/// Lines of a program's output that a report shows.
const OUTPUT_LINES: usize = 200;

/// What is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not delivered, and never will be.
    Failed,
    /// Not delivered yet; we keep trying until then.
    Delayed { until: UnixMs },
    /// Delivered to a server that sends no notifications, and one was asked for (RFC 3461 §5.2.2).
    Relayed,
}

/// One recipient of the report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// As the sender gave it.
    pub recipient: String,
    /// `ORCPT=`, empty if there was none.
    pub original: String,
    /// Where it led to.
    pub address: String,
    /// Reply of the next hop, or our reason.
    pub text: String,
    /// The host that replied; `None` if `text` is our own.
    pub remote: Option<String>,
    /// What a program wrote; empty if nothing is to be returned.
    pub output: String,
}

/// As much of the original as is returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excerpt {
    pub bytes: Vec<u8>,
    /// Only the header was wanted.
    pub headers_only: bool,
    /// There was more.
    pub cut: bool,
}

/// A report about one message.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    pub kind: Kind,
    /// Id of the report.
    pub id: MessageId,
    /// Whom it goes to.
    pub to: &'a str,
    /// This machine's name.
    pub reporter: &'a str,
    /// Domain of `Mailer-Daemon`.
    pub domain: &'a str,
    pub reply_to: Option<&'a str>,
    /// The message that it is about.
    pub about: MessageId,
    pub envelope: &'a Envelope,
    pub recipients: &'a [Reported],
    pub excerpt: &'a Excerpt,
    pub now: UnixMs,
}

/// Divides recipients so that the report about each part keeps its bounds.
#[must_use]
pub fn divide(recipients: &[Reported]) -> Vec<&[Reported]> {
    let mut out = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, recipient) in recipients.iter().enumerate() {
        // Each appears in the text, in the status part, and (the first ones) in X-Failed-Recipients.
        let more = 2 * (recipient.text.len() + recipient.address.len())
            + 3 * recipient.recipient.len()
            + recipient.original.len()
            + 2 * recipient.output.len()
            + 300;
        if index > start && bytes + more > BOUNCE_RECIPIENTS_BYTES_MAX {
            out.push(&recipients[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += more;
    }
    out.push(&recipients[start..]);
    out
}

/// Whether the sender of a message with this header wants to hear of a delay: programs and lists do not.
#[must_use]
pub fn wants_warning(header: &[u8]) -> bool {
    let text = String::from_utf8_lossy(header);
    for line in text.lines().take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim().to_ascii_lowercase();
        match name.trim().to_ascii_lowercase().as_str() {
            "precedence" if matches!(value.as_str(), "bulk" | "list" | "junk") => return false,
            "auto-submitted" if !value.starts_with("no") => return false,
            "list-id" => return false,
            _ => {}
        }
    }
    true
}

impl Report<'_> {
    /// Envelope and bytes of the report. Its sender is null: no report is ever sent about it.
    #[must_use]
    pub fn to_message(&self) -> (Envelope, Bytes) {
        let bytes = self.render();
        let recipient = Recipient { address: self.to.to_owned(), ..Recipient::default() };
        let origin = Origin {
            personality: "local".into(),
            protocol: "local".into(),
            helo: self.reporter.to_owned(),
            ..Origin::default()
        };
        let envelope = Envelope {
            recipients: vec![recipient],
            origin,
            received: self.now,
            eight_bit: bytes.iter().any(|b| *b >= 0x80),
            smtputf8: !self.to.is_ascii(),
            message_id_field: self.message_id(),
            ..Envelope::default()
        };
        (envelope, Bytes::from(bytes))
    }

    fn render(&self) -> Vec<u8> {
        let original: Vec<u8> =
            self.excerpt.bytes.iter().copied().filter(|byte| *byte != 0).collect();
        let mut boundary = format!("report-{}", self.id);
        while contains(&original, boundary.as_bytes()) {
            boundary.push('x');
        }
        let mut out = self.header(&boundary);
        let _ = write!(
            out,
            "This is a message in MIME format: a delivery report.\r\n\r\n--{boundary}\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        );
        self.explain(&mut out);
        let status = self.status();
        // RFC 6533 §3, §4: what has addresses beyond ASCII has types of its own.
        let (report, encoding) = match status.is_ascii() {
            true => ("message/delivery-status", "7bit"),
            false => ("message/global-delivery-status", "8bit"),
        };
        let _ = write!(
            out,
            "\r\n--{boundary}\r\nContent-Type: {report}\r\n\
             Content-Transfer-Encoding: {encoding}\r\n\r\n{status}"
        );
        let part = match (self.envelope.smtputf8, self.excerpt.headers_only) {
            (false, false) => "message/rfc822",
            (false, true) => "text/rfc822-headers",
            (true, false) => "message/global",
            (true, true) => "message/global-headers",
        };
        let encoding = if original.is_ascii() { "7bit" } else { "8bit" };
        let _ = write!(
            out,
            "\r\n--{boundary}\r\nContent-Type: {part}\r\n\
             Content-Transfer-Encoding: {encoding}\r\n\r\n"
        );
        let mut bytes = out.into_bytes();
        bytes.extend_from_slice(&original);
        if !original.ends_with(b"\n") {
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        bytes
    }

    fn header(&self, boundary: &str) -> String {
        let subject = match self.kind {
            Kind::Failed => "Mail delivery failed: returning message to sender".to_owned(),
            Kind::Delayed { .. } => format!("Warning: message {} is delayed", self.about),
            Kind::Relayed => "Mail delivered to the next server".to_owned(),
        };
        let mut out = String::new();
        let domain = plain(self.domain);
        let _ = write!(out, "Date: {}\r\n", rfc5322_date(self.now));
        let _ = write!(out, "From: Mail Delivery System <Mailer-Daemon@{domain}>\r\n");
        let _ = write!(out, "To: <{}>\r\n", plain(self.to));
        if let Some(address) = self.reply_to {
            let _ = write!(out, "Reply-To: {}\r\n", plain(address));
        }
        let _ = write!(out, "Subject: {subject}\r\nMessage-ID: {}\r\n", self.message_id());
        if !self.envelope.message_id_field.is_empty() {
            let id = plain(self.envelope.message_id_field.trim());
            let _ = write!(out, "References: {id}\r\n");
        }
        out.push_str("Auto-Submitted: auto-replied\r\n");
        if self.kind == Kind::Failed {
            // A header beyond ASCII is only for somebody whose address is.
            let fits = |reported: &&Reported| reported.recipient.is_ascii() || !self.to.is_ascii();
            for reported in self.recipients.iter().filter(fits).take(50) {
                let _ = write!(out, "X-Failed-Recipients: {}\r\n", plain(&reported.recipient));
            }
        }
        let _ = write!(
            out,
            "MIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status;\r\n\
             \tboundary=\"{boundary}\"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        );
        out
    }

    /// The part for people.
    fn explain(&self, out: &mut String) {
        let machine = plain(self.reporter);
        let _ = write!(
            out,
            "This message was created automatically by mail delivery software on {machine}.\r\n\r\n"
        );
        out.push_str(match self.kind {
            Kind::Failed => {
                "A message that you sent could not be delivered to one or more of its\r\n\
                 recipients. This is a permanent error: we have given up. The following\r\n\
                 address(es) failed:\r\n"
            }
            Kind::Delayed { .. } => {
                "A message that you sent has not yet been delivered to one or more of its\r\n\
                 recipients. You need not do anything: we keep trying. The message has not\r\n\
                 been delivered to the following address(es):\r\n"
            }
            Kind::Relayed => {
                "A message that you sent has been delivered to a server that does not report\r\n\
                 what becomes of it, for the following address(es):\r\n"
            }
        });
        for reported in self.recipients {
            let _ = write!(out, "\r\n  {}\r\n", plain(&reported.recipient));
            if reported.address != reported.recipient && !reported.address.is_empty() {
                let _ = write!(out, "    (that is, {})\r\n", plain(&reported.address));
            }
            if let Some(remote) = &reported.remote {
                let _ = write!(out, "    The server {} said:\r\n", plain(remote));
            }
            out.push_str(&wrap(&plain(&reported.text), "    ", "    "));
            if !reported.output.trim().is_empty() {
                out.push_str("    The program wrote:\r\n");
                for line in reported.output.lines().take(OUTPUT_LINES) {
                    let line = plain(line);
                    let _ = write!(out, "      {}\r\n", pieces(&line).first().unwrap_or(&""));
                }
            }
        }
        if let Kind::Delayed { until } = self.kind {
            let _ = write!(
                out,
                "\r\nWe give up on {}; then you will be told.\r\n",
                rfc5322_date(until)
            );
        }
        out.push_str(match (self.excerpt.headers_only, self.excerpt.cut) {
            (true, _) => "\r\nThe header of your message follows.\r\n",
            (false, true) => "\r\nThe beginning of your message follows.\r\n",
            (false, false) => "\r\nYour message follows.\r\n",
        });
    }

    /// The part for programs (RFC 3464 §2.2, §2.3).
    fn status(&self) -> String {
        let mut out = String::new();
        if !self.envelope.envelope_id.is_empty() {
            let _ = write!(out, "Original-Envelope-Id: {}\r\n", plain(&self.envelope.envelope_id));
        }
        let _ = write!(out, "Reporting-MTA: dns; {}\r\n", plain(self.reporter));
        if !self.envelope.origin.helo.is_empty() {
            let from = plain(&self.envelope.origin.helo);
            let _ = write!(out, "Received-From-MTA: dns; {from}\r\n");
        }
        let _ = write!(out, "Arrival-Date: {}\r\n", rfc5322_date(self.envelope.received));
        for reported in self.recipients {
            self.recipient_status(reported, &mut out);
        }
        out
    }

    fn recipient_status(&self, reported: &Reported, out: &mut String) {
        out.push_str("\r\n");
        if !reported.original.is_empty() {
            let original = plain(&reported.original).replacen(';', "; ", 1);
            let _ = write!(out, "Original-Recipient: {original}\r\n");
        }
        let final_recipient =
            if reported.address.is_empty() { &reported.recipient } else { &reported.address };
        // RFC 6533 §3: addresses beyond ASCII have a type of their own.
        let kind = if final_recipient.is_ascii() { "rfc822" } else { "utf-8" };
        let _ = write!(out, "Final-Recipient: {kind}; {}\r\n", plain(final_recipient));
        let (action, class) = match self.kind {
            Kind::Failed => ("failed", "5"),
            Kind::Delayed { .. } => ("delayed", "4"),
            Kind::Relayed => ("relayed", "2"),
        };
        // The reply's status, in the class of what we report: an expired 4.x.x is a failure (RFC 3463 §2).
        let status = find_status(&reported.text)
            .map_or_else(|| format!("{class}.0.0"), |found| format!("{class}{}", &found[1..]));
        let _ = write!(out, "Action: {action}\r\nStatus: {status}\r\n");
        if let Some(remote) = &reported.remote {
            let _ = write!(out, "Remote-MTA: dns; {}\r\n", plain(remote));
        }
        // RFC 3461 §9.2: of the type smtp is what the server said, and nothing else.
        let text = match reported.remote.as_ref().and_then(|_| reply_in(&reported.text)) {
            Some(reply) => format!("smtp; {}", plain(reply)),
            None => format!("x-ppswitch; {}", plain(&reported.text)),
        };
        let _ = write!(out, "Diagnostic-Code: {}", wrap(&text, "", "    "));
        if let Kind::Delayed { until } = self.kind {
            let _ = write!(out, "Will-Retry-Until: {}\r\n", rfc5322_date(until));
        }
    }

    fn message_id(&self) -> String {
        format!("<E{}@{}>", self.id, plain(self.reporter))
    }
}

/// The first enhanced status code (RFC 3463) in a text.
fn find_status(text: &str) -> Option<&str> {
    text.split([' ', ':', '(', ')', ';', ',']).find(|word| {
        let parts: Vec<&str> = word.split('.').collect();
        let number = |p: &str| (1..=3).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit());
        matches!(parts.as_slice(), [class, subject, detail]
            if matches!(*class, "2" | "4" | "5") && number(subject) && number(detail))
    })
}

/// A server's reply in a text of ours, which says in front of it what it answered.
fn reply_in(text: &str) -> Option<&str> {
    let is_reply = |rest: &str| {
        let mut bytes = rest.bytes();
        matches!(bytes.next(), Some(b'2'..=b'5'))
            && bytes.by_ref().take(2).filter(u8::is_ascii_digit).count() == 2
            && matches!(bytes.next(), None | Some(b' '))
    };
    let behind = text.match_indices(": ").map(|(at, colon)| &text[at + colon.len()..]);
    std::iter::once(text).chain(behind).find(|rest| is_reply(rest))
}

/// Text on one line.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Breaks a text into lines at its spaces; each ends in CRLF.
pub(crate) fn wrap(text: &str, first: &str, other: &str) -> String {
    let mut out = String::new();
    let mut line = first.to_owned();
    let mut empty = true;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        for piece in pieces(word) {
            if !empty && line.len() + 1 + piece.len() > LINE_BYTES {
                out.push_str(&line);
                out.push_str("\r\n");
                other.clone_into(&mut line);
            } else if !empty {
                line.push(' ');
            }
            line.push_str(piece);
            empty = false;
        }
    }
    out.push_str(&line);
    out.push_str("\r\n");
    out
}

/// A word in pieces that fit on a line.
fn pieces(word: &str) -> Vec<&str> {
    let (mut out, mut rest) = (Vec::new(), word);
    while rest.len() > WORD_BYTES {
        let mut end = WORD_BYTES;
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (piece, more) = rest.split_at(end);
        out.push(piece);
        rest = more;
    }
    out.push(rest);
    out
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}

#[cfg(test)]
mod tests;
