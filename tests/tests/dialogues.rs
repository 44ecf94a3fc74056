//! Every script of `tests/dialogues/` goes as written.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::Path;

use ppsw_tests::{
    cluster::Cluster,
    dialogue::{self, Targets},
};

/// Scripts that run at the same time: some wait for delays of the policy.
const AT_ONCE: usize = 40;

#[test]
fn dialogues_go_as_written() {
    let scripts = dialogue::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("dialogues")).unwrap();
    assert!(!scripts.is_empty(), "no scripts");
    let cluster = Cluster::start(3_200);
    let json = std::fs::read(cluster.dir().join("cluster.json")).unwrap();
    let targets = Targets::from_cluster(&serde_json::from_slice(&json).unwrap()).unwrap();

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let count = scripts.len();
    let mut failures = Vec::new();
    runtime.block_on(async {
        let mut running = tokio::task::JoinSet::new();
        let mut scripts = scripts.into_iter();
        loop {
            while running.len() < AT_ONCE
                && let Some(script) = scripts.next()
            {
                let targets = targets.clone();
                running.spawn(async move { dialogue::run(&script, &targets).await });
            }
            match running.join_next().await {
                Some(result) => failures.extend(result.unwrap().err()),
                None => break,
            }
        }
    });
    let texts: Vec<String> = failures.iter().map(ToString::to_string).collect();
    println!("{} of {count} dialogues went as written", count - texts.len());
    assert!(
        texts.is_empty(),
        "{} of {count} dialogues failed:\n\n{}",
        texts.len(),
        texts.join("\n\n")
    );
}
