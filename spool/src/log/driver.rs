//! The log's writer without a thread: it works as a task of an async runtime, at the times that a simulation gives.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{
    LogError,
    space::SpareMaker,
    writer::{Work, Writer},
};
use crate::limits::{LOG_CONFIRM_AFTER, LOG_FULL_RETRY_MIN, SPACE_POLL};

/// Does the writing of a log that was opened by [`super::Log::open_driven`].
pub struct Driver {
    writer: Writer,
    spare: SpareMaker,
}

impl Driver {
    pub(super) fn new(writer: Writer, spare: SpareMaker) -> Self {
        Self { writer, spare }
    }

    /// Writes what waits, until the last handle is gone and all is written, or until the disk fails. Before each
    /// write it waits as long as `latency` says, and takes what has come meanwhile into the same flush.
    pub async fn run(mut self, mut latency: impl FnMut() -> Duration) {
        self.writer.report();
        loop {
            let confirm = !self.work_comes().await;
            if !confirm {
                sleep(latency()).await;
            }
            self.spare.look();
            let needed = self.writer.needed();
            let work = {
                let mut state = self.writer.shared.lock();
                self.writer.take(&mut state, needed > self.writer.released)
            };
            let work = match work {
                Some(work) => work,
                None if confirm => Work::Confirm,
                None => continue,
            };
            let placed = match work {
                Work::Rotate(_) => self.find_place().await,
                _ => Ok(()),
            };
            match placed.and_then(|()| self.writer.perform(work, needed)) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.writer.fail(&error),
            }
        }
    }

    /// Waits until there is a file for the next segment: what the writer's thread does on a full disk.
    async fn find_place(&mut self) -> Result<(), LogError> {
        loop {
            self.spare.look();
            self.writer.release_early()?;
            if self.writer.shared.has_file() || self.writer.shared.lock().closed {
                return Ok(());
            }
            sleep(LOG_FULL_RETRY_MIN).await;
        }
    }

    /// Waits for work; false: none came for so long that the last flush is to be confirmed.
    async fn work_comes(&mut self) -> bool {
        let confirm = self.writer.wants_confirmation();
        loop {
            let release = self.writer.needed() > self.writer.released;
            {
                let state = self.writer.shared.lock();
                if !state.queue.is_empty() || state.closed || state.failed.is_some() || release {
                    return true;
                }
            }
            let woken = self.writer.shared.driven.notified();
            if confirm {
                if timeout(LOG_CONFIRM_AFTER, woken).await.is_err() {
                    return false;
                }
            } else if timeout(SPACE_POLL, woken).await.is_err() {
                // The time of the next measurement.
                self.spare.look();
            }
        }
    }
}
