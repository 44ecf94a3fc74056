//! The `Received` field (RFC 5321 §4.4), in the form of the paper's `received_header_text`: which machine and
//! personality took the message, how, from whom, and its return path.

use std::borrow::Cow;

use jiff::{Timestamp, fmt::rfc2822, tz::TimeZone};
use ppsw_spool::{
    env::UnixMs,
    queue::{MessageId, Origin},
};

/// Longest line that we make if its words allow it, without CRLF (RFC 5322 §2.1.1).
const LINE_BYTES: usize = 78;
/// Room that is made for a field; most need less.
const FIELD_BYTES: usize = 512;

/// What a `Received` field tells.
#[derive(Clone, Copy, Debug)]
pub struct Trace<'a> {
    pub origin: &'a Origin,
    /// This machine's own name.
    pub host_name: &'a str,
    /// The name of the personality.
    pub service_name: &'a str,
    /// SASL mechanism, if the client is authenticated.
    pub mechanism: Option<&'a str>,
    pub id: MessageId,
    pub sender: &'a str,
    /// Only if it is the only one: else one recipient would learn of the others (RFC 5321 §7.2).
    pub recipient: Option<&'a str>,
    pub received: UnixMs,
}

impl Trace<'_> {
    /// The field with its final CRLF.
    pub fn to_field(&self) -> String {
        let origin = self.origin;
        let (client, port) = address_and_port(&origin.client);
        let (server, server_port) = address_and_port(&origin.server);
        let name = comment(&origin.client_name);
        let space = if name.is_empty() { "" } else { " " };
        let mut field = Field::new("Received:");
        let helo = domain(&origin.helo);
        field.word(&["from ", helo, " (", &name, space, "[", &client, "]:", port, ")"]);
        let service = comment(self.service_name);
        field.word(&["by ", self.host_name, " (", &service, " [", &server, "]:", server_port, ")"]);
        field.word(&["with ", &origin.protocol]);
        if let Some(mechanism) = self.mechanism.filter(|_| !origin.authenticated.is_empty()) {
            field.word(&["(", mechanism, ":", &comment(&origin.authenticated), ")"]);
        }
        if !origin.tls.is_empty() {
            field.word(&["(", &comment(&origin.tls), ")"]);
        }
        field.word(&["id ", &self.id.to_string(), " (ppswitch ", env!("CARGO_PKG_VERSION"), ")"]);
        if let Some(recipient) = self.recipient {
            field.word(&["for <", recipient, ">"]);
        }
        field.word(&["(return-path <", &comment(self.sender), ">);"]);
        field.word(&[&rfc5322_date(self.received)]);
        field.end()
    }
}

/// A time as RFC 5322 §3.3 wants it, in the machine's time zone.
pub fn rfc5322_date(time: UnixMs) -> String {
    let time = i64::try_from(time.0).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let zoned = time.unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::system());
    rfc2822::to_string(&zoned).unwrap_or_else(|_| "Thu, 1 Jan 1970 00:00:00 +0000".into())
}

/// `192.0.2.1:25` or `[2001:db8::1]:25`, taken apart; IPv6 with its tag (RFC 5321 §4.1.3).
fn address_and_port(text: &str) -> (Cow<'_, str>, &str) {
    let (address, port) = text.rsplit_once(':').unwrap_or((text, "0"));
    match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
        Some(v6) => (Cow::Owned(format!("IPv6:{v6}")), port),
        None => (Cow::Borrowed(address), port),
    }
}

/// A HELO name as `Extended-Domain`: an untagged literal or nothing at all would not parse.
fn domain(helo: &str) -> &str {
    if helo.is_empty() { "unknown" } else { helo }
}

/// Text inside a comment (RFC 5322 §3.2.2).
fn comment(text: &str) -> Cow<'_, str> {
    let plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'(' | b')' | b'\\');
    if text.as_bytes().iter().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '(' | ')' | '\\') {
            out.push('\\');
        }
        out.push(if c.is_control() { '?' } else { c });
    }
    Cow::Owned(out)
}

/// A field that puts its words on as few lines as fit.
struct Field {
    text: String,
    /// Of the last line.
    column: usize,
}

impl Field {
    fn new(name: &str) -> Self {
        let mut text = String::with_capacity(FIELD_BYTES);
        text.push_str(name);
        Self { column: text.len(), text }
    }

    /// Adds a word, whose pieces stay on one line.
    fn word(&mut self, pieces: &[&str]) {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        if self.column + 1 + length > LINE_BYTES {
            self.text.push_str("\r\n\t");
            // A tab counts for eight where people look at it, for one where the limit is.
            self.column = 1;
        } else {
            self.text.push(' ');
            self.column += 1;
        }
        pieces.iter().for_each(|piece| self.text.push_str(piece));
        self.column += length;
    }

    fn end(mut self) -> String {
        self.text.push_str("\r\n");
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            client: "127.200.1.1:40000".into(),
            client_name: "c1.example.net".into(),
            helo: "client.example.net".into(),
            server: "127.10.1.1:2525".into(),
            protocol: "ESMTPSA".into(),
            authenticated: "spqr1".into(),
            tls: "TLS1.3:TLS13_AES_256_GCM_SHA384".into(),
            ..Origin::default()
        }
    }

    #[test]
    fn it_has_the_shape_of_the_paper() {
        let origin = origin();
        let field = Trace {
            origin: &origin,
            host_name: "ppsw-1.csi.cam.ac.uk",
            service_name: "smtp.hermes.cam.ac.uk",
            mechanism: Some("PLAIN"),
            id: MessageId { second: 1_700_000_000, counter: 1, node: 2 },
            sender: "a(b@example.org",
            recipient: Some("fellows@botolph.cam.ac.uk"),
            received: UnixMs(1_700_000_000_000),
        }
        .to_field();
        assert!(field.starts_with(
            "Received: from client.example.net (c1.example.net [127.200.1.1]:40000)\r\n\tby ppsw-1.csi.cam.ac.uk \
             (smtp.hermes.cam.ac.uk [127.10.1.1]:2525)\r\n\twith ESMTPSA (PLAIN:spqr1) \
             (TLS1.3:TLS13_AES_256_GCM_SHA384)\r\n\tid "
        ), "{field}");
        assert!(field.contains("for <fellows@botolph.cam.ac.uk>"));
        assert!(field.contains("(return-path <a\\(b@example.org>); "));
        assert!(field.ends_with("00\r\n") && field.contains("Nov 2023"));
        assert!(field.lines().all(|l| l.len() <= LINE_BYTES));
    }

    #[test]
    fn optional_parts_are_left_out_and_ipv6_is_tagged() {
        let origin = Origin {
            client: "[2001:db8::1]:99".into(),
            client_name: String::new(),
            protocol: "SMTP".into(),
            authenticated: String::new(),
            tls: String::new(),
            ..origin()
        };
        let field = Trace {
            origin: &origin,
            host_name: "h",
            service_name: "s",
            mechanism: None,
            id: MessageId { second: 1, counter: 1, node: 2 },
            sender: "",
            recipient: None,
            received: UnixMs(0),
        }
        .to_field();
        assert!(field.contains("from client.example.net ([IPv6:2001:db8::1]:99)"), "{field}");
        assert!(field.contains("with SMTP id 000001-000001-02"), "{field}");
        assert!(!field.contains(" for ") && field.contains("(return-path <>)"));
    }
}
