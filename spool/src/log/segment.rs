//! One segment file: its name, its header, and the scan of its flushes (docs/log-format.md §1, §5).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    LogError,
    record::{
        ALIGN, Fault, HEADER, Kind, Parsed, Stamp, VERSION, add_check, looks_like_marker,
        marker_fits, padded, parse, u32_at, u64_at,
    },
};
use crate::env::{Disk, DiskFile};

/// Length of a segment's header; the head flush begins behind it.
pub(super) const SEGMENT_HEADER: usize = 64;

const MAGIC: &[u8; 8] = b"ppswlog\n";

/// Where the header's checksum over all before it stands.
const HEADER_CRC: usize = SEGMENT_HEADER - 4;

/// Name of the segment of a generation.
pub(super) fn name(generation: u64) -> String {
    format!("{generation:016x}.seg")
}

/// Name of a file that was the segment of a generation and waits for reuse.
pub(super) fn free_name(generation: u64) -> String {
    format!("{generation:016x}.free")
}

/// The generation in a file's name, if it is a segment.
pub(super) fn generation_of(name: &str) -> Option<u64> {
    digits(name.strip_suffix(".seg")?)
}

/// The generation in a file's name, if it waits for reuse.
pub(super) fn free_generation_of(name: &str) -> Option<u64> {
    digits(name.strip_suffix(".free")?)
}

fn digits(text: &str) -> Option<u64> {
    let ours = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    // The last one could have no successor; it is no name of ours.
    ours.then(|| u64::from_str_radix(text, 16).ok()).flatten().filter(|&g| g != u64::MAX)
}

/// The header of a segment.
pub(super) fn header(stamp: Stamp) -> [u8; SEGMENT_HEADER] {
    let mut head = [0; SEGMENT_HEADER];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..16].copy_from_slice(&stamp.salt.to_le_bytes());
    head[16..24].copy_from_slice(&stamp.generation.to_le_bytes());
    let crc = crc32c::crc32c(&head[..HEADER_CRC]);
    head[HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
    head
}

/// A segment file in memory.
pub(super) struct Image {
    pub(super) generation: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    /// Length of the file.
    pub(super) len: u64,
    /// What of it has been read.
    pub(super) bytes: Vec<u8>,
}

/// A record that the scan found inside a committed flush.
pub(super) struct Found {
    pub(super) parsed: Parsed,
    pub(super) offset: usize,
    /// Empty for entries, which are read from the file when asked for.
    pub(super) payload: Bytes,
}

/// What a begun segment holds.
pub(super) struct Scan {
    pub(super) stamp: Stamp,
    pub(super) records: Vec<Found>,
    /// Where the last flush begins.
    pub(super) last_flush: usize,
    /// Records in the last flush.
    pub(super) last_count: usize,
    /// Flushes, the head's included.
    pub(super) flushes: u64,
    /// Where the last flush ends, and the next may begin.
    pub(super) end: usize,
    /// A seal stands there: the next generation has begun.
    pub(super) sealed: bool,
}

/// Length of a segment's header and first record.
const HEAD_END: usize = SEGMENT_HEADER + HEADER;

