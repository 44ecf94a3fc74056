//! The cluster grows, shrinks, and loses machines for good, under load: nothing that was answered 250 is lost.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use ppsw_tests::{cluster::Cluster, load::Load, wait_for};
use serde_json::Value;

const RECIPIENTS: &[&str] = &["one@example.org", "spqr1@hermes.cam.ac.uk"];
/// One change of the members, with all the replicas that it moves, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(240);
/// Failover, and 30 s of grace for what may have been in flight.
const ARRIVAL: Duration = Duration::from_secs(180);
/// Exit codes of `ppswd run`.
const REMOVED: i32 = 77;
const DAMAGED: i32 = 65;

fn numbers(value: &Value) -> Vec<u64> {
    let mut all: Vec<u64> = value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    all.sort_unstable();
    all
}

fn status(cluster: &Cluster) -> Option<Value> {
    let (code, text) = cluster.ctl(&["--json", "status"]);
    (code == 0).then(|| serde_json::from_str(&text).unwrap())
}

/// These are the members; every partition with a home is led there, and has all its voters.
fn wait_members(cluster: &Cluster, members: &[u64], voters: usize) {
    let what = format!("members {members:?}, each leading its partition with {voters} voters");
    let mut last = String::new();
    wait_for(&what, PATIENCE, || {
        let status = status(cluster)?;
        let ids: Vec<u64> =
            status["nodes"].as_array().unwrap().iter().map(|n| n["id"].as_u64().unwrap()).collect();
        let groups = status["partitions"].as_array().unwrap();
        let good = |group: &&Value| {
            let carriers = numbers(&group["voters"]);
            let home = group["orphaned"] == true || group["leader"] == group["id"];
            home && carriers.len() == voters && carriers.iter().all(|n| members.contains(n))
        };
        let control = numbers(&status["control"]["voters"]);
        let homes = members.iter().all(|id| groups.iter().any(|g| g["id"] == *id));
        let done = ids == members && homes && control == members && groups.iter().all(|g| good(&g));
        let now = status.to_string();
        if !done && now != last {
            println!("{now}");
            last = now;
        }
        done.then_some(())
    });
}

fn more(load: &Load, count: usize) {
    let goal = load.taken() + count;
    wait_for(&format!("{count} more messages"), PATIENCE, || (load.taken() >= goal).then_some(()));
}

fn remove(cluster: &Cluster, node: u64, force: bool) {
    let id = node.to_string();
    let mut line = vec!["node", "remove", &id, "--reason", "a test", "--timeout", "4m"];
    if force {
        line.push("--force");
    }
    let (code, text) = cluster.ctl(&line);
    println!("{}", text.trim_end());
    assert_eq!(code, 0, "{text}");
}

/// All that was taken has arrived, and the queue is empty, also that of partitions whose home has left.
fn all_arrived(cluster: &Cluster, load: Load) -> usize {
    let tally = load.stop();
    let mut maildir = cluster.maildir();
    wait_for("all mail that was taken", ARRIVAL, || {
        let counts = maildir.counts();
        let missing = tally.taken.keys().filter(|id| !counts.contains_key(*id)).count();
        (missing == 0).then_some(())
    });
    println!(
        "{} taken, {} in doubt, refused: {:?}",
        tally.taken.len(),
        tally.in_doubt.len(),
        tally.refused
    );
    wait_for("an empty queue", ARRIVAL, || {
        let queue = cluster.ctl_json(&["queue", "list"]);
        queue.as_array().unwrap().is_empty().then_some(())
    });
    maildir.counts().values().filter(|count| **count > 1).count()
}

