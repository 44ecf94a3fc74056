//! The golden routes of `deploy/cambridge` (`node/src/route/golden`) in real life: by `ppswctl route`, and by mail that arrives where
//! they say, with the envelope that they say. Needs root.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use ppsw_tests::{
    campus::{Campus, MACHINE, Setup},
    client::Client,
    process::{Guard, program},
    sink::{ID_FIELD, Maildir, field},
    wait_for,
};
use serde_json::Value;

const CASES: &str = include_str!("../../node/src/route/golden/cambridge.txt");
const WORLD: &str = include_str!("../../node/src/route/golden/world.txt");

/// Sender of cases that name none, when they are sent: bounces are for others.
const SENDER: &str = "s@example.org";
/// A machine of the university, which may relay.
const CLIENT: &str = "131.111.9.9";
const SMART: &str = "131.111.8.130:25";
/// Servers that the campus has no program for, with their ports.
const SINKS: [&str; 8] = [
    "131.111.10.42:25",
    "131.111.18.1:25",
    "203.0.113.3:25",
    "203.0.113.7:25",
    "203.0.113.11:25",
    "203.0.113.12:25",
    "172.20.3.1:2525",
    "172.20.5.1:25",
];
/// Hundreds of messages, a sender who is called back, programs.
const ARRIVAL: Duration = Duration::from_secs(240);

/// One address of the golden file.
struct Case {
    line: usize,
    address: String,
    sender: String,
    personality: String,
    /// `=>`, `**` and `==` lines.
    targets: Vec<String>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (number, line) in CASES.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(target) = line.strip_prefix("    ") {
            if !target.starts_with("verified: ") {
                cases.last_mut().unwrap().targets.push(target.to_owned());
            }
            continue;
        }
        let (mut sender, mut personality) = (String::new(), "mx".to_owned());
        let mut rest = line;
        while let Some((before, word)) = rest.rsplit_once(' ') {
            match word.split_once('=') {
                Some(("from", from)) => from.clone_into(&mut sender),
                Some(("by", by)) => by.clone_into(&mut personality),
                _ => break,
            }
            rest = before;
        }
        let (line, address, targets) = (number + 1, rest.to_owned(), Vec::new());
        cases.push(Case { line, address, sender, personality, targets });
    }
    cases
}

/// The golden world as a zone.
fn records() -> String {
    let mut zone = String::new();
    for line in WORLD.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let _ = match *line.split(' ').collect::<Vec<_>>() {
            ["MX", name, preference, "."] => writeln!(zone, "{name}. MX {preference} ."),
            ["MX", name, preference, host] => writeln!(zone, "{name}. MX {preference} {host}."),
            ["A", name, address] => writeln!(zone, "{name}. A {address}"),
            ["EMPTY", name] => writeln!(zone, "{name}. TXT \"nothing else\""),
            ["BROKEN", name] => writeln!(zone, "; SERVFAIL {name}."),
            _ => panic!("expected a record: {line}"),
        };
    }
    zone
}

/// The list program of the test, instead of the university's; as nobody.
fn use_our_list_program(config: &Path) {
    let dir = config.parent().unwrap();
    let path = dir.join("explode_list");
    fs::copy(program("ppswd"), &path).unwrap();
    let policy = config.join("policy.kdl");
    let text = fs::read_to_string(&policy).unwrap();
    let ours = format!("command=\"{} explode-list\" user=\"65534:65534\"", path.display());
    let changed = text.replace("command=\"/opt/exim/sbin/explode_list\"", &ours);
    assert_ne!(text, changed);
    fs::write(policy, changed).unwrap();
}

fn campus() -> Campus {
    let records = records();
    let node = format!("local_smtp = \"{MACHINE}:25\"\nretry = \"F,5d,5s\"\n");
    Campus::start_with(&Setup {
        records: &records,
        node: &node,
        change: Some(&use_our_list_program),
    })
}

#[test]
fn golden_routes_are_what_a_node_says_and_does() {
    let (campus, cases) = (campus(), cases());
    assert!(cases.len() >= 200);
    explained(&campus, &cases);
    delivered(&campus, &cases);
}

