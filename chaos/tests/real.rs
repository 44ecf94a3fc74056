//! A short run of the harness on real processes; the long one is `ppsw-chaos real --rounds 50`.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

/// Runs the harness with the programs beside it.
fn chaos(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ppsw-chaos"))
        .arg("real")
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    println!("{text}");
    (output, text)
}

#[test]
fn three_rounds_lose_nothing() {
    let (output, text) = chaos(&["--rounds", "3", "--seed", "1"]);
    assert!(output.status.success(), "{text}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.lines().last(), Some("3 passed, 0 failed"), "{text}");
    let left = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    let own = left.lines().filter(|name| name.starts_with("ppsw-chaos-")).count();
    assert_eq!(own, 0, "namespaces are left: {left}");
}

#[test]
fn programs_that_are_not_there_are_named() {
    let (output, text) = chaos(&["--rounds", "1", "--program", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("/nonexistent/ppswd"), "{text}");
}
