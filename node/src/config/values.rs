//! How values stand in `ppswd.toml`: read, and written as a person would.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

use crate::{deliver::retry::RetryRule, policy::Service};

/// Units of sizes: their letter, and by how many bits they shift.
const UNITS: [(&str, u32); 3] = [("G", 30), ("M", 20), ("K", 10)];

pub(super) fn retry_rule<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<RetryRule>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

pub(super) fn period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|e| {
        D::Error::custom(format!("{text:?} is no period: {e}; expected one like \"7days\""))
    })
}

pub(super) fn show_period<S: Serializer>(
    period: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*period))
}

/// A number of bytes, or a text of a number and `K`, `M` or `G` (2^10, 2^20, 2^30).
pub(super) fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Bytes {
        Number(u64),
        Text(String),
    }
    let text = match Bytes::deserialize(deserializer)? {
        Bytes::Number(bytes) => return Ok(bytes),
        Bytes::Text(text) => text,
    };
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => Some(0),
        letter => UNITS.iter().find(|(unit, _)| *unit == letter).map(|(_, shift)| *shift),
    };
    let number = digits.parse::<u64>().ok().zip(shift);
    let bytes = number.and_then(|(number, shift)| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| {
        D::Error::custom(format!(
            "{text:?}: expected a number of bytes, or one with K, M or G behind it, as in \"1000M\""
        ))
    })
}

/// The same, of this machine's memory.
pub(super) fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    usize::try_from(bytes(deserializer)?).map_err(D::Error::custom)
}

/// In the largest unit that gives a whole number.
pub(super) fn show_bytes<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    let whole = |(_, shift): &&(&str, u32)| *bytes > 0 && bytes.trailing_zeros() >= *shift;
    match UNITS.iter().find(whole) {
        Some((unit, shift)) => serializer.collect_str(&format_args!("{}{unit}", bytes >> shift)),
        None => serializer.serialize_u64(*bytes),
    }
}

pub(super) fn show_memory<S: Serializer>(bytes: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    show_bytes(&u64::try_from(*bytes).unwrap_or(u64::MAX), serializer)
}

pub(super) fn service<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Service, D::Error> {
    let word = String::deserialize(deserializer)?;
    match word.as_str() {
        "smtp" => Ok(Service::Smtp),
        "submission" => Ok(Service::Submission),
        "submissions" => Ok(Service::Submissions),
        _ => Err(D::Error::unknown_variant(&word, &["smtp", "submission", "submissions"])),
    }
}
