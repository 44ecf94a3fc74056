//! Every verb of `ppswctl` over a real cluster: what it tells people and scripts, and how it fails. A verb without a case in
//! `verbs/cases.rs` and a line in `verbs/trials.rs` fails these tests; what single verbs do in depth is tested elsewhere.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#[path = "verbs/cases.rs"]
mod cases;
#[path = "verbs/credentials.rs"]
mod credentials;
#[path = "verbs/nodes.rs"]
mod nodes;
#[path = "verbs/queue.rs"]
mod queue;
#[path = "verbs/stage.rs"]
mod stage;
#[path = "verbs/tables.rs"]
mod tables;
#[path = "verbs/trials.rs"]
mod trials;
#[path = "verbs/watching.rs"]
mod watching;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ppsw_tests::{
    cluster::{Cluster, PATIENCE, http_get},
    wait_for,
};
use stage::{Form, Stage, said, verbs};
use trials::{Alone, May, TRIALS, Trial};

/// Verbs whose output is for no script, and why.
const WITHOUT_JSON: [(&str, &str); 2] = [
    ("completions", "a script for a shell"),
    ("queue-cat", "bytes of a message, in no character set"),
];

/// The longest that a verb may take that cannot be carried out: the deadline of a command, and what comes before it.
const FAILS_WITHIN: Duration = Duration::from_secs(25);

#[test]
fn every_verb_speaks_to_people_and_to_scripts() {
    let mut stage = Stage::new(Cluster::start(4_600));
    let cased: BTreeSet<String> = cases::CASES.iter().map(|(verb, _)| (*verb).to_owned()).collect();
    assert_eq!(cased, stage.verbs, "each verb of ppswctl needs its case in verbs/cases.rs");
    for (verb, case) in cases::CASES {
        let begun = Instant::now();
        case(&mut stage);
        println!("{verb}: {:.1} s", begun.elapsed().as_secs_f64());
    }
    for verb in &stage.verbs {
        assert!(stage.was_called(verb, Form::Human), "{verb}: no call with output for people");
        let json = !WITHOUT_JSON.iter().any(|(without, _)| without == verb);
        assert!(!json || stage.was_called(verb, Form::Json), "{verb}: no call with --json");
    }
}

#[test]
fn every_verb_fails_with_a_reason() {
    let mut stage = Stage::new(Cluster::start(4_700));
    let tried: BTreeSet<String> = TRIALS.iter().map(Trial::name).collect();
    assert_eq!(tried, stage.verbs, "each verb of ppswctl needs its line in verbs/trials.rs");
    trials::prepare(&mut stage);
    viewers_look_only(&stage);
    wrong_nodes_are_told(&stage);
    credentials::bad_ones_are_told(&stage);
    without_a_majority(&mut stage);
}

/// A viewer may do what docs/operations.md says, and nothing else.
fn viewers_look_only(stage: &Stage) {
    let before = stage.cluster.ctl_json(&["status"]);
    let documented = stage::documented_for_viewers();
    for trial in TRIALS {
        let (name, arguments) = (trial.name(), trial.arguments(stage));
        let output = stage.run(&[&["--viewer"], &*refs(&arguments)].concat());
        let (code, text) = (output.status.code(), said(&output));
        match trial.may {
            May::Administrator => {
                let clear = text.contains("role viewer") && text.contains("credentials");
                assert!(code == Some(1) && clear, "{name} as a viewer: {code:?} {text}");
            }
            May::Viewer | May::Anybody => assert_eq!(code, Some(0), "{name} as a viewer: {text}"),
        }
        let told = documented.contains(&name);
        assert_eq!(trial.may == May::Viewer, told, "docs/operations.md: {name} for viewers");
    }
    let after = stage.cluster.ctl_json(&["status"]);
    assert_eq!(after["nodes"], before["nodes"], "a viewer has changed something");
    assert_eq!(after["placement"], before["placement"]);
}

fn wrong_nodes_are_told(stage: &Stage) {
    for arguments in [
        &["drain", "9"][..],
        &["drain", "nosuch"],
        &["undrain", "9"],
        &["node", "remove", "9", "--reason", "x"],
        &["rolling-restart", "--exec", "true", "--nodes", "2,9"],
        &["queue", "list", "--node", "nosuch"],
        &["queue", "summary", "--node", "9"],
        &["queue", "hold", "--node", "9"],
        &["queue", "drop", "--node", "node-9", "--reason", "x"],
    ] {
        let output = stage.run(arguments);
        let (code, text) = (output.status.code(), said(&output));
        let clear = text.contains("no node \"") && text.contains("there are 1, 2, 3");
        assert!(code == Some(1) && clear, "{arguments:?}: {code:?} {text}");
        let error = stage.failure(1, arguments);
        assert!(error.contains("no node \""), "{error}");
    }
}

/// With two of three nodes gone: what looks shows what there still is, and what changes something says within its time that it
/// cannot, with the code that the help names.
fn without_a_majority(stage: &mut Stage) {
    for id in [2, 3] {
        stage.cluster.kill(id);
    }
    let node = stage.cluster.node(1).http;
    wait_for("node 1 to have no majority", PATIENCE, || {
        let (code, reasons) = http_get(node, "/readyz")?;
        (code == 503 && reasons.contains("has no majority")).then_some(())
    });
    let stage = &*stage;
    std::thread::scope(|scope| {
        // All at once: most of them wait for the same 10 s.
        let running: Vec<_> =
            TRIALS.iter().map(|trial| scope.spawn(move || alone(stage, trial))).collect();
        let wrong: Vec<String> =
            running.into_iter().filter_map(|one| one.join().unwrap().err()).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
    // They were told that it may still be done; the cluster itself is as good as before.
}

fn alone(stage: &Stage, trial: &Trial) -> Result<(), String> {
    let (name, arguments) = (trial.name(), trial.arguments(stage));
    let begun = Instant::now();
    let output = stage.run(&refs(&arguments));
    let (took, code, text) = (begun.elapsed(), output.status.code(), said(&output));
    println!("{name}: {:.1} s, {code:?}: {}", took.as_secs_f64(), text.trim());
    let good = match trial.alone {
        Alone::Shows(expected) => code == Some(0) && text.contains(expected),
        Alone::Fails(wanted, expected) => code == Some(wanted) && text.contains(expected),
    };
    stage::assert_readable(&text);
    if good && took < FAILS_WITHIN {
        return Ok(());
    }
    Err(format!(
        "{name} without a majority: {code:?} after {took:?}, expected {:?}: {text}",
        trial.alone
    ))
}

fn refs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// The mechanism itself: a verb that is not known to the table is seen.
#[test]
fn verbs_are_found_in_the_program_itself() {
    let verbs = verbs();
    for verb in ["status", "queue-hold", "rolling-restart", "domains-fetch", "node-remove"] {
        assert!(verbs.contains(verb), "{verb}: {verbs:?}");
    }
    for verb in ["queue", "domains", "help"] {
        assert!(!verbs.contains(verb), "{verb} does nothing by itself");
    }
}
