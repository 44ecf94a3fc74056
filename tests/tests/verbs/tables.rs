//! Cases of verbs about policy, tables and managed domains.

use serde_json::{Value, json};

use crate::stage::Stage;

const DOMAIN: &str = "botolph.cam.ac.uk";

pub(crate) fn route(stage: &mut Stage) {
    let words = ["lookuphost", "=> someone@example.org", "transport", "host "];
    stage.human(0, &["route", "someone@example.org"], &words);
    let answer = stage.json(0, &["route", "someone@example.org"], &["address", "stops", "targets"]);
    assert_eq!(answer[0]["targets"][0]["result"], "deliver", "{answer}");
    stage.human(2, &["route", "a@nomx.example.org"], &["** a@nomx.example.org"]);
    stage.human(1, &["route", "a@broken.example.org"], &["== a@broken.example.org"]);
}

pub(crate) fn session(stage: &mut Stage) {
    let mx = stage.cluster.node(1).mx.ip().to_string();
    let open = ["session", "--client", "127.200.0.1", "--server", &mx];
    let input = "EHLO x.example\nMAIL FROM:<a@example.org>\nRCPT TO:<b@elsewhere.example>\n";
    let words = ["> RCPT TO", "rcpt of acl \"mx\"", "Relaying is not permitted", "< 550"];
    stage.human_with(0, &open, input, &words);
    let steps = stage.json_with(0, &open, input, &["command", "reply", "stages", "closed"]);
    let last = steps.as_array().unwrap().last().unwrap();
    assert!(last["stages"][0]["rules"].as_array().is_some_and(|rules| !rules.is_empty()), "{last}");
    stage.human(2, &["session", "--client", "nowhere", "--server", &mx], &["nowhere", "--client"]);
}

pub(crate) fn push(stage: &mut Stage) {
    let same = stage.config();
    stage.human(0, &["tables", "push", &same, "--reason", "x"], &["nothing to do: version 1"]);
    let fields = ["changed", "version", "generation"];
    let unchanged = stage.json(0, &["tables", "push", &same, "--reason", "x"], &fields);
    assert_eq!(unchanged["changed"], false);
    let second = stage.changed_config("second");
    let words = ["sent 1 files", "version 2 (generation 2) runs on nodes 1, 2, 3"];
    stage.human(0, &["tables", "push", &second, "--reason", "more"], &words);
    let third = stage.changed_config("third");
    let fields = ["changed", "version", "generation", "nodes", "behind", "kept", "entries", "sent"];
    let pushed = stage.json(0, &["tables", "push", &third, "--reason", "even more"], &fields);
    assert_eq!((&pushed["version"], &pushed["nodes"]), (&json!(3), &json!([1, 2, 3])), "{pushed}");
    stage.human(2, &["tables", "push", "/nowhere", "--reason", "x"], &["/nowhere"]);
    stage.human(2, &["tables", "push", &third], &["--reason"]);
}

pub(crate) fn versions(stage: &mut Stage) {
    stage.human(0, &["tables", "versions"], &["3 active", "even more", "admin"]);
    let fields = ["active", "generation", "versions", "changes", "history"];
    let versions = stage.json(0, &["tables", "versions"], &fields);
    assert_eq!(
        (&versions["active"], &versions["versions"][1]["reason"]),
        (&json!(3), &json!("more"))
    );
}

pub(crate) fn diff(stage: &mut Stage) {
    let words = ["changed tables/nocallout: 1 added, 1 removed, 0 changed", "+ third.example.org"];
    stage.human(0, &["tables", "diff", "2", "3"], &words);
    let diff = stage.json(0, &["tables", "diff", "2", "active"], &["files", "omitted"]);
    assert_eq!(diff["files"][0]["path"], "tables/nocallout", "{diff}");
    stage.human(1, &["tables", "diff", "1", "77"], &["77"]);
    stage.human(2, &["tables", "diff", "1", "latest"], &["expected a version's number"]);
}

pub(crate) fn get(stage: &mut Stage) {
    let key = ["tables", "get", "nocallout", "third.example.org"];
    stage.human(0, &key, &["exact third.example.org"]);
    let found = stage.json(0, &key, &["version", "generation", "entries", "found"]);
    assert_eq!(found["found"][0]["how"], "exact", "{found}");
    stage.human(1, &["tables", "get", "nocallout", "no.example"], &["there is no \"no.example\""]);
    stage.human(1, &["tables", "get", "nosuch", "x"], &["nosuch"]);
}

pub(crate) fn rollback(stage: &mut Stage) {
    let words = ["version 2 (generation 4) runs on nodes 1, 2, 3"];
    stage.human(0, &["tables", "rollback", "2", "--reason", "too much"], &words);
    let back = ["tables", "rollback", "1", "--reason", "still too much"];
    let done = stage.json(0, &back, &["changed", "version", "generation", "nodes"]);
    assert_eq!(done["version"], 1);
    stage.human(1, &["tables", "rollback", "77", "--reason", "x"], &["77"]);
}

