//! How things are printed, and times read.

use std::{
    io::{self, Write},
    time::Duration,
};

use comfy_table::{Table, presets};
use jiff::Timestamp;
use ppsw_spool::env::{Clock, SystemClock};
use serde_json::Value;

/// A bound on a message's age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    AtLeast(Duration),
    AtMost(Duration),
}

/// `30s`, `5m`, or seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("expected a time like 30s, 5m or 300 (seconds): {error}"))
}

/// A time with `<` or `>` before it, or nothing.
pub(crate) fn parse_age(text: &str) -> Result<Age, String> {
    match text.strip_prefix('<') {
        Some(rest) => parse_duration(rest).map(Age::AtMost),
        None => parse_duration(text.strip_prefix('>').unwrap_or(text)).map(Age::AtLeast),
    }
}

/// One line to standard output. If nobody reads any more, the program ends quietly.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// One line to standard error.
pub(crate) fn warn(text: &str) {
    // There is nowhere else to complain.
    let _ = writeln!(io::stderr().lock(), "ppswctl: {text}");
}

/// A JSON document to standard output.
pub(crate) fn json(value: &Value) {
    line(&format!("{value:#}"));
}

/// A table without lines, for eyes and for `awk`.
pub(crate) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.to_vec());
    table
}

/// A table to standard output.
pub(crate) fn print(table: &Table) {
    line(&table.trim_fmt());
}

/// RFC 3339 in UTC; `null` for 0.
pub(crate) fn time(ms: u64) -> Value {
    if ms == 0 {
        return Value::Null;
    }
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .map_or(Value::Null, |at| Value::String(format!("{at:.3}")))
}

/// How long ago, in two units at most.
pub(crate) fn ago(ms: u64) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    short(Duration::from_millis(SystemClock.now().0.saturating_sub(ms)))
}

/// How long until then.
pub(crate) fn until(ms: u64) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    let left = ms.saturating_sub(SystemClock.now().0);
    if left == 0 { "now".to_owned() } else { short(Duration::from_millis(left)) }
}

/// `1_536` as `1.5K`.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["", "K", "M", "G", "T"];
    let mut tenths = bytes.saturating_mul(10);
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < units.len() {
        tenths /= 1_024;
        unit += 1;
    }
    if unit == 0 {
        return bytes.to_string();
    }
    format!("{}.{}{}", tenths / 10, tenths % 10, units[unit])
}

/// `1 message`, `2 messages`.
pub(crate) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Numbers with commas between.
pub(crate) fn list(numbers: &[u64]) -> String {
    let texts: Vec<String> = numbers.iter().map(u64::to_string).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(",") }
}

/// What a node's number is, if there is one.
pub(crate) fn number(node: u64) -> Value {
    if node == 0 { Value::Null } else { node.into() }
}

/// Warns of nodes that did not answer.
pub(crate) fn warn_of_silent(silent: &[u64]) {
    for node in silent {
        warn(&format!("node {node} did not answer: what it leads is missing here"));
    }
}

fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert!(parse_duration("soon").is_err());
        assert_eq!(parse_age("<1h"), Ok(Age::AtMost(Duration::from_secs(3_600))));
        assert_eq!(parse_age(">60"), Ok(Age::AtLeast(Duration::from_secs(60))));
        assert_eq!(parse_age("60"), Ok(Age::AtLeast(Duration::from_secs(60))));
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(size(1_023), "1023");
        assert_eq!(size(1_536), "1.5K");
        assert_eq!(size(10 << 20), "10.0M");
        assert_eq!(short(Duration::from_secs(3_700)), "1h1m");
        assert_eq!(time(1_790_000_000_123), Value::from("2026-09-21T14:13:20.123Z"));
        assert_eq!(time(0), Value::Null);
        assert_eq!(list(&[1, 2]), "1,2");
    }
}
