//! What tests with real processes share: a cluster of release binaries, an SMTP client, and real peers from Debian.
//!
//! Nothing here uses ppswitch's own crates: tests see programs, files and wire protocols only.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test harness fails by panicking"
)]

pub mod bench;
pub mod browser;
pub mod campus;
pub mod client;
pub mod cluster;
pub mod corpus;
pub mod dialogue;
pub mod golden;
pub mod hops;
pub mod imap;
pub mod ledger;
pub mod load;
pub mod process;
pub mod report;
pub mod shim;
pub mod sink;
pub mod stores;
pub mod tmpfs;
pub mod web;

use std::time::{Duration, Instant};

/// Asks `question` until it gives `Some`, for at most `patience`; then panics with `what`.
pub fn wait_for<T>(what: &str, patience: Duration, mut question: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(start.elapsed() < patience, "after {patience:?} still waiting for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
