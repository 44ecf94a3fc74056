//! The check is checked: real peers that get the odd messages directly keep them byte by byte. What differs in the
//! corpus test was then done on the way.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use ppsw_tests::{
    client::Client,
    corpus::{self, Likeness, Specimen},
    stores::{Cyrus, PostfixSink},
    wait_for,
};

const LARGEST: usize = 4 * 1024 * 1024;

fn deliver(
    address: SocketAddr,
    greeting: &str,
    specimens: &[Specimen],
    as_kept: impl Fn(&[u8]) -> Vec<u8>,
) -> HashMap<String, Vec<u8>> {
    let mut client = Client::connect(address).unwrap();
    assert_eq!(client.command(greeting).unwrap().code, 250);
    let mut sent = HashMap::new();
    for (number, specimen) in specimens.iter().enumerate() {
        let id = format!("direct-{number}");
        let content = as_kept(&corpus::with_id(specimen, &id));
        let reply = client.send("a@example.org", &["spqr1@hermes.cam.ac.uk"], &content).unwrap();
        // Cyrus wants an empty line after the header; smtp-sink takes everything. ppswitch adds that line.
        if reply.code == 554 && reply.text.contains("invalid header") {
            println!("{} is refused: {}", specimen.name, reply.text);
            continue;
        }
        assert_eq!(reply.code, 250, "{}: {reply:?}", specimen.name);
        sent.insert(id, content);
    }
    client.quit();
    sent
}

fn check(what: &str, sent: &HashMap<String, Vec<u8>>, look: impl Fn() -> HashMap<String, Vec<u8>>) {
    let whole = |kept: &HashMap<String, Vec<u8>>| {
        sent.iter()
            .all(|(id, content)| kept.get(id).is_some_and(|kept| kept.len() >= content.len()))
    };
    let kept = wait_for(what, Duration::from_secs(60), || Some(look()).filter(whole));
    let faults: Vec<String> = sent
        .iter()
        .filter_map(|(id, content)| match corpus::compare(content, &kept[id]) {
            Ok(Likeness::Same) => None,
            other => Some(format!("{id}: {other:?}")),
        })
        .collect();
    assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
    println!("{what}: {} messages as they were sent", sent.len());
}

#[test]
fn peers_keep_what_they_get() {
    let specimens = [corpus::shipped(), corpus::generated(LARGEST)].concat();
    let (lmtp, smtp) = ("127.10.0.2:3424".parse().unwrap(), "127.10.0.2:3525".parse().unwrap());
    let cyrus = Cyrus::start(lmtp);
    let postfix = PostfixSink::start(smtp);
    let sent = deliver(smtp, "EHLO client.example.org", &specimens, <[u8]>::to_vec);
    check("smtp-sink", &sent, || postfix.messages());
    let sent = deliver(lmtp, "LHLO client.example.org", &specimens, Cyrus::keeps);
    check("Cyrus", &sent, || cyrus.messages());
}