impl Image {
    /// Reads the segment of a generation.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) fn load(disk: &dyn Disk, dir: &Path, generation: u64) -> Result<Self, LogError> {
        Self::load_first(disk, dir, generation, usize::MAX)
    }

    /// Reads as much of a segment as [`Self::previous_end`] needs.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) fn load_head(
        disk: &dyn Disk,
        dir: &Path,
        generation: u64,
    ) -> Result<Self, LogError> {
        Self::load_first(disk, dir, generation, HEAD_END)
    }

    fn load_first(
        disk: &dyn Disk,
        dir: &Path,
        generation: u64,
        most: usize,
    ) -> Result<Self, LogError> {
        let path = dir.join(name(generation));
        let failed = |e| LogError::Disk(format!("reading {}: {e}", path.display()));
        let file = disk.open(&path).map_err(failed)?;
        let len = file.len().map_err(failed)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(most)];
        file.read_at(0, &mut bytes).map_err(failed)?;
        Ok(Self { generation, path, file, len, bytes })
    }

    /// Scans a segment that another follows, which says where this one ends.
    ///
    /// # Errors
    /// `Damaged` for anything that is not right up to there, `Version`.
    pub(super) fn scan_closed(&self, end: u64) -> Result<Scan, LogError> {
        let stamp = self.stamp()?.ok_or_else(|| self.damaged(0, "the segment has no header"))?;
        let mut scan = Scan::new(stamp);
        while (scan.end as u64) < end {
            let start = scan.end;
            self.flush(&mut scan).map_err(|(at, fault)| self.fault(at, fault))?;
            if scan.end as u64 > end {
                return Err(self.damaged(start, "a flush reaches behind the segment's end"));
            }
        }
        if scan.end as u64 != end {
            let what = "the next segment says that this one ends inside its header";
            return Err(self.damaged(0, what));
        }
        scan.sealed = self.sealed(&scan);
        Ok(scan)
    }

    /// Scans the last segment. `None`: it was not begun, nothing in it ever counted.
    ///
    /// # Errors
    /// `Damaged` for bytes that are not right although a later flush was begun, `Version`.
    pub(super) fn scan_last(&self) -> Result<Option<Scan>, LogError> {
        let Some(stamp) = self.stamp()? else {
            // Without a salt nothing can be proved: a marker behind the head's that looks right is enough.
            return match self.later_marker(None, SEGMENT_HEADER) {
                Some(_) => Err(self.damaged(0, "the segment's header is damaged")),
                None => Ok(None),
            };
        };
        let mut scan = Scan::new(stamp);
        let (at, fault) = loop {
            if let Err(error) = self.flush(&mut scan) {
                break error;
            }
        };
        if matches!(fault, Fault::Unknown(_)) || self.later_marker(Some(stamp), scan.end).is_some()
        {
            return Err(self.fault(at, fault));
        }
        scan.sealed = self.sealed(&scan);
        Ok((scan.flushes > 0).then_some(scan))
    }

    /// Where the segment before this one ends, as this one's first record says; `None`: there is none.
    ///
    /// # Errors
    /// `Version`.
    pub(super) fn previous_end(&self) -> Result<Option<u64>, LogError> {
        let Some(stamp) = self.stamp()? else { return Ok(None) };
        let first = parse(stamp, self.bytes.get(SEGMENT_HEADER..).unwrap_or_default());
        Ok(first.ok().filter(|p| p.kind == Kind::Head).map(|p| p.index))
    }

    /// The error for something that is wrong at a place of this segment.
    pub(super) fn damaged(&self, offset: usize, what: &str) -> LogError {
        LogError::Damaged {
            file: self.path.display().to_string(),
            offset: offset as u64,
            what: what.to_owned(),
        }
    }

    /// The stamp in the file's header; `None` if the header is not valid for this generation.
    pub(super) fn stamp(&self) -> Result<Option<Stamp>, LogError> {
        let Some(head) = self.bytes.get(..SEGMENT_HEADER) else { return Ok(None) };
        if &head[..8] != MAGIC || u32_at(head, HEADER_CRC) != crc32c::crc32c(&head[..HEADER_CRC]) {
            return Ok(None);
        }
        let version = u32_at(head, 8);
        if version != VERSION {
            let file = self.path.display().to_string();
            return Err(LogError::Version { file, found: version, supported: VERSION });
        }
        let stamp = Stamp { salt: u32_at(head, 12), generation: u64_at(head, 16) };
        Ok((stamp.generation == self.generation).then_some(stamp))
    }

    /// Reads one flush at the end of the scan and adds it; leaves the scan alone if there is none.
    fn flush(&self, scan: &mut Scan) -> Result<(), (usize, Fault)> {
        let (start, known) = (scan.end, scan.records.len());
        let mut at = start;
        let mut check = 0;
        let outcome = loop {
            let bytes = self.bytes.get(at..).unwrap_or_default();
            let parsed = match parse(scan.stamp, bytes) {
                Ok(parsed) => parsed,
                Err(fault) => break Err((at, fault)),
            };
            let count = scan.records.len() - known;
            if parsed.kind == Kind::Seal {
                break Err((at, Fault::Bad("a seal stands in front of records".to_owned())));
            }
            if parsed.kind == Kind::Commit {
                let records = u32::try_from(count).unwrap_or(u32::MAX);
                if marker_fits(&parsed, bytes, (scan.flushes, start as u64, records, check)) {
                    break Ok((at + padded(parsed.len), count));
                }
                let what = "the commit marker does not fit the records before it";
                break Err((at, Fault::Bad(what.to_owned())));
            }
            let payload = match parsed.kind {
                Kind::Entry => Bytes::new(),
                _ => Bytes::copy_from_slice(&bytes[HEADER..HEADER + parsed.len]),
            };
            check = add_check(check, bytes);
            scan.records.push(Found { parsed, offset: at, payload });
            at += padded(parsed.len);
        };
        match outcome {
            Ok((end, count)) => {
                (scan.last_flush, scan.last_count, scan.end) = (start, count, end);
                scan.flushes += 1;
                Ok(())
            }
            Err(error) => {
                scan.records.truncate(known);
                Err(error)
            }
        }
    }

    /// Where a marker stands whose flush began behind `start`: proof that the flush at `start` was synced,
    /// since the writer begins a flush only after that. Without a stamp the checksum is not asked for.
    fn later_marker(&self, stamp: Option<Stamp>, start: usize) -> Option<usize> {
        (start..self.bytes.len()).step_by(ALIGN).find(|&at| {
            let bytes = &self.bytes[at..];
            looks_like_marker(self.generation, bytes)
                // A confirmation begins where its marker stands.
                .is_some_and(|began| began > start as u64 && began <= at as u64)
                && stamp.is_none_or(|stamp| parse(stamp, bytes).is_ok())
        })
    }

    /// Whether a seal stands behind the last flush.
    fn sealed(&self, scan: &Scan) -> bool {
        parse(scan.stamp, self.bytes.get(scan.end..).unwrap_or_default())
            .is_ok_and(|p| p.kind == Kind::Seal && p.index == scan.end as u64)
    }

    fn fault(&self, at: usize, fault: Fault) -> LogError {
        fault.error(&self.path.display().to_string(), at as u64)
    }
}

impl Scan {
    pub(super) const fn new(stamp: Stamp) -> Self {
        Self {
            stamp,
            records: Vec::new(),
            last_flush: SEGMENT_HEADER,
            last_count: 0,
            flushes: 0,
            end: SEGMENT_HEADER,
            sealed: false,
        }
    }
}
