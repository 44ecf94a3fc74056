//! The harness is tested: with each bug built in on purpose it must report a violation.
//! `cargo test --release --workspace --features ppsw-chaos/deliberate-faults --test faults`.

#![cfg(feature = "deliberate-faults")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;

/// Seeds in which a bug has to be found.
const SEEDS: &str = "40";

/// Runs seeds with a bug until one fails. Gives what was violated.
fn found(fault: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ppsw-chaos"))
        .args(["sim", "--until-failure", "--seeds", SEEDS, "--fault", fault])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    println!("{text}");
    assert_eq!(output.status.code(), Some(1), "{fault} was not found");
    let violations: Vec<&str> = text.lines().filter(|line| line.contains("VIOLATION")).collect();
    assert!(!violations.is_empty(), "{fault}: exit code 1, and no violation");
    violations.join("\n")
}

#[test]
fn an_acknowledgement_before_the_commit_is_found() {
    assert!(found("ack-before-commit").contains("lost"));
}

#[test]
fn a_skipped_sync_is_found() {
    found("skip-sync");
}

#[test]
fn a_majority_of_one_voter_is_found() {
    found("one-voter-majority");
}

#[test]
fn a_delivery_without_the_lease_is_found() {
    // A dot beside another leader, or a second one after what that leader has recorded.
    let violations = found("deliver-without-lease");
    let known = ["fencing: ", "whose outcome was recorded"];
    assert!(known.iter().any(|kind| violations.contains(kind)), "{violations}");
}

#[test]
fn a_dropped_outcome_is_found() {
    assert!(found("drop-outcome").contains("whose outcome was recorded"));
}

#[test]
fn a_log_that_is_cut_one_entry_too_early_is_found() {
    found("truncate-early");
}

/// The others would prove nothing if this program found violations without a bug, too.
#[test]
fn without_a_bug_nothing_is_found() {
    let output = Command::new(env!("CARGO_BIN_EXE_ppsw-chaos"))
        .args(["sim", "--seeds", "2"])
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success());
}
