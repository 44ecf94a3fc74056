//! Cases of verbs that show what happens until they are stopped, or their time is over.

use std::process::Output;

use ppsw_tests::{client::Client, cluster::PATIENCE, wait_for};
use serde_json::Value;

use crate::stage::{Form, Stage, said};

pub(crate) fn top(stage: &mut Stage) {
    let once = ["top", "--count", "1"];
    stage.human(0, &once, &["messages in the queue", "node 1 up", "node 3 up"]);
    let top = stage.json(0, &once, &["time", "cluster", "nodes", "partitions", "control", "queue"]);
    assert_eq!(top["nodes"].as_array().unwrap().len(), 3, "{top}");
}

pub(crate) fn events(stage: &mut Stage) {
    let since = ["events", "--since", "1h", "--for", "1s"];
    stage.human(0, &since, &["node-1", "leader"]);
    let output = stage.run(&[&since[..], &["--json"]].concat());
    let all = lines(&output.stdout, &["time", "node", "event"]);
    let leads = |node: u64| all.iter().any(|e| e["event"] == "leader" && e["node"] == node);
    assert!((1..=3).all(leads), "{all:?}");
    stage.note(&since, Form::Json);
}

pub(crate) fn trace(stage: &mut Stage) {
    let one = ["trace", "--in", "--count", "1", "--for", "1m"];
    let text = said(&traced(stage, &one));
    assert!(text.contains("node-1 in "), "{text}");
    stage.note(&one, Form::Human);
    let output = traced(stage, &[&one[..], &["--json"]].concat());
    let fields = ["time", "node", "direction", "session", "peer", "host", "way", "text"];
    assert_eq!(lines(&output.stdout, &fields).len(), 1, "{output:?}");
    stage.note(&one, Form::Json);
}

/// What it shows while clients come, until it ends by itself.
fn traced(stage: &Stage, arguments: &[&str]) -> Output {
    let mut trace = stage.start(arguments);
    wait_for("the trace's end", PATIENCE, || {
        let mut client = Client::connect(stage.cluster.node(1).smart).unwrap();
        client.ehlo().unwrap();
        client.quit();
        trace.try_wait().unwrap()
    });
    let output = trace.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

/// Objects, one a line, each with all of `fields`.
fn lines(output: &[u8], fields: &[&str]) -> Vec<Value> {
    let text = String::from_utf8_lossy(output);
    let all: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for field in fields {
        assert!(all.iter().all(|object| object.get(field).is_some()), "{field}: {all:?}");
    }
    all
}
