//! Each clause of the university's ACLs over real sockets: the golden cases of `deploy/cambridge` as SMTP sessions
//! between their own addresses, with a real name server, and real Exim and Postfix to call out to.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use ppsw_tests::{
    campus::{Campus, PASSWORD, PATIENCE, PROXY},
    client::{Client, Reply, tcp},
    golden::{Case, cases, clauses},
    wait_for,
};
use serde_json::Value;

/// Sessions of one client at once; the university's limit for strangers is 10.
const SESSIONS: usize = 6;
/// A session is late when it takes so much longer than its delays: less than the smallest delay of the policy.
const LATE: Duration = Duration::from_millis(4_500);
/// A machine to which the smarthost is nice without question.
const NICE: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 28, 13, 1));
const SMARTHOST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(131, 111, 8, 129)), 25);

#[test]
fn each_clause_is_shown_over_sockets() {
    let campus = Campus::start();
    let cases = cases();
    let mut faults = Vec::new();
    let mut coverage = Coverage::new(&campus);
    let mut waiting = 0;
    // Messages that wait stay: from the shortest queue to the longest.
    let queues: BTreeSet<u64> = cases.iter().map(|case| case.queue).collect();
    for queue in queues {
        campus.network().run(|| fill(waiting, queue));
        waiting = queue;
        wait_for("the queue", PATIENCE, || {
            let listed = campus.ctl_json(&["queue", "list"]);
            (listed.as_array()?.len() as u64 == queue).then_some(())
        });
        let now: Vec<&Case> = cases.iter().filter(|case| case.queue == queue).collect();
        let start = Instant::now();
        let done = campus.network().run(|| hold_all(&now));
        println!("{queue} messages wait: {} sessions in {:?}", done.len(), start.elapsed());
        for (case, heard) in done {
            faults.extend(heard.differs(case));
        }
        for (case, steps) in explain_all(&campus, &now) {
            faults.extend(explained(&steps).differs(case));
            coverage.note(&steps);
        }
    }
    faults.extend(coverage.gaps());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    // Who is exempt is not asked; others were, of a real host.
    let log = campus.outside().log();
    for (address, asked) in [
        ("forged@example.org", true),
        ("forged@www.example.com", true),
        ("httpd@www.example.com", false),
        ("forged@norfc.example", false),
    ] {
        assert_eq!(log.contains(&format!("to=<{address}>")), asked, "{address}:\n{log}");
    }
    let log = campus.departments().log();
    for domain in ["phy.cam.ac.uk", "eng.cam.ac.uk"] {
        assert!(
            log.contains(&format!("rejected RCPT <gone@{domain}>: 550 5.1.1")),
            "{domain}:\n{log}"
        );
    }
    println!("{} cases, {} clauses", cases.len(), coverage.clauses.len());
}

/// What a client heard of a case.
struct Heard {
    /// As in the golden file.
    reply: String,
    took: Duration,
    /// How much of that is nobody's fault.
    grace: Duration,
}

impl Heard {
    /// What is not as the golden file has it.
    fn differs(&self, case: &Case) -> Option<String> {
        let wanted = if case.reply.starts_with("250") { "250" } else { &case.reply };
        let in_time = self.took >= case.delay && self.took <= case.delay + self.grace;
        (self.reply != wanted || !in_time).then(|| {
            format!(
                "cambridge.txt:{}: expected {wanted:?} after {:?}, heard {:?} after {:?}: {case:?}",
                case.line, case.delay, self.reply, self.took
            )
        })
    }
}

/// Holds a session for each case, several at once.
fn hold_all<'a>(cases: &[&'a Case]) -> Vec<(&'a Case, Heard)> {
    let mut by_client: BTreeMap<IpAddr, VecDeque<&Case>> = BTreeMap::new();
    for case in cases {
        by_client.entry(case.client).or_default().push_back(case);
    }
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for waiting in by_client.into_values() {
            let workers = waiting.len().min(SESSIONS);
            let waiting = Arc::new(Mutex::new(waiting));
            for _ in 0..workers {
                let (waiting, done) = (Arc::clone(&waiting), &done);
                scope.spawn(move || {
                    loop {
                        let Some(case) = waiting.lock().unwrap().pop_front() else { return };
                        let heard = hold(case);
                        done.lock().unwrap().push((case, heard));
                    }
                });
            }
        }
    });
    done.into_inner().unwrap()
}

