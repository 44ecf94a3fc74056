//! Disks that are full, slow, broken or read-only: nothing that was answered 250 is lost, and the cluster goes on.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{net::SocketAddr, time::Duration};

use ppsw_tests::{
    client::{Client, Reply},
    cluster::{Cluster, PATIENCE, http_get, http_status},
    load::{Load, Tally},
    process,
    shim::Shim,
    sink::ID_FIELD,
    tmpfs::Tmpfs,
    wait_for,
};
use rustix::process::Signal;

const RECIPIENTS: &[&str] = &["one@example.org", "two@example.org", "spqr1@hermes.cam.ac.uk"];
/// Failover, and 30 s of grace for what may have been in flight.
const ARRIVAL: Duration = Duration::from_secs(180);
const M: u64 = 1 << 20;
/// Exit code of a node whose disk has failed.
const EXIT_DISK: i32 = 74;

/// The disk of a small machine under a node: 256M, low below 64M, with small segments.
fn small_disk(cluster: &mut Cluster, node: u64) -> Tmpfs {
    cluster.kill(node);
    let disk = Tmpfs::over(&cluster.dir().join(format!("node-{node}/data")), 256 * M);
    cluster.configure(node, "check_spool_space = \"64M\"\nsegment_bytes = 8388608");
    cluster.restart(node);
    cluster.wait_ready(node);
    disk
}

fn wait_taken(load: &Load, count: usize) {
    let all = load.taken() + count;
    wait_for(&format!("{all} messages to be taken"), ARRIVAL, || {
        (load.taken() >= all).then_some(())
    });
}

fn all_arrived(cluster: &Cluster, tally: &Tally) {
    let mut maildir = cluster.maildir();
    wait_for("everything that was taken to arrive", ARRIVAL, || {
        let counts = maildir.counts();
        tally.taken.keys().all(|id| counts.contains_key(id)).then_some(())
    });
    println!("{} taken, all arrived; refused: {:?}", tally.taken.len(), tally.refused);
}

/// Sends one message; `None`: no answer.
fn send(address: SocketAddr, id: &str, bytes: usize) -> Option<Reply> {
    let mut client = Client::connect(address).ok()?;
    client.ehlo().ok()?;
    let line = "something to fill a disk with, seventy-eight bytes of it, and no more than\r\n";
    let content = format!("{ID_FIELD}: {id}\r\n\r\n{}", line.repeat(bytes / line.len() + 1));
    client.send("a@example.org", &["b@example.org"], content.as_bytes()).ok()
}

/// The answer to MAIL.
fn mail(address: SocketAddr, parameters: &str) -> Reply {
    let mut client = Client::connect(address).unwrap();
    client.ehlo().unwrap();
    client.command(&format!("MAIL FROM:<a@example.org>{parameters}")).unwrap()
}

fn is_full(reply: &Reply) -> bool {
    reply.code == 452 && reply.text.starts_with("4.3.1")
}

fn says_low(cluster: &Cluster, node: u64) -> bool {
    let ready = http_get(cluster.node(node).http, "/readyz");
    ready.is_some_and(|(status, text)| status == 503 && text.contains("disk low"))
}

fn runs(cluster: &Cluster, node: u64) -> bool {
    process::exists(cluster.node(node).pid)
}

