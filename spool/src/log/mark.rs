//! The mark of a log that is known to be damaged: a file that says why, so that a restart refuses at once.

use std::{io, path::Path};

use super::LogError;
use crate::{env::Disk, limits::LOG_MARK_BYTES_MAX};

/// Name of the mark in the log's directory.
pub(super) const NAME: &str = "DAMAGED";

/// First line of a mark, with the version of its form. Whatever it holds: that it is there is what counts.
const TITLE: &str = "ppswlog-damaged 1";

/// Marks the log as damaged; synced when this returns. The first mark stays.
///
/// # Errors
/// The disk's; there may be a mark all the same.
pub(super) fn set(disk: &dyn Disk, dir: &Path, damage: &LogError) -> io::Result<()> {
    let LogError::Damaged { file, offset, what } = damage else { return Ok(()) };
    // Names and reasons are ours, but each has its line.
    let line = |text: &str| text.replace(['\n', '\r'], " ");
    let text = format!(
        "{TITLE}\nfile: {}\noffset: {offset}\nwhat: {}\n\
         This copy of the queue is not used again. Run `ppswd rejoin`.\n",
        line(file),
        line(what)
    );
    match disk.create(&dir.join(NAME)) {
        Ok(mark) => {
            mark.write_at(0, &[text.as_bytes()])?;
            mark.sync_data()?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    disk.sync_dir(dir)
}

/// What a mark in the directory says; `None`: there is none.
///
/// # Errors
/// `Disk`.
pub(super) fn find(disk: &dyn Disk, dir: &Path) -> Result<Option<LogError>, LogError> {
    let path = dir.join(NAME);
    let failed = |e: io::Error| LogError::Disk(format!("reading {}: {e}", path.display()));
    let mark = match disk.open(&path) {
        Ok(mark) => mark,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let len = usize::try_from(mark.len().map_err(failed)?).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len.min(LOG_MARK_BYTES_MAX)];
    mark.read_at(0, &mut bytes).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    Ok(Some(LogError::Damaged {
        file: field("file: ").map_or_else(|| path.display().to_string(), str::to_owned),
        offset: field("offset: ").and_then(|offset| offset.parse().ok()).unwrap_or_default(),
        what: format!(
            "{} (found earlier; {} says so)",
            field("what: ").unwrap_or("the log is marked as damaged"),
            path.display()
        ),
    }))
}
