//! The simulated harness: a short run passes, and a seed is the same run each time.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::panic,
    reason = "helpers of tests, and a test that reads its own program"
)]

use std::process::{Command, Output};

/// Runs `ppsw-chaos sim`.
fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ppsw-chaos")).arg("sim").args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_short_run_violates_nothing() {
    // Tests in debug builds are ten times slower: they look at fewer.
    let seeds = if cfg!(debug_assertions) { "2" } else { "20" };
    let output = sim(&["--seeds", seeds]);
    let text = stdout(&output);
    println!("{text}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().last(), Some(format!("{seeds} passed, 0 failed").as_str()));
}

#[test]
fn a_seed_is_the_same_run_each_time_and_another_seed_is_another() {
    let trace = |seed| {
        let text = stdout(&sim(&["--seed", seed]));
        let found = text.lines().find_map(|line| line.strip_prefix("trace ").map(str::to_owned));
        found.unwrap_or_else(|| panic!("no trace in:\n{text}"))
    };
    let first = trace("7");
    assert_eq!(first, trace("7"));
    assert_ne!(first, trace("8"));
}

#[test]
fn a_program_without_faults_refuses_to_have_one() {
    if cfg!(feature = "deliberate-faults") {
        return;
    }
    let output = sim(&["--fault", "skip-sync"]);
    assert_eq!(output.status.code(), Some(1));
    let program = std::fs::read(env!("CARGO_BIN_EXE_ppsw-chaos")).unwrap();
    // The name of the environment variable stands in it only where the harness sets and removes it; the text that a
    // program with a bug logs must not be there.
    assert!(!contains(&program, b"this program has a bug on purpose"));
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
