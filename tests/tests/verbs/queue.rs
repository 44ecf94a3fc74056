//! Cases of verbs about messages, and about what is not sent or taken.

use ppsw_tests::{client::Client, cluster::PATIENCE, wait_for};
use serde_json::{Value, json};

use crate::stage::Stage;

/// A message from each node's partition, which waits because nobody takes it; their ids are `id1`, `id2` and `id3`.
fn fill(stage: &mut Stage) {
    stage.cluster.kill_sink();
    for node in 1..=3 {
        let mut client = Client::connect(stage.cluster.node(node).smart).unwrap();
        client.ehlo().unwrap();
        let to = [format!("a{node}@example.org"), format!("b{node}@example.org")];
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        let body = format!("Subject: by node {node}\r\n\r\nx\r\n");
        let reply = client.send("sender@example.org", &to, body.as_bytes()).unwrap();
        assert_eq!(reply.code, 250, "{reply:?}");
        client.quit();
    }
    let list = wait_for("all to be tried", PATIENCE, || {
        let list = stage.cluster.ctl_json(&["queue", "list", "--state", "deferred"]);
        (list.as_array()?.len() == 3).then_some(list)
    });
    for (name, number) in [("id1", 1), ("id2", 2), ("id3", 3)] {
        let first = format!("a{number}@example.org");
        let mut all = list.as_array().unwrap().iter();
        let message = all.find(|message| message["recipients"][0]["address"] == first).unwrap();
        stage.names.insert(name, message["id"].as_str().unwrap().to_owned());
    }
}

