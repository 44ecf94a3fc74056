//! Time as a capability.

use std::time::{Duration, Instant};

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// This time and `more` later; saturates.
    #[must_use]
    pub fn plus(self, more: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(more.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long before `self` the time `earlier` was; zero if it was later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Where time comes from. A simulation has its own.
pub trait Clock: Send + Sync + 'static {
    /// Wall clock: for what is written down. May step.
    fn now(&self) -> UnixMs;
    /// Monotonic clock: for leases and time-outs.
    fn instant(&self) -> Instant;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

#[allow(clippy::disallowed_methods, reason = "this is the module that owns the clock")]
impl Clock for SystemClock {
    fn now(&self) -> UnixMs {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }
}
