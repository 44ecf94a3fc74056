//! Delivery against scripted servers on loopback and a queue in memory.

mod client;
mod dialogue;
pub(crate) mod fake;
mod hints;
#[allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
mod lists;
mod operate;
mod queue;
pub(crate) mod server;
mod standing;
mod timeouts;
mod tls;
mod trace;
