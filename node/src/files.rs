//! Files: the only module of this crate that reads or writes them outside the spool.
#![allow(clippy::disallowed_methods, reason = "this is the module that owns files")]

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::limits;

/// A file or directory that could not be read, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct FileError {
    pub path: PathBuf,
    pub what: String,
}

/// Reads one file of at most `bytes_max` bytes.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let length = fs::metadata(path)?.len();
    if length > bytes_max {
        return Err(io::Error::other(format!("{length} bytes; at most {bytes_max} are read")));
    }
    fs::read(path)
}

/// Load of the machine over the last minute. `None` where there is no `/proc`.
pub fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Takes the lock file of a directory that only one process may use; it is free again when that process ends.
///
/// # Errors
/// `WouldBlock` if another process has it.
pub fn lock(dir: &Path) -> io::Result<fs::File> {
    fs::create_dir_all(dir)?;
    let file = fs::File::options().create(true).append(true).open(dir.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            format!("{} is in use by another ppswd; stop that one first", dir.display()),
        )),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// A new file in `dir` that has no name, so that it goes when nobody has it open any more.
pub fn anonymous(dir: &Path) -> io::Result<fs::File> {
    use rustix::fs::{Mode, OFlags};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(dir)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(file.into());
    }
    // Not every file system can do that.
    let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = dir.join(name);
    let file =
        fs::File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Writes a file and the directories that lead to it.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)
}

/// Writes a file so that whoever opens it finds the old content or the new, whole. Not synced: for what may be lost.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    write(&new, content)?;
    fs::rename(&new, path)
}

/// Reads every file below `dir`, keyed by its path from there with `/` between names. Hidden files and the backups
/// of editors (`name~`) are left out, symbolic links are followed. All errors at once.
pub fn read_tree(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, Vec<FileError>> {
    let mut tree = Tree::default();
    tree.directory(dir, "", 0);
    if tree.errors.is_empty() { Ok(tree.files) } else { Err(tree.errors) }
}

#[derive(Default)]
struct Tree {
    files: BTreeMap<String, Vec<u8>>,
    errors: Vec<FileError>,
}

impl Tree {
    fn directory(&mut self, dir: &Path, prefix: &str, depth: usize) {
        let entries = match fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(e) => return self.error(dir, format!("cannot be listed: {e}")),
        };
        for entry in entries {
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                self.error(&path, "its name is not UTF-8; rename it".to_owned());
                continue;
            };
            if name.starts_with('.') || name.ends_with('~') {
                continue;
            }
            let key = format!("{prefix}{name}");
            // Not `entry.file_type()`: that does not follow symbolic links.
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() && depth >= limits::CONFIGURATION_DEPTH_MAX => {
                    self.error(&path, "directories are nested too deeply here".to_owned());
                }
                Ok(meta) if meta.is_dir() => {
                    self.directory(&path, &format!("{key}/"), depth + 1);
                }
                Ok(_) => match read(&path, limits::TABLE_BYTES_MAX) {
                    Ok(content) => drop(self.files.insert(key, content)),
                    Err(e) => self.error(&path, format!("cannot be read: {e}")),
                },
                Err(e) => self.error(&path, format!("cannot be read: {e}")),
            }
        }
    }

    fn error(&mut self, path: &Path, what: String) {
        self.errors.push(FileError { path: path.to_owned(), what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        assert_eq!(lock(dir.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        lock(dir.path()).unwrap();
    }
}
