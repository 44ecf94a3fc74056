//! Code generated from the `.proto` files: what goes over the wire between nodes and what stands on their disks.

#[allow(clippy::all, unreachable_pub, unused_qualifications, reason = "generated")]
/// The control plane: control group and services.
pub mod control { tonic::include_proto!("ppsw.control.v1"); }
