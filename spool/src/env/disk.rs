//! Files as a capability: what the log needs of a disk, and no more.

use std::{io, path::Path, sync::Arc};

/// One open file. Positions are absolute; there is no cursor to share.
pub trait DiskFile: Send + Sync {
    /// Writes all of `bufs` one after the other, beginning at `offset`.
    fn write_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()>;
    /// Fills `buf` from `offset`; an error if the file ends first.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// `fdatasync`: data and the size are on the medium when this returns.
    fn sync_data(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reserves `bytes` of space, so that later writes cannot meet a full disk.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
}

/// A disk. A simulation has its own.
pub trait Disk: Send + Sync + 'static {
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a file that must not exist.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames within one directory; atomic.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names of the files in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes a directory and its parents, if missing.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// `fsync` of a directory: creations, renames and removals in it are durable when this returns.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Free bytes for us on the file system of `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// The machine's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;
