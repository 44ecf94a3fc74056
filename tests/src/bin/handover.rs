//! Measures how long `ppswctl drain` takes with a long queue: `cargo run --release -p ppsw-tests --bin handover --
//! [MESSAGES] [DRAINS]`, after `cargo build --release`. Its figures stand in docs/reliability.md.
//!
//! Fills node 1 while nothing can be delivered, then drains and undrains it, again and again. A drain is measured as
//! its operator sees it: from the start of `ppswctl` to its end, with "safe to stop".

#![allow(clippy::disallowed_methods, reason = "a measurement uses the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement fails by panicking"
)]

use std::time::{Duration, Instant};

use ppsw_tests::{client::Client, cluster::Cluster, process, wait_for};

const MESSAGES: usize = 100_000;
const DRAINS: usize = 10;
const SENDERS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(300);

fn main() {
    let mut arguments = std::env::args().skip(1).map(|n| n.parse().expect("a number"));
    let messages = arguments.next().unwrap_or(MESSAGES);
    let drains = arguments.next().unwrap_or(DRAINS);
    let mut cluster = Cluster::start(3_500);
    cluster.kill_sink();
    let begun = Instant::now();
    fill(&cluster, messages);
    println!("{messages} messages taken in {:.1} s", begun.elapsed().as_secs_f64());
    let bytes = process::resident_bytes(cluster.node(1).pid) >> 20;
    println!("node 1 has {bytes} MiB resident");

    let queued = |partition_leader: u64| {
        let sum = cluster.figure(partition_leader, "ppsw_queue_messages", "partition=\"1\"");
        sum.unwrap_or_default()
    };
    let mut times = Vec::new();
    for _ in 0..drains {
        let begun = Instant::now();
        let (code, text) = cluster.ctl(&["drain", "1"]);
        times.push(begun.elapsed().as_secs_f64());
        assert!(code == 0 && text.contains("safe to stop"), "{text}");
        let leaders = cluster.leaders();
        let (_, leader) = leaders.iter().find(|(partition, _)| *partition == 1).unwrap();
        assert!([2, 3].contains(leader), "{leaders:?}");
        println!(
            "drained in {:.3} s; node {leader} leads it, {} queued there",
            times[times.len() - 1],
            queued(*leader)
        );
        assert_eq!(cluster.ctl(&["undrain", "1"]).0, 0);
        wait_for("node 1 to lead its partition again", PATIENCE, || {
            cluster.leaders().contains(&(1, 1)).then_some(())
        });
    }
    times.sort_by(f64::total_cmp);
    println!(
        "ppswctl drain with {messages} messages queued: min {:.3} s, median {:.3} s, max {:.3} s, n = {drains}",
        times[0],
        times[times.len() / 2],
        times[times.len() - 1]
    );
}

/// Brings messages to node 1, none of which can be delivered.
fn fill(cluster: &Cluster, messages: usize) {
    let address = cluster.node(1).smart;
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let share = messages / SENDERS + usize::from(sender < messages % SENDERS);
            scope.spawn(move || {
                let mut left = share;
                while left > 0 {
                    let mut client = Client::connect(address).unwrap();
                    client.ehlo().unwrap();
                    for _ in 0..left.min(50) {
                        let content =
                            format!("Subject: {sender} {left}\r\n\r\n{}\r\n", "x".repeat(60));
                        let to = format!("r{left}@d{sender}.example.org");
                        let reply = client.send("a@example.org", &[&to], content.as_bytes());
                        assert_eq!(reply.unwrap().code, 250);
                        left -= 1;
                    }
                    client.quit();
                }
            });
        }
    });
}
