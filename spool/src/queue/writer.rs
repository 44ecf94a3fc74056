//! Writing a message into its partition while it arrives.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::task::JoinSet;
use tracing::debug;

use super::{
    AcceptError,
    entry::{self, BodyBytes},
    message::{Envelope, MessageId},
    replica::Replica,
};
use crate::{
    faults::{self, Fault},
    group::{ProposeError, Reply},
    limits::{
        CHUNK_BESIDE_SHORT_BYTES, CHUNK_BYTES_MAX, CHUNK_COMMIT_MAX, CHUNKS_IN_FLIGHT_MAX,
        CHUNKS_PER_MESSAGE_MAX, ENTRY_BYTES_MAX, INLINE_BODY_BYTES_MAX,
    },
};

/// A message that is being received. Dropping it without `accept` aborts it.
///
/// Holds at most `CHUNK_BYTES_MAX` bytes, and `CHUNKS_IN_FLIGHT_MAX` chunks that are not yet committed.
pub struct MessageWriter {
    replica: Arc<Replica>,
    id: MessageId,
    /// The term in which it began; leadership that was lost and won again does not count.
    term: u64,
    buffer: BytesMut,
    /// Bytes in chunks so far.
    chunked: u64,
    chunks: u32,
    in_flight: JoinSet<Result<Reply, ProposeError>>,
    /// Something is or may be in the log that has to be aborted.
    proposed: bool,
    /// Why nothing more can be written.
    failed: Option<AcceptError>,
}

impl MessageWriter {
    pub(super) fn new(replica: Arc<Replica>, id: MessageId, term: u64) -> Self {
        replica.enter(id);
        Self {
            replica,
            id,
            term,
            buffer: BytesMut::new(),
            chunked: 0,
            chunks: 0,
            in_flight: JoinSet::new(),
            proposed: false,
            failed: None,
        }
    }

