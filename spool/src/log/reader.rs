//! Reading entries back from their segments, and what happens when that fails (docs/log-format.md §6).

use std::{io, ops::Range, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;

use super::{
    Entry, GroupId, Log, LogError, Position,
    index::Place,
    mark,
    record::{HEADER, Kind, Stamp, padded, parse},
    segment,
    slots::Slot,
    writer::Shared,
};
use crate::{
    env::DiskFile,
    limits::{LOG_READ_PAUSE, LOG_READ_TRIES},
};

impl Log {
    /// Reads entries of an index range until `bytes_max` payload bytes are reached (at least one entry).
    /// Blocks on the disk if they are no longer in the cache. The CRC of every record is checked.
    ///
    /// # Errors
    /// `Missing` for the first index that is not there. `Damaged` or `Disk` if an entry that must be there cannot be
    /// read: the log has ended then, and the process must.
    pub fn read(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in range {
            if bytes >= bytes_max && !entries.is_empty() {
                break;
            }
            let entry = match self.locate(group, index)? {
                Place::Memory(entry) => entry,
                Place::Disk { slot, file, stamp } => {
                    self.read_disk(group, index, slot, &*file, stamp)?
                }
            };
            bytes += entry.payload.len();
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Where an entry is.
    fn locate(&self, group: GroupId, index: u64) -> Result<Place, LogError> {
        let state = self.inner.shared.lock();
        match &state.failed {
            Some(error) => Err(error.clone()),
            None => state.index.locate(group, index).ok_or(LogError::Missing { group, index }),
        }
    }

    /// Reads an entry from its segment and checks that it is the one. Tries a few times, from the medium: what is
    /// wrong may be memory, or a path to the disk that comes back.
    fn read_disk(
        &self,
        group: GroupId,
        index: u64,
        slot: Slot,
        file: &dyn DiskFile,
        stamp: Stamp,
    ) -> Result<Entry, LogError> {
        let mut tries = 1;
        loop {
            let fault = match slot.read(group, index, file, stamp) {
                Ok(payload) => {
                    let position = Position { term: slot.term, index };
                    return Ok(Entry { position, payload });
                }
                Err(fault) => fault,
            };
            // The segment may have been recycled while it was read: then the entry is gone, not damaged.
            match self.locate(group, index)? {
                Place::Disk { slot: now, .. } if now == slot => {}
                _ => return Err(LogError::Missing { group, index }),
            }
            if tries == LOG_READ_TRIES {
                let name = segment::name(slot.generation);
                return Err(self.inner.shared.condemn(&name, slot.offset.into(), fault));
            }
            metrics::counter!("ppsw_log_read_retries_total").increment(1);
            tries += 1;
            file.uncache(slot.offset.into(), padded(slot.len as usize) as u64);
            std::thread::sleep(fault.pause());
        }
    }
}

impl Slot {
    /// Reads the payload of the entry that is here.
    fn read(
        self,
        group: GroupId,
        index: u64,
        file: &dyn DiskFile,
        stamp: Stamp,
    ) -> Result<Bytes, ReadFault> {
        let len = self.len as usize;
        let mut bytes = vec![0; padded(len)];
        file.read_at(self.offset.into(), &mut bytes)?;
        let parsed = parse(stamp, &bytes).map_err(|fault| ReadFault::Wrong(fault.to_string()))?;
        let found = (parsed.kind, parsed.group, parsed.term, parsed.index, parsed.len);
        if found != (Kind::Entry, group, self.term, index, len) {
            return Err(ReadFault::Wrong(format!(
                "entry {index} of group {group} expected, found {found:?}"
            )));
        }
        Ok(Bytes::from(bytes).slice(HEADER..HEADER + len))
    }
}

/// Why bytes that must be there could not be read.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// They are not what was written.
    Wrong(String),
    /// The disk does not give them.
    Unreadable(io::Error),
}

impl ReadFault {
    /// How long to wait before the next try: a path to the disk needs time to come back, a page in memory does not.
    pub(super) const fn pause(&self) -> Duration {
        match self {
            Self::Wrong(_) => Duration::ZERO,
            Self::Unreadable(_) => LOG_READ_PAUSE,
        }
    }
}

impl From<io::Error> for ReadFault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Wrong("the file ends too early".to_owned()),
            _ => Self::Unreadable(error),
        }
    }
}

impl Shared {
    /// Ends the log because of bytes that must be there: marks it as damaged, so that no restart serves it. Returns
    /// why the log has ended.
    ///
    /// Bytes that the disk does not give are damage if the disk takes the mark: it works, and has lost them. A disk
    /// that does not even take the mark may be away as a whole (a path, a cable), and whole when it comes back.
    pub(super) fn condemn(&self, file: &str, offset: u64, fault: ReadFault) -> LogError {
        let damaged = |what| LogError::Damaged {
            file: self.dir.join(file).display().to_string(),
            offset,
            what,
        };
        let (damage, is_wrong) = match &fault {
            ReadFault::Wrong(what) => (damaged(what.clone()), true),
            ReadFault::Unreadable(error) => (damaged(format!("it cannot be read: {error}")), false),
        };
        let marked = mark::set(&*self.disk, &self.dir, &damage);
        if let Err(error) = &marked {
            tracing::error!(%error, "the damaged log could not be marked as such");
        }
        let error = match (fault, marked) {
            (ReadFault::Unreadable(error), Err(_)) => LogError::Disk(format!(
                "{} cannot be read at byte {offset}: {error}",
                self.dir.join(file).display()
            )),
            _ => damage,
        };
        metrics::counter!("ppsw_log_damaged_total", "how" => if is_wrong { "wrong" } else { "unreadable" })
            .increment(1);
        self.fail(&error)
    }

    /// Ends the log: all who wait are told, and all who come. The first reason is the one that counts; returns it.
    pub(super) fn fail(&self, error: &LogError) -> LogError {
        let mut state = self.lock();
        if let Some(first) = &state.failed {
            return first.clone();
        }
        tracing::error!(%error, "the log has failed; the process must end");
        state.failed = Some(error.clone());
        self.ended.store(true, Ordering::Release);
        let waiting = state.queue.drain();
        let told = std::mem::take(&mut state.on_failure);
        drop(state);
        self.work.notify_all();
        self.room.notify_waiters();
        self.space.notify_all();
        self.scrubs.notify_all();
        for done in waiting.into_iter().filter_map(|item| item.done) {
            done(Err(error.clone()));
        }
        for tell in told {
            tell(error.to_string());
        }
        error.clone()
    }
}