pub(crate) fn list(stage: &mut Stage) {
    fill(stage);
    let id = &stage.names["id2"];
    stage.human(0, &["queue", "list"], &[id, "<sender@example.org>", "deferred a2@example.org"]);
    let fields = [
        "id",
        "sender",
        "recipients",
        "received",
        "next_retry",
        "expires",
        "size",
        "state",
        "node",
    ];
    let list = stage.json(0, &["queue", "list", id], &fields);
    assert_eq!((list.as_array().unwrap().len(), &list[0]["id"]), (1, &json!(id)));
    let recipient = &list[0]["recipients"][0];
    for field in ["address", "state", "attempts", "last_error"] {
        assert!(recipient.get(field).is_some(), "{field}: {recipient}");
    }
    let time = list[0]["expires"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    assert_eq!(stage.json(0, &["queue", "list", "--node", "2"], &[])[0]["id"], **id);
    stage.human(1, &["queue", "list", "nonsense"], &["expected a message id like"]);
    stage.human(2, &["queue", "list", "--state", "stuck"], &["stuck", "deferred"]);
}

pub(crate) fn summary(stage: &mut Stage) {
    stage.human(0, &["queue", "summary"], &["example.org", "3 messages, 6 recipients"]);
    let fields = ["messages", "recipients", "bytes", "oldest", "domains", "silent"];
    let summary = stage.json(0, &["queue", "summary"], &fields);
    assert_eq!((&summary["messages"], &summary["recipients"]), (&json!(3), &json!(6)));
    assert_eq!((&summary["silent"], &summary["missing_partitions"]), (&json!([]), &json!([])));
}

pub(crate) fn show(stage: &mut Stage) {
    let id = &stage.names["id1"];
    let words =
        [id.as_str(), "deferred", "sender     <sender@example.org>", "next retry 20", "attempts"];
    let text = stage.human(0, &["queue", "show", id], &words[..1]);
    words[2..].iter().for_each(|word| assert!(text.contains(word), "{word}: {text}"));
    let shown = stage.json(0, &["queue", "show", id], &["id", "state", "recipients", "partition"]);
    assert_eq!(shown["recipients"].as_array().unwrap().len(), 2);
    stage.human(1, &["queue", "show", "1vN3kq-000001-02"], &["no message 1vN3kq-000001-02"]);
}

pub(crate) fn cat(stage: &mut Stage) {
    let id = &stage.names["id3"];
    let text = stage.human(0, &["queue", "cat", id], &["Received: ", "Subject: by node 3\r\n"]);
    assert!(text.ends_with("\r\n\r\nx\r\n"), "{text:?}");
    stage.human(1, &["queue", "cat", "1vN3kq-000001-02"], &["no message 1vN3kq-000001-02"]);
}

/// Objects of verbs that change messages.
const OPERATED: [&str; 5] = ["done", "messages", "missing", "silent", "missing_partitions"];

pub(crate) fn hold(stage: &mut Stage) {
    let id = &stage.names["id1"];
    let words = [format!("{id}: held, 2 recipients"), "1 messages held, 0 refused".to_owned()];
    stage.human(0, &["queue", "hold", id], &[&words[0], &words[1]]);
    let others = [stage.names["id2"].as_str(), stage.names["id3"].as_str()];
    let held = stage.json(0, &[&["queue", "hold"], &others[..]].concat(), &OPERATED);
    assert_eq!((&held["done"], held["messages"].as_array().unwrap().len()), (&json!("held"), 2));
    stage.human(1, &["queue", "hold"], &["--all"]);
    stage.human(
        1,
        &["queue", "hold", "1vN3kq-000001-02"],
        &["not in the queue", "0 messages held"],
    );
    let rule =
        ["queue", "hold", "--sender", "rule@example.org", "--standing", "1h", "--reason", "x"];
    stage.human(0, &rule, &["hold", "--sender rule@example.org", "admin"]);
}

pub(crate) fn rules(stage: &mut Stage) {
    stage.human(0, &["queue", "rules"], &["rule", "hold", "--sender rule@example.org"]);
    let fields =
        ["id", "verb", "destination", "sender", "recipient", "domain", "to", "until", "by"];
    let rules = stage.json(0, &["queue", "rules"], &fields);
    stage.names.insert("rule", rules[0]["id"].to_string());
}

pub(crate) fn cancel(stage: &mut Stage) {
    let rule = &stage.names["rule"];
    stage.human(0, &["queue", "cancel", rule], &["hold", "--sender rule@example.org"]);
    let none = format!("no rule {rule} stands");
    assert!(stage.failure(1, &["queue", "cancel", rule]).contains(&none));
}

pub(crate) fn release(stage: &mut Stage) {
    let id = &stage.names["id1"];
    stage.human(0, &["queue", "release", id], &[&format!("{id}: released, 2 recipients")]);
    let released = stage.json(0, &["queue", "release", "--state", "held"], &OPERATED);
    assert_eq!(released["messages"].as_array().unwrap().len(), 2, "{released}");
    stage.human(
        1,
        &["queue", "release", id],
        &["it is not held", "0 messages released, 1 refused"],
    );
}

pub(crate) fn retry(stage: &mut Stage) {
    stage.human(0, &["queue", "retry", "--all"], &["3 messages retried, 0 refused"]);
    let retried = stage.json(0, &["queue", "retry", &stage.names["id1"]], &OPERATED);
    assert_eq!(retried["done"], "retried");
}

pub(crate) fn redirect(stage: &mut Stage) {
    let to =
        |to| ["queue", "redirect", "--recipient", "a1@example.org", "--to", to, "--reason", "x"];
    stage.human(1, &to("nowhere"), &["expected --to with an address"]);
    stage.human(0, &to("new@example.org"), &["1 messages redirected, 0 refused"]);
    let none = stage.json(0, &to("new@example.org"), &OPERATED);
    assert_eq!(none["messages"], json!([]), "there is none any more");
}

pub(crate) fn bounce(stage: &mut Stage) {
    let id = &stage.names["id2"];
    stage.human(1, &["queue", "bounce", id], &["expected a --reason"]);
    let bounce = |number| ["queue", "bounce", "--recipient", number, "--reason", "old"];
    stage.human(0, &bounce("a2@example.org"), &[&format!("{id}: bounced, 1 recipient")]);
    let bounced = stage.json(0, &bounce("b2@example.org"), &OPERATED);
    assert_eq!(bounced["messages"][0]["id"], **id, "{bounced}");
}

pub(crate) fn drop(stage: &mut Stage) {
    let id = &stage.names["id3"];
    let words = [&*format!("{id}: dropped, 2 recipients")];
    stage.human(0, &["queue", "drop", id, "--reason", "spam"], &words);
    let dropped = stage.json(0, &["queue", "drop", "--all", "--reason", "the end"], &OPERATED);
    assert!(!dropped["messages"].as_array().unwrap().is_empty(), "{dropped}");
    wait_for("an empty queue", PATIENCE, || {
        // A bounce may have been on its way.
        stage.cluster.ctl(&["queue", "drop", "--all", "--reason", "the end"]);
        (stage.cluster.ctl_json(&["queue", "list"]) == json!([])).then_some(())
    });
    stage.cluster.restart_sink();
}

pub(crate) fn suspend(stage: &mut Stage) {
    let words = ["suspend", "slow.example", "it floods us"];
    stage.human(0, &["suspend", "slow.example", "--reason", "it floods us"], &words);
    let suspend = ["suspend", "*.slow.example", "--for", "2h", "--reason", "x"];
    let rule = stage.json(0, &suspend, &["id", "verb", "destination", "until", "by", "reason"]);
    assert_eq!(rule[0]["destination"], "*.slow.example");
    stage.human(1, &["suspend", "x.example", "--for", "60d", "--reason", "x"], &["31 days"]);
    stage.human(2, &["suspend", "x.example"], &["--reason"]);
}

pub(crate) fn resume(stage: &mut Stage) {
    stage.human(0, &["resume", "slow.example"], &["suspend", "slow.example"]);
    let ended = stage.json(0, &["resume", "*.slow.example"], &["id", "destination"]);
    assert_eq!(ended.as_array().map(Vec::len), Some(1), "{ended}");
    stage.human(1, &["resume", "slow.example"], &["slow.example is not suspended"]);
}

pub(crate) fn shed_set(stage: &mut Stage) {
    stage.human(0, &["shed", "set", "mx", "1%", "--reason", "a flood"], &["shed", "mx 1%"]);
    let set = ["shed", "set", "smart", "1", "--for", "30m", "--reason", "a flood"];
    let rule = stage.json(0, &set, &["id", "verb", "personality", "percent", "until", "reason"]);
    assert_eq!((&rule[0]["personality"], &rule[0]["percent"]), (&json!("smart"), &json!(1)));
    stage.human(1, &["shed", "set", "mix", "50%", "--reason", "x"], &["no personality `mix`"]);
    stage.human(2, &["shed", "set", "mx", "0%", "--reason", "x"], &["1% to 100%"]);
}

pub(crate) fn shed_list(stage: &mut Stage) {
    stage.human(0, &["shed", "list"], &["mx 1%", "smart 1%", "a flood"]);
    let rules = stage.json(0, &["shed", "list"], &["personality", "percent", "until", "by"]);
    assert_eq!(rules.as_array().map(Vec::len), Some(2), "{rules}");
}

pub(crate) fn shed_clear(stage: &mut Stage) {
    stage.human(0, &["shed", "clear", "mx"], &["mx 1%"]);
    let rest: Value = stage.json(0, &["shed", "clear"], &["personality"]);
    assert_eq!(rest[0]["personality"], "smart");
    stage.human(1, &["shed", "clear"], &["nothing of it is shed"]);
}
