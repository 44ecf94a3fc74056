//! From text to tables.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{Map, Parsed, Table, TableError};
use crate::{limits, policy::POLICY};

/// All files but the policy.
pub(super) fn tables(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Parsed>, Vec<TableError>> {
    let mut tables = Vec::new();
    let mut errors = Vec::new();
    for (path, content) in files.iter().filter(|(path, _)| *path != POLICY) {
        match Parsed::of(path, content) {
            Ok(table) => tables.push(table),
            Err(more) => errors.extend(more),
        }
    }
    if errors.is_empty() {
        return Ok(tables);
    }
    errors.truncate(limits::CONFIGURATION_ERRORS_MAX);
    Err(errors)
}

/// One file: the table's name and itself.
pub(super) fn file(path: &str, content: &[u8]) -> Result<(Box<str>, Table), Vec<TableError>> {
    let mut errors = Vec::new();
    let mut file = File { path, errors: &mut errors };
    let table = file.name().and_then(|(name, kind)| {
        let text = file.text(content)?;
        let table = match kind {
            Kind::Map => Table::Map(file.map(text)),
            Kind::List => Table::List(file.list(text)),
        };
        Some((name.into_boxed_str(), table))
    });
    // Without a table there is an error.
    table.filter(|_| errors.is_empty()).ok_or(errors)
}

enum Kind {
    Map,
    List,
}

struct File<'a> {
    path: &'a str,
    errors: &'a mut Vec<TableError>,
}

impl File<'_> {
    fn error(&mut self, line: usize, what: impl Into<String>) {
        if self.errors.len() < limits::CONFIGURATION_ERRORS_MAX {
            self.errors.push(TableError { file: self.path.to_owned(), line, what: what.into() });
        }
    }

    /// The table's name and kind; both follow from the path.
    fn name(&mut self) -> Option<(String, Kind)> {
        let parts: Vec<&str> = self.path.split('/').collect();
        let good = |part: &&str| {
            part.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
            }) && !part.starts_with('.')
        };
        if !parts.iter().all(good) {
            self.error(0, "names of tables, domains and lists are of a-z, 0-9, `.`, `_` and `-`");
            return None;
        }
        match *parts.as_slice() {
            ["tables", name] => Some((name.to_owned(), Kind::Map)),
            ["users", _] | ["domains", _, "aliases"] => Some((self.path.to_owned(), Kind::Map)),
            ["domains", _, "managers"] | ["lists", _, "members" | "moderators" | "managers"] => {
                Some((self.path.to_owned(), Kind::List))
            }
            _ => {
                self.error(
                    0,
                    "no place for a table; expected tables/NAME, users/NAME, \
                     domains/DOMAIN/{aliases,managers} or lists/NAME/{members,moderators,managers}",
                );
                None
            }
        }
    }

    fn text<'t>(&mut self, content: &'t [u8]) -> Option<&'t str> {
        match std::str::from_utf8(content) {
            Ok(text) => Some(text),
            Err(e) => {
                let good = &content[..e.valid_up_to()];
                let line = good.iter().filter(|b| **b == b'\n').count() + 1;
                self.error(line, "not UTF-8; save the file in that encoding");
                None
            }
        }
    }

    fn map(&mut self, text: &str) -> Map {
        let lines = self.lines(text);
        let bytes = lines.iter().map(|(_, content)| content.len()).sum();
        let mut map = Map::builder(lines.len(), bytes);
        for (line, content) in lines {
            let (key, value) = split(content);
            if key.is_empty() || key.len() > limits::TABLE_KEY_BYTES_MAX {
                let max = limits::TABLE_KEY_BYTES_MAX;
                self.error(line, format!("expected a key of 1 to {max} bytes, then its value"));
                continue;
            }
            // Lines are fewer than 2^32: a file's bytes are.
            let number = u32::try_from(line).unwrap_or(u32::MAX);
            if let Err(first) = map.insert(key, value, number) {
                self.error(line, format!("{key:?} is in line {first} already; remove one"));
            }
        }
        let map = map.finish(net);
        self.check_nets(&map);
        map
    }

    fn list(&mut self, text: &str) -> Vec<String> {
        self.lines(text).into_iter().map(|(_, content)| content.to_owned()).collect()
    }

    /// A network says by itself how long its prefix is.
    fn check_nets(&mut self, map: &Map) {
        if !map.is_nets() {
            return;
        }
        for entry in map.entries() {
            if let Some(net) = net(entry.key).filter(|net| net.trunc() != *net) {
                let (key, good) = (entry.key, net.trunc());
                let what = format!("{key} has bits after its prefix; write {good}");
                self.error(entry.line as usize, what);
            }
        }
    }

    /// Lines with content and their numbers, without comments and blanks around.
    fn lines<'t>(&mut self, text: &'t str) -> Vec<(usize, &'t str)> {
        let mut found = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
            let content = without_comment(line).trim_end();
            if content.is_empty() {
                continue;
            }
            if line.len() > limits::TABLE_LINE_BYTES_MAX {
                let max = limits::TABLE_LINE_BYTES_MAX;
                self.error(number, format!("{} bytes; a line has at most {max}", line.len()));
            } else if content.starts_with([' ', '\t']) {
                self.error(
                    number,
                    "begins with a blank; an entry is one line and is not continued",
                );
            } else if content.chars().any(|c| c.is_control() && c != '\t') {
                self.error(number, "holds a control character; remove it");
            } else if found.len() >= limits::TABLE_ENTRIES_MAX {
                let max = limits::TABLE_ENTRIES_MAX;
                self.error(number, format!("a table has at most {max} entries"));
                break;
            } else {
                found.push((number, content));
            }
        }
        found
    }
}

/// A comment begins at a `#` that stands first in its line, or by itself between blanks (so `room #5` is no comment).
fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        return "";
    }
    let bytes = line.as_bytes();
    let blank = |at: usize| bytes.get(at).is_none_or(|b| matches!(b, b' ' | b'\t'));
    let begins = |at: &usize| bytes[*at] == b'#' && blank(*at - 1) && blank(*at + 1);
    (1..bytes.len()).find(begins).map_or(line, |at| &line[..at])
}

/// `key value` or `key: value`. An IPv6 key keeps its colons; a value like `:fail: text` keeps its own.
fn split(content: &str) -> (&str, &str) {
    let end = content.find([' ', '\t']).unwrap_or(content.len());
    let (word, rest) = content.split_at(end);
    let rest = rest.trim_start();
    if net(word).is_some() {
        return (word, rest.strip_prefix(": ").unwrap_or(rest).trim_start());
    }
    match word.find(':') {
        Some(colon) => (&word[..colon], content[colon + 1..].trim_start()),
        None if rest == ":" => (word, ""),
        None => (word, rest.strip_prefix(": ").unwrap_or(rest).trim_start()),
    }
}

fn net(key: &str) -> Option<IpNet> {
    key.parse().ok().or_else(|| key.parse::<IpAddr>().ok().map(IpNet::from))
}
