//! Measures what dead domains cost the others: `cargo run --release -p ppsw-tests --bin dead_domains -- [MESSAGES] [RUNS]`, after
//! `cargo build --release`. Its figures stand in docs/delivery.md.
//!
//! Fills the queue of three nodes with messages to 1,000 domains while nothing is delivered, then lets it go, and measures how long
//! the healthy domains take. In every other run ten of the domains are dead: five refuse connections, five take them and say
//! nothing. The healthy ones have hosts of their own names on ten addresses, each with an `smtp-sink`.

#![allow(clippy::disallowed_methods, reason = "a measurement uses the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement fails by panicking"
)]

use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    process::Command,
    time::{Duration, Instant},
};

use ppsw_tests::{client::Client, cluster::Cluster, hops, process::Guard, wait_for};

const MESSAGES: usize = 100_000;
const RUNS: usize = 3;
const BASE_PORT: u16 = 5_400;
const DOMAINS: usize = 1_000;
const DEAD: usize = 10;
const SINKS: usize = 10;
const SENDERS: usize = 12;
const PATIENCE: Duration = Duration::from_secs(600);

fn main() {
    let mut arguments = std::env::args().skip(1).map(|n| n.parse().expect("a number"));
    let messages = arguments.next().unwrap_or(MESSAGES);
    let runs = arguments.next().unwrap_or(RUNS);
    let mut cluster = Cluster::start(BASE_PORT);
    cluster.kill_sink();
    write_zone(&cluster);
    let port = cluster.node(1).smart.port();
    let _sinks: Vec<Guard> = (1..=SINKS).map(|number| sink(&cluster, number, port)).collect();

    // A cluster that has just been made is faster than it ever will be again: that does not count.
    println!("to begin with: {:.0} messages/s", measure(&cluster, messages, false));
    let mut rates: [Vec<f64>; 2] = Default::default();
    for run in 0..2 * runs {
        let dead = run % 2 == 1;
        let rate = measure(&cluster, messages, dead);
        let which = if dead { "10 of 1,000 domains dead" } else { "all 1,000 domains healthy" };
        println!("{which}: {rate:.0} messages/s to healthy domains");
        rates[usize::from(dead)].push(rate);
    }
    for rates in &mut rates {
        rates.sort_by(f64::total_cmp);
    }
    let median = |rates: &[f64]| rates[rates.len() / 2];
    let [without, with] = &rates;
    println!(
        "healthy domains, messages/s: {:.0} without dead ones (min {:.0}, max {:.0}), {:.0} with (min {:.0}, max {:.0}); \
         ratio {:.3}, n = {runs}",
        median(without),
        without[0],
        without[without.len() - 1],
        median(with),
        with[0],
        with[with.len() - 1],
        median(with) / median(without),
    );
}

/// Each domain has a host of its own; the last ones' are dead.
fn write_zone(cluster: &Cluster) {
    let mut lines = String::new();
    for number in 0..DOMAINS {
        let address = match DOMAINS - number {
            // Nobody there.
            left if left <= DEAD / 2 => format!("127.11.2.{left}"),
            left if left <= DEAD => format!("127.11.1.{}", left - DEAD / 2),
            _ => format!("127.11.0.{}", number % SINKS + 1),
        };
        writeln!(lines, "d{number} MX 10 m{number}\nm{number} A {address}").unwrap();
    }
    hops::add_to_zone(cluster, &lines, &format!("d{}", DOMAINS - 1));
}

fn sink(cluster: &Cluster, number: usize, port: u16) -> Guard {
    let mut command = Command::new("/usr/sbin/smtp-sink");
    command.args(["-u", "nobody", &format!("127.11.0.{number}:{port}"), "1000"]);
    Guard::spawn(&mut command, &cluster.dir().join(format!("smtp-sink-{number}.log")))
}

/// Messages a second to healthy domains.
fn measure(cluster: &Cluster, messages: usize, dead: bool) -> f64 {
    let domains = if dead { DOMAINS } else { DOMAINS - DEAD };
    let healthy = messages / DOMAINS * (DOMAINS - DEAD);
    let_go(cluster, false);
    fill(cluster, messages / DOMAINS, domains);
    let before = delivered(cluster);
    // Those that say nothing: connections wait in the kernel.
    let port = cluster.node(1).smart.port();
    let silent: Vec<TcpListener> = (1..=DEAD / 2)
        .map(|number| TcpListener::bind(format!("127.11.1.{number}:{port}")).unwrap())
        .collect();
    let begun = Instant::now();
    let_go(cluster, true);
    wait_for("the healthy domains", PATIENCE, || {
        (delivered(cluster) - before >= healthy as f64).then_some(())
    });
    let took = begun.elapsed().as_secs_f64();
    drop(silent);
    // What is left is for dead domains; nobody remembers them in the next run.
    wait_for("an empty queue", PATIENCE, || {
        cluster.ctl(&["queue", "retry", "--all"]);
        cluster.ctl(&["queue", "drop", "--all", "--reason", "measured"]);
        cluster.ctl_json(&["queue", "list"]).as_array()?.is_empty().then_some(())
    });
    healthy as f64 / took
}

/// By load, nothing is delivered, or everything.
fn let_go(cluster: &Cluster, goes: bool) {
    let path = cluster.dir().join("config/policy.kdl");
    let policy = fs::read_to_string(&path).unwrap();
    let (from, to) = ("queue_only_load 10000", "queue_only_load 0");
    let policy = if goes { policy.replace(to, from) } else { policy.replace(from, to) };
    assert!(policy.contains(if goes { from } else { to }));
    fs::write(&path, policy).unwrap();
    cluster.apply_config();
}

fn delivered(cluster: &Cluster) -> f64 {
    let of = |id| cluster.figure(id, "ppsw_delivery_attempts_total", "result=\"delivered\"");
    (1..=3).filter_map(of).sum()
}

/// So many messages for each of the domains, in turn, over all nodes.
fn fill(cluster: &Cluster, each: usize, domains: usize) {
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let address = cluster.node(sender as u64 % 3 + 1).smart;
            scope.spawn(move || {
                let content = format!("Subject: {sender}\r\n\r\n{}\r\n", "x".repeat(1_000));
                for number in 0..each {
                    let mut client = Client::connect(address).unwrap();
                    client.ehlo().unwrap();
                    for domain in (sender..domains).step_by(SENDERS) {
                        let to = format!("r{number}@d{domain}.example.org");
                        let reply = client.send("a@example.org", &[&to], content.as_bytes());
                        assert_eq!(reply.unwrap().code, 250);
                    }
                    client.quit();
                }
            });
        }
    });
}
