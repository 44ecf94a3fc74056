//! Versions of policy and tables: contents and where they lie, how a version is prepared on the members and made
//! active, and how a node follows (docs/decisions/022-versions.md).

mod active;
mod blobs;
mod checks;
mod follow;
mod hash;
mod manifest;
mod members;
mod prepare;
mod push;
mod shelf;
mod transfer;

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use bytes::Bytes;
use ppsw_proto::control as pb;

use self::prepare::Unprepared;
use crate::plane::Shared;

pub use blobs::Blobs;
pub(crate) use follow::run as follow;
pub use hash::BlobHash;
pub(crate) use manifest::Manifest;
pub(crate) use prepare::answer as prepare_for;
pub(crate) use push::{Push, change, push, roll_back};
pub(crate) use shelf::{Running, Shelf};
pub(crate) use transfer::{receive, send};

/// The names of all that is active: a version, and what is laid over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The encoded `Manifest`.
    pub manifest: BlobHash,
    /// By path.
    pub changes: BTreeMap<String, BlobHash>,
}

/// The files that a configuration is made of; their contents lie on this node.
#[derive(Clone)]
pub struct Files {
    /// Path and name of its content.
    pub paths: Vec<(String, BlobHash)>,
    pub(crate) blobs: Blobs,
}

impl Files {
    /// Reads a content from the disk, and checks it.
    ///
    /// # Errors
    /// If it is not there, or not what it was.
    pub fn read(&self, hash: &BlobHash) -> io::Result<Vec<u8>> {
        self.blobs.read(hash)
    }
}

/// A file of what is active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub path: String,
    pub hash: BlobHash,
    pub content: Bytes,
    /// It is a users' table that was changed alone.
    pub changed: bool,
}

/// New contents for users' tables (`domains/…`, `lists/…`), to be laid over the active version.
#[derive(Clone, Debug)]
pub struct NewContents {
    pub files: Vec<NewContent>,
    /// Name of the credential, or of the part of the program, that wants it.
    pub by: String,
    /// The person behind it; may be empty.
    pub author: String,
    pub reason: String,
    pub source: pb::Source,
    /// Also if a table shrinks by more than a quarter.
    pub force: bool,
}

/// New content for one path.
#[derive(Clone, Debug)]
pub struct NewContent {
    pub path: String,
    /// `None`: what the versions say counts again.
    pub content: Option<Bytes>,
    pub expected: Expected,
}

/// What must lie at a path; else the change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Whatever lies there when the change begins.
    Anything,
    /// No file.
    Nothing,
    /// This content.
    Content(BlobHash),
}

/// What came of a push, a rollback or a change.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Activated(pb::ActivatedEverywhere),
    /// It was active already.
    Unchanged(pb::Activated),
}

/// Why nothing has become active.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VersionError {
    /// It must not: lines for people.
    #[error("{}", lines.join("\n"))]
    Refused {
        lines: Vec<String>,
        /// `--force` overrules it.
        forcible: bool,
    },
    /// It cannot at the moment, or it is not known whether it did.
    #[error("{0}")]
    Unable(String),
}

impl VersionError {
    /// One line, not forcible.
    pub(crate) fn refused(line: impl Into<String>) -> Self {
        Self::Refused { lines: vec![line.into()], forcible: false }
    }
}

/// What this node ran last. A file that cannot be read is as good as none: the control group knows.
pub(crate) fn load_active(data: &Path) -> Option<Running> {
    active::load(data).unwrap_or_else(|error| {
        tracing::error!(%error, "it is not known which version this node ran last");
        None
    })
}

/// All files of what is active.
pub(crate) async fn active_files(
    shared: &Arc<Shared>,
) -> Result<BTreeMap<String, BlobHash>, VersionError> {
    match shared.state().versions.content() {
        None => Ok(BTreeMap::new()),
        Some(content) => files_of(shared, &content).await,
    }
}

/// All files of a content.
pub(crate) async fn files_of(
    shared: &Arc<Shared>,
    content: &Content,
) -> Result<BTreeMap<String, BlobHash>, VersionError> {
    let (manifest, _) = prepare::manifest(shared, content.manifest, None).await?;
    Ok(manifest.with(&content.changes))
}

/// One file of what is active.
pub(crate) async fn file(shared: &Arc<Shared>, path: &str) -> Result<Option<File>, VersionError> {
    let versions = Arc::clone(&shared.state().versions);
    let Some(content) = versions.content() else { return Ok(None) };
    let Some(hash) = files_of(shared, &content).await?.get(path).copied() else { return Ok(None) };
    let changed = content.changes.contains_key(path);
    let content = read(shared, hash).await?;
    Ok(Some(File { path: path.to_owned(), hash, content, changed }))
}

/// A content from this node's disk, or else from another node.
pub(crate) async fn read(shared: &Arc<Shared>, hash: BlobHash) -> Result<Bytes, VersionError> {
    transfer::fetch(shared, vec![hash], None).await.map_err(VersionError::Unable)?;
    prepare::read(shared, hash).await.map(Bytes::from).map_err(VersionError::Unable)
}

impl From<Unprepared> for VersionError {
    fn from(error: Unprepared) -> Self {
        match error {
            Unprepared::Refused(lines) => Self::Refused { lines, forcible: false },
            Unprepared::Unable(why) => Self::Unable(why),
        }
    }
}

/// Whether a path is of a table that users own, and that may so be changed without a version.
#[must_use]
pub fn is_users_path(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let owned = match *parts.as_slice() {
        ["domains", _, table] => matches!(table, "aliases" | "managers"),
        ["lists", _, table] => matches!(table, "members" | "moderators" | "managers"),
        _ => false,
    };
    owned && is_path(path)
}

/// Whether a path may be one of a version's file: no more than names of `a-z 0-9 . _ -` that do not begin with a dot.
#[must_use]
pub(crate) fn is_path(path: &str) -> bool {
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
            })
    };
    path.len() <= crate::limits::PATH_BYTES_MAX && path.split('/').all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_own_domains_and_lists_only() {
        for path in ["domains/a.example/aliases", "domains/a/managers", "lists/p-1/moderators"] {
            assert!(is_users_path(path), "{path}");
        }
        for path in [
            "policy.kdl",
            "tables/domainlist",
            "users/passwd",
            "domains/../aliases",
            "domains/A.example/aliases",
            "domains//aliases",
            "domains/a/b/aliases",
            "domains/a/members",
            "lists/p/aliases",
        ] {
            assert!(!is_users_path(path), "{path}");
        }
        assert!(!is_users_path(&format!("domains/{}/aliases", "a".repeat(300))));
    }
}
