//! Reading a message's bytes from the log.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    entry::{self, Part},
    message::{Body, MessageId, QueuedMessage},
    replica::Replica,
};
use crate::log::LogError;

/// Reads a message's bytes in order, chunk by chunk, CRC checked. Holds one chunk at a time.
pub struct BodyReader {
    replica: Arc<Replica>,
    id: MessageId,
    /// Added header fields, until they are read.
    prepend: Bytes,
    body: Body,
    /// Pieces of body read so far.
    read: usize,
}

impl BodyReader {
    pub(super) fn new(replica: Arc<Replica>, message: &QueuedMessage) -> Self {
        Self {
            replica,
            id: message.id,
            prepend: message.envelope.prepend.clone(),
            body: message.body.clone(),
            read: 0,
        }
    }

    /// Only the body, as received.
    pub(super) fn without_prepend(mut self) -> Self {
        self.prepend = Bytes::new();
        self
    }

    /// The next bytes, at most a chunk; `None` at the end.
    ///
    /// # Errors
    /// `Missing` if the message has left the queue and the log has been trimmed since; else what the log says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        if !self.prepend.is_empty() {
            return Ok(Some(std::mem::take(&mut self.prepend)));
        }
        let Some((index, part)) = self.piece() else { return Ok(None) };
        let bytes = match self.replica.raft.read(index).await {
            Ok(payload) => self.extract(index, payload, part)?,
            // Carried in the meantime: same pieces, other indexes.
            Err(LogError::Missing { .. }) if self.carried(index) => {
                let (index, part) = self.piece().ok_or_else(|| self.misuse(index, "no piece"))?;
                let payload = self.replica.raft.read(index).await?;
                self.extract(index, payload, part)?
            }
            Err(error) => return Err(error),
        };
        self.read += 1;
        Ok(Some(bytes))
    }

    /// Where the next piece is.
    fn piece(&self) -> Option<(u64, Part)> {
        match &self.body {
            Body::Inline { index } if self.read == 0 => Some((*index, Part::Whole)),
            Body::Inline { .. } => None,
            Body::Chunks { indexes } => {
                let number = u32::try_from(self.read).ok()?;
                indexes.get(self.read).map(|index| (*index, Part::Chunk(number)))
            }
        }
    }

    /// Looks where the message is now; true if its next piece is no longer at `index`.
    fn carried(&mut self, index: u64) -> bool {
        let Some(message) = self.replica.machine.lock().index.get(self.id) else { return false };
        self.body = message.body.clone();
        self.piece().is_some_and(|(now, _)| now != index)
    }

    fn extract(&self, index: u64, payload: Bytes, part: Part) -> Result<Bytes, LogError> {
        entry::body_of(payload, self.id, part).map_err(|why| self.misuse(index, &why))
    }

    fn misuse(&self, index: u64, why: &str) -> LogError {
        LogError::Misuse(format!(
            "entry {index} of partition {}: {why}",
            self.replica.machine.partition()
        ))
    }
}
