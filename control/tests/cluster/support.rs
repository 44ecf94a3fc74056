//! Nodes in this process, and what every test asks of them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use ppsw_control::{
    CompileError, Compiled, NodeHooks, Plane, PlaneError, PlaneOptions, Rehearsal, Wanted,
    client::{Credentials, Operator},
    init, join,
    versions::Files,
};
use ppsw_proto::control as pb;
use ppsw_spool::{
    PartitionId,
    env::{SystemClock, SystemDisk, UnixMs},
    group::Timing,
    queue::{Envelope, MessageId, Partition, Recipient},
};

/// Longer than anything here may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) draining: AtomicBool,
    pub(crate) transactions: AtomicUsize,
    pub(crate) attempts: AtomicUsize,
    pub(crate) tables: Arc<Mutex<Option<Tables>>>,
    /// A file with this text is refused here.
    pub(crate) dislikes: Mutex<Option<String>>,
}

/// Files by path: a configuration as far as the control plane sees it. A line is an entry.
#[derive(Clone)]
pub(crate) struct Tables {
    pub(crate) files: BTreeMap<String, String>,
    runs: Arc<Mutex<Option<Self>>>,
}

#[async_trait]
impl Compiled for Tables {
    fn tables(&self) -> Vec<(String, u64)> {
        self.files.iter().map(|(path, text)| (path.clone(), text.lines().count() as u64)).collect()
    }

    fn bytes(&self) -> u64 {
        self.files.values().map(|text| text.len() as u64).sum()
    }

    async fn objections(&self) -> Vec<String> {
        let open = self.files.values().any(|text| text.contains("relay for all"));
        open.then(|| "it relays for everybody".to_owned()).into_iter().collect()
    }

    fn look_up(&self, table: &str, key: &str) -> Option<pb::GetReply> {
        let text = self.files.get(table)?;
        let found = text.lines().filter(|line| *line == key);
        let found = found.map(|line| pb::get_reply::Match {
            how: "line".to_owned(),
            key: line.to_owned(),
            ..Default::default()
        });
        Some(pb::GetReply { found: found.collect(), ..Default::default() })
    }

    fn activate(&self) {
        *self.runs.lock().unwrap() = Some(self.clone());
    }
}

#[async_trait]
impl NodeHooks for Hooks {
    fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::SeqCst);
    }

    fn shedding(&self) -> Option<pb::Shedding> {
        None
    }

    fn delivered(&self) -> pb::Totals {
        pb::Totals::default()
    }

    fn open_transactions(&self) -> usize {
        self.transactions.load(Ordering::SeqCst)
    }

    fn attempts_in_flight(&self, _: PartitionId) -> usize {
        self.attempts.load(Ordering::SeqCst)
    }

    async fn operate(
        &self,
        _: Partition,
        _: MessageId,
        _: &[u32],
        _: &Wanted,
    ) -> Result<(), String> {
        Err("this node delivers nothing".to_owned())
    }

    fn forget_hosts(&self) {}

    fn personalities(&self) -> Vec<String> {
        vec!["mx".to_owned()]
    }

    async fn route(&self, _: pb::RouteRequest) -> Result<pb::RouteReply, String> {
        Err("this node has no policy".to_owned())
    }

    fn trace(&self, _: &pb::TraceRequest) -> Result<BoxStream<'static, pb::TracePage>, String> {
        Err("this node has no sessions".to_owned())
    }

    fn rehearse(&self, _: pb::SessionOpen) -> Result<Box<dyn Rehearsal>, String> {
        Err("this node has no policy".to_owned())
    }

    fn domains(&self, _: &str) -> Result<Vec<pb::DomainInfo>, String> {
        Ok(Vec::new())
    }

    async fn fetch_domain(&self, _: &str, _: bool) -> Result<pb::FetchDomainReply, String> {
        Err("this node has no policy".to_owned())
    }

    async fn check_domain(&self, _: &str, _: bool) -> Result<pb::CheckDomainReply, String> {
        Err("this node has no policy".to_owned())
    }

    async fn compile(&self, files: Files) -> Result<Arc<dyn Compiled>, CompileError> {
        let mut read = BTreeMap::new();
        for (path, hash) in &files.paths {
            let bytes = files.read(hash).map_err(|e| CompileError::Unread(e.to_string()))?;
            let text = String::from_utf8(bytes).unwrap();
            let dislikes = self.dislikes.lock().unwrap();
            if text.contains("error") || dislikes.as_ref().is_some_and(|it| text.contains(it)) {
                return Err(CompileError::Wrong(vec![format!("{path}: there is an error in it")]));
            }
            read.insert(path.clone(), text);
        }
        Ok(Arc::new(Tables { files: read, runs: Arc::clone(&self.tables) }))
    }

    fn running(&self) -> Option<Arc<dyn Compiled>> {
        let running = self.tables.lock().unwrap().clone();
        running.map(|tables| Arc::new(tables) as Arc<dyn Compiled>)
    }

    fn diff(
        &self,
        path: &str,
        before: Option<&[u8]>,
        after: Option<&[u8]>,
        _: usize,
    ) -> pb::FileDiff {
        let lines =
            |text: Option<&[u8]>| text.map_or(0, |t| t.split(|b| *b == b'\n').count() as u64);
        pb::FileDiff {
            path: path.to_owned(),
            added: lines(after).saturating_sub(lines(before)),
            removed: lines(before).saturating_sub(lines(after)),
            ..Default::default()
        }
    }
}

