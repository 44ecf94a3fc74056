//! Cases of verbs about nodes.

use std::{fs, time::Duration};

use ppsw_tests::{cluster::PATIENCE, wait_for};
use serde_json::json;

use crate::stage::Stage;

pub(crate) fn status(stage: &mut Stage) {
    let words = ["cluster ", "asked node 1", "1 node-1", "up", "control", "partition 3"];
    stage.human(0, &["status"], &words);
    let fields = ["cluster", "asked", "nodes", "partitions", "control", "placement", "removed"];
    let status = stage.json(0, &["status"], &fields);
    for id in [1, 2, 3] {
        let (node, partition) = (&status["nodes"][id - 1], &status["partitions"][id - 1]);
        assert_eq!((&node["id"], &node["state"]), (&json!(id), &json!("up")), "{status}");
        assert_eq!((&partition["id"], &partition["leader"]), (&json!(id), &json!(id)), "{status}");
        assert_eq!(partition["voters"].as_array().unwrap().len(), 3, "{status}");
        assert!(node["version"].is_string() && node["not_ready"] == json!([]), "{status}");
    }
    stage.human(0, &["status", "--log"], &["carries from", "segments", "because of", "control"]);
    let log = stage.json(0, &["status", "--log"], &["nodes", "silent"]);
    for field in ["id", "segments", "bytes", "live_bytes", "bound_bytes", "free_bytes", "kept"] {
        assert!(log["nodes"][2].get(field).is_some(), "{field}: {log}");
    }
}

pub(crate) fn list(stage: &mut Stage) {
    stage.human(0, &["node", "list"], &["1 node-1", "2 node-2", "3 node-3", "127.10.3.9"]);
    let nodes = stage.json(0, &["node", "list"], &["id", "name", "state", "control", "http"]);
    assert_eq!(nodes.as_array().unwrap().len(), 3, "{nodes}");
}

pub(crate) fn placement_show(stage: &mut Stage) {
    let words = ["voters of a partition: 3", "a silent node loses its votes after: 10m"];
    stage.human(0, &["placement", "show"], &words);
    let placement = stage.json(0, &["placement", "show"], &["voters", "replace_after_ms"]);
    assert_eq!(placement, json!({ "voters": 3, "replace_after_ms": 600_000 }));
}

pub(crate) fn placement_set(stage: &mut Stage) {
    stage.human(2, &["placement", "set"], &["expected --voters or --replace-after"]);
    stage.human(1, &["placement", "set", "--voters", "4"], &["expected"]);
    let set = ["placement", "set", "--replace-after"];
    stage.human(0, &[&set[..], &["15m"]].concat(), &["after: 15m"]);
    let placement = stage.json(0, &[&set[..], &["10m"]].concat(), &["voters"]);
    assert_eq!(placement["replace_after_ms"], 600_000);
}

pub(crate) fn token_create(stage: &mut Stage) {
    let token = stage.human(0, &["token", "create", "--expires", "5m"], &["ppsw1-"]);
    assert_eq!(token.lines().count(), 1, "{token}");
    let made = stage.json(0, &["token", "create"], &["id", "token", "expires"]);
    assert!(made["token"].as_str().unwrap().starts_with("ppsw1-"), "{made}");
    stage.names.insert("token", made["id"].as_str().unwrap().to_owned());
    stage.human(1, &["token", "create", "--expires", "30d"], &["at most 7 days"]);
    stage.human(2, &["token", "create", "--expires", "soon"], &["soon", "30s"]);
}

pub(crate) fn token_list(stage: &mut Stage) {
    let id = &stage.names["token"];
    stage.human(0, &["token", "list"], &["expires", "admin", id]);
    let tokens = stage.json(0, &["token", "list"], &["id", "created", "expires", "by", "expired"]);
    assert!(tokens.as_array().unwrap().iter().any(|token| token["id"] == **id), "{tokens}");
    assert!(!tokens.to_string().contains("ppsw1-"), "secrets are shown once: {tokens}");
}

pub(crate) fn token_revoke(stage: &mut Stage) {
    let id = &stage.names["token"];
    let revoked = stage.json(0, &["token", "revoke", id], &["id", "revoked"]);
    assert_eq!(revoked["id"], **id);
    stage.human(1, &["token", "revoke", id], &["there is no token", "ppswctl token list"]);
    let other = stage.cluster.ctl_json(&["token", "create"])["id"].as_str().unwrap().to_owned();
    stage.human(0, &["token", "revoke", &other], &[&format!("token {other}: revoked")]);
}

pub(crate) fn drain(stage: &mut Stage) {
    stage.human(0, &["drain", "2"], &["node 2: drained, safe to stop"]);
    let again = stage.json(0, &["drain", "node-2"], &["node", "state", "safe_to_stop"]);
    assert_eq!(again, json!({ "node": 2, "state": "drained", "safe_to_stop": true }));
    stage.human(1, &["drain", "3"], &["undrain 2"]);
    assert!(stage.failure(1, &["drain", "3"]).contains("undrain 2"));
}

pub(crate) fn undrain(stage: &mut Stage) {
    stage.human(0, &["undrain", "2"], &["node 2: back in service, leads its own partition"]);
    let back = stage.json(0, &["undrain", "2"], &["node", "state"]);
    assert_eq!(back, json!({ "node": 2, "state": "up" }));
}

pub(crate) fn rolling_restart(stage: &mut Stage) {
    let trouble = ["the command failed", "stopped at node 3; 0 nodes are restarted", "--nodes 3"];
    stage.human(1, &["rolling-restart", "--exec", "exit 3", "--nodes", "3"], &trouble);
    assert_eq!(stage.cluster.ctl(&["undrain", "3"]).0, 0);
    // The command asks us, as a service manager is asked.
    let dir = stage.path("restart");
    fs::create_dir(&dir).unwrap();
    let ask =
        format!("cd {} && touch wanted && while [ ! -e done ]; do sleep 0.05; done", dir.display());
    let (wanted, done) = (dir.join("wanted"), dir.join("done"));
    let arguments = ["rolling-restart", "--exec", &ask, "--nodes", "3", "--timeout", "60s"];
    let mut running = stage.start(&[&arguments[..], &["--json"]].concat());
    wait_for("the command to be run", PATIENCE, || wanted.exists().then_some(()));
    stage.cluster.kill(3);
    stage.cluster.restart(3);
    fs::write(done, "").unwrap();
    wait_for("the end of the restart", PATIENCE, || running.try_wait().unwrap());
    let output = running.wait_with_output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told, json!({ "restarted": [3] }));
    stage.note(&arguments, crate::stage::Form::Json);
}

/// The last one: the cluster has two nodes after it.
pub(crate) fn remove(stage: &mut Stage) {
    let remove = ["node", "remove", "3", "--reason", "end of life"];
    stage.human(2, &remove[..3], &["--reason"]);
    stage.human(1, &["node", "remove", "3", "--reason", " "], &["expected a --reason"]);
    let left = stage.json(0, &[&remove[..], &["--timeout", "60s"]].concat(), &["messages"]);
    assert_eq!((&left["node"], &left["state"]), (&json!(3), &json!("removed")));
    stage.human(1, &remove, &["no node \"3\" in this cluster; there are 1, 2"]);
    let gone = wait_for("node 3 to be listed as gone", Duration::from_secs(10), || {
        let status = stage.cluster.ctl_json(&["status"]);
        status["removed"].as_array()?.first().cloned()
    });
    assert_eq!((&gone["id"], &gone["reason"]), (&json!(3), &json!("end of life")));
}
