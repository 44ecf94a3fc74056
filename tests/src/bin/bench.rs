//! Compares ppswitch with other mail servers in one run: `cargo run --release -p ppsw-tests --bin bench -- [CASE...]`, after
//! `cargo build --release`. Its figures stand in docs/performance.md.
//!
//! Each case loads ppswitch and its peers in turn, as often as is wanted, after a run of each that does not count. Ratios are of
//! neighbours in time: machines drift.

#![allow(clippy::disallowed_methods, reason = "a measurement uses the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement fails by panicking"
)]

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, time::Duration};

use clap::{Parser, ValueEnum};
use ppsw_tests::{
    bench::{
        Bare, Beside, Content, DOMAIN, Exim, Latencies, Load, MEMORY_LOOK, Nodes, OpenSmtpd,
        Postfix, Run, Sender, Server, Syncs, run, smtp_sink,
    },
    process::Guard,
};

/// Messages of the first run, which says how many make a run of the wanted length.
const FIRST: usize = 300;
/// Of loads that go on for a time.
const FIRST_SECONDS_MAX: f64 = 10.0;
/// Messages of a run: bounds what a disk holds meanwhile.
const MESSAGES_MAX: usize = 400_000;
const BYTES_MAX: usize = 4 << 30;
/// Last octet of the address of the first bare node.
const BARE_FIRST: u8 = 11;

#[derive(Parser)]
#[command(about = "Compares ppswitch with other mail servers in one run")]
struct Arguments {
    /// Cases, by the beginning of their names; all of them if there is none
    cases: Vec<String>,
    /// Says which cases there are, and does nothing
    #[arg(long)]
    list: bool,
    /// Runs that count, of each server
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How long a run is, about
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Other servers
    #[arg(long, value_delimiter = ',', default_value = "postfix")]
    peers: Vec<Peer>,
    /// Nodes of the cluster, instead of what the case has
    #[arg(long)]
    nodes: Option<usize>,
    /// Lets the nodes' logs use each of their files once before the first case, as after a day
    #[arg(long, conflicts_with = "full")]
    aged: bool,
    /// Measures ppswitch alone, with an empty queue and with so many messages of 1 KiB in it
    #[arg(long)]
    full: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    None,
    Postfix,
    Exim,
    Opensmtpd,
    /// No mail server: what the machine allows
    Bare,
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    nodes: usize,
    /// How much longer each sync takes, for all servers.
    slower_us: u64,
    delivers: bool,
    sessions: usize,
    many: bool,
    bytes: usize,
    recipients: usize,
    client: Client,
    beside: Option<Beside>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    Source,
    Closed,
    Tls,
    /// Messages a second.
    Open(u32),
    /// Messages a second for each node, and so many sessions.
    OpenEach(u32),
}

