//! Postfix, Exim and OpenSMTPD as MX, and what not every server can do.

use std::net::SocketAddr;

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE},
    hops::{
        self, Exim, OpenSmtpd, Postfix, Service, Tap, Turn, address, lead, mainlog, retry,
        wait_for_queue,
    },
    stores::PostfixSink,
    wait_for,
};

use crate::{client, expect, expect_failure, message, odd_messages, one, send};

/// Bytes that Postfix takes in one message where it takes little.
const TINY: &str = "message_size_limit=5000";

const TLS: [&str; 3] = [
    "smtpd_tls_security_level=may",
    "smtpd_tls_cert_file={dir}/certificate",
    "smtpd_tls_key_file={dir}/key",
];

/// A mailbox: what it has got.
type Mailbox<'a> = Box<dyn Fn() -> Vec<Vec<u8>> + 'a>;

/// Servers that are there, and the taps before them.
struct Hops {
    postfix: Postfix,
    exim: Exim,
    opensmtpd: OpenSmtpd,
    helo: PostfixSink,
    taps: Vec<(&'static str, Tap)>,
}

impl Hops {
    fn start(port: u16) -> Self {
        let behind = |number: u8| address(0, number, port + 1);
        let own = |number: u8| address(0, number, port);
        let old = [&TLS[..], &["smtpd_tls_protocols=TLSv1"]].concat();
        let no_key = ["smtpd_tls_security_level=may", "smtpd_tls_cert_file={dir}/nothing"];
        let services = [
            (behind(1), &[][..]),
            (own(11), &TLS),
            (own(12), &old),
            (own(13), &no_key),
            (behind(14), &[TINY]),
            (behind(15), &["smtpd_discard_ehlo_keywords=8bitmime"]),
            (behind(16), &["smtpd_discard_ehlo_keywords=pipelining"]),
        ];
        let services = services.map(|(address, options)| Service { address, options });
        let taps = [
            ("postfix", 1),
            ("exim", 2),
            ("opensmtpd", 3),
            ("tiny", 14),
            ("no8bit", 15),
            ("nopipe", 16),
        ];
        Self {
            postfix: Postfix::start(&services),
            exim: Exim::start(behind(2), "exim.example.org"),
            opensmtpd: OpenSmtpd::start(behind(3), "opensmtpd.example.org"),
            helo: PostfixSink::start_with(own(17), &["-e"]),
            taps: taps.map(|(name, number)| (name, Tap::start(own(number), behind(number)))).into(),
        }
    }

    /// The one transaction with `word` in it.
    fn transaction(&self, tap: &str, word: &str) -> Vec<Turn> {
        let (_, tap) = self.taps.iter().find(|(name, _)| *name == tap).unwrap();
        let mut found = tap.transactions(word);
        assert_eq!(found.len(), 1, "{word}: {found:?}");
        found.remove(0)
    }

