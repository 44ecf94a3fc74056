//! Segment files: names, header, making and recycling.
//!
//! `GGGGGGGGGGGGGGGG.seg` (generation, hexadecimal) is part of the log; `GGGGGGGGGGGGGGGG.free` was, and waits for
//! its next use. A `.seg` whose header does not name its own generation was not begun: a crash came between its
//! rename or creation and its first flush, so it holds nothing.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    LogError,
    record::{Seal, u32_at, u64_at},
};
use crate::env::{Disk, DiskFile};

/// Version of segment header and records.
pub(super) const FORMAT_VERSION: u32 = 1;

/// Bytes of the header: magic (8), version (4), salt (4), generation (8), length of the file (8), CRC32C (4), zero (4).
pub(super) const SEGMENT_HEADER_BYTES: u64 = 40;

const MAGIC: &[u8; 8] = b"ppswlog\n";

/// An open segment.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) seal: Seal,
    /// Length of the file; records end before it.
    pub(super) bytes: u64,
    pub(super) name: String,
}

/// What a segment file's header says.
pub(super) enum HeaderState {
    Begun(Segment),
    /// No flush of this generation ever ended.
    NotBegun,
}

pub(super) fn segment_name(generation: u64) -> String {
    format!("{generation:016x}.seg")
}

fn free_name(generation: u64) -> String {
    format!("{generation:016x}.free")
}

/// The generation in a file name with this ending.
pub(super) fn generation_of(name: &str, ending: &str) -> Option<u64> {
    let digits = name.strip_suffix(ending)?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// Makes the file of a generation, from a free one if there is one, and writes its header. Nothing is synced: the
/// first flush does that, file and directory.
pub(super) fn begin(
    disk: &dyn Disk,
    dir: &Path,
    generation: u64,
    bytes: u64,
    free: &mut Vec<(u64, u64)>,
) -> io::Result<Segment> {
    let name = segment_name(generation);
    let path = dir.join(&name);
    let at = free.iter().position(|(_, length)| *length == bytes);
    let file = if let Some(at) = at {
        let (former, _) = free.swap_remove(at);
        disk.rename(&dir.join(free_name(former)), &path)?;
        disk.open(&path)?
    } else {
        let file = disk.create(&path)?;
        file.allocate(bytes)?;
        file
    };
    let seal = Seal { generation, salt: rand::random() };
    file.write_at(0, &[&encode_header(seal, bytes)])?;
    Ok(Segment { file, seal, bytes, name })
}

/// Takes a segment out of the log: keeps the file for reuse while fewer than `keep` wait, else removes it.
pub(super) fn retire(
    disk: &dyn Disk,
    dir: &Path,
    segment: &Segment,
    free: &mut Vec<(u64, u64)>,
    keep: usize,
) -> io::Result<()> {
    let path = dir.join(&segment.name);
    if free.len() < keep {
        disk.rename(&path, &dir.join(free_name(segment.seal.generation)))?;
        free.push((segment.seal.generation, segment.bytes));
        Ok(())
    } else {
        disk.remove(&path)
    }
}

/// Opens a segment file of the log.
///
/// # Errors
/// `Disk`, or `Version` for a header of a later format.
pub(super) fn open(disk: &dyn Disk, dir: &Path, name: &str) -> Result<HeaderState, LogError> {
    let fault = |e: io::Error| LogError::Disk(format!("{name}: {e}"));
    let file = disk.open(&dir.join(name)).map_err(fault)?;
    let length = file.len().map_err(fault)?;
    if length < SEGMENT_HEADER_BYTES {
        return Ok(HeaderState::NotBegun);
    }
    let mut header = [0_u8; SEGMENT_HEADER_BYTES as usize];
    file.read_at(0, &mut header).map_err(fault)?;
    if &header[..8] != MAGIC || crc32c::crc32c(&header[..32]) != u32_at(&header, 32) {
        return Ok(HeaderState::NotBegun);
    }
    let version = u32_at(&header, 8);
    if version != FORMAT_VERSION {
        return Err(LogError::Version {
            file: name.to_owned(),
            found: version,
            supported: FORMAT_VERSION,
        });
    }
    let seal = Seal { salt: u32_at(&header, 12), generation: u64_at(&header, 16) };
    if Some(seal.generation) != generation_of(name, ".seg") {
        return Ok(HeaderState::NotBegun);
    }
    let bytes = u64_at(&header, 24).min(length);
    Ok(HeaderState::Begun(Segment { file, seal, bytes, name: name.to_owned() }))
}

/// Free files of a directory: generation of their former use and length.
pub(super) fn list_free(
    disk: &dyn Disk,
    dir: &Path,
    names: &[String],
) -> io::Result<Vec<(u64, u64)>> {
    names
        .iter()
        .filter_map(|name| generation_of(name, ".free").map(|generation| (name, generation)))
        .map(|(name, generation)| Ok((generation, disk.open(&dir.join(name))?.len()?)))
        .collect()
}

/// Path of a segment that was not begun; to be removed.
pub(super) fn path_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}

fn encode_header(seal: Seal, bytes: u64) -> [u8; SEGMENT_HEADER_BYTES as usize] {
    let mut header = [0_u8; SEGMENT_HEADER_BYTES as usize];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&seal.salt.to_le_bytes());
    header[16..24].copy_from_slice(&seal.generation.to_le_bytes());
    header[24..32].copy_from_slice(&bytes.to_le_bytes());
    let crc = crc32c::crc32c(&header[..32]);
    header[32..36].copy_from_slice(&crc.to_le_bytes());
    header
}
