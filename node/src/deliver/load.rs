//! The load of the machine, asked now and then.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use crate::limits::LOAD_AGE_MAX;

/// Gives the load average of the last minute; `None` where it is not known.
pub type LoadAverage = Arc<dyn Fn() -> Option<f64> + Send + Sync>;

/// Remembers the load for a moment: the queue is looked at more often than it changes.
pub(super) struct Load {
    average: LoadAverage,
    /// When it was asked, and what it was, times 100.
    known: Mutex<Option<(Instant, u32)>>,
}

impl Load {
    pub(super) fn new(average: LoadAverage) -> Self {
        Self { average, known: Mutex::default() }
    }

    /// Whether the load is not above `most`, a load average times 100. A load that is not known is below everything.
    pub(super) fn is_below(&self, now: Instant, most: u32) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = known.filter(|(since, _)| now.saturating_duration_since(*since) < LOAD_AGE_MAX);
        let (_, load) = fresh.unwrap_or_else(|| {
            // Saturates: no load average is negative, or of millions.
            let load = ((self.average)().unwrap_or(0.0) * 100.0) as u32;
            *known.insert((now, load))
        });
        load <= most
    }
}
