//! A disk in memory with a volatile cache, power cuts, and errors. For tests and simulations.

mod file;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use self::file::File;
use super::{Disk, DiskFile};

/// What the disk does wrong on purpose, to see that the tests notice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lies {
    /// `sync_data` does nothing.
    pub sync_data: bool,
    /// `sync_dir` does nothing.
    pub sync_dir: bool,
}

/// What happens at the disk operation that was chosen.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// The machine stops in the middle of it; everything after fails without effect.
    Stop,
    /// It fails with EIO.
    Error,
    /// It and those that follow, so many in all, fail with ENOSPC if they could need space. That passes.
    Full(u64),
}

/// Kinds of changing operations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Never fails for want of space: it gives space back.
    Nothing,
    Space,
}

#[derive(Clone)]
enum DirOp {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

struct World {
    files: Vec<File>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending_names: Vec<DirOp>,
    /// Handles of an earlier life have no effect.
    life: u64,
    stopped: bool,
    /// No block is free.
    full: bool,
    trouble: Option<(u64, Trouble)>,
    operations: u64,
    /// So many reads fail with EIO.
    failing_reads: u64,
    /// Operations that met a full disk.
    met: u64,
    /// Bytes that all files together may have.
    capacity: u64,
    lies: Lies,
    rng: StdRng,
}

/// The disk, as one life of the process sees it.
#[derive(Clone)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
    life: u64,
}

struct SimFile {
    disk: SimDisk,
    id: usize,
}

/// How much of an operation to do.
enum Extent {
    All,
    Part,
}

/// A position in memory; nothing is as long as that on a machine of less than 64 bits.
fn place(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn eio() -> io::Error {
    io::Error::other("simulated EIO")
}

impl SimDisk {
    /// An empty disk. What power cuts and troubles leave is chosen by `seed`.
    #[must_use]
    pub fn new(seed: u64, lies: Lies) -> Self {
        let world = World {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            life: 0,
            stopped: false,
            full: false,
            trouble: None,
            operations: 0,
            failing_reads: 0,
            met: 0,
            capacity: 1 << 30,
            lies,
            rng: StdRng::seed_from_u64(seed),
        };
        Self { world: Arc::new(Mutex::new(world)), life: 0 }
    }

    /// A disk that has these files.
    pub fn with(files: BTreeMap<PathBuf, Vec<u8>>) -> Self {
        let disk = Self::new(0, Lies::default());
        let mut world = disk.world();
        for (path, bytes) in files {
            let id = world.files.len();
            let (cached, durable) = (bytes.clone(), bytes);
            world.files.push(File { cached, durable, pending: Vec::new() });
            world.names.insert(path.clone(), id);
            world.durable_names.insert(path, id);
        }
        drop(world);
        disk
    }

    /// All files, as reads see them.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let world = self.world();
        world
            .names
            .iter()
            .map(|(path, id)| (path.clone(), world.files[*id].cached.clone()))
            .collect()
    }

    /// Lets trouble come at the `after`th changing operation from now.
    pub fn trouble(&self, after: u64, trouble: Trouble) {
        let mut world = self.world();
        world.trouble = Some((world.operations + after, trouble));
    }

    /// Lets the next `count` reads fail with EIO.
    pub fn fail_reads(&self, count: u64) {
        self.world().failing_reads = count;
    }

    /// What a file holds, as reads see it.
    pub fn content(&self, path: &Path) -> Vec<u8> {
        let world = self.world();
        world.files[world.names[path]].cached.clone()
    }

    /// Gives a file other content, in the cache and on the medium.
    pub fn replace(&self, path: &Path, content: &[u8]) {
        let mut world = self.world();
        let id = world.names[path];
        let (cached, durable) = (content.to_vec(), content.to_vec());
        world.files[id] = File { cached, durable, pending: Vec::new() };
    }

    /// Lets all files together have so many bytes.
    pub fn limit(&self, capacity: u64) {
        self.world().capacity = capacity;
    }

    /// How many operations met a full disk so far.
    pub fn met_full(&self) -> u64 {
        self.world().met
    }

    /// Takes back trouble that has not come yet.
    pub fn no_trouble(&self) {
        self.world().trouble = None;
    }

    /// From now on the process can do nothing more, as if killed.
    pub fn stop(&self) {
        self.world().stopped = true;
    }

    /// Lets no file grow, or become, from now on; or lets them again.
    pub fn fill(&self, full: bool) {
        self.world().full = full;
    }

    /// Whether trouble has stopped the machine.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.world().stopped
    }

    /// A new process, with what the cache of the machine holds.
    #[must_use]
    pub fn next_life(&self) -> Self {
        let mut world = self.world();
        world.life += 1;
        world.stopped = false;
        world.trouble = None;
        Self { world: Arc::clone(&self.world), life: world.life }
    }

    /// The cache is lost. Of what was not synced an arbitrary part has reached the medium.
    pub fn power_cut(&self) {
        let mut world = self.world();
        let world = &mut *world;
        // A journal keeps directory operations in order.
        let kept = world.rng.random_range(0..=world.pending_names.len());
        let operations: Vec<DirOp> = world.pending_names.drain(..).take(kept).collect();
        for operation in operations {
            operation.apply(&mut world.durable_names);
        }
        world.names.clone_from(&world.durable_names);
        for file in &mut world.files {
            file.lose(&mut world.rng);
        }
    }

    /// Flips a bit, in the cache and on the medium.
    pub fn flip(&self, path: &Path, byte: usize, bit: u8) {
        let mut world = self.world();
        let id = world.names[path];
        let file = &mut world.files[id];
        file.cached[byte] ^= 1 << bit;
        file.durable.clone_from(&file.cached);
        file.pending.clear();
    }

    /// No holder of the lock can panic half-way, but for a broken test.
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a changing operation, or the trouble that was ordered for it.
    fn change<T>(
        &self,
        operation: impl FnOnce(&mut World, Extent) -> io::Result<T>,
    ) -> io::Result<T> {
        self.change_that(Need::Space, operation)
    }

    fn change_that<T>(
        &self,
        need: Need,
        operation: impl FnOnce(&mut World, Extent) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut world = self.world();
        if world.life != self.life || world.stopped {
            return Err(eio());
        }
        world.operations += 1;
        match world.trouble {
            Some((at, Trouble::Full(count))) => {
                let full = (at..at + count).contains(&world.operations) && need == Need::Space;
                if !full {
                    return operation(&mut world, Extent::All);
                }
                world.met += 1;
                if world.rng.random() {
                    let _ = operation(&mut world, Extent::Part);
                }
                Err(io::ErrorKind::StorageFull.into())
            }
            Some((at, trouble)) if at == world.operations => {
                if world.rng.random() {
                    let _ = operation(&mut world, Extent::Part);
                }
                world.stopped = matches!(trouble, Trouble::Stop);
                Err(eio())
            }
            _ => operation(&mut world, Extent::All),
        }
    }
}

