//! What operators do with messages that wait, on a real cluster.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{collections::BTreeMap, path::Path, process::Command};

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE},
    report,
    sink::field,
    wait_for,
};
use serde_json::Value;

/// `2026-11-23 20:00:00 +0000`
const TIME_BYTES: usize = 25;

/// One message from each node's partition, to two recipients.
fn send(cluster: &Cluster, node: u64) -> String {
    let mut client = Client::connect(cluster.node(node).smart).unwrap();
    client.ehlo().unwrap();
    let recipients = [format!("a{node}@example.org"), format!("b{node}@example.org")];
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let body = format!("Subject: by node {node}\r\n\r\nx\r\n");
    let reply = client.send("sender@example.org", &recipients, body.as_bytes()).unwrap();
    assert_eq!(reply.code, 250, "{reply:?}");
    client.quit();
    let list = cluster.ctl_json(&["queue", "list", "--recipient", recipients[0]]);
    list[0]["id"].as_str().unwrap().to_owned()
}

/// States of the messages, by id.
fn states(cluster: &Cluster) -> BTreeMap<String, String> {
    let list = cluster.ctl_json(&["queue", "list"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(|m| (text(&m["id"]), text(&m["state"]))).collect()
}

#[test]
fn operators_hold_redirect_bounce_drop_and_release() {
    let mut cluster = Cluster::start(3_600);
    cluster.kill_sink();
    let ids: Vec<String> = (1..=3).map(|node| send(&cluster, node)).collect();
    wait_for("all to be tried", PATIENCE, || {
        let list = cluster.ctl_json(&["queue", "list", "--state", "deferred"]);
        (list.as_array()?.len() == 3).then_some(())
    });

    // What is refused, and why.
    for (arguments, expected) in [
        (&["--viewer", "queue", "hold", "--all"][..], "viewer"),
        (&["queue", "hold"], "--all"),
        (&["queue", "drop", "--domain", "example.org"], "--reason"),
        (&["queue", "bounce", ids[0].as_str()], "--reason"),
        (&["queue", "redirect", "--all", "--to", "nowhere", "--reason", "x"], "--to"),
        (&["queue", "retry", "nonsense"], "expected a message id"),
        (&["queue", "release", ids[0].as_str()], "it is not held"),
        (&["queue", "retry", "1vN3kq-000001-02"], "not in the queue"),
    ] {
        let (code, text) = cluster.ctl(arguments);
        assert!(code == 1 && text.contains(expected), "{arguments:?}: {code} {text}");
    }

    // On hold, wherever it is led, also after its leader has died.
    let held = cluster.ctl_json(&["queue", "hold", "--domain", "EXAMPLE.org"]);
    assert_eq!((&held["done"], held["messages"].as_array().unwrap().len()), (&"held".into(), 3));
    for id in &ids {
        assert_eq!(states(&cluster)[id], "held");
    }
    cluster.kill(2);
    wait_for("another to lead what node 2 led", PATIENCE, || {
        (states(&cluster).get(&ids[1])? == "held").then_some(())
    });

    // A node that does not answer is no failure when others lead everything; by its name, it is asked for itself.
    let redirect = ["queue", "redirect", "--recipient", "a1@*", "--to", "moved@example.org"];
    let (code, text) = cluster.ctl(&[&redirect[..], &["--reason", "moved"]].concat());
    let done = text.contains("1 messages redirected, 0 refused");
    assert!(code == 0 && done && !text.contains("no answer"), "{code} {text}");
    let (code, text) = cluster.ctl(&["queue", "hold", "--node", "2"]);
    assert!(code == 1 && text.contains("no answer from node 2: its messages"), "{code} {text}");
    cluster.restart(2);
    cluster.wait_ready(2);
    let (code, text) =
        cluster.ctl(&["queue", "drop", "--recipient", "b3@example.org", "--reason", "spam"]);
    assert!(code == 0 && text.contains(&format!("{}: dropped, 1 recipient", ids[2])), "{text}");
    // It may be handed back to node 2 just now.
    let bounced = wait_for("the bounce", PATIENCE, || {
        let (code, text) = cluster.ctl(&["queue", "bounce", ids[1].as_str(), "--reason", "old"]);
        (code == 0).then_some(text)
    });
    assert!(bounced.contains(&format!("{}: bounced, 2 recipients", ids[1])), "{bounced}");

    cluster.restart_sink();
    let released = cluster.ctl_json(&["queue", "release", ids[0].as_str(), ids[2].as_str()]);
    assert_eq!(released["messages"].as_array().unwrap().len(), 2, "{released}");
    // The bounce has found nobody, and would wait for a quarter of an hour.
    wait_for("the bounce to be tried again", PATIENCE, || {
        let (code, text) = cluster.ctl(&["queue", "retry", "--sender", "<>"]);
        let done = text.contains("1 messages retried") || states(&cluster).is_empty();
        (code == 0 && done).then_some(())
    });
    let mut maildir = cluster.maildir();
    let expected = ["a3@example.org", "b1@example.org", "moved@example.org", "sender@example.org"];
    wait_for("what is left", PATIENCE, || {
        let mut recipients: Vec<String> =
            maildir.messages().flat_map(|filed| filed.recipients.clone()).collect();
        recipients.sort();
        (recipients == expected).then_some(())
    });
    let bounce = maildir.messages().find(|filed| filed.recipients == ["sender@example.org"]);
    let content = &bounce.unwrap().content;
    assert!(field(content, "Subject").unwrap().contains("failed"), "{content:?}");
    let report = report::read(content);
    assert_eq!(report.original, "message/rfc822");
    let of = |fields| (report::value(fields, "final-recipient"), report::value(fields, "action"));
    let told: Vec<(&str, &str)> = report.recipients.iter().map(|fields| of(fields)).collect();
    assert_eq!(told, [("rfc822; a2@example.org", "failed"), ("rfc822; b2@example.org", "failed")]);
    wait_for("an empty queue", PATIENCE, || states(&cluster).is_empty().then_some(()));

    // Each has left its line.
    let logs: String = (1..=3)
        .map(|node| std::fs::read_to_string(cluster.node_dir(node).join("log/mainlog")).unwrap())
        .collect();
    for (id, rest) in [
        (&ids[0], "redirected by admin for a1@example.org to moved@example.org: moved"),
        (&ids[1], "held by admin"),
        (&ids[1], "bounced by admin for a2@example.org b2@example.org: old"),
        (&ids[2], "dropped by admin for b3@example.org: spam"),
        (&ids[2], "released by admin"),
    ] {
        assert!(logs.contains(&format!("{id} {rest}")), "{rest}: {logs}");
    }
    exim_tools_read_the_log(&cluster, &logs, &ids);
}

/// `exigrep` finds all lines of a message, and `eximstats` counts what there was: four messages, the bounce among them.
fn exim_tools_read_the_log(cluster: &Cluster, logs: &str, ids: &[String]) {
    let mut lines: Vec<&str> = logs.lines().collect();
    // By time alone: of one second, each node's lines stay in their order.
    lines.sort_by_key(|line| line.get(..TIME_BYTES));
    let path = cluster.dir().join("mainlog");
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let program =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/exim/usr/sbin").join(program);
        let output = Command::new("perl").arg(program).args(arguments).arg(&path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for id in ids {
        let found = run("exigrep", &[id]);
        // It finds the report about the message, too.
        let own = format!(" {id} ");
        let of_message = |line: &&str| line.contains(&own);
        let found: Vec<&str> = found.lines().filter(of_message).collect();
        let expected: Vec<&str> = lines.iter().copied().filter(of_message).collect();
        assert!(expected.len() > 3 && found == expected, "{found:#?}, expected {expected:#?}");
    }
    let statistics = run("eximstats", &[]);
    let numbers = |row: &str| -> Vec<String> {
        let line = statistics.lines().find(|line| line.trim_start().starts_with(row));
        line.unwrap().split_whitespace().skip(1).map(str::to_owned).collect()
    };
    assert_eq!(numbers("Received")[1], "4", "{statistics}");
    assert_eq!(numbers("Delivered")[2], "4", "{statistics}");
    println!("{}", statistics.lines().take(12).collect::<Vec<_>>().join("\n"));
}
