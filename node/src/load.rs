//! The load of the machine, asked now and then.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use crate::{files, limits::LOAD_AGE_MAX};

/// Gives the load average of the last minute; `None` where it is not known.
pub type LoadAverage = Arc<dyn Fn() -> Option<f64> + Send + Sync>;

/// Remembers the load for a moment: connections come and the queue is looked at more often than it changes.
pub struct Load {
    average: LoadAverage,
    /// When it was asked, and what it was.
    known: Mutex<Option<(Instant, Option<u32>)>>,
}

impl Load {
    #[must_use]
    pub fn new(average: LoadAverage) -> Self {
        Self { average, known: Mutex::default() }
    }

    /// That of this machine.
    #[must_use]
    pub fn of_machine() -> Self {
        Self::new(Arc::new(files::load_average))
    }

    /// The load average times 100, at most [`LOAD_AGE_MAX`] old; `None` where it is not known.
    pub fn hundredths(&self, now: Instant) -> Option<u32> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = known.filter(|(since, _)| now.saturating_duration_since(*since) < LOAD_AGE_MAX);
        let (_, load) = fresh.unwrap_or_else(|| {
            // Saturates: no load average is negative, or of millions.
            let load = (self.average)().map(|load| (load * 100.0).round() as u32);
            *known.insert((now, load))
        });
        load
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use ppsw_spool::env::{Clock, SystemClock};

    use super::*;

    #[test]
    fn it_is_asked_again_when_it_is_old() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        let load = Load::new(Arc::new(move || match count.fetch_add(1, Ordering::Relaxed) {
            0 => Some(1.25),
            _ => None,
        }));
        let now = SystemClock.instant();
        assert_eq!(load.hundredths(now), Some(125));
        assert_eq!(load.hundredths(now + LOAD_AGE_MAX - Duration::from_millis(1)), Some(125));
        assert_eq!(load.hundredths(now + LOAD_AGE_MAX), None, "not known any more");
        assert_eq!(load.hundredths(now + LOAD_AGE_MAX), None);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }
}
