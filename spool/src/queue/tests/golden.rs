//! The entries of a partition as each version wrote them: every later version reads them.

#![allow(clippy::disallowed_methods, reason = "files of the repository")]

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use bytes::Bytes;
use ppsw_proto::queue as pb;
use prost::Message as _;

use super::*;
use crate::queue::entry::{self, BodyBytes, Change, Tried};

fn golden(version: u32) -> PathBuf {
    let name = format!("tests/golden/entries-v{version}.txt");
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// An envelope with something in every field.
fn full_envelope() -> Envelope {
    let text = |text: &str| text.to_owned();
    let recipient = |local: &str| Recipient {
        address: format!("{local}@example.org"),
        notify: text("SUCCESS,FAILURE"),
        original: text("rfc822;o@example.org"),
    };
    Envelope {
        sender: text("s@example.net"),
        recipients: vec![recipient("a"), recipient("b")],
        origin: Origin {
            client: text("[192.0.2.1]:1025"),
            client_name: text("c.example"),
            helo: text("helo.example"),
            server: text("[192.0.2.2]:25"),
            personality: text("mx"),
            protocol: text("ESMTPSA"),
            authenticated: text("user"),
            auth_sender: text("u@example.net"),
            tls: text("TLS1.3:TLS13_AES_128_GCM_SHA256"),
        },
        received: UnixMs(1_700_000_000_123),
        prepend: Bytes::from_static(b"Received: here\r\n"),
        eight_bit: true,
        smtputf8: true,
        nul_count: 3,
        return_headers_only: true,
        envelope_id: text("envid"),
        message_id_field: text("<m@example.net>"),
        received_count: 7,
    }
}

fn message() -> QueuedMessage {
    let envelope = full_envelope();
    let attempt = |(number, state): (usize, RecipientState)| Attempt {
        recipient: envelope.recipients[number].clone(),
        state,
        attempts: 2,
        last_error: "451 4.2.2 later".to_owned(),
        next_due: UnixMs(1_700_000_900_000),
        done: BTreeSet::from(["x@example.com".to_owned()]),
        expansion: None,
    };
    QueuedMessage {
        id: id(9),
        recipients: [(0, RecipientState::Deferred), (1, RecipientState::Failed)]
            .map(attempt)
            .into(),
        expansions: vec![],
        state: MessageState::Held,
        body: Body::Inline { index: 0 },
        size: 20,
        warned: true,
        not_before: UnixMs(0),
        envelope,
    }
}

/// One entry of each kind, and of each form that a kind has.
fn entries() -> Vec<Bytes> {
    let (envelope, due) = (full_envelope(), UnixMs(1_700_000_060_000));
    let small = || BodyBytes::Inline(Bytes::from_static(b"small"));
    let mut full = outcome(id(9), 0, Verdict::Deferred { next_due: due }, false);
    full.results.extend(outcome(id(9), 1, Verdict::Failed, true).results);
    full.results.extend(outcome(id(9), 2, Verdict::Delivered, true).results);
    full.finished = vec![1, 2];
    full.creates = vec![(id(10), full_envelope(), Bytes::from_static(b"sorry"))];
    (full.warned, full.goes_on) = (true, true);
    let tried = Tried { recorded: true, begun: true };
    let chunks = BodyBytes::Chunks { count: 2, bytes: 20 };
    vec![
        entry::chunk(id(9), 1, Bytes::from_static(b"ten bytes.")),
        entry::accept(id(9), &envelope, small()),
        entry::accept(id(9), &envelope, chunks.clone()),
        entry::abort(id(9), true),
        entry::outcome(&full),
        entry::expand(&Expand {
            message: id(9),
            from: Expansion { recipient: 1, ..Expansion::default() },
            into: envelope.recipients.clone(),
            due,
            ..Expand::default()
        }),
        entry::hold(id(9)),
        entry::release(id(9), None),
        entry::release(id(9), Some(due)),
        entry::edit(id(9), 1, "other@example.org", due),
        entry::carry(&message(), tried, 77, small()),
        entry::carry(&message(), Tried::default(), 77, chunks),
        entry::handover(2),
        entry::settle(55),
        entry::begin(&[id(9), id(10)]),
    ]
}

/// What version 2 writes that version 1 does not know: where recipients of an expansion come from.
fn entries_of_version_2() -> Vec<Bytes> {
    let from = Expansion {
        recipient: 1,
        address: "list-outgoing@example.org".to_owned(),
        parents: vec!["b@example.org".to_owned()],
        errors_to: Some("list-request@example.org".to_owned()),
    };
    let mut expanded = message();
    expanded.recipients[1].done.insert(Expansion::key(&from.address));
    expanded.recipients.push(Attempt {
        recipient: Recipient { address: "m@example.net".to_owned(), ..Recipient::default() },
        state: RecipientState::New,
        attempts: 0,
        last_error: String::new(),
        next_due: UnixMs(1_700_000_000_123),
        done: BTreeSet::new(),
        expansion: Some(0),
    });
    expanded.expansions.push(from.clone());
    let expand = Expand {
        message: id(9),
        from,
        into: full_envelope().recipients,
        due: UnixMs(1_700_000_060_000),
        first: 2,
        goes_on: true,
    };
    let last = Expand { first: 4, goes_on: false, ..expand.clone() };
    let small = BodyBytes::Inline(Bytes::from_static(b"small"));
    vec![
        entry::expand(&expand),
        entry::expand(&last),
        entry::carry(&expanded, Tried::default(), 77, small),
    ]
}

/// What a line of the file says of an entry: its bytes, and what they mean.
fn line(payload: &Bytes) -> String {
    let hex = payload.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string does not fail.
        _ = write!(hex, "{byte:02x}");
        hex
    });
    format!("{hex} {:?}\n", entry::decode(payload).unwrap())
}

