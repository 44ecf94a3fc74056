//! `ppswd dev`: a cluster of real node processes on loopback addresses, with a mail sink and a DNS server, so that
//! nothing leaves the machine.

pub mod configuration;
mod files;
mod listen;
mod nameserver;
mod sink;
mod zones;

pub use sink::{SinkOptions, sink};
