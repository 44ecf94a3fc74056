//! Delivery against scripted servers on loopback and a queue in memory.

mod dialogue;
pub(crate) mod fake;
mod lists;
mod queue;
pub(crate) mod server;