/// Holds a session up to the reply to the last RCPT. A node under load turns strangers away, as it should;
/// they come again.
fn hold(case: &Case) -> Heard {
    let patience = Instant::now() + PATIENCE;
    loop {
        let start = Instant::now();
        match converse(case) {
            Ok(reply) => {
                let took = start.elapsed();
                return Heard { reply: normal(&reply), took, grace: LATE };
            }
            Err(error) if error.to_string().contains("too busy") && Instant::now() < patience => {
                thread::sleep(Duration::from_secs(1));
            }
            Err(error) => {
                let took = start.elapsed();
                return Heard { reply: error.to_string(), took, grace: LATE };
            }
        }
    }
}

fn converse(case: &Case) -> io::Result<Reply> {
    let mut client = connect(case)?;
    let mut reply = client.command(&format!("EHLO {}", case.helo))?;
    if let Some(user) = case.user.as_deref().filter(|_| reply.code == 250) {
        if reply.text.lines().any(|line| line.starts_with("AUTH") && line.contains("EXTERNAL")) {
            client.auth_external(user)?;
        } else {
            client.start_tls()?;
            reply = client.command(&format!("EHLO {}", case.helo))?;
            client.auth_plain(user, PASSWORD)?;
        }
    }
    if reply.code == 250 {
        reply = client.command(&format!("MAIL FROM:<{}>", case.sender))?;
    }
    if reply.code == 250 {
        // One that is refused leaves the others.
        for recipient in &case.recipients {
            reply = client.command(&format!("RCPT TO:<{recipient}>"))?;
        }
    }
    client.quit();
    Ok(reply)
}

fn connect(case: &Case) -> io::Result<Client> {
    let port = if case.service == "submission" { 587 } else { 25 };
    let server = SocketAddr::new(case.server, port);
    if case.client.is_ipv4() {
        return Client::connect_from(case.client, server);
    }
    // A client of another family comes through a balancer.
    let mut stream = tcp(Ipv4Addr::LOCALHOST.into(), PROXY)?;
    let IpAddr::V4(four) = case.server else { panic!("{case:?}") };
    let (client, server) = (case.client, four.to_ipv6_mapped());
    write!(stream, "PROXY TCP6 {client} {server} 40000 {port}\r\n")?;
    Client::over(stream)
}

/// A reply as the golden file has it: without enhanced codes, and without what Postfix puts before the text that it was
/// given.
fn normal(reply: &Reply) -> String {
    if reply.code == 250 {
        return "250".to_owned();
    }
    let lines: Vec<&str> = reply.text.lines().map(without_enhanced_code).collect();
    let text = format!("{} {}", reply.code, lines.join(" | "));
    let Some((before, after)) = text.split_once(">: Recipient address rejected: ") else {
        return text;
    };
    let address = before.rfind('<').unwrap();
    format!("{}{after}", &before[..address])
}

fn without_enhanced_code(line: &str) -> &str {
    let Some((code, text)) = line.split_once(' ') else { return line };
    let digits = code.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if digits && code.matches('.').count() == 2 { text } else { line }
}

/// Leaves messages for a host that is not there, until `to` wait.
fn fill(from: u64, to: u64) {
    if from == to {
        return;
    }
    let mut client = Client::connect_from(NICE, SMARTHOST).unwrap();
    client.ehlo().unwrap();
    for number in from..to {
        let text = format!("Subject: number {number}\r\n\r\nwaits\r\n");
        let reply = client.send("", &["r@dead.example.org"], text.as_bytes()).unwrap();
        assert_eq!(reply.code, 250, "{reply:?}");
    }
    client.quit();
}

/// The node's own account of each case.
fn explain_all<'a>(campus: &Campus, cases: &[&'a Case]) -> Vec<(&'a Case, Value)> {
    cases.iter().map(|case| (*case, explain(campus, case))).collect()
}

