//! Partitions on real groups and a real log, in one process: restart, takeover and hand-over.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::{
    NodeId,
    env::{Clock as _, SystemClock, SystemDisk},
    group::{Dial, Groups, Lane, Timing},
    limits::{CHUNK_BYTES_MAX, LOG_SEGMENT_BYTES},
    log::{Log, Options},
};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(super) struct Loopback(Mutex<HashMap<NodeId, SocketAddr>>);

#[async_trait]
impl Dial for Loopback {
    fn channel(&self, node: NodeId, _lane: Lane) -> Option<Channel> {
        let address = *self.0.lock().unwrap().get(&node)?;
        Some(Endpoint::try_from(format!("http://{address}")).unwrap().connect_lazy())
    }
}

pub(super) struct Node {
    groups: Groups,
    pub(super) spool: Spool,
    pub(super) partition: Partition,
    server: JoinHandle<()>,
}

impl Node {
    async fn start(node: NodeId, dir: &Path, dial: &Arc<Loopback>) -> Self {
        Self::start_with(node, dir, None, dial).await
    }

    /// With local checkpoints in `kept`.
    pub(super) async fn start_with(
        node: NodeId,
        dir: &Path,
        kept: Option<&Path>,
        dial: &Arc<Loopback>,
    ) -> Self {
        let options =
            Options { dir: dir.to_owned(), segment_bytes: LOG_SEGMENT_BYTES, cache_bytes: 1 << 20 };
        let log = Log::open(Arc::new(SystemDisk), options).unwrap();
        let checkpoints = kept.map(|kept| {
            Checkpoints::open(Arc::new(SystemDisk), kept.to_owned(), node, &log).unwrap()
        });
        let clock = Arc::new(SystemClock);
        let groups =
            Groups::new(node, log, clock.clone(), Arc::clone(dial) as _, Timing::default());
        let server = serve(node, &groups, dial).await;
        let spool = Spool::with_options(
            node,
            groups.clone(),
            clock,
            SpoolOptions { checkpoints, ..SpoolOptions::default() },
        );
        let partition = spool.open(1).await.unwrap();
        Self { groups, spool, partition, server }
    }

    pub(super) async fn stop(self) {
        self.groups.shutdown().await;
        self.server.abort();
        let _ = self.server.await;
    }

    pub(super) async fn accept(&self, recipients: usize, body: &[u8]) -> MessageId {
        let mut writer = self.spool.begin(PATIENCE).await.unwrap();
        writer.write(body).await.unwrap();
        let received = SystemClock.now();
        let envelope = Envelope { received, ..envelope(recipients) };
        writer.accept(envelope, PATIENCE).await.unwrap()
    }

    pub(super) async fn body(&self, id: MessageId) -> Vec<u8> {
        let mut reader = self.partition.body(&self.partition.get(id).unwrap());
        let mut all = Vec::new();
        while let Some(bytes) = reader.next().await.unwrap() {
            all.extend_from_slice(&bytes);
        }
        all
    }

    /// Waits until it leads, and may deliver.
    pub(super) async fn leads(&self) {
        wait(|| self.partition.may_deliver()).await;
    }

    /// The queue without what only the leader knows.
    pub(super) fn queue(&self) -> Vec<QueuedMessage> {
        let message = |m: &Arc<QueuedMessage>| QueuedMessage {
            not_before: UnixMs(0),
            ..QueuedMessage::clone(m)
        };
        self.partition.list().iter().map(message).collect()
    }
}

#[allow(clippy::disallowed_methods, reason = "loopback sockets of this test")]
pub(super) async fn serve(node: NodeId, groups: &Groups, dial: &Loopback) -> JoinHandle<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    dial.0.lock().unwrap().insert(node, listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_routes(groups.service());
    tokio::spawn(async move {
        let _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
    })
}

pub(super) async fn wait(mut until: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !until() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.expect("in time");
}

