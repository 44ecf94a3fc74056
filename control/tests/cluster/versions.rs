//! Versions of policy and tables among three nodes: who switches when, and who is left behind.

use std::collections::BTreeMap;

use bytes::Bytes;
use ppsw_control::{
    client::{self, NewVersion},
    versions::{BlobHash, Expected, NewContent, NewContents, Outcome, VersionError},
};
use ppsw_proto::control::{self as pb, activate_reply::Result as Done};

use super::support::{Cluster, start, until};

const ALIASES: &str = "domains/d.example/aliases";

fn version(files: &[(&str, &str)]) -> NewVersion {
    let files =
        files.iter().map(|(path, text)| ((*path).to_owned(), Bytes::from((*text).to_owned())));
    NewVersion { files: files.collect(), reason: "a test".to_owned(), ..NewVersion::default() }
}

async fn push(cluster: &Cluster, files: &[(&str, &str)]) -> Result<Done, tonic::Status> {
    client::push(&mut cluster.operator.admin(), version(files)).await.map(|pushed| pushed.done)
}

fn active(done: Result<Done, tonic::Status>) -> pb::ActivatedEverywhere {
    match done.unwrap() {
        Done::Activated(done) => done,
        other => panic!("{other:?}"),
    }
}

fn refused(done: Result<Done, tonic::Status>) -> String {
    match done.unwrap() {
        Done::Refused(refusal) => refusal.lines.join("\n"),
        other => panic!("{other:?}"),
    }
}

/// What a node runs.
fn runs(cluster: &Cluster, node: usize) -> BTreeMap<String, String> {
    let tables = cluster.nodes[node - 1].hooks.tables.lock().unwrap();
    tables.as_ref().map(|tables| tables.files.clone()).unwrap_or_default()
}

fn change(text: &str, expected: Expected) -> NewContents {
    let content = Some(Bytes::from(text.to_owned()));
    NewContents {
        files: vec![NewContent { path: ALIASES.to_owned(), content, expected }],
        by: "a part".to_owned(),
        author: String::new(),
        reason: "a test".to_owned(),
        source: pb::Source::Edit,
        force: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_become_active_everywhere_or_nowhere() {
    let mut cluster = Cluster::start(3).await;
    let first = [("policy.kdl", "one"), (ALIASES, "a\nb\nc\nd")];
    let done = active(push(&cluster, &first).await);
    assert_eq!((done.version, done.generation, &*done.running), (1, 1, &[1, 2, 3][..]));
    assert!((1..=3).all(|node| runs(&cluster, node)["policy.kdl"] == "one"));
    assert!(matches!(push(&cluster, &first).await.unwrap(), Done::Unchanged(_)));

    // Wrong everywhere, wrong on one, and what only looks wrong.
    assert!(refused(push(&cluster, &[("policy.kdl", "error")]).await).contains("policy.kdl"));
    *cluster.nodes[2].hooks.dislikes.lock().unwrap() = Some("novelty".to_owned());
    let why = refused(push(&cluster, &[("policy.kdl", "novelty"), first[1]]).await);
    assert!(why.contains("node 3 refuses it"), "{why}");
    let why = refused(push(&cluster, &[("policy.kdl", "two"), (ALIASES, "a\nb")]).await);
    assert!(why.contains("shrinks by 50 %, from 4 entries to 2"), "{why}");
    assert!((1..=3).all(|node| runs(&cluster, node)["policy.kdl"] == "one"));

    // A change of one table lies over the next version, too.
    let plane = &cluster.nodes[1].plane;
    let hash = plane.file(ALIASES).await.unwrap().unwrap().hash;
    assert_eq!(hash, BlobHash::of(first[1].1.as_bytes()));
    let stale = plane.change(change("x", Expected::Nothing)).await.unwrap_err();
    assert!(matches!(stale, VersionError::Refused { forcible: false, .. }), "{stale}");
    let done = plane.change(change("a\nb\nc\ne", Expected::Content(hash))).await.unwrap();
    assert!(matches!(done, Outcome::Activated(_)), "{done:?}");
    let done = active(push(&cluster, &[("policy.kdl", "two"), first[1]]).await);
    assert_eq!(done.kept, [ALIASES]);
    let all = (1..=3).map(|node| runs(&cluster, node));
    assert!(all.into_iter().all(|f| f["policy.kdl"] == "two" && f[ALIASES].ends_with('e')));

    // Who was away runs what it ran last, and is not ready before it runs what is active.
    cluster.nodes[2].plane.shutdown().await;
    let done = active(push(&cluster, &[("policy.kdl", "three"), first[1]]).await);
    assert_eq!((&*done.running, done.behind.len()), (&[1, 2][..], 1), "{done:?}");
    let data = cluster.dir.path().join("node-3").join("data");
    cluster.nodes[2] = start(&data, cluster.addresses[2]).await;
    let mut seen = Vec::new();
    until("node 3 runs version 3", async || {
        let now = runs(&cluster, 3).get("policy.kdl").cloned();
        seen.push(now.clone());
        let ready = cluster.nodes[2].plane.not_ready().is_empty();
        assert!(!ready || now.as_deref() == Some("three"), "ready with {now:?}");
        ready.then_some(())
    })
    .await;
    assert!(seen.iter().flatten().all(|text| text == "two" || text == "three"), "{seen:?}");

    // Without a majority nothing changes.
    cluster.nodes[1].plane.shutdown().await;
    cluster.nodes[2].plane.shutdown().await;
    let none = push(&cluster, &[("policy.kdl", "four"), first[1]]).await.unwrap_err();
    assert!(none.message().contains("1 of 3 members are prepared"), "{none}");
    assert_eq!(runs(&cluster, 1)["policy.kdl"], "three");
    cluster.stop().await;
}
