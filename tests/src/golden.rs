//! The golden cases of `deploy/cambridge`, and the rules that they are cases of.

use std::{net::IpAddr, path::Path, time::Duration};

const CASES: &str = include_str!("../../node/src/policy/golden/cambridge.txt");
const VERBS: [&str; 7] = ["accept", "defer", "deny", "discard", "drop", "require", "warn"];

/// One message, and what becomes of its last recipient.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its line in `cambridge.txt`.
    pub line: usize,
    pub client: IpAddr,
    pub server: IpAddr,
    /// `smtp` or `submission`.
    pub service: &'static str,
    pub helo: String,
    pub user: Option<String>,
    pub sender: String,
    pub recipients: Vec<String>,
    /// Messages that wait.
    pub queue: u64,
    /// Code and text; lines are separated by ` | `.
    pub reply: String,
    /// Of all stages together.
    pub delay: Duration,
}

/// A rule of an ACL.
#[derive(Clone, Debug)]
pub struct Clause {
    /// Its line in `policy.kdl`.
    pub line: u64,
    pub text: String,
}

/// All cases, in their order.
pub fn cases() -> Vec<Case> {
    let lines: Vec<&str> = CASES.lines().collect();
    let is_case = |line: &str| !line.is_empty() && !line.starts_with(['#', ' ']);
    let found = lines.iter().enumerate().filter(|(_, line)| is_case(line));
    found.map(|(at, line)| case(at + 1, line, lines[at + 1].trim())).collect()
}

/// All rules of a policy's ACLs, in their order.
pub fn clauses(policy: &Path) -> Vec<Clause> {
    let text = std::fs::read_to_string(policy).unwrap();
    let mut in_acl = false;
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if !line.starts_with(' ') {
            in_acl = line.starts_with("acl ") || in_acl && !line.starts_with('}');
        }
        let rule = line.split("//").next().unwrap_or_default().trim();
        let verb = rule.split_whitespace().next().unwrap_or_default();
        if in_acl && VERBS.contains(&verb) {
            found.push(Clause { line: at as u64 + 1, text: rule.to_owned() });
        }
    }
    found
}

fn case(line: usize, words: &str, outcome: &str) -> Case {
    let mut words: Vec<&str> = words.split_whitespace().collect();
    let queue = words.pop_if(|word| word.starts_with("q="));
    let [client, server, helo, user, sender, recipients] = *words.as_slice() else {
        panic!("cambridge.txt:{line}: expected six words");
    };
    let bare = |text: &str| text.trim_matches(['<', '>']).to_owned();
    let (server, service) = match server.split_once('/') {
        Some((server, "587")) => (server, "submission"),
        _ => (server, "smtp"),
    };
    let (reply, delay) = match outcome.strip_suffix("s]").and_then(|rest| rest.split_once(" [")) {
        Some((reply, seconds)) => (reply, seconds.parse().unwrap()),
        None => (outcome, 0),
    };
    Case {
        line,
        client: client.parse().unwrap(),
        server: server.parse().unwrap(),
        service,
        helo: helo.to_owned(),
        user: (user != "-").then(|| user.to_owned()),
        sender: bare(sender),
        recipients: recipients.split(',').map(bare).collect(),
        queue: queue.map_or(0, |word| word[2..].parse().unwrap()),
        reply: reply.to_owned(),
        delay: Duration::from_secs(delay),
    }
}
