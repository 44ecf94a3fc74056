//! `bare`, which `bench` runs beside ppswitch, does what its figures are taken for.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use ppsw_tests::{
    bench::{Bare, Content, DOMAIN, Load, Sender, Server, Syncs},
    client::{Client, tcp},
    process::signal,
};
use rustix::process::Signal;

/// So long nothing comes from a node that has no majority.
const SILENCE: Duration = Duration::from_secs(2);

fn addresses(nodes: u8) -> Vec<(SocketAddr, SocketAddr)> {
    let at = |port| move |node| SocketAddr::from(([127, 13, 0, node], port));
    (1..=nodes).map(at(2_525)).zip((1..=nodes).map(at(2_526))).collect()
}

#[test]
fn a_majority_has_what_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let syncs = Syncs::new(dir.path(), 0);
    let mut bare = Bare::new(dir.path(), addresses(3), &syncs);
    bare.begin(true);
    let content = Content { bytes: 4_096, recipients: 1, domain: DOMAIN };
    let sender = Sender::Closed { time: Duration::from_secs(1), tls: false };
    let load = Load { sender, sessions: 6, messages: 0, many: true, content, beside: None };
    let answered = load.run(&bare.addresses()).unwrap().count();
    assert!(answered > 0 && syncs.count() > 0, "{answered} messages, {} syncs", syncs.count());

    let deliver = || {
        let stream = tcp(Ipv4Addr::LOCALHOST.into(), bare.addresses()[0]).unwrap();
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        let mut client = Client::over(stream).unwrap();
        client.ehlo().unwrap();
        client.send("a@example.org", &["b@example.org"], b"Subject: x\r\n\r\nx\r\n")
    };
    let nodes = bare.processes();
    signal(nodes[2], Signal::KILL);
    assert_eq!(deliver().unwrap().code, 250, "two of three are a majority");
    signal(nodes[1], Signal::KILL);
    assert!(deliver().is_err_and(|error| error.in_doubt), "one of three is no majority");
    bare.end();
}
