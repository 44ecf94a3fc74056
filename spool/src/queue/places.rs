//! Places for chunks of long messages on their way to a majority. What is short waits behind them in every queue, from
//! the batches to the disks of all replicas; so they have few places while short messages come.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    env::Clock,
    limits::{CHUNKS_BESIDE_SHORT_MAX, CHUNKS_PER_PARTITION_MAX, SHORT_ABOUT},
};

/// The places of one partition.
pub(super) struct ChunkPlaces {
    clock: Arc<dyn Clock>,
    /// Closed by nobody.
    places: Arc<Semaphore>,
    /// When the last short message was proposed.
    short_at: Mutex<Option<Instant>>,
}

/// One chunk's; free again when it is dropped.
pub(super) type Place = Option<OwnedSemaphorePermit>;

impl ChunkPlaces {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let places = Arc::new(Semaphore::new(CHUNKS_PER_PARTITION_MAX));
        Self { clock, places, short_at: Mutex::default() }
    }

    /// A message goes that waits for no place.
    pub(super) fn note_short(&self) {
        *self.short_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.clock.instant());
    }

    /// Waits for a place. Who has waited longer goes first.
    pub(super) async fn take(&self) -> Place {
        // Beside short messages a chunk takes the place of several.
        let count =
            if self.short_about() { CHUNKS_PER_PARTITION_MAX / CHUNKS_BESIDE_SHORT_MAX } else { 1 };
        let count = u32::try_from(count).unwrap_or(1);
        Arc::clone(&self.places).acquire_many_owned(count).await.ok()
    }

    fn short_about(&self) -> bool {
        let last = *self.short_at.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| self.clock.instant().saturating_duration_since(at) < SHORT_ABOUT)
    }
}