const fn accept(name: &'static str, sessions: usize, many: bool, bytes: usize) -> Case {
    Case {
        name,
        nodes: 3,
        slower_us: 0,
        delivers: false,
        sessions,
        many,
        bytes,
        recipients: 1,
        client: Client::Source,
        beside: None,
    }
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

const CASES: &[Case] = &[
    accept("accept-4k-1-one", 1, false, 4 * KIB),
    accept("accept-4k-10-one", 10, false, 4 * KIB),
    accept("accept-4k-1-many", 1, true, 4 * KIB),
    accept("accept-4k-10-many", 10, true, 4 * KIB),
    accept("accept-4k-50-many", 50, true, 4 * KIB),
    accept("accept-4k-100-many", 100, true, 4 * KIB),
    accept("accept-64k-50-many", 50, true, 64 * KIB),
    accept("accept-1m-10-many", 10, true, MIB),
    Case { recipients: 50, ..accept("accept-4k-10-many-fifty", 10, true, 4 * KIB) },
    Case { client: Client::Closed, ..accept("latency-4k-50", 50, true, 4 * KIB) },
    Case { client: Client::Open(1_000), ..accept("latency-4k-50-at-1000", 50, true, 4 * KIB) },
    Case { client: Client::Open(300), ..accept("latency-4k-20-at-300", 20, true, 4 * KIB) },
    Case {
        client: Client::Open(300),
        beside: Some(Beside { sessions: 50, bytes: 95 * MIB }),
        ..accept("beside-95m", 20, true, 4 * KIB)
    },
    Case { client: Client::Tls, ..accept("tls-4k-50-many", 50, true, 4 * KIB) },
    Case { client: Client::Tls, ..accept("tls-4k-50-one", 50, false, 4 * KIB) },
    Case { delivers: true, ..accept("relay-4k-10-one", 10, false, 4 * KIB) },
    Case { delivers: true, ..accept("relay-4k-10-many", 10, true, 4 * KIB) },
    Case { delivers: true, ..accept("relay-4k-50-many", 50, true, 4 * KIB) },
    Case { delivers: true, ..accept("relay-64k-10-many", 10, true, 64 * KIB) },
    Case {
        delivers: true,
        client: Client::Open(200),
        ..accept("steady-4k-at-200", 20, true, 4 * KIB)
    },
    // For each node: with more of them, the load grows.
    Case { delivers: true, client: Client::OpenEach(60), ..accept("scale-4k", 5, true, 4 * KIB) },
    Case { nodes: 1, ..accept("alone-4k-50-many", 50, true, 4 * KIB) },
    Case { slower_us: 2_000, ..accept("slow-4k-100-many", 100, true, 4 * KIB) },
];

fn main() {
    let arguments = Arguments::parse();
    let wanted = |case: &&Case| {
        let named = arguments.cases.iter().any(|name| case.name.starts_with(name.as_str()));
        named || arguments.cases.is_empty()
    };
    let cases: Vec<Case> = CASES
        .iter()
        .filter(wanted)
        .map(|case| Case { nodes: arguments.nodes.unwrap_or(case.nodes), ..*case })
        .collect();
    assert!(!cases.is_empty(), "no such case: --list says which there are");
    if arguments.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return;
    }
    // A cluster for those that need the same one.
    for cases in
        cases.chunk_by(|one, other| (one.nodes, one.slower_us) == (other.nodes, other.slower_us))
    {
        match arguments.full {
            Some(messages) => full(cases, messages, &arguments),
            None => group(cases, &arguments),
        }
    }
}

/// Cases with an empty queue, with a full one, and with one that is empty again: a machine may have another speed by then.
fn full(cases: &[Case], messages: usize, arguments: &Arguments) {
    let dir = tempfile::Builder::new().prefix("ppswitch-bench-").tempdir().unwrap();
    let syncs = Syncs::new(dir.path(), cases[0].slower_us);
    let mut nodes = Nodes::start(cases[0].nodes, &syncs);
    let sink = smtp_sink(nodes.sink(), dir.path());
    let measured = |nodes: &mut Nodes| -> Vec<Vec<Run>> {
        let runs = |case| alternate(&mut [&mut *nodes], case, arguments, &syncs, &sink).remove(0);
        cases.iter().map(runs).collect()
    };
    let empty = measured(&mut nodes);
    let begun = std::time::Instant::now();
    nodes.fill(messages, KIB);
    println!("{messages} messages in {:.0} s", begun.elapsed().as_secs_f64());
    let filled = measured(&mut nodes);
    nodes.clear();
    let again = measured(&mut nodes);
    for (number, case) in cases.iter().enumerate() {
        let (empty, filled, again) = (&empty[number], &filled[number], &again[number]);
        let full = format!("{messages} messages in it");
        let names = ["an empty queue".to_owned(), full, "empty again".to_owned()];
        report(case, &names, &[empty.clone(), filled.clone(), again.clone()]);
        let rate = |runs: &[Run]| middle(runs.iter().map(|run| run.relayed).collect());
        let without = rate(&[&empty[..], &again[..]].concat());
        println!("with {messages} messages: {:.2} of the rate without", rate(filled) / without);
    }
}

