//! Times as logs have them: in UTC, so that lines of several machines sort together.

use jiff::{Timestamp, tz::TimeZone};
use ppsw_spool::env::UnixMs;

/// `2026-11-23T20:00:00.123Z` (RFC 3339).
#[must_use]
pub fn rfc3339(time: UnixMs) -> String {
    format(time, "%Y-%m-%dT%H:%M:%S.%3fZ")
}

/// `2026-11-23 20:00:00 +0000`, with which Exim begins its log lines under `log_timezone`.
#[must_use]
pub fn log_time(time: UnixMs) -> String {
    format(time, "%Y-%m-%d %H:%M:%S +0000")
}

fn format(time: UnixMs, how: &str) -> String {
    let timestamp = i64::try_from(time.0).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    timestamp.unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC).strftime(how).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_their_forms() {
        let time = UnixMs(1_795_464_000_123);
        assert_eq!(rfc3339(time), "2026-11-23T20:00:00.123Z");
        assert_eq!(log_time(time), "2026-11-23 20:00:00 +0000");
        assert_eq!(rfc3339(UnixMs(u64::MAX)), "1970-01-01T00:00:00.000Z");
    }
}
