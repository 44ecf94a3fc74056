//! Places for chunks of long messages on their way to a majority. What is short waits behind them in every queue, from
//! the batches to the disks of all replicas; so they have few places while short messages come.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use crate::{
    env::Clock,
    limits::{
        CHUNK_BESIDE_SHORT_BYTES, CHUNK_BYTES_MAX, CHUNK_PAUSE_MAX, CHUNKS_BESIDE_SHORT_DIVISOR,
        CHUNKS_BESIDE_SHORT_MAX, CHUNKS_PER_PARTITION_KIB_MAX, SHORT_ABOUT,
    },
};

/// The places of one partition.
pub(super) struct ChunkPlaces {
    clock: Arc<dyn Clock>,
    /// One for each KiB. Closed by nobody.
    places: Arc<Semaphore>,
    /// When the last short message was proposed.
    short_at: Mutex<Option<Instant>>,
}

/// One chunk's.
pub(super) struct Place {
    /// Free again when it is dropped.
    permit: Option<OwnedSemaphorePermit>,
    taken_at: Instant,
}

impl ChunkPlaces {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let places = Arc::new(Semaphore::new(CHUNKS_PER_PARTITION_KIB_MAX));
        Self { clock, places, short_at: Mutex::default() }
    }

    /// A message goes that waits for no place.
    pub(super) fn note_short(&self) {
        *self.short_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.clock.instant());
    }

    /// How long a message's chunk of this number is, the first being 0.
    pub(super) fn chunk_bytes(&self, number: u32) -> usize {
        if (1..CHUNKS_BESIDE_SHORT_MAX).contains(&number) && self.short_about() {
            CHUNK_BESIDE_SHORT_BYTES
        } else {
            CHUNK_BYTES_MAX
        }
    }

    /// Waits for a place for a message's chunk of this number and of so many bytes. Who has waited longer goes first.
    pub(super) async fn take(&self, number: u32, bytes: usize) -> Place {
        let kib = bytes.div_ceil(1024).max(1);
        let count = match (self.short_about(), number) {
            (false, _) => kib,
            (true, 0) => kib * CHUNKS_BESIDE_SHORT_DIVISOR,
            (true, _) => CHUNKS_PER_PARTITION_KIB_MAX,
        };
        // One that is longer than all places together has them for itself.
        let count = u32::try_from(count.min(CHUNKS_PER_PARTITION_KIB_MAX)).unwrap_or(1);
        let permit = Arc::clone(&self.places).acquire_many_owned(count).await.ok();
        Place { permit, taken_at: self.clock.instant() }
    }

    /// Gives a place back when its chunk is committed: beside short messages after as long a pause, in which they have the
    /// processors and the disks for themselves.
    pub(super) async fn give_back(&self, place: Place) {
        if self.short_about() {
            let took = self.clock.instant().saturating_duration_since(place.taken_at);
            sleep(took.min(CHUNK_PAUSE_MAX)).await;
        }
        drop(place.permit);
    }

    fn short_about(&self) -> bool {
        let last = *self.short_at.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| self.clock.instant().saturating_duration_since(at) < SHORT_ABOUT)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::env::UnixMs;

    /// The time of the runtime, which stands still while anybody works.
    struct Paused;

    impl Clock for Paused {
        fn now(&self) -> UnixMs {
            UnixMs(0)
        }

        fn instant(&self) -> Instant {
            tokio::time::Instant::now().into_std()
        }
    }

    const CHUNK: Duration = Duration::from_millis(8);

    /// How long ten chunks of this number take that are committed after a while.
    async fn ten(places: &ChunkPlaces, number: u32, bytes: usize) -> Duration {
        let begun = Paused.instant();
        let chunks = (0..10).map(|_| async {
            let place = places.take(number, bytes).await;
            sleep(CHUNK).await;
            places.give_back(place).await;
        });
        futures::future::join_all(chunks).await;
        Paused.instant() - begun
    }

    #[tokio::test(start_paused = true)]
    async fn beside_short_messages_as_long_a_pause_is_made() {
        let places = ChunkPlaces::new(Arc::new(Paused));
        assert_eq!(ten(&places, 0, CHUNK_BYTES_MAX).await, 2 * CHUNK, "eight, and two");
        places.note_short();
        assert_eq!(ten(&places, 0, CHUNK_BYTES_MAX).await, 10 * 2 * CHUNK);
        sleep(SHORT_ABOUT).await;
        assert_eq!(ten(&places, 0, CHUNK_BYTES_MAX).await, 2 * CHUNK, "no short ones for a while");
    }

    #[tokio::test(start_paused = true)]
    async fn beside_short_messages_later_chunks_are_short_and_go_one_by_one() {
        let places = ChunkPlaces::new(Arc::new(Paused));
        assert_eq!(places.chunk_bytes(1), CHUNK_BYTES_MAX);
        assert_eq!(ten(&places, 1, CHUNK_BESIDE_SHORT_BYTES).await, CHUNK, "all at once");
        places.note_short();
        assert_eq!(places.chunk_bytes(0), CHUNK_BYTES_MAX);
        assert_eq!(places.chunk_bytes(1), CHUNK_BESIDE_SHORT_BYTES);
        assert_eq!(places.chunk_bytes(CHUNKS_BESIDE_SHORT_MAX), CHUNK_BYTES_MAX);
        assert_eq!(ten(&places, 1, CHUNK_BESIDE_SHORT_BYTES).await, 10 * 2 * CHUNK);
    }

    #[tokio::test(start_paused = true)]
    async fn small_chunks_share_the_place_of_a_long_one() {
        let places = ChunkPlaces::new(Arc::new(Paused));
        assert_eq!(ten(&places, 0, CHUNK_BYTES_MAX / 4).await, CHUNK, "all at once");
        places.note_short();
        assert_eq!(ten(&places, 0, CHUNK_BYTES_MAX / 4).await, 3 * 2 * CHUNK, "four, four and two");
        assert_eq!(ten(&places, 0, CHUNK_BYTES_MAX * 100).await, 10 * 2 * CHUNK, "one at a time");
    }
}
