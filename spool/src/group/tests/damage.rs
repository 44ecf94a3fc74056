//! A replica whose log has rotted: what it holds of it reaches nobody, it ends, and the group goes on.

#![allow(clippy::disallowed_methods, reason = "a test rots files")]

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use super::*;
use crate::log::LogError;

/// Flips a bit in the only place of a node's log that holds `text`.
fn rot(cluster: &Cluster, node: NodeId, text: &str) {
    rot_in(&cluster.dir.path().join(node.to_string()), text);
}

fn rot_in(dir: &Path, text: &str) {
    let path = dir.join("0000000000000001.seg");
    let bytes = fs::read(&path).unwrap();
    let places: Vec<usize> = memfind(&bytes, text.as_bytes());
    assert_eq!(places.len(), 1, "{text} stands at {places:?}");
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[bytes[places[0]] ^ 4], places[0] as u64).unwrap();
}

fn memfind(bytes: &[u8], text: &[u8]) -> Vec<usize> {
    (0..bytes.len() - text.len()).filter(|at| bytes[*at..].starts_with(text)).collect()
}

/// More than a node keeps in memory.
async fn fill(cluster: &Cluster, leader: NodeId) {
    for n in 0..12 {
        let filler = format!("{n}").repeat(200_000 / format!("{n}").len());
        cluster.say(leader, &filler).await.unwrap();
    }
}

async fn failure(cluster: &Cluster, node: NodeId) -> String {
    let groups = &cluster.node(node).groups;
    let why = tokio::time::timeout(20 * SECOND, groups.failed()).await.unwrap();
    assert!(groups.is_damaged(), "{why}");
    why
}

/// No start serves this log again.
fn assert_refused(dir: &Path) {
    let options = Options {
        dir: dir.to_owned(),
        segment_bytes: limits::LOG_SEGMENT_BYTES,
        cache_bytes: 1 << 20,
    };
    let refused = Log::open(Arc::new(SystemDisk), options).map(drop).unwrap_err();
    assert!(matches!(refused, LogError::Damaged { .. }), "{refused}");
    assert!(refused.to_string().contains("found earlier"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_body_is_not_delivered_and_the_group_goes_on() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    cluster.say(1, "the rotten one").await.unwrap();
    let index = cluster.group(1).status().last_index.unwrap();
    fill(&cluster, 1).await;
    cluster.until_all_have("the rotten one").await;
    rot(&cluster, 1, "the rotten one");

    assert!(cluster.group(1).has_lease());
    let read = cluster.group(1).read(index).await;
    assert!(matches!(read, Err(LogError::Damaged { .. })), "{read:?}");
    // At once: no dot is sent by a node that cannot record what comes of it.
    assert!(!cluster.group(1).has_lease());
    let said = cluster.say(1, "into the void").await;
    assert!(said.is_err(), "{said:?}");
    let why = failure(&cluster, 1).await;
    assert!(why.contains("0000000000000001.seg") && why.contains("rejoin"), "{why}");

    cluster.stop(1).await;
    assert_refused(&cluster.dir.path().join("1"));
    let leader = cluster.leader().await;
    cluster.say(leader, "after it").await.unwrap();
    cluster.until_all_have("after it").await;
    assert!(!cluster.node(leader).tape.has("into the void"));
    assert_eq!(cluster.group(leader).read(index).await.unwrap(), "the rotten one");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_entry_is_not_replicated() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    cluster.net.cut_off(3);
    cluster.say(1, "the rotten one").await.unwrap();
    fill(&cluster, 1).await;
    cluster.say(1, "before the damage").await.unwrap();
    until("2 has it", || cluster.node(2).tape.has("before the damage")).await;
    rot(&cluster, 1, "the rotten one");
    cluster.net.mend();

    failure(&cluster, 1).await;
    // Nothing from there on.
    assert!(!cluster.node(3).tape.has("before the damage"));
    cluster.stop(1).await;
    assert_refused(&cluster.dir.path().join("1"));
    until("2 leads", || cluster.group(2).has_lease()).await;
    cluster.say(2, "after it").await.unwrap();
    cluster.until_all_have("after it").await;
    assert!(cluster.node(3).tape.has("the rotten one"));
    assert_eq!(cluster.node(3).tape.entries(), cluster.node(2).tape.entries());
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_entry_is_not_applied() {
    let mut cluster = Cluster::new().await;
    cluster.group(1).initialise(&[1]).await.unwrap();
    until("1 leads", || cluster.group(1).has_lease()).await;
    for text in ["whole", "the rotten one", "behind it"] {
        cluster.say(1, text).await.unwrap();
    }
    cluster.stop(1).await;

    // Rots after opening, which may look at all of it, and before anything is applied.
    let dir = cluster.dir.path().join("1");
    let log = open_log(&dir);
    rot_in(&dir, "the rotten one");
    let dial = Arc::new(Wires { net: cluster.net.clone(), from: 1, channels: Mutex::default() });
    let groups = Groups::new(1, log, Arc::new(SystemClock), dial, Timing::default());
    let tape = Arc::new(Tape::default());
    let group = groups.open(GROUP, tape.clone()).await;
    let why = tokio::time::timeout(20 * SECOND, groups.failed()).await.unwrap();
    assert!(groups.is_damaged(), "{why}");
    assert!(!group.is_ok_and(|group| group.has_lease()));
    assert!(!tape.has("behind it") && tape.entries().len() <= 1, "{:?}", tape.entries());
    groups.shutdown().await;
    drop(groups);
    assert_refused(&dir);
    cluster.stop_all().await;
}
