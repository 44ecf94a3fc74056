//! Local checkpoints: the queue index of each partition as of some entry, in files of this node, so that a start need
//! not read the whole log (docs/spool.md, "Local checkpoints").
//!
//! Nothing depends on them: whatever is wrong with a file, the log is replayed instead. An own format because sled, of
//! which the design spoke, ends the process when its files are damaged (docs/decisions/003-checkpoint.md).

mod file;
mod keeper;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use tracing::{info, warn};

use self::{
    file::{Owner, Writer},
    keeper::{Keeper, Note, Pace},
};
use super::{index::Index, machine::QueueMachine};
use crate::{NodeId, PartitionId, env::Disk, limits::KEEP_PERIOD, log::Log};

/// The local checkpoints of a node. Clones share them; one thread writes them, until the last clone is gone.
#[derive(Clone)]
pub struct Checkpoints {
    inner: Arc<Inner>,
}

struct Inner {
    place: Place,
    node: NodeId,
    identity: [u8; 16],
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the writing thread sees.
#[derive(Default)]
struct Shared {
    keepers: Mutex<BTreeMap<PartitionId, Arc<Mutex<Keeper>>>>,
    /// Tells the thread that all is over …
    end: Condvar,
    /// … also in the middle of a round.
    ending: Arc<AtomicBool>,
}

/// Where the files are.
#[derive(Clone)]
struct Place {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

/// A checkpoint that was read.
pub(super) struct Loaded {
    pub(super) index: Index,
    /// What the group noted with it.
    pub(super) note: Bytes,
    writer: Writer,
}

/// What to go on with, after a checkpoint was read and taken over.
pub(super) struct Continued(Writer);

impl Loaded {
    /// Takes out what the machine needs.
    pub(super) fn split(self) -> (Index, Bytes, Continued) {
        (self.index, self.note, Continued(self.writer))
    }
}

impl Checkpoints {
    /// Checkpoints in `dir`, which is made if missing, of the partitions of `node` on `log`. Nobody else may use the
    /// directory.
    ///
    /// # Errors
    /// If the directory cannot be made, or the thread not be started. The node can do without.
    pub fn open(disk: Arc<dyn Disk>, dir: PathBuf, node: NodeId, log: &Log) -> io::Result<Self> {
        disk.create_dir(&dir)?;
        let shared = Arc::new(Shared::default());
        let place = Place { disk, dir };
        let writing = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("ppsw-keeper".to_owned())
            .spawn(move || write(&writing))?;
        let (identity, thread) = (log.identity(), Mutex::new(Some(thread)));
        Ok(Self { inner: Arc::new(Inner { place, node, identity, shared, thread }) })
    }

    /// Writes everything that has changed. Blocks on the disk; for an orderly end.
    pub fn save(&self) {
        let all: Vec<_> = self.inner.shared.lock().values().cloned().collect();
        for keeper in all {
            lock(&keeper).round(Pace::Hurried);
        }
    }

    /// Reads the checkpoint of a partition. Blocks on the disk.
    pub(super) fn load(&self, partition: PartitionId) -> Option<Loaded> {
        let Inner { place, .. } = &*self.inner;
        let files = place.files(partition).unwrap_or_default();
        for (_, path) in files.iter().rev() {
            match file::read(&*place.disk, path, &self.owner(partition)) {
                Ok(file::Read { index, note, writer }) => {
                    info!(
                        partition,
                        messages = index.len(),
                        applied = index.applied(),
                        "the local checkpoint was read"
                    );
                    return Some(Loaded { index, note, writer });
                }
                Err(why) => warn!(
                    partition,
                    file = %path.display(),
                    "the local checkpoint is not used, the log is replayed: {why}"
                ),
            }
        }
        None
    }

    /// From now on, keeps the checkpoint of a partition: goes on with what its machine took over, or begins anew.
    pub(super) fn keep(
        &self,
        machine: Arc<QueueMachine>,
        continued: Option<Continued>,
        note: Note,
    ) {
        let partition = machine.partition();
        if continued.is_none() {
            machine.lock().index.track();
        }
        let writer = continued.map(|Continued(writer)| writer);
        let (place, owner) = (self.inner.place.clone(), self.owner(partition));
        let ending = Arc::clone(&self.inner.shared.ending);
        let keeper = Keeper { machine, note, place, owner, writer, written: None, ending };
        self.inner.shared.lock().insert(partition, Arc::new(Mutex::new(keeper)));
    }

    /// The partition is no longer here.
    pub(super) fn forget(&self, partition: PartitionId) {
        let keeper = self.inner.shared.lock().remove(&partition);
        match keeper {
            Some(keeper) => lock(&keeper).forget(),
            None => self.inner.place.remove_others(partition, Path::new("")),
        }
    }

    fn owner(&self, partition: PartitionId) -> Owner {
        Owner { node: self.inner.node, partition, identity: self.inner.identity }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        {
            // Under the lock, so that the thread is not just about to wait.
            let _keepers = self.shared.lock();
            self.shared.ending.store(true, Ordering::Release);
        }
        self.shared.end.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Groups and log are free when it has ended. A panic has been reported by the thread.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Arc<Mutex<Keeper>>>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(keeper: &Mutex<Keeper>) -> MutexGuard<'_, Keeper> {
    keeper.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread that writes.
fn write(shared: &Shared) {
    let mut keepers = shared.lock();
    while !shared.ending.load(Ordering::Acquire) {
        let waited = shared.end.wait_timeout(keepers, KEEP_PERIOD);
        keepers = waited.unwrap_or_else(PoisonError::into_inner).0;
        let all: Vec<_> = keepers.values().cloned().collect();
        drop(keepers);
        for keeper in all {
            lock(&keeper).round(Pace::Gentle);
        }
        keepers = shared.lock();
    }
    keepers.clear();
}

impl Place {
    /// The files of a partition, by generation.
    fn files(&self, partition: PartitionId) -> io::Result<BTreeMap<u64, PathBuf>> {
        let names = self.disk.list(&self.dir)?;
        let ours = names.iter().filter_map(|name| {
            let (number, rest) = name.strip_prefix("partition-")?.split_once('-')?;
            let generation = rest.strip_suffix(".ckp")?;
            let generation = u64::from_str_radix(generation, 16).ok()?;
            (number.parse() == Ok(partition)).then(|| (generation, self.dir.join(name)))
        });
        Ok(ours.collect())
    }

    /// The name of a partition's next file.
    fn next(&self, partition: PartitionId) -> io::Result<PathBuf> {
        let generation =
            self.files(partition)?.last_key_value().map_or(1, |(last, _)| last.saturating_add(1));
        Ok(self.dir.join(format!("partition-{partition}-{generation:016x}.ckp")))
    }

    fn remove(&self, path: &Path) {
        // What stays is overwritten by nobody, and removed when the next file has been written.
        let _ = self.disk.remove(path);
    }

    fn remove_others(&self, partition: PartitionId, kept: &Path) {
        let files = self.files(partition).unwrap_or_default();
        files.values().filter(|path| *path != kept).for_each(|path| self.remove(path));
    }
}
