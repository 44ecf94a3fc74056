//! Nodes are killed: nothing that was answered 250 is lost.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use ppsw_tests::{
    client::Client,
    cluster::Cluster,
    ledger::{ARRIVAL, all_arrived, check_duplicates, harm},
    load::Load,
    sink::{ID_FIELD, Maildir},
    wait_for,
};
use serde_json::Value;

const RECIPIENTS: &[&str] =
    &["one@example.org", "spqr1@hermes.cam.ac.uk", "two@example.org", "spqr2@hermes.cam.ac.uk"];
/// Kills a node under load. Gives an upper bound of what was in flight then.
fn kill_under_load(
    cluster: &mut Cluster,
    load: &Load,
    maildir: &mut Maildir,
    node: u64,
) -> HashSet<String> {
    let in_flight = harm(load, maildir, || cluster.kill(node));
    println!(
        "node {node} killed after {} messages, at most {} in flight",
        load.taken(),
        in_flight.len()
    );
    in_flight
}

/// Waits for messages to be taken, while the load goes on.
fn wait_taken(load: &Load, count: usize) {
    wait_for(&format!("{count} messages to be taken"), Duration::from_secs(300), || {
        (load.taken() >= count).then_some(())
    });
}

#[test]
fn nothing_is_lost_when_nodes_are_killed_under_load() {
    let mut cluster = Cluster::start(2_700);
    let mut maildir = cluster.maildir();
    let addresses: Vec<_> = cluster.file.nodes.iter().map(|node| node.smart).collect();
    let load = Load::start(&addresses, 4, Duration::from_millis(30), RECIPIENTS);
    let mut in_flight = HashSet::new();

    wait_taken(&load, 600);
    in_flight.extend(kill_under_load(&mut cluster, &load, &mut maildir, 2));
    wait_taken(&load, load.taken() + 500);
    cluster.restart(2);
    cluster.wait_ready(2);
    wait_taken(&load, load.taken() + 300);
    in_flight.extend(kill_under_load(&mut cluster, &load, &mut maildir, 3));
    wait_taken(&load, load.taken() + 500);
    cluster.restart(3);
    cluster.wait_ready(3);
    wait_taken(&load, 2_000.max(load.taken() + 100));

    let tally = load.stop();
    let duplicates = all_arrived(&tally, &mut maildir);
    println!(
        "{} taken, {} in doubt, refused: {:?}; all that was taken arrived; {} came twice: {duplicates:?}",
        tally.taken.len(),
        tally.in_doubt.len(),
        tally.refused,
        duplicates.len()
    );
    assert!(
        duplicates.len() <= in_flight.len(),
        "{} duplicates, {} in flight",
        duplicates.len(),
        in_flight.len()
    );
    check_duplicates(&duplicates, &in_flight);
}

#[test]
fn without_a_majority_a_node_takes_no_mail_and_recovers_by_itself() {
    let mut cluster = Cluster::start(2_800);
    let smart = cluster.node(1).smart;
    let send = |client: &mut Client| {
        client.send(
            "a@example.org",
            &["b@example.org"],
            format!("{ID_FIELD}: c\r\n\r\nx\r\n").as_bytes(),
        )
    };
    cluster.kill(2);
    cluster.kill(3);

    let mut client = Client::connect(smart).unwrap();
    client.ehlo().unwrap();
    let start = Instant::now();
    let reply = send(&mut client).unwrap();
    println!("without a majority: {} {} after {:?}", reply.code, reply.text, start.elapsed());
    assert_eq!(reply.code, 451, "{reply:?}");
    assert!(reply.text.starts_with("4.3.0"), "{reply:?}");
    let pid = cluster.node(1).pid;
    assert!(ppsw_tests::process::exists(pid), "node 1 ended");

    cluster.restart(2);
    let taken = wait_for("the first 250 with a majority again", Duration::from_secs(120), || {
        let mut client = Client::connect(smart).ok()?;
        client.ehlo().ok()?;
        send(&mut client).ok().filter(|reply| reply.code == 250)
    });
    println!("{} {}", taken.code, taken.text);
    assert_eq!(cluster.node(1).pid, pid);
    assert!(ppsw_tests::process::exists(pid), "node 1 ended");
    let mut maildir = cluster.maildir();
    wait_for("the message", ARRIVAL, || maildir.counts().contains_key("c").then_some(()));
}

/// What a restart must not change, by message id.
fn queue(cluster: &Cluster) -> BTreeMap<String, [Value; 4]> {
    let list = cluster.ctl_json(&["queue", "list"]);
    let list = list.as_array().expect("queue list is an array");
    list.iter()
        .map(|message| {
            let kept =
                ["received", "next_retry", "expires", "recipients"].map(|key| message[key].clone());
            (message["id"].as_str().unwrap().to_owned(), kept)
        })
        .collect()
}

/// Every recipient was tried, and nothing is due within the next minutes.
fn settled(queue: &BTreeMap<String, [Value; 4]>, messages: usize) -> bool {
    let tried = |recipients: &Value| {
        recipients.as_array().is_some_and(|recipients| {
            recipients
                .iter()
                .all(|recipient| !recipient["last_error"].as_str().unwrap_or_default().is_empty())
        })
    };
    queue.len() == messages
        && queue
            .values()
            .all(|[_, next_retry, _, recipients]| next_retry.is_string() && tried(recipients))
}

#[test]
fn the_queue_survives_a_kill_of_all_nodes_at_once() {
    const MESSAGES: usize = 150;
    let mut cluster = Cluster::start(2_900);
    cluster.kill_sink();
    for number in 0..MESSAGES {
        let node = u64::try_from(number).unwrap() % 3 + 1;
        let mut client = Client::connect(cluster.node(node).smart).unwrap();
        client.ehlo().unwrap();
        let content = format!("{ID_FIELD}: wait-{number}\r\n\r\nx\r\n");
        let reply = client
            .send("a@example.org", &[RECIPIENTS[number % RECIPIENTS.len()]], content.as_bytes())
            .unwrap();
        assert_eq!(reply.code, 250, "{reply:?}");
        client.quit();
    }
    let before = wait_for("a first attempt for every message", ARRIVAL, || {
        Some(queue(&cluster)).filter(|queue| settled(queue, MESSAGES))
    });

    for node in 1..=3 {
        ppsw_tests::process::signal(cluster.node(node).pid, rustix::process::Signal::KILL);
    }
    for node in 1..=3 {
        cluster.kill(node);
    }
    for node in 1..=3 {
        cluster.restart(node);
    }
    for node in 1..=3 {
        cluster.wait_ready(node);
    }
    let after = queue(&cluster);
    assert_eq!(before.len(), after.len());
    for (id, kept) in &before {
        assert_eq!(after.get(id), Some(kept), "message {id} changed");
    }
    println!(
        "{} messages waited; ages, retry times, attempts and errors are as they were",
        after.len()
    );
}
