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
    /// The entry with the added header fields, until they are read; `None` also if the message has left the queue.
    record: Option<u64>,
    body: Body,
    /// Pieces of body read so far.
    read: usize,
    /// An inline body that was read with the header fields before it.
    ahead: Option<Bytes>,
    /// The added header fields have been read.
    headed: bool,
}

impl BodyReader {
    pub(super) fn new(replica: Arc<Replica>, message: &QueuedMessage) -> Self {
        let record = match message.body {
            Body::Inline { index } => Some(index),
            Body::Chunks { .. } => replica.machine.lock().index.record_of(message.id),
        };
        let (id, body) = (message.id, message.body.clone());
        Self { replica, id, record, body, read: 0, ahead: None, headed: false }
    }

    /// The header fields that were added, if there are any. Reads them first; they are not part of what
    /// [`Self::next`] gives after that.
    ///
    /// # Errors
    /// As of `next`.
    pub(super) async fn prepend(&mut self) -> Result<Bytes, LogError> {
        let partition = self.replica.machine.partition();
        let gone = LogError::Missing { group: partition, index: self.record.unwrap_or_default() };
        let record = self.record.ok_or(gone)?;
        let (record, payload) = match self.replica.raft.read(record).await {
            Ok(payload) => (record, payload),
            Err(LogError::Missing { .. }) if self.moved(record) => {
                let record = self.record.unwrap_or(record);
                (record, self.replica.raft.read(record).await?)
            }
            Err(error) => return Err(error),
        };
        let prepend =
            entry::prepend_of(payload.clone(), self.id).map_err(|why| self.misuse(record, &why))?;
        if matches!(self.body, Body::Inline { .. }) {
            self.ahead = Some(self.extract(record, payload, Part::Whole)?);
        }
        self.headed = true;
        Ok(prepend)
    }

    /// The next bytes, at most a chunk; `None` at the end.
    ///
    /// # Errors
    /// `Missing` if the message has left the queue and the log has been trimmed since; else what the log says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        if !self.headed {
            let prepend = self.prepend().await?;
            if !prepend.is_empty() {
                return Ok(Some(prepend));
            }
        }
        if let Some(body) = self.ahead.take() {
            self.read += 1;
            return Ok(Some(body));
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

    /// Looks where the envelope is now; true if it is no longer at `record`.
    fn moved(&mut self, record: u64) -> bool {
        let state = self.replica.machine.lock();
        let found = state.index.get(self.id).zip(state.index.record_of(self.id));
        drop(state);
        let Some((message, now)) = found else { return false };
        self.body = message.body.clone();
        self.record = Some(now);
        now != record
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
