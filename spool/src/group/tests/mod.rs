//! Replicas on real logs that talk gRPC over loopback, through wires that can be cut.

mod batches;
mod cluster;
mod damage;
mod disk;
mod faults;
mod storage;
mod traps_checkpoint;
mod traps_dead_peer;
mod traps_transfer;
mod versions;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tonic::transport::{Channel, Endpoint, Server};

use super::*;
use crate::{
    env::{Disk, SystemClock, SystemDisk},
    limits,
    log::{Log, Options},
};

const SECOND: Duration = Duration::from_secs(1);

/// Remembers what was applied, and at which index; its checkpoint holds all of it, or all but the last.
#[derive(Default)]
struct Tape {
    entries: Mutex<Vec<(u64, Bytes)>>,
    /// The last indexes that a checkpoint leaves to replay: 0 for a checkpoint of everything.
    leaves: AtomicU64,
    restored: AtomicUsize,
    /// Entries were applied while a checkpoint was asked for.
    disturbed: AtomicBool,
    changes: Mutex<Vec<Leadership>>,
}

impl Tape {
    fn entries(&self) -> Vec<Bytes> {
        self.entries.lock().unwrap().iter().map(|(_, entry)| entry.clone()).collect()
    }

    fn has(&self, text: &str) -> bool {
        self.entries.lock().unwrap().iter().any(|(_, e)| e == text)
    }
}

impl Machine for Tape {
    fn apply(&self, at: Position, payload: &Bytes) -> Reply {
        let mut entries = self.entries.lock().unwrap();
        entries.push((at.index, payload.clone()));
        Reply::Value(entries.len().to_string().into())
    }

    fn checkpoint(&self, applied: Position) -> Checkpoint {
        // Long enough for entries to be applied meanwhile, if they were not kept waiting.
        let before = self.entries().len();
        std::thread::sleep(Duration::from_millis(2));
        self.disturbed.fetch_or(self.entries().len() != before, Ordering::Relaxed);
        let upto = applied.index.checked_sub(self.leaves.load(Ordering::Relaxed));
        let entries = self.entries.lock().unwrap();
        let held = entries.iter().filter(|(at, _)| Some(*at) <= upto).map(|(_, e)| e.clone());
        Checkpoint { upto, state: held.collect::<Vec<_>>().join(&b',').into() }
    }

    fn restore(&self, checkpoint: &Checkpoint) {
        let entries = checkpoint.state.split(|b| *b == b',').filter(|e| !e.is_empty());
        let upto = checkpoint.upto.unwrap_or(0);
        *self.entries.lock().unwrap() =
            entries.map(|e| (upto, Bytes::copy_from_slice(e))).collect();
        self.restored.fetch_add(1, Ordering::Relaxed);
    }

    fn leadership(&self, change: Leadership) {
        self.changes.lock().unwrap().push(change);
    }
}

fn open_log_on(disk: Arc<dyn Disk>, dir: &Path) -> Log {
    let (dir, segment_bytes) = (dir.to_owned(), limits::LOG_SEGMENT_BYTES);
    Log::open(disk, Options { dir, segment_bytes, cache_bytes: 1 << 20 }).unwrap()
}

fn open_log(dir: &Path) -> Log {
    open_log_on(Arc::new(SystemDisk), dir)
}

/// Nodes that there may be.
const NODES: NodeId = 5;

/// The wires between the nodes. A node that is cut off neither gets nor sends anything, and nobody is told.
struct Net {
    wires: BTreeMap<(NodeId, NodeId), String>,
    /// How often each wire was asked for.
    dialled: Mutex<BTreeMap<(NodeId, NodeId, bool), usize>>,
    state: watch::Sender<NetState>,
}

#[derive(Default)]
struct NetState {
    /// Where nodes listen that run.
    nodes: BTreeMap<NodeId, SocketAddr>,
    /// From, to: wires that carry nothing.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// What this node is answered is lost; what it asks arrives.
    deaf: Option<NodeId>,
}