    /// The id that the message has or will have.
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Adds bytes. Small messages stay in memory (up to `INLINE_BODY_BYTES_MAX`), larger ones go to the log in
    /// chunks while they arrive; waits when `CHUNKS_IN_FLIGHT_MAX` of it, or `CHUNKS_PER_PARTITION_KIB_MAX` of all messages
    /// (less while short ones come), are not yet committed.
    ///
    /// # Errors
    /// `Moved` when leadership is lost, `NoMajority` when a chunk was not committed in `CHUNK_COMMIT_MAX`, `NoSpace`
    /// when fewer than a majority of the voters have space. The message is lost then: every further call fails
    /// alike.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), AcceptError> {
        self.check()?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let begun = self.buffer.len();
            // How long a chunk is to be is asked when it could be at its end.
            let end = match begun < CHUNK_BESIDE_SHORT_BYTES {
                true => CHUNK_BESIDE_SHORT_BYTES,
                false => CHUNK_BYTES_MAX,
            };
            let (now, later) = rest.split_at((end - begun).min(rest.len()));
            self.buffer.extend_from_slice(now);
            rest = later;
            if self.buffer.len() == end && end >= self.replica.places.chunk_bytes(self.chunks) {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Makes the message the cluster's: returns when a majority has it on disk. On a time-out (`deadline`) an
    /// abort is proposed and `NoMajority` returned.
    ///
    /// # Errors
    /// As of `write`, and `TooLarge` for an envelope that does not fit into an entry.
    pub async fn accept(
        mut self,
        envelope: Envelope,
        deadline: Duration,
    ) -> Result<MessageId, AcceptError> {
        self.check()?;
        tokio::time::timeout(deadline, self.finish(&envelope, deadline))
            .await
            .unwrap_or(Err(AcceptError::NoMajority))?;
        // Nothing to abort any more.
        self.proposed = false;
        Ok(self.id)
    }

    /// Gives the message up.
    #[allow(
        clippy::unused_async,
        reason = "a caller need not know that the abort is proposed later"
    )]
    pub async fn abort(self) {
        drop(self);
    }

    async fn finish(&mut self, envelope: &Envelope, deadline: Duration) -> Result<(), AcceptError> {
        let inline = self.chunks == 0 && self.buffer.len() <= INLINE_BODY_BYTES_MAX;
        let body = if inline {
            self.replica.places.note_short();
            BodyBytes::Inline(self.buffer.split().freeze())
        } else {
            if !self.buffer.is_empty() {
                self.flush().await?;
            }
            while !self.in_flight.is_empty() {
                self.reap().await?;
            }
            BodyBytes::Chunks { count: self.chunks, bytes: self.chunked }
        };
        let payload = entry::accept(self.id, envelope, body);
        if payload.len() > ENTRY_BYTES_MAX {
            let bytes = payload.len();
            return Err(self.fail(AcceptError::TooLarge { bytes, limit: ENTRY_BYTES_MAX }));
        }
        self.check()?;
        self.check_space()?;
        self.proposed = true;
        if faults::active(Fault::AckBeforeCommit) {
            let raft = Arc::clone(&self.replica.raft);
            tokio::spawn(async move { raft.propose(payload, deadline).await });
            return Ok(());
        }
        let result = self.replica.raft.propose(payload, deadline).await;
        self.committed(result)
    }

    /// Proposes what is in the buffer as a chunk.
    async fn flush(&mut self) -> Result<(), AcceptError> {
        while self.in_flight.len() >= CHUNKS_IN_FLIGHT_MAX {
            self.reap().await?;
        }
        // What is checked is checked after the wait.
        let place = self.replica.places.take(self.chunks, self.buffer.len()).await;
        self.check()?;
        self.check_space()?;
        if self.chunks >= CHUNKS_PER_MESSAGE_MAX {
            let limit = usize::try_from(self.chunked).unwrap_or(usize::MAX - 1);
            return Err(self.fail(AcceptError::TooLarge { bytes: limit + 1, limit }));
        }
        let data = std::mem::take(&mut self.buffer).freeze();
        self.chunked += data.len() as u64;
        let payload = entry::chunk(self.id, self.chunks, data);
        self.chunks += 1;
        self.proposed = true;
        // A task, so that the chunk makes its way while the client is slow with the next bytes.
        let replica = Arc::clone(&self.replica);
        self.in_flight.spawn(async move {
            let result = replica.raft.propose(payload, CHUNK_COMMIT_MAX).await;
            tokio::spawn(async move { replica.places.give_back(place).await });
            result
        });
        Ok(())
    }

    /// Waits for one chunk.
    async fn reap(&mut self) -> Result<(), AcceptError> {
        match self.in_flight.join_next().await {
            None => Ok(()),
            Some(Ok(result)) => self.committed(result),
            Some(Err(error)) => Err(self.fail(AcceptError::Stopped(error.to_string()))),
        }
    }

    /// Fails if the message has failed, or this node does not lead in the term in which it began.
    fn check(&mut self) -> Result<(), AcceptError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.replica.machine.leading() != Some(self.term) {
            return Err(self.fail(AcceptError::Moved));
        }
        Ok(())
    }

    /// Fails if the disks run low: what is left there is for what frees space.
    fn check_space(&mut self) -> Result<(), AcceptError> {
        match self.replica.raft.headroom() {
            0 => Err(self.fail(AcceptError::NoSpace)),
            _ => Ok(()),
        }
    }

    fn committed(&mut self, result: Result<Reply, ProposeError>) -> Result<(), AcceptError> {
        match result {
            Ok(Reply::Done | Reply::Value(_)) => Ok(()),
            // Another leader has aborted the upload in between.
            Ok(Reply::Refused(why)) => {
                debug!(id = %self.id, "not accepted: {why}");
                Err(self.fail(AcceptError::Moved))
            }
            Err(ProposeError::NotLeader { .. }) => Err(self.fail(AcceptError::Moved)),
            Err(ProposeError::Timeout(_)) => Err(self.fail(AcceptError::NoMajority)),
            Err(error) => Err(self.fail(AcceptError::Stopped(error.to_string()))),
        }
    }

    fn fail(&mut self, error: AcceptError) -> AcceptError {
        self.failed = Some(error.clone());
        error
    }
}

impl Drop for MessageWriter {
    fn drop(&mut self) {
        self.in_flight.abort_all();
        self.replica.leave(self.id, self.proposed);
    }
}
