//! openraft's storage suite on our log, and three replicas that talk gRPC over loopback.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use openraft::{StorageError, testing::log::StoreBuilder};
use tonic::transport::{Channel, Endpoint, Server};

use super::{machine::Adapter, store::Store, types::TypeConfig, *};
use crate::{
    env::{SystemClock, SystemDisk},
    limits,
    log::{Log, LogError, Options},
};

/// Remembers what was applied; everything applied may be forgotten by a checkpoint, which counts it.
#[derive(Default)]
struct Tape {
    entries: Mutex<Vec<Bytes>>,
    leading: Mutex<bool>,
}

impl Tape {
    fn entries(&self) -> Vec<Bytes> {
        self.entries.lock().unwrap().clone()
    }
}

impl Machine for Tape {
    fn apply(&self, _: Position, payload: &Bytes) -> Reply {
        self.entries.lock().unwrap().push(payload.clone());
        Reply::Done
    }

    fn checkpoint(&self, applied: Position) -> Checkpoint {
        Checkpoint {
            upto: Some(applied.index),
            state: self.entries().join(&b','.to_owned()).into(),
        }
    }

    fn restore(&self, checkpoint: &Checkpoint) {
        let state = &checkpoint.state;
        let entries = state.split(|b| *b == b',').filter(|e| !e.is_empty());
        *self.entries.lock().unwrap() = entries.map(Bytes::copy_from_slice).collect();
    }

    fn leadership(&self, change: Leadership) {
        *self.leading.lock().unwrap() = matches!(change, Leadership::Leading { .. });
    }
}

fn open_log(dir: &Path) -> Log {
    let (dir, segment_bytes) = (dir.to_owned(), limits::LOG_SEGMENT_BYTES);
    Log::open(Arc::new(SystemDisk), Options { dir, segment_bytes, cache_bytes: 1 << 20 }).unwrap()
}

struct Builder;

impl StoreBuilder<TypeConfig, Store, Adapter, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, Store, Adapter), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(open_log(dir.path()), 1);
        let adapter = Adapter::new(Arc::new(Tape::default()), store.clone()).unwrap();
        Ok((dir, store, adapter))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openraft_storage_suite() {
    openraft::testing::log::Suite::test_all(Builder).await.unwrap();
}

/// Addresses of the nodes that run.
#[derive(Default)]
struct Book(Mutex<BTreeMap<NodeId, String>>);

impl Dial for Book {
    fn channel(&self, node: NodeId, _: Lane) -> Option<Channel> {
        let address = self.0.lock().unwrap().get(&node)?.clone();
        Some(Endpoint::from_shared(address).unwrap().connect_lazy())
    }
}

struct Node {
    groups: Groups,
    group: Group,
    tape: Arc<Tape>,
    server: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start(id: NodeId, dir: &Path, book: &Arc<Book>) -> Result<Self, LogError> {
        let log = open_log(&dir.join(id.to_string()));
        let groups = Groups::new(id, log, Arc::new(SystemClock), book.clone(), Timing::default());
        let tape = Arc::new(Tape::default());
        let group = groups.open(7, tape.clone()).await?;
        #[allow(clippy::disallowed_methods, reason = "a test's own socket")]
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        book.0.lock().unwrap().insert(id, address);
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = groups.service();
        let server = tokio::spawn(async move {
            let _ = Server::builder().add_routes(service).serve_with_incoming(incoming).await;
        });
        Ok(Self { groups, group, tape, server })
    }

