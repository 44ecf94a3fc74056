//! The control plane: who is in the cluster, which node carries which partition, drains; mutual TLS between
//! nodes; the gRPC services.
//!
//! [`Plane`] is what a node runs. Beneath it:
//!
//! * [`state`] is the control group's state machine; [`placement`] what follows from it; both pure;
//! * [`pki`], [`token`] and [`identity`] are certificates, join tokens, and what a node has on disk of them;
//! * [`client`] is for operators.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use ppsw_proto::control as pb;
use ppsw_spool::{
    NodeId, PartitionId,
    group::Timing,
    log::LogError,
    queue::{MessageId, Partition},
};

mod access;
mod agent;
mod census;
pub mod client;
mod dial;
mod drain;
mod enrol;
mod events;
mod figures;
mod files;
mod gauges;
pub mod https;
pub mod identity;
pub mod limits;
mod operate;
mod overview;
pub mod pki;
pub mod placement;
mod plane;
mod rejoin;
mod serve;
mod standing;
pub mod state;
mod tend;
pub mod token;
pub mod versions;
mod view;

pub use enrol::{init, join};
pub use operate::{Verb, Wanted};
pub use plane::Plane;
pub use rejoin::{Aside, finish_rejoin, rejoin, set_aside};
pub use serve::filter::Pattern;
pub use standing::{Order, Orders, Suspension};
pub use view::ClusterView;

/// What the control plane asks of the node that it runs in.
#[async_trait]
pub trait NodeHooks: Send + Sync + 'static {
    /// A drain begins (`true`: not ready, no new sessions, running transactions end) or is undone.
    fn set_draining(&self, draining: bool);
    /// SMTP sessions with a transaction that has not ended.
    fn open_transactions(&self) -> usize;
    /// What the node turns away by itself; `None`: nothing.
    fn shedding(&self) -> Option<pb::Shedding>;
    /// Results of delivery since the process was started; what was accepted is the spool's to count.
    fn delivered(&self) -> pb::Totals;
    /// Delivery attempts in flight for a partition.
    fn attempts_in_flight(&self, partition: PartitionId) -> usize;
    /// Does what an operator wants with one message of a partition that this node leads, as far as it is about these of its
    /// recipients.
    ///
    /// # Errors
    /// A text for the operator: why nothing was done.
    async fn operate(
        &self,
        partition: Partition,
        message: MessageId,
        recipients: &[u32],
        wanted: &Wanted,
    ) -> Result<(), String>;
    /// An operator wants mail to be tried again: what is remembered of hosts that could not be reached is forgotten.
    fn forget_hosts(&self);
    /// Names of the personalities that the policy knows.
    fn personalities(&self) -> Vec<String>;
    /// Where mail for an address would go, and why.
    ///
    /// # Errors
    /// A text for the operator.
    async fn route(&self, request: pb::RouteRequest) -> Result<pb::RouteReply, String>;
    /// Shows SMTP sessions of this node that fit, line by line, until the stream is dropped or its time is over.
    ///
    /// # Errors
    /// A text for the operator.
    fn trace(
        &self,
        request: &pb::TraceRequest,
    ) -> Result<BoxStream<'static, pb::TracePage>, String>;
    /// Begins a made-up SMTP session.
    ///
    /// # Errors
    /// A text for the operator.
    fn rehearse(&self, open: pb::SessionOpen) -> Result<Box<dyn Rehearsal>, String>;
    /// The managed domains, or only the one of this name.
    ///
    /// # Errors
    /// A text for the operator.
    fn domains(&self, only: &str) -> Result<Vec<pb::DomainInfo>, String>;
    /// Fetches a domain now; with `force` also if its file has shrunk.
    ///
    /// # Errors
    /// A text for the operator. That the file cannot be used is an answer, and no error.
    async fn fetch_domain(&self, domain: &str, force: bool)
    -> Result<pb::FetchDomainReply, String>;
    /// The detailed check of a domain; with `mail` its managers get it, too.
    ///
    /// # Errors
    /// A text for the operator.
    async fn check_domain(&self, domain: &str, mail: bool) -> Result<pb::CheckDomainReply, String>;
    /// Makes a configuration of a version's files. With large tables that takes seconds, so it is done on a thread of its
    /// own. Tables that did not change since another configuration that is alive are shared with it.
    ///
    /// # Errors
    /// What is wrong with the files, or that they cannot be read.
    async fn compile(&self, files: versions::Files) -> Result<Arc<dyn Compiled>, CompileError>;
    /// The configuration that this node runs; `None` before it has one.
    fn running(&self) -> Option<Arc<dyn Compiled>>;
    /// What differs between two contents of a file; `None`: there is no such file. At most `limit` entries are shown.
    fn diff(
        &self,
        path: &str,
        before: Option<&[u8]>,
        after: Option<&[u8]>,
        limit: usize,
    ) -> pb::FileDiff;
}

/// Why files did not become a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileError {
    /// They are wrong: everything that is, for people.
    Wrong(Vec<String>),
    /// They cannot be read here.
    Unread(String),
}

/// A configuration that a node can switch to.
#[async_trait]
pub trait Compiled: Send + Sync + 'static {
    /// Its tables: path and number of entries.
    fn tables(&self) -> Vec<(String, u64)>;
    /// Entries of all tables.
    fn entries(&self) -> u64 {
        self.tables().iter().map(|(_, entries)| entries).sum()
    }
    /// What its tables take of memory.
    fn bytes(&self) -> u64;
    /// What speaks against it although it compiles, and what `--force` overrules: it relays for everybody.
    async fn objections(&self) -> Vec<String>;
    /// Looks a key up in a table, in each way that the policy could. `None`: there is no such table.
    fn look_up(&self, table: &str, key: &str) -> Option<pb::GetReply>;
    /// From now on the node runs it: each session from its next command on.
    fn activate(&self);
}

/// A made-up SMTP session. It ends when this is dropped.
#[async_trait]
pub trait Rehearsal: Send {
    /// The banner.
    async fn banner(&mut self) -> pb::SessionStep;
    /// What follows a line of the client. Not called after a step that closes.
    ///
    /// # Errors
    /// A text for the operator: this is no line.
    async fn line(&mut self, line: String) -> Result<pb::SessionStep, String>;
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
    /// After an unplanned takeover, messages that may have been in flight wait this long.
    pub takeover_grace: Duration,
    /// A node that is to be drained goes on taking sessions for this long, while balancers hear of it.
    pub drain_notice: Duration,
    pub segment_bytes: u64,
    pub cache_bytes: usize,
}

/// Why the control plane could not start or do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaneError {
    /// This machine's files.
    #[error("{0}")]
    Files(#[from] io::Error),
    /// A certificate could not be made or read.
    #[error(transparent)]
    Pki(#[from] pki::PkiError),
    /// This machine's log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log is gone, though this node had replicas in it.
    #[error("{0}")]
    LogLost(String),
    /// The address to serve at.
    #[error("cannot serve the control plane at {address}: {why}")]
    Listen { address: SocketAddr, why: String },
    /// The caller asked for what cannot be done; the text says why and what to do.
    #[error("{0}")]
    Refused(String),
    /// Another node does not do its part (now).
    #[error("{0}")]
    Peer(String),
}

impl PlaneError {
    /// Whether this machine's log is damaged or gone: it must not be started again before it was re-seeded.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Log(LogError::Damaged { .. }) | Self::LogLost(_))
    }
}