pub(super) fn content(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_finds_the_queue_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let dial = Arc::default();
    let node = Node::start(1, dir.path(), &dial).await;
    node.partition.group().initialise(&[1]).await.unwrap();
    node.leads().await;

    let done = node.accept(1, b"gone before the restart").await;
    let small = node.accept(2, b"small").await;
    let large = content(CHUNK_BYTES_MAX * 5 + 77);
    let large_id = node.accept(1, &large).await;
    let finished = outcome(done, 0, Verdict::Delivered, true);
    node.partition.record(finished, PATIENCE).await.unwrap();
    let next_due = SystemClock.now().plus(Duration::from_secs(900));
    let deferred = outcome(small, 1, Verdict::Deferred { next_due }, false);
    node.partition.record(deferred, PATIENCE).await.unwrap();
    node.partition.hold(large_id, PATIENCE).await.unwrap();
    // A session that the restart cuts off.
    let mut cut_off = node.spool.begin(PATIENCE).await.unwrap();
    cut_off.write(&content(CHUNK_BYTES_MAX * 3)).await.unwrap();
    wait(|| node.partition.summary().uploads == 1).await;
    let untouched = node.accept(1, b"never tried").await;
    assert!(node.partition.begin(small).await);
    let before = node.queue();
    node.stop().await;
    drop(cut_off);

    let node = Node::start(1, dir.path(), &dial).await;
    node.leads().await;
    assert_eq!(node.queue(), before);
    assert_eq!(node.partition.get(small).unwrap().recipients[1].attempts, 1);
    assert_eq!(node.partition.get(large_id).unwrap().state, MessageState::Held);
    assert_eq!(node.body(large_id).await[16..], large[..]);
    assert_eq!(node.body(small).await, b"Received: here\r\nsmall");
    let waits = node.partition.get(small).unwrap();
    assert!(waits.not_before > SystemClock.now(), "it may have been in flight");
    let new = node.accept(1, b"new").await;
    assert!(new > large_id);
    let due = node.partition.due(SystemClock.now(), Turn::First, 10, &|_| false);
    assert_eq!(due.iter().map(|m| m.id).collect::<Vec<_>>(), [untouched, new]);
    wait(|| node.partition.summary().uploads == 0).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trimmed_log_still_has_every_message() {
    let dir = tempfile::tempdir().unwrap();
    let dial = Arc::default();
    let node = Node::start(1, dir.path(), &dial).await;
    node.partition.group().initialise(&[1]).await.unwrap();
    node.leads().await;
    let kept = node.accept(1, b"from the very beginning").await;
    for _ in 0..1200 {
        let id = node.accept(1, b"soon gone").await;
        let finished = outcome(id, 0, Verdict::Delivered, true);
        node.partition.record(finished, PATIENCE).await.unwrap();
    }
    node.partition.group().checkpoint().await.unwrap();
    assert!(node.partition.carry(kept, PATIENCE).await.unwrap() == crate::group::Reply::Done);
    let before = node.queue();
    wait(|| {
        let checkpoint = node.partition.group();
        tokio::spawn(async move { checkpoint.checkpoint().await });
        node.partition.group().status().purged_index > Some(1000)
    })
    .await;
    node.stop().await;

    let node = Node::start(1, dir.path(), &dial).await;
    node.leads().await;
    assert_eq!(node.queue(), before);
    assert_eq!(node.body(kept).await, b"Received: here\r\nfrom the very beginning");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_hand_over_without_delay_and_take_over_with_it() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let dial = Arc::default();
    let mut nodes = Vec::new();
    for (number, dir) in (1..).zip(&dirs) {
        nodes.push(Node::start(number, dir.path(), &dial).await);
    }
    nodes[0].partition.group().initialise(&[1, 2, 3]).await.unwrap();
    nodes[0].leads().await;
    let large = content(CHUNK_BYTES_MAX * 2 + 3);
    let id = nodes[0].accept(2, &large).await;
    let now = SystemClock.now();
    wait(|| nodes.iter().all(|node| node.partition.len() == 1)).await;
    let replicas: Vec<_> = nodes.iter().map(Node::queue).collect();
    assert!(replicas.iter().all(|queue| *queue == replicas[0]), "the same everywhere");

    nodes[0].partition.quiesce();
    assert!(!nodes[0].partition.may_deliver());
    nodes[0].partition.hand_over(2, PATIENCE).await.unwrap();
    nodes[1].leads().await;
    let due = nodes[1].partition.due(SystemClock.now(), Turn::First, 10, &|_| false);
    assert_eq!(due.len(), 1, "a planned takeover has no delay");
    assert_eq!(nodes[1].body(id).await[16..], large[..]);
    let moved = nodes[0].partition.record(outcome(id, 0, Verdict::Delivered, true), PATIENCE).await;
    let expected = Err(crate::group::ProposeError::NotLeader { leader: Some(2) });
    assert_eq!(format!("{moved:?}"), format!("{expected:?}", expected = expected as Result<(), _>));
    assert!(nodes[0].spool.begin(Duration::ZERO).await.is_err());
    let untouched = nodes[1].accept(1, b"never tried").await;
    assert!(nodes[1].partition.begin(id).await);

    nodes.remove(1).stop().await;
    wait(|| nodes.iter().any(|node| node.partition.may_deliver())).await;
    let leader = nodes.iter().find(|node| node.partition.may_deliver()).unwrap();
    let due = leader.partition.due(SystemClock.now(), Turn::First, 10, &|_| false);
    assert_eq!(due.iter().map(|m| m.id).collect::<Vec<_>>(), [untouched], "the other one waits");
    assert!(leader.partition.get(id).unwrap().not_before > now);
    let kept: Vec<_> = leader.queue().into_iter().filter(|m| m.id != untouched).collect();
    assert_eq!(kept, replicas[0]);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_after_the_451_is_not_delivered() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let dial = Arc::default();
    let mut nodes = Vec::new();
    for (number, dir) in (1..).zip(&dirs) {
        nodes.push(Node::start(number, dir.path(), &dial).await);
    }
    nodes[0].partition.group().initialise(&[1, 2, 3]).await.unwrap();
    nodes[0].leads().await;
    let first = nodes[0].accept(1, b"all is well").await;
    let mut writer = nodes[0].spool.begin(PATIENCE).await.unwrap();
    let late = writer.id();
    writer.write(b"too late").await.unwrap();
    nodes.pop().unwrap().stop().await;
    nodes.pop().unwrap().stop().await;
    let answer = writer.accept(envelope(1), Duration::from_secs(1)).await;
    assert!(matches!(answer, Err(AcceptError::NoMajority)), "{answer:?}");
    assert!(nodes[0].partition.get(late).is_none(), "not committed yet");

    // Written in its log, so it is committed when a majority is there again; and then aborted.
    let leader = nodes[0].partition.clone();
    let index = leader.group().status().last_index;
    let watching = tokio::spawn(async move {
        let mut seen = false;
        while leader.group().status().applied_index <= index || leader.get(late).is_some() {
            seen |= leader.get(late).is_some();
            let due = leader.due(SystemClock.now(), Turn::First, 10, &|_| false);
            assert!(due.iter().all(|message| message.id == first));
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        seen
    });
    for number in [2, 3] {
        nodes.push(Node::start(number, dirs[number as usize - 1].path(), &dial).await);
    }
    wait(|| watching.is_finished()).await;
    println!("seen in the queue before its abort: {}", watching.await.unwrap());
    let kept = |node: &Node| node.queue().iter().map(|m| m.id).collect::<Vec<_>>();
    wait(|| nodes.iter().all(|node| kept(node) == [first])).await;
    for node in nodes {
        node.stop().await;
    }
}
