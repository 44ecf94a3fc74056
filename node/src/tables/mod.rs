//! Tables: maps, wildcard domains, networks and lists, read from text files as administrators write them.

use std::{net::IpAddr, path::Path};

/// All tables of one version. Immutable; readers share it.
#[derive(Debug, Default)]
pub struct Tables {}

#[allow(unused_variables, clippy::todo, reason = "skeleton")]
impl Tables {
    /// Reads `tables/`, `domains/`, `lists/` and `users/` below `dir`. All errors at once, each with file and line.
    pub fn load(dir: &Path) -> Result<Self, Vec<TableError>> {
        todo!()
    }
    /// Value of `key` (case-folded) in a table named like its path without `tables/`: `special_routes`,
    /// `domains/botolph.cam.ac.uk/aliases`, `users/cyrus`. An entry without value gives `Some("")`.
    pub fn get(&self, table: &str, key: &str) -> Option<&str> {
        todo!()
    }
    /// The most specific match for a domain: itself, then `*.parent`, and so on up.
    pub fn get_partial(&self, table: &str, domain: &str) -> Option<&str> {
        todo!()
    }
    /// The longest prefix of a table of networks that holds `address`.
    pub fn get_net(&self, table: &str, address: IpAddr) -> Option<&str> {
        todo!()
    }
    /// Whether the table exists (perhaps empty).
    pub fn has(&self, table: &str) -> bool {
        todo!()
    }
    /// The lines of a list (`lists/punting/members`, `domains/…/managers`).
    pub fn lines(&self, table: &str) -> Option<&[String]> {
        todo!()
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