/// Cases of one cluster.
fn group(cases: &[Case], arguments: &Arguments) {
    let dir = tempfile::Builder::new().prefix("ppswitch-bench-").tempdir().unwrap();
    // Peers run as users of their own.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let syncs = Syncs::new(dir.path(), cases[0].slower_us);
    let mut nodes = Nodes::start(cases[0].nodes, &syncs);
    if arguments.aged {
        nodes.age();
    }
    let sink_address = nodes.sink();
    let sink = smtp_sink(sink_address, dir.path());
    let address = |number: u8| SocketAddr::from(([127, 12, 0, number], 2_525));
    let mut servers: Vec<Box<dyn Server>> = vec![Box::new(nodes)];
    for peer in &arguments.peers {
        servers.push(match peer {
            Peer::None => continue,
            Peer::Postfix => Box::new(Postfix::new(dir.path(), address(1), sink_address, &syncs)),
            Peer::Exim => Box::new(Exim::new(dir.path(), address(2), sink_address, &syncs)),
            Peer::Opensmtpd => {
                Box::new(OpenSmtpd::new(dir.path(), address(3), sink_address, &syncs))
            }
            Peer::Bare => {
                let of =
                    |number| (address(number), SocketAddr::from(([127, 12, 1, number], 2_526)));
                let count = u8::try_from(cases[0].nodes).unwrap();
                let all = (BARE_FIRST..BARE_FIRST + count).map(of).collect();
                Box::new(Bare::new(dir.path(), all, &syncs))
            }
        });
    }
    for case in cases {
        let simple = !case.delivers && case.client != Client::Tls && case.beside.is_none();
        let mut all: Vec<&mut dyn Server> = Vec::new();
        for server in servers.iter_mut().filter(|server| simple || !server.only_takes()) {
            all.push(&mut **server);
        }
        let names: Vec<String> = all.iter().map(|server| server.name()).collect();
        let runs = alternate(&mut all, case, arguments, &syncs, &sink);
        report(case, &names, &runs);
    }
}

/// A case on all servers in turn: the runs of each that count. One before says how long they are.
fn alternate(
    servers: &mut [&mut dyn Server],
    case: &Case,
    arguments: &Arguments,
    syncs: &Syncs,
    sink: &Guard,
) -> Vec<Vec<Run>> {
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); servers.len()];
    let mut loads: Vec<Load> = servers.iter().map(|_| first(case, arguments)).collect();
    for number in 0..=arguments.runs {
        for ((server, load), runs) in servers.iter_mut().zip(&mut loads).zip(&mut runs) {
            let run = run(&mut **server, load, syncs, case.delivers.then_some(sink));
            if number == 0 {
                load.messages = enough(case, run.relayed * arguments.seconds);
                load.sender = sender(case, arguments.seconds);
            } else {
                runs.push(run);
            }
        }
    }
    runs
}

/// The load of the run that does not count.
fn first(case: &Case, arguments: &Arguments) -> Load {
    let sender = sender(case, arguments.seconds.min(FIRST_SECONDS_MAX));
    let sessions = match case.client {
        Client::OpenEach(_) => case.sessions * case.nodes,
        _ => case.sessions,
    };
    let content = Content { bytes: case.bytes, recipients: case.recipients, domain: DOMAIN };
    let messages = FIRST.min(BYTES_MAX / 8 / case.bytes);
    let Case { many, beside, .. } = *case;
    Load { sender, sessions, messages, many, content, beside }
}

fn sender(case: &Case, seconds: f64) -> Sender {
    let time = Duration::from_secs_f64(seconds);
    match case.client {
        Client::Source => Sender::Source,
        Client::Closed => Sender::Closed { time, tls: false },
        Client::Tls => Sender::Closed { time, tls: true },
        Client::Open(per_second) => Sender::Open { time, per_second },
        Client::OpenEach(rate) => Sender::Open { time, per_second: rate * case.nodes as u32 },
    }
}

