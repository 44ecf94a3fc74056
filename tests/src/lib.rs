//! Tests with real processes and real peers.

pub mod dialogue;
