//! Golden decisions: what the Cambridge policy says and does, line by line in `golden/decisions.txt`.

use std::{fmt::Write as _, net::SocketAddr};

use hickory_resolver::proto::rr::Name;

use super::*;
use crate::{
    callout::{Answer, Callouts, Question},
    dev::configuration::tests::loaded,
    dns::FixedDns,
    rate::Rates,
    route::{self, About, Fate, Target},
};
use coverage::Coverage;

mod coverage;

const DECISIONS: &str = include_str!("golden/decisions.txt");
const CAMBRIDGE: &str = include_str!("golden/cambridge.txt");
const WORLD: &str = include_str!("golden/world.zone");
const ANSWERS: &str = include_str!("golden/answers.txt");

struct Asked;

#[async_trait::async_trait]
impl Callouts for Asked {
    async fn ask(&self, question: Question<'_>) -> Answer {
        let mut answers = ANSWERS.lines().filter_map(|line| line.split_once(' '));
        let Some((_, text)) = answers.find(|(address, _)| *address == question.address) else {
            return Answer::Yes;
        };
        let text = text.trim_start();
        if text.starts_with('5') {
            return Answer::No(format!("Callout verification failed:\n{text}"));
        }
        Answer::Later(format!("Could not ask whether <{}> takes mail: {text}", question.address))
    }
}

pub(super) fn around(queue: u64) -> Surroundings {
    Surroundings {
        dns: Arc::new(dns()),
        facts: Arc::new(Queue(queue)),
        callouts: Arc::new(Asked),
        rates: Rates::default(),
    }
}

struct Queue(u64);

impl NodeFacts for Queue {
    fn queue_length(&self) -> u64 {
        self.0
    }

    fn load(&self) -> Option<u32> {
        Some(750)
    }
}

/// What the name server of a `dev` cluster answers, as far as the decisions ask.
pub(crate) fn dns() -> FixedDns {
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    FixedDns::default()
        .with_mx("example.org", 10, "sink.example.org")
        .with_address("sink.example.org", ip("127.10.0.1"))
        .empty("nomx.example.org")
        .broken("broken.example.org")
        .with_mx("null.example.org", 0, "")
        .with_mx("bogus.example.org", 10, "bogon.example.org")
        .with_address("bogon.example.org", ip("10.1.1.1"))
        .with_address("direct.example.org", ip("127.10.0.1"))
        .with_mx("chem.cam.ac.uk", 5, "sink.example.org")
        .with_mx("chem.cam.ac.uk", 10, "mx.cam.ac.uk")
        .with_mx("chem.cam.ac.uk", 20, "late.example.org")
        .with_address("late.example.org", ip("127.10.0.1"))
        .with_mx("ours.cam.ac.uk", 10, "mx.cam.ac.uk")
        .with_address("mx.cam.ac.uk", ip("127.10.1.1"))
        .with_address("host.cam.ac.uk", ip("127.10.0.1"))
        .with_host("client.host.example", ip("127.200.0.1"))
        .with_host("relay.host.example", ip("127.0.0.1"))
        .with_address("66.66.200.127.bl.example", ip("127.0.0.2"))
        .with_text("66.66.200.127.bl.example", "https://bl.example/66")
        .with_address("spam.example.org.bl.example", ip("127.0.0.2"))
        .with_mx("spam.example.org", 10, "sink.example.org")
        .with_address("www.example.com", ip("127.10.0.1"))
        .with_address("a.noreply.example.net", ip("127.10.0.1"))
}

/// What the world answered in 2005, as far as the cases in `cambridge.txt` ask.
fn world() -> FixedDns {
    let bare = |name: &str| name.strip_suffix('.').expect("an absolute name").to_owned();
    let mut dns = FixedDns::default();
    for line in WORLD.lines().filter(|line| !line.is_empty()) {
        let (name, rest) = line.split_once(' ').unwrap();
        let (kind, data) = rest.trim_start().split_once(' ').unwrap_or_default();
        let (name, data) = (name.trim_end_matches('.'), data.trim_start());
        dns = match kind {
            _ if name == ";" && kind == "SERVFAIL" => dns.broken(&bare(data)),
            _ if name == ";" => dns,
            "MX" => {
                let (preference, host) = data.split_once(' ').unwrap();
                dns.with_mx(name, preference.parse().unwrap(), &bare(host))
            }
            "A" | "AAAA" => dns.with_address(name, data.parse().unwrap()),
            "PTR" => {
                let name = Name::from_ascii(format!("{name}.")).unwrap();
                dns.with_pointer(name.parse_arpa_name().unwrap().addr(), &bare(data))
            }
            "TXT" => dns.with_text(name, data.trim_matches('"')),
            _ => panic!("world.zone: {line}"),
        };
    }
    dns
}

