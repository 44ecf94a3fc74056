//! The files of this crate: identity and credentials, small and each replaced as a whole; and contents of versions,
//! which are large, come in pieces, and never change.
#![allow(clippy::disallowed_methods, reason = "this is the module that owns the crate's files")]

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use ppsw_spool::env::UnixMs;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Only the owner: keys.
    Secret,
    /// Everybody.
    Public,
}

/// A whole text file.
///
/// # Errors
/// With the file's name in the text.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map_err(|error| named(path, &error))
}

/// Like [`read`]; `None` if there is no such file.
///
/// # Errors
/// All but `NotFound`.
pub(crate) fn read_optional(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(path, &error)),
    }
}

/// Replaces a file as a whole: after a crash either the old or the new one is there. Synced.
///
/// # Errors
/// With the file's name in the text.
pub(crate) fn write(path: &Path, text: &str, access: Access) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = Path::new(&fresh);
    let mode = if access == Access::Secret { 0o600 } else { 0o644 };
    let put = || -> io::Result<()> {
        let _ = fs::remove_file(fresh);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(fresh, path)?;
        sync_parent(path)
    };
    put().map_err(|error| named(path, &error))
}

/// Makes a directory (and its parents) that only the owner may enter.
///
/// # Errors
/// With the directory's name in the text.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| named(parent, &error))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(|error| named(path, &error)),
    }
}

/// Gives a finished directory its name; durable.
///
/// # Errors
/// With the directory's name in the text; also if the new name is taken by a directory that is not empty.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to).and_then(|()| sync_parent(to)).map_err(|error| named(to, &error))
}

/// Removes a file, if it is there.
///
/// # Errors
/// All but `NotFound`.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named(path, &error)),
        _ => Ok(()),
    }
}

/// Names in a directory that begin with `prefix`; none if there is no such directory.
///
/// # Errors
/// With the directory's name in the text.
pub(crate) fn names(dir: &Path, prefix: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(named(dir, &error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| named(dir, &error))?.file_name();
        found.extend(name.into_string().ok().filter(|name| name.starts_with(prefix)));
    }
    found.sort();
    Ok(found)
}

/// A file that gets its name when all of it is there.
pub(crate) struct Incoming {
    file: fs::File,
    path: PathBuf,
    named: bool,
}

impl Incoming {
    /// Begins one, under a name that nobody looks for.
    ///
    /// # Errors
    /// With the file's name in the text.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        let file = fs::File::create(&path).map_err(|error| named(&path, &error))?;
        Ok(Self { file, path, named: false })
    }

    /// The next piece.
    ///
    /// # Errors
    /// With the file's name in the text.
    pub(crate) fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece).map_err(|error| named(&self.path, &error))
    }

    /// Syncs it and gives it its name; that is durable after [`sync_dir`].
    ///
    /// # Errors
    /// With the file's name in the text.
    pub(crate) fn finish(mut self, to: &Path) -> io::Result<()> {
        self.file.sync_data().map_err(|error| named(&self.path, &error))?;
        fs::rename(&self.path, to).map_err(|error| named(to, &error))?;
        self.named = true;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.named {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes names in a directory durable.
///
/// # Errors
/// With the directory's name in the text.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| named(dir, &error))
}

/// A whole file of at most `bytes_max` bytes.
///
/// # Errors
/// With the file's name in the text.
pub(crate) fn read_bytes(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let all = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        if length > bytes_max {
            return Err(io::Error::other(format!("{length} bytes; at most {bytes_max} are read")));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    all().map_err(|error| named(path, &error))
}

/// Opens a file to read it piece by piece; gives its length too.
///
/// # Errors
/// With the file's name in the text.
pub(crate) fn open(path: &Path) -> io::Result<(fs::File, u64)> {
    let open = || -> io::Result<(fs::File, u64)> {
        let file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    };
    open().map_err(|error| named(path, &error))
}

/// Length of a file; `None` if it is not there.
#[must_use]
pub(crate) fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|meta| meta.len())
}

/// Notes that a file was wanted just now.
///
/// # Errors
/// With the file's name in the text.
pub(crate) fn touch(path: &Path, now: UnixMs) -> io::Result<()> {
    let touch = || {
        let file = fs::File::options().append(true).open(path)?;
        file.set_modified(UNIX_EPOCH + Duration::from_millis(now.0))
    };
    touch().map_err(|error| named(path, &error))
}

/// When a file was written or wanted last.
#[must_use]
pub(crate) fn modified(path: &Path) -> Option<UnixMs> {
    let time = fs::metadata(path).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(time.as_millis()).ok().map(UnixMs)
}

/// Whether something has this name.
#[must_use]
pub(crate) fn exists(path: &Path) -> bool {
    path.exists()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_for_its_owner_only_and_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep").join("identity").join("key.pem");
        make_private_dir(path.parent().unwrap()).unwrap();
        write(&path, "one", Access::Secret).unwrap();
        write(&path, "two", Access::Secret).unwrap();
        assert_eq!(read(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_optional(&path.with_extension("no")).unwrap(), None);
    }
}
