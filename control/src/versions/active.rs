//! `DATA/active`: what this node ran last, so that it can serve before it has heard anybody.

use std::{collections::BTreeMap, io, path::Path};

use ppsw_spool::env::UnixMs;
use serde::{Deserialize, Serialize};

use super::{Content, shelf::Running};
use crate::files::{self, Access};

/// The format of the file.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    generation: u64,
    version: u64,
    since_ms: u64,
    manifest: String,
    /// Hashes by path.
    changes: BTreeMap<String, String>,
}

/// What was run last; `None` if no version ever was.
///
/// # Errors
/// If the file is damaged, or of a newer program.
pub(crate) fn load(data: &Path) -> io::Result<Option<Running>> {
    let path = data.join("active");
    let Some(text) = files::read_optional(&path)? else { return Ok(None) };
    let bad = |what: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
    };
    let record: Record = serde_json::from_str(&text).map_err(|error| bad(&error.to_string()))?;
    if record.format != VERSION {
        let what = format!("format {}, this program reads {VERSION}", record.format);
        return Err(bad(&what));
    }
    let hash = |text: &str| text.parse().map_err(|()| bad("expected a SHA-256"));
    let changes = record.changes.iter().map(|(path, text)| Ok((path.clone(), hash(text)?)));
    let changes = changes.collect::<io::Result<_>>()?;
    Ok(Some(Running {
        generation: record.generation,
        version: record.version,
        content: Some(Content { manifest: hash(&record.manifest)?, changes }),
        since: UnixMs(record.since_ms),
    }))
}

/// Remembers it; durable.
///
/// # Errors
/// What the disk says.
pub(crate) fn store(data: &Path, running: &Running) -> io::Result<()> {
    let Some(content) = &running.content else { return Ok(()) };
    let record = Record {
        format: VERSION,
        generation: running.generation,
        version: running.version,
        since_ms: running.since.0,
        manifest: content.manifest.to_string(),
        changes: content.changes.iter().map(|(p, hash)| (p.clone(), hash.to_string())).collect(),
    };
    let text = serde_json::to_string_pretty(&record).map_err(io::Error::other)?;
    files::write(&data.join("active"), &text, Access::Public)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
mod tests {
    use super::{super::BlobHash, *};

    #[test]
    fn what_ran_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        let changes = BTreeMap::from([("lists/p/members".to_owned(), BlobHash::of(b"b"))]);
        let running = Running {
            generation: 7,
            version: 3,
            content: Some(Content { manifest: BlobHash::of(b"a"), changes }),
            since: UnixMs(9),
        };
        store(dir.path(), &running).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(running));
        let path = dir.path().join("active");
        let text = std::fs::read_to_string(&path).unwrap();
        for bad in [
            text.replace("\"format\": 1", "\"format\": 2"),
            "{}".to_owned(),
            text.replace('a', "z"),
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(load(dir.path()).is_err());
        }
    }
}
