//! KDL as the compiler reads it: a property of a node and a child node say the same thing.

use std::time::Duration;

use kdl::{KdlDocument, KdlEntry, KdlNode, KdlValue};
use miette::SourceSpan;

use super::diagnostic::{Errors, Place};

/// Name, values, options and children of one statement: a node, or a property of one.
#[derive(Clone)]
pub(crate) struct Setting<'a> {
    pub(crate) name: &'a str,
    pub(crate) span: SourceSpan,
    pub(crate) values: Vec<&'a KdlEntry>,
    pub(crate) options: Vec<(&'a str, &'a KdlEntry)>,
    pub(crate) children: Option<&'a KdlDocument>,
}

/// Properties that are options of the statement before them when both are written as properties:
/// `verify="recipient" callout="defer-ok"`.
const OPTIONS: [(&str, &[&str]); 4] = [
    ("callout", &["verify"]),
    ("sender-retain", &["control"]),
    ("domain", &["control"]),
    ("per", &["rate-over"]),
];

impl<'a> Setting<'a> {
    pub(crate) fn node(node: &'a KdlNode) -> Self {
        let named = |entry: &'a KdlEntry| Some((entry.name()?.value(), entry));
        Self {
            name: node.name().value(),
            span: node.name().span(),
            values: node.entries().iter().filter(|entry| entry.name().is_none()).collect(),
            options: node.entries().iter().filter_map(named).collect(),
            children: node.children(),
        }
    }

    /// The statements inside a node: its properties in their order, then its children.
    pub(crate) fn inner(node: &'a KdlNode, errors: &mut Errors) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for entry in node.entries() {
            let Some(name) = entry.name() else { continue };
            let (name, span) = (name.value(), name.span());
            if found.iter().any(|setting| setting.name == name) {
                let help = "write the second one as a line of the block: { … }";
                errors.help(span, format!("{name:?} is given twice in one line"), help);
                continue;
            }
            let owner = OPTIONS.iter().find(|(option, _)| *option == name);
            match (owner, found.last_mut()) {
                (Some((_, owners)), Some(last)) if owners.contains(&last.name) => {
                    last.options.push((name, entry));
                }
                _ => found.push(Self {
                    name,
                    span,
                    values: vec![entry],
                    options: Vec::new(),
                    children: None,
                }),
            }
        }
        let children = node.children().into_iter().flat_map(KdlDocument::nodes);
        found.extend(children.map(Self::node));
        found
    }

    /// Where it stands.
    pub(crate) fn place(&self, errors: &Errors) -> Place {
        let entries = self.values.iter().chain(self.options.iter().map(|(_, entry)| entry));
        let ends = entries.map(|entry| end(entry.span()));
        errors.place(self.span, ends.max().unwrap_or_else(|| end(self.span)))
    }

    /// Reports options that nobody knows, and children where none belong.
    pub(crate) fn only(&self, known: &[&str], errors: &mut Errors) {
        for (name, entry) in &self.options {
            if !known.contains(name) {
                errors.unknown(entry.span(), "option", name, known.iter().copied());
            }
        }
        if self.children.is_some() {
            errors.at(self.span, format!("{:?} has no block", self.name));
        }
    }

    pub(crate) fn option(&self, name: &str) -> Option<&'a KdlEntry> {
        self.options.iter().find(|(n, _)| *n == name).map(|(_, entry)| *entry)
    }

    /// The one value of the statement.
    pub(crate) fn value(&self, expected: &str, errors: &mut Errors) -> Option<&'a KdlEntry> {
        match self.values.as_slice() {
            [one] => Some(one),
            _ => {
                errors.at(self.span, format!("{:?} takes one value: {expected}", self.name));
                None
            }
        }
    }

    pub(crate) fn text(&self, expected: &str, errors: &mut Errors) -> Option<&'a str> {
        text(self.value(expected, errors)?, expected, errors)
    }

    /// `name` and `name #true` are true, `name #false` is false.
    pub(crate) fn flag(&self, errors: &mut Errors) -> bool {
        match self.values.as_slice() {
            [] => true,
            [one] => flag(one, errors),
            _ => {
                errors.at(self.span, format!("{:?} takes #true or #false", self.name));
                false
            }
        }
    }
}

