//! Marks in the log: which messages have an attempt under way (docs/decisions/020-attempt-marks.md).
//!
//! A mark is committed before the final dot, not before the connection, so it costs a delivery no time; and those of
//! one moment travel in one entry, so it costs little work.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;
use tracing::debug;

use super::{entry, message::MessageId, replica::Replica};
use crate::limits::{MARK_COMMIT_MAX, MARKS_GATHER, MARKS_PATIENCE, MARKS_PER_ENTRY_MAX};

/// Marks that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// With what is dropped when the entry is applied, or has failed.
    ids: Vec<(MessageId, oneshot::Sender<()>)>,
    /// A task writes them, until there are none.
    writing: bool,
}

impl Marks {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next ones to be written; none: the task is to end.
    fn take(&self) -> Vec<(MessageId, oneshot::Sender<()>)> {
        let mut waiting = self.lock();
        let count = waiting.ids.len().min(MARKS_PER_ENTRY_MAX);
        waiting.writing = count > 0;
        waiting.ids.drain(..count).collect()
    }
}

impl Replica {
    /// See [`super::Partition::begin`].
    pub(super) async fn begin(self: Arc<Self>, id: MessageId) -> bool {
        if self.is_doomed(id) {
            return false;
        }
        if self.is_begun(id) {
            // By an attempt that ended without an outcome, perhaps another leader's.
            return true;
        }
        let (tell, told) = oneshot::channel();
        let first = {
            let mut waiting = self.marks.lock();
            waiting.ids.push((id, tell));
            !mem::replace(&mut waiting.writing, true)
        };
        if first {
            // A task, so that no mark waits for an attempt that gives up.
            tokio::spawn(write(Arc::clone(&self)));
        }
        // Nothing is sent: the other end is dropped.
        let _ = told.await;
        self.is_begun(id)
    }

    fn is_begun(&self, id: MessageId) -> bool {
        self.machine.lock().index.is_begun(id)
    }
}

/// Writes marks until none waits.
async fn write(replica: Arc<Replica>) {
    loop {
        tokio::time::sleep(MARKS_GATHER).await;
        let marks = replica.marks.take();
        if marks.is_empty() {
            return;
        }
        let ids: Vec<MessageId> = marks.iter().map(|(id, _)| *id).collect();
        let entry = entry::begin(&ids);
        let proposed = replica.raft.propose_within(entry, MARKS_PATIENCE, MARK_COMMIT_MAX).await;
        if let Err(error) = proposed {
            debug!(partition = replica.machine.partition(), "attempts wait: {error}");
        }
    }
}