    fn mailboxes(&self) -> Vec<(&'static str, Mailbox<'_>)> {
        vec![
            ("a@postfix.example.org", Box::new(|| self.postfix.mail("a"))),
            ("b@postfix.example.org", Box::new(|| self.postfix.mail("b"))),
            ("a@exim.example.org", Box::new(|| self.exim.mail("a"))),
            ("b@exim.example.org", Box::new(|| self.exim.mail("b"))),
            ("a@opensmtpd.example.org", Box::new(|| self.opensmtpd.mail("a"))),
            ("b@opensmtpd.example.org", Box::new(|| self.opensmtpd.mail("b"))),
        ]
    }
}

/// Domains and the last numbers of their hosts.
const DOMAINS: [(&str, u8); 15] = [
    ("postfix", 1),
    ("exim", 2),
    ("opensmtpd", 3),
    ("shown", 11),
    ("shown.must", 11),
    ("shown.never", 11),
    ("old", 12),
    ("old.must", 12),
    ("nokey", 13),
    ("nokey.must", 13),
    ("plain.must", 1),
    ("tiny", 14),
    ("no8bit", 15),
    ("nopipe", 16),
    ("helo", 17),
];

fn start() -> (Cluster, Hops) {
    let cluster = Cluster::start(5_100);
    let port = cluster.file.sink.smtp.port();
    let host = |number: u8| vec![SocketAddr::ip(&address(0, number, port))];
    lead(&cluster, &DOMAINS.map(|(name, number)| (name.to_owned(), host(number))));
    let transport = format!("smtp \"smtp\" port={port} randomize=#true tls=\"never\"");
    let transports = format!(
        "smtp \"smtp\" port={port} randomize=#true\n    smtp \"must\" port={port} tls=\"must\"\n    \
         smtp \"never\" port={port} tls=\"never\""
    );
    let router = "manualroute \"special_routes\"";
    let routers = format!(
        "dnslookup \"must\" domains=\"*.must.example.org\" transport=\"must\"\n    \
         dnslookup \"never\" domains=\"*.never.example.org\" transport=\"never\"\n    {router}"
    );
    hops::change_policy(&cluster, &[(&transport, &transports), (router, &routers)]);
    (cluster, Hops::start(port))
}

#[test]
fn mail_servers_take_what_they_can() {
    let (cluster, hops) = start();
    let mut client = client(&cluster);
    odd_messages_arrive(&mut client, &hops);
    some_recipients_are_refused(&cluster, &mut client, &hops);
    servers_that_lack_something(&cluster, &mut client, &hops);
    tls_as_it_is_wanted(&cluster, &mut client, &hops);
    wait_for_queue(&cluster, &[]);
    client.quit();
}

/// Byte by byte, and once.
fn odd_messages_arrive(client: &mut Client, hops: &Hops) {
    let odd = odd_messages();
    for domain in ["postfix", "exim", "opensmtpd"] {
        let recipients = [format!("a@{domain}.example.org"), format!("b@{domain}.example.org")];
        for (_, content) in &odd {
            send(client, &[&recipients[0], &recipients[1]], content);
        }
    }
    for (what, mailbox) in hops.mailboxes() {
        for (id, content) in &odd {
            expect(what, &mailbox, id, content);
        }
        println!("{what} has {} odd messages as they were sent", odd.len());
    }
}

/// One message each: those that are taken have it, the other is told of to the sender. And how it was said.
fn some_recipients_are_refused(cluster: &Cluster, client: &mut Client, hops: &Hops) {
    for (server, status, words, pipelining) in [
        (
            "postfix",
            "5.1.1",
            "550 5.1.1 <nobody@postfix.example.org>: Recipient address rejected",
            true,
        ),
        ("exim", "5.0.0", "550 Unrouteable address", true),
        ("opensmtpd", "5.0.0", "550 Invalid recipient: <nobody@opensmtpd.example.org>", false),
    ] {
        let at = |user: &str| format!("{user}@{server}.example.org");
        let id = format!("three-to-{server}");
        let sent = [&message(&id, 3)[..], "Grüße\r\n.\r\n.\r\n".as_bytes()].concat();
        send(client, &[&at("a"), &at("nobody"), &at("b")], &sent);
        for (what, mailbox) in hops.mailboxes() {
            if what.ends_with(&format!("@{server}.example.org")) {
                expect(what, &mailbox, &id, &sent);
            }
        }
        expect_failure(cluster, &at("nobody"), status, words);

        let transaction = hops.transaction(server, &id);
        let begin = transaction[0].text();
        assert!(begin.contains(" BODY=8BITMIME"), "{begin}");
        let lines: Vec<&str> =
            begin.lines().filter_map(|line| line.split([' ', ':']).next()).collect();
        let at_once = ["MAIL", "RCPT", "RCPT", "RCPT", "DATA"];
        assert_eq!(
            lines,
            if pipelining { &at_once[..] } else { &at_once[..1] },
            "{server}: {begin}"
        );
    }
}

fn servers_that_lack_something(cluster: &Cluster, client: &mut Client, hops: &Hops) {
    let postfix = || hops.postfix.mail("a");
    let german = |id: &str| [&message(id, 3)[..], "Grüße\r\n".as_bytes()].concat();

    // Without EHLO: HELO, and no parameters of what was not offered.
    send(client, &["a@helo.example.org"], &german("by-helo"));
    let kept = || hops.helo.messages().into_values().collect();
    expect("smtp-sink -e", kept, "by-helo", &german("by-helo"));
    let dumped = hops.helo.dumped().remove(0);
    assert_eq!((&*dumped.protocol, &*dumped.mail), ("SMTP", "<sender@example.org>"));
    assert!(hops.helo.log().contains(": EHLO ") && hops.helo.log().contains(": HELO "));

    // Without 8BITMIME: as it is.
    send(client, &["a@no8bit.example.org"], &german("no8bit"));
    expect("Postfix without 8BITMIME", postfix, "no8bit", &german("no8bit"));
    let begin = hops.transaction("no8bit", "no8bit")[0].text();
    assert!(!begin.contains("BODY=") && begin.contains("SIZE="), "{begin}");

    // Without PIPELINING: one command, one answer.
    send(client, &["a@nopipe.example.org", "b@nopipe.example.org"], &message("nopipe", 3));
    expect("Postfix without PIPELINING", postfix, "nopipe", &message("nopipe", 3));
    let transaction = hops.transaction("nopipe", "nopipe");
    let commands = transaction.iter().filter(|turn| turn.client).take(4);
    for (turn, verb) in commands.zip(["MAIL", "RCPT", "RCPT", "DATA"]) {
        let text = turn.text();
        assert!(text.starts_with(verb) && text.lines().count() == 1, "{text}");
    }

    // A tiny SIZE: what fits is taken, nothing is sent of what does not.
    send(client, &["a@tiny.example.org"], &message("small", 3));
    expect("Postfix with a tiny SIZE", postfix, "small", &message("small", 3));
    let large = message("large", 300);
    send(client, &["b@tiny.example.org"], &large);
    expect_failure(cluster, "b@tiny.example.org", "5.3.4", "552 5.3.4 Message size exceeds");
    let transaction = hops.transaction("tiny", "b@tiny.example.org");
    let size: usize = transaction[0]
        .text()
        .split("SIZE=")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(size > large.len(), "{size}");
    for turn in transaction.iter().filter(|turn| turn.client) {
        for line in turn.text().lines() {
            let verb = line.split([' ', ':']).next().unwrap();
            assert!(["MAIL", "RCPT", "DATA", "RSET", "QUIT"].contains(&verb), "{line}");
        }
    }
}

fn tls_as_it_is_wanted(cluster: &Cluster, client: &mut Client, hops: &Hops) {
    let postfix = || hops.postfix.mail("b");
    // Whether the server can, and what was wanted of it: by TLS or not.
    for (domain, encrypted) in [
        ("shown", true),
        ("shown.must", true),
        ("shown.never", false),
        ("old", false),
        ("nokey", false),
    ] {
        let (id, to) = (format!("tls-{domain}"), format!("b@{domain}.example.org"));
        send(client, &[&to], &message(&id, 3));
        let text = expect(domain, postfix, &id, &message(&id, 3));
        assert_eq!(text.contains("(using TLSv1.3 with cipher "), encrypted, "{text}");
        let line = wait_for("its line in the log", PATIENCE, || {
            let log = mainlog(cluster);
            log.lines().find(|line| line.contains(&format!("=> {to} "))).map(str::to_owned)
        });
        println!("{line}");
        assert_eq!(line.contains(" X=TLS1.3:") && line.contains(" CV=no "), encrypted, "{line}");
    }
    // The old one was asked, and its handshake failed.
    assert!(hops.postfix.log().contains("SSL_accept error from"), "{}", hops.postfix.log());

    // If it must be, mail waits.
    let expected = [
        ("b@nokey.must.example.org", "after STARTTLS: 454 4.7.0 TLS not available"),
        ("b@old.must.example.org", "TLS with remote mail server: "),
        ("b@plain.must.example.org", "it is required here, and not offered there"),
    ];
    for (to, _) in expected {
        send(client, &[to], &message(to, 3));
    }
    let waiting = wait_for_queue(cluster, &expected.map(|(to, _)| to.to_owned()));
    for (waiting, (to, why)) in waiting.iter().zip(expected) {
        println!("{to} waits: {}", waiting.last_error);
        assert!(waiting.last_error.contains(why), "{waiting:?}");
    }
    assert!(expected.iter().all(|(to, _)| one(&postfix(), to).is_none()));
    // Until somebody says that it need not be.
    hops::change_policy(cluster, &[("tls=\"must\"", "tls=\"may\"")]);
    retry(cluster);
    for (to, _) in expected {
        expect("Postfix", postfix, to, &message(to, 3));
    }
}