#[test]
fn a_full_disk_of_one_node_stops_nobody_else() {
    let mut cluster = Cluster::start(3_100);
    let disk = small_disk(&mut cluster, 2);
    let others = [cluster.node(1).smart, cluster.node(3).smart];
    let load = Load::start(&others, 3, Duration::from_millis(20), RECIPIENTS);
    wait_taken(&load, 100);
    disk.fill(0);
    wait_for("node 2 to say so", PATIENCE, || says_low(&cluster, 2).then_some(()));
    let (_, status) = cluster.ctl(&["status"]);
    assert!(status.contains("disk low"), "{status}");

    // Its log has what was prepared (the rest of 64M, and 8M), and no more. Mail of other partitions uses that up. As a
    // leader it would have to wait for its own disk at last, so it takes no mail before that; the others do.
    let own = cluster.node(2).smart;
    let mut large = Vec::new();
    while !is_full(&mail(own, "")) {
        let id = format!("large-{}", large.len());
        assert_eq!(send(others[0], &id, M as usize).map(|reply| reply.code), Some(250));
        large.push(id);
        assert!(large.len() < 150, "node 2 has taken more than there was");
    }
    println!("node 2 refused mail after {} MiB from others", large.len());
    for n in 0..20 {
        let id = format!("more-{n}");
        assert_eq!(send(others[1], &id, M as usize).map(|reply| reply.code), Some(250));
        large.push(id);
    }
    wait_taken(&load, 200);
    assert!(runs(&cluster, 2), "node 2 ended");

    disk.empty();
    cluster.wait_ready(2);
    wait_for("node 2 to take mail", PATIENCE, || {
        send(own, "again", 10).filter(|reply| reply.code == 250)
    });
    let mut tally = load.stop();
    let now = std::time::SystemTime::now();
    tally.taken.extend(large.into_iter().chain(["again".to_owned()]).map(|id| (id, now)));
    all_arrived(&cluster, &tally);
}

#[test]
fn full_disks_of_two_nodes_refuse_mail_deliver_the_queue_and_recover() {
    let mut cluster = Cluster::start(3_200);
    let disks = [small_disk(&mut cluster, 2), small_disk(&mut cluster, 3)];
    cluster.wait_ready(1);
    let first = cluster.node(1).smart;

    // A message that would make the disks low is refused by its size, others are not.
    disks.iter().for_each(|disk| disk.fill(74 * M));
    wait_for("the size to matter", PATIENCE, || {
        is_full(&mail(first, " SIZE=20000000")).then_some(())
    });
    assert_eq!(mail(first, " SIZE=1000").code, 250);

    let mut tally = Tally::default();
    // Once, each node calls the sender back.
    for node in 1..=3 {
        let id = format!("first-{node}");
        assert_eq!(send(cluster.node(node).smart, &id, 10).unwrap().code, 250);
        tally.taken.insert(id, std::time::SystemTime::now());
    }
    process::signal(cluster.file.sink.pid, Signal::STOP);
    for n in 0..60 {
        let id = format!("waits-{n}");
        let address = cluster.node(n % 3 + 1).smart;
        assert_eq!(send(address, &id, 2000).unwrap().code, 250);
        tally.taken.insert(id, std::time::SystemTime::now());
    }
    disks.iter().for_each(|disk| disk.fill(0));
    for node in 1..=3 {
        let address = cluster.node(node).smart;
        wait_for("452", PATIENCE, || is_full(&mail(address, "")).then_some(()));
        assert!(says_low(&cluster, node), "node {node}");
    }
    // A node that starts with a full disk starts, votes and carries its replicas.
    cluster.kill(3);
    cluster.restart(3);
    wait_for("node 3 to live", PATIENCE, || {
        (http_status(cluster.node(3).http, "/livez") == Some(200)).then_some(())
    });
    cluster.kill(1);
    wait_for("nodes 2 and 3 to lead everything", PATIENCE, || {
        let leaders = cluster.leaders();
        leaders.iter().all(|(_, leader)| [2, 3].contains(leader)).then_some(())
    });
    cluster.restart(1);

    process::signal(cluster.file.sink.pid, Signal::CONT);
    all_arrived(&cluster, &tally);
    wait_for("an empty queue", ARRIVAL, || {
        cluster.ctl_json(&["queue", "list"]).as_array().unwrap().is_empty().then_some(())
    });
    assert!(is_full(&mail(cluster.node(2).smart, "")), "the disks are full still");

    let pids: Vec<u32> = (1..=3).map(|node| cluster.node(node).pid).collect();
    disks.iter().for_each(Tmpfs::empty);
    for node in 1..=3 {
        cluster.wait_ready(node);
        let address = cluster.node(node).smart;
        wait_for("250", PATIENCE, || send(address, "after", 10).filter(|reply| reply.code == 250));
    }
    assert!((1..=3).all(|node| runs(&cluster, node)), "a node ended: {pids:?}");
}