    async fn stop(self) {
        self.server.abort();
        self.groups.shutdown().await;
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("after 20 s still not: {what}");
}

const SECOND: Duration = Duration::from_secs(1);

async fn say(group: &Group, text: &'static str) -> Result<Reply, ProposeError> {
    group.propose(Bytes::from_static(text.as_bytes()), 5 * SECOND).await
}

async fn three(dir: &Path, book: &Arc<Book>) -> Vec<Option<Node>> {
    let mut nodes = vec![None];
    for id in 1..=3 {
        nodes.push(Some(Node::start(id, dir, book).await.unwrap()));
    }
    nodes
}

fn leader(nodes: &[Option<Node>]) -> Option<usize> {
    nodes.iter().position(|n| n.as_ref().is_some_and(|n| n.group.has_lease()))
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_survive_their_leaders() {
    let dir = tempfile::tempdir().unwrap();
    let book = Arc::new(Book::default());
    let mut nodes = three(dir.path(), &book).await;
    let first = nodes[1].as_ref().unwrap().group.clone();
    first.initialise(&[1]).await.unwrap();
    until("1 leads", || first.has_lease()).await;
    assert_eq!(say(&first, "alone").await.unwrap(), Reply::Done);
    first.add_voter(2, 10 * SECOND).await.unwrap();
    first.add_voter(3, 10 * SECOND).await.unwrap();
    assert_eq!(first.status().voters, [1, 2, 3]);
    say(&first, "three").await.unwrap();

    // Planned: leadership moves and comes back.
    until("2 is fit", || first.transfer_is_possible(2)).await;
    first.transfer(2, 5 * SECOND).await.unwrap();
    let second = nodes[2].as_ref().unwrap().group.clone();
    until("2 leads", || second.has_lease()).await;
    assert!(!first.has_lease() && !first.leads());
    assert!(matches!(say(&first, "no").await, Err(ProposeError::NotLeader { leader: Some(2) })));
    say(&second, "moved").await.unwrap();

    // Unplanned: the leader is gone.
    nodes[2].take().unwrap().stop().await;
    until("another leads", || leader(&nodes).is_some()).await;
    let now = nodes[leader(&nodes).unwrap()].as_ref().unwrap().group.clone();
    say(&now, "without 2").await.unwrap();

    // Two of three gone: no lease, no commit; and all of it again when one comes back.
    let gone = if now.id() == 7 && leader(&nodes) == Some(1) { 3 } else { 1 };
    nodes[gone].take().unwrap().stop().await;
    until("no lease", || !now.has_lease()).await;
    let unknown = now.propose(Bytes::from_static(b"late"), SECOND).await;
    assert!(unknown.is_err(), "{unknown:?}");
    nodes[2] = Some(Node::start(2, dir.path(), &book).await.unwrap());
    until("a leader again", || leader(&nodes).is_some()).await;
    let now = nodes[leader(&nodes).unwrap()].as_ref().unwrap().group.clone();
    say(&now, "together").await.unwrap();
    let tape = nodes[2].as_ref().unwrap().tape.clone();
    until("2 has all", || tape.entries().last().is_some_and(|e| e == "together")).await;
    let all = tape.entries();
    for text in ["alone", "three", "moved", "without 2", "together"] {
        assert_eq!(all.iter().filter(|e| *e == text).count(), 1, "{text} in {all:?}");
    }
    for node in nodes.into_iter().flatten() {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_longer_than_the_log_begins_at_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let book = Arc::new(Book::default());
    let mut nodes = three(dir.path(), &book).await;
    let first = nodes[1].as_ref().unwrap().group.clone();
    first.initialise(&[1, 2]).await.unwrap();
    until("a leader", || leader(&nodes).is_some()).await;
    let at = leader(&nodes).unwrap();
    let group = nodes[at].as_ref().unwrap().group.clone();
    say(&group, "one").await.unwrap();
    say(&group, "two").await.unwrap();
    group.checkpoint().await.unwrap();
    until("purged", || group.status().purged_index.is_some()).await;
    group.add_voter(3, 10 * SECOND).await.unwrap();
    say(&group, "three").await.unwrap();
    let tape = nodes[3].as_ref().unwrap().tape.clone();
    until("3 has all", || tape.entries() == ["one", "two", "three"]).await;

    // All at once down and up again: state comes from checkpoints and logs.
    for node in nodes.drain(..).flatten() {
        node.stop().await;
    }
    let nodes = three(dir.path(), &book).await;
    for node in nodes.iter().flatten() {
        let tape = node.tape.clone();
        until("all again", || tape.entries() == ["one", "two", "three"]).await;
    }
    for node in nodes.into_iter().flatten() {
        node.stop().await;
    }
}
