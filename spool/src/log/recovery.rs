//! Start: reads the segments in order and rebuilds the index.
//!
//! A flush ends with a Commit record that carries the flush's number; numbers are consecutive over all segments, and
//! flush *n + 1* is only written after flush *n* was synced. So, where reading stops at a record that is not valid:
//!
//! * a valid Commit of a later flush than the one that was being read proves that what is unreadable had been synced:
//!   the disk lost it. `Damaged`: this replica must not serve.
//! * otherwise it is the torn tail of the last flush, which nobody has been told about: it is left behind, and writing
//!   goes on in a new segment, so that no byte of it is ever read again.

use std::{io, path::Path};

use bytes::Bytes;

use super::{
    LogError,
    index::{Index, Place, Slot},
    record::{self, Bad, HEADER_BYTES, Header, Kind},
    segment::{self, HeaderState, SEGMENT_HEADER_BYTES, Segment},
};
use crate::env::Disk;

/// What was found.
pub(super) struct Recovered {
    pub(super) index: Index,
    /// Oldest first.
    pub(super) segments: Vec<Segment>,
    pub(super) free: Vec<(u64, u64)>,
    /// Number of the last flush that ended.
    pub(super) flush: u64,
    /// Highest generation ever seen.
    pub(super) generation: u64,
}

/// Bytes read from a segment at once.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// Reads the log in `dir`.
pub(super) fn recover(disk: &dyn Disk, dir: &Path) -> Result<Recovered, LogError> {
    let names = disk.list(dir).map_err(|e| fault(dir, &e))?;
    let free = segment::list_free(disk, dir, &names).map_err(|e| fault(dir, &e))?;
    let mut generation = free.iter().map(|(generation, _)| *generation).max().unwrap_or(0);
    let mut found =
        Recovered { index: Index::default(), segments: Vec::new(), free, flush: 0, generation: 0 };
    let mut expected = None;
    let logs: Vec<&String> =
        names.iter().filter(|n| segment::generation_of(n, ".seg").is_some()).collect();
    for (at, name) in logs.iter().enumerate() {
        let named = segment::generation_of(name, ".seg").unwrap_or_default();
        generation = generation.max(named);
        let last = at + 1 == logs.len();
        let segment = match segment::open(disk, dir, name)? {
            HeaderState::Begun(segment) => segment,
            HeaderState::NotBegun if last => {
                disk.remove(&segment::path_of(dir, name)).map_err(|e| fault(dir, &e))?;
                continue;
            }
            HeaderState::NotBegun => return Err(damaged(name, 0, "its header is not valid")),
        };
        if expected.is_some_and(|expected| expected != named) {
            return Err(damaged(name, 0, "the segment before it is missing"));
        }
        expected = Some(named + 1);
        read_segment(&segment, &mut found)?;
        found.segments.push(segment);
    }
    for (group, state) in &found.index.groups {
        let begins = state.purged.map_or(0, |p| p.index + 1);
        if state.first().is_some_and(|first| first > begins) {
            let what = format!("entries of group {group} before {:?} are missing", state.first());
            return Err(damaged(&dir.display().to_string(), 0, &what));
        }
    }
    found.generation = generation;
    Ok(found)
}

/// Reads a segment flush by flush; a flush counts when its Commit has been read.
fn read_segment(segment: &Segment, found: &mut Recovered) -> Result<(), LogError> {
    let mut reader = Reader::new(segment);
    let mut flush: Vec<(Header, u64, Bytes)> = Vec::new();
    loop {
        let offset = reader.offset;
        let (header, payload) = match reader.next() {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(()),
            Err(Stop::Fault(error)) => return Err(error),
            Err(Stop::Bad(Bad::UnknownKind(kind))) => {
                return Err(LogError::Version {
                    file: segment.name.clone(),
                    found: u32::from(kind),
                    supported: segment::FORMAT_VERSION,
                });
            }
            Err(Stop::Bad(Bad::Invalid(what))) => {
                let later = later_flush(segment, offset, found.flush + 2)?;
                if later {
                    return Err(damaged(&segment.name, offset, what));
                }
                // Torn or never written. In a segment that is not the last the next one's first flush has the
                // following number, which `commit` checks.
                return Ok(());
            }
        };
        if header.kind != Kind::Commit {
            flush.push((header, offset, payload));
            continue;
        }
        let number = header.position.index;
        let first_ever = found.flush == 0 && found.segments.is_empty();
        if !first_ever && number != found.flush + 1 {
            let what = format!("flush {} is missing", found.flush + 1);
            return Err(damaged(&segment.name, offset, &what));
        }
        if header.position.term != flush.len() as u64 {
            return Err(damaged(&segment.name, offset, "a flush has lost records"));
        }
        found.flush = number;
        for (header, offset, payload) in flush.drain(..) {
            replay(&mut found.index, segment, header, offset, payload);
        }
    }
}

