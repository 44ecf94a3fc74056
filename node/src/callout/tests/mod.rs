//! Callouts to scripted servers on loopback.

use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use super::*;
use crate::{
    deliver::{
        connect::TcpConnector,
        tests::{
            fake::{START, TestClock},
            server::{At, Script, Server},
        },
    },
    files,
    limits::{
        CALLBACKS_PER_HOST_MAX, CALLOUT_ADDRESS_NO_TIME, CALLOUT_ADDRESS_YES_TIME,
        CALLOUT_DOMAIN_YES_TIME,
    },
    route::{ClientOptions, Host, Protocol, Tls},
};

struct Bench {
    caller: Caller,
    clock: Arc<TestClock>,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let (clock, dir) = (Arc::new(TestClock(AtomicU64::new(START))), TempDir::new().unwrap());
        let caller = Self::caller(&clock, &dir);
        Self { caller, clock, dir }
    }

    fn caller(clock: &Arc<TestClock>, dir: &TempDir) -> Caller {
        let path = dir.path().join("callouts");
        Caller::open(
            Arc::new(TcpConnector::default()),
            clock.clone(),
            "ppsw-1.example".into(),
            &path,
        )
    }

    fn later(&self, time: Duration) {
        self.clock.0.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }

    async fn ask(&self, to: &Destination, address: &str) -> Answer {
        self.ask_as(to, address, "", &options()).await
    }

    async fn ask_as(
        &self,
        destination: &Destination,
        address: &str,
        reverse_path: &str,
        options: &CalloutOptions,
    ) -> Answer {
        let question = Question { address, destination, reverse_path, calls_back: true, options };
        self.caller.ask(question).await
    }
}

fn options() -> CalloutOptions {
    CalloutOptions { time: Duration::from_secs(2), ..CalloutOptions::default() }
}

fn at(servers: &[&Server]) -> Destination {
    let host = |(number, server): (usize, &&Server)| Host {
        name: format!("host{number}"),
        addresses: vec![server.address.ip()],
        port: server.address.port(),
        preference: u16::try_from(number).unwrap(),
        mx: true,
    };
    Destination {
        router: "router".into(),
        transport: "transport".into(),
        protocol: Protocol::Smtp,
        hosts: servers.iter().enumerate().map(host).collect(),
        strip_nul: false,
        client: ClientOptions::default(),
        tls: Tls::May,
        program: None,
    }
}

async fn refusing() -> Server {
    let rcpt = vec![("gone", "550 5.1.1 who?"), ("full", "452 4.2.2 full"), ("nobody-", "550 no")];
    Server::start(Script { rcpt, ..Script::default() }).await
}

fn is_no(answer: &Answer, text: &str) -> bool {
    matches!(answer, Answer::No(why) if why.contains(text))
}

fn is_later(answer: &Answer, text: &str) -> bool {
    matches!(answer, Answer::Later(why) if why.contains(text))
}