/// `ppswctl route` says of each address what the golden file says.
fn explained(campus: &Campus, cases: &[Case]) {
    let mut groups: BTreeMap<(&str, &str), Vec<&Case>> = BTreeMap::new();
    for case in cases {
        groups.entry((&case.sender, &case.personality)).or_default().push(case);
    }
    let mut worst = BTreeSet::new();
    for ((sender, personality), cases) in groups {
        let sender = format!("<{sender}>");
        let facts = ["--json", "route", "--from", &sender, "--personality", personality, "--"];
        let addresses = cases.iter().map(|case| case.address.as_str());
        let arguments: Vec<&str> = facts.into_iter().chain(addresses).collect();
        let output = campus.ppswctl(&arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let found: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{output:?}"));
        for (case, found) in cases.iter().zip(found.as_array().unwrap()) {
            let targets: Vec<String> =
                found["targets"].as_array().unwrap().iter().map(shown).collect();
            assert_eq!(targets, case.targets, "cambridge.txt:{}: {found:#}", case.line);
            let stops = found["stops"].as_array().unwrap();
            assert!(stops.iter().skip(1).all(|stop| stop["parent"].is_u64()), "{found:#}");
        }
        worst.insert(output.status.code());
    }
    assert!(worst.contains(&Some(2)), "{worst:?}");
    for (address, code, expected) in [
        ("spqr1@hermes.cam.ac.uk", 0, "users/cyrus: spqr1: \"cyrus-1.csi.private.cam.ac.uk\""),
        ("x@arch.cam.ac.uk", 1, "DNS: A gone.arch.private.cam.ac.uk: no such domain"),
        ("nobody@botolph.cam.ac.uk", 2, "domains/botolph.cam.ac.uk/aliases: nobody: no entry"),
    ] {
        let (is, text) = campus.ctl(&["route", address]);
        assert!(is == code && text.contains(expected), "{is}: {text}");
    }
}

/// A target of the JSON as the golden file has it.
fn shown(target: &Value) -> String {
    let text = |name: &str| target[name].as_str().unwrap_or_default().to_owned();
    let from = match text("errors_to").as_str() {
        "" => String::new(),
        from => format!(" F={from}"),
    };
    let address = text("address");
    let sign = match text("result").as_str() {
        "fail" => "**",
        "defer" => "==",
        _ => {
            let hosts = target["hosts"].as_array().unwrap().iter().map(|host| {
                let name = host["name"].as_str().unwrap();
                format!("{name}:{}/{}", host["port"], host["preference"])
            });
            let command = target["command"].as_array().map(|_| "/opt/exim/sbin/explode_list");
            let to = hosts.chain(command.map(str::to_owned)).collect::<Vec<_>>().join(" ");
            return format!("=> {address} {} {to}{from}", text("router"));
        }
    };
    format!("{sign} {address} {}{from}", text("reason"))
}

/// Where something arrived: place, recipient, return path.
type Arrival = (String, String, String);

/// A message to each address arrives where the golden file says, and nowhere else.
fn delivered(campus: &Campus, cases: &[Case]) {
    let mail = campus.dir().join("sinks");
    let _sinks: Vec<Guard> = SINKS.iter().map(|address| sink(campus, &mail, address)).collect();
    let mut expected: BTreeMap<String, BTreeSet<Arrival>> = BTreeMap::new();
    for case in cases.iter().filter(|case| case.targets.iter().any(|t| t.starts_with("=> "))) {
        let id = format!("case-{}", case.line);
        let mut arrivals = BTreeSet::new();
        expect(cases, case, SENDER, &mut arrivals);
        expected.insert(id.clone(), arrivals);
        let (from, to) = if case.personality == "local" {
            (MACHINE, SocketAddr::new(MACHINE, 25))
        } else {
            (CLIENT.parse().unwrap(), SMART.parse().unwrap())
        };
        let content =
            format!("From: s@example.org\r\nSubject: {id}\r\n{ID_FIELD}: {id}\r\n\r\nhello\r\n");
        let said = campus.network().run(|| {
            let mut client = Client::connect_from(from, to).unwrap();
            client.ehlo().unwrap();
            let recipient = qualified(&case.address);
            let reply = client.send(SENDER, &[&recipient], content.as_bytes()).unwrap();
            client.quit();
            reply
        });
        // The local ACL asks whether a recipient can be verified; what it refuses cannot arrive.
        if case.personality == "local" && said.code == 550 {
            expected.remove(&id);
            continue;
        }
        assert_eq!(said.code, 250, "cambridge.txt:{}: {said:?}", case.line);
    }
    println!("{} messages are on their way", expected.len());
    assert!(expected.len() >= 90, "{}", expected.len());
    let mut stores: Vec<(String, Maildir)> = Vec::new();
    for number in 1..=9 {
        stores.push((format!("172.28.13.{number}:2003"), campus.store(number)));
    }
    for address in SINKS {
        stores.push((address.to_owned(), Maildir::new(&mail.join(address))));
    }
    let mut last = BTreeMap::new();
    // A list without members leads nowhere.
    let nothing = BTreeSet::new();
    let complete = |last: &BTreeMap<String, BTreeSet<Arrival>>| {
        expected.iter().all(|(id, arrivals)| last.get(id).unwrap_or(&nothing).is_superset(arrivals))
    };
    let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("all messages", ARRIVAL, || {
            last = arrived(campus, &mut stores);
            complete(&last).then_some(())
        });
    }));
    if waited.is_err() {
        for (id, arrivals) in &expected {
            let is = last.get(id).cloned().unwrap_or_default();
            assert_eq!(&is, arrivals, "{id}");
        }
    }
    // What comes twice, or elsewhere, comes now.
    std::thread::sleep(Duration::from_secs(10));
    let last = arrived(campus, &mut stores);
    for (id, arrivals) in &expected {
        assert_eq!(last.get(id).unwrap_or(&nothing), arrivals, "{id}");
    }
    let log = campus.mainlog();
    for list in ["punting", "ucs-staff", "debate"] {
        let line = format!(
            "=> {list}@lists.cam.ac.uk F=<s@example.org> P=<s@example.org> R=lists_process T=list_pipe"
        );
        assert!(log.contains(&line), "{line}");
    }
}

