//! What a sealed segment holds, in a small file beside it, so that opening the log need not read bodies
//! (docs/log-format.md §9).
//!
//! The file is no part of the log: it is not synced, and any doubt about it costs a scan of the segment.

use std::path::Path;

use bytes::Bytes;

use super::{
    record::{HEADER, Kind, Parsed, Record, Stamp, padded, parse, u32_at, u64_at},
    segment::{Found, Image, SEGMENT_HEADER, Scan},
};
use crate::{env::Disk, limits::LOG_SIDECAR_BYTES_MAX};

const MAGIC: &[u8; 8] = b"ppswidx\n";

/// Version of the format. Files of another one are made anew.
const VERSION: u32 = 1;

/// Magic, version, salt, generation, end of the segment, length of the records, zeros.
const FILE_HEADER: usize = 64;

/// Fields of a record; a payload other than an entry's follows.
const RECORD: usize = 32;

/// The checksum behind all.
const CRC: usize = 4;

/// Name of the file beside the segment of a generation.
pub(super) fn name(generation: u64) -> String {
    format!("{generation:016x}.idx")
}

/// The generation in a file's name.
pub(super) fn generation_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".idx").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// The records of a segment, collected while it is written.
pub(super) struct Builder {
    stamp: Stamp,
    records: Vec<u8>,
    /// There are too many for a file.
    overflow: bool,
}

impl Builder {
    /// Of a segment that was just begun with these records behind its head.
    pub(super) fn begin(
        stamp: Stamp,
        released: u64,
        previous_end: u64,
        records: &[Record],
    ) -> Self {
        let mut builder = Self { stamp, records: Vec::new(), overflow: false };
        let mut at = SEGMENT_HEADER;
        let head = Record::plain(Kind::Head, released, previous_end);
        for record in std::iter::once(&head).chain(records) {
            builder.push(record, at as u64);
            at += record.bytes();
        }
        builder
    }

    /// Of a segment that was read.
    pub(super) fn of(scan: &Scan) -> Self {
        let mut builder = Self { stamp: scan.stamp, records: Vec::new(), overflow: false };
        for found in &scan.records {
            builder.add(&found.parsed, &found.payload, found.offset as u64);
        }
        builder
    }

    /// Adds a record that is durable at a place of the segment.
    pub(super) fn push(&mut self, record: &Record, offset: u64) {
        let Record { kind, flag, group, term, index, ref payload } = *record;
        let parsed = Parsed { kind, flag, group, term, index, len: payload.len() };
        self.add(&parsed, payload, offset);
    }

    fn add(&mut self, record: &Parsed, payload: &[u8], offset: u64) {
        let payload = if record.kind == Kind::Entry { &[] } else { payload };
        if self.overflow || self.records.len() + RECORD + payload.len() > LOG_SIDECAR_BYTES_MAX {
            (self.overflow, self.records) = (true, Vec::new());
            return;
        }
        let mut fields = [0; RECORD];
        fields[0] = record.kind as u8;
        fields[1] = u8::from(record.flag);
        fields[4..8].copy_from_slice(&record.group.to_le_bytes());
        fields[8..16].copy_from_slice(&record.term.to_le_bytes());
        fields[16..24].copy_from_slice(&record.index.to_le_bytes());
        // Segments and records are far below 4 GiB.
        let (at, len) = (u32::try_from(offset), u32::try_from(record.len));
        fields[24..28].copy_from_slice(&at.unwrap_or(u32::MAX).to_le_bytes());
        fields[28..32].copy_from_slice(&len.unwrap_or(u32::MAX).to_le_bytes());
        self.records.extend_from_slice(&fields);
        self.records.extend_from_slice(payload);
    }

