//! Nodes leave, fall silent, and come back.

use std::time::Duration;

use ppsw_control::{
    client::{Credentials, Operator},
    finish_rejoin, join, rejoin,
};
use ppsw_proto::control as pb;
use ppsw_spool::queue::Outcome;

use crate::support::{Cluster, PATIENCE, free_address, start, try_start, until};

/// Voters of a group, sorted; 0 is the control group.
async fn voters(cluster: &Cluster, id: u32) -> Vec<u64> {
    let status = cluster.status().await;
    let group = status.partitions.iter().chain(&status.control).find(|group| group.id == id);
    let mut voters = group.map(|group| group.voters.clone()).unwrap_or_default();
    voters.sort_unstable();
    voters
}

async fn until_voters(cluster: &Cluster, id: u32, wanted: &[u64]) {
    until(&format!("group {id} has voters {wanted:?}"), async || {
        (voters(cluster, id).await == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leaves_and_its_queue_stays_until_it_is_empty() {
    let cluster = Cluster::start(3).await;
    let id = cluster.enqueue(3).await;
    let refused = cluster.remove(3, true).await.unwrap_err();
    assert!(refused.message().contains("node 3 answers"), "{refused}");
    assert!(cluster.remove(9, false).await.unwrap_err().message().contains("no node 9"));

    cluster.remove(3, false).await.unwrap();
    let told = tokio::time::timeout(PATIENCE, cluster.nodes[2].plane.removed()).await.unwrap();
    assert!(told.contains("node 3 was removed") && told.contains("it is old"), "{told}");
    cluster.until_gone(3).await;
    assert_eq!(voters(&cluster, 0).await, [1, 2]);
    let queued = cluster.listed(pb::QueueFilter::default()).await;
    assert_eq!((queued.len(), queued[0].id.as_str(), queued[0].partition), (1, id.as_str(), 3));
    let status = cluster.status().await;
    let orphan = status.partitions.iter().find(|p| p.id == 3).unwrap();
    assert!(orphan.orphaned && orphan.leader != 3 && orphan.voters.len() == 2, "{orphan:?}");
    assert!(status.removed.iter().any(|gone| gone.node == 3));

    // New mail goes elsewhere, also on the node that leads the orphan.
    let heir = orphan.leader;
    let other = cluster.enqueue(heir).await;
    let queued = cluster.listed(pb::QueueFilter::default()).await;
    let of_other = queued.iter().find(|item| item.id == other).unwrap();
    assert_ne!(of_other.partition, 3);

    let outcome = Outcome {
        message: id.parse().unwrap(),
        results: Vec::new(),
        finished: vec![0],
        creates: Vec::new(),
        warned: false,
        goes_on: false,
    };
    cluster.nodes[0].plane.forward_outcome(3, outcome, PATIENCE).await.unwrap();
    until("the partition is retired", async || {
        let known = cluster.status().await.partitions.iter().any(|p| p.id == 3);
        let carried = cluster.nodes[..2].iter().any(|n| n.plane.spool().get(3).is_some());
        (!known && !carried).then_some(())
    })
    .await;

    // It stays out, also when it starts again.
    cluster.nodes[2].plane.shutdown().await;
    let data = cluster.dir.path().join("node-3").join("data");
    let again = start(&data, cluster.addresses[2]).await;
    let told = tokio::time::timeout(PATIENCE, again.plane.removed()).await.unwrap();
    assert!(told.contains("node 3 was removed"), "{told}");
    again.plane.shutdown().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_loses_its_votes_and_gets_them_back() {
    let mut cluster = Cluster::start(3).await;
    let kept = cluster.enqueue(3).await;
    let request = pb::SetPlacementRequest { voters: 0, replace_after_ms: 5_000 };
    cluster.operator.admin().set_placement(request).await.unwrap();
    cluster.nodes[2].plane.shutdown().await;
    for group in 0..4 {
        until_voters(&cluster, group, &[1, 2]).await;
    }
    assert_eq!(cluster.status().await.nodes[2].state, "down");
    let while_away = cluster.enqueue(1).await;

    let data = cluster.dir.path().join("node-3").join("data");
    cluster.nodes[2] = start(&data, cluster.addresses[2]).await;
    cluster.until_home(3).await;
    until("ready", async || cluster.nodes[2].plane.not_ready().is_empty().then_some(())).await;
    let mut queued: Vec<String> =
        cluster.listed(pb::QueueFilter::default()).await.into_iter().map(|item| item.id).collect();
    queued.sort();
    let mut wanted = vec![kept, while_away];
    wanted.sort();
    assert_eq!(queued, wanted);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_replaced_for_good() {
    let cluster = Cluster::start(3).await;
    let id = cluster.enqueue(3).await;
    cluster.nodes[2].plane.shutdown().await;
    cluster.until_state(3, "down").await;
    let refused = cluster.remove(3, false).await.unwrap_err();
    assert!(refused.message().contains("use --force"), "{refused}");
    until("a new leader", async || cluster.remove(3, true).await.ok()).await;
    cluster.until_gone(3).await;
    let queued = cluster.listed(pb::QueueFilter::default()).await;
    assert_eq!((queued.len(), queued[0].id.as_str()), (1, id.as_str()));

    // With one of two voters down, nothing may go.
    cluster.nodes[1].plane.shutdown().await;
    cluster.until_state(2, "down").await;
    let refused = cluster.remove(2, true).await.unwrap_err();
    assert!(refused.message().contains("would lose its majority"), "{refused}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_its_log_comes_back_under_a_new_number() {
    let mut cluster = Cluster::start(3).await;
    let id = cluster.enqueue(2).await;
    cluster.nodes[1].plane.shutdown().await;
    let data = cluster.dir.path().join("node-2").join("data");
    std::fs::remove_dir_all(data.join("log")).unwrap();
    assert!(try_start(&data, cluster.addresses[1]).await.is_err());
    let new = until("let in again", async || {
        // Refused while the groups that it led have no leader.
        rejoin(&data, cluster.addresses[1]).await.ok()
    })
    .await;
    assert_eq!(new, 4);
    assert_eq!(finish_rejoin(&data).unwrap(), None);
    cluster.nodes[1] = start(&data, cluster.addresses[1]).await;
    cluster.until_gone(2).await;
    for group in [0, 1, 2, 3, 4] {
        until_voters(&cluster, group, &[1, 3, 4]).await;
    }
    until("ready", async || cluster.nodes[1].plane.not_ready().is_empty().then_some(())).await;
    let queued = cluster.listed(pb::QueueFilter::default()).await;
    assert_eq!((queued.len(), queued[0].id.as_str(), queued[0].partition), (1, id.as_str(), 2));
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.stop().await;
}

/// The founder is no special node: the others let it in again, and anybody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_node_can_be_lost_like_any_other() {
    let mut cluster = Cluster::start(3).await;
    let id = cluster.enqueue(1).await;
    cluster.nodes[0].plane.shutdown().await;
    let credentials = Credentials::load(&cluster.dir.path().join("admin")).unwrap();
    let second = cluster.addresses[1].to_string();
    cluster.operator = Operator::connect(&second, &credentials).await.unwrap();
    let data = cluster.dir.path().join("node-1").join("data");
    std::fs::remove_dir_all(data.join("log")).unwrap();
    let new = until("let in again", async || rejoin(&data, cluster.addresses[0]).await.ok()).await;
    assert_eq!(new, 4);

    cluster.nodes[0] = start(&data, cluster.addresses[0]).await;
    cluster.until_gone(1).await;
    until("ready", async || cluster.nodes[0].plane.not_ready().is_empty().then_some(())).await;
    let queued = cluster.listed(pb::QueueFilter::default()).await;
    assert_eq!((queued.len(), queued[0].id.as_str(), queued[0].partition), (1, id.as_str(), 1));

    let token = cluster.operator.create_token(Duration::from_secs(600)).await.unwrap();
    let other = cluster.dir.path().join("node-5").join("data");
    assert_eq!(join(&other, free_address(), &token, &second).await.unwrap(), 5);
    cluster.stop().await;
}