impl DirOp {
    fn apply(self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Create(path, id) => {
                names.insert(path, id);
            }
            Self::Rename(from, to) => {
                if let Some(id) = names.remove(&from) {
                    names.insert(to, id);
                }
            }
            Self::Remove(path) => {
                names.remove(&path);
            }
        }
    }
}

impl World {
    /// Bytes of all files.
    fn used(&self) -> u64 {
        self.names.values().map(|&id| self.files[id].cached.len() as u64).sum()
    }

    fn name(&mut self, operation: DirOp) {
        self.pending_names.push(operation.clone());
        operation.apply(&mut self.names);
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        self.disk.change(|world, extent| {
            let mut bytes = bufs.concat();
            if matches!(extent, Extent::Part) {
                let kept = world.rng.random_range(0..=bytes.len());
                bytes.truncate(kept);
            }
            let end = place(offset).saturating_add(bytes.len());
            if world.full && end > world.files[self.id].cached.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            world.files[self.id].write(place(offset), &bytes);
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut world = self.disk.world();
        if world.failing_reads > 0 {
            world.failing_reads -= 1;
            return Err(eio());
        }
        let at = place(offset);
        let bytes = world.files[self.id].cached.get(at..at + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.change(|world, extent| {
            let World { files, rng, lies, .. } = world;
            let file = &mut files[self.id];
            match extent {
                Extent::All if lies.sync_data => {}
                Extent::All => file.sync(),
                // A failed sync: the cache keeps what was written and calls it clean.
                Extent::Part => file.persist_some(rng),
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.world().files[self.id].cached.len() as u64)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.disk.change(|world, _| {
            let (full, used, capacity) = (world.full, world.used(), world.capacity);
            let cached = &mut world.files[self.id].cached;
            let len = cached.len().max(place(bytes));
            let more = (len - cached.len()) as u64;
            if (full && more > 0) || used + more > capacity {
                world.met += 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            cached.resize(len, 0);
            Ok(())
        })
    }

    fn shorten(&self, bytes: u64) -> io::Result<()> {
        self.disk.change_that(Need::Nothing, |world, _| {
            let World { files, rng, .. } = world;
            files[self.id].shorten(place(bytes), rng);
            Ok(())
        })
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let id = self.world().names.get(path).copied();
        let id = id.ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.change(|world, extent| {
            // A file cannot be half there.
            if matches!(extent, Extent::Part)
                && matches!(world.trouble, Some((_, Trouble::Full(_))))
            {
                return Err(io::ErrorKind::StorageFull.into());
            }
            if world.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if world.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let id = world.files.len();
            world.files.push(File::default());
            world.name(DirOp::Create(path.to_owned(), id));
            Ok(Arc::new(SimFile { disk: self.clone(), id }) as Arc<dyn DiskFile>)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|world, extent| {
            if matches!(extent, Extent::Part)
                && matches!(world.trouble, Some((_, Trouble::Full(_))))
            {
                return Err(io::ErrorKind::StorageFull.into());
            }
            world.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            world.name(DirOp::Rename(from.to_owned(), to.to_owned()));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change_that(Need::Nothing, |world, _| {
            world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
            world.name(DirOp::Remove(path.to_owned()));
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.world();
        let here = world.names.keys().filter(|path| path.parent() == Some(dir));
        let names = here.filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.change(|world, extent| {
            if world.lies.sync_dir {
                return Ok(());
            }
            let all = world.pending_names.len();
            let kept = match extent {
                Extent::All => all,
                Extent::Part => world.rng.random_range(0..=all),
            };
            let operations: Vec<DirOp> = world.pending_names.drain(..kept).collect();
            for operation in operations {
                operation.apply(&mut world.durable_names);
            }
            Ok(())
        })
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let world = self.world();
        Ok(if world.full { 0 } else { world.capacity.saturating_sub(world.used()) })
    }
}
