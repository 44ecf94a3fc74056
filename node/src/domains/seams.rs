//! What the fetching of domains needs of the rest of the node, as traits, so that its rounds are tested without any of it.

use std::sync::Arc;

use async_trait::async_trait;
use ppsw_control::{https::Password, versions::BlobHash};
use ppsw_proto::control as pb;
use ppsw_spool::queue::MessageId;

use super::{aliases::Size, letter::Letter};
use crate::policy::Configuration;

/// What the control group knows of fetched domains.
#[async_trait]
pub(crate) trait Registry: Send + Sync + 'static {
    /// This node leads the control group, so the rounds are its work.
    fn leads(&self) -> bool;
    /// All fetched domains; on the leader with everything that was recorded.
    fn domains(&self) -> Vec<Arc<pb::HttpsDomain>>;
    /// The password of one.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn password(&self, domain: &pb::HttpsDomain) -> Result<Password, String>;
    /// # Errors
    /// Why it was not recorded, as far as is known.
    async fn record_fetch(&self, record: pb::RecordFetch) -> Result<(), String>;
    /// # Errors
    /// Why it was not recorded, as far as is known.
    async fn record_letter(&self, record: pb::RecordLetter) -> Result<(), String>;
}

/// The aliases of a domain by which mail is routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LiveCopy {
    pub(crate) hash: BlobHash,
    pub(crate) size: Size,
}

/// The tables by which mail is routed.
#[async_trait]
pub(crate) trait LiveCopies: Send + Sync + 'static {
    /// As this node has them now.
    fn current(&self) -> Arc<Configuration>;
    /// The live copy of a domain, if there is one.
    ///
    /// # Errors
    /// Why that is not known.
    async fn find(&self, domain: &str) -> Result<Option<LiveCopy>, String>;
    /// Makes a file live on all nodes, if `before` is what is live now.
    ///
    /// # Errors
    /// Why it is not, as far as is known.
    async fn publish(
        &self,
        domain: &str,
        table: String,
        before: Option<BlobHash>,
    ) -> Result<(), String>;
}

/// Takes letters.
#[async_trait]
pub(crate) trait Post: Send + Sync + 'static {
    /// Returns when the letter is in the spool of the cluster.
    ///
    /// # Errors
    /// Why it is not.
    async fn send(&self, letter: &Letter) -> Result<MessageId, String>;
}
