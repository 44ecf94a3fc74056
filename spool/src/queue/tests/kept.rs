//! Local checkpoints on a real group and log: a start goes on from them, and nothing depends on them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{
    cluster::{Node, PATIENCE},
    *,
};

/// The queue of a node that has been stopped, its checkpoint, and an earlier copy of that.
struct Stopped {
    dir: tempfile::TempDir,
    large: MessageId,
    queue: Vec<QueuedMessage>,
    checkpoint: Vec<u8>,
    earlier: Vec<u8>,
}

fn kept(dir: &Path) -> PathBuf {
    dir.join("sled")
}

#[allow(clippy::disallowed_methods, reason = "this test damages files")]
mod files {
    use super::*;

    /// The checkpoint's file.
    pub(super) fn path(dir: &Path) -> PathBuf {
        let mut all: Vec<_> =
            std::fs::read_dir(kept(dir)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    pub(super) fn read(dir: &Path) -> Vec<u8> {
        std::fs::read(path(dir)).unwrap()
    }

    pub(super) fn write(dir: &Path, content: &[u8]) {
        let _ = std::fs::remove_dir_all(kept(dir));
        std::fs::create_dir(kept(dir)).unwrap();
        let path = kept(dir).join("partition-1-0000000000000001.ckp");
        std::fs::write(path, content).unwrap();
    }

    pub(super) fn remove(dir: &Path) {
        std::fs::remove_dir_all(kept(dir)).unwrap();
    }
}

async fn start(dir: &Path) -> Node {
    Node::start_with(1, &dir.join("log"), Some(&kept(dir)), &Arc::default()).await
}

async fn stopped() -> Stopped {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    node.partition.group().initialise(&[1]).await.unwrap();
    node.leads().await;
    let tried = node.accept(2, b"small").await;
    let held = node.accept(1, b"held").await;
    let gone = node.accept(1, b"gone").await;
    let large = node.accept(1, &[7; crate::limits::CHUNK_BYTES_MAX + 9]).await;
    node.spool.save().await;
    let earlier = files::read(dir.path());
    let delivered = outcome(tried, 1, Verdict::Delivered, true);
    node.partition.record(delivered, PATIENCE).await.unwrap();
    let delivered = outcome(gone, 0, Verdict::Delivered, true);
    node.partition.record(delivered, PATIENCE).await.unwrap();
    node.partition.hold(held, PATIENCE).await.unwrap();
    for _ in 0..20 {
        node.accept(1, b"another").await;
    }
    node.spool.save().await;
    let checkpoint = files::read(dir.path());
    // Behind the checkpoint: replayed from the log.
    node.accept(3, b"late").await;
    node.partition.hold(large, PATIENCE).await.unwrap();
    let queue = node.queue();
    assert_eq!(queue.len(), 24);
    node.stop().await;
    Stopped { dir, large, queue, checkpoint, earlier }
}

impl Stopped {
    /// Starts the node once more; true if it went on from the checkpoint. The queue is the same in any case.
    async fn restart(&self, what: &str) -> bool {
        let node = start(self.dir.path()).await;
        let recalled = node.partition.machine().has_recalled();
        node.leads().await;
        assert_eq!(node.queue(), self.queue, "{what}");
        let body = node.body(self.large).await;
        assert_eq!(&body[..16], b"Received: here\r\n", "{what}");
        assert_eq!(body.len(), 16 + crate::limits::CHUNK_BYTES_MAX + 9, "{what}");
        let of = |turn| node.partition.due(UnixMs(u64::MAX), turn, 100, &|_| false);
        let due: Vec<_> = [Turn::First, Turn::Again].into_iter().flat_map(of).collect();
        assert_eq!(due.len(), 22, "{what}");
        node.stop().await;
        recalled
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_goes_on_from_the_local_checkpoint_or_does_without() {
    let stopped = stopped().await;
    let dir = stopped.dir.path();
    files::write(dir, &stopped.checkpoint);
    assert!(stopped.restart("as it was").await);
    files::remove(dir);
    assert!(!stopped.restart("deleted").await);
    files::write(dir, &stopped.earlier);
    assert!(stopped.restart("replaced by an older copy").await);
    files::write(dir, &stopped.checkpoint[..stopped.checkpoint.len() - 1]);
    assert!(stopped.restart("cut, but for an earlier round").await);
    files::write(dir, &stopped.checkpoint[..100]);
    assert!(!stopped.restart("cut before the end of the first round").await);
    files::write(dir, b"");
    assert!(!stopped.restart("empty").await);
    let mut newer = stopped.checkpoint.clone();
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..60]).to_le_bytes();
    newer[60..64].copy_from_slice(&crc);
    files::write(dir, &newer);
    assert!(!stopped.restart("by a newer program").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_local_checkpoint_costs_only_time() {
    let stopped = stopped().await;
    let mut rng = StdRng::seed_from_u64(7);
    for round in 0..12 {
        let mut bytes = stopped.checkpoint.clone();
        for _ in 0..1 << (round % 4) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= rng.random_range(1..=255_u8);
        }
        if round % 3 == 0 {
            bytes.truncate(rng.random_range(0..bytes.len()));
        }
        files::write(stopped.dir.path(), &bytes);
        stopped.restart(&format!("damage {round}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_of_another_log_is_not_used() {
    let (one, other) = (stopped().await, stopped().await);
    // Same node number, same partition, same indexes and terms.
    files::write(one.dir.path(), &other.checkpoint);
    assert!(!one.restart("of another log").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_leaves_takes_its_checkpoint_along() {
    let stopped = stopped().await;
    let node = start(stopped.dir.path()).await;
    node.spool.close(1).await.unwrap();
    let left = crate::env::Disk::list(&crate::env::SystemDisk, &kept(stopped.dir.path())).unwrap();
    assert_eq!(left, Vec::<String>::new());
    node.stop().await;
}
