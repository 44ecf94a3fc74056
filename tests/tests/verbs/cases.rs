//! The case of each verb, in the order in which they are played: what one leaves behind, later ones may need.

use crate::{nodes, queue, stage::Stage, tables, watching};

/// A verb as `queue-hold`, and what calls it at least once with output for people and once with `--json`.
pub(crate) type Case = (&'static str, fn(&mut Stage));

/// All verbs. One that is added to `ppswctl` gets its case here.
pub(crate) const CASES: &[Case] = &[
    ("completions", completions),
    ("man", man),
    ("policy-check", policy_check),
    ("status", nodes::status),
    ("node-list", nodes::list),
    ("placement-show", nodes::placement_show),
    ("placement-set", nodes::placement_set),
    ("token-create", nodes::token_create),
    ("token-list", nodes::token_list),
    ("token-revoke", nodes::token_revoke),
    ("route", tables::route),
    ("session", tables::session),
    ("tables-push", tables::push),
    ("tables-versions", tables::versions),
    ("tables-diff", tables::diff),
    ("tables-get", tables::get),
    ("tables-rollback", tables::rollback),
    ("tables-status", tables::status),
    ("lists-set", tables::lists_set),
    ("lists-reset", tables::lists_reset),
    ("domains-list", tables::domains_list),
    ("domains-show", tables::domains_show),
    ("domains-check", tables::domains_check),
    ("domains-set", tables::domains_set),
    ("domains-reset", tables::domains_reset),
    ("domains-fetch", tables::domains_fetch),
    ("domains-unset", tables::domains_unset),
    ("queue-list", queue::list),
    ("queue-summary", queue::summary),
    ("queue-show", queue::show),
    ("queue-cat", queue::cat),
    ("queue-hold", queue::hold),
    ("queue-rules", queue::rules),
    ("queue-cancel", queue::cancel),
    ("queue-release", queue::release),
    ("queue-retry", queue::retry),
    ("queue-redirect", queue::redirect),
    ("queue-bounce", queue::bounce),
    ("queue-drop", queue::drop),
    ("suspend", queue::suspend),
    ("resume", queue::resume),
    ("shed-set", queue::shed_set),
    ("shed-list", queue::shed_list),
    ("shed-clear", queue::shed_clear),
    ("top", watching::top),
    ("events", watching::events),
    ("trace", watching::trace),
    ("drain", nodes::drain),
    ("undrain", nodes::undrain),
    ("rolling-restart", nodes::rolling_restart),
    ("node-remove", nodes::remove),
];

fn completions(stage: &mut Stage) {
    stage.human(0, &["completions", "bash"], &["_ppswctl", "rolling-restart"]);
    stage.human(2, &["completions", "tcsh"], &["invalid value 'tcsh'", "bash"]);
}

fn man(stage: &mut Stage) {
    let dir = stage.path("man").display().to_string();
    stage.human(0, &["man", &dir], &["pages written"]);
    let pages = stage.json(0, &["man", &dir], &["pages"]);
    // A page for the program, each verb, and each verb that has others below it.
    assert!(pages["pages"].as_array().unwrap().len() > stage.verbs.len(), "{pages}");
    assert!(stage.path("man/ppswctl-queue-hold.1").exists());
    stage.human(2, &["man", "/dev/null/man"], &["/dev/null/man"]);
}

fn policy_check(stage: &mut Stage) {
    let good = stage.config();
    stage.human(0, &["policy", "check", &good], &[": good"]);
    assert_eq!(stage.json(0, &["policy", "check", &good], &[]), serde_json::json!([]));
    let wrong = stage.changed_config("wrong");
    std::fs::write(format!("{wrong}/policy.kdl"), "acl \"mx\" { rcpt { acept } }\n").unwrap();
    stage.human(1, &["policy", "check", &wrong], &["policy.kdl:1", "acept", "accept"]);
    let fields = ["file", "line", "column", "error", "help"];
    let errors = stage.json(1, &["policy", "check", &wrong], &fields);
    assert_eq!(errors[0]["line"], 1, "{errors}");
}
