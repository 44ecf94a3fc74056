//! Measures failover with real processes: `cargo run --release -p ppsw-tests --bin failover -- [KILLS]`, after
//! `cargo build --release`. Its figures stand in docs/reliability.md.
//!
//! Each round brings mail to one node while the sink stands still, so that some is on its way and some waits; kills that
//! node with SIGKILL, lets the sink go on, and looks when the others take over. Clients of the other nodes send all the
//! time.

#![allow(clippy::disallowed_methods, reason = "a measurement uses the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement fails by panicking"
)]

use std::{
    collections::HashSet,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use ppsw_tests::{
    client::Client,
    cluster::Cluster,
    ledger::all_arrived,
    load::{Load, Tally},
    process,
    sink::{Filed, ID_FIELD},
};
use rustix::process::Signal;

const KILLS: usize = 10;
/// More than a node has transactions with one destination: those beyond are not on their way at the kill.
const BACKLOG: usize = 60;
const RECIPIENT: &str = "one@example.org";
/// After this a round has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one kill cost, in seconds.
struct Round {
    /// Until another node leads the partition.
    leads: f64,
    /// Until a message of the partition is at the sink, brought by another node.
    delivers: f64,
    /// Until the first 250 of a surviving node.
    answers: f64,
    /// The longest time without a 250 for the clients of the surviving nodes, around the kill …
    pause: f64,
    /// … and in as long a time before it.
    pause_before: f64,
}

fn main() {
    let kills = std::env::args().nth(1).map_or(KILLS, |n| n.parse().expect("a number of kills"));
    let mut cluster = Cluster::start(3_500);
    let mut rounds = Vec::new();
    let mut promised = Tally::default();
    for round in 0..kills {
        let node = round as u64 % 3 + 1;
        rounds.push(kill(&mut cluster, round, node, &mut promised));
        cluster.restart(node);
        cluster.wait_ready(node);
    }
    let mut maildir = cluster.maildir();
    let duplicates = all_arrived(&promised, &mut maildir);
    println!("\nseconds, {kills} kills                              min   median      max");
    let print = |what: &str, of: fn(&Round) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        println!("{what:45} {:8.3} {:8.3} {:8.3}", all[0], all[all.len() / 2], all[all.len() - 1]);
    };
    print("kill to another leader of its partition", |r| r.leads);
    print("kill to first delivery by another node", |r| r.delivers);
    print("kill to first 250 of a surviving node", |r| r.answers);
    print("longest time without 250 around the kill", |r| r.pause);
    print("the same before the kill", |r| r.pause_before);
    println!(
        "{} messages taken, 0 lost, {} delivered twice",
        promised.taken.len(),
        duplicates.len()
    );
}

fn kill(cluster: &mut Cluster, round: usize, node: u64, promised: &mut Tally) -> Round {
    let others: Vec<u64> = (1..=3).filter(|id| *id != node).collect();
    let addresses: Vec<_> = others.iter().map(|id| cluster.node(*id).smart).collect();
    let name = format!("round-{round}");
    let load =
        Load::start_named(&name, &addresses, 4, Duration::from_millis(2), &["two@example.org"]);
    std::thread::sleep(Duration::from_secs(3));

    // Once, while the sink answers, the node calls the sender back.
    let mut backlog = bring(cluster.node(node).smart, round, "first", 1);
    let sink = cluster.file.sink.pid;
    process::signal(sink, Signal::STOP);
    backlog.extend(bring(cluster.node(node).smart, round, "backlog", BACKLOG));
    let (at, killed) = (SystemTime::now(), Instant::now());
    cluster.kill(node);
    process::signal(sink, Signal::CONT);

    let label = format!("group=\"{node}\"");
    let leads = until("a leader", || {
        let led = |id: &u64| cluster.figure(*id, "ppsw_raft_leading", &label) == Some(1.0);
        others.iter().any(led).then(|| killed.elapsed())
    });
    let mut maildir = cluster.maildir();
    let delivers = until("a delivery", || {
        let ours =
            |filed: &&Filed| filed.filed > at && filed.id().is_some_and(|id| backlog.contains(&id));
        let first = maildir.messages().filter(ours).map(|filed| filed.filed).min()?;
        first.duration_since(at).ok()
    });
    std::thread::sleep(Duration::from_secs(4).saturating_sub(killed.elapsed()));
    let tally = load.stop();
    let round = Round {
        leads: leads.as_secs_f64(),
        delivers: delivers.as_secs_f64(),
        answers: first_after(&tally, at),
        pause: longest_gap(&tally, at, at + Duration::from_secs(3)),
        pause_before: longest_gap(&tally, at - Duration::from_secs(3), at),
    };
    println!(
        "node {node} killed: led by another after {:.3} s, first delivery after {:.3} s, longest pause {:.3} s",
        round.leads, round.delivers, round.pause
    );
    promised.taken.extend(tally.taken);
    promised.taken.extend(backlog.into_iter().map(|id| (id, at)));
    round
}

/// Sends messages to a node; their ids.
fn bring(address: SocketAddr, round: usize, name: &str, count: usize) -> HashSet<String> {
    let mut client = Client::connect(address).unwrap();
    client.ehlo().unwrap();
    let send = |number| {
        let id = format!("{name}-{round}-{number}");
        let content = format!("{ID_FIELD}: {id}\r\nSubject: {number}\r\n\r\nx\r\n");
        let reply = client.send("a@example.org", &[RECIPIENT], content.as_bytes()).unwrap();
        (reply.code == 250).then_some(id)
    };
    let taken: HashSet<String> = (0..count).filter_map(send).collect();
    assert!(taken.len() > count / 2, "{} of {count} were taken", taken.len());
    taken
}

fn until<T>(what: &str, mut question: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "after {PATIENCE:?} still waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn first_after(tally: &Tally, at: SystemTime) -> f64 {
    let after = tally.taken.values().filter_map(|taken| taken.duration_since(at).ok());
    after.min().map_or(f64::INFINITY, |first| first.as_secs_f64())
}

/// The longest time between two 250 of which the second is in this span.
fn longest_gap(tally: &Tally, from: SystemTime, to: SystemTime) -> f64 {
    let mut times: Vec<SystemTime> = tally.taken.values().copied().filter(|at| *at <= to).collect();
    times.push(to);
    times.sort();
    let pairs = times.windows(2).filter(|pair| pair[1] >= from);
    let gaps = pairs.filter_map(|pair| pair[1].duration_since(pair[0]).ok());
    gaps.max().map_or(f64::INFINITY, |gap| gap.as_secs_f64())
}
