//! The log's writer without a thread: it works as a task of an async runtime, at the times that a simulation gives.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{
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
        self.spare.step();
        loop {
            let confirm = !self.work_comes().await;
            if !confirm {
                sleep(latency()).await;
            }
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
            let rotates = matches!(work, Work::Rotate(_));
            let done = async {
                if rotates {
                    self.find_place().await?;
                }
                let goes_on = self.writer.perform(work, needed)?;
                if rotates {
                    self.spare.step();
                }
                Ok(goes_on)
            };
            match done.await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.writer.fail(&error),
            }
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
            let shared = std::sync::Arc::clone(&self.writer.shared);
            // `open_driven` has made one.
            let Some(driven) = &shared.driven else { return true };
            let time = if confirm { LOG_CONFIRM_AFTER } else { SPACE_POLL };
            if timeout(time, driven.notified()).await.is_err() {
                if confirm {
                    return false;
                }
                self.spare.step();
            }
        }
    }

    /// Waits until there is a file for the next segment.
    async fn find_place(&mut self) -> Result<(), super::LogError> {
        loop {
            self.spare.step();
            self.writer.release_early()?;
            let place = !self.writer.free.is_empty() || self.writer.shared.disk_space.has_spare();
            if place || self.writer.shared.lock().closed {
                return Ok(());
            }
            sleep(LOG_FULL_RETRY_MIN).await;
        }
    }
}
