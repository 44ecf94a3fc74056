//! What operators watch as it happens, on a real cluster: SMTP dialogue (`ppswctl trace`) and events.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{fs::File, path::PathBuf, process::Command, time::Duration};

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE},
    process::{self, Guard},
    wait_for,
};
use serde_json::Value;

/// A `ppswctl` that runs on, and what it has printed.
struct Watcher {
    process: Guard,
    out: PathBuf,
    said: PathBuf,
}

impl Watcher {
    fn start(cluster: &Cluster, name: &str, arguments: &[&str]) -> Self {
        let path = |kind: &str| cluster.dir().join(format!("{name}.{kind}"));
        let (out, said) = (path("out"), path("err"));
        let mut command = Command::new(process::program("ppswctl"));
        command.arg("--cluster").arg(cluster.dir().join("cluster.json")).arg("--json");
        command.args(arguments).stdin(std::process::Stdio::null());
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&said).unwrap());
        Self { process: Guard(command.spawn().unwrap()), out, said }
    }

    /// A trace, as soon as it runs on these many nodes.
    fn trace(cluster: &Cluster, name: &str, arguments: &[&str], nodes: usize) -> Self {
        let watcher = Self::start(cluster, name, &[&["trace"], arguments].concat());
        wait_for("the trace to begin", PATIENCE, || {
            let said = std::fs::read_to_string(&watcher.said).unwrap();
            (said.matches("watching node").count() == nodes).then_some(())
        });
        watcher
    }

    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.out).unwrap();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Texts of the lines in one direction, with the node and what the other end is to us.
    fn texts(&self, direction: &str) -> Vec<String> {
        let lines = self.lines();
        let some = lines.iter().filter(|line| line["direction"] == direction);
        some.map(|line| line["text"].as_str().unwrap().to_owned()).collect()
    }

    fn wait_text(&self, direction: &str, start: &str) -> Vec<String> {
        wait_for(&format!("{start} {direction} in {}", self.out.display()), PATIENCE, || {
            let texts = self.texts(direction);
            texts.iter().any(|text| text.starts_with(start)).then_some(texts)
        })
    }

    fn wait_event(&self, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{name} in {}", self.out.display()), PATIENCE, || {
            self.lines().into_iter().find(|event| event["event"] == name && fits(event))
        })
    }
}

/// A message from a loopback address to one of a node's addresses that relays.
fn send(cluster: &Cluster, node: u64, source: [u8; 4], sender: &str, to: &str) {
    let mut client = Client::connect_from(source.into(), cluster.node(node).smart).unwrap();
    client.ehlo().unwrap();
    let body = b"Subject: a private matter\r\n\r\nnobody else should read this\r\n";
    let reply = client.send(sender, &[to], body).unwrap();
    assert_eq!(reply.code, 250, "{reply:?}");
    client.quit();
}

fn has(texts: &[String], start: &str) -> bool {
    texts.iter().any(|text| text.starts_with(start))
}