fn explain(campus: &Campus, case: &Case) -> Value {
    let (client, server) = (case.client.to_string(), case.server.to_string());
    let mut arguments = vec!["--json", "session", "--callout", "--client", &client];
    arguments.extend(["--server", &server, "--service", case.service]);
    if let Some(user) = &case.user {
        arguments.extend(["--auth", user]);
    }
    let mut child = campus
        .ppswctl(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut commands = format!("EHLO {}\nMAIL FROM:<{}>\n", case.helo, case.sender);
    for recipient in &case.recipients {
        let _ = writeln!(commands, "RCPT TO:<{recipient}>");
    }
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{case:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a client would have heard.
fn explained(steps: &Value) -> Heard {
    let steps = steps.as_array().unwrap();
    let lines = steps.last().unwrap()["reply"].as_array().unwrap();
    let lines: Vec<&str> = lines.iter().map(|line| line.as_str().unwrap()).collect();
    let code = lines[0][..3].parse().unwrap();
    let text: Vec<&str> = lines.iter().map(|line| &line[4..]).collect();
    let stages = steps.iter().flat_map(|step| step["stages"].as_array().unwrap());
    let delay = stages.map(|stage| stage["delay_ms"].as_u64().unwrap()).sum();
    Heard {
        reply: normal(&Reply { code, text: text.join("\n") }),
        took: Duration::from_millis(delay),
        grace: Duration::ZERO,
    }
}

/// How often the rules of the policy held and did not, by line.
struct Coverage {
    clauses: BTreeMap<u64, Clause>,
}

struct Clause {
    text: String,
    /// Without any, it always holds.
    conditional: bool,
    held: usize,
    failed: usize,
    /// How often each condition of its groups held.
    alternatives: BTreeMap<String, usize>,
}

impl Coverage {
    fn new(campus: &Campus) -> Self {
        let found = clauses(&campus.config().join("policy.kdl"));
        let fresh = |text| Clause {
            text,
            conditional: false,
            held: 0,
            failed: 0,
            alternatives: BTreeMap::new(),
        };
        Self { clauses: found.into_iter().map(|rule| (rule.line, fresh(rule.text))).collect() }
    }

    /// Takes in what a node says of a session.
    fn note(&mut self, steps: &Value) {
        for step in steps.as_array().unwrap() {
            for stage in step["stages"].as_array().unwrap() {
                self.note_rules(&stage["rules"]);
            }
        }
    }

    fn note_rules(&mut self, rules: &Value) {
        for rule in rules.as_array().unwrap() {
            let line = rule["line"].as_u64().unwrap();
            let clause = self.clauses.get_mut(&line).unwrap_or_else(|| panic!("no rule: {rule}"));
            let conditions = rule["conditions"].as_array().unwrap();
            clause.conditional |= !conditions.is_empty();
            // Conditions are asked up to the one that decides.
            match conditions.last().map_or("yes", |last| last["answer"].as_str().unwrap()) {
                "yes" => clause.held += 1,
                "no" => clause.failed += 1,
                _ => {}
            }
            for condition in conditions {
                for inner in condition["conditions"].as_array().unwrap() {
                    let text = inner["text"].as_str().unwrap().to_owned();
                    let held = clause.alternatives.entry(text).or_default();
                    *held += usize::from(inner["answer"] == "yes");
                }
            }
            conditions.iter().for_each(|condition| self.note_rules(&condition["rules"]));
        }
    }

    /// What no case shows.
    fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        for (line, clause) in &self.clauses {
            let Clause { text, conditional, held, failed, alternatives } = clause;
            if *held == 0 || *conditional && *failed == 0 {
                gaps.push(format!(
                    "policy.kdl:{line}: expected cases both ways, {held} held and {failed} did not: {text}"
                ));
            }
            let never = alternatives.iter().filter(|(_, held)| **held == 0);
            gaps.extend(never.map(|(inner, _)| {
                format!("policy.kdl:{line}: expected a case where {inner} holds: {text}")
            }));
        }
        gaps
    }
}
