//! The real mail servers that mail is delivered to, at their best and at their worst.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "next_hops/faults.rs"]
mod faults;
#[path = "next_hops/servers.rs"]
mod servers;
#[path = "next_hops/stores.rs"]
mod stores;

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE},
    corpus::{self, Likeness},
    hops::SENDER,
    report,
    sink::{ID_FIELD, field},
    wait_for,
};

/// Odd messages that every server has to keep as they are.
const ODD: [&str; 11] = [
    "empty body",
    "lines of 998",
    "every byte",
    "eight bits",
    "dots",
    "dot at the end",
    "empty lines",
    "spaces at line ends",
    "From at line start",
    "commands",
    "around one chunk",
];

/// Odd messages and their ids.
fn odd_messages() -> Vec<(String, Vec<u8>)> {
    let specimens = corpus::generated(0);
    let odd = specimens.iter().filter(|specimen| ODD.contains(&specimen.name.as_str()));
    let odd: Vec<_> = odd
        .enumerate()
        .map(|(number, specimen)| {
            let id = format!("odd-{number}");
            (id.clone(), corpus::with_id(specimen, &id))
        })
        .collect();
    assert_eq!(odd.len(), ODD.len());
    odd
}

/// Waits for a message in a mailbox: it is there once, and as it was sent. Gives its text, without folding.
#[track_caller]
fn expect(what: &str, mailbox: impl Fn() -> Vec<Vec<u8>>, id: &str, sent: &[u8]) -> String {
    let kept = wait_for(&format!("{id} in {what}"), PATIENCE, || one(&mailbox(), id));
    assert_eq!(corpus::compare(sent, &kept), Ok(Likeness::Same), "{what}");
    String::from_utf8_lossy(&kept).replace("\r\n\t", " ").replace("\r\n ", " ")
}

/// A message with this id that a mailbox has; not one that is there twice.
fn one(mail: &[Vec<u8>], id: &str) -> Option<Vec<u8>> {
    let mut found = mail.iter().filter(|text| field(text, ID_FIELD).as_deref() == Some(id));
    let first = found.next().cloned();
    assert!(found.next().is_none(), "{id} is there twice");
    first
}

/// A message that is known by `id`, with a body of that many lines.
fn message(id: &str, lines: usize) -> Vec<u8> {
    let line = "as good a line as any other in a message that says nothing\r\n";
    let body = line.repeat(lines);
    format!(
        "{ID_FIELD}: {id}\r\nFrom: {SENDER}\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n\
         Message-ID: <{id}@test.example.org>\r\nSubject: {id}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A connection to the smarthost of a node.
fn client(cluster: &Cluster) -> Client {
    let mut client = Client::connect(cluster.node(1).smart).unwrap();
    client.ehlo().unwrap();
    client
}

/// Gives a message to the smarthost.
fn send(client: &mut Client, recipients: &[&str], content: &[u8]) {
    let reply = client.send(SENDER, recipients, content).unwrap();
    assert_eq!(reply.code, 250, "{recipients:?}: {reply:?}");
}

/// What the one report of a failure says of an address that the sender has got.
fn failure(cluster: &Cluster, address: &str) -> Vec<(String, String)> {
    let mut maildir = cluster.maildir();
    let named = format!("Final-Recipient: rfc822; {address}\r\n");
    let content = wait_for(&format!("the report on {address}"), PATIENCE, || {
        let to_sender = maildir.messages().filter(|filed| filed.recipients == [SENDER]);
        let about = |content: &&Vec<u8>| String::from_utf8_lossy(content).contains(&named);
        let reports: Vec<Vec<u8>> =
            to_sender.map(|filed| &filed.content).filter(about).cloned().collect();
        assert!(reports.len() < 2, "{} reports on {address}", reports.len());
        reports.into_iter().next()
    });
    let fields = report::read(&content)
        .recipients
        .into_iter()
        .find(|fields| report::value(fields, "final-recipient").ends_with(&format!(" {address}")));
    let fields = fields.unwrap();
    assert_eq!(report::value(&fields, "action"), "failed");
    fields
}

/// A failure has this status and this text, which may say at the beginning what the server had answered: that is for the log,
/// and the diagnostic code is the reply alone.
#[track_caller]
fn expect_failure(cluster: &Cluster, address: &str, status: &str, diagnostic: &str) {
    let fields = failure(cluster, address);
    // A folded line is one line.
    let of = |name: &str| -> String {
        report::value(&fields, name).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let (said, why) = (of("status"), of("diagnostic-code"));
    assert_eq!(said, status, "{address}: {why}");
    let reply = match diagnostic.find(": 5") {
        Some(at) if diagnostic.starts_with("after ") => &diagnostic[at + 2..],
        _ => diagnostic,
    };
    assert!(why.contains(reply), "{address}: {reply:?} is not in {why:?}");
    let logs: String = (1..=3)
        .map(|node| std::fs::read_to_string(cluster.node_dir(node).join("log/mainlog")).unwrap())
        .collect();
    let line = logs.lines().find(|line| line.contains(&format!(" ** {address} ")));
    assert!(
        line.is_some_and(|line| line.contains(diagnostic)),
        "{diagnostic:?} is not in {line:?}"
    );
    // RFC 3461 §9.2: of the type smtp is what the server said, code first.
    let code = why.strip_prefix("smtp; ").and_then(|text| text.get(..3));
    assert!(
        code.is_some_and(|code| code.parse().is_ok_and(|code| (500..600).contains(&code))),
        "{why}"
    );
    println!("{address} fails: {said}, {why}");
}