/// Puts a node under a shim.
fn shimmed(cluster: &mut Cluster, node: u64) -> Shim {
    cluster.kill(node);
    let dir = cluster.dir();
    let shim = Shim::new(&dir.join(format!("node-{node}/data")), &dir.join("shim"));
    cluster.restart_with(node, &shim.environment());
    cluster.wait_ready(node);
    shim
}

/// The last line that a node wrote.
fn last_line(cluster: &Cluster, node: u64) -> String {
    let text = std::fs::read_to_string(cluster.process_log(node)).unwrap();
    text.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_node_with_a_broken_disk_ends_with_a_reason_and_the_others_go_on() {
    let mut cluster = Cluster::start(3_300);
    let shim = shimmed(&mut cluster, 3);
    let others = [cluster.node(1).smart, cluster.node(2).smart];
    let load = Load::start(&others, 3, Duration::from_millis(20), RECIPIENTS);
    let cases = [
        ("fdatasync errno=EIO path=.seg", "syncing", "Input/output error"),
        ("pwritev errno=EIO part=100 path=.seg", "writing", "Input/output error"),
        ("all errno=EROFS", "writing", "Read-only file system"),
    ];
    for (rule, doing, says) in cases {
        wait_taken(&load, 50);
        shim.set(&[rule]);
        assert_eq!(cluster.wait_end(3), Some(EXIT_DISK), "{rule}");
        let line = last_line(&cluster, 3);
        println!("{rule}: {line}");
        for part in [doing, says, ".seg", "Look at the disk"] {
            assert!(line.contains(part), "{rule}: no {part:?} in {line:?}");
        }
        wait_for("another leader", PATIENCE, || {
            let leaders = cluster.leaders();
            leaders.iter().all(|(_, leader)| [1, 2].contains(leader)).then_some(())
        });
        wait_taken(&load, 50);
        // It says so again, at once, when it is started on the broken disk.
        cluster.restart_with(3, &shim.environment());
        assert_eq!(cluster.wait_end(3), Some(EXIT_DISK), "{rule}, at the start");
        let line = last_line(&cluster, 3);
        println!("{rule}, at the start: {line}");
        assert!(line.contains(says) && line.contains("Look at the disk"), "{rule}: {line:?}");
        shim.clear();
        cluster.restart_with(3, &shim.environment());
        cluster.wait_ready(3);
    }
    let tally = load.stop();
    all_arrived(&cluster, &tally);
}

/// The highest term of each partition's group.
fn terms(cluster: &Cluster) -> Vec<u64> {
    let status = cluster.ctl_json(&["status"]);
    let partitions = status["partitions"].as_array().unwrap();
    partitions.iter().map(|partition| partition["term"].as_u64().unwrap()).collect()
}

#[test]
fn a_slow_disk_delays_nobody_else_and_makes_no_elections() {
    let mut cluster = Cluster::start(3_400);
    let shim = shimmed(&mut cluster, 2);
    let others = [cluster.node(1).smart, cluster.node(3).smart];
    let load = Load::start(&others, 3, Duration::from_millis(20), RECIPIENTS);
    let slow = Load::start(&[cluster.node(2).smart], 2, Duration::from_millis(20), RECIPIENTS);
    wait_taken(&load, 100);
    let before = terms(&cluster);
    shim.set(&["fdatasync delay_ms=1000 path=.seg"]);
    std::thread::sleep(Duration::from_secs(3));
    let taken = load.taken();
    std::thread::sleep(Duration::from_secs(12));
    let rate = (load.taken() - taken) / 12;
    let after = terms(&cluster);
    println!("{rate} messages a second by the others; terms {before:?}, then {after:?}");
    assert!(rate >= 10, "only {rate} messages a second");
    for (before, after) in before.iter().zip(&after) {
        assert!(after - before <= 2, "terms {before:?}, then {after:?}");
    }
    assert!(runs(&cluster, 2), "node 2 ended");
    wait_taken(&slow, 5);
    // What was answered is on the disks of a majority, whatever the slow one has: without it nothing is missing.
    cluster.kill(2);
    wait_taken(&load, 50);
    shim.clear();
    cluster.restart_with(2, &shim.environment());
    cluster.wait_ready(2);
    let (tally, slow) = (load.stop(), slow.stop());
    all_arrived(&cluster, &tally);
    all_arrived(&cluster, &slow);
}