/// The bytes that a version wrote are never made again: this is for the next version's own, and for what they are called.
#[test]
#[ignore = "writes into the repository"]
fn write() {
    for (version, entries) in [(1, entries()), (2, entries_of_version_2())] {
        fs::write(golden(version), entries.iter().map(line).collect::<String>()).unwrap();
    }
}

#[test]
fn the_entries_of_all_versions_are_read() {
    let text = [1, 2].map(|version| fs::read_to_string(golden(version)).unwrap()).concat();
    let mut kinds = BTreeSet::new();
    for expected in text.lines() {
        let (hex, _) = expected.split_once(' ').unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let payload: Bytes = (0..hex.len()).step_by(2).map(byte).collect();
        assert_eq!(line(&payload).trim_end(), expected);
        kinds.insert(match entry::decode(&payload).unwrap() {
            Change::Chunk { .. } => 0,
            Change::Accept { .. } => 1,
            Change::Abort { .. } => 2,
            Change::Outcome(_) => 3,
            Change::Expand(_) => 4,
            Change::Hold { .. } => 5,
            Change::Release { .. } => 6,
            Change::Edit { .. } => 7,
            Change::Carry { .. } => 8,
            Change::Handover { .. } => 9,
            Change::Settle { .. } => 10,
            Change::Begin { .. } => 11,
        });
    }
    assert_eq!(kinds.len(), 12, "one entry of each kind");
}

/// A change of what is written, without a new version, would be read wrongly by the nodes that are not yet upgraded.
#[test]
fn entries_are_written_as_their_version_says() {
    for (version, entries) in [(1, entries()), (2, entries_of_version_2())] {
        let text = fs::read_to_string(golden(version)).unwrap();
        assert!(entries.iter().map(line).eq(text.lines().map(|line| format!("{line}\n"))));
        for payload in entries {
            let entry = pb::SpoolEntry::decode(payload).unwrap();
            assert_eq!(entry.version, version, "older programs must not go on without it");
        }
    }
}
