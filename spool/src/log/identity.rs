//! Which log this is: a random number beside the segments, so that nothing that was made from another log passes for
//! being of this one.

use std::path::Path;

use crate::env::Disk;

const NAME: &str = "identity";
const MAGIC: &[u8; 8] = b"ppswlid\n";
const CRC_AT: usize = 24;
const LEN: usize = CRC_AT + 4;

/// The log's number. If there is none, or it cannot be read, it gets a new one: what was made from the log before is
/// made anew then.
pub(super) fn identity(disk: &dyn Disk, dir: &Path) -> [u8; 16] {
    let path = dir.join(NAME);
    if let Some(known) = read(disk, &path) {
        return known;
    }
    let new: [u8; 16] = rand::random();
    let mut bytes = [0; LEN];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..CRC_AT].copy_from_slice(&new);
    let crc = crc32c::crc32c(&bytes[..CRC_AT]);
    bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    // There may be none to remove.
    let _ = disk.remove(&path);
    let written = disk.create(&path).and_then(|file| {
        file.write_at(0, &[&bytes])?;
        file.sync_data()?;
        disk.sync_dir(dir)
    });
    if let Err(error) = written {
        tracing::warn!(file = %path.display(), "the log stays without a number: {error}");
    }
    new
}

fn read(disk: &dyn Disk, path: &Path) -> Option<[u8; 16]> {
    let mut bytes = [0; LEN];
    disk.open(path).ok()?.read_at(0, &mut bytes).ok()?;
    let crc = crc32c::crc32c(&bytes[..CRC_AT]);
    if !bytes.starts_with(MAGIC) || bytes[CRC_AT..] != crc.to_le_bytes() {
        return None;
    }
    bytes[8..].first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemDisk;

    #[test]
    fn a_log_keeps_its_number_unless_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let first = identity(&SystemDisk, dir.path());
        assert_eq!(identity(&SystemDisk, dir.path()), first);
        let file = SystemDisk.open(&dir.path().join(NAME)).unwrap();
        file.write_at(10, &[b"???"]).unwrap();
        let second = identity(&SystemDisk, dir.path());
        assert_ne!(second, first);
        assert_eq!(identity(&SystemDisk, dir.path()), second);
    }
}