#[tokio::test]
async fn the_host_is_asked_once_over_one_connection_and_gets_no_mail() {
    let (bench, server) = (Bench::new(), refusing().await);
    let to = at(&[&server]);
    for _ in 0..3 {
        assert_eq!(bench.ask(&to, "a@y.example").await, Answer::Yes);
        let gone = bench.ask(&to, "gone@y.example").await;
        assert!(is_no(&gone, "550 5.1.1 who?"), "{gone:?}");
    }
    let question =
        |address| ["MAIL FROM:<>".to_owned(), format!("RCPT TO:<{address}>"), "RSET".into()];
    let mut expected = vec!["EHLO ppsw-1.example".to_owned()];
    expected.extend(["a@y.example", "gone@y.example"].into_iter().flat_map(question));
    assert_eq!(server.commands(), expected);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn what_is_learnt_lasts_by_its_kind() {
    let (bench, server) = (Bench::new(), refusing().await);
    let to = at(&[&server]);
    let asked = || server.commands().iter().filter(|c| c.starts_with("MAIL")).count();
    let minute = Duration::from_secs(60);
    for (address, time) in
        [("a@y.example", CALLOUT_ADDRESS_YES_TIME), ("gone@y.example", CALLOUT_ADDRESS_NO_TIME)]
    {
        let before = asked();
        bench.ask(&to, address).await;
        bench.later(time - minute);
        bench.ask(&to, address).await;
        assert_eq!(asked(), before + 1, "{address}");
        bench.later(minute * 2);
        bench.ask(&to, address).await;
        assert_eq!(asked(), before + 2, "{address}");
    }
    // Not known is asked again at once.
    let before = asked();
    for _ in 0..2 {
        assert!(is_later(&bench.ask(&to, "full@y.example").await, "452 4.2.2 full"));
    }
    assert_eq!(asked(), before + 2);
    // Who asks is part of the question.
    bench.ask_as(&to, "a@y.example", "s@x.example", &options()).await;
    assert_eq!(server.commands().iter().filter(|c| *c == "MAIL FROM:<s@x.example>").count(), 1);
}

#[tokio::test]
async fn a_domain_that_refuses_bounces_is_not_asked_for_each_address() {
    let script = Script { mail: "550 no bounces here", ..Script::default() };
    let (bench, server) = (Bench::new(), Server::start(script).await);
    let to = at(&[&server]);
    for address in ["a@y.example", "b@y.example"] {
        assert!(is_no(&bench.ask(&to, address).await, "MAIL FROM:<> was refused: 550 no bounces"));
    }
    assert_eq!(server.commands().iter().filter(|c| c.starts_with("MAIL")).count(), 1);
    // That says nothing of other senders.
    bench.ask_as(&to, "a@y.example", "s@x.example", &options()).await;
    assert_eq!(server.commands().iter().filter(|c| c.starts_with("MAIL")).count(), 2);
}

#[tokio::test]
async fn a_domain_that_takes_anybody_is_found_out() {
    let random = CalloutOptions { random: true, ..options() };
    let (bench, server) = (Bench::new(), Server::start(Script::default()).await);
    let to = at(&[&server]);
    for address in ["a@y.example", "b@y.example"] {
        assert_eq!(bench.ask_as(&to, address, "", &random).await, Answer::Yes);
    }
    let rcpts =
        || server.commands().into_iter().filter(|c| c.starts_with("RCPT")).collect::<Vec<_>>();
    assert!(matches!(&rcpts()[..], [one] if one.starts_with("RCPT TO:<nobody-")), "{:?}", rcpts());
    bench.later(CALLOUT_DOMAIN_YES_TIME + Duration::from_secs(1));
    bench.ask_as(&to, "a@y.example", "", &random).await;
    assert_eq!(rcpts().len(), 2);

    let careful = refusing().await;
    let to = at(&[&careful]);
    assert!(is_no(&bench.ask_as(&to, "gone@z.example", "", &random).await, "who?"));
    assert_eq!(bench.ask_as(&to, "a@z.example", "", &random).await, Answer::Yes);
}

#[tokio::test]
async fn a_host_that_says_nothing_of_the_address_leaves_it_open() {
    let bench = Bench::new();
    let busy = Server::start(Script { greeting: "554 not you", ..Script::default() }).await;
    let closes = Server::start(Script { close: Some(At::Rcpt), ..Script::default() }).await;
    let slow = Server::start(Script {
        greets: Some(Arc::new(tokio::sync::Notify::new())),
        ..Script::default()
    })
    .await;
    let good = refusing().await;
    for (server, text) in [(&busy, "554 not you"), (&closes, "closed")] {
        let answer = bench.ask(&at(&[server]), "a@y.example").await;
        assert!(is_later(&answer, text), "{answer:?}");
        // The next host knows.
        assert!(is_no(&bench.ask(&at(&[server, &good]), "gone@y.example").await, "who?"));
        bench.later(CALLOUT_ADDRESS_NO_TIME);
    }
    let hasty = CalloutOptions { maxwait: Some(Duration::from_millis(200)), ..options() };
    let answer = bench.ask_as(&at(&[&slow]), "a@y.example", "", &hasty).await;
    assert!(is_later(&answer, "no host answered"), "{answer:?}");
    let nobody = Destination { hosts: vec![], ..at(&[]) };
    assert_eq!(bench.ask(&nobody, "a@y.example").await, Answer::Yes, "routed here, by a table");
}

#[tokio::test]
async fn strangers_hosts_are_not_asked_without_end() {
    let (bench, server) = (Bench::new(), refusing().await);
    let to = at(&[&server]);
    for number in 0..CALLBACKS_PER_HOST_MAX {
        assert_eq!(bench.ask(&to, &format!("a{number}@y.example")).await, Answer::Yes);
    }
    let answer = bench.ask(&to, "one-more@y.example").await;
    assert!(is_later(&answer, "often enough"), "{answer:?}");
    assert_eq!(bench.ask(&to, "a1@y.example").await, Answer::Yes, "known");
    // Recipients are mail that the host would get anyway.
    let options = options();
    let question = Question {
        address: "r@y.example",
        destination: &to,
        reverse_path: "s@x.example",
        calls_back: false,
        options: &options,
    };
    assert_eq!(bench.caller.ask(question).await, Answer::Yes);
}

#[tokio::test]
async fn what_is_learnt_survives_a_restart() {
    let (bench, server) = (Bench::new(), refusing().await);
    let (to, path) = (at(&[&server]), bench.dir.path().join("callouts"));
    assert_eq!(bench.ask(&to, "a@y.example").await, Answer::Yes);
    assert!(is_no(&bench.ask(&to, "gone@y.example").await, "who?"));
    bench.caller.save(&path).await;
    let asked = server.commands().len();

    let mut damaged = files::read(&path, 10_000).unwrap();
    damaged.extend_from_slice(b"{\"key\":\"no line\n\xff\n");
    files::write(&path, &damaged).unwrap();
    let again = Bench { caller: Bench::caller(&bench.clock, &bench.dir), ..bench };
    assert_eq!(again.ask(&to, "a@y.example").await, Answer::Yes);
    assert!(is_no(&again.ask(&to, "gone@y.example").await, "who?"));
    assert_eq!(server.commands().len(), asked);

    files::write(&path, b"ppswitch callouts 2\n").unwrap();
    let newer = Bench { caller: Bench::caller(&again.clock, &again.dir), ..again };
    assert_eq!(newer.ask(&to, "a@y.example").await, Answer::Yes);
    assert!(server.commands().len() > asked, "of another version: learnt anew");
}
