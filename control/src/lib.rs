//! The control plane: who is in the cluster, which node carries which partition, drains; mutual TLS between
//! nodes; the gRPC services; `ppswctl`.
//!
//! [`Plane`] is what a node runs.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use ppsw_spool::{
    NodeId, PartitionId,
    env::{Clock, Disk},
    group::Timing,
    queue::{Outcome, Spool},
};

mod files;
pub mod identity;
pub mod limits;
pub mod pki;
pub mod placement;
pub mod state;
pub mod token;

/// What the control plane asks of the node that it runs in.
#[async_trait]
pub trait NodeHooks: Send + Sync + 'static {
    /// A drain begins (`true`: not ready, no new sessions, running transactions end) or is undone.
    fn set_draining(&self, draining: bool);
    /// SMTP sessions with a transaction that has not ended.
    fn open_transactions(&self) -> usize;
    /// Delivery attempts in flight for a partition.
    fn attempts_in_flight(&self, partition: PartitionId) -> usize;
}

/// How a node's control plane is set up.
#[derive(Clone, Debug)]
pub struct PlaneOptions {
    /// `DIR/node-N/data`: holds `identity/` (made by init or join) and `log/`.
    pub data: PathBuf,
    /// Where to serve gRPC; also the address that other nodes use.
    pub listen: SocketAddr,
    /// For `status`: where this node serves HTTP.
    pub http: Option<SocketAddr>,
    pub timing: Timing,
    pub segment_bytes: u64,
    pub cache_bytes: usize,
}

/// Why the control plane could not start or do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaneError {
    #[error("{0}")]
    Other(String),
}

/// The control plane of one node.
#[derive(Clone)]
pub struct Plane {
    _inner: Arc<()>,
}

#[allow(unused_variables, clippy::todo, clippy::unused_async, reason = "skeleton")]
impl Plane {
    /// Opens log and groups, serves gRPC, and begins to follow the control group: starts the partitions that this
    /// node is to carry, changes their voters step by step, hands partitions back home, follows drains.
    pub async fn start(
        options: PlaneOptions,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        hooks: Arc<dyn NodeHooks>,
    ) -> Result<Self, PlaneError> {
        todo!()
    }
    pub fn node(&self) -> NodeId {
        todo!()
    }
    pub fn spool(&self) -> Spool {
        todo!()
    }
    /// This node is being drained (replicated state, so it survives restarts).
    pub fn draining(&self) -> bool {
        todo!()
    }
    /// Reasons why this node should not get new connections: no quorum, draining, does not lead its home
    /// partition, still catching up. Empty: ready.
    pub fn not_ready(&self) -> Vec<String> {
        todo!()
    }
    /// Records an outcome with whoever leads the partition now (called when `Partition::record` said NotLeader).
    pub async fn forward_outcome(
        &self,
        partition: PartitionId,
        outcome: Outcome,
        deadline: Duration,
    ) -> Result<(), PlaneError> {
        todo!()
    }
    /// Resolves when the process must end, with the reason.
    pub async fn failed(&self) -> String {
        todo!()
    }
    /// Stops serving and closes the groups.
    pub async fn shutdown(&self) {
        todo!()
    }
}

/// `ppswd init`: makes a cluster of one node in `data`: CA, node certificate, node id 1, and an admin and a viewer
/// credential in `admin` and `viewer`.
#[allow(unused_variables, clippy::todo, clippy::unused_async, reason = "skeleton")]
pub async fn init(
    data: &std::path::Path,
    listen: SocketAddr,
    admin: &std::path::Path,
    viewer: &std::path::Path,
) -> Result<(), PlaneError> {
    todo!()
}

/// `ppswd join`: checks the CA against the token, gets a certificate and a node id from the cluster.
#[allow(unused_variables, clippy::todo, clippy::unused_async, reason = "skeleton")]
pub async fn join(
    data: &std::path::Path,
    listen: SocketAddr,
    token: &str,
    peer: &str,
) -> Result<NodeId, PlaneError> {
    todo!()
}
