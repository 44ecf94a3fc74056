//! The header block of a message that arrives: where it ends, what it says, and what submission adds to it
//! (RFC 6409 §8; `control submission` of the paper's configuration).
//!
//! Fields are cut by our own few lines, because edits need exact ranges and the count of `Received` must not depend
//! on a liberal parser; addresses in them are read by `mail-parser`.

use std::ops::Range;

use mail_parser::MessageParser;
use ppsw_spool::queue::MessageId;

use crate::limits::MESSAGE_ID_FIELD_BYTES_MAX;

/// Looks for the end of a header block that arrives piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeaderScan {
    /// Start of the first line whose end has not been seen.
    line: usize,
    /// Bytes that are known to hold no further line end: a long line in small pieces is not searched again and again.
    searched: usize,
}

/// Where a header block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderEnd {
    /// Length of the fields; what follows is the body, or the empty line before it.
    pub fields: usize,
    /// There is no empty line: it has to be put in.
    pub separator_missing: bool,
}

/// What a header block says, as far as we ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderFacts {
    pub received_count: u32,
    /// Value of the first `Message-ID`, cut at 256 bytes.
    pub message_id: String,
    pub has_message_id: bool,
    pub has_date: bool,
    pub has_from: bool,
    /// Where `Sender` fields stand.
    pub senders: Vec<Range<usize>>,
}

/// Who submits, and what we call the message.
#[derive(Clone, Copy, Debug)]
pub struct Submitter<'a> {
    /// Authenticated user with the submission domain (`spqr1@hermes.cam.ac.uk`).
    pub authenticated: Option<&'a str>,
    /// Reverse-path.
    pub envelope_sender: &'a str,
    /// Leave `Sender` alone: the client relays for others.
    pub sender_retain: bool,
    pub id: MessageId,
    /// Right side of a `Message-ID` that we make.
    pub host_name: &'a str,
    /// Now, by RFC 5322.
    pub date: &'a str,
}

impl HeaderScan {
    /// Looks on in `header`, which holds everything that has arrived until now.
    pub fn end(&mut self, header: &[u8]) -> Option<HeaderEnd> {
        while let Some(length) = memchr::memchr(b'\n', &header[self.searched..]) {
            let line = &header[self.line..=self.searched + length];
            if line == b"\r\n" || line == b"\n" {
                return Some(HeaderEnd { fields: self.line, separator_missing: false });
            }
            if !(is_field(line) || (self.line > 0 && is_continuation(line))) {
                return Some(HeaderEnd { fields: self.line, separator_missing: true });
            }
            self.line += line.len();
            self.searched = self.line;
        }
        self.searched = header.len();
        None
    }
}

/// Reads what a header block (fields only) says.
pub fn scan_header(header: &[u8]) -> HeaderFacts {
    let mut facts = HeaderFacts::default();
    for range in fields(header) {
        let field = &header[range.clone()];
        let Some(colon) = memchr::memchr(b':', field) else { continue };
        let name = field[..colon].trim_ascii_end();
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if is("Received") {
            facts.received_count = facts.received_count.saturating_add(1);
        } else if is("Date") {
            facts.has_date = true;
        } else if is("From") {
            facts.has_from = true;
        } else if is("Sender") {
            facts.senders.push(range);
        } else if is("Message-ID") && !facts.has_message_id {
            facts.has_message_id = true;
            let value = String::from_utf8_lossy(field[colon + 1..].trim_ascii()).into_owned();
            facts.message_id = value.chars().filter(|c| !c.is_control()).collect();
            let cut = facts.message_id.floor_char_boundary(MESSAGE_ID_FIELD_BYTES_MAX);
            facts.message_id.truncate(cut);
        }
    }
    facts
}

/// Makes a submitted message whole: `Date`, `Message-ID` and `From` if missing; `Sender` says who submitted it if
/// that is known and `From` doesn't. Takes wrong `Sender` fields out of `header`; returns the fields to put before it.
pub fn fix_up(header: &mut Vec<u8>, facts: &HeaderFacts, by: &Submitter<'_>) -> String {
    let mut added = String::new();
    if !facts.has_date {
        added.push_str(&format!("Date: {}\r\n", by.date));
    }
    if !facts.has_message_id {
        added.push_str(&format!("Message-ID: <E{}@{}>\r\n", by.id, by.host_name));
    }
    if !facts.has_from {
        let sender = Some(by.envelope_sender).filter(|s| !s.is_empty());
        if let Some(author) = by.authenticated.or(sender) {
            added.push_str(&format!("From: {author}\r\n"));
        }
    }
    if let Some(user) = by.authenticated.filter(|_| !by.sender_retain) {
        let named = facts.has_from && !is_only_author(header, user);
        for range in facts.senders.iter().rev() {
            header.drain(range.clone());
        }
        if named {
            added.push_str(&format!("Sender: {user}\r\n"));
        }
    }
    added
}

