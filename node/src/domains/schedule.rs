//! When a domain is fetched, and when its managers get a letter. What happened before is in the control group's state,
//! so a new control leader goes on where the last one was.

use std::time::Duration;

use ppsw_proto::control as pb;
use ppsw_spool::env::UnixMs;
use sha2::{Digest, Sha256};

use crate::limits;

/// What is to be written to the managers of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Letter {
    /// The file cannot be used.
    Problem,
    /// What could be better.
    Report,
}

/// The next fetch after a time. Each domain has its own moment of the period, always the same, so that fetches are
/// spread over it.
pub(crate) fn next_fetch(domain: &str, after: UnixMs, period: Duration) -> UnixMs {
    let period = millis(period).max(1);
    let moment = moment(domain) % period;
    let begun = after.0 - after.0 % period;
    let next = begun.saturating_add(moment);
    UnixMs(if next > after.0 { next } else { next.saturating_add(period) })
}

/// Whether it is time for a fetch.
pub(crate) fn fetch_is_due(domain: &pb::HttpsDomain, now: UnixMs, period: Duration) -> bool {
    // Further away than a period: the clock was ahead when that was written down, or the period is another now.
    domain.next_due_ms <= now.0 || domain.next_due_ms > now.plus(period).0
}

/// The letter that is due: the same problem once a day, a report once a month.
pub(crate) fn letter_due(
    domain: &pb::HttpsDomain,
    now: UnixMs,
    report_period: Duration,
) -> Option<Letter> {
    if let Some(problem) = &domain.problem {
        let told = domain.told_fingerprint == problem.fingerprint;
        let again = UnixMs(domain.told_ms).plus(limits::PROBLEM_LETTER_PERIOD);
        if !told || now >= again {
            return Some(Letter::Problem);
        }
    }
    (now >= UnixMs(domain.reported_ms).plus(report_period)).then_some(Letter::Report)
}

/// A number that depends on the name alone.
fn moment(domain: &str) -> u64 {
    let hash = Sha256::digest(domain.as_bytes());
    hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const MONTH: Duration = limits::REPORT_PERIOD;

    fn hours(count: u64) -> UnixMs {
        UnixMs(count * 3_600_000)
    }

    #[test]
    fn fetches_are_spread_over_the_hour() {
        let mut quarters = [0; 4];
        for n in 0..400 {
            let next = next_fetch(&format!("college-{n}.example"), hours(100), HOUR);
            let minute = (next.0 - hours(100).0) / 60_000;
            quarters[usize::try_from(minute / 15).unwrap().min(3)] += 1;
        }
        assert!(quarters.iter().all(|count| (60..140).contains(count)), "{quarters:?}");
    }

    #[test]
    fn a_clock_that_was_ahead_does_not_stop_fetches() {
        let mut domain = pb::HttpsDomain { next_due_ms: hours(5).0, ..pb::HttpsDomain::default() };
        assert!(fetch_is_due(&domain, hours(5), HOUR));
        assert!(!fetch_is_due(&domain, UnixMs(hours(5).0 - 1), HOUR));
        domain.next_due_ms = hours(50).0;
        assert!(fetch_is_due(&domain, hours(5), HOUR));
    }

    #[test]
    fn a_problem_is_told_when_it_is_new_and_then_daily() {
        let day = |days: u64| hours(1_000 + 24 * days);
        let problem = |fingerprint: &'static [u8]| {
            Some(pb::Problem { fingerprint: fingerprint.into(), ..pb::Problem::default() })
        };
        let mut domain = pb::HttpsDomain { reported_ms: day(0).0, ..pb::HttpsDomain::default() };
        let due = |domain: &pb::HttpsDomain, now| letter_due(domain, now, MONTH);
        assert_eq!(due(&domain, day(1)), None);
        domain.problem = problem(b"one");
        assert_eq!(due(&domain, day(1)), Some(Letter::Problem));
        domain.told_fingerprint = b"one".as_slice().into();
        domain.told_ms = day(1).0;
        assert_eq!(due(&domain, UnixMs(day(2).0 - 1)), None);
        assert_eq!(due(&domain, day(2)), Some(Letter::Problem));
        domain.problem = problem(b"two");
        assert_eq!(due(&domain, UnixMs(day(1).0 + 1)), Some(Letter::Problem));
        domain.told_fingerprint = b"two".as_slice().into();
        domain.told_ms = day(30).0;
        assert_eq!(due(&domain, UnixMs(day(30).0 - 1)), None);
        assert_eq!(due(&domain, day(30)), Some(Letter::Report), "a problem does not hold it up");
    }

    proptest! {
        /// Once in each period, whatever the time and the period are.
        #[test]
        fn the_next_fetch_is_within_a_period(
            name in "[a-z]{1,10}", now in 0_u64..1 << 45, period_ms in 1_u64..100_000_000,
        ) {
            let period = Duration::from_millis(period_ms);
            let next = next_fetch(&name, UnixMs(now), period);
            prop_assert!(next.0 > now && next.0 <= now + period_ms);
            prop_assert_eq!(next_fetch(&name, next, period), next.plus(period));
            prop_assert_eq!(next_fetch(&name, UnixMs(next.0 - 1), period), next);
        }
    }
}