fn connection(client: &str, server: &str, helo: &str, user: &str) -> Connection {
    let address = |text: &str, port| SocketAddr::new(text.parse().unwrap(), port);
    let (host, service) = match server.split_once('/') {
        Some((host, "587")) => (host, Service::Submission),
        _ => (server, Service::Smtp),
    };
    Connection {
        helo: Some(helo.to_owned()),
        authenticated: (user != "-").then(|| user.to_owned()),
        ..Connection::new(address(client, 40_000), address(host, 25), service)
    }
}

/// Runs the stages of one message; the first that refuses speaks.
async fn reply(
    configuration: &Configuration,
    connection: &mut Connection,
    sender: &str,
    recipient: &str,
    around: &Surroundings,
) -> (String, Decision) {
    let (reply, decision, _) =
        explained_reply(configuration, connection, sender, &[recipient], around).await;
    (reply, decision)
}

/// As [`reply`], to the last of several recipients, with what was asked in each stage.
async fn explained_reply(
    configuration: &Configuration,
    connection: &mut Connection,
    sender: &str,
    recipients: &[&str],
    around: &Surroundings,
) -> (String, Decision, Vec<Explanation>) {
    let mut decision = Decision::default();
    let mut explanations = Vec::new();
    let mut delay = Duration::ZERO;
    let before = [Stage::Connect, Stage::Helo, Stage::Mail].map(|stage| (stage, None));
    let recipients = recipients.iter().map(|recipient| (Stage::Rcpt, Some(*recipient)));
    for (stage, recipient) in before.into_iter().chain(recipients) {
        // A refused recipient leaves others.
        let refused = decision.verdict != Verdict::Accept;
        if refused && explanations.last().is_some_and(|last: &Explanation| last.stage < Stage::Rcpt)
        {
            break;
        }
        let transaction = Transaction {
            sender: sender.to_owned(),
            recipient: recipient.map(str::to_owned),
            ..Transaction::default()
        };
        let explanation;
        (decision, explanation) =
            configuration.explain(stage, connection, &transaction, around).await;
        explanations.push(explanation);
        delay += decision.delay;
    }
    let mut text = match &decision.verdict {
        Verdict::Accept => "250".to_owned(),
        Verdict::Discard => "250 discarded".to_owned(),
        Verdict::Deny(text) => format!("550 {text}"),
        Verdict::Drop(text) => format!("550 dropped {text}"),
        Verdict::Defer(text) => format!("451 {text}"),
    };
    if delay > Duration::ZERO {
        let _ = write!(text, " [{}s]", delay.as_secs());
    }
    (text.replace('\n', " | "), decision, explanations)
}

/// The rule that spoke, and the one in an auxiliary ACL that made it speak.
fn spoken(explanation: &Explanation) -> String {
    let mut text = explanation.stage.name().to_owned();
    let mut rules = &explanation.rules;
    while let Some(rule) = rules.last() {
        let _ = write!(text, ": {}", rule.place.text);
        let Some(last) = rule.conditions.last() else { break };
        rules = &last.rules;
    }
    text
}

