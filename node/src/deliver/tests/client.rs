//! What a transport says of the dialogue with a host.
#![allow(clippy::disallowed_methods, reason = "tests write files")]

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use ppsw_spool::queue::{Envelope, Recipient};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};

use super::{
    dialogue::{Switch, destination, transmit, transmitter},
    fake::{Setting, Table, deliver_to},
    server::{Script, Server, StartTls},
};
use crate::{
    deliver::{
        plan::plan,
        transaction::{Answer, Mail},
    },
    limits::CONTENT_HELD_BYTES,
    route::{Auth, ClientOptions, Destination, Protocol, Tls},
};

pub(super) const EHLO: &str =
    "250-here\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-CHUNKING\r\n250 AUTH PLAIN EXTERNAL";

/// A deliverer that knows one address, and a server with these options.
fn setting(server: &Server, tls: Tls, client: ClientOptions) -> Setting {
    let there = Destination { tls, client, ..destination(&[server], Protocol::Smtp) };
    let mut table = Table::default();
    table.routes.insert("a@y".to_owned(), vec![deliver_to("a@y", &there)]);
    Setting::new(table)
}

/// Sends one message, and gives the log's lines of that.
async fn sent(server: &Server, tls: Tls, client: ClientOptions, eight_bit: bool) -> String {
    let setting = setting(server, tls, client);
    let recipients = vec![Recipient { address: "a@y".into(), ..Recipient::default() }];
    let received = ppsw_spool::env::Clock::now(&*setting.clock);
    let sender = "s@x".to_owned();
    let envelope = Envelope { sender, recipients, received, eight_bit, ..Envelope::default() };
    setting.put_envelope(1, envelope);
    setting.until("tried", || !setting.outcomes().is_empty()).await;
    setting.finish().await;
    setting.until("logged", || setting.mainlog().contains(" a@y ")).await;
    setting.mainlog()
}

#[tokio::test]
async fn chunks_take_the_place_of_dots_where_they_are_offered() {
    let chunking = ClientOptions { chunking: true, ..ClientOptions::default() };
    for (ehlo, client, chunks) in [
        (EHLO, chunking.clone(), true),
        (EHLO, ClientOptions::default(), false),
        // Without pipelining each chunk would cost a round trip.
        ("250-here\r\n250 CHUNKING", chunking.clone(), false),
        ("250-here\r\n250 PIPELINING", chunking.clone(), false),
    ] {
        let server = Server::start(Script { ehlo, ..Script::default() }).await;
        let log = sent(&server, Tls::May, client, false).await;
        assert!(log.contains(" => a@y ") && log.contains("2.0.0 taken"), "{log}");
        assert_eq!(server.complete()[0].data, b"Subject: hello\r\n\r\nbody\r\n");
        let said = server.commands();
        assert_eq!(said.contains(&"BDAT 24 LAST".to_owned()), chunks, "{said:?}");
        assert_eq!(said.contains(&"DATA".to_owned()), !chunks, "{said:?}");
    }
    for (chunk, outcome) in [("552 5.3.4 too much", " ** a@y "), ("452 4.3.1 later", " == a@y ")] {
        let server = Server::start(Script { ehlo: EHLO, chunk, ..Script::default() }).await;
        let log = sent(&server, Tls::May, chunking.clone(), false).await;
        assert!(log.contains(outcome) && log.contains(chunk), "{log}");
        assert!(server.complete().is_empty());
    }
}

