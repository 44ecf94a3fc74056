//! The program as operators use it.

use std::{process::Output, time::Duration};

use ppsw_spool::{
    env::UnixMs,
    queue::{Envelope, Recipient},
};
use serde_json::Value;
use tokio::process::Command;

use crate::support::{Cluster, PATIENCE};

/// Runs `ppswctl --cluster …` with a command line.
async fn run(cluster: &Cluster, line: &str) -> Output {
    let file = cluster.dir.path().join("cluster.json");
    let nodes: Vec<_> = cluster
        .addresses
        .iter()
        .enumerate()
        .map(|(at, address)| serde_json::json!({ "id": at + 1, "control": address.to_string() }))
        .collect();
    let text = serde_json::json!({ "nodes": nodes, "credentials": "admin", "viewer": "viewer" });
    std::fs::write(&file, text.to_string()).unwrap();
    let mut command = Command::new(program());
    command.arg("--cluster").arg(&file).args(line.split(' ')).kill_on_drop(true);
    tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap()
}

/// It belongs to the crate above this one: it checks policies, too.
fn program() -> std::path::PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("ppswctl");
    assert!(path.exists(), "{} is missing: run `cargo build --workspace --bins`", path.display());
    path
}

async fn json(cluster: &Cluster, line: &str) -> Value {
    let output = run(cluster, line).await;
    assert!(output.status.success(), "{line}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_looks_drains_and_lists() {
    let cluster = Cluster::start(3).await;
    let writer = cluster.nodes[0].plane.spool().begin(PATIENCE).await.unwrap();
    let envelope = Envelope {
        sender: "a@example.org".to_owned(),
        recipients: vec![Recipient {
            address: "b@hermes.cam.ac.uk".to_owned(),
            ..Recipient::default()
        }],
        received: UnixMs(1_790_000_000_000),
        ..Envelope::default()
    };
    let id = writer.accept(envelope, PATIENCE).await.unwrap().to_string();

    let status = json(&cluster, "status --json").await;
    let states: Vec<_> = status["nodes"].as_array().unwrap().iter().map(|n| &n["state"]).collect();
    assert_eq!(states, ["up", "up", "up"]);
    assert_eq!(status["partitions"][1]["leader"], 2);
    assert_eq!(status["partitions"][1]["voters"].as_array().unwrap().len(), 3);

    let log = json(&cluster, "status --log --json --viewer").await;
    let nodes = log["nodes"].as_array().unwrap();
    assert!(nodes.len() == 3 && log["silent"] == Value::Array(Vec::new()), "{log}");
    for node in nodes {
        assert!(node["bytes"].as_u64() >= Some(8 << 20) && node["segments"] == 1, "{node}");
        assert_eq!(node["bound_bytes"], 1 << 30);
        let kept = node["kept"].as_array().unwrap().iter().find(|kept| kept["group"] == 1);
        assert_eq!(kept.unwrap()["reason"]["id"], id.as_str(), "{node}");
    }
    let told = run(&cluster, "status --log").await;
    assert!(String::from_utf8(told.stdout).unwrap().contains(&format!("message {id}, ")));

    let drained = run(&cluster, "drain node-1 --timeout 30s").await;
    let told = String::from_utf8(drained.stdout.clone()).unwrap();
    assert!(drained.status.success(), "{drained:?}");
    assert!(told.lines().last().unwrap().contains("safe to stop"), "{told}");
    let list = json(&cluster, "--json queue list --domain hermes.cam.ac.uk").await;
    assert_eq!(list[0]["id"], id.as_str());
    assert_eq!(list[0]["recipients"][0]["address"], "b@hermes.cam.ac.uk");
    assert_eq!(list[0]["received"], "2026-09-21T14:13:20Z");
    assert_eq!(list[0]["expires"], "2026-09-26T14:13:20Z");
    assert_ne!(list[0]["node"], 1);
    assert_eq!(json(&cluster, "queue list --json --age -1h").await, Value::Array(Vec::new()));
    assert_eq!(json(&cluster, "queue summary --json").await["messages"], 1);
    assert!(run(&cluster, &format!("queue show {id}")).await.status.success());

    let refused = run(&cluster, "drain 2").await;
    assert_eq!(code(&refused), 1);
    assert!(stderr(&refused).contains("undrain 1"), "{refused:?}");
    let back = json(&cluster, "undrain 1 --json").await;
    assert_eq!(back["state"], "up");

    // A node that is down hands nothing over; by force it is kept from coming back into service.
    cluster.nodes[2].plane.shutdown().await;
    let refused = run(&cluster, "drain 3").await;
    assert!(code(&refused) == 1 && stderr(&refused).contains("does not answer"), "{refused:?}");
    let forced = run(&cluster, "drain 3 --force --timeout 30s").await;
    assert!(forced.status.success(), "{forced:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_are_as_documented() {
    let cluster = Cluster::start(1).await;
    let token = run(&cluster, "token create --expires 5m").await;
    let text = String::from_utf8(token.stdout).unwrap();
    assert!(text.starts_with("ppsw1-") && text.lines().count() == 1, "{text}");
    assert_eq!(json(&cluster, "token list --json").await.as_array().unwrap().len(), 2);
    assert_eq!(code(&run(&cluster, "token create --viewer").await), 1);
    assert_eq!(code(&run(&cluster, "status --viewer").await), 0);
    assert_eq!(code(&run(&cluster, "drain 7").await), 1);
    assert_eq!(code(&run(&cluster, "drain 1").await), 1);
    assert_eq!(code(&run(&cluster, "drain 1 --timeout soon").await), 2);
    assert_eq!(code(&run(&cluster, "queue list --state stuck").await), 2);
    assert_eq!(code(&run(&cluster, "queue show 1vN3kq-000001-02").await), 1);
    // By force, and with nobody to take over: the wait ends.
    let late = run(&cluster, "drain 1 --force --timeout 1s").await;
    assert_eq!(code(&late), 4, "{late:?}");
    cluster.nodes[0].plane.shutdown().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let silent = run(&cluster, "status").await;
    assert_eq!(code(&silent), 3, "{silent:?}");
}