pub(crate) fn shown(targets: &[Target]) -> String {
    let one = |target: &Target| {
        let fate = match &target.fate {
            Fate::Deliver(to) => {
                let hosts = to.hosts.iter().map(|host| format!("{}:{}", host.name, host.port));
                let program = to.program.iter().map(|program| program.words.join(" "));
                format!("{} {}", to.router, hosts.chain(program).collect::<Vec<_>>().join(" "))
            }
            Fate::Fail(why) => format!("** {why}"),
            Fate::Defer(why) => format!("== {why}"),
            Fate::Expand(into) => format!("expands to {}", into.join(" ")),
        };
        let from = target.errors_to.as_ref().map_or(String::new(), |from| format!(" F={from}"));
        format!("{} {fate}{from}", target.address)
    };
    targets.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn decisions_are_as_written() {
    let (actual, _) = follow(&loaded(), &dns(), DECISIONS).await;
    compare("decisions.txt", DECISIONS, &actual);
}

#[tokio::test]
async fn the_universitys_own_configuration_decides_as_written() {
    let (actual, _) = follow(&cambridge(), &world(), CAMBRIDGE).await;
    compare("cambridge.txt", CAMBRIDGE, &actual);
}

fn cambridge() -> Arc<Configuration> {
    Configuration::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cambridge")).unwrap()
}

/// What comes of a file of cases, and how often each rule and condition was asked.
async fn follow(configuration: &Configuration, dns: &FixedDns, cases: &str) -> (String, Coverage) {
    let (mut actual, mut coverage) = (String::new(), Coverage::default());
    for line in cases.lines() {
        if line.is_empty() || line.starts_with('#') {
            let _ = writeln!(actual, "{line}");
            continue;
        }
        if line.starts_with(' ') {
            // What the line before it came to.
            continue;
        }
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let queue = words.pop_if(|word| word.starts_with("q="));
        let queue = queue.map_or(0, |word| word[2..].parse().unwrap());
        let [client, server, helo, user, sender, recipients] = *words.as_slice() else {
            panic!("expected six words: {line}");
        };
        let bare = |text| str::trim_matches(text, ['<', '>']);
        let recipients: Vec<&str> = recipients.split(',').map(bare).collect();
        let mut connection = connection(client, server, helo, user);
        let around = Surroundings { dns: Arc::new(dns.clone()), ..around(queue) };
        let (reply, decision, explanations) =
            explained_reply(configuration, &mut connection, bare(sender), &recipients, &around)
                .await;
        let rule = explanations.last().map_or_else(String::new, spoken);
        let _ = writeln!(actual, "{line}\n    {reply}\n    {rule}");
        if decision.verdict == Verdict::Accept {
            let recipient = recipients.last().unwrap();
            let personality = configuration.personality(connection.server.ip()).acl;
            let about = About { id: None, sender: bare(sender), personality: &personality };
            // The queue has what it was rewritten to.
            let (targets, _) = route::explain(configuration, dns, &about, recipient, false).await;
            let _ = writeln!(actual, "    {}", shown(&targets));
        }
        explanations.iter().for_each(|explanation| coverage.add(&explanation.rules));
    }
    (actual, coverage)
}

/// Compares what is expected with what happens, or writes it.
fn compare(file: &str, expected: &str, actual: &str) {
    if std::env::var_os("PPSW_GOLDEN_WRITE").is_some() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/policy/golden");
        files::write(&dir.join(file), actual.as_bytes()).unwrap();
        return;
    }
    for (number, (expected, actual)) in expected.lines().zip(actual.lines()).enumerate() {
        assert_eq!(expected, actual, "{file}:{}", number + 1);
    }
    assert_eq!(expected.lines().count(), actual.lines().count());
}

#[tokio::test]
async fn submission_is_mended_by_personality() {
    let configuration = loaded();
    let (sender, recipient) = ("spqr1@hermes.cam.ac.uk", "x@example.org");
    for (server, user, submission) in [
        ("127.10.1.2", "-", Some(Submission { sender_retain: true, domain: None })),
        (
            "127.10.1.3/587",
            "spqr1",
            Some(Submission { sender_retain: false, domain: Some("hermes.cam.ac.uk".to_owned()) }),
        ),
        ("127.10.1.1", "-", None),
    ] {
        let mut connection = connection("127.0.0.1", server, "relay.host.example", user);
        let recipient = if submission.is_some() { recipient } else { sender };
        let (_, decision) =
            reply(&configuration, &mut connection, sender, recipient, &around(0)).await;
        assert_eq!(decision.verdict, Verdict::Accept, "{server}");
        assert_eq!(decision.submission, submission, "{server}");
    }
    let mut connection = connection("127.0.0.1", "127.10.1.3/587", "x", "spqr1");
    let transaction = Transaction::default();
    let decision =
        configuration.check(Stage::Connect, &mut connection, &transaction, &around(0)).await;
    assert!(decision.enforce_sync_off);
}

#[tokio::test]
async fn a_busy_node_defers_and_remembers_it() {
    let configuration = loaded();
    let mut connection = connection("127.200.0.1", "127.10.1.1", "client.host.example", "-");
    let (sender, recipient) = ("x@example.org", "spqr1@hermes.cam.ac.uk");
    let (text, _) = reply(&configuration, &mut connection, sender, recipient, &around(301)).await;
    assert_eq!(text, "451 Sorry, too busy. Try again later.");
    assert_eq!(connection.variables["busy"], "yes");
    let (text, _) = reply(&configuration, &mut connection, sender, recipient, &around(0)).await;
    assert_eq!(text, "451 Sorry, too busy. Try again later.");
}

#[tokio::test]
async fn bad_helo_is_remembered_for_the_next_recipient() {
    let configuration = loaded();
    let mut connection = connection("127.200.0.1", "127.10.1.1", "spqr1", "-");
    let sender = "x@example.org";
    for recipient in ["spqr1@hermes.cam.ac.uk", "spqr2@hermes.cam.ac.uk"] {
        let (text, _) = reply(&configuration, &mut connection, sender, recipient, &around(0)).await;
        assert_eq!(text, "550 Please use your name when saying HELO (not spqr1) [5s]");
    }
}
