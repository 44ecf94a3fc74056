//! Records as they stand on the disk (docs/log-format.md §2). All numbers are little-endian.

use bytes::Bytes;

use super::{GroupId, LogError};
use crate::limits::LOG_RECORD_BYTES_MAX;

/// Version of the format, in the header of each segment.
pub(super) const VERSION: u32 = 1;

/// Length of a record without its payload.
pub(super) const HEADER: usize = 40;

/// Length of a commit marker.
pub(super) const MARKER: usize = HEADER + 8;

/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 8;

/// Where `Truncate` keeps nothing, and where an `Entry` is the first of a group that begins behind a gap.
pub(super) const FLAG: u8 = 1;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// One entry of a group. Flagged if it is a group's first and nothing was purged before.
    Entry = 1,
    /// The group's vote.
    Vote = 2,
    /// The group's checkpoint.
    Checkpoint = 3,
    /// Entries behind (term, index) are gone; flagged: all are.
    Truncate = 4,
    /// Entries up to (term, index) are gone.
    Purge = 5,
    /// All records of the group so far are void.
    Forget = 6,
    /// End of a flush: number of the flush in `term`, where it began in `index`; count and check as payload.
    Commit = 7,
    /// First record of a segment: oldest generation needed in `term`, end of the segment before in `index`.
    Head = 8,
    /// Oldest generation needed from now on, in `index`.
    Release = 9,
    /// End of a segment: the next generation in `term`, the record's own place in `index`.
    Seal = 10,
}

impl Kind {
    /// The highest number known to this program.
    pub(super) const LAST: u8 = 10;

    pub(super) const fn of(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Entry,
            2 => Self::Vote,
            3 => Self::Checkpoint,
            4 => Self::Truncate,
            5 => Self::Purge,
            6 => Self::Forget,
            7 => Self::Commit,
            8 => Self::Head,
            9 => Self::Release,
            10 => Self::Seal,
            _ => return None,
        })
    }
}

/// What binds a record to one use of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// The segment's generation: in each record.
    pub(super) generation: u64,
    /// Random number of the segment that all its checksums begin with, so that no payload from outside
    /// can hold something that passes for a record.
    pub(super) salt: u32,
}

/// A record: header fields and payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) flag: bool,
    pub(super) group: GroupId,
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) payload: Bytes,
}

impl Record {
    /// A record without group and payload.
    pub(super) const fn plain(kind: Kind, term: u64, index: u64) -> Self {
        Self { kind, flag: false, group: 0, term, index, payload: Bytes::new() }
    }

    /// Length on disk, padding included.
    pub(super) const fn bytes(&self) -> usize {
        padded(self.payload.len())
    }

    /// The header, checksum included.
    pub(super) fn header(&self, stamp: Stamp) -> [u8; HEADER] {
        let mut head = [0; HEADER];
        let len = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        head[4..8].copy_from_slice(&len.to_le_bytes());
        head[8..16].copy_from_slice(&stamp.generation.to_le_bytes());
        head[16] = self.kind as u8;
        head[17] = if self.flag { FLAG } else { 0 };
        head[20..24].copy_from_slice(&self.group.to_le_bytes());
        head[24..32].copy_from_slice(&self.term.to_le_bytes());
        head[32..40].copy_from_slice(&self.index.to_le_bytes());
        let crc = checksum(stamp, &head[4..], &self.payload);
        head[..4].copy_from_slice(&crc.to_le_bytes());
        head
    }
}

/// The marker behind a flush that began at `start`, of `count` records with the check `check`.
pub(super) fn marker(number: u64, start: u64, count: u32, check: u32) -> Record {
    let mut payload = Vec::with_capacity(8);
    payload.extend_from_slice(&count.to_le_bytes());
    payload.extend_from_slice(&check.to_le_bytes());
    Record { payload: payload.into(), ..Record::plain(Kind::Commit, number, start) }
}

/// Whether a marker, given with its bytes, ends a flush: its number, where it began, count and check of its records.
pub(super) fn marker_fits(
    marker: &Parsed,
    bytes: &[u8],
    (number, start, count, check): (u64, u64, u32, u32),
) -> bool {
    marker.term == number
        && marker.index == start
        && marker.len == 8
        && u32_at(bytes, HEADER) == count
        && u32_at(bytes, HEADER + 4) == check
}

/// Adds a record, given by its header, to the check of its flush.
pub(super) fn add_check(check: u32, header: &[u8]) -> u32 {
    crc32c::crc32c_append(check, header.get(..4).unwrap_or_default())
}

/// What a record with `payload` bytes occupies.
pub(super) const fn padded(payload: usize) -> usize {
    (HEADER + payload).next_multiple_of(ALIGN)
}

