//! Three nodes in one process on loopback, with real logs, real Raft groups and real TLS.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ppsw_control::{
    NodeHooks, Plane, PlaneOptions,
    client::{Credentials, Operator},
    init, join,
};
use ppsw_proto::control as pb;
use ppsw_spool::{
    PartitionId,
    env::{SystemClock, SystemDisk, UnixMs},
    group::Timing,
    queue::{Envelope, Outcome, Recipient},
};
use tonic::Code;

/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Hooks {
    draining: AtomicBool,
    transactions: AtomicUsize,
    attempts: AtomicUsize,
}

impl NodeHooks for Hooks {
    fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::SeqCst);
    }

    fn open_transactions(&self) -> usize {
        self.transactions.load(Ordering::SeqCst)
    }

    fn attempts_in_flight(&self, _: PartitionId) -> usize {
        self.attempts.load(Ordering::SeqCst)
    }
}

struct Node {
    plane: Plane,
    hooks: Arc<Hooks>,
}

struct Cluster {
    dir: tempfile::TempDir,
    addresses: Vec<SocketAddr>,
    nodes: Vec<Node>,
    operator: Operator,
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn start(data: &Path, listen: SocketAddr) -> Node {
    let hooks = Arc::new(Hooks::default());
    let options = PlaneOptions {
        data: data.to_owned(),
        listen,
        http: Some(SocketAddr::from(([127, 0, 0, 1], 2580))),
        timing: Timing::default(),
        segment_bytes: 8 << 20,
        cache_bytes: 4 << 20,
    };
    let (disk, clock) = (Arc::new(SystemDisk), Arc::new(SystemClock));
    let plane = Plane::start(options, disk, clock, Arc::clone(&hooks) as _).await.unwrap();
    Node { plane, hooks }
}

/// Asks until the answer is as wanted.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Cluster {
    /// `init`, then `join` with one token, and all partitions at home with all their voters.
    async fn start(nodes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addresses: Vec<SocketAddr> = (0..nodes).map(|_| free_address()).collect();
        let data = |node: usize| dir.path().join(format!("node-{node}")).join("data");
        let (admin, viewer) = (dir.path().join("admin"), dir.path().join("viewer"));
        init(&data(1), addresses[0], &admin, &viewer).await.unwrap();
        let mut running = vec![start(&data(1), addresses[0]).await];
        let credentials = Credentials::load(&admin).unwrap();
        let peer = addresses[0].to_string();
        let operator = Operator::connect(&peer, &credentials).await.unwrap();
        let token =
            until("a token", async || operator.create_token(Duration::from_secs(600)).await.ok())
                .await;
        for node in 2..=nodes {
            let address = addresses[node - 1];
            assert_eq!(join(&data(node), address, &token, &peer).await.unwrap(), node as u64);
            running.push(start(&data(node), address).await);
        }
        let cluster = Self { dir, addresses, nodes: running, operator };
        cluster.until_home(nodes).await;
        cluster
    }

    async fn status(&self) -> pb::StatusReply {
        self.operator.status().await.unwrap()
    }

    async fn until_home(&self, nodes: usize) {
        until("every partition at home with all its voters", async || {
            let status = self.status().await;
            let control = status.control.unwrap();
            let home = status
                .partitions
                .iter()
                .all(|p| p.leader == u64::from(p.id) && p.voters.len() == nodes.min(3));
            (status.partitions.len() == nodes && home && control.voters.len() == nodes)
                .then_some(())
        })
        .await;
    }

    async fn until_state(&self, node: u64, state: &str) {
        until(&format!("node {node} is {state}"), async || {
            let status = self.status().await;
            status
                .nodes
                .iter()
                .any(|n| n.member.as_ref().unwrap().id == node && n.state == state)
                .then_some(())
        })
        .await;
    }

    async fn drain(&self, node: u64, force: bool) -> Result<(), tonic::Status> {
        self.operator.admin().drain(pb::DrainRequest { node, force }).await.map(|_| ())
    }

    async fn undrain(&self, node: u64) {
        self.operator.admin().undrain(pb::UndrainRequest { node }).await.unwrap();
    }

    async fn listed(&self, filter: pb::QueueFilter) -> Vec<pb::QueueItem> {
        let request = pb::QueueRequest { filter: Some(filter) };
        let mut pages = self.operator.admin().queue(request).await.unwrap().into_inner();
        let mut items = Vec::new();
        while let Some(page) = pages.message().await.unwrap() {
            assert!(page.silent.is_empty(), "all nodes are up");
            items.extend(page.items);
        }
        items
    }

    async fn stop(self) {
        for node in &self.nodes {
            node.plane.shutdown().await;
        }
    }
}

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