impl Net {
    #[allow(clippy::disallowed_methods, reason = "a test's own sockets")]
    async fn new() -> Arc<Self> {
        let mut wires = BTreeMap::new();
        let mut listeners = Vec::new();
        for from in 1..=NODES {
            for to in (1..=NODES).filter(|to| *to != from) {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                wires.insert((from, to), format!("http://{}", listener.local_addr().unwrap()));
                listeners.push((from, to, listener));
            }
        }
        let net =
            Arc::new(Self { wires, dialled: Mutex::default(), state: watch::Sender::default() });
        for (from, to, listener) in listeners {
            let net = Arc::downgrade(&net);
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    let Some(net) = net.upgrade() else { return };
                    tokio::spawn(async move { net.carry(from, to, socket).await });
                }
            });
        }
        net
    }

    #[allow(clippy::disallowed_methods, reason = "a test's own sockets")]
    async fn carry(&self, from: NodeId, to: NodeId, mut socket: TcpStream) {
        let mut state = self.state.subscribe();
        let Some(target) = state.borrow().nodes.get(&to).copied() else { return };
        let Ok(mut there) = TcpStream::connect(target).await else { return };
        // As the real connections: replies are small, and nothing waits for more of them.
        if there.set_nodelay(true).and_then(|()| socket.set_nodelay(true)).is_err() {
            return;
        }
        let runs = |state: &NetState| state.nodes.get(&to) == Some(&target);
        let is_cut = |state: &NetState| state.cut.contains(&(from, to));
        tokio::select! {
            biased;
            _ = state.wait_for(|state| is_cut(state) || !runs(state)) => {}
            _ = self.pump(from, &mut socket, &mut there) => return,
        }
        // Held, silent: only time-outs can notice.
        let _ = state.wait_for(|state| !is_cut(state) || !runs(state)).await;
    }

    async fn pump(&self, from: NodeId, socket: &mut TcpStream, there: &mut TcpStream) {
        let (mut questions, mut asker) = socket.split();
        let (mut answers, mut answerer) = there.split();
        let asked = copy(&mut questions, &mut answerer);
        let answered = async {
            let mut state = self.state.subscribe();
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let bytes = answers.read(&mut buffer).await?;
                let _ = state.wait_for(|state| state.deaf != Some(from)).await;
                if bytes == 0 {
                    return Ok::<_, std::io::Error>(());
                }
                asker.write_all(&buffer[..bytes]).await?;
            }
        };
        let _ = tokio::try_join!(asked, answered);
    }

    fn set_address(&self, node: NodeId, address: Option<SocketAddr>) {
        self.state.send_modify(|state| {
            state.nodes.remove(&node);
            state.nodes.extend(address.map(|address| (node, address)));
        });
    }

    /// Cuts the wire on which `from` asks and `to` answers.
    fn cut(&self, from: NodeId, to: NodeId) {
        self.state.send_modify(|state| {
            state.cut.insert((from, to));
        });
    }

    fn cut_off(&self, node: NodeId) {
        for other in 1..=NODES {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    /// Nobody else's requests reach the node either.
    fn deafen(&self, node: NodeId) {
        for other in 1..=NODES {
            self.cut(other, node);
        }
        self.state.send_modify(|state| state.deaf = Some(node));
    }

    fn mend(&self) {
        self.state.send_modify(|state| {
            state.cut.clear();
            state.deaf = None;
        });
    }
}

/// The wires as one node sees them: two connections to each other node.
struct Wires {
    net: Arc<Net>,
    from: NodeId,
    channels: Mutex<HashMap<(NodeId, Lane), Channel>>,
}

impl Dial for Wires {
    fn channel(&self, node: NodeId, lane: Lane) -> Option<Channel> {
        let address = self.net.wires.get(&(self.from, node))?.clone();
        *self
            .net
            .dialled
            .lock()
            .unwrap()
            .entry((self.from, node, lane == Lane::Bulk))
            .or_default() += 1;
        let mut channels = self.channels.lock().unwrap();
        let channel = channels
            .entry((node, lane))
            .or_insert_with(|| Endpoint::from_shared(address).unwrap().connect_lazy());
        Some(channel.clone())
    }
}

const GROUP: GroupId = 7;

struct Node {
    log: Log,
    groups: Groups,
    group: Group,
    tape: Arc<Tape>,
    address: SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start(id: NodeId, dir: &Path, net: &Arc<Net>) -> Self {
        Self::start_on(Arc::new(SystemDisk), id, dir, net).await
    }

    async fn start_on(disk: Arc<dyn Disk>, id: NodeId, dir: &Path, net: &Arc<Net>) -> Self {
        let log = open_log_on(disk, &dir.join(id.to_string()));
        let dial = Arc::new(Wires { net: net.clone(), from: id, channels: Mutex::default() });
        let clock = Arc::new(SystemClock);
        let groups = Groups::new(id, log.clone(), clock, dial, Timing::default());
        let tape = Arc::new(Tape::default());
        let group = groups.open(GROUP, tape.clone()).await.unwrap();
        #[allow(clippy::disallowed_methods, reason = "a test's own socket")]
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        net.set_address(id, Some(address));
        let incoming =
            tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = groups.service();
        let server = tokio::spawn(async move {
            let _ = Server::builder().add_routes(service).serve_with_incoming(incoming).await;
        });
        Self { log, groups, group, tape, address, server }
    }

    async fn stop(self) {
        self.server.abort();
        self.groups.shutdown().await;
    }
}

/// Some nodes; their numbers are their indices.
struct Cluster {
    dir: tempfile::TempDir,
    net: Arc<Net>,
    nodes: [Option<Node>; NODES as usize + 1],
}

impl Cluster {
    /// Three nodes that run, in no group yet.
    async fn new() -> Self {
        let net = Net::new().await;
        let nodes = [const { None }; NODES as usize + 1];
        let mut this = Self { dir: tempfile::tempdir().unwrap(), net, nodes };
        for id in 1..=3 {
            this.start(id).await;
        }
        this
    }

    /// Three voters with a leader.
    async fn of_three() -> Self {
        let this = Self::new().await;
        this.group(1).initialise(&[1, 2, 3]).await.unwrap();
        this.leader().await;
        this
    }

    async fn start(&mut self, id: NodeId) {
        self.nodes[id as usize] = Some(Node::start(id, self.dir.path(), &self.net).await);
    }

    async fn stop(&mut self, id: NodeId) {
        self.net.set_address(id, None);
        self.nodes[id as usize].take().unwrap().stop().await;
    }

    async fn stop_all(&mut self) {
        for id in 1..=NODES {
            if self.nodes[id as usize].is_some() {
                self.stop(id).await;
            }
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id as usize].as_ref().unwrap()
    }

    fn group(&self, id: NodeId) -> &Group {
        &self.node(id).group
    }

    /// Those that have the lease now.
    fn holders(&self) -> Vec<NodeId> {
        let holds = |id: &NodeId| {
            self.nodes[*id as usize].as_ref().is_some_and(|node| node.group.has_lease())
        };
        (1..=NODES).filter(holds).collect()
    }

    async fn leader(&self) -> NodeId {
        until("a leader", || !self.holders().is_empty()).await;
        self.holders()[0]
    }

    /// Makes this node the leader.
    async fn lead(&self, id: NodeId) {
        let leader = self.leader().await;
        if leader != id {
            until("it is fit", || self.group(leader).transfer_is_possible(id)).await;
            self.group(leader).transfer(id, 5 * SECOND).await.unwrap();
        }
        until("it leads", || self.group(id).has_lease()).await;
    }

    async fn say(&self, id: NodeId, text: &str) -> Result<Reply, ProposeError> {
        say(self.group(id), text).await
    }

    async fn until_all_have(&self, text: &str) {
        for node in self.nodes.iter().flatten() {
            until("all have it", || node.tape.has(text)).await;
        }
    }

    /// All replicas applied the same.
    fn assert_equal(&self, expected: &[&str]) {
        for node in self.nodes.iter().flatten() {
            assert_eq!(node.tape.entries(), expected);
        }
    }
}

async fn say(group: &Group, text: &str) -> Result<Reply, ProposeError> {
    group.propose(Bytes::copy_from_slice(text.as_bytes()), 5 * SECOND).await
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("after 20 s still not: {what}");
}