/// What the targets of a case come to, those of the lists that it leads to included.
fn expect(cases: &[Case], case: &Case, sender: &str, arrivals: &mut BTreeSet<Arrival>) {
    for target in case.targets.iter().filter_map(|target| target.strip_prefix("=> ")) {
        let (target, from) = match target.rsplit_once(" F=") {
            Some((target, from)) => (target, from),
            None => (target, sender),
        };
        // An address may have blanks in quotes.
        let at = target.rfind('@').unwrap();
        let end = at + target[at..].find(' ').unwrap();
        let (address, rest) = target.split_at(end);
        let (router, hosts) = rest.trim_start().split_once(' ').unwrap();
        if router == "lists_process" {
            let list = address.rsplit_once('@').unwrap().0.to_lowercase();
            let outgoing = format!("{list}-outgoing@lists.cam.ac.uk");
            let local = |other: &&Case| {
                other.address == outgoing
                    && other.personality == "local"
                    && !other.sender.is_empty()
            };
            if let Some(members) = cases.iter().find(local) {
                expect(cases, members, from, arrivals);
            }
            continue;
        }
        let first = hosts.split(' ').next().unwrap().rsplit_once('/').unwrap().0;
        let (host, port) = first.rsplit_once(':').unwrap();
        arrivals.insert((place(host, port), bare(address), from.to_owned()));
    }
}

/// Which program is at a host's address.
fn place(host: &str, port: &str) -> String {
    let address = host.parse::<IpAddr>().unwrap_or_else(|_| {
        let record = format!("A {host} ");
        let found = WORLD.lines().find_map(|line| line.strip_prefix(&record));
        found.unwrap_or_else(|| panic!("{host} has no address")).parse().unwrap()
    });
    match address.to_string().as_str() {
        "131.111.16.1" | "172.20.1.1" | "172.20.2.1" | "172.20.2.2" => "departments".to_owned(),
        "203.0.113.1" | "203.0.113.2" => "outside".to_owned(),
        address => format!("{address}:{port}"),
    }
}

/// Everything with a test's id, by that.
fn arrived(
    campus: &Campus,
    stores: &mut [(String, Maildir)],
) -> BTreeMap<String, BTreeSet<Arrival>> {
    let mut found: BTreeMap<String, BTreeSet<Arrival>> = BTreeMap::new();
    for (place, maildir) in stores {
        for filed in maildir.messages() {
            let Some(id) = filed.id() else { continue };
            for recipient in &filed.recipients {
                let arrival = (place.clone(), bare(recipient), filed.sender.clone());
                let new = found.entry(id.clone()).or_default().insert(arrival);
                assert!(new, "{id} came to {recipient} in {place} twice");
            }
        }
    }
    let departments = campus.departments().mail();
    let departments = departments.iter().map(|mail| ("departments", "Envelope-to", mail));
    let outside = campus.outside().mail();
    let outside = outside.iter().map(|mail| ("outside", "Delivered-To", mail));
    for (place, to, mail) in departments.chain(outside) {
        let Some(id) = field(mail.as_bytes(), ID_FIELD) else { continue };
        let to = field(mail.as_bytes(), to).unwrap();
        let from = field(mail.as_bytes(), "Return-path").unwrap();
        let from = from.trim_matches(['<', '>']).to_owned();
        for to in to.split(',') {
            let arrival = (place.to_owned(), bare(to.trim()), from.clone());
            found.entry(id.clone()).or_default().insert(arrival);
        }
    }
    found
}

/// Servers quote and fold as they like.
fn bare(address: &str) -> String {
    address.replace('"', "").to_lowercase()
}

/// A bare local part has no place in RCPT, but that of the postmaster.
fn qualified(address: &str) -> String {
    if address.contains('@') || address.eq_ignore_ascii_case("postmaster") {
        address.trim_end_matches('.').to_owned()
    } else {
        format!("{address}@ppsw.cam.ac.uk")
    }
}

/// A server that takes everything.
fn sink(campus: &Campus, dir: &Path, address: &str) -> Guard {
    let maildir = dir.join(address);
    fs::create_dir_all(&maildir).unwrap();
    let smtp: SocketAddr = address.parse().unwrap();
    let lmtp = SocketAddr::new(smtp.ip(), 2_003);
    let mut command = campus.network().command(program("ppswd"));
    command.args(["sink", "--smtp", address, "--lmtp", &lmtp.to_string(), "--maildir"]);
    let guard = Guard::spawn(command.arg(&maildir), &dir.join(format!("{address}.log")));
    campus.network().run(|| {
        wait_for(address, Duration::from_secs(30), || Client::connect_from(smtp.ip(), smtp).ok());
    });
    guard
}