#[test]
fn dialogue_is_shown_as_it_happens_to_those_who_may_see_it() {
    let cluster = Cluster::start(5_500);
    refusals(&cluster);
    let trace = |name: &str, arguments: &[&str]| Watcher::trace(&cluster, name, arguments, 3);
    // All at once, which is as many as may run.
    let client = trace("client", &["--client", "127.77.0.0/16"]);
    let sender = trace("sender", &["--sender", "anna@*.org"]);
    let recipient = trace("recipient", &["--recipient", "wanted@example.org"]);
    let host = trace("host", &["--host", "127.10.0.1", "--out"]);
    let nobody = trace("nobody", &["--sender", "nobody@example.org"]);
    let two = trace("two", &["--recipient", "spqr2@*", "--count", "12", "--for", "5m"]);
    let third = Watcher::trace(&cluster, "third", &["--node", "3", "--in"], 1);
    let error = cluster_full(&cluster);
    assert!(error.contains("8 traces run on this node already"), "{error}");

    // The node that is asked is the first; the mail comes in at another one, and leaves there.
    send(&cluster, 2, [127, 77, 0, 1], "anna@example.org", "wanted@example.org");
    send(&cluster, 3, [127, 78, 0, 1], "bo@example.org", "other@example.org");

    let texts = client.wait_text("in", "closed");
    assert!(texts[0].starts_with("connected to 127.10.2.2:"), "{texts:#?}");
    let dialogue = [
        "EHLO client.example.org",
        "MAIL FROM:<anna@example.org>",
        "250 2.1.0",
        "RCPT TO:<wanted@example.org>",
        "DATA",
        "354 ",
        "62 octets of data",
        "250 2.0.0 OK id=",
        "QUIT",
    ];
    for start in dialogue {
        assert!(has(&texts, start), "no {start}: {texts:#?}");
    }
    assert!(client.lines().iter().all(|l| l["node"] == 2 && l["peer"] == "127.77.0.1"));
    for watcher in [&sender, &recipient] {
        let (texts, out) =
            (watcher.wait_text("in", "closed"), watcher.wait_text("out", "250 2.0.0"));
        assert!(has(&texts, "connected to") && has(&texts, "EHLO client"), "{texts:#?}");
        assert!(has(&out, "connects to") && has(&out, "RCPT TO:<wanted@example.org>"), "{out:#?}");
        let all = watcher.lines();
        assert!(all.iter().all(|line| line["node"] == 2), "{all:#?}");
        assert!(!format!("{all:?}").contains("bo@"), "{all:#?}");
    }
    host.wait_text("out", "RCPT TO:<wanted@example.org>");
    host.wait_text("out", "RCPT TO:<other@example.org>");
    assert!(host.texts("in").is_empty());
    let texts = third.wait_text("in", "RCPT TO:<other@example.org>");
    assert!(!has(&texts, "RCPT TO:<wanted"), "{texts:#?}");

    secrets_are_kept(&cluster, two);
    assert_eq!(nobody.lines(), Vec::<Value>::new());
    for watcher in [client, sender, recipient, host, third] {
        let text = std::fs::read_to_string(&watcher.out).unwrap();
        assert!(!text.contains("private matter") && !text.contains("nobody else"), "{text}");
    }
    // They have gone with their processes: there is room again.
    drop(nobody);
    wait_for("room for a trace", PATIENCE, || {
        let (code, _) = cluster.ctl(&["trace", "--for", "1s", "--sender", "x"]);
        (code == 0).then_some(())
    });
}

/// One more than may run; gives the error.
fn cluster_full(cluster: &Cluster) -> String {
    let eighth = Watcher::trace(cluster, "eighth", &["--sender", "nobody@x"], 3);
    let ninth = Watcher::start(cluster, "ninth", &["trace", "--sender", "nobody@x"]);
    // Node 1 is asked by all of the watchers, also by those that are about one node only.
    let text = wait_for("a refusal", PATIENCE, || {
        let text = std::fs::read_to_string(&ninth.said).unwrap();
        text.contains("ppswctl: ").then_some(text)
    });
    drop(eighth);
    text
}

/// A submission with a password, delivered by LMTP.
fn secrets_are_kept(cluster: &Cluster, two: Watcher) {
    let password = cluster.password("spqr1").to_owned();
    let all = Watcher::trace(cluster, "submission", &["--recipient", "spqr2@*"], 3);
    let mut client = Client::connect_tls(cluster.node(3).submissions).unwrap();
    client.ehlo().unwrap();
    client.auth_plain("spqr1", &password).unwrap();
    let body = b"From: spqr1@hermes.cam.ac.uk\r\nSubject: a private matter\r\n\r\nnobody else\r\n";
    let reply = client.send("spqr1@hermes.cam.ac.uk", &["spqr2@hermes.cam.ac.uk"], body).unwrap();
    assert_eq!(reply.code, 250, "{reply:?}");
    client.quit();
    let texts = all.wait_text("in", "closed");
    assert!(has(&texts, "TLS: TLS1.3") && has(&texts, "AUTH PLAIN (secret)"), "{texts:#?}");
    let out = all.wait_text("out", "250 ");
    assert!(has(&out, "LHLO ") && has(&out, "RCPT TO:<spqr2@"), "{out:#?}");
    let shown = std::fs::read_to_string(&all.out).unwrap();
    let response = "AHNwcXIx";
    for secret in [password.as_str(), response, "private matter", "nobody else"] {
        assert!(!shown.contains(secret), "{secret} is shown:\n{shown}");
    }
    // The other one has ended by itself.
    let mut two = two;
    wait_for("the end after 12 lines", PATIENCE, || (!two.process.alive()).then_some(()));
    assert_eq!(two.lines().len(), 12);
}

