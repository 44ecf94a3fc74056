//! Rates of what clients do (`rate-over` in rules), for this node alone and in memory: a restart begins anew.
//!
//! One limiter for each rate that a policy writes down, so that counts outlive a change of the policy.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::limits::{RATE_KEYS_LOOK, RATE_KEYS_MAX, RATES_MAX};

/// So many times in such a time: as many at once, and then one each `time / times`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    pub times: NonZeroU32,
    /// At least a nanosecond for each.
    pub time: Duration,
}

/// Of hashes, so that a key's length costs no memory.
#[derive(Debug)]
struct Limiter {
    limiter: DefaultKeyedRateLimiter<u64>,
    /// Keys for which there was no room.
    passed: AtomicU32,
}

/// Counts by rate and key. One per node.
#[derive(Debug, Default)]
pub struct Rates {
    limiters: Mutex<HashMap<Rate, Arc<Limiter>>>,
    hasher: RandomState,
}

impl Rate {
    /// `100/1h`. The time is read by `time`.
    pub fn parse(text: &str, time: impl Fn(&str) -> Option<Duration>) -> Option<Self> {
        let (times, period) = text.split_once('/')?;
        let rate = Self { times: times.parse().ok()?, time: time(period)? };
        (rate.each() > Duration::ZERO).then_some(rate)
    }

    fn each(&self) -> Duration {
        self.time / self.times.get()
    }
}

impl Rates {
    /// Counts one of `key`, unless that would be more than the rate. Whoever cannot be counted because too many others
    /// are is not held up.
    pub fn is_over(&self, rate: Rate, key: &str) -> bool {
        let Some(limiter) = self.limiter(rate) else { return false };
        let Limiter { limiter, passed } = &*limiter;
        if limiter.len() >= RATE_KEYS_MAX {
            if passed.fetch_add(1, Ordering::Relaxed).is_multiple_of(RATE_KEYS_LOOK) {
                limiter.retain_recent();
            }
            if limiter.len() >= RATE_KEYS_MAX {
                metrics::counter!("ppsw_rates_not_counted_total").increment(1);
                return false;
            }
        }
        limiter.check_key(&self.hasher.hash_one(key)).is_err()
    }

    fn limiter(&self, rate: Rate) -> Option<Arc<Limiter>> {
        let mut limiters = self.limiters.lock().unwrap_or_else(PoisonError::into_inner);
        if !limiters.contains_key(&rate) {
            if limiters.len() >= RATES_MAX {
                // Of policies of before: those in use come back at once.
                limiters.clear();
            }
            let quota = Quota::with_period(rate.each())?.allow_burst(rate.times);
            let limiter = RateLimiter::keyed(quota);
            limiters.insert(rate, Arc::new(Limiter { limiter, passed: AtomicU32::new(0) }));
        }
        limiters.get(&rate).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_duration;

    #[test]
    fn each_key_has_its_own_count_for_each_rate() {
        let rates = Rates::default();
        let rate = |text| Rate::parse(text, parse_duration).unwrap();
        for _ in 0..3 {
            assert!(!rates.is_over(rate("3/1h"), "a"));
        }
        assert!(rates.is_over(rate("3/1h"), "a"));
        assert!(!rates.is_over(rate("3/1h"), "b"));
        assert!(!rates.is_over(rate("3/2h"), "a"));
    }

    #[test]
    fn what_is_no_rate() {
        for bad in ["", "3", "3/", "0/1h", "-1/1h", "3/0s", "x/1h", "4294967296/1h"] {
            assert_eq!(Rate::parse(bad, parse_duration), None, "{bad}");
        }
    }
}