#[test]
fn it_grows_to_five_and_shrinks_to_one_under_load() {
    let mut cluster = Cluster::start_with(3_300, &["--nodes", "1"]);
    let first = [cluster.node(1).smart];
    let load = Load::start(&first, 3, Duration::from_millis(30), RECIPIENTS);
    more(&load, 50);
    for (number, voters) in [(2_u64, 2), (3, 3), (4, 3), (5, 3)] {
        assert_eq!(cluster.join(number), number);
        let members: Vec<u64> = (1..=number).collect();
        wait_members(&cluster, &members, voters);
        more(&load, 30);
    }
    cluster.ctl_json(&["placement", "set", "--voters", "5"]);
    wait_members(&cluster, &[1, 2, 3, 4, 5], 5);
    // Mail that only the others have when their nodes are gone.
    let others: Vec<_> = [4, 5].map(|id| cluster.node(id).smart).into();
    let theirs = Load::start(&others, 2, Duration::from_millis(30), RECIPIENTS);
    more(&theirs, 50);
    cluster.ctl_json(&["placement", "set", "--voters", "3"]);
    for (leaves, members, voters) in
        [(5_u64, &[1_u64, 2, 3, 4][..], 3), (4, &[1, 2, 3], 3), (3, &[1, 2], 2), (2, &[1], 1)]
    {
        remove(&cluster, leaves, false);
        assert_eq!(cluster.wait_end(leaves), Some(REMOVED));
        let log = std::fs::read_to_string(cluster.node_dir(leaves).join("log/process.log"));
        assert!(log.unwrap().contains("was removed from the cluster by"), "says why it ended");
        wait_members(&cluster, members, voters);
        more(&load, 30);
    }
    let told = theirs.stop();
    let mut maildir = cluster.maildir();
    wait_for("the mail of nodes that left", ARRIVAL, || {
        let counts = maildir.counts();
        told.taken.keys().all(|id| counts.contains_key(id)).then_some(())
    });
    all_arrived(&cluster, load);
    wait_for("partitions without a home are retired", ARRIVAL, || {
        let status = status(&cluster)?;
        (status["partitions"].as_array().unwrap().len() == 1).then_some(())
    });
    let (code, text) = cluster.ctl(&["node", "remove", "1", "--reason", "too many"]);
    assert!(code == 1 && text.contains("the last one"), "{code} {text}");
    // It was removed, and stays out.
    cluster.restart(3);
    assert_eq!(cluster.wait_end(3), Some(REMOVED));
}

#[test]
fn machines_that_die_are_replaced_under_load() {
    let mut cluster = Cluster::start(3_400);
    cluster.ctl_json(&["placement", "set", "--replace-after", "10s"]);
    let addresses: Vec<_> = cluster.file.nodes.iter().map(|node| node.smart).collect();
    let load = Load::start(&addresses, 2, Duration::from_millis(30), RECIPIENTS);
    more(&load, 100);

    // One that stays away for a while loses its votes, gets them back, and its partition too.
    cluster.kill(2);
    wait_for("node 2 to lose its votes", PATIENCE, || {
        let status = status(&cluster)?;
        let groups = status["partitions"].as_array().unwrap();
        let without = |group: &Value| numbers(&group["voters"]) == [1, 3];
        (groups.iter().all(without) && without(&status["control"])).then_some(())
    });
    more(&load, 100);
    cluster.restart(2);
    wait_members(&cluster, &[1, 2, 3], 3);
    cluster.wait_ready(2);
    more(&load, 50);

    // One that never comes back is replaced by another machine.
    cluster.kill(3);
    assert_eq!(cluster.join(4), 4);
    wait_for("node 3 to be missed", PATIENCE, || {
        let status = status(&cluster)?;
        (status["nodes"][2]["state"] == "down").then_some(())
    });
    let refused = cluster.ctl(&["node", "remove", "3", "--reason", "dead"]);
    assert!(refused.0 == 1 && refused.1.contains("use --force"), "{refused:?}");
    wait_for("others to lead what node 3 led", PATIENCE, || {
        let leaders = cluster.leaders();
        leaders.iter().all(|(_, leader)| *leader != 0 && *leader != 3).then_some(())
    });
    remove(&cluster, 3, true);
    wait_members(&cluster, &[1, 2, 4], 3);
    more(&load, 50);

    // One that has lost its log comes back under a new number by itself; the second time it asks for a look.
    cluster.kill(2);
    let log = cluster.node_dir(2).join("data/log");
    std::fs::remove_dir_all(&log).unwrap();
    wait_for("others to lead what node 2 led", PATIENCE, || {
        let leaders = cluster.leaders();
        leaders.iter().all(|(_, leader)| *leader != 0 && *leader != 2).then_some(())
    });
    std::fs::create_dir(&log).unwrap();
    cluster.restart(2);
    wait_members(&cluster, &[1, 4, 5], 3);
    cluster.renumber(2, 5);
    cluster.wait_ready(5);
    more(&load, 50);

    let twice = all_arrived(&cluster, load);
    println!("{twice} messages came twice");

    cluster.kill(5);
    std::fs::remove_dir_all(&log).unwrap();
    cluster.restart(5);
    assert_eq!(cluster.wait_end(5), Some(DAMAGED));
    let told = std::fs::read_to_string(cluster.node_dir(5).join("log/process.log")).unwrap();
    assert!(told.contains("ppswd rejoin") && told.contains("log.aside-2"), "{told}");
}
