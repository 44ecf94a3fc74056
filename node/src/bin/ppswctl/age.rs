//! Times as people write them: `30s`, `5m`, `2h`, `1d`, or seconds.

use std::time::Duration;

/// Messages older, or younger, than a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    Older(Duration),
    Younger(Duration),
}

/// Reads a duration.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|e| format!("{e}; expected a time like 30s, 5m, 2h, 1d or a number of seconds"))
}

/// Reads an age: `2h` is older than two hours, `-2h` younger.
pub(crate) fn age(text: &str) -> Result<Age, String> {
    match text.strip_prefix('-') {
        Some(younger) => duration(younger).map(Age::Younger),
        None => duration(text.strip_prefix('+').unwrap_or(text)).map(Age::Older),
    }
}

/// A time span for tables: the two largest units.
pub(crate) fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// RFC 3339 in UTC; `null` for 0.
pub(crate) fn rfc3339(unix_ms: u64) -> serde_json::Value {
    let time =
        i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    match time {
        Some(time) if unix_ms != 0 => time.to_string().into(),
        _ => serde_json::Value::Null,
    }
}

/// The same, always with milliseconds: lines with it sort as text.
pub(crate) fn moment(unix_ms: u64) -> serde_json::Value {
    let time = i64::try_from(unix_ms).ok().map(jiff::Timestamp::from_millisecond);
    time.and_then(Result::ok).map(|time| format!("{time:.3}")).into()
}

/// The time of day in UTC, with milliseconds.
pub(crate) fn clock(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000 % 86_400, unix_ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_people_write_them() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(age("-1d"), Ok(Age::Younger(Duration::from_secs(86_400))));
        assert!(duration("soon").unwrap_err().contains("30s"));
        assert_eq!(span(3_661_000), "1h01m");
        assert_eq!(moment(1_764_424_951_100), "2025-11-29T14:02:31.100Z");
    }
}
