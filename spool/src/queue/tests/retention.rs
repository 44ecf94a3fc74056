//! A log of small segments stays short, whatever is old in it; on real groups.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::{JoinHandle, JoinSet};

use super::{
    cluster::{Loopback, PATIENCE, content, serve, wait},
    *,
};
use crate::{
    NodeId, PartitionId,
    env::{Clock, Disk, SystemClock, SystemDisk},
    group::{Groups, Timing},
    limits::{CHUNK_BYTES_MAX, INLINE_BODY_BYTES_MAX, LOG_FREE_SEGMENTS_MIN},
    log::{Log, Options},
};

const SEGMENT: u64 = 256 * 1024;
const FLOOR: u64 = 8 * SEGMENT;
/// What a log may have besides: segments that were begun since the last look.
const SLACK: u64 = 4 * SEGMENT;

/// A clock on which minutes pass in seconds: what is settled must be two minutes old.
#[derive(Debug)]
struct FastClock(Instant);

impl Clock for FastClock {
    fn now(&self) -> UnixMs {
        SystemClock.now()
    }

    fn instant(&self) -> Instant {
        self.0 + 60 * SystemClock.instant().saturating_duration_since(self.0)
    }
}

struct Node {
    number: NodeId,
    dir: PathBuf,
    log: Log,
    groups: Groups,
    spool: Spool,
    server: JoinHandle<()>,
}

impl Node {
    async fn start(number: NodeId, dir: &Path, dial: &Arc<Loopback>) -> Self {
        let dir = dir.join(number.to_string());
        let options = Options { dir: dir.clone(), segment_bytes: SEGMENT, cache_bytes: 1 << 20 };
        let log = Log::open(Arc::new(SystemDisk), options).unwrap();
        let clock = Arc::new(FastClock(SystemClock.instant()));
        let dialer = Arc::clone(dial) as _;
        // Not the groups: what they have heard of each other would be too old to be true.
        let groups =
            Groups::new(number, log.clone(), Arc::new(SystemClock), dialer, Timing::default());
        let server = serve(number, &groups, dial).await;
        let spool = Spool::new(number, groups.clone(), clock);
        spool.set_log_floor(FLOOR);
        Self { number, dir, log, groups, spool, server }
    }

    async fn stop(self) {
        self.groups.shutdown().await;
        self.server.abort();
        let _ = self.server.await;
    }

    fn partition(&self, id: PartitionId) -> Partition {
        self.spool.get(id).unwrap()
    }

    /// Takes a message in the partition that this node leads.
    async fn accept(&self, body: &[u8]) -> MessageId {
        let mut writer = self.spool.begin(PATIENCE).await.unwrap();
        writer.write(body).await.unwrap();
        writer.accept(envelope(2), PATIENCE).await.unwrap()
    }

    fn log_bytes(&self) -> u64 {
        self.log.usage().bytes
    }

    /// Of all segments, those that wait for reuse included.
    fn file_bytes(&self) -> u64 {
        let files = SystemDisk.list(&self.dir).unwrap();
        let segments =
            files.iter().filter(|file| file.ends_with(".seg") || file.ends_with(".free"));
        segments.count() as u64 * SEGMENT
    }
}

/// Three nodes with the partitions 1 to `partitions`, led by the node of that number.
async fn start(dir: &Path, partitions: PartitionId) -> Vec<Node> {
    let dial = Arc::default();
    let mut nodes = Vec::new();
    for number in 1..=3 {
        let node = Node::start(number, dir, &dial).await;
        for id in 1..=partitions {
            node.spool.open(id).await.unwrap();
        }
        nodes.push(node);
    }
    for id in 1..=partitions {
        let voters: Vec<_> = nodes.iter().map(|node| node.number).collect();
        let home = &nodes[id as usize - 1];
        home.partition(id).group().initialise(&voters).await.unwrap();
    }
    nodes
}

/// Who leads a partition.
async fn leader(nodes: &[Node], id: PartitionId) -> &Node {
    let leads = |node: &&Node| node.partition(id).may_deliver();
    wait(|| nodes.iter().any(|node| leads(&node))).await;
    nodes.iter().find(leads).unwrap()
}

async fn bytes(partition: &Partition, id: MessageId) -> Vec<u8> {
    let mut reader = partition.body(&partition.get(id).unwrap());
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        all.extend_from_slice(&piece);
    }
    all
}

/// The queue with the bytes of each message, but without where they lie and what only the leader knows.
async fn queue(partition: &Partition) -> Vec<(QueuedMessage, Vec<u8>)> {
    let mut all = Vec::new();
    for message in partition.list() {
        let shown = QueuedMessage {
            body: Body::Inline { index: 0 },
            not_before: UnixMs(0),
            ..QueuedMessage::clone(&message)
        };
        all.push((shown, bytes(partition, message.id).await));
    }
    all
}