fn enough(case: &Case, messages: f64) -> usize {
    (messages as usize).clamp(case.sessions, MESSAGES_MAX.min(BYTES_MAX / case.bytes))
}

fn report(case: &Case, names: &[String], runs: &[Vec<Run>]) {
    println!("\n## {}\n", case.name);
    println!(
        "| server | messages/s taken, min / **median** / max | end to end | p50 / p99 / p99.9 ms | CPU ms a message | written per byte of mail (of that, mail logs) | syncs a message | MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (name, runs) in names.iter().zip(runs) {
        let per = |of: &dyn Fn(&Run) -> f64| middle(runs.iter().map(of).collect());
        let cpu = per(&|run| run.cost.cpu.as_secs_f64() * 1e3 / run.messages as f64);
        let written = per(&|run| run.cost.written_bytes as f64 / run.bytes as f64);
        let logs = per(&|run| run.log_bytes as f64 / run.bytes as f64);
        let syncs = per(&|run| run.cost.syncs as f64 / run.messages as f64);
        let memory = per(&|run| run.cost.memory_bytes as f64 / MIB as f64);
        let relayed = if case.delivers { spread(runs, |run| run.relayed) } else { "-".to_owned() };
        println!(
            "| {name} | {} | {relayed} | {} | {cpu:.3} | {written:.2} ({logs:.2}) | {syncs:.3} | {memory:.0} |",
            spread(runs, |run| run.taken),
            latencies(runs),
        );
    }
    for (name, runs) in names.iter().zip(runs) {
        let seen: Vec<u64> =
            runs.iter().flat_map(|run| &run.memory).map(|bytes| bytes >> 20).collect();
        if !seen.is_empty() {
            println!("memory of {name}, MiB each {MEMORY_LOOK:?}: {seen:?}");
        }
    }
    println!();
    for (name, peer) in names.iter().zip(runs).skip(1) {
        let ratios = |of: fn(&Run) -> f64| {
            let mut all: Vec<f64> =
                runs[0].iter().zip(peer).map(|(ours, theirs)| of(ours) / of(theirs)).collect();
            all.sort_by(f64::total_cmp);
            format!(
                "min {:.2}, median {:.2}, max {:.2}",
                all[0],
                middle(all.clone()),
                all[all.len() - 1]
            )
        };
        println!("ratio to {name}, taken: {}; n = {}", ratios(|run| run.taken), peer.len());
        if case.delivers {
            println!("ratio to {name}, end to end: {}", ratios(|run| run.relayed));
        }
        println!(
            "ratio to {name}, CPU a message: {}",
            ratios(|run| run.cost.cpu.as_secs_f64() / run.messages as f64)
        );
        if runs[0][0].latencies.is_some() {
            println!("ratio to {name}, p99: {}", ratios(|run| per_mille(run, 990)));
        }
    }
}

/// Of all runs, for one that is neither lucky nor not.
fn latencies(runs: &[Run]) -> String {
    if runs[0].latencies.is_none() {
        return "-".to_owned();
    }
    let of = |rank| middle(runs.iter().map(|run| per_mille(run, rank)).collect());
    format!("{:.2} / {:.2} / {:.2}", of(500), of(990), of(999))
}

/// In milliseconds.
fn per_mille(run: &Run, rank: usize) -> f64 {
    let of = |all: &Latencies| all.per_mille(rank).as_secs_f64() * 1e3;
    run.latencies.as_ref().map_or(0.0, of)
}

fn spread(runs: &[Run], of: fn(&Run) -> f64) -> String {
    let mut all: Vec<f64> = runs.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    format!("{:.0} / **{:.0}** / {:.0}", all[0], middle(all.clone()), all[all.len() - 1])
}

fn middle(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}
