//! The log's decoders, given anything. For the fuzz target `log_record`, and with chosen bytes for the tests.

#![allow(unreachable_pub, reason = "the fuzz targets reach it through the feature `fuzzing`")]
#![allow(clippy::panic, reason = "a panic is how a finding is told")]

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Options,
    record::{ALIGN, HEADER, Kind, Record, Stamp, add_check, padded, parse, u32_at},
    recovery::recover,
    segment::{self, SEGMENT_HEADER},
    sidecar,
};
use crate::env::{Disk, DiskFile};

const DIR: &str = "/log";

/// Segments of one input.
const SEGMENTS_MAX: usize = 3;

/// Opens a log whose files are made from `data`, twice: what the first opening accepts, the second must find again.
///
/// The first byte tells how many segments there are (low two bits), which of them are given right checksums (bits 2 to
/// 4; else hardly anything would get past the first record), and whether the first has an index file (bit 5). The rest
/// is cut in as many parts.
///
/// # Panics
/// If that is not so: then the log has a bug.
pub fn log_record(data: &[u8]) {
    let Some((&plan, rest)) = data.split_first() else { return };
    let _ = parse(Stamp { generation: u64::from(plan), salt: 0 }, rest);
    let segments = usize::from(plan & 3).min(SEGMENTS_MAX);
    let disk = Memory::default();
    for (number, part) in
        rest.chunks((rest.len() / segments.max(1)).max(1)).take(segments).enumerate()
    {
        let stamp = Stamp { generation: number as u64 + 1, salt: u32::from(plan) };
        let mut bytes = segment::header(stamp).to_vec();
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(ALIGN) + SEGMENT_HEADER, 0);
        if plan & (4 << number) != 0 {
            mend(stamp, &mut bytes);
        }
        disk.put(&segment::name(stamp.generation), bytes);
    }
    if plan & 32 != 0 {
        let mut bytes = rest.to_vec();
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        disk.put(&sidecar::name(1), bytes);
    }
    let options = Options { dir: PathBuf::from(DIR), segment_bytes: 4096, cache_bytes: 0 };
    let Ok(first) = recover(&disk, &options) else { return };
    let state = |index: &super::index::Index| {
        let groups = index.groups();
        groups.into_iter().map(|id| format!("{id} {:?}", index.state(id))).collect::<Vec<_>>()
    };
    match recover(&disk, &options) {
        Ok(second) => assert_eq!(state(&second.index), state(&first.index)),
        Err(error) => panic!("a log that was opened is not opened again: {error}"),
    }
}

/// Gives each record from the first on a length inside the segment, generation and checksum, and markers what fits.
fn mend(stamp: Stamp, bytes: &mut [u8]) {
    let (mut at, mut flushes, mut start, mut count, mut check) =
        (SEGMENT_HEADER, 0, SEGMENT_HEADER, 0, 0);
    while let Some(rest) = bytes.get_mut(at..).filter(|rest| rest.len() >= HEADER) {
        let mut record = Record {
            kind: Kind::of(rest[16] % 11).unwrap_or(Kind::Entry),
            flag: rest[17] & 1 != 0,
            group: u32_at(rest, 20) % 4,
            term: super::record::u64_at(rest, 24),
            index: super::record::u64_at(rest, 32),
            payload: bytes::Bytes::new(),
        };
        let mut len = u32_at(rest, 4) as usize % (rest.len() - HEADER + 1).min(200);
        // Half of the markers are right, and of the other records that speak of places.
        let is_right = rest[18] & 1 == 0;
        if record.kind == Kind::Commit && is_right && rest.len() >= HEADER + 8 {
            record = super::record::marker(flushes, start as u64, count, check);
            rest[HEADER..HEADER + 8].copy_from_slice(&record.payload);
            len = 8;
        } else if record.kind == Kind::Seal && is_right {
            (record.term, record.index) = (stamp.generation + 1, at as u64);
        } else if record.kind == Kind::Head && is_right {
            record.term = record.term % stamp.generation.max(1) + 1;
        }
        let Some(place) = rest.get_mut(..padded(len)) else { return };
        record.payload = bytes::Bytes::copy_from_slice(&place[HEADER..HEADER + len]);
        let header = record.header(stamp);
        place[..HEADER].copy_from_slice(&header);
        place[HEADER + len..].fill(0);
        at += padded(len);
        if record.kind == Kind::Commit {
            (flushes, start, count, check) = (flushes + 1, at, 0, 0);
        } else {
            (count, check) = (count + 1, add_check(check, &header));
        }
    }
}

type Content = Arc<Mutex<Vec<u8>>>;

/// A disk in memory that does what it is told.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<PathBuf, Content>>);

struct MemoryFile(Content);

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    fn put(&self, name: &str, bytes: Vec<u8>) {
        locked(&self.0).insert(Path::new(DIR).join(name), Arc::new(Mutex::new(bytes)));
    }
}

impl DiskFile for MemoryFile {
    fn write_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        let mut file = locked(&self.0);
        let new = bufs.concat();
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let len = file.len().max(at + new.len());
        file.resize(len, 0);
        file[at..at + new.len()].copy_from_slice(&new);
        Ok(())
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let file = locked(&self.0);
        let from = usize::try_from(offset).ok().and_then(|at| file.get(at..)?.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(locked(&self.0).len() as u64)
    }
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut file = locked(&self.0);
        let len = file.len().max(usize::try_from(bytes).map_err(io::Error::other)?);
        file.resize(len, 0);
        Ok(())
    }
    fn shorten(&self, bytes: u64) -> io::Result<()> {
        locked(&self.0).truncate(usize::try_from(bytes).map_err(io::Error::other)?);
        Ok(())
    }
}

impl Disk for Memory {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = locked(&self.0).get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(MemoryFile(file)))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = locked(&self.0);
        if files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = files.entry(path.to_owned()).or_default();
        Ok(Arc::new(MemoryFile(Arc::clone(file))))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = locked(&self.0);
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        locked(&self.0).remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        let files = locked(&self.0);
        let names = files.keys().filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2000, failure_persistence: None, ..ProptestConfig::default()
        })]

        #[test]
        fn anything_is_opened_or_refused(data in prop::collection::vec(any::<u8>(), 0..600)) {
            log_record(&data);
        }

        /// Bytes that are often zero, as in real headers: records with sane lengths and small numbers.
        #[test]
        fn what_looks_like_records_is_opened_or_refused(
            plan in any::<u8>(),
            records in prop::collection::vec((0..11_u8, 0..3_u8, 0..4_u8, 0..4_u8, 0..4_u8, any::<bool>()), 0..20),
        ) {
            let mut data = vec![plan];
            for (kind, group, term, index, len, marker) in records {
                let mut header = [0; HEADER];
                (header[4], header[16], header[20], header[24], header[32]) = (len, kind, group, term, index);
                data.extend(header);
                data.extend([7; 8]);
                if marker {
                    let mut header = [0; HEADER + 8];
                    header[16] = Kind::Commit as u8;
                    data.extend(header);
                }
            }
            log_record(&data);
        }
    }
}
