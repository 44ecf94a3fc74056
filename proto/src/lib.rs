//! Code generated from the `.proto` files: what goes over the wire between nodes and what stands on their disks.

#[allow(clippy::all, unreachable_pub, unused_qualifications, reason = "generated")]
/// Entries of a spool partition.
pub mod queue { tonic::include_proto!("ppsw.queue.v1"); }
