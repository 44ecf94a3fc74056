//! Figures and names as people read them. Pure.

use std::fmt::Write as _;

use crate::limits::PAGE_NAME_CHARS;

/// A number with thin groups of three digits.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// One of something, or several.
pub(super) fn counted(number: usize, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// Bytes with a binary unit: 5 MiB.
pub(super) fn bytes(number: u64) -> String {
    let mut unit = "B";
    // Exact enough for three digits.
    let mut value = number as f64;
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" || value >= 100.0 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// A span of time: its two largest units, on one line.
pub(super) fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{seconds}\u{a0}s"),
        60..3600 => format!("{}\u{a0}min", seconds / 60),
        3600..86_400 => {
            format!("{}\u{a0}h\u{a0}{:02}\u{a0}min", seconds / 3600, seconds / 60 % 60)
        }
        _ => format!("{}\u{a0}d\u{a0}{:02}\u{a0}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A span that is a round number: 10 min, 1 h, 3 d.
pub(super) fn round_span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Time of a day, UTC.
pub(super) fn clock(unix_ms: u64) -> String {
    let time =
        i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| "?".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// A name from outside: bounded, and without characters that nobody sees or that turn what stands beside them around.
pub(super) fn name(text: &str) -> String {
    let mut shown = String::new();
    for (place, character) in text.chars().enumerate() {
        if place == PAGE_NAME_CHARS {
            shown.push('…');
            break;
        }
        if is_hidden(character) {
            // Writing to a string cannot fail.
            let _ = write!(shown, "{}", character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Control characters, and those of Unicode's that have no width or set a direction.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_exact() {
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!([bytes(0), bytes(1536), bytes(5 << 30)], ["0 B", "1.5 KiB", "5.0 GiB"]);
        assert_eq!([span(59_999), span(7_260_000)], ["59\u{a0}s", "2\u{a0}h\u{a0}01\u{a0}min"]);
        assert_eq!(round_span(86_400_000), "1 d");
        assert_eq!(clock(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(clock(u64::MAX), "?");
    }

    #[test]
    fn names_are_bounded_and_hide_nothing() {
        assert_eq!(name("a\u{202e}b\nc"), "a\\u{202e}b\\u{a}c");
        assert_eq!(name(&"é".repeat(300)).chars().count(), PAGE_NAME_CHARS + 1);
        assert_eq!(name("münchen.example"), "münchen.example");
    }
}