    /// Writes the file of a segment that ends at `end` and is sealed. Failure only costs a scan at the next
    /// opening, so nobody is told but the operator.
    pub(super) fn write(&self, disk: &dyn Disk, dir: &Path, end: u64) {
        if self.overflow {
            return;
        }
        let path = dir.join(name(self.stamp.generation));
        let mut head = [0; FILE_HEADER];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&VERSION.to_le_bytes());
        head[12..16].copy_from_slice(&self.stamp.salt.to_le_bytes());
        head[16..24].copy_from_slice(&self.stamp.generation.to_le_bytes());
        head[24..32].copy_from_slice(&end.to_le_bytes());
        head[32..40].copy_from_slice(&(self.records.len() as u64).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &self.records).to_le_bytes();
        let written =
            disk.create(&path).and_then(|file| file.write_at(0, &[&head, &self.records, &crc]));
        if let Err(error) = written {
            tracing::warn!(
                file = %path.display(),
                "no index of a log segment, the next start reads the segment instead: {error}"
            );
            remove(disk, dir, self.stamp.generation);
        }
    }
}

/// Removes the file of a generation, if there is one.
pub(super) fn remove(disk: &dyn Disk, dir: &Path, generation: u64) {
    // What stays behind is removed at the next opening, and believed by nobody.
    let _ = disk.remove(&dir.join(name(generation)));
}

/// A closed segment as its file tells it, opened but not read. `None` if there is any doubt: the segment's header
/// or seal is not right, or the file is not that of just this segment, whole and valid.
pub(super) fn closed(
    disk: &dyn Disk,
    dir: &Path,
    generation: u64,
    end: u64,
) -> Option<(Image, Scan)> {
    let image = Image::load_head(disk, dir, generation).ok()?;
    let stamp = image.stamp().ok()??;
    let mut seal = [0; HEADER];
    image.file.read_at(end, &mut seal).ok()?;
    let sealed = parse(stamp, &seal).ok().filter(|p| p.kind == Kind::Seal && p.index == end);
    sealed?;
    let mut scan = Scan::new(stamp);
    scan.end = usize::try_from(end).ok()?;
    scan.sealed = true;
    scan.records = read(disk, &dir.join(name(generation)), stamp, end)?;
    Some((image, scan))
}

/// The records in a file, if it is whole and of this segment.
fn read(disk: &dyn Disk, path: &Path, stamp: Stamp, end: u64) -> Option<Vec<Found>> {
    let file = disk.open(path).ok()?;
    let len = usize::try_from(file.len().ok()?).ok()?;
    if !(FILE_HEADER + CRC..=FILE_HEADER + CRC + LOG_SIDECAR_BYTES_MAX).contains(&len) {
        return None;
    }
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes).ok()?;
    let (content, crc) = bytes.split_last_chunk::<CRC>()?;
    let (head, records) = content.split_at_checked(FILE_HEADER)?;
    let ours = u32::from_le_bytes(*crc) == crc32c::crc32c(content)
        && head.starts_with(MAGIC)
        && u32_at(head, 8) == VERSION
        && u32_at(head, 12) == stamp.salt
        && u64_at(head, 16) == stamp.generation
        && u64_at(head, 24) == end
        && u64_at(head, 32) == records.len() as u64;
    if ours { parse_records(records, end) } else { None }
}

fn parse_records(mut bytes: &[u8], end: u64) -> Option<Vec<Found>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (fields, rest) = bytes.split_at_checked(RECORD)?;
        let parsed = Parsed {
            kind: Kind::of(fields[0])?,
            flag: fields[1] != 0,
            group: u32_at(fields, 4),
            term: u64_at(fields, 8),
            index: u64_at(fields, 16),
            len: u32_at(fields, 28) as usize,
        };
        let offset = u32_at(fields, 24) as usize;
        if (offset + padded(parsed.len)) as u64 > end {
            return None;
        }
        let inside = if parsed.kind == Kind::Entry { 0 } else { parsed.len };
        let (payload, rest) = rest.split_at_checked(inside)?;
        records.push(Found { parsed, offset, payload: Bytes::copy_from_slice(payload) });
        bytes = rest;
    }
    Some(records)
}
