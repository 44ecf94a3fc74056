//! The file of a local checkpoint: frames that each continue the checksum of the one before, so that what is read is
//! a beginning of what was written, by one process, into one file (docs/spool.md, "Local checkpoints").

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use ppsw_proto::queue as pb;
use prost::Message as _;

use crate::{
    NodeId, PartitionId,
    env::{Disk, DiskFile},
    limits::{KEPT_FRAME_BYTES_MAX, KEPT_SYNC_BYTES},
    queue::index::{Index, Kept},
};

const MAGIC: &[u8; 8] = b"ppswckp\n";

/// Version of the format: of frames, messages and marks alike.
const VERSION: u32 = 1;

/// Magic, version, salt, node, partition, identity of the log, zeros, checksum.
const HEADER: usize = 64;
const HEADER_CRC: usize = HEADER - 4;

/// Checksum, length, kind, zeros, number.
const FRAME: usize = 16;

/// Messages.
const PIECE: u8 = 1;

/// All pieces so far are the messages as of one entry; the rest of the index follows.
const MARK: u8 = 2;

/// Whose checkpoint it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) node: NodeId,
    pub(super) partition: PartitionId,
    /// Of the node's log.
    pub(super) identity: [u8; 16],
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it cannot be read: {0}")]
    Disk(#[from] io::Error),
    #[error("it has format {found}, this program reads format {VERSION}: a newer ppswd wrote it")]
    Version { found: u32 },
    #[error(
        "it is {found:?}'s, not {expected:?}'s: copied from elsewhere, or the log is another one"
    )]
    Foreign { found: Owner, expected: Owner },
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// What a file held.
pub(super) struct Read {
    pub(super) index: Index,
    /// What the group noted.
    pub(super) note: Bytes,
    /// To go on in the same file.
    pub(super) writer: Writer,
}

/// A file that is being written.
pub(super) struct Writer {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    offset: u64,
    /// The checksum of the last frame.
    crc: u32,
    number: u32,
    unsynced: u64,
    /// What it would take if it were written anew.
    base: u64,
}

impl Writer {
    /// Begins a file.
    pub(super) fn create(disk: &dyn Disk, path: PathBuf, owner: &Owner) -> io::Result<Self> {
        let mut head = [0; HEADER];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&VERSION.to_le_bytes());
        head[12..16].copy_from_slice(&rand::random::<[u8; 4]>());
        head[16..24].copy_from_slice(&owner.node.to_le_bytes());
        head[24..28].copy_from_slice(&owner.partition.to_le_bytes());
        head[28..44].copy_from_slice(&owner.identity);
        let crc = crc32c::crc32c(&head[..HEADER_CRC]);
        head[HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
        let file = disk.create(&path)?;
        file.write_at(0, &[&head])?;
        let offset = HEADER as u64;
        Ok(Self { file, path, offset, crc, number: 0, unsynced: offset, base: 0 })
    }

    pub(super) fn piece(&mut self, piece: &[u8]) -> io::Result<()> {
        self.push(PIECE, piece)
    }

    /// Ends a round, and syncs it.
    pub(super) fn mark(&mut self, rest: &pb::IndexState) -> io::Result<()> {
        self.push(MARK, &rest.encode_to_vec())?;
        self.sync()?;
        if self.base == 0 {
            self.base = self.offset;
        }
        Ok(())
    }

