//! The files of this crate: identity and credentials. Small, written rarely, each replaced as a whole.
#![allow(clippy::disallowed_methods, reason = "this is the module that owns the crate's files")]

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

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
