//! Code generated from the `.proto` files: what goes over the wire between nodes and what stands on their disks.

#[allow(clippy::all, unreachable_pub, unused_qualifications, reason = "generated")]
/// Entries of a spool partition.
pub mod queue {
    tonic::include_proto!("ppsw.queue.v1");
}

#[allow(clippy::all, unreachable_pub, unused_qualifications, reason = "generated")]
/// Consensus between nodes, and its small state on disk.
pub mod raft {
    tonic::include_proto!("ppsw.raft.v1");
}

/// The control plane: control group and services.
pub mod control {
    #![allow(clippy::all, unreachable_pub, unused_qualifications, reason = "generated code")]
    #![allow(clippy::use_self, clippy::unwrap_used, reason = "generated code")]

    tonic::include_proto!("ppsw.control.v1");

    impl std::fmt::Debug for SetHttpsRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("SetHttpsRequest")
                .field("domain", &self.domain)
                .field("url", &self.url)
                .field("user", &self.user)
                .finish_non_exhaustive()
        }
    }
}
