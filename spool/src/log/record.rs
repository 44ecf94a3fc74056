//! Records: the bytes of the log. Format version 1.
//!
//! ```text
//! 0   crc32c   of bytes 4.. of header and payload, begun with the segment's salt
//! 4   u32      payload length
//! 8   u64      generation of the segment, so that what a former use of the file left is never read as new
//! 16  u8       kind
//! 17  3 bytes  zero
//! 20  u32      group
//! 24  u64      term    (Commit: number of records of the flush)
//! 32  u64      index   (Commit: number of the flush)
//! 40  payload
//! ```
//!
//! Numbers are little endian. The salt is random and never leaves the node: nobody can send a message whose
//! bytes are a valid record.

use super::{GroupId, Position};

/// Bytes of a record's header.
pub(super) const HEADER_BYTES: usize = 40;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// An entry of a group's log.
    Entry = 1,
    /// A group's vote, replacing the one before.
    Vote = 2,
    /// A group's checkpoint, replacing the one before.
    Checkpoint = 3,
    /// Entries behind `position` are gone. All of them if the payload is empty.
    Truncate = 4,
    /// Entries up to `position` are gone.
    Purge = 5,
    /// The group is gone from this node.
    Forget = 6,
    /// End of a flush: what is before it was synced before the next flush began.
    Commit = 7,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Entry,
            2 => Self::Vote,
            3 => Self::Checkpoint,
            4 => Self::Truncate,
            5 => Self::Purge,
            6 => Self::Forget,
            7 => Self::Commit,
            _ => return None,
        })
    }
}

/// A record's header without what is only for checking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) group: GroupId,
    pub(super) position: Position,
    pub(super) payload_bytes: u32,
}

/// What makes a segment's records its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) generation: u64,
    pub(super) salt: u32,
}

/// Why bytes are no record of this segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// Not written, torn, damaged, or of a former use.
    Invalid(&'static str),
    /// Valid, and of a kind that this program does not know.
    UnknownKind(u8),
}

/// Encodes the header for a payload given in one piece.
pub(super) fn encode(seal: Seal, header: Header, payload: &[u8]) -> [u8; HEADER_BYTES] {
    debug_assert_eq!(header.payload_bytes as usize, payload.len());
    let mut out = [0_u8; HEADER_BYTES];
    out[4..8].copy_from_slice(&header.payload_bytes.to_le_bytes());
    out[8..16].copy_from_slice(&seal.generation.to_le_bytes());
    out[16] = header.kind as u8;
    out[20..24].copy_from_slice(&header.group.to_le_bytes());
    out[24..32].copy_from_slice(&header.position.term.to_le_bytes());
    out[32..40].copy_from_slice(&header.position.index.to_le_bytes());
    let crc = checksum(seal.salt, &out, payload);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Length of the payload that a header claims; to be believed only after [`decode`].
pub(super) fn claimed_payload_bytes(header: &[u8; HEADER_BYTES]) -> usize {
    u32_at(header, 4) as usize
}

/// Checks header and payload against each other and the segment.
pub(super) fn decode(
    seal: Seal,
    bytes: &[u8; HEADER_BYTES],
    payload: &[u8],
) -> Result<Header, Bad> {
    if u64_at(bytes, 8) != seal.generation {
        return Err(Bad::Invalid("not of this generation"));
    }
    if u32_at(bytes, 4) as usize != payload.len() {
        return Err(Bad::Invalid("wrong length"));
    }
    if checksum(seal.salt, bytes, payload) != u32_at(bytes, 0) {
        return Err(Bad::Invalid("checksum does not match"));
    }
    let Some(kind) = Kind::from_byte(bytes[16]) else {
        return Err(Bad::UnknownKind(bytes[16]));
    };
    Ok(Header {
        kind,
        group: u32_at(bytes, 20),
        position: Position { term: u64_at(bytes, 24), index: u64_at(bytes, 32) },
        payload_bytes: u32_at(bytes, 4),
    })
}

fn checksum(salt: u32, header: &[u8; HEADER_BYTES], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(salt, &header[4..]), payload)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0_u8; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0_u8; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_no_bit_of_it_may_change() {
        let seal = Seal { generation: 7, salt: 99 };
        let header = Header {
            kind: Kind::Entry,
            group: 3,
            position: Position { term: 4, index: 5 },
            payload_bytes: 5,
        };
        let bytes = encode(seal, header, b"hello");
        assert_eq!(decode(seal, &bytes, b"hello"), Ok(header));
        assert!(decode(Seal { salt: 98, ..seal }, &bytes, b"hello").is_err());
        for bit in 0..HEADER_BYTES * 8 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(seal, &other, b"hello").is_err(), "bit {bit}");
        }
        assert!(decode(seal, &bytes, b"hellp").is_err());
    }
}
