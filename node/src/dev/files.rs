//! Files of `dev`: its directory, the sink's Maildir, zone files.
//!
//! Calls block. That is meant: these are small files of a development tool in the page cache, and handing each call
//! to another thread costs more than the call.

#![allow(clippy::disallowed_methods, reason = "this is the module that owns the files of dev")]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// What tells whether a file was changed.
pub(super) type Stamp = (SystemTime, u64);

/// Creates a file that must not exist.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Opens a file for appending, making it if it is missing.
pub(super) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Reads a text of at most `bytes_max` bytes.
pub(super) fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(bytes_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {bytes_max} bytes"),
        ));
    }
    Ok(text)
}

/// Writes a file so that a reader sees all of it or the file from before.
pub(super) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    fs::rename(&temporary, path)
}

/// Writes a file that only its owner may read.
pub(super) fn write_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(content)
}

/// The zone files of a directory (`NAME.zone`) with their stamps, sorted.
pub(super) fn zone_files(dir: &Path) -> io::Result<Vec<(PathBuf, Stamp)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "zone") {
            continue;
        }
        // An editor may replace a file between the listing and this look at it.
        if let Ok(metadata) = fs::metadata(&path) {
            files.push((path, (metadata.modified()?, metadata.len())));
        }
    }
    files.sort();
    Ok(files)
}

/// Makes a directory and its parents.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Removes a file that may be missing.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a directory holds nothing.
pub(super) fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(dir)?.next().is_none())
}