pub(crate) fn status(stage: &mut Stage) {
    stage.human(0, &["tables", "status"], &["active: version 1, generation 5"]);
    let fields = ["node", "version", "generation", "since", "entries", "current", "trouble"];
    let rows = stage.json(0, &["tables", "status"], &fields);
    let current = |row: &Value| row["version"] == 1 && row["current"] == true;
    assert!(rows.as_array().unwrap().iter().all(current), "{rows}");
}

pub(crate) fn lists_set(stage: &mut Stage) {
    let members = stage.file(
        "members",
        "spqr3@hermes.cam.ac.uk\nspqr4@hermes.cam.ac.uk\nspqr6@hermes.cam.ac.uk\n",
    );
    let set = ["lists", "set", "punting", "--members", &members];
    stage.human(0, &set, &["runs on nodes 1, 2, 3"]);
    assert_eq!(stage.json(0, &set, &["changed", "version", "generation"])["changed"], false);
    stage.human(2, &["lists", "set", "punting"], &["expected --members FILE or"]);
    stage.human(2, &["lists", "set", "punting", "--members", "/nowhere"], &["/nowhere"]);
}

pub(crate) fn lists_reset(stage: &mut Stage) {
    stage.human(0, &["lists", "reset", "punting"], &["runs on nodes 1, 2, 3"]);
    assert_eq!(stage.json(0, &["lists", "reset", "punting"], &["changed"])["changed"], false);
}

pub(crate) fn domains_list(stage: &mut Stage) {
    stage.human(0, &["domains", "list"], &["aliases", DOMAIN, "lists.cam.ac.uk"]);
    let fields = ["domain", "live", "aliases", "addresses", "managers", "https"];
    stage.json(0, &["domains", "list"], &fields);
}

pub(crate) fn domains_show(stage: &mut Stage) {
    stage.human(0, &["domains", "show", DOMAIN], &[DOMAIN, "aliases:", "not fetched"]);
    let shown = stage.json(0, &["domains", "show", DOMAIN], &["domain", "aliases", "https"]);
    assert_eq!((&shown["domain"], &shown["https"]), (&json!(DOMAIN), &Value::Null));
    stage.human(1, &["domains", "show", "no.example"], &["no.example"]);
}

pub(crate) fn domains_check(stage: &mut Stage) {
    stage.human(0, &["domains", "check", DOMAIN], &[DOMAIN, "aliases", "warnings"]);
    let fields = ["domain", "aliases", "warnings", "incomplete", "problem", "letter"];
    stage.json(0, &["domains", "check", DOMAIN], &fields);
    stage.human(1, &["domains", "check", "no.example"], &["no.example"]);
}

pub(crate) fn domains_set(stage: &mut Stage) {
    let aliases = stage.file("lists-aliases", "fellow: spqr1@hermes.cam.ac.uk\n");
    let set = ["domains", "set", "lists.cam.ac.uk", "--aliases", &aliases, "--force"];
    stage.human(0, &set, &["runs on nodes 1, 2, 3"]);
    assert_eq!(stage.json(0, &set, &["changed"])["changed"], false);
    stage.human(2, &["domains", "set", "lists.cam.ac.uk"], &["expected --aliases FILE or"]);
    // Nobody listens there.
    let password = stage.file("password", "secret\n");
    let url = ["--url", "https://127.0.0.1:1/aliases", "--user", "u", "--password-file", &password];
    let fetched = [&["domains", "set", DOMAIN], &url[..]].concat();
    stage.human(0, &fetched, &["is fetched from there now"]);
    assert_eq!(stage.json(0, &fetched, &["domain", "replaced"])["replaced"], true);
}

pub(crate) fn domains_reset(stage: &mut Stage) {
    stage.human(0, &["domains", "reset", "lists.cam.ac.uk"], &["runs on nodes 1, 2, 3"]);
    assert_eq!(
        stage.json(0, &["domains", "reset", "lists.cam.ac.uk"], &["changed"])["changed"],
        false
    );
}

pub(crate) fn domains_fetch(stage: &mut Stage) {
    stage.human(1, &["domains", "fetch", DOMAIN], &["the live copy stays as it is"]);
    let fetched =
        stage.json(1, &["domains", "fetch", DOMAIN], &["domain", "result", "live", "problem"]);
    assert_eq!(fetched["result"], "problem", "{fetched}");
    assert!(fetched["problem"]["kind"].is_string(), "{fetched}");
    stage.human(1, &["domains", "fetch", "lists.cam.ac.uk"], &["lists.cam.ac.uk"]);
}

pub(crate) fn domains_unset(stage: &mut Stage) {
    stage.human(0, &["domains", "unset", DOMAIN], &["is not fetched any more"]);
    assert!(stage.failure(1, &["domains", "unset", DOMAIN]).contains(DOMAIN));
}