fn end(span: SourceSpan) -> usize {
    span.offset() + span.len()
}

/// Where a node stands, without its block.
pub(crate) fn place(node: &KdlNode, errors: &Errors) -> Place {
    let ends = node.entries().iter().map(|entry| end(entry.span()));
    errors.place(node.name().span(), ends.max().unwrap_or_else(|| end(node.name().span())))
}

pub(crate) fn text<'a>(
    entry: &'a KdlEntry,
    expected: &str,
    errors: &mut Errors,
) -> Option<&'a str> {
    let text = entry.value().as_string();
    if text.is_none() {
        errors.at(entry.span(), format!("expected {expected}, in quotes"));
    }
    text
}

pub(crate) fn flag(entry: &KdlEntry, errors: &mut Errors) -> bool {
    entry.value().as_bool().unwrap_or_else(|| {
        errors.at(entry.span(), "expected #true or #false");
        false
    })
}

pub(crate) fn number(entry: &KdlEntry, max: u64, errors: &mut Errors) -> Option<u64> {
    let number = entry.value().as_integer().and_then(|n| u64::try_from(n).ok());
    let number = number.filter(|n| *n <= max);
    if number.is_none() {
        errors.at(entry.span(), format!("expected a number from 0 to {max}"));
    }
    number
}

pub(crate) fn size(entry: &KdlEntry, errors: &mut Errors) -> Option<u64> {
    let size = match entry.value() {
        KdlValue::Integer(n) => u64::try_from(*n).ok(),
        KdlValue::String(text) => parse_size(text),
        _ => None,
    };
    if size.is_none() {
        errors.at(entry.span(), "expected a size like 10K, \"100M\" or a number of bytes");
    }
    size
}

pub(crate) fn duration(entry: &KdlEntry, errors: &mut Errors) -> Option<Duration> {
    let duration = entry.value().as_string().and_then(parse_duration);
    if duration.is_none() {
        errors.at(entry.span(), "expected a time like \"30s\", \"15m\", \"24h\" or \"5d\"");
    }
    duration
}

/// A load average, times 100.
pub(crate) fn load(entry: &KdlEntry, errors: &mut Errors) -> Option<u32> {
    let value = entry.value();
    let load = value.as_float().or_else(|| {
        let whole = value.as_integer().and_then(|n| u32::try_from(n).ok());
        whole.map(f64::from)
    });
    let load = load.filter(|load| (0.0..=10_000.0).contains(load));
    if load.is_none() {
        errors.at(entry.span(), "expected a load average like 15 or 7.5");
    }
    // In range, see above.
    load.map(|load| (load * 100.0).round() as u32)
}

/// `100M`: K, M and G are powers of 1024.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let (digits, factor) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 1 << 10),
        b'M' | b'm' => (&text[..text.len() - 1], 1 << 20),
        b'G' | b'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// `1h30m`, `5d`, `0s`: as Exim writes times.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0_u64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..end].parse().ok()?;
        let factor = match rest.as_bytes()[end] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3_600,
            b'd' => 86_400,
            b'w' => 604_800,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(factor)?)?;
        rest = &rest[end + 1..];
    }
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        assert_eq!(parse_size("100M"), Some(104_857_600));
        assert_eq!(parse_size("10K"), Some(10_240));
        assert_eq!(parse_size("7"), Some(7));
        for bad in ["", "M", "1.5M", "-1", "99999999999999999999G", "1MB"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("0s"), Some(Duration::ZERO));
        for bad in ["", "5", "h", "5x", "-5s", "99999999999999999w"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
