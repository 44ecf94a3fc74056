//! Checkpoints that end before what has been applied, as those of partitions do: for a replica that lags while it
//! runs, for a node with a new number, and while the membership changes.

use super::*;

/// So many of the last entries are never in a checkpoint.
const LEAVES: u64 = 40;

fn leave_some(cluster: &Cluster) {
    for node in cluster.nodes.iter().flatten() {
        node.tape.leaves.store(LEAVES, Ordering::Relaxed);
    }
}

async fn say_many(cluster: &Cluster, id: NodeId, prefix: &str, count: usize) {
    for n in 0..count {
        cluster.say(id, &format!("{prefix}-{n}")).await.unwrap();
    }
}

fn purged(cluster: &Cluster, id: NodeId) -> Option<u64> {
    cluster.group(id).status().purged_index
}

/// All have the same, each entry once.
fn assert_same(cluster: &Cluster, ids: &[NodeId]) {
    let all: Vec<_> = ids.iter().map(|id| cluster.node(*id).tape.entries()).collect();
    let once: BTreeSet<_> = all[0].iter().collect();
    assert_eq!(once.len(), all[0].len(), "an entry was applied twice");
    assert!(all.iter().all(|entries| *entries == all[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lags_while_it_runs_takes_a_trimmed_checkpoint() {
    let mut cluster = Cluster::of_three().await;
    leave_some(&cluster);
    cluster.lead(1).await;
    say_many(&cluster, 1, "before", 60).await;
    cluster.until_all_have("before-59").await;
    cluster.net.cut_off(3);
    say_many(&cluster, 1, "away", 200).await;
    until("2 has all", || cluster.node(2).tape.has("away-199")).await;
    let lags = cluster.group(3).status().applied_index;
    cluster.group(2).checkpoint().await.unwrap();
    until("2 has purged", || purged(&cluster, 2) > lags).await;
    cluster.lead(2).await;
    let end = cluster.group(2).status().applied_index;
    let checkpoint = purged(&cluster, 2);
    assert!(checkpoint.is_some_and(|upto| Some(upto + LEAVES) <= end), "{checkpoint:?} {end:?}");
    cluster.net.mend();
    say_many(&cluster, 2, "after", 60).await;
    cluster.until_all_have("after-59").await;
    assert_eq!(cluster.node(3).tape.restored.load(Ordering::Relaxed), 1);
    assert_same(&cluster, &[1, 2, 3]);
    // It leads with what it has, and a restart finds the same.
    cluster.lead(3).await;
    cluster.say(3, "end").await.unwrap();
    cluster.until_all_have("end").await;
    cluster.stop(3).await;
    cluster.start(3).await;
    cluster.until_all_have("end").await;
    assert_same(&cluster, &[1, 2, 3]);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_new_number_takes_a_trimmed_checkpoint_while_traffic_runs() {
    let mut cluster = Cluster::of_three().await;
    leave_some(&cluster);
    cluster.lead(1).await;
    say_many(&cluster, 1, "before", 200).await;
    cluster.until_all_have("before-199").await;
    cluster.group(1).checkpoint().await.unwrap();
    until("1 has purged", || purged(&cluster, 1).is_some()).await;
    // Its number is new, and so is its disk.
    cluster.stop(3).await;
    cluster.start(4).await;
    leave_some(&cluster);
    let talker = {
        let group = cluster.group(1).clone();
        tokio::spawn(async move {
            for n in 0..200 {
                say(&group, &format!("meanwhile-{n}")).await.unwrap();
            }
        })
    };
    cluster.group(1).add_voter(4, 20 * SECOND).await.unwrap();
    cluster.group(1).remove_voter(3, 20 * SECOND).await.unwrap();
    talker.await.unwrap();
    cluster.say(1, "end").await.unwrap();
    cluster.until_all_have("end").await;
    assert_eq!(cluster.node(4).tape.restored.load(Ordering::Relaxed), 1);
    assert_same(&cluster, &[1, 2, 4]);
    cluster.lead(4).await;
    cluster.say(4, "leads").await.unwrap();
    cluster.until_all_have("leads").await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_membership_changes_while_prefixes_are_dropped() {
    let mut cluster = Cluster::of_three().await;
    cluster.start(4).await;
    cluster.start(5).await;
    leave_some(&cluster);
    cluster.lead(1).await;
    let ends = Arc::new(AtomicBool::new(false));
    let talker = {
        let (group, ends) = (cluster.group(1).clone(), ends.clone());
        tokio::spawn(async move {
            let mut n = 0;
            while !ends.load(Ordering::Relaxed) {
                say(&group, &format!("n-{n}")).await.unwrap();
                n += 1;
            }
        })
    };
    let trimmers: Vec<_> = (1..=NODES)
        .map(|id| {
            let (group, ends) = (cluster.group(id).clone(), ends.clone());
            tokio::spawn(async move {
                while !ends.load(Ordering::Relaxed) {
                    group.checkpoint().await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        })
        .collect();
    let group = cluster.group(1);
    until("trimmed", || purged(&cluster, 1).is_some()).await;
    for (add, remove) in [(4, 2), (5, 3)] {
        group.add_voter(add, 20 * SECOND).await.unwrap();
        let before = purged(&cluster, 1);
        until("trimmed again", || purged(&cluster, 1) > before).await;
        group.remove_voter(remove, 20 * SECOND).await.unwrap();
    }
    assert_eq!(group.status().voters, [1, 4, 5]);
    let before = purged(&cluster, 1);
    until("trimmed at last", || purged(&cluster, 1) > before).await;
    ends.store(true, Ordering::Relaxed);
    talker.await.unwrap();
    for trimmer in trimmers {
        trimmer.await.unwrap();
    }
    cluster.say(1, "end").await.unwrap();
    for id in [4, 5] {
        until("it has the end", || cluster.node(id).tape.has("end")).await;
    }
    assert_same(&cluster, &[1, 4, 5]);

    // Started again they know the membership of now, whatever the checkpoint had.
    cluster.stop_all().await;
    for id in [1, 4, 5] {
        cluster.start(id).await;
    }
    let leader = cluster.leader().await;
    cluster.say(leader, "again").await.unwrap();
    cluster.until_all_have("again").await;
    assert_eq!(cluster.group(leader).status().voters, [1, 4, 5]);
    assert_same(&cluster, &[1, 4, 5]);
    cluster.stop_all().await;
}
