//! A disk that becomes slow or fails when a test says so.

use std::io;

use super::*;
use crate::env::DiskFile;

/// What is wrong with a disk now.
#[derive(Default)]
pub(super) struct Faults {
    /// Every sync fails.
    pub(super) dead: AtomicBool,
    /// Milliseconds that a sync takes longer than it would.
    pub(super) sync_ms: AtomicU64,
}

/// The system's disk with faults.
pub(super) struct FaultyDisk(pub(super) Arc<Faults>);

struct FaultyFile {
    file: Arc<dyn DiskFile>,
    faults: Arc<Faults>,
}

impl FaultyDisk {
    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { file, faults: self.0.clone() })
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        SystemDisk.open(path).map(|file| self.wrap(file))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        SystemDisk.create(path).map(|file| self.wrap(file))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        SystemDisk.list(dir)
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        SystemDisk.create_dir(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        SystemDisk.sync_dir(dir)
    }
    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        SystemDisk.free_bytes(dir)
    }
}

impl DiskFile for FaultyFile {
    fn write_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        self.file.write_at(offset, bufs)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buf)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.faults.dead.load(Ordering::Relaxed) {
            return Err(io::Error::other("the medium is gone"));
        }
        std::thread::sleep(Duration::from_millis(self.faults.sync_ms.load(Ordering::Relaxed)));
        self.file.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.file.allocate(bytes)
    }
    fn shorten(&self, bytes: u64) -> io::Result<()> {
        self.file.shorten(bytes)
    }
}
