//! smtp-sink with faults at each command: what waits, what fails, and what arrives once the server is mended.

use std::{collections::BTreeMap, net::SocketAddr};

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE},
    hops::{address, lead, queue, retry, wait_for_queue},
    sink::{ID_FIELD, field},
    stores::PostfixSink,
    wait_for,
};

use crate::{client, expect_failure, message, send};

/// What becomes of a message at a server with a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It waits, if there is no other host; the last error has this text.
    Waits(&'static str),
    /// It waits though there is another host: this one may have taken it.
    WaitsHere(&'static str),
    /// It fails, with this text.
    Fails(&'static str),
    /// It is taken, in spite of all.
    Taken,
}
use Fate::{Fails, Taken, Waits, WaitsHere};

/// Options of smtp-sink(1), lines of the message, and what comes of it. `-Q`: 421; `-q`: the connection is closed; `-r`: 4xx; `-f`: 5xx;
/// `-A`: 5xx in the data; `-W` and `-w`: no answer for so many seconds; `-H`: the data is not read for so many.
const FAULTS: [(&str, &str, usize, Fate); 34] = [
    ("-Q", "CONNECT", FEW, Waits("after initial connection: 421 4.0.0 Server closing connection")),
    ("-Q", "EHLO", FEW, Waits("after EHLO: 421 4.0.0 Server closing connection")),
    ("-Q", "MAIL", FEW, Waits("after MAIL: 421 4.0.0 Server closing connection")),
    ("-Q", "RCPT", FEW, Waits("after RCPT: 421 4.0.0 Server closing connection")),
    ("-Q", "DATA", FEW, Waits("after DATA: 421 4.0.0 Server closing connection")),
    ("-Q", ".", FEW, WaitsHere("after end of data: 421 4.0.0 Server closing connection")),
    ("-q", "CONNECT", FEW, Waits("remote host closed the connection after initial connection")),
    ("-q", "EHLO", FEW, Waits("remote host closed the connection after EHLO")),
    ("-q", "MAIL", FEW, Waits(" after MAIL")),
    ("-q", "RCPT", FEW, Waits(" after RCPT")),
    ("-q", "DATA", FEW, Waits(" after DATA")),
    ("-q", ".", FEW, WaitsHere("remote host closed the connection after end of data")),
    ("-r", "CONNECT", FEW, Waits("after initial connection: 450 4.3.0 Error: command failed")),
    ("-r", "EHLO", FEW, Waits("after EHLO: 450 4.3.0 Error: command failed")),
    ("-r", "MAIL", FEW, Waits("after MAIL: 450 4.3.0 Error: command failed")),
    ("-r", "RCPT", FEW, Waits("after RCPT TO:<{to}>: 450 4.3.0 Error: command failed")),
    ("-r", "DATA", FEW, Waits("after DATA: 450 4.3.0 Error: command failed")),
    ("-r", ".", FEW, WaitsHere("after end of data: 450 4.3.0 Error: command failed")),
    // It refuses us, not the message.
    ("-f", "CONNECT", FEW, Waits("after initial connection: 500 5.3.0 Error: command failed")),
    ("-f", "EHLO", FEW, Taken),
    ("-f", "EHLO,HELO", FEW, Waits("after HELO: 500 5.3.0 Error: command failed")),
    ("-f", "MAIL", FEW, Fails("after MAIL: 500 5.3.0 Error: command failed")),
    ("-f", "RCPT", FEW, Fails("after RCPT TO:<{to}>: 500 5.3.0 Error: command failed")),
    ("-f", "DATA", FEW, Fails("after DATA: 500 5.3.0 Error: command failed")),
    ("-f", ".", FEW, Fails("after end of data: 500 5.3.0 Error: command failed")),
    ("-A", "0", MANY, Fails("550 This violates SMTP")),
    ("-w", "2", FEW, Taken),
    // These are killed before that time is over.
    ("-W", "CONNECT:90", FEW, Waits(" after initial connection")),
    ("-W", "EHLO:90", FEW, Waits(" after EHLO")),
    ("-W", "MAIL:90", FEW, Waits(" after MAIL")),
    ("-W", "RCPT:90", FEW, Waits(" after RCPT")),
    ("-W", "DATA:90", FEW, Waits(" after DATA")),
    ("-W", ".:90", FEW, WaitsHere(" after end of data")),
    ("-H", "90", MANY, Waits(" after DATA")),
];
/// Lines of a message that every buffer takes at once.
const FEW: usize = 3;
/// Lines of one that none does.
const MANY: usize = 100_000;

/// What smtp-sink says of each connection.
const CONNECTED: &str = ": connect (";

/// One fault: its server, its domains.
struct Case {
    number: u8,
    option: &'static str,
    command: &'static str,
    lines: usize,
    fate: Fate,
    at: SocketAddr,
    sink: PostfixSink,
}

impl Case {
    /// `alone`: the domain that has no other server; else one with another server behind this one.
    fn recipients(&self, alone: bool) -> [String; 2] {
        let kind = if alone { "alone" } else { "two" };
        ["a", "b"].map(|user| format!("{user}@{kind}{}.example.org", self.number))
    }

    fn id(&self, alone: bool) -> String {
        format!("{}-{}", if alone { "alone" } else { "two" }, self.number)
    }

    /// It does not answer as long as it runs.
    fn stalls(&self) -> bool {
        ["-W", "-H"].contains(&self.option)
    }

    /// What it says in its log when it has come to where it stalls.
    fn last_word(&self) -> String {
        match self.command.split(':').next().unwrap() {
            "CONNECT" => CONNECTED.to_owned(),
            "90" => ": DATA".to_owned(),
            command => format!(": {command}"),
        }
    }

    fn send(&self, client: &mut Client, alone: bool) {
        let [a, b] = self.recipients(alone);
        send(client, &[&a, &b], &message(&self.id(alone), self.lines));
    }
}

/// How often each message came, by its id.
fn counts<'a>(sinks: impl Iterator<Item = &'a PostfixSink>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for dumped in sinks.flat_map(PostfixSink::dumped) {
        if let Some(id) = field(&dumped.content, ID_FIELD) {
            *counts.entry(id).or_default() += 1;
        }
    }
    counts
}

fn start() -> (Cluster, Vec<Case>, PostfixSink) {
    let cluster = Cluster::start(5_300);
    let port = cluster.file.sink.smtp.port();
    let other = address(2, 1, port);
    let mut domains = Vec::new();
    let cases = FAULTS.iter().zip(1..).map(|(&(option, command, lines, fate), number)| {
        let at = address(1, number, port);
        domains.push((format!("alone{number}"), vec![at.ip()]));
        domains.push((format!("two{number}"), vec![at.ip(), other.ip()]));
        // smtp-sink itself loses its way if commands come while it delays an answer: none does without PIPELINING.
        let options: &[&str] = if option.eq_ignore_ascii_case("-w") { &["-p"] } else { &[] };
        let sink = PostfixSink::start_with(at, &[&[option, command], options].concat());
        Case { number, option, command, lines, fate, at, sink }
    });
    let cases = cases.collect();
    lead(&cluster, &domains);
    (cluster, cases, PostfixSink::start(other))
}

#[test]
fn faults_lose_nothing_and_double_nothing() {
    let (cluster, mut cases, other) = start();
    let mut client = client(&cluster);
    one_server(&cluster, &mut client, &mut cases);
    another_server(&cluster, &mut client, &cases, &other);
    mended(&cluster, cases, &other);
    client.quit();
}

/// All recipients of messages whose fate is to wait, in their order.
fn waiting(cases: &[Case], alone: bool) -> Vec<String> {
    let wait = |case: &&Case| match case.fate {
        Waits(_) => alone,
        WaitsHere(_) => alone || !case.stalls(),
        Fails(_) | Taken => false,
    };
    cases.iter().filter(wait).flat_map(|case| case.recipients(alone)).collect()
}

/// Each server is the only one of a domain.
fn one_server(cluster: &Cluster, client: &mut Client, cases: &mut [Case]) {
    for case in cases.iter() {
        case.send(client, true);
    }
    // Those that stall have been told what they do not answer, and then they go.
    for case in cases.iter_mut().filter(|case| case.stalls()) {
        let word = case.last_word();
        wait_for(&format!("{word:?} at {}", case.id(true)), PATIENCE, || {
            case.sink.log().contains(&word).then_some(())
        });
        let waits = queue(cluster).into_iter().find(|one| one.address == case.recipients(true)[0]);
        assert_eq!(waits.unwrap().last_error, "", "{}", case.id(true));
        case.sink.kill();
    }
    let waiting = wait_for_queue(cluster, &waiting(cases, true));
    for case in cases.iter() {
        for (number, to) in case.recipients(true).into_iter().enumerate() {
            let found = waiting.iter().find(|one| one.address == to);
            match case.fate {
                Waits(why) | WaitsHere(why) => {
                    let found = found.unwrap();
                    if number == 0 {
                        println!("{} {}: {}", case.option, case.command, found.last_error);
                    }
                    assert!(found.last_error.contains(&why.replace("{to}", &to)), "{found:?}");
                    assert_eq!(found.attempts, 1, "{found:?}");
                }
                Fails(why) => {
                    let status = if case.option == "-A" { "5.0.0" } else { "5.3.0" };
                    expect_failure(cluster, &to, status, &why.replace("{to}", &to));
                }
                Taken => {}
            }
        }
        let connections = case.sink.log().matches(CONNECTED).count();
        assert_eq!(connections, 1, "{}:\n{}", case.id(true), case.sink.log());
    }
}

/// The domain has a second server: it gets what the first one cannot have taken, and no refusal is asked about again.
fn another_server(cluster: &Cluster, client: &mut Client, cases: &[Case], other: &PostfixSink) {
    // Whoever closed the connection is asked again.
    cluster.ctl_json(&["queue", "retry", "--domain", "nowhere.example.org"]);
    let begun = cases.iter().filter(|case| !case.stalls());
    for case in begun.clone() {
        case.send(client, false);
    }
    let expected = [waiting(cases, true), waiting(cases, false)].concat();
    wait_for_queue(cluster, &expected);
    for case in begun.clone() {
        if let Fails(why) = case.fate {
            let to = &case.recipients(false)[0];
            let status = if case.option == "-A" { "5.0.0" } else { "5.3.0" };
            expect_failure(cluster, to, status, &why.replace("{to}", to));
        }
    }
    let passed_on = begun.filter(|case| matches!(case.fate, Waits(_)));
    let expected: BTreeMap<String, usize> = passed_on.map(|case| (case.id(false), 1)).collect();
    assert_eq!(counts([other].into_iter()), expected);
    println!("{} messages were taken by the second server", expected.len());
    let taken = cases.iter().filter(|case| case.fate == Taken);
    let ids = taken.clone().flat_map(|case| [(case.id(true), 1), (case.id(false), 1)]);
    assert_eq!(counts(taken.clone().map(|case| &case.sink)), ids.collect());
    // Who knows no EHLO has heard HELO.
    let by_helo = taken.filter(|case| case.option == "-f").flat_map(|case| case.sink.dumped());
    assert_eq!(by_helo.map(|dumped| dumped.protocol).collect::<Vec<_>>(), ["SMTP", "SMTP"]);
}

/// Servers that work stand where the others stood: what waited arrives, once.
fn mended(cluster: &Cluster, cases: Vec<Case>, other: &PostfixSink) {
    let mut expected = BTreeMap::new();
    for case in &cases {
        if matches!(case.fate, Waits(_) | WaitsHere(_)) {
            expected.insert(case.id(true), 1);
        }
        if matches!(case.fate, WaitsHere(_)) && !case.stalls() {
            expected.insert(case.id(false), 1);
        }
    }
    let before = counts([other].into_iter());
    let addresses: Vec<SocketAddr> = cases.iter().map(|case| case.at).collect();
    drop(cases);
    let healthy: Vec<PostfixSink> = addresses.into_iter().map(PostfixSink::start).collect();
    retry(cluster);
    wait_for_queue(cluster, &[]);
    assert_eq!(counts(healthy.iter()), expected);
    // Nothing goes on to the second server when the first one is there.
    assert_eq!(counts([other].into_iter()), before);
    println!("{} messages arrived when the servers were mended, each once", expected.len());
}

/// The 5xx counts, however much of the message was under way when it came.
#[test]
fn a_refusal_in_the_data_is_heard() {
    let cluster = Cluster::start(5_400);
    let at = address(1, 100, cluster.file.sink.smtp.port());
    lead(&cluster, &[("refusing".to_owned(), vec![at.ip()])]);
    let sink = PostfixSink::start_with(at, &["-A", "0"]);
    let mut client = client(&cluster);
    // From what every buffer takes to what none does.
    let recipients: Vec<String> =
        (1..=40).map(|number| format!("user{number}@refusing.example.org")).collect();
    for (recipient, number) in recipients.iter().zip(1..) {
        send(&mut client, &[recipient], &message(recipient, number * 500));
    }
    client.quit();
    wait_for_queue(&cluster, &[]);
    for recipient in &recipients {
        expect_failure(&cluster, recipient, "5.0.0", "550 This violates SMTP");
    }
    drop(sink);
}
