//! Where messages go: the spool, as sessions see it.

use std::time::Duration;

use async_trait::async_trait;
use ppsw_spool::queue::{AcceptError, Envelope, MessageId, MessageWriter, Spool};

use crate::limits::BEGIN_PATIENCE;

/// Takes messages.
#[async_trait]
pub trait Intake: Send + Sync + 'static {
    /// Whether a message of `bytes` (0 if nobody knows) would find space now.
    fn check_space(&self, bytes: u64) -> Result<(), AcceptError> {
        let _ = bytes;
        Ok(())
    }
    /// Begins a message.
    async fn begin(&self) -> Result<Box<dyn Incoming>, AcceptError>;
}

/// A message that arrives. Dropping it aborts it.
#[async_trait]
pub trait Incoming: Send {
    /// The id that the message has or will have.
    fn id(&self) -> MessageId;
    /// Adds bytes of the content; waits while too much is on its way to the disks.
    async fn write(&mut self, bytes: &[u8]) -> Result<(), AcceptError>;
    /// Returns when the message is safe (design §1), or `deadline` is over.
    async fn accept(
        self: Box<Self>,
        envelope: Envelope,
        deadline: Duration,
    ) -> Result<MessageId, AcceptError>;
    /// Gives the message up.
    async fn abort(self: Box<Self>);
}

#[async_trait]
impl Intake for Spool {
    fn check_space(&self, bytes: u64) -> Result<(), AcceptError> {
        Self::check_space(self, bytes)
    }

    async fn begin(&self) -> Result<Box<dyn Incoming>, AcceptError> {
        Ok(Box::new(Self::begin(self, BEGIN_PATIENCE).await?))
    }
}

#[async_trait]
impl Incoming for MessageWriter {
    fn id(&self) -> MessageId {
        Self::id(self)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), AcceptError> {
        Self::write(self, bytes).await
    }

    async fn accept(
        self: Box<Self>,
        envelope: Envelope,
        deadline: Duration,
    ) -> Result<MessageId, AcceptError> {
        Self::accept(*self, envelope, deadline).await
    }

    async fn abort(self: Box<Self>) {
        Self::abort(*self).await;
    }
}