/// The fields of a header block, each with its continuation lines.
pub(super) fn fields(header: &[u8]) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    for line in header.split_inclusive(|b| *b == b'\n') {
        match out.last_mut() {
            Some(last) if is_continuation(line) => last.end += line.len(),
            _ => out.push(at..at + line.len()),
        }
        at += line.len();
    }
    out
}

fn is_continuation(line: &[u8]) -> bool {
    matches!(line.first(), Some(b' ' | b'\t'))
}

/// `Name:`, or `Name :` as old mail has it (RFC 5322 §4.5).
fn is_field(line: &[u8]) -> bool {
    let Some(colon) = memchr::memchr(b':', line) else { return false };
    let name = line[..colon].trim_ascii_end();
    !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
}

/// `From` names `user` and nobody else.
fn is_only_author(header: &[u8], user: &str) -> bool {
    let message = MessageParser::new().parse_headers(header);
    let Some(from) = message.as_ref().and_then(mail_parser::Message::from) else { return false };
    let mut addresses = from.iter().filter_map(|a| a.address());
    let only = addresses.next().is_some_and(|a| a.eq_ignore_ascii_case(user));
    only && addresses.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> Option<(usize, bool)> {
        let whole = HeaderScan::default().end(text.as_bytes());
        // Piece by piece it must be the same.
        let mut scan = HeaderScan::default();
        let pieces = (0..=text.len()).find_map(|n| scan.end(&text.as_bytes()[..n]));
        assert_eq!(whole, pieces);
        whole.map(|e| (e.fields, e.separator_missing))
    }

    fn submit(header: &str, user: Option<&str>, sender_retain: bool) -> (String, String) {
        let mut header = header.as_bytes().to_vec();
        let by = Submitter {
            authenticated: user,
            envelope_sender: "env@x.org",
            sender_retain,
            id: MessageId { second: 1, counter: 2, node: 3 },
            host_name: "h.org",
            date: "DATE",
        };
        let added = fix_up(&mut header.clone(), &scan_header(&header), &by);
        let facts = scan_header(&header);
        fix_up(&mut header, &facts, &by);
        (added, String::from_utf8(header).unwrap())
    }

    #[test]
    fn the_end_of_a_header_is_an_empty_line_or_what_is_no_field() {
        assert_eq!(end("A: b\r\nC :\r\n d\r\n\r\nbody\r\n"), Some((15, false)));
        assert_eq!(end("\r\nbody\r\n"), Some((0, false)));
        assert_eq!(end("A: b\r\nno field\r\n"), Some((6, true)));
        assert_eq!(end(" starts badly\r\n"), Some((0, true)));
        assert_eq!(end("A: b\r\nC: d"), None);
    }

    #[test]
    fn facts_are_found_whatever_the_case() {
        let header = "RECEIVED: a\r\n\tb\r\nReceived : c\r\nmessage-id:\r\n <x@y>\r\nX-Received: n\r\nFrom: a@b\r\n";
        let facts = scan_header(header.as_bytes());
        assert_eq!(facts.received_count, 2);
        assert_eq!(facts.message_id, "<x@y>");
        assert!(facts.has_from && !facts.has_date && facts.senders.is_empty());
    }

    #[test]
    fn a_bare_message_becomes_whole() {
        let (added, _) = submit("To: z@z\r\n", Some("u@d.org"), false);
        assert_eq!(
            added,
            "Date: DATE\r\nMessage-ID: <E000001-000002-03@h.org>\r\nFrom: u@d.org\r\n"
        );
        assert!(submit("To: z@z\r\n", None, true).0.ends_with("From: env@x.org\r\n"));
    }

    #[test]
    fn a_whole_message_is_left_alone() {
        let header =
            "Date: d\r\nMessage-ID: <a@b>\r\nFrom: \"A, B\" <U@D.org>\r\nBcc: secret@x\r\n";
        assert_eq!(submit(header, Some("u@d.org"), false), (String::new(), header.into()));
    }

    #[test]
    fn sender_tells_who_submitted() {
        let header =
            "Date: d\r\nSender: forged@x,\r\n\ty\r\nMessage-ID: <a@b>\r\nFrom: other@x.org\r\n";
        let (added, left) = submit(header, Some("u@d.org"), false);
        assert_eq!(added, "Sender: u@d.org\r\n");
        assert_eq!(left, "Date: d\r\nMessage-ID: <a@b>\r\nFrom: other@x.org\r\n");
        assert_eq!(submit(header, Some("u@d.org"), true), (String::new(), header.into()));
        assert_eq!(submit(header, None, false), (String::new(), header.into()));
        let two = "Date: d\r\nMessage-ID: <a@b>\r\nFrom: u@d.org, v@d.org\r\n";
        assert_eq!(submit(two, Some("u@d.org"), false).0, "Sender: u@d.org\r\n");
    }
}
