//! How long entries take to be committed, lately: for those who take less work when it becomes long.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::limits::COMMIT_TIME_AGE_MAX;

/// A moving average without a lock: an update that is lost among others does no harm.
#[derive(Debug)]
pub(super) struct CommitTime {
    since: Instant,
    micros: AtomicU64,
    /// When it was updated, in microseconds after `since`.
    at: AtomicU64,
}

/// A new time counts one part in so many.
const WEIGHT: u64 = 16;

impl CommitTime {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, micros: AtomicU64::new(0), at: AtomicU64::new(0) }
    }

    pub(super) fn took(&self, now: Instant, took: Duration) {
        let old = self.micros.load(Ordering::Relaxed);
        let took = micros(took);
        self.micros.store(old - old / WEIGHT + took / WEIGHT, Ordering::Relaxed);
        self.at.store(micros(now.saturating_duration_since(self.since)), Ordering::Relaxed);
    }

    /// Zero if nothing was committed for a while: what was slow then says nothing of now.
    pub(super) fn now(&self, now: Instant) -> Duration {
        let at = self.since + Duration::from_micros(self.at.load(Ordering::Relaxed));
        if now.saturating_duration_since(at) > COMMIT_TIME_AGE_MAX {
            return Duration::ZERO;
        }
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

/// Of times that deadlines bound, far from the end of 64 bits.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Clock, SystemClock};

    #[test]
    fn it_follows_and_forgets() {
        let begin = SystemClock.instant();
        let commits = CommitTime::new(begin);
        assert_eq!(commits.now(begin), Duration::ZERO);
        for _ in 0..200 {
            commits.took(begin, Duration::from_secs(2));
        }
        let slow = commits.now(begin);
        assert!(slow > Duration::from_millis(1_990) && slow <= Duration::from_secs(2), "{slow:?}");
        for _ in 0..200 {
            commits.took(begin, Duration::from_millis(1));
        }
        assert!(commits.now(begin) < Duration::from_millis(10));
        commits.took(begin, Duration::from_secs(2));
        assert!(commits.now(begin + COMMIT_TIME_AGE_MAX) > Duration::from_millis(100));
        let later = begin + COMMIT_TIME_AGE_MAX + Duration::from_secs(1);
        assert_eq!(commits.now(later), Duration::ZERO);
    }
}