/// Waits until a replica, which may be behind or replay its log, has this queue.
async fn until_queue(partition: &Partition, expected: &[(QueuedMessage, Vec<u8>)]) {
    let deadline = SystemClock.instant() + PATIENCE;
    loop {
        let found = queue(partition).await;
        if found == expected {
            return;
        }
        assert!(SystemClock.instant() < deadline, "{found:#?}, not {expected:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Messages that come and go in a node's partition, until `bytes` have come.
async fn traffic(node: &Node, id: PartitionId, bytes: u64) {
    let body = content(INLINE_BODY_BYTES_MAX);
    let mut sessions = JoinSet::new();
    let each = bytes / 4 / body.len() as u64;
    for _ in 0..4 {
        let (spool, partition, body) = (node.spool.clone(), node.partition(id), body.clone());
        sessions.spawn(async move {
            for _ in 0..each {
                let mut writer = spool.begin(PATIENCE).await.unwrap();
                writer.write(&body).await.unwrap();
                let message = writer.accept(envelope(1), PATIENCE).await.unwrap();
                let done = outcome(message, 0, Verdict::Delivered, true);
                partition.record(done, PATIENCE).await.unwrap();
            }
        });
    }
    while let Some(ended) = sessions.join_next().await {
        ended.unwrap();
    }
}

/// Waits until every node's log is short; what keeps it, if it stays long.
async fn until_short(nodes: &[Node]) {
    let deadline = SystemClock.instant() + 3 * PATIENCE;
    while let Some(long) = nodes.iter().find(|node| node.log_bytes() > FLOOR + SLACK) {
        assert!(
            SystemClock.instant() < deadline,
            "node {}: {:?}",
            long.number,
            long.spool.log_report()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_stay_do_not_keep_the_log_and_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = start(dir.path(), 1).await;
    let at = leader(&nodes, 1).await;
    let partition = at.partition(1);
    // One deferred, one on hold in chunks, and a bounce of a message that is gone.
    let deferred = at.accept(b"tried once").await;
    let next_due = UnixMs(SystemClock.now().0 + 900_000);
    let tried = outcome(deferred, 1, Verdict::Deferred { next_due }, false);
    partition.record(tried, PATIENCE).await.unwrap();
    let large = content(CHUNK_BYTES_MAX * 2 + 77);
    let held = at.accept(&large).await;
    partition.hold(held, PATIENCE).await.unwrap();
    let bounced = at.accept(b"bounces").await;
    let mut failed = outcome(bounced, 0, Verdict::Failed, true);
    failed.finished.push(1);
    let bounce = at.spool.new_id().unwrap();
    failed.creates.push((
        bounce,
        envelope(1),
        bytes::Bytes::from_static(b"could not be delivered"),
    ));
    partition.record(failed, PATIENCE).await.unwrap();
    let before = queue(&partition).await;
    let ids: Vec<_> = before.iter().map(|(message, _)| message.id).collect();
    assert_eq!(ids, [deferred, held, bounce]);
    let first = partition.get(deferred).unwrap().body.clone();
    drop(partition);

    for _ in 0..5 {
        traffic(leader(&nodes, 1).await, 1, 10 * FLOOR).await;
        until_short(&nodes).await;
    }
    for node in &nodes {
        let partition = node.partition(1);
        until_queue(&partition, &before).await;
        assert_ne!(partition.get(deferred).unwrap().body, first, "it was carried");
        assert!(partition.group().status().purged_index > Some(1_000));
    }

    // Another node takes over; then all start again.
    let number = leader(&nodes, 1).await.number;
    let at = nodes.iter().position(|node| node.number == number).unwrap();
    nodes.remove(at).stop().await;
    assert_eq!(queue(&leader(&nodes, 1).await.partition(1)).await, before);
    for node in nodes {
        node.stop().await;
    }
    let nodes = start(dir.path(), 1).await;
    assert_eq!(queue(&leader(&nodes, 1).await.partition(1)).await, before);
    // All, before any stops: the last one alone would learn nothing more of what is committed.
    for node in &nodes {
        until_queue(&node.partition(1), &before).await;
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_partitions_do_not_keep_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path(), 3).await;
    for id in 1..=3 {
        let partition = nodes[id as usize - 1].partition(id);
        wait(|| partition.group().leader().is_some()).await;
        let leader = leader(&nodes, id).await;
        if leader.number != NodeId::from(id) {
            leader.partition(id).hand_over(NodeId::from(id), PATIENCE).await.unwrap();
        }
        wait(|| partition.may_deliver()).await;
    }
    // Each on another node than the traffic: in 2 a message lives, in 3 there is nothing but the past.
    let kept = nodes[1].accept(b"lives on").await;
    let gone = nodes[2].accept(b"soon gone").await;
    let mut done = outcome(gone, 0, Verdict::Delivered, true);
    done.finished.push(1);
    nodes[2].partition(3).record(done, PATIENCE).await.unwrap();
    let before = queue(&nodes[1].partition(2)).await;
    for _ in 0..3 {
        traffic(&nodes[0], 1, 5 * FLOOR).await;
        until_short(&nodes).await;
    }
    for node in &nodes {
        assert_eq!(queue(&node.partition(2)).await, before);
        assert!(node.partition(3).is_empty());
        for id in 1..=3 {
            assert!(node.partition(id).group().status().purged_index.is_some(), "partition {id}");
        }
    }
    assert_eq!(before[0].0.id, kept);
    // What was longer meanwhile than the log may be is given back.
    let few = LOG_FREE_SEGMENTS_MIN as u64 * SEGMENT;
    let deadline = SystemClock.instant() + 2 * PATIENCE;
    while let Some(long) = nodes.iter().find(|node| node.file_bytes() > FLOOR + SLACK + few) {
        let late = SystemClock.instant() > deadline;
        assert!(!late, "node {}: {} bytes", long.number, long.file_bytes());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for node in nodes {
        node.stop().await;
    }
}