#[tokio::test]
async fn what_is_long_goes_before_its_end_does() {
    const HELD: usize = CONTENT_HELD_BYTES;
    // The body comes in two halves.
    for (octets, before) in [
        (HELD - 16, &[][..]),
        (HELD, &[HELD]),
        (2 * HELD, &[HELD, HELD]),
        (HELD * 3 / 2, &[HELD * 3 / 2]),
    ] {
        let body: Vec<u8> = b"0123456789abcd\r\n".iter().copied().cycle().take(octets).collect();
        let rest = octets - before.iter().sum::<usize>();
        let chunks = before.iter().map(|octets| format!("BDAT {octets}"));
        let chunks: Vec<_> = chunks.chain([format!("BDAT {rest} LAST")]).collect();
        for (chunking, chunk) in [(true, "250 on"), (false, ""), (true, "552 5.3.4 too much")] {
            let server = Server::start(Script { ehlo: EHLO, chunk, ..Script::default() }).await;
            let mut there = destination(&[&server], Protocol::Smtp);
            there.client = ClientOptions { chunking, ..ClientOptions::default() };
            let (fence, mail) = (Switch::default(), Mail::default());
            let sent = transmit(&transmitter(), &there, &mail, &["a@y"], &body, &fence).await;
            if chunk.starts_with('5') {
                assert!(matches!(&sent[0].answer, Answer::Failed(why) if why.contains(chunk)));
                continue;
            }
            assert_eq!(server.complete()[0].data, body);
            let said = server.commands();
            let said: Vec<_> = said.iter().filter(|line| line.starts_with("BDAT")).collect();
            assert_eq!(said, chunks.iter().filter(|_| chunking).collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn eight_bits_go_to_everybody_unless_the_policy_is_strict() {
    let strict = ClientOptions { eight_bit_strict: true, ..ClientOptions::default() };
    for (ehlo, client, eight_bit, arrives) in [
        ("250 here", ClientOptions::default(), true, true),
        ("250 here", strict.clone(), true, false),
        ("250 here", strict.clone(), false, true),
        (EHLO, strict.clone(), true, true),
    ] {
        let server = Server::start(Script { ehlo, ..Script::default() }).await;
        let log = sent(&server, Tls::May, client, eight_bit).await;
        assert_eq!(!server.complete().is_empty(), arrives, "{log}");
        assert_eq!(log.contains(" ** a@y ") && log.contains("5.6.3"), !arrives, "{log}");
    }
}

#[tokio::test]
async fn a_host_that_wants_one_message_at_a_time_gets_that() {
    for (connection_max_messages, connections) in [(1, 3), (2, 2), (100, 1)] {
        let server = Server::start(Script::default()).await;
        let client = ClientOptions { connection_max_messages, ..ClientOptions::default() };
        let setting = setting(&server, Tls::May, client);
        for number in 1..=3 {
            setting.put(number, "s@x", &["a@y"]);
            setting.until("delivered", || setting.queue.len() == 0).await;
        }
        assert_eq!((server.complete().len(), server.connections()), (3, connections));
        setting.finish().await;
    }
}

#[tokio::test]
async fn a_message_leaves_from_the_address_of_its_personality() {
    let server = Server::start(Script::default()).await;
    let there = destination(&[&server], Protocol::Smtp);
    let mut table = Table::default();
    table.routes.insert("a@y".to_owned(), vec![deliver_to("a@y", &there)]);
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let sources = vec![
        ("mx".to_owned(), address("::1")),
        ("mx".to_owned(), address("127.0.0.7")),
        ("*".to_owned(), address("127.0.0.8")),
    ];
    let setting = Setting::with(table, Arc::new(|| None), sources);
    for (number, personality) in (1..).zip(["mx", "smart", "mx"]) {
        let recipients = vec![Recipient { address: "a@y".into(), ..Recipient::default() }];
        let mut envelope = Envelope { recipients, ..Envelope::default() };
        envelope.received = ppsw_spool::env::Clock::now(&*setting.clock);
        envelope.origin.personality = personality.to_owned();
        setting.put_envelope(number, envelope);
        setting.until("delivered", || setting.queue.len() == 0).await;
    }
    let peers: Vec<IpAddr> = server.seen.peers.lock().unwrap().clone();
    // The third goes over the first connection: a session is of one address.
    assert_eq!(peers, [address("127.0.0.7"), address("127.0.0.8")]);
    setting.finish().await;
}

/// An authority, and what a server needs that it answers for.
fn certified(name: &str) -> (String, Arc<ServerConfig>) {
    let mut of_ca = CertificateParams::new(Vec::new()).unwrap();
    of_ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(of_ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        );
    (ca.pem(), Arc::new(config.unwrap()))
}

#[tokio::test]
async fn a_certificate_that_must_be_good_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    for (name, written, good) in
        [("host1", true, true), ("host2", true, false), ("host1", false, false)]
    {
        let (ca, config) = certified(name);
        std::fs::write(&file, if written { ca } else { certified(name).0 }).unwrap();
        let starttls = Some(StartTls::Works(config));
        let server = Server::start(Script { starttls, ..Script::default() }).await;
        let client = ClientOptions { tls_ca_file: Some(file.clone()), ..ClientOptions::default() };
        let log = sent(&server, Tls::Verify, client, false).await;
        assert_eq!(log.contains(" => a@y ") && log.contains(" X=TLS1.3"), good, "{log}");
        assert_eq!(log.contains(" == a@y ") && log.contains("certificate"), !good, "{log}");
        assert_eq!(server.complete().is_empty(), !good);
    }
    // Without a file: the authorities of the web, of which this is none.
    let starttls = Some(StartTls::Works(certified("host1").1));
    let server = Server::start(Script { starttls, ..Script::default() }).await;
    let log = sent(&server, Tls::Verify, ClientOptions::default(), false).await;
    assert!(log.contains(" == a@y ") && log.contains("certificate"), "{log}");
}

#[tokio::test]
async fn who_must_say_who_we_are_says_it_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, "pass word\nsecond line\n").unwrap();
    let auth = |auth| ClientOptions { auth: Some(auth), ..ClientOptions::default() };
    let external = |identity: &str| auth(Auth::External { identity: identity.into() });
    let plain = |password_file: PathBuf| auth(Auth::Plain { user: "us".into(), password_file });
    let script = Script { ehlo: EHLO, ..Script::default() };
    for (client, line) in
        [(external(""), "AUTH EXTERNAL ="), (external("us"), "AUTH EXTERNAL dXM=")]
    {
        let server = Server::start(script.clone()).await;
        let log = sent(&server, Tls::May, client, false).await;
        assert!(log.contains(" => a@y "), "{log}");
        assert_eq!(server.commands()[1], line);
    }
    let works = || Some(StartTls::Works(certified("host1").1));
    let server = Server::start(Script { starttls: works(), ..script.clone() }).await;
    let log = sent(&server, Tls::Must, plain(file.clone()), false).await;
    assert!(log.contains(" => a@y "), "{log}");
    // \0us\0pass word
    assert_eq!(server.commands()[3], "AUTH PLAIN AHVzAHBhc3Mgd29yZA==");

    let refused = Script { auth: "535 5.7.8 who?", ..script.clone() };
    let more = Script { auth: "334 ", ..script.clone() };
    let silent = Script::default();
    for (script, tls, client, why) in [
        (refused, Tls::May, external("us"), "535 5.7.8 who?"),
        (more, Tls::May, external("us"), "it wants more than it was told"),
        (silent, Tls::May, external("us"), "EXTERNAL is not offered"),
        (script.clone(), Tls::May, plain(file.clone()), "no password is sent without TLS"),
        (
            Script { starttls: works(), ..script },
            Tls::Must,
            plain(dir.path().join("none")),
            "cannot read the password",
        ),
    ] {
        let server = Server::start(script).await;
        let log = sent(&server, tls, client, false).await;
        assert!(log.contains(" == a@y ") && log.contains(why), "{why}: {log}");
        assert!(!log.contains("pass word") && !log.contains("AHVz"), "{log}");
        assert!(server.complete().is_empty());
    }
}

#[tokio::test]
async fn the_domains_of_a_message_get_their_turn_in_order() {
    let server = Server::start(Script::default()).await;
    let mut table = Table::default();
    let order = ["x@b.cam.ac.uk", "x@CAM.ac.uk", "x@ed.ac.uk", "x@a.example"];
    for (number, address) in order.iter().enumerate() {
        let mut there = destination(&[&server], Protocol::Smtp);
        there.hosts[0].name = format!("host{number}");
        table.routes.insert((*address).to_owned(), vec![deliver_to(address, &there)]);
    }
    table.options.remote_sort_domains =
        ["*.cam.ac.uk", "cam.ac.uk", "*.ac.uk"].map(str::to_owned).to_vec();
    let setting = Setting::new(Table::default());
    let recipients = [order[3], order[1], order[2], order[0]];
    let id = setting.put(1, "s@x", &recipients);
    let message = setting.queue.message(id).unwrap();
    let planned = plan(&message, &table, setting.clock_now()).await;
    let legs: Vec<&str> =
        planned.legs.iter().map(|leg| leg.addresses[0].rcpt.address.as_str()).collect();
    assert_eq!(legs, order);
}
