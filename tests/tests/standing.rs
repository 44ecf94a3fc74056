//! Rules that operators leave, destinations that wait, and the content of a message, on a real cluster.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::process::Command;

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE},
    process, wait_for,
};
use serde_json::{Value, json};

/// A message to one address, with a line that only it has.
fn send(cluster: &Cluster, node: u64, to: &str, line: &str) {
    let mut client = Client::connect(cluster.node(node).smart).unwrap();
    client.ehlo().unwrap();
    let body = format!("Subject: {line}\r\n\r\n.{line}\r\n");
    let reply = client.send("sender@example.org", &[to], body.as_bytes()).unwrap();
    assert_eq!(reply.code, 250, "{reply:?}");
    client.quit();
}

/// Texts of the last errors of all recipients in the queue.
fn errors(cluster: &Cluster) -> Vec<String> {
    let list = cluster.ctl_json(&["queue", "list"]);
    let recipients = list.as_array().unwrap().iter().flat_map(|m| m["recipients"].as_array());
    recipients.flatten().map(|r| r["last_error"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn destinations_wait_and_rules_stand() {
    let mut cluster = Cluster::start(5_200);
    refusals(&cluster);

    // What goes to a suspended domain waits on all nodes, also after one has died and come back.
    let rule =
        cluster.ctl_json(&["suspend", "example.org", "--for", "1h", "--reason", "it floods us"]);
    assert_eq!((&rule[0]["verb"], &rule[0]["by"]), (&"suspend".into(), &"admin".into()), "{rule}");
    let mut maildir = cluster.maildir();
    wait_for("all nodes to know", PATIENCE, || {
        // A node without a vote hears of it a second later.
        (1..=3).for_each(|node| send(&cluster, node, "a@example.org", &format!("to {node}")));
        let waiting = errors(&cluster);
        let kept = |text: &String| text.starts_with("suspended by rule 1 of admin: it floods us");
        (waiting.iter().filter(|text| kept(text)).count() >= 3).then_some(())
    });
    let before = maildir.messages().count();
    cluster.kill(2);
    cluster.restart(2);
    cluster.wait_ready(2);
    send(&cluster, 2, "b@example.org", "after the restart");
    wait_for("the last to be looked at", PATIENCE, || {
        let list = cluster.ctl_json(&["queue", "list", "--recipient", "b@example.org"]);
        (list[0]["recipients"][0]["attempts"] == 1).then_some(())
    });
    assert_eq!(maildir.messages().count(), before, "nothing goes out");

    shown_whole(&cluster);

    // The end of it: everything goes, at once.
    let waiting = cluster.ctl_json(&["queue", "list"]).as_array().unwrap().len();
    let ended = cluster.ctl_json(&["resume", "Example.org"]);
    assert_eq!(ended[0]["id"], 1, "{ended}");
    wait_for("all delivered", PATIENCE, || {
        (maildir.messages().count() == before + waiting).then_some(())
    });

    rules_stand(&cluster);
    sessions_are_shed(&cluster);
}

fn refusals(cluster: &Cluster) {
    for (arguments, expected) in [
        (&["--viewer", "suspend", "a.example", "--reason", "x"][..], "viewer"),
        (&["--viewer", "queue", "cat", "1vN3kq-000001-02"], "viewer"),
        (&["suspend", "a.example", "--reason", " "], "--reason"),
        (&["suspend", "a.example", "--reason", "x", "--for", "60d"], "up to 31 days"),
        (&["resume", "a.example"], "a.example is not suspended"),
        (&["queue", "cancel", "77"], "no rule 77 stands"),
        (&["queue", "cat", "1vN3kq-000001-02"], "no message 1vN3kq-000001-02 in the queue"),
        (&["queue", "cat", "nonsense"], "expected a message id"),
        (&["queue", "retry", "--domain", "a", "--standing", "1h", "--reason", "x"], "cannot stand"),
        (
            &["queue", "hold", "--age", "1h", "--standing", "1h", "--reason", "x"],
            "messages to come",
        ),
        (&["queue", "hold", "--domain", "a", "--standing", "1h"], "--reason"),
    ] {
        let (code, text) = cluster.ctl(arguments);
        assert!(code == 1 && text.contains(expected), "{arguments:?}: {code} {text}");
    }
    let (code, text) = cluster.ctl(&["--viewer", "queue", "rules"]);
    assert!(code == 0 && text.contains("rule"), "{code} {text}");
}

/// The content of a message that another node leads: bytes as they were sent, behind our `Received`.
fn shown_whole(cluster: &Cluster) {
    for node in 1..=3 {
        let to = format!("whole{node}@example.org");
        send(cluster, node, &to, "all of it");
        let list = cluster.ctl_json(&["queue", "list", "--recipient", &to]);
        let id = list[0]["id"].as_str().unwrap();
        let output = Command::new(process::program("ppswctl"))
            .args(["--cluster", cluster.dir().join("cluster.json").to_str().unwrap()])
            .args(["queue", "cat", id])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.starts_with("Received: from "), "{text}");
        assert!(text.ends_with("\r\nSubject: all of it\r\n\r\n.all of it\r\n"), "{text:?}");
        assert_eq!(text.len() as u64, list[0]["size"].as_u64().unwrap());
    }
}

/// Foreigners' sessions of one personality, on all nodes, and nobody else's.
fn sessions_are_shed(cluster: &Cluster) {
    let (code, text) = cluster.ctl(&["shed", "set", "mix", "50%", "--reason", "x"]);
    assert!(code == 1 && text.contains("no personality `mix`; there are"), "{code} {text}");
    let (code, text) = cluster.ctl(&["--viewer", "shed", "clear"]);
    assert!(code == 1 && text.contains("viewer"), "{code} {text}");
    let (code, text) = cluster.ctl(&["shed", "set", "mx", "101%", "--reason", "x"]);
    assert!(code == 2 && text.contains("1% to 100%"), "{code} {text}");
    cluster.ctl_json(&["shed", "set", "mx", "100%", "--for", "10m", "--reason", "too much"]);
    let shed = cluster.ctl_json(&["--viewer", "shed", "list"]);
    assert_eq!((&shed[0]["personality"], &shed[0]["percent"]), (&"mx".into(), &100.into()));
    let greeted = |node: u64| Client::connect_from([127, 200, 0, 1].into(), cluster.node(node).mx);
    wait_for("all nodes to shed", PATIENCE, || {
        (1..=3)
            .all(|node| {
                let refused = greeted(node).err().map(|error| error.to_string());
                refused
                    .is_some_and(|text| text.contains("421 4.7.0 This service takes only a part"))
            })
            .then_some(())
    });
    for node in 1..=3 {
        Client::connect(cluster.node(node).mx).unwrap();
        let figure = cluster.figure(node, "ppsw_smtp_connections_total", "result=\"shed\"");
        assert!(figure.is_some_and(|count| count >= 1.0), "{figure:?}");
    }
    cluster.ctl_json(&["shed", "clear", "mx"]);
    assert_eq!(cluster.ctl(&["shed", "clear"]).0, 1);
    wait_for("all nodes to take all", PATIENCE, || {
        (1..=3).all(|node| greeted(node).is_ok()).then_some(())
    });
    nodes_shed_by_themselves(cluster);
}

/// No disk has as much space as the policy wants here.
fn nodes_shed_by_themselves(cluster: &Cluster) {
    let path = cluster.dir().join("config/policy.kdl");
    let policy = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("shed_space_under \"4000000G\"\n{policy}")).unwrap();
    cluster.apply_config();
    let shedding = |status: &Value, node: usize| status["nodes"][node]["shedding"].clone();
    wait_for("all nodes to say that they shed", PATIENCE, || {
        let status = cluster.ctl_json(&["status"]);
        (0..3)
            .all(|node| shedding(&status, node) == json!({ "signal": "space", "percent": 100 }))
            .then_some(())
    });
    for node in 1..=3 {
        let stranger = Client::connect_from([127, 200, 0, 1].into(), cluster.node(node).mx);
        let refused = stranger.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("421 4.7.0 This service takes only a part"), "{refused}");
        Client::connect(cluster.node(node).mx).unwrap();
        let figure = cluster.figure(node, "ppsw_shed_ratio", "personality=\"mx\"");
        assert_eq!(figure, Some(1.0));
    }
    let (_, text) = cluster.ctl(&["status"]);
    assert!(text.contains("turns away 100 % of strangers' sessions (space)"), "{text}");
    std::fs::write(&path, policy).unwrap();
    cluster.apply_config();
    wait_for("all nodes to take all again", PATIENCE, || {
        let status = cluster.ctl_json(&["status"]);
        (0..3).all(|node| shedding(&status, node).is_null()).then_some(())
    });
}

