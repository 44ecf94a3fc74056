//! Delivery against scripted servers on loopback and a queue in memory.

mod dialogue;
mod fake;
mod queue;
mod server;