/// Applies a record to the index. Later records win; holes are judged when all is read.
fn replay(index: &mut Index, segment: &Segment, header: Header, offset: u64, payload: Bytes) {
    let Header { kind, group, position, payload_bytes } = header;
    let state = index.groups.entry(group).or_default();
    match kind {
        Kind::Entry => {
            if state.purged.is_some_and(|p| p.index >= position.index) {
                return;
            }
            if state.next().is_some_and(|next| next != position.index) {
                // What lay between was purged: the record of that comes later.
                state.clear();
            }
            let place = Place {
                generation: segment.seal.generation,
                // Segments are below 4 GiB: `Log::open` refuses others.
                offset: u32::try_from(offset).unwrap_or(u32::MAX),
                payload_bytes,
            };
            state.push(position.index, Slot { term: position.term, place, payload: None });
        }
        Kind::Vote => state.vote = Some(payload),
        Kind::Checkpoint => state.checkpoint = Some(payload),
        Kind::Truncate => {
            let all = payload.is_empty();
            state.truncate_after((!all).then_some(position));
        }
        Kind::Purge => {
            state.purge(position);
        }
        Kind::Forget => {
            index.groups.remove(&group);
        }
        Kind::Commit => {}
    }
}

/// Whether a valid Commit of flush `from` or later stands behind `offset`.
fn later_flush(segment: &Segment, offset: u64, from: u64) -> Result<bool, LogError> {
    let length = usize::try_from(segment.bytes - offset).unwrap_or(usize::MAX);
    let mut rest = vec![0_u8; length];
    segment.file.read_at(offset, &mut rest).map_err(|e| fault(Path::new(&segment.name), &e))?;
    let generation = segment.seal.generation.to_le_bytes();
    for at in 0..rest.len().saturating_sub(HEADER_BYTES - 1) {
        if rest[at + 16] != Kind::Commit as u8 || rest[at + 8..at + 16] != generation {
            continue;
        }
        let mut header = [0_u8; HEADER_BYTES];
        header.copy_from_slice(&rest[at..at + HEADER_BYTES]);
        if let Ok(header) = record::decode(segment.seal, &header, &[])
            && header.position.index >= from
        {
            return Ok(true);
        }
    }
    Ok(false)
}

enum Stop {
    Fault(LogError),
    Bad(Bad),
}

/// Reads records one after the other with few reads of the file.
struct Reader<'a> {
    segment: &'a Segment,
    /// Of the next record in the file.
    offset: u64,
    /// Bytes of the file from `window_at`.
    window: Bytes,
    window_at: u64,
}

impl<'a> Reader<'a> {
    fn new(segment: &'a Segment) -> Self {
        Self {
            segment,
            offset: SEGMENT_HEADER_BYTES,
            window: Bytes::new(),
            window_at: SEGMENT_HEADER_BYTES,
        }
    }

    fn next(&mut self) -> Result<Option<(Header, Bytes)>, Stop> {
        let left = self.segment.bytes.saturating_sub(self.offset);
        if left < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let mut header = [0_u8; HEADER_BYTES];
        header.copy_from_slice(&self.bytes(HEADER_BYTES)?);
        let payload_bytes = record::claimed_payload_bytes(&header);
        if payload_bytes as u64 > left - HEADER_BYTES as u64 {
            return Err(Stop::Bad(Bad::Invalid("its length reaches beyond the segment")));
        }
        // Garbage may claim any length within the segment; the generation is looked at before it is read.
        if record::u64_at(&header, 8) != self.segment.seal.generation {
            return Err(Stop::Bad(Bad::Invalid("no record of this generation")));
        }
        let record = self.bytes(HEADER_BYTES + payload_bytes)?;
        let payload = record.slice(HEADER_BYTES..);
        let header = record::decode(self.segment.seal, &header, &payload).map_err(Stop::Bad)?;
        self.offset += record.len() as u64;
        // A slice of the window would keep the whole window in memory.
        Ok(Some((header, keep_small(header.kind, &payload))))
    }

    fn bytes(&mut self, length: usize) -> Result<Bytes, Stop> {
        let from = usize::try_from(self.offset - self.window_at).unwrap_or(usize::MAX);
        if from.saturating_add(length) > self.window.len() {
            let left = usize::try_from(self.segment.bytes - self.offset).unwrap_or(usize::MAX);
            let mut window = vec![0_u8; left.min(length.max(READ_BYTES))];
            self.segment
                .file
                .read_at(self.offset, &mut window)
                .map_err(|e| Stop::Fault(fault(Path::new(&self.segment.name), &e)))?;
            self.window = Bytes::from(window);
            self.window_at = self.offset;
            return Ok(self.window.slice(..length));
        }
        Ok(self.window.slice(from..from + length))
    }
}

/// Entries are not kept; what is kept is copied out of the window.
fn keep_small(kind: Kind, payload: &Bytes) -> Bytes {
    match kind {
        Kind::Entry => Bytes::new(),
        _ => Bytes::copy_from_slice(payload),
    }
}

fn damaged(file: &str, offset: u64, what: &str) -> LogError {
    LogError::Damaged { file: file.to_owned(), offset, what: what.to_owned() }
}

fn fault(path: &Path, error: &io::Error) -> LogError {
    LogError::Disk(format!("{}: {error}", path.display()))
}
