//! The wire and disk formats of ppswitch, generated from the files in `proto/`.

/// The control plane: control group and services.
pub mod control {
    #![allow(clippy::all, unreachable_pub, unused_qualifications, reason = "generated code")]
    #![allow(clippy::use_self, clippy::unwrap_used, reason = "generated code")]

    tonic::include_proto!("ppsw.control.v1");
}

/// Entries of a spool partition.
pub mod queue {
    #![allow(clippy::all, unreachable_pub, unused_qualifications, reason = "generated code")]
    #![allow(clippy::use_self, clippy::unwrap_used, reason = "generated code")]

    tonic::include_proto!("ppsw.queue.v1");
}

/// Consensus between nodes, and what a Raft group keeps on its disk.
pub mod raft {
    #![allow(clippy::all, unreachable_pub, unused_qualifications, reason = "generated code")]
    #![allow(clippy::use_self, clippy::unwrap_used, reason = "generated code")]

    tonic::include_proto!("ppsw.raft.v1");
}
