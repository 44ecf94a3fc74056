//! Three nodes in one process on loopback, with real logs, real Raft groups and real TLS; `ppswctl` as a program.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod leaving;
mod ppswctl;
mod support;
mod versions;

use std::{sync::atomic::Ordering, time::Duration};

use ppsw_control::{
    client::{Credentials, Operator},
    join,
};
use ppsw_proto::control as pb;
use ppsw_spool::{
    env::UnixMs,
    queue::{Envelope, Outcome, Recipient},
};
use tonic::Code;

use support::{Cluster, PATIENCE, free_address, start, try_start, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_forms_drains_and_goes_home_again() {
    let cluster = Cluster::start(3).await;
    until("all ready", async || {
        cluster.nodes.iter().all(|n| n.plane.not_ready().is_empty()).then_some(())
    })
    .await;

    let second = &cluster.nodes[1];
    second.hooks.transactions.store(1, Ordering::SeqCst);
    cluster.drain(2, false).await.unwrap();
    cluster.drain(2, false).await.unwrap();
    cluster.until_state(2, "draining").await;
    until("told the node", async || second.hooks.draining.load(Ordering::SeqCst).then_some(()))
        .await;
    assert!(second.plane.draining() && !second.plane.not_ready().is_empty());
    let refused = cluster.drain(3, false).await.unwrap_err();
    assert!(refused.message().contains("node 2 is drained already"), "{refused}");
    second.hooks.attempts.store(1, Ordering::SeqCst);
    second.hooks.transactions.store(0, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let led = cluster.status().await.partitions.iter().find(|p| p.id == 2).unwrap().leader;
    assert_eq!(led, 2, "not while an attempt is in flight");
    second.hooks.attempts.store(0, Ordering::SeqCst);
    cluster.until_state(2, "drained").await;
    let status = cluster.status().await;
    assert!(status.partitions.iter().all(|p| p.leader != 2), "{status:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(cluster.status().await.partitions.iter().all(|p| p.leader != 2), "stays away");

    cluster.undrain(2).await;
    cluster.until_home(3).await;
    until("told the node", async || (!second.hooks.draining.load(Ordering::SeqCst)).then_some(()))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_survives_a_restart_and_mail_stays() {
    let mut cluster = Cluster::start(3).await;
    let mut writer = cluster.nodes[2].plane.spool().begin(PATIENCE).await.unwrap();
    writer.write(b"Subject: x\r\n\r\nhello\r\n").await.unwrap();
    let envelope = Envelope {
        sender: "spqr1@hermes.cam.ac.uk".to_owned(),
        recipients: vec![Recipient { address: "a@example.org".to_owned(), ..Recipient::default() }],
        received: UnixMs(1_790_000_000_000),
        ..Envelope::default()
    };
    let id = writer.accept(envelope, PATIENCE).await.unwrap();

    cluster.drain(3, false).await.unwrap();
    cluster.until_state(3, "drained").await;
    let list = cluster
        .listed(pb::QueueFilter { domain: "example.org".to_owned(), ..Default::default() })
        .await;
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].id.as_str(), list[0].partition), (id.to_string().as_str(), 3));
    assert_ne!(list[0].node, 3);
    assert_eq!(list[0].expires_ms, 1_790_000_000_000 + 5 * 24 * 3_600_000);

    // An outcome of the drained node finds the partition's new leader.
    let outcome = Outcome {
        message: id,
        results: Vec::new(),
        finished: vec![0],
        creates: Vec::new(),
        warned: false,
        goes_on: false,
    };
    cluster.nodes[2].plane.forward_outcome(3, outcome, PATIENCE).await.unwrap();
    assert!(cluster.listed(pb::QueueFilter::default()).await.is_empty());

    cluster.nodes[2].plane.shutdown().await;
    cluster.until_state(3, "down").await;
    let data = cluster.dir.path().join("node-3").join("data");
    cluster.nodes[2] = start(&data, cluster.addresses[2]).await;
    assert!(cluster.nodes[2].hooks.draining.load(Ordering::SeqCst), "from the first moment on");
    cluster.until_state(3, "drained").await;
    assert!(cluster.nodes[2].plane.draining());
    cluster.undrain(3).await;
    cluster.until_home(3).await;
    until("ready", async || cluster.nodes[2].plane.not_ready().is_empty().then_some(())).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_and_tokens_open_only_what_they_are_for() {
    let cluster = Cluster::start(1).await;
    let address = cluster.addresses[0].to_string();
    let viewer = Credentials::load(&cluster.dir.path().join("viewer")).unwrap();
    let viewer = Operator::connect(&address, &viewer).await.unwrap();
    assert_eq!(viewer.status().await.unwrap().nodes.len(), 1);
    let refused = viewer.create_token(Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = cluster.drain(1, false).await.unwrap_err();
    assert!(refused.message().contains("no other node can take partition 1"), "{refused}");

    // Another cluster: its credentials and tokens are worth nothing here.
    let other = Cluster::start(1).await;
    let theirs = Credentials::load(&other.dir.path().join("admin")).unwrap();
    assert!(Operator::connect(&address, &theirs).await.is_err());
    let token = other.operator.create_token(Duration::from_secs(60)).await.unwrap();
    let data = cluster.dir.path().join("late").join("data");
    let error = join(&data, free_address(), &token, &address).await.unwrap_err().to_string();
    assert!(error.contains("the secret was not sent"), "{error}");

    // A revoked token, and a made-up secret.
    let token = cluster.operator.create_token(Duration::from_secs(60)).await.unwrap();
    let tokens = cluster.operator.admin().list_tokens(pb::ListTokensRequest {}).await.unwrap();
    for token in tokens.into_inner().tokens {
        let request = pb::DropTokenRequest { id: token.id };
        cluster.operator.admin().drop_token(request).await.unwrap();
    }
    let error = join(&data, free_address(), &token, &address).await.unwrap_err().to_string();
    assert!(error.contains("revoked"), "{error}");
    other.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_changes_something_sees_it_at_the_same_node_at_once() {
    // The sixth has no vote in the control group: it asks one of the others each second.
    let cluster = Cluster::start(6).await;
    let credentials = Credentials::load(&cluster.dir.path().join("admin")).unwrap();
    let mut known = None;
    for node in [1, 6, 2, 6, 5, 6] {
        let address = cluster.addresses[node - 1].to_string();
        let operator = Operator::connect(&address, &credentials).await.unwrap();
        operator.create_token(Duration::from_secs(600)).await.unwrap();
        let tokens = operator.admin().list_tokens(pb::ListTokensRequest {}).await.unwrap();
        let seen = tokens.into_inner().tokens.len();
        assert_eq!(seen, known.map_or(seen, |known| known + 1), "node {node}");
        known = Some(seen);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_starts_again_but_not_without_its_log() {
    let mut cluster = Cluster::start(3).await;
    for node in &cluster.nodes {
        node.plane.shutdown().await;
    }
    for node in 0..3 {
        let data = cluster.dir.path().join(format!("node-{}", node + 1)).join("data");
        cluster.nodes[node] = start(&data, cluster.addresses[node]).await;
    }
    cluster.until_home(3).await;
    until("all ready", async || {
        cluster.nodes.iter().all(|n| n.plane.not_ready().is_empty()).then_some(())
    })
    .await;
    cluster.nodes[1].plane.shutdown().await;
    let data = cluster.dir.path().join("node-2").join("data");
    std::fs::remove_dir_all(data.join("log")).unwrap();
    let error = try_start(&data, cluster.addresses[1]).await.err().unwrap().to_string();
    assert!(error.contains("ppswd rejoin"), "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fourth_node_takes_replicas_over() {
    let cluster = Cluster::start(4).await;
    // Partition 2 went from nodes 2, 3, 1 to 2, 3, 4; partition 3 from 3, 1, 2 to 3, 4, 1.
    until("replicas that are not wanted are gone", async || {
        let gone =
            |node: usize, partition| cluster.nodes[node - 1].plane.spool().get(partition).is_none();
        (gone(1, 2) && gone(2, 3)).then_some(())
    })
    .await;
    let status = cluster.status().await;
    let voters = |id: u32| {
        let mut voters = status.partitions.iter().find(|p| p.id == id).unwrap().voters.clone();
        voters.sort_unstable();
        voters
    };
    assert_eq!((voters(2), voters(3), voters(4)), (vec![2, 3, 4], vec![1, 3, 4], vec![1, 2, 4]));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sixth_node_follows_without_a_vote_in_the_control_group() {
    let cluster = Cluster::start(6).await;
    let control = cluster.status().await.control.unwrap();
    assert_eq!(control.voters, [1, 2, 3, 4, 5]);
    cluster.drain(6, false).await.unwrap();
    cluster.until_state(6, "drained").await;
    cluster.undrain(6).await;
    cluster.until_home(6).await;
    cluster.stop().await;
}
