//! How fast replicas that lag get what they lack. A new replica, or one that was away, has to be sent the whole live log;
//! without a bound that takes disk and network from the mail of the moment, whose clients wait for their `250`.
//!
//! Only what a majority has already is held back: an entry that is not committed yet may be waiting for just this replica.
//! And only while entries are committed: if nothing is, there is no mail to be spared, or this replica is the one that
//! everybody waits for.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{env::Clock, limits};

/// The bytes that this node sends to all replicas that lag, in all groups together.
pub(crate) struct Pace {
    clock: Arc<dyn Clock>,
    /// When what was allowed so far has been sent, at the allowed rate.
    free_at: Mutex<Option<Instant>>,
}

/// What one replica is being sent.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    /// The newest commit index that was seen, and when it was new.
    commit: Option<(u64, Instant)>,
}

/// One request, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: usize,
    /// The last entry in it; `None`: it has none.
    pub(crate) last: Option<u64>,
    pub(crate) commit: Option<u64>,
}

impl Pace {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, free_at: Mutex::default() }
    }

    /// Waits until a piece may be sent.
    pub(crate) async fn admit(&self, follower: &Mutex<Follower>, piece: Piece) {
        let now = self.clock.instant();
        let catches_up =
            follower.lock().unwrap_or_else(PoisonError::into_inner).catches_up(now, piece);
        if catches_up {
            let wait = self.delay(now, piece.bytes);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// How long a piece has to wait; counts it.
    fn delay(&self, now: Instant, bytes: usize) -> Duration {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let start = free_at.map_or(now, |at| at.max(now));
        let rate = limits::CATCH_UP_BYTES_PER_SECOND;
        *free_at = Some(start + Duration::from_secs_f64(bytes as f64 / rate as f64));
        start.saturating_duration_since(now)
    }
}

impl Follower {
    /// Whether a piece is old news that may wait, because mail is being taken meanwhile.
    fn catches_up(&mut self, now: Instant, piece: Piece) -> bool {
        let (Some(last), Some(commit)) = (piece.last, piece.commit) else { return false };
        let moved = match self.commit {
            Some((seen, at)) if seen == commit => at,
            _ => now,
        };
        self.commit = Some((commit, moved));
        let busy = now.saturating_duration_since(moved) < limits::CATCH_UP_QUIET;
        busy && last.saturating_add(limits::CATCH_UP_LAG) < commit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemClock;

    fn piece(last: u64, commit: u64) -> Piece {
        Piece { bytes: 1 << 20, last: Some(last), commit: Some(commit) }
    }

    #[test]
    fn pieces_are_sent_at_the_allowed_rate() {
        let pace = Pace::new(Arc::new(SystemClock));
        let start = SystemClock.instant();
        let rate = usize::try_from(limits::CATCH_UP_BYTES_PER_SECOND).unwrap();
        assert_eq!(pace.delay(start, rate / 4), Duration::ZERO);
        assert_eq!(pace.delay(start, rate / 4), Duration::from_millis(250));
        let later = start + Duration::from_millis(400);
        assert_eq!(pace.delay(later, rate), Duration::from_millis(100));
        // What was not used is not saved up: a burst would be just what is to be avoided.
        let late = start + Duration::from_secs(60);
        assert_eq!(pace.delay(late, rate), Duration::ZERO);
        assert_eq!(pace.delay(late, 1), Duration::from_secs(1));
    }

    #[test]
    fn only_old_entries_wait_and_only_while_entries_are_committed() {
        let now = SystemClock.instant();
        let mut follower = Follower::default();
        assert!(follower.catches_up(now, piece(10, 100_000)));
        assert!(!follower.catches_up(now, piece(99_900, 100_000)), "what everybody gets");
        assert!(!follower.catches_up(now, piece(100_001, 100_000)), "not committed yet");
        assert!(!follower.catches_up(now, Piece { last: None, ..piece(0, 100_000) }));
        let quiet = now + limits::CATCH_UP_QUIET;
        assert!(!follower.catches_up(quiet, piece(20, 100_000)), "nothing else to do");
        assert!(follower.catches_up(quiet, piece(30, 100_001)), "mail again");
    }
}