    fn push(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if payload.len() > KEPT_FRAME_BYTES_MAX {
            return Err(io::Error::other(format!(
                "a frame of {len} bytes; at most {KEPT_FRAME_BYTES_MAX} may be"
            )));
        }
        let mut head = [0; FRAME];
        head[4..8].copy_from_slice(&len.to_le_bytes());
        head[8] = kind;
        head[12..].copy_from_slice(&self.number.to_le_bytes());
        let crc = continued(self.crc, &head, payload);
        head[..4].copy_from_slice(&crc.to_le_bytes());
        self.file.write_at(self.offset, &[&head, payload])?;
        let bytes = (FRAME + payload.len()) as u64;
        self.offset += bytes;
        self.unsynced += bytes;
        (self.crc, self.number) = (crc, self.number.wrapping_add(1));
        if self.unsynced >= KEPT_SYNC_BYTES { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.unsynced = 0;
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A first round has been ended.
    pub(super) const fn is_begun(&self) -> bool {
        self.base > 0
    }

    /// How much longer it is than it has to be.
    pub(super) const fn waste(&self) -> u64 {
        self.offset.saturating_sub(self.base)
    }

    /// What it would take if it were written anew.
    pub(super) const fn base(&self) -> u64 {
        self.base
    }
}

fn continued(before: u32, head: &[u8; FRAME], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(before, &head[4..]), payload)
}

/// Reads a file up to its last mark.
pub(super) fn read(disk: &dyn Disk, path: &Path, owner: &Owner) -> Result<Read, Unusable> {
    let file = disk.open(path)?;
    let mut frames = Frames::begin(file, owner)?;
    let mut kept = Kept::default();
    // Pieces behind the last mark: they count only with the next.
    let mut ahead = Vec::new();
    let mut last = None;
    while let Some((kind, payload)) = frames.next()? {
        match kind {
            PIECE if last.is_none() => kept.enter(&payload).map_err(Unusable::Damaged)?,
            PIECE => ahead.push(payload),
            MARK => {
                let rest = pb::IndexState::decode(payload)
                    .map_err(|error| Unusable::Damaged(error.to_string()))?;
                for piece in ahead.drain(..) {
                    kept.enter(&piece).map_err(Unusable::Damaged)?;
                }
                last = Some((rest, frames.offset, frames.crc, frames.number));
            }
            _ => return Err(Unusable::Damaged(format!("a frame of the unknown kind {kind}"))),
        }
    }
    let (mut rest, offset, crc, number) =
        last.ok_or_else(|| Unusable::Damaged("no round in it is complete".to_owned()))?;
    let (file, path) = (frames.file, path.to_path_buf());
    let base = kept.bytes + HEADER as u64;
    let note = std::mem::take(&mut rest.group);
    let index = Index::read(kept, rest).map_err(Unusable::Damaged)?;
    Ok(Read { index, note, writer: Writer { file, path, offset, crc, number, unsynced: 0, base } })
}

/// The frames of a file, as far as they are right.
struct Frames {
    file: Arc<dyn DiskFile>,
    len: u64,
    offset: u64,
    crc: u32,
    number: u32,
}

impl Frames {
    fn begin(file: Arc<dyn DiskFile>, owner: &Owner) -> Result<Self, Unusable> {
        let len = file.len()?;
        let damaged = |what: &str| Err(Unusable::Damaged(what.to_owned()));
        if len < HEADER as u64 {
            return damaged("it has no header");
        }
        let mut head = [0; HEADER];
        file.read_at(0, &mut head)?;
        let crc = crc32c::crc32c(&head[..HEADER_CRC]);
        if !head.starts_with(MAGIC) || head[HEADER_CRC..] != crc.to_le_bytes() {
            return damaged("its header is not valid");
        }
        let found = u32_at(&head, 8);
        if found != VERSION {
            return Err(Unusable::Version { found });
        }
        let mut identity = [0; 16];
        identity.copy_from_slice(&head[28..44]);
        let node = u64::from(u32_at(&head, 16)) | u64::from(u32_at(&head, 20)) << 32;
        let found = Owner { node, partition: u32_at(&head, 24), identity };
        if found != *owner {
            return Err(Unusable::Foreign { found, expected: *owner });
        }
        Ok(Self { file, len, offset: HEADER as u64, crc, number: 0 })
    }

    /// The next frame; `None` where the file, or what is right of it, ends.
    fn next(&mut self) -> io::Result<Option<(u8, Bytes)>> {
        if self.len - self.offset < FRAME as u64 {
            return Ok(None);
        }
        let mut head = [0; FRAME];
        self.file.read_at(self.offset, &mut head)?;
        let bytes = u32_at(&head, 4) as usize;
        let end = self.offset + (FRAME + bytes) as u64;
        if bytes > KEPT_FRAME_BYTES_MAX || end > self.len || u32_at(&head, 12) != self.number {
            return Ok(None);
        }
        let mut payload = vec![0; bytes];
        self.file.read_at(self.offset + FRAME as u64, &mut payload)?;
        let crc = continued(self.crc, &head, &payload);
        if head[..4] != crc.to_le_bytes() {
            return Ok(None);
        }
        (self.offset, self.crc, self.number) = (end, crc, self.number.wrapping_add(1));
        Ok(Some((head[8], payload.into())))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}
