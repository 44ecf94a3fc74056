//! The real mail servers that mail is delivered to, at their best and at their worst.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "next_hops/servers.rs"]
mod servers;

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE},
    hops::SENDER,
    report,
    sink::ID_FIELD,
    wait_for,
};

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

/// Status and diagnostic code of a failure have these texts.
#[track_caller]
fn expect_failure(cluster: &Cluster, address: &str, status: &str, diagnostic: &str) {
    let fields = failure(cluster, address);
    // A folded line is one line.
    let of = |name: &str| -> String {
        report::value(&fields, name).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let (said, why) = (of("status"), of("diagnostic-code"));
    assert_eq!(said, status, "{address}: {why}");
    assert!(why.contains(diagnostic), "{address}: {diagnostic:?} is not in {why:?}");
    println!("{address} fails: {said}, {why}");
}
