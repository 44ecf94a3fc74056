//! Tables: maps, wildcard domains, networks and lists, read from text files as administrators write them.
//!
//! All of a version's tables are in memory: a look-up compares names with names of loaded tables and never touches a
//! file, so a domain or local part from outside that holds `/` or `..` finds nothing.

mod map;
mod parse;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use foldhash::quality::RandomState;

use crate::files;
use map::Map;

/// All tables of one version. Immutable; readers share it.
#[derive(Debug, Default)]
pub struct Tables {
    tables: HashMap<Box<str>, Arc<Table>, RandomState>,
}

/// One file, parsed. Versions in which it is the same share it.
#[derive(Clone, Debug)]
pub struct Parsed {
    name: Box<str>,
    table: Arc<Table>,
}

impl Parsed {
    /// Parses the file at a path below the configuration's directory.
    ///
    /// # Errors
    /// All of the file's errors, with their lines.
    pub fn of(path: &str, content: &[u8]) -> Result<Self, Vec<TableError>> {
        parse::file(path, content).map(|(name, table)| Self { name, table: Arc::new(table) })
    }

    /// The same, without keeping it.
    pub fn downgrade(&self) -> SharedTable {
        SharedTable { name: self.name.clone(), table: Arc::downgrade(&self.table) }
    }
}

/// A parsed file that lasts as long as a version has it.
#[derive(Clone, Debug)]
pub struct SharedTable {
    name: Box<str>,
    table: std::sync::Weak<Table>,
}

impl SharedTable {
    /// The file, if some version still has it.
    pub fn upgrade(&self) -> Option<Parsed> {
        Some(Parsed { name: self.name.clone(), table: self.table.upgrade()? })
    }
}

/// What a look-up has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// `exact`, `wildcard`, `network` or `line`.
    pub how: &'static str,
    pub key: &'a str,
    pub value: &'a str,
    /// 0: not known.
    pub line: u32,
}

impl<'a> Found<'a> {
    fn new(how: &'static str, entry: map::Read<'a>) -> Self {
        Self { how, key: entry.key, value: entry.value, line: entry.line }
    }
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
        parse::tables(files).map(Self::from_parsed)
    }

    /// Tables of files that were parsed already.
    pub fn from_parsed(parsed: impl IntoIterator<Item = Parsed>) -> Self {
        Self { tables: parsed.into_iter().map(|file| (file.name, file.table)).collect() }
    }

    /// What the tables take of memory.
    pub fn bytes(&self) -> u64 {
        self.tables.values().map(|table| table.bytes()).sum()
    }

    /// Everything that a key could mean in a table: the entry, the most specific wildcard, the longest prefix, a list's
    /// line. `None`: there is no such table.
    pub fn find(&self, table: &str, key: &str) -> Option<Vec<Found<'_>>> {
        let map = match &**self.tables.get(table)? {
            Table::Map(map) => map,
            Table::List(lines) => {
                let found = lines.iter().find(|line| line.eq_ignore_ascii_case(key));
                let found = found.map(|key| Found { how: "line", key, value: "", line: 0 });
                return Some(found.into_iter().collect());
            }
        };
        let key = folded(key);
        let exact = map.entry(&key).map(|entry| Found::new("exact", entry));
        let parents = std::iter::successors(key.split_once('.'), |(_, rest)| rest.split_once('.'));
        let mut wild = parents.map(|(_, parent)| format!("*.{parent}")).chain(["*".to_owned()]);
        let wild = wild.find_map(|pattern| map.entry(&pattern));
        let wild = wild.map(|entry| Found::new("wildcard", entry));
        let address: Option<IpAddr> = key.parse().ok();
        let net =
            address.and_then(|address| map.net(address)).map(|net| Found::new("network", net));
        Some(exact.into_iter().chain(wild).chain(net).collect())
    }

    /// Path and number of entries of each table.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, usize)> {
        self.tables.iter().map(|(name, table)| (&**name, table.len()))
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
        self.map(table)?.net(address).map(|entry| entry.value)
    }

    /// Whether the table exists (perhaps empty).
    pub fn has(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// The lines of a list (`lists/punting/members`, `domains/…/managers`).
    pub fn lines(&self, table: &str) -> Option<&[String]> {
        match &**self.tables.get(table)? {
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
        self.map(table).is_some_and(Map::is_nets)
    }

    /// The entries of a map with their line numbers, in the order of its file.
    pub fn entries(&self, table: &str) -> impl Iterator<Item = (&str, &str, usize)> {
        let entries = self.map(table).map(Map::entries);
        entries.into_iter().flatten().map(|entry| (entry.key, entry.value, entry.line as usize))
    }

    /// Entries of a map or lines of a list; 0 if there is no such table.
    pub fn len(&self, table: &str) -> usize {
        self.tables.get(table).map_or(0, |table| table.len())
    }

    /// Whether there is no table at all.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    fn map(&self, table: &str) -> Option<&Map> {
        match &**self.tables.get(table)? {
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

impl Table {
    fn len(&self) -> usize {
        match self {
            Self::Map(map) => map.len(),
            Self::List(lines) => lines.len(),
        }
    }

    fn bytes(&self) -> u64 {
        let bytes: usize = match self {
            Self::Map(map) => map.bytes(),
            Self::List(lines) => {
                let texts: usize = lines.iter().map(String::capacity).sum();
                lines.capacity() * size_of::<String>() + texts
            }
        };
        bytes as u64
    }
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
