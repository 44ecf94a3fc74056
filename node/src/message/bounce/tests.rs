//! Reports as those read them who get them.

use mail_parser::{MessageParser, MimeHeaders};
use proptest::prelude::*;

use super::*;
use crate::limits::{BOUNCE_BYTES_MAX, BOUNCE_RETURN_BYTES_MAX};

fn report<'a>(
    envelope: &'a Envelope,
    recipients: &'a [Reported],
    excerpt: &'a Excerpt,
) -> Report<'a> {
    let id = |counter| MessageId { second: 1_795_464_000, counter, node: 1 };
    Report {
        kind: Kind::Failed,
        id: id(2),
        to: &envelope.sender,
        reporter: "ppsw-1.example",
        domain: "ppsw.example",
        reply_to: Some("postmaster@ppsw.example"),
        about: id(1),
        envelope,
        recipients,
        excerpt,
        now: UnixMs(1_795_464_000_000),
    }
}

fn envelope() -> Envelope {
    Envelope {
        sender: "sender@example.org".into(),
        envelope_id: "QQ314159".into(),
        received: UnixMs(1_795_000_000_000),
        ..Envelope::default()
    }
}

fn reported() -> Reported {
    Reported {
        recipient: "list@ours.example".into(),
        original: "rfc822;list@ours.example".into(),
        address: "gone@theirs.example".into(),
        text: "SMTP error from remote mail server after RCPT: 550 5.1.1 no such user".into(),
        remote: Some("mx.theirs.example".into()),
        output: String::new(),
    }
}

#[test]
fn a_bounce_parses_as_a_report() {
    let (envelope, recipients) = (envelope(), [reported()]);
    let bytes = b"Subject: hello\r\n\r\nbody\r\n".to_vec();
    let excerpt = Excerpt { bytes, headers_only: false, cut: false };
    let (made, bytes) = report(&envelope, &recipients, &excerpt).to_message();
    assert_eq!(
        (made.sender.as_str(), made.recipients[0].address.as_str()),
        ("", "sender@example.org")
    );
    let message = MessageParser::default().parse(&bytes[..]).unwrap();
    let kind = message.content_type().unwrap();
    assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    assert_eq!(message.header_raw("Auto-Submitted").unwrap().trim(), "auto-replied");
    assert_eq!(message.parts[0].sub_parts().unwrap().len(), 3);
    assert!(message.body_text(0).unwrap().contains("list@ours.example"));
    let status = String::from_utf8_lossy(message.parts[2].contents()).into_owned();
    for field in [
        "Original-Envelope-Id: QQ314159",
        "Reporting-MTA: dns; ppsw-1.example",
        "Original-Recipient: rfc822; list@ours.example",
        "Final-Recipient: rfc822; gone@theirs.example",
        "Action: failed",
        "Status: 5.1.1",
        "Remote-MTA: dns; mx.theirs.example",
        "Diagnostic-Code: smtp; 550 ",
    ] {
        assert!(status.contains(field), "{field} in {status}");
    }
    assert_eq!(message.attachment(1).unwrap().message().unwrap().subject(), Some("hello"));
}

#[test]
fn a_warning_says_until_when() {
    let (envelope, recipients) = (envelope(), [reported()]);
    let excerpt = Excerpt { headers_only: true, ..Excerpt::default() };
    let kind = Kind::Delayed { until: UnixMs(1_796_000_000_000) };
    let report = Report { kind, ..report(&envelope, &recipients, &excerpt) };
    let text = String::from_utf8(report.to_message().1.to_vec()).unwrap();
    assert!(text.contains("Action: delayed\r\nStatus: 4.1.1"));
    assert!(text.contains("Will-Retry-Until: "));
    assert!(text.contains("Content-Type: text/rfc822-headers"));
}

#[test]
fn what_is_beyond_ascii_has_its_own_types() {
    let far = "gr\u{e5}@exempel.example";
    let recipients = [Reported { recipient: far.into(), address: far.into(), ..reported() }];
    for (sender, smtputf8) in [("sender@example.org", false), ("s\u{e4}nder@example.org", true)] {
        let envelope = Envelope { sender: sender.into(), smtputf8: true, ..envelope() };
        for (headers_only, part) in [(false, "global"), (true, "global-headers")] {
            let excerpt = Excerpt { headers_only, ..Excerpt::default() };
            let (made, bytes) = report(&envelope, &recipients, &excerpt).to_message();
            assert_eq!(made.smtputf8, smtputf8);
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            let (header, body) = text.split_once("\r\n\r\n").unwrap();
            assert_eq!(header.is_ascii(), !smtputf8, "{header}");
            assert!(body.contains("Content-Type: message/global-delivery-status\r\n"), "{body}");
            assert!(body.contains(&format!("Content-Type: message/{part}\r\n")), "{body}");
            assert!(body.contains(&format!("Final-Recipient: utf-8; {far}\r\n")), "{body}");
        }
    }
}

#[test]
fn a_reply_is_found_behind_what_we_say_of_it() {
    for (text, reply) in [
        (
            "SMTP error from remote mail server after RCPT TO:<a@b>: 550 5.1.1 who: you",
            Some("550 5.1.1 who: you"),
        ),
        (
            "retry timeout exceeded; last: SMTP error from remote mail server after DATA: 451",
            Some("451"),
        ),
        ("552 5.2.2 full", Some("552 5.2.2 full")),
        ("192.0.2.1:25: connection timed out", None),
        ("no answer after MAIL: 5500 x", None),
    ] {
        assert_eq!(reply_in(text), reply);
    }
}

#[test]
fn programs_and_lists_are_not_warned() {
    assert!(wants_warning(b"Subject: x\r\n\r\nList-Id: in the body\r\n"));
    assert!(!wants_warning(b"Precedence: bulk\r\n\r\n"));
    assert!(!wants_warning(b"Auto-Submitted: auto-generated\r\n\r\n"));
    assert!(wants_warning(b"Auto-Submitted: no\r\n\r\n"));
}

proptest! {
    /// Whatever peers and senders say: bounded, no header of theirs, three parts.
    #[test]
    fn a_report_is_bounded_and_whole(
        text in "\\PC{0,200}|(.|\r|\n){0,100}|x{1024}",
        count in 1_usize..400,
        original in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let envelope = envelope();
        let one = Reported { text, ..reported() };
        let recipients = vec![one; count];
        let bytes = original.iter().copied().cycle().take(
            if original.is_empty() { 0 } else { BOUNCE_RETURN_BYTES_MAX }).collect();
        let excerpt = Excerpt { bytes, headers_only: false, cut: true };
        let parts = divide(&recipients);
        prop_assert_eq!(parts.iter().map(|p| p.len()).sum::<usize>(), count);
        for part in parts {
            let bytes = report(&envelope, part, &excerpt).to_message().1;
            prop_assert!(bytes.len() <= BOUNCE_BYTES_MAX, "{}", bytes.len());
            let message = MessageParser::default().parse(&bytes[..]).unwrap();
            prop_assert_eq!(message.parts[0].sub_parts().map(|p| p.len()), Some(3));
            let added = String::from_utf8_lossy(&bytes[..bytes.len() - excerpt.bytes.len().min(bytes.len())]).into_owned();
            prop_assert!(added.lines().all(|line| line.len() < 998));
        }
    }
}