pub(crate) struct Node {
    pub(crate) plane: Plane,
    pub(crate) hooks: Arc<Hooks>,
}

pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) operator: Operator,
}

pub(crate) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub(crate) async fn start(data: &Path, listen: SocketAddr) -> Node {
    try_start(data, listen).await.unwrap()
}

pub(crate) async fn try_start(data: &Path, listen: SocketAddr) -> Result<Node, PlaneError> {
    let hooks = Arc::new(Hooks::default());
    let options = PlaneOptions {
        data: data.to_owned(),
        listen,
        http: Some(SocketAddr::from(([127, 0, 0, 1], 2580))),
        timing: Timing::default(),
        takeover_grace: ppsw_spool::limits::TAKEOVER_GRACE,
        drain_notice: Duration::ZERO,
        segment_bytes: 8 << 20,
        cache_bytes: 4 << 20,
    };
    let (disk, clock) = (Arc::new(SystemDisk), Arc::new(SystemClock));
    let plane = Plane::start(options, disk, clock, Arc::clone(&hooks) as _).await?;
    Ok(Node { plane, hooks })
}

/// Asks until the answer is as wanted.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
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
    pub(crate) async fn start(nodes: usize) -> Self {
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

    pub(crate) async fn status(&self) -> pb::StatusReply {
        self.operator.status().await.unwrap()
    }

    pub(crate) async fn until_home(&self, nodes: usize) {
        let begun = Instant::now();
        until("every partition at home with all its voters", async || {
            let status = self.status().await;
            if begun.elapsed() > PATIENCE - Duration::from_millis(500) {
                eprintln!("{status:#?}");
            }
            let control = status.control.unwrap();
            let home = status
                .partitions
                .iter()
                .all(|p| p.leader == u64::from(p.id) && p.voters.len() == nodes.min(3));
            (status.partitions.len() == nodes && home && control.voters.len() == nodes.min(5))
                .then_some(())
        })
        .await;
    }

    pub(crate) async fn until_state(&self, node: u64, state: &str) {
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

    pub(crate) async fn drain(&self, node: u64, force: bool) -> Result<(), tonic::Status> {
        self.operator.admin().drain(pb::DrainRequest { node, force }).await.map(|_| ())
    }

    pub(crate) async fn undrain(&self, node: u64) {
        self.operator.admin().undrain(pb::UndrainRequest { node }).await.unwrap();
    }

    pub(crate) async fn remove(&self, node: u64, force: bool) -> Result<(), tonic::Status> {
        let reason = "it is old".to_owned();
        let request = pb::RemoveNodeRequest { node, reason, force };
        self.operator.admin().remove_node(request).await.map(|_| ())
    }

    /// Until a node is no member any more, and the others have what they should have.
    pub(crate) async fn until_gone(&self, node: u64) {
        until(&format!("node {node} has left"), async || {
            let status = self.status().await;
            let stays = status.nodes.iter().any(|n| n.member.as_ref().unwrap().id == node);
            let on = |voters: &[u64], learners: &[u64]| {
                voters.contains(&node) || learners.contains(&node)
            };
            let used = status
                .partitions
                .iter()
                .chain(&status.control)
                .any(|g| g.leader == 0 || on(&g.voters, &g.learners));
            (!stays && !used).then_some(())
        })
        .await;
    }

    /// A message that stays in the queue of a node's own partition.
    pub(crate) async fn enqueue(&self, node: u64) -> String {
        let plane = &self.nodes[usize::try_from(node).unwrap() - 1].plane;
        let writer = plane.spool().begin(PATIENCE).await.unwrap();
        let to = Recipient { address: "a@example.org".to_owned(), ..Recipient::default() };
        let envelope = Envelope {
            sender: "spqr1@hermes.cam.ac.uk".to_owned(),
            recipients: vec![to],
            received: UnixMs(1_790_000_000_000),
            ..Envelope::default()
        };
        writer.accept(envelope, PATIENCE).await.unwrap().to_string()
    }

    pub(crate) async fn listed(&self, filter: pb::QueueFilter) -> Vec<pb::QueueItem> {
        let request = pb::QueueRequest { filter: Some(filter) };
        let mut pages = self.operator.admin().queue(request).await.unwrap().into_inner();
        let mut items = Vec::new();
        while let Some(page) = pages.message().await.unwrap() {
            assert!(page.silent.is_empty(), "all nodes are up");
            items.extend(page.items);
        }
        items
    }

    pub(crate) async fn stop(self) {
        for node in &self.nodes {
            node.plane.shutdown().await;
        }
    }
}