/// Header fields of a record, read from bytes; the payload stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) kind: Kind,
    pub(super) flag: bool,
    pub(super) group: GroupId,
    pub(super) term: u64,
    pub(super) index: u64,
    /// Payload bytes.
    pub(super) len: usize,
}

/// Why bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Not written, torn, or damaged.
    #[error("{0}")]
    Bad(String),
    /// Valid, of a kind that this program does not know.
    #[error("a record of kind {0}, which this program does not know")]
    Unknown(u8),
}

impl Fault {
    /// The error for a fault where none may be.
    pub(super) fn error(self, file: &str, offset: u64) -> LogError {
        match self {
            Self::Bad(what) => LogError::Damaged { file: file.to_owned(), offset, what },
            Self::Unknown(kind) => LogError::Version {
                file: format!("{file} (kind of the record at byte {offset})"),
                found: u32::from(kind),
                supported: u32::from(Kind::LAST),
            },
        }
    }
}

/// Reads the record at the beginning of `bytes`.
pub(super) fn parse(stamp: Stamp, bytes: &[u8]) -> Result<Parsed, Fault> {
    let bad = |what: &str| Err(Fault::Bad(what.to_owned()));
    let Some(head) = bytes.get(..HEADER) else {
        return bad("the segment ends inside a record header");
    };
    let len = u32_at(head, 4) as usize;
    if u64_at(head, 8) != stamp.generation {
        return bad("no record of this segment's generation");
    }
    if len > LOG_RECORD_BYTES_MAX {
        return bad("the record's length is out of bounds");
    }
    let Some(payload) = bytes.get(HEADER..HEADER + len) else {
        return bad("the segment ends inside a record");
    };
    if u32_at(head, 0) != checksum(stamp, &head[4..], payload) {
        return bad("the record's checksum does not match");
    }
    // The padding is under no checksum; it is always zero, so that each flipped bit is noticed.
    if bytes.get(HEADER + len..padded(len)).is_none_or(|pad| pad.iter().any(|&b| b != 0)) {
        return bad("the record's padding is not zero");
    }
    let Some(kind) = Kind::of(head[16]) else {
        return Err(Fault::Unknown(head[16]));
    };
    Ok(Parsed {
        kind,
        flag: head[17] & FLAG != 0,
        group: u32_at(head, 20),
        term: u64_at(head, 24),
        index: u64_at(head, 32),
        len,
    })
}

/// Whether the header at the beginning of `bytes` looks like a marker of this generation; no checksum.
pub(super) fn looks_like_marker(generation: u64, bytes: &[u8]) -> Option<u64> {
    let head = bytes.get(..HEADER)?;
    (u64_at(head, 8) == generation && head[16] == Kind::Commit as u8 && u32_at(head, 4) == 8)
        .then(|| u64_at(head, 32))
}

/// The salted checksum over a header without its first field, and the payload.
fn checksum(stamp: Stamp, head: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(stamp.salt, head), payload)
}

/// The number at `at`; 0 if the bytes end first.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// The number at `at`; 0 if the bytes end first.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { generation: 7, salt: 99 };

    fn encoded(record: &Record) -> Vec<u8> {
        let mut bytes = record.header(STAMP).to_vec();
        bytes.extend_from_slice(&record.payload);
        bytes.resize(record.bytes(), 0);
        bytes
    }

    fn entry(payload: &'static [u8]) -> Record {
        Record {
            group: 3,
            payload: Bytes::from_static(payload),
            ..Record::plain(Kind::Entry, 5, 6)
        }
    }

    #[test]
    fn a_record_comes_back() {
        let bytes = encoded(&entry(b"hello"));
        assert_eq!(bytes.len(), 48);
        let parsed = parse(STAMP, &bytes).unwrap();
        assert_eq!((parsed.kind, parsed.group, parsed.term, parsed.index), (Kind::Entry, 3, 5, 6));
        assert_eq!(parsed.len, 5);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encoded(&entry(b"hello"));
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(parse(STAMP, &bytes), Err(Fault::Bad(_))), "bit {bit}");
        }
    }

    #[test]
    fn another_generation_or_salt_is_no_record() {
        let bytes = encoded(&entry(b"hello"));
        assert!(parse(Stamp { generation: 8, ..STAMP }, &bytes).is_err());
        assert!(parse(Stamp { salt: 1, ..STAMP }, &bytes).is_err());
        assert!(parse(STAMP, &bytes[..47]).is_err());
    }

    #[test]
    fn an_unknown_kind_is_a_newer_version() {
        let mut bytes = encoded(&entry(b"hello"));
        bytes[16] = Kind::LAST + 1;
        let crc = checksum(STAMP, &bytes[4..HEADER], b"hello");
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        let fault = parse(STAMP, &bytes).unwrap_err();
        assert!(matches!(fault.error("x", 0), LogError::Version { found: 11, .. }));
    }
}