fn refusals(cluster: &Cluster) {
    for (arguments, expected) in [
        (&["--viewer", "trace"][..], "viewer"),
        (&["trace", "--client", "example.org"], "expected --client"),
        (&["trace", "--client", "127.0.0.1", "--out"], "--out"),
        (&["trace", "--for", "5h"], "at most 4h"),
        (&["trace", "--node", "9"], "no node \"9\""),
        (&["events", "--node", "9"], "no node \"9\""),
        (&["events", "--for", "99d"], "at most 31 days"),
    ] {
        let (code, text) = cluster.ctl(arguments);
        assert!(code == 1 && text.contains(expected), "{arguments:?}: {code} {text}");
    }
    // As people see it.
    let (code, text) = cluster.ctl(&["trace", "--for", "1s"]);
    assert!(code == 0 && text.contains("the trace has ended"), "{code} {text}");
}

#[test]
fn events_are_told_once_and_to_viewers() {
    let mut cluster = Cluster::start(5_600);
    let live = Watcher::start(&cluster, "live", &["--viewer", "events", "--since", "10m"]);
    for node in 1..=3 {
        live.wait_event("ready", |event| event["node"] == node);
        live.wait_event("leader", |event| event["node"] == node && event["partition"] == node);
    }

    cluster.ctl_json(&["shed", "set", "mx", "10%", "--reason", "too much"]);
    let shed = live.wait_event("shed_set", |_| true);
    assert_eq!((&shed["percent"], &shed["by"]), (&10.into(), &"admin".into()), "{shed}");
    cluster.ctl_json(&["shed", "clear", "mx"]);
    live.wait_event("shed_cleared", |event| event["text"] == "by an operator");
    cluster.ctl_json(&["suspend", "example.org", "--for", "2s", "--reason", "a test"]);
    live.wait_event("suspended", |event| event["destination"] == "example.org");
    live.wait_event("resumed", |event| event["text"] == "its time is over");
    let held = ["--recipient", "spy@example.org", "--standing", "1h", "--reason", "a test"];
    cluster.ctl_json(&[&["queue", "hold"][..], &held].concat());
    live.wait_event("rule_set", |event| event["verb"] == "hold");

    versions_are_told(&cluster, &live);

    let (code, text) = cluster.ctl(&["drain", "3"]);
    assert_eq!(code, 0, "{text}");
    live.wait_event("drain_begun", |event| event["node"] == 3 && event["by"] == "admin");
    for phase in ["sessions", "safe"] {
        live.wait_event("drain_phase", |event| event["node"] == 3 && event["phase"] == phase);
    }
    live.wait_event("not_ready", |event| {
        event["node"] == 3 && event["reasons"][0] == "this node is drained"
    });
    let (code, text) = cluster.ctl(&["undrain", "3"]);
    assert_eq!(code, 0, "{text}");
    live.wait_event("drain_ended", |event| event["node"] == 3);

    let before = live.lines().len();
    cluster.kill(2);
    let after = |event: &str, fits: &dyn Fn(&Value) -> bool| {
        wait_for(&format!("{event} in {}", live.out.display()), PATIENCE, || {
            let events = live.lines().split_off(before);
            events.into_iter().find(|told| told["event"] == event && fits(told))
        })
    };
    let leader = after("leader", &|told| told["partition"] == 2);
    assert_ne!(leader["node"], 2, "{leader}");
    after("node_unreachable", &|told| told["node"] == 2);
    cluster.restart(2);
    cluster.wait_ready(2);
    after("node_started", &|told| told["node"] == 2);
    after("node_back", &|told| told["node"] == 2);
    after("leader", &|told| told["partition"] == 2 && told["node"] == 2);

    the_past_is_told(&cluster, &live);
}