fn rules_stand(cluster: &Cluster) {
    let add = |arguments: &[&str]| {
        let rest = ["--standing", "2h", "--reason", "a test"];
        cluster.ctl_json(&[&["queue"], arguments, &rest].concat())[0]["id"].as_u64().unwrap()
    };
    let moved = add(&["redirect", "--recipient", "old@example.org", "--to", "new@example.org"]);
    let held = add(&["hold", "--sender", "sender@*", "--recipient", "held@EXAMPLE.org"]);
    let dropped = add(&["drop", "--recipient", "gone@example.org"]);
    let rules = cluster.ctl_json(&["queue", "rules"]);
    let ids: Vec<u64> =
        rules.as_array().unwrap().iter().map(|r| r["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [moved, held, dropped]);
    let (_, table) = cluster.ctl(&["queue", "rules"]);
    assert!(table.contains("--recipient old@example.org --to new@example.org"), "{table}");
    std::thread::sleep(std::time::Duration::from_secs(3));

    let mut maildir = cluster.maildir();
    for node in 1..=3 {
        send(cluster, node, "old@example.org", "moved");
        send(cluster, node, "held@example.org", "kept");
        send(cluster, node, "gone@example.org", "dropped");
    }
    wait_for("what is left", PATIENCE, || {
        let moved = maildir.messages().filter(|m| m.recipients == ["new@example.org"]).count();
        let held = cluster.ctl_json(&["queue", "list", "--state", "held"]);
        let all = cluster.ctl_json(&["queue", "list"]);
        (moved == 3 && held.as_array()?.len() == 3 && all.as_array()?.len() == 3).then_some(())
    });
    let mut to =
        |address: &str| maildir.messages().any(|m| m.recipients.iter().any(|r| r == address));
    assert!(!to("old@example.org") && !to("gone@example.org") && !to("held@example.org"));
    let logs: String = (1..=3)
        .map(|node| std::fs::read_to_string(cluster.node_dir(node).join("log/mainlog")).unwrap())
        .collect();
    for line in ["dropped by admin for gone@example.org: a test", "held by admin: a test"] {
        assert_eq!(logs.matches(line).count(), 3, "{line}: {logs}");
    }

    // What a rule has done stays done; what it would do, it does no more.
    let (code, text) = cluster.ctl(&["queue", "cancel", &moved.to_string(), &held.to_string()]);
    assert_eq!(code, 0, "{text}");
    std::thread::sleep(std::time::Duration::from_secs(3));
    send(cluster, 1, "old@example.org", "not moved");
    let (code, text) = cluster.ctl(&["queue", "drop", "--state", "held", "--reason", "the end"]);
    assert!(code == 0 && text.contains("3 messages dropped"), "{text}");
    let mut maildir = cluster.maildir();
    wait_for("an end", PATIENCE, || {
        maildir.messages().any(|m| m.recipients == ["old@example.org"]).then_some(())
    });
}
