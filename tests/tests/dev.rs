//! `ppswd dev` itself: what is killed comes back with `--restart`, and what lives in DIR with `--resume`.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE},
    sink::ID_FIELD,
    wait_for,
};
use serde_json::Value;

/// Id, reception and expiry of all that waits, once each message has been tried.
fn waiting(cluster: &Cluster, messages: usize) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    wait_for("the queue", PATIENCE, || {
        let queue = cluster.ctl_json(&["queue", "list"]);
        let queue = queue.as_array().unwrap();
        let tried = |message: &Value| message["recipients"][0]["attempts"].as_u64() >= Some(1);
        let mut list: Vec<_> = queue
            .iter()
            .filter(|message| tried(message))
            .map(|message| {
                (text(&message["id"]), text(&message["received"]), text(&message["expires"]))
            })
            .collect();
        list.sort();
        (list.len() == messages).then_some(list)
    })
}

fn send(cluster: &Cluster, node: u64, id: &str) {
    let mut client = Client::connect(cluster.node(node).smart).unwrap();
    client.ehlo().unwrap();
    let content = format!("{ID_FIELD}: {id}\r\n\r\nx\r\n");
    let reply = client.send("a@example.org", &["b@example.org"], content.as_bytes()).unwrap();
    assert_eq!(reply.code, 250, "{reply:?}");
    client.quit();
}

#[test]
fn dev_restarts_nodes_and_resumes_clusters() {
    let mut cluster = Cluster::start_with(3_300, &["--restart"]);
    cluster.kill_sink();
    for node in 1..=3 {
        send(&cluster, node, &format!("dev-{node}"));
    }
    let before = waiting(&cluster, 3);

    let first = cluster.node(2).pid;
    ppsw_tests::process::signal(first, rustix::process::Signal::KILL);
    wait_for("node 2 to be started again", PATIENCE, || {
        cluster.look_again();
        (cluster.node(2).pid != first).then_some(())
    });
    cluster.wait_ready(2);
    assert_eq!(waiting(&cluster, 3), before);

    let password = cluster.password("spqr1").to_owned();
    cluster.resume();
    assert_eq!(cluster.password("spqr1"), password, "passwords are of the cluster, not of a run");
    assert_eq!(waiting(&cluster, 3), before);
    let mut maildir = cluster.maildir();
    send(&cluster, 2, "dev-4");
    wait_for("a message after the resumption", PATIENCE, || {
        let mut filed = maildir.messages();
        filed.find(|filed| filed.id().as_deref() == Some("dev-4")).map(|_| ())
    });
}
