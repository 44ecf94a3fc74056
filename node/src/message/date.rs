//! Times as logs have them: in UTC, so that lines of several machines sort together.

use jiff::{Timestamp, tz::TimeZone};
use ppsw_spool::env::UnixMs;

/// `2026-11-23T20:00:00.123Z` (RFC 3339).
#[must_use]
pub fn rfc3339(time: UnixMs) -> String {
    format(time, "%Y-%m-%dT%H:%M:%S.%3fZ")
}

/// The same for one line after the other: many are of one second, whose text is made once.
#[derive(Debug, Default)]
pub struct Stamps {
    /// The second, and its date and time of day.
    last: Option<(u64, [String; 2])>,
}

impl Stamps {
    /// As [`rfc3339`].
    pub fn rfc3339(&mut self, time: UnixMs) -> String {
        let ms = Self::known(time).0 % 1000;
        let [date, hour] = self.second(time);
        let mut text = [date.as_str(), "T", hour, "."].concat();
        let digits = [ms / 100, ms / 10 % 10, ms % 10];
        // Each is below ten.
        text.extend(digits.map(|digit| char::from(b'0' + digit as u8)));
        text.push('Z');
        text
    }

    /// `2026-11-23 20:00:00 +0000`, with which Exim begins its log lines under `log_timezone`.
    pub fn log_time(&mut self, time: UnixMs) -> String {
        let [date, hour] = self.second(time);
        [date.as_str(), " ", hour, " +0000"].concat()
    }

    fn second(&mut self, time: UnixMs) -> &[String; 2] {
        let second = Self::known(time).0 / 1000;
        if self.last.as_ref().is_none_or(|(last, _)| *last != second) {
            self.last = None;
        }
        let make = || (second, [format(time, "%Y-%m-%d"), format(time, "%H:%M:%S")]);
        &self.last.get_or_insert_with(make).1
    }

    /// The epoch, if the time has no date.
    fn known(time: UnixMs) -> UnixMs {
        timestamp(time).map_or(UnixMs(0), |_| time)
    }
}

fn format(time: UnixMs, how: &str) -> String {
    let timestamp = timestamp(time).unwrap_or(Timestamp::UNIX_EPOCH);
    timestamp.to_zoned(TimeZone::UTC).strftime(how).to_string()
}

fn timestamp(time: UnixMs) -> Option<Timestamp> {
    i64::try_from(time.0).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_their_forms() {
        let time = UnixMs(1_795_464_000_123);
        assert_eq!(rfc3339(time), "2026-11-23T20:00:00.123Z");
        let mut stamps = Stamps::default();
        assert_eq!(stamps.log_time(time), "2026-11-23 20:00:00 +0000");
        // The same second, another one, one before it, and none.
        for ms in [0, 7, 1_000, 61_999, -1] {
            let time = UnixMs(time.0.saturating_add_signed(ms));
            assert_eq!(stamps.rfc3339(time), rfc3339(time));
        }
        for time in [UnixMs(u64::MAX), UnixMs(0)] {
            assert_eq!(stamps.rfc3339(time), "1970-01-01T00:00:00.000Z");
            assert_eq!(rfc3339(time), "1970-01-01T00:00:00.000Z");
        }
    }
}
