//! Single transactions.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use ppsw_spool::{env::SystemClock, log::LogError, queue::Turn};
use proptest::prelude::*;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    sync::Notify,
    task::JoinHandle,
};

use super::server::{At, Script, Server};
use crate::{
    deliver::{
        connect::{Connector, Stream, TcpConnector},
        lanes::Lanes,
        retry::{Cause, RULE_OTHERS, Stage},
        seams::{BodySource, Fence},
        transaction::{Answer, Mail, Rcpt},
        transmit::{Sent, Transmission, Transmitter},
    },
    route::{ClientOptions, Destination, Host, Protocol, Tls},
};

pub(super) const BODY: &[u8] = b"Subject: x\r\n\r\n.dot\r\n..\r\n";

struct Chunks(Vec<Bytes>);

#[async_trait]
impl BodySource for Chunks {
    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        Ok(if self.0.is_empty() { None } else { Some(self.0.remove(0)) })
    }
}

/// Holds until told otherwise.
#[derive(Default)]
pub(super) struct Switch(pub(super) AtomicBool);

#[async_trait]
impl Fence for Switch {
    fn holds(&self) -> bool {
        !self.0.load(Ordering::SeqCst)
    }
    async fn begun(&self) -> bool {
        true
    }
    fn is_open(&self) -> bool {
        true
    }
    async fn broken(&self) {
        while self.holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A fence that is only asked, so that the last question is what counts.
struct Silent(Arc<AtomicBool>);

#[async_trait]
impl Fence for Silent {
    fn holds(&self) -> bool {
        !self.0.load(Ordering::SeqCst)
    }
    async fn begun(&self) -> bool {
        true
    }
    fn is_open(&self) -> bool {
        true
    }
    async fn broken(&self) {
        std::future::pending().await
    }
}

pub(super) fn transmitter() -> Transmitter {
    Transmitter::new(
        Arc::new(TcpConnector::default()),
        Arc::new(SystemClock),
        "us.example".into(),
        Vec::new(),
    )
}

pub(super) fn destination(servers: &[&Server], protocol: Protocol) -> Destination {
    let hosts = servers.iter().zip(1..).map(|(server, preference)| Host {
        name: format!("host{preference}"),
        addresses: vec![server.address.ip()],
        port: server.address.port(),
        preference,
        mx: true,
    });
    Destination {
        router: "router".into(),
        transport: "transport".into(),
        protocol,
        hosts: hosts.collect(),
        strip_nul: false,
        tls: Tls::May,
        client: ClientOptions::default(),
        program: None,
    }
}

pub(super) async fn transmit(
    transmitter: &Transmitter,
    destination: &Destination,
    mail: &Mail,
    rcpts: &[&str],
    body: &[u8],
    fence: &dyn Fence,
) -> Vec<Sent> {
    let recipients: Vec<Rcpt> =
        rcpts.iter().map(|a| Rcpt { address: (*a).into(), ..Rcpt::default() }).collect();
    let body = Bytes::copy_from_slice(body);
    let open = || -> Box<dyn BodySource> {
        let cut = body.len() / 2;
        Box::new(Chunks(vec![body.slice(..cut), body.slice(cut..)]))
    };
    let retry = |_| RULE_OTHERS.parse().unwrap();
    let lanes = Lanes::new();
    let gate = lanes.gate(Turn::First);
    let what = Transmission {
        destination,
        gate,
        personality: "mx",
        retry: &retry,
        mail,
        recipients: &recipients,
        body: &open,
        fence,
    };
    let sent =
        async { transmitter.transmit(&what, transmitter.hosts(destination, gate).await).await };
    tokio::time::timeout(Duration::from_secs(20), sent).await.unwrap()
}

async fn answers(script: Script, rcpts: &[&str]) -> (Vec<Answer>, Server) {
    let protocol = if script.lmtp { Protocol::Lmtp } else { Protocol::Smtp };
    let server = Server::start(script).await;
    let destination = destination(&[&server], protocol);
    let sent = transmit(
        &transmitter(),
        &destination,
        &Mail { sender: "s@x".into(), ..Mail::default() },
        rcpts,
        BODY,
        &Switch::default(),
    )
    .await;
    (sent.into_iter().map(|sent| sent.answer).collect(), server)
}

fn is(answer: &Answer, kind: &str) -> bool {
    let (found, text) = match answer {
        Answer::Delivered(text) => ("delivered", text.as_str()),
        Answer::Failed(text) => ("failed", text.as_str()),
        Answer::Deferred { text, .. } => ("deferred", text.as_str()),
        Answer::Unread(text) => ("unread", text.as_str()),
        Answer::Suspended { text, .. } => ("suspended", text.as_str()),
        Answer::Fenced => ("fenced", ""),
    };
    let (wanted, words) = kind.split_once(' ').unwrap_or((kind, ""));
    assert!(found == wanted && text.contains(words), "{answer:?} is not {kind}");
    true
}

#[tokio::test]
async fn a_message_arrives_with_and_without_pipelining() {
    for ehlo in [Script::default().ehlo, "250 here", "502 what?"] {
        let (answers, server) =
            answers(Script { ehlo, ..Script::default() }, &["a@y", "b@y"]).await;
        assert!(answers.iter().all(|answer| is(answer, "delivered 250 2.0.0 taken")));
        let taken = &server.complete()[0];
        assert_eq!(taken.data, BODY);
        assert_eq!(taken.rcpts, ["RCPT TO:<a@y>", "RCPT TO:<b@y>"]);
        let size = if ehlo.contains("SIZE") { " SIZE=0" } else { "" };
        assert_eq!(taken.mail, format!("MAIL FROM:<s@x>{size}"));
        assert_eq!(server.commands().iter().any(|c| c == "HELO us.example"), ehlo.starts_with('5'));
    }
}

#[tokio::test]
async fn every_refusal_has_its_meaning() {
    let pipelining = Script::default().ehlo;
    for ehlo in [pipelining, "250 here"] {
        let base = || Script { ehlo, ..Script::default() };
        for (script, expected) in [
            (Script { greeting: "554 go away", ..base() }, "deferred 554 go away"),
            (Script { greeting: "421 busy", ..base() }, "deferred 421 busy"),
            (Script { mail: "550 no", ..base() }, "failed after MAIL: 550 no"),
            (Script { mail: "450 later", ..base() }, "deferred 450 later"),
            (Script { mail: "421 closing", ..base() }, "deferred 421 closing"),
            (Script { rcpt: vec![("", "550 5.1.1 who?")], ..base() }, "failed RCPT TO:<a@y>: 550"),
            (Script { rcpt: vec![("", "450 full")], ..base() }, "deferred 450 full"),
            (Script { data: "554 no", ..base() }, "failed after DATA: 554 no"),
            (Script { data: "451 no", ..base() }, "deferred 451 no"),
            (Script { dot: vec![("", "550 spam")], ..base() }, "failed end of data: 550 spam"),
            (Script { dot: vec![("", "452 full")], ..base() }, "deferred 452 full"),
            (Script { dot: vec![("", "421 oops")], ..base() }, "deferred 421 oops"),
            (Script { dot: vec![("", "nonsense")], ..base() }, "deferred no SMTP reply"),
        ] {
            let (answers, _server) = answers(script, &["a@y"]).await;
            assert!(is(&answers[0], expected));
        }
    }
    let script = Script { ehlo: "502 no", helo: "550 no", ..Script::default() };
    assert!(is(&answers(script, &["a@y"]).await.0[0], "deferred after HELO: 550"));
}

#[tokio::test]
async fn a_lost_connection_defers_wherever_it_is_lost() {
    for ehlo in [Script::default().ehlo, "250 here"] {
        let stages = [At::Greeting, At::Ehlo, At::Mail, At::Rcpt, At::Data, At::InData, At::Dot];
        for at in stages {
            let script = Script { ehlo, close: Some(at), ..Script::default() };
            let (answers, server) = answers(script, &["a@y", "b@y"]).await;
            assert!(answers.iter().all(|answer| is(answer, "deferred")), "{at:?}");
            let elsewhere = matches!(answers[0], Answer::Deferred { elsewhere: true, .. });
            // A body this small is through, dot and all, before the connection is seen to be closed.
            assert_eq!(elsewhere, !matches!(at, At::InData | At::Dot), "{at:?}");
            assert_eq!(server.complete().len(), usize::from(at == At::Dot));
        }
    }
}

/// What retry rules tell apart.
#[tokio::test]
async fn what_went_wrong_is_known_for_the_retry_rules() {
    let cause = |sent: &Sent| match sent.answer {
        Answer::Deferred { cause, .. } => (cause, sent.mx),
        _ => panic!("{sent:?}"),
    };
    let reply = |to, code, full| Cause::Reply { to, code, full };
    let base = Script::default;
    for (script, expected) in [
        (Script { close: Some(At::Mail), ..base() }, Cause::LostConnection),
        (Script { greeting: "421 busy", ..base() }, Cause::Other),
        (Script { mail: "451 no", ..base() }, reply(Stage::Mail, 451, false)),
        (Script { rcpt: vec![("", "452 4.2.2 full")], ..base() }, reply(Stage::Rcpt, 452, true)),
        (Script { data: "421 no", ..base() }, reply(Stage::Data, 421, false)),
        (Script { dot: vec![("", "450 no")], ..base() }, reply(Stage::Data, 450, false)),
    ] {
        let server = Server::start(script).await;
        let there = destination(&[&server], Protocol::Smtp);
        let sent =
            transmit(&transmitter(), &there, &Mail::default(), &["a@y"], BODY, &Switch::default())
                .await;
        assert_eq!(cause(&sent[0]), (expected, Some(true)));
    }
    // Nobody listens any more; and who asks again at once is told the same of a host that is left alone.
    let server = Server::start(base()).await;
    let there = destination(&[&server], Protocol::Smtp);
    drop(server);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let us = transmitter();
    for _ in 0..2 {
        let sent =
            transmit(&us, &there, &Mail::default(), &["a@y"], BODY, &Switch::default()).await;
        assert_eq!(cause(&sent[0]), (Cause::Refused, Some(true)));
    }
}

#[tokio::test]
async fn recipients_have_their_own_answers() {
    for ehlo in [Script::default().ehlo, "250 here"] {
        let rcpt = vec![("bad", "550 no"), ("slow", "450 later")];
        let script = Script { ehlo, rcpt, ..Script::default() };
        let (answers, server) = answers(script, &["good@y", "bad@y", "slow@y"]).await;
        assert!(is(&answers[0], "delivered"));
        assert!(is(&answers[1], "failed 550"));
        assert!(is(&answers[2], "deferred 450"));
        assert_eq!(server.complete()[0].rcpts, ["RCPT TO:<good@y>"]);
    }
}

#[tokio::test]
async fn lmtp_answers_each_recipient_after_the_dot() {
    let dot = vec![("full", "452 4.2.2 over quota"), ("gone", "550 no"), ("", "250 stored")];
    let rcpt = vec![("unknown", "550 unknown")];
    let script = Script { lmtp: true, dot, rcpt, ..Script::default() };
    let (answers, server) =
        answers(script, &["ok@y", "unknown@y", "full@y", "gone@y", "two@y"]).await;
    let kinds = ["delivered stored", "failed unknown", "deferred quota", "failed", "delivered"];
    assert!(answers.iter().zip(kinds).all(|(answer, kind)| is(answer, kind)));
    assert_eq!(server.commands()[0], "LHLO us.example");
}

#[tokio::test]
async fn the_next_host_is_asked_after_trouble_with_the_first() {
    // Larger than what sockets hold.
    let body = b"line\r\n".repeat(2_000_000);
    for script in [
        Script { greeting: "421 busy", ..Script::default() },
        Script { close: Some(At::InData), ..Script::default() },
        Script { close: Some(At::Rcpt), ..Script::default() },
        Script { mail: "450 later", ..Script::default() },
    ] {
        let (bad, good) = (Server::start(script).await, Server::start(Script::default()).await);
        let both = destination(&[&bad, &good], Protocol::Smtp);
        let fence = Switch::default();
        let sent = transmit(&transmitter(), &both, &Mail::default(), &["a@y"], &body, &fence).await;
        assert!(is(&sent[0].answer, "delivered"));
        assert_eq!(sent[0].host.as_ref().unwrap().name, "host2");
    }
    // A refusal for good is final, and so is a message that may have been taken.
    for script in [
        Script { rcpt: vec![("", "550 no")], ..Script::default() },
        Script { close: Some(At::Dot), ..Script::default() },
    ] {
        let (bad, good) = (Server::start(script).await, Server::start(Script::default()).await);
        let both = destination(&[&bad, &good], Protocol::Smtp);
        let fence = Switch::default();
        transmit(&transmitter(), &both, &Mail::default(), &["a@y"], BODY, &fence).await;
        assert_eq!(good.connections(), 0);
    }
}

#[tokio::test]
async fn a_connection_is_used_again_and_a_stale_one_replaced() {
    let server = Server::start(Script::default()).await;
    let (there, us) = (destination(&[&server], Protocol::Smtp), transmitter());
    let fence = Switch::default();
    for _ in 0..3 {
        let sent = transmit(&us, &there, &Mail::default(), &["a@y"], BODY, &fence).await;
        assert!(is(&sent[0].answer, "delivered"));
    }
    assert_eq!((server.connections(), server.complete().len()), (1, 3));

    // This one closes after its first message.
    let script = Script { rcpt: vec![("bad", "421 enough")], ..Script::default() };
    let server = Server::start(script).await;
    let there = destination(&[&server], Protocol::Smtp);
    transmit(&us, &there, &Mail::default(), &["bad@y"], BODY, &fence).await;
    let sent = transmit(&us, &there, &Mail::default(), &["a@y"], BODY, &fence).await;
    assert!(is(&sent[0].answer, "delivered"));
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn without_the_lease_there_is_no_final_dot() {
    let lost = Arc::new(AtomicBool::new(false));
    let losing = Arc::clone(&lost);
    let in_data: Arc<dyn Fn() + Send + Sync> =
        Arc::new(move || losing.store(true, Ordering::SeqCst));
    let script = Script { in_data: Some(in_data), data: "354 go", ..Script::default() };
    let server = Server::start(script).await;
    let there = destination(&[&server], Protocol::Smtp);
    // The hook has run by the time the body, larger than the socket's buffers, is through.
    let body = b"line\r\n".repeat(2_000_000);
    let fence = Silent(lost);
    let sent = transmit(&transmitter(), &there, &Mail::default(), &["a@y"], &body, &fence).await;
    assert!(is(&sent[0].answer, "fenced"));
    for _ in 0..100 {
        if !server.seen.taken.lock().unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let taken = server.seen.taken.lock().unwrap().clone();
    assert!(!taken[0].complete && server.complete().is_empty());
}

/// Gives out one end of a pipe that holds `usize` bytes; a server with the other end that reads no data until told.
struct Pipe(usize, Arc<Notify>, Mutex<Option<JoinHandle<Vec<u8>>>>);

#[async_trait]
impl Connector for Pipe {
    async fn connect(
        &self,
        _: Option<IpAddr>,
        _: SocketAddr,
        _: Duration,
    ) -> io::Result<Box<dyn Stream>> {
        let (ours, theirs) = tokio::io::duplex(self.0);
        let read_on = Arc::clone(&self.1);
        *self.2.lock().unwrap() = Some(tokio::spawn(async move {
            let mut lines = BufReader::with_capacity(1, theirs);
            lines.write_all(b"220 x\r\n").await.unwrap();
            for reply in ["250 x\r\n", "250 x\r\n", "250 x\r\n", "354 x\r\n"] {
                lines.read_line(&mut String::new()).await.unwrap();
                lines.write_all(reply.as_bytes()).await.unwrap();
            }
            read_on.notified().await;
            let mut data = Vec::new();
            lines.read_to_end(&mut data).await.unwrap();
            data
        }));
        Ok(Box::new(ours))
    }
}

#[tokio::test]
async fn a_dot_that_waits_for_a_slow_reader_is_not_sent_when_the_lease_is_over() {
    let read_on = Arc::new(Notify::new());
    // The data fit, with the first byte of the final dot.
    let pipe = Arc::new(Pipe(BODY.len() + 2 + 1, Arc::clone(&read_on), Mutex::default()));
    let us = Transmitter::new(Arc::clone(&pipe) as _, Arc::new(SystemClock), "us".into(), vec![]);
    let hosts = vec![Host {
        name: "slow".into(),
        addresses: vec![[192, 0, 2, 1].into()],
        port: 25,
        preference: 1,
        mx: true,
    }];
    let there = Destination { hosts, ..destination(&[], Protocol::Smtp) };
    let (fence, mail) = (Switch::default(), Mail::default());
    let end = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        fence.0.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
        read_on.notify_one();
    };
    let (sent, ()) = tokio::join!(transmit(&us, &there, &mail, &["a@y"], BODY, &fence), end);
    assert_eq!(sent[0].answer, Answer::Fenced);
    let server = pipe.2.lock().unwrap().take().unwrap();
    let data = server.await.unwrap();
    let text = String::from_utf8_lossy(&data);
    assert!(text.contains("Subject: x") && !text.ends_with("\r\n.\r\n"), "{text:?}");
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_is_not_asked_again_at_once() {
    let gone = Server::start(Script::default()).await;
    let there = destination(&[&gone], Protocol::Smtp);
    drop(gone);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (us, fence) = (transmitter(), Switch::default());
    let first = transmit(&us, &there, &Mail::default(), &["a@y"], BODY, &fence).await;
    assert!(is(&first[0].answer, "deferred 127.0.0.1"));
    let second = transmit(&us, &there, &Mail::default(), &["a@y"], BODY, &fence).await;
    assert!(is(&second[0].answer, "deferred retry time not reached for host"));
}

/// Half of a message, then a log that cannot be read; with it, the lease may end.
struct Rotten {
    half: Option<Bytes>,
    lease: Option<Arc<AtomicBool>>,
}

#[async_trait]
impl BodySource for Rotten {
    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        if let Some(half) = self.half.take() {
            return Ok(Some(half));
        }
        if let Some(lost) = &self.lease {
            lost.store(true, Ordering::SeqCst);
        }
        Err(LogError::Damaged { file: "x.seg".into(), offset: 7, what: "rotten".into() })
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_neither_cut_short_nor_bounced() {
    for lost in [false, true] {
        let server = Server::start(Script::default()).await;
        let there = destination(&[&server], Protocol::Smtp);
        let lease = Arc::new(AtomicBool::new(false));
        let body = || -> Box<dyn BodySource> {
            let half = Some(Bytes::from_static(b"Subject: x\r\n\r\nhalf\r\n"));
            Box::new(Rotten { half, lease: lost.then(|| Arc::clone(&lease)) })
        };
        let lanes = Lanes::new();
        let gate = lanes.gate(Turn::First);
        let what = Transmission {
            destination: &there,
            gate,
            personality: "mx",
            retry: &|_| RULE_OTHERS.parse().unwrap(),
            mail: &Mail::default(),
            recipients: &[Rcpt { address: "a@y".into(), ..Rcpt::default() }],
            body: &body,
            fence: &Silent(Arc::clone(&lease)),
        };
        let us = transmitter();
        let sent = us.transmit(&what, us.hosts(&there, gate).await).await;
        assert!(is(&sent[0].answer, if lost { "fenced" } else { "unread rotten" }));
        assert!(server.complete().is_empty());
    }
}

#[tokio::test]
async fn options_are_used_as_they_are_offered() {
    let ehlo = "250-here\r\n250-8BITMIME\r\n250-SIZE\r\n250-SMTPUTF8\r\n250 DSN";
    let mail = Mail {
        sender: "s@x".into(),
        size: 42,
        eight_bit: true,
        smtputf8: true,
        return_headers_only: true,
        envelope_id: "E1".into(),
        ..Mail::default()
    };
    for (ehlo, expected) in [
        (ehlo, "MAIL FROM:<s@x> SIZE=42 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=E1"),
        ("250-here\r\n250 SMTPUTF8", "MAIL FROM:<s@x> SMTPUTF8"),
    ] {
        let server = Server::start(Script { ehlo, ..Script::default() }).await;
        let there = destination(&[&server], Protocol::Smtp);
        let fence = Switch::default();
        transmit(&transmitter(), &there, &mail, &["a@y"], BODY, &fence).await;
        assert_eq!(server.complete()[0].mail, expected);
    }
    let server = Server::start(Script::default()).await;
    let there = destination(&[&server], Protocol::Smtp);
    let fence = Switch::default();
    let sent = transmit(&transmitter(), &there, &mail, &["a@y"], BODY, &fence).await;
    assert!(is(&sent[0].answer, "failed 5.6.7"));
    assert!(server.complete().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Bodies with CRLF line ends arrive byte for byte, dots and all.
    #[test]
    fn any_body_arrives_whole(lines in prop::collection::vec("[.]{0,3}[a-z\u{e9}\u{0}]{0,5}", 0..200)) {
        let body: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::start(Script::default()).await;
            let there = destination(&[&server], Protocol::Smtp);
            let fence = Switch::default();
            let sent = transmit(
                &transmitter(), &there, &Mail::default(), &["a@y"], body.as_bytes(), &fence).await;
            assert!(is(&sent[0].answer, "delivered"));
            assert_eq!(server.complete()[0].data, body.as_bytes());
        });
    }
}