/// A push that changes something, and one that is refused.
fn versions_are_told(cluster: &Cluster, live: &Watcher) {
    let config = cluster.dir().join("config");
    let table = config.join("tables/special_routes");
    let old = std::fs::read_to_string(&table).unwrap();
    std::fs::write(&table, format!("{old}watched.example  127.10.0.1\n")).unwrap();
    cluster.apply_config();
    let pushed = live.wait_event("version_activated", |event| event["reason"] == "test");
    assert_eq!(pushed["verb"], "push", "{pushed}");
    for node in 1..=3 {
        live.wait_event("version_running", |event| {
            event["node"] == node && event["generation"] == pushed["generation"]
        });
    }
    let policy = config.join("policy.kdl");
    let good = std::fs::read_to_string(&policy).unwrap();
    std::fs::write(&policy, format!("{good}\nnonsense \"spy@example.org\"\n")).unwrap();
    let dir = config.display().to_string();
    let (code, text) = cluster.ctl(&["tables", "push", &dir, "--reason", "a mistake"]);
    assert!(code == 1 && text.contains("nonsense"), "{code} {text}");
    live.wait_event("version_refused", |event| event["verb"] == "push");
    std::fs::write(&policy, good).unwrap();
}

/// Whoever comes later hears it, in order; of one node, or all. Nothing was told twice, and no address.
fn the_past_is_told(cluster: &Cluster, live: &Watcher) {
    let past = |name: &str, arguments: &[&str]| {
        let arguments = [&["events", "--for", "0"], arguments].concat();
        let mut watcher = Watcher::start(cluster, name, &arguments);
        wait_for("the end of the past", PATIENCE, || (!watcher.process.alive()).then_some(()));
        watcher.lines()
    };
    let all = past("past", &["--since", "1h"]);
    let times: Vec<&str> = all.iter().map(|event| event["time"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:#?}");
    for once in ["shed_set", "shed_cleared", "rule_set", "drain_begun", "drain_ended"] {
        let told = |events: &[Value]| events.iter().filter(|e| e["event"] == once).count();
        assert_eq!((told(&all), told(&live.lines())), (1, 1), "{once}: {all:#?}");
    }
    assert_eq!(past("last", &[]).len(), 10);
    assert_eq!(past("none", &["--since", "0"]), Vec::<Value>::new());
    let third = past("third", &["--since", "1h", "--node", "node-3"]);
    assert!(third.iter().all(|event| event["node"] == 3) && !third.is_empty(), "{third:#?}");
    assert!(third.iter().any(|event| event["event"] == "drain_begun"), "{third:#?}");
    let text = std::fs::read_to_string(&live.out).unwrap();
    assert!(!text.contains("spy@"), "{text}");
    let (_, words) = cluster.ctl(&["events", "--since", "1h", "--for", "0"]);
    assert!(words.contains(" node-3 drain_begun by=admin"), "{words}");
    // Watching holds up nobody's stop.
    let begin = std::time::Instant::now();
    process::signal(cluster.node(1).pid, rustix::process::Signal::TERM);
    wait_for("node 1 to end", PATIENCE, || (!process::exists(cluster.node(1).pid)).then_some(()));
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    // Another node goes on telling.
    wait_for("another to be asked", PATIENCE, || {
        let events = live.lines();
        let again = events.iter().rposition(|event| event["event"] == "leader")?;
        (events[again]["partition"] == 1 && events[again]["node"] != 1).then_some(())
    });
}
