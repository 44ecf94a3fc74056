//! Tables: maps, wildcard domains, networks and lists, read from text files as administrators write them.
//!
//! All of a version's tables are in memory: a look-up compares names with names of loaded tables and never touches a
//! file, so a domain or local part from outside that holds `/` or `..` finds nothing.

mod parse;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::Path,
};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use crate::files;

/// All tables of one version. Immutable; readers share it.
#[derive(Debug, Default)]
pub struct Tables {
    tables: HashMap<Box<str>, Table>,
}

impl Tables {
    /// Reads `tables/`, `domains/`, `lists/` and `users/` below `dir`. All errors at once, each with file and line.
    pub fn load(dir: &Path) -> Result<Self, Vec<TableError>> {
        let files = files::read_tree(dir).map_err(|errors| {
            let error = |e: files::FileError| TableError {
                file: e.path.display().to_string(),
                line: 0,
                what: e.what,
            };
            errors.into_iter().map(error).collect::<Vec<_>>()
        })?;
        Self::from_files(&files)
    }

    /// Makes tables of files that were read already: path below the configuration's directory, and content. The policy
    /// among them is left alone.
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Self, Vec<TableError>> {
        parse::tables(files).map(|tables| Self { tables })
    }

    /// Value of `key` (case-folded) in a table named like its path without `tables/`: `special_routes`,
    /// `domains/botolph.cam.ac.uk/aliases`, `users/cyrus`. An entry without value gives `Some("")`.
    pub fn get(&self, table: &str, key: &str) -> Option<&str> {
        self.map(table)?.get(&folded(key))
    }

    /// The most specific match for a domain: itself, then `*.parent`, and so on up.
    pub fn get_partial(&self, table: &str, domain: &str) -> Option<&str> {
        let map = self.map(table)?;
        let domain = folded(domain);
        if let Some(value) = map.get(&domain) {
            return Some(value);
        }
        let mut rest: &str = &domain;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(value) = map.get(&format!("*.{parent}")) {
                return Some(value);
            }
            rest = parent;
        }
        map.get("*")
    }

    /// The longest prefix of a table of networks that holds `address`.
    pub fn get_net(&self, table: &str, address: IpAddr) -> Option<&str> {
        let nets = self.map(table)?.nets.as_ref()?;
        nets.get_lpm(&IpNet::from(address.to_canonical())).map(|(_, value)| &**value)
    }

    /// Whether the table exists (perhaps empty).
    pub fn has(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// The lines of a list (`lists/punting/members`, `domains/…/managers`).
    pub fn lines(&self, table: &str) -> Option<&[String]> {
        match self.tables.get(table)? {
            Table::List(lines) => Some(lines),
            Table::Map(_) => None,
        }
    }

    /// Names of all tables, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(|name| &**name)
    }

    /// Whether every key of the table is a network or an address; true for an empty table.
    pub fn is_nets(&self, table: &str) -> bool {
        self.map(table).is_some_and(|map| map.nets.is_some())
    }

    /// The entries of a map with their line numbers, in no order.
    pub fn entries(&self, table: &str) -> impl Iterator<Item = (&str, &str, usize)> {
        let entries = self.map(table).map(|map| map.entries.iter());
        entries.into_iter().flatten().map(|(key, e)| (&**key, &*e.value, e.line as usize))
    }

    /// Entries of a map or lines of a list; 0 if there is no such table.
    pub fn len(&self, table: &str) -> usize {
        match self.tables.get(table) {
            Some(Table::Map(map)) => map.entries.len(),
            Some(Table::List(lines)) => lines.len(),
            None => 0,
        }
    }

    /// Whether there is no table at all.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    fn map(&self, table: &str) -> Option<&Map> {
        match self.tables.get(table)? {
            Table::Map(map) => Some(map),
            Table::List(_) => None,
        }
    }
}

/// What is wrong in a table file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct TableError {
    pub file: String,
    pub line: usize,
    pub what: String,
}

#[derive(Debug)]
enum Table {
    Map(Map),
    List(Vec<String>),
}

#[derive(Debug, Default)]
struct Map {
    entries: HashMap<Box<str>, Entry>,
    /// The same by network, if every key is one.
    nets: Option<Box<JointPrefixMap<IpNet, Box<str>>>>,
}

impl Map {
    fn get(&self, key: &str) -> Option<&str> {
        self.entries.get(key).map(|entry| &*entry.value)
    }
}

#[derive(Debug)]
struct Entry {
    value: Box<str>,
    line: u32,
}

/// `text` in lower case; borrowed if it is already. ASCII only, as DNS does (RFC 4343).
pub(crate) fn folded(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests;
