//! Files as a capability: what the log needs of a disk, and no more.

#![allow(clippy::disallowed_methods, reason = "this is the module that owns the files")]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    num::NonZeroU64,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{Advice, FallocateFlags},
    io::Errno,
};

/// One open file. Positions are absolute; there is no cursor to share.
#[allow(clippy::len_without_is_empty, reason = "a file is no collection")]
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
    /// Cuts the file to `bytes`, and gives back what was behind.
    fn shorten(&self, bytes: u64) -> io::Result<()>;
    /// The next read of this range is to ask the medium, as far as that can be had. What was not synced is kept.
    fn uncache(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }
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
    /// Files that can still be made on the file system of `dir`; `u64::MAX` if it has no such limit.
    fn free_inodes(&self, dir: &Path) -> io::Result<u64> {
        let _ = dir;
        Ok(u64::MAX)
    }
}

/// Whether an error says that there is no space (or no quota) left: the one trouble of a disk that passes by itself.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The machine's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

/// Most buffers that one `pwritev` takes (`IOV_MAX` of Linux).
const VECTOR_MAX: usize = 1024;

/// Mail is nobody else's business.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

impl DiskFile for File {
    fn write_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        let mut at = offset;
        for group in bufs.chunks(VECTOR_MAX) {
            let mut slices: Vec<IoSlice<'_>> =
                group.iter().filter(|buf| !buf.is_empty()).map(|buf| IoSlice::new(buf)).collect();
            let mut rest = &mut slices[..];
            while !rest.is_empty() {
                match rustix::io::pwritev(self, rest, at) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        at = at.saturating_add(written as u64);
                        IoSlice::advance_slices(&mut rest, written);
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, FallocateFlags::empty(), 0, bytes) {
            // A file system without fallocate: write the blocks that do not exist yet.
            Err(Errno::OPNOTSUPP) => fill(self, bytes),
            other => Ok(other?),
        }
    }

    fn shorten(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn uncache(&self, offset: u64, len: u64) {
        // Advice: where it is not taken, reads are as good as without.
        let _ = rustix::fs::fadvise(self, offset, NonZeroU64::new(len), Advice::DontNeed);
    }
}

/// Extends a file to `bytes` by writing zeros.
fn fill(file: &File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0_u8; 1024 * 1024];
    let mut at = file.metadata()?.len();
    while at < bytes {
        let step = usize::try_from(bytes - at).unwrap_or(zeros.len()).min(zeros.len());
        file.write_all_at(&zeros[..step], at)?;
        at += step as u64;
    }
    Ok(())
}

impl Disk for SystemDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(FILE_MODE);
        Ok(Arc::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let missing: Vec<PathBuf> =
            dir.ancestors().take_while(|d| !d.exists()).map(Path::to_path_buf).collect();
        fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir)?;
        // A directory is there after a power cut only if its parent was synced.
        for made in missing.iter().rev() {
            match made.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => self.sync_dir(parent)?,
                _ => self.sync_dir(Path::new("."))?,
            }
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn free_inodes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        // Some file systems make inodes as they need them, and say that there are none at all.
        Ok(if stat.f_files == 0 { u64::MAX } else { stat.f_favail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_many_buffers_reads_back_and_lists() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("a/b");
        let disk = SystemDisk;
        disk.create_dir(&sub).unwrap();
        disk.create_dir(&sub).unwrap();
        let file = disk.create(&sub.join("one")).unwrap();
        assert!(disk.create(&sub.join("one")).is_err());
        file.allocate(1 << 16).unwrap();
        assert_eq!(file.len().unwrap(), 1 << 16);
        let parts: Vec<Vec<u8>> = (0..3000_u32).map(|i| i.to_le_bytes().to_vec()).collect();
        let bufs: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        file.write_at(5, &bufs).unwrap();
        file.sync_data().unwrap();
        let mut back = vec![0; 12000];
        file.read_at(5, &mut back).unwrap();
        assert_eq!(back, parts.concat());
        file.shorten(1 << 15).unwrap();
        assert_eq!(file.len().unwrap(), 1 << 15);
        file.allocate(1 << 16).unwrap();
        assert!(file.read_at((1 << 16) - 1, &mut [0; 2]).is_err());
        disk.rename(&sub.join("one"), &sub.join("two")).unwrap();
        disk.sync_dir(&sub).unwrap();
        assert_eq!(disk.list(&sub).unwrap(), ["two"]);
        disk.open(&sub.join("two")).unwrap();
        disk.remove(&sub.join("two")).unwrap();
        assert!(disk.free_bytes(&sub).unwrap() > 0);
        assert!(disk.free_inodes(&sub).unwrap() > 0);
    }

    #[test]
    fn fills_where_fallocate_is_missing() {
        let file = tempfile::tempfile().unwrap();
        fill(&file, 3 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3 << 20);
    }
}
