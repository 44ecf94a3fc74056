//! Writing the index down piece by piece while it changes, and making it again from what was written.
//!
//! A round begins with all messages, or with those that changed since the last round. Pieces are taken one after the
//! other; a message that changes meanwhile is noted, and taken again. The last piece is taken together with the rest
//! of the index, so the pieces together are the index as of that instant.

use std::collections::{BTreeMap, BTreeSet};

use ppsw_proto::queue as pb;

use super::{Handover, Index, Partial, key::Key, slot::Slot};
use crate::{
    group::Position,
    limits::{CHANGED_MAX, KEPT_PIECE_BYTES, KEPT_PIECE_MESSAGES},
    queue::{
        entry::{read_id, write_id},
        history::{History, Volume},
    },
};

/// Version of [`pb::IndexState`] and of the messages around it.
const VERSION: u32 = 1;

/// Instead of a length: the message is no longer there.
const GONE: u32 = u32::MAX;

/// What has to be written in the next round.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// Somebody writes.
    tracked: bool,
    /// Everything: nothing has been written of this index, or too much has changed.
    all: bool,
    keys: BTreeSet<Key>,
}

impl Changed {
    pub(super) fn note(&mut self, key: Key) {
        if !self.tracked || self.all {
            return;
        }
        self.keys.insert(key);
        if self.keys.len() > CHANGED_MAX {
            self.all = true;
            self.keys = BTreeSet::new();
        }
    }
}

/// Messages by id, as they are read from a checkpoint.
#[derive(Debug, Default)]
pub(in crate::queue) struct Kept {
    messages: BTreeMap<Key, Slot>,
    /// Bytes of the encoded messages.
    pub(in crate::queue) bytes: u64,
}

impl Kept {
    /// Enters the messages of a piece; an error if it is none.
    pub(in crate::queue) fn enter(&mut self, mut piece: &[u8]) -> Result<(), String> {
        while !piece.is_empty() {
            let (key, rest) = piece.split_first_chunk().ok_or("a message without a key")?;
            let (len, rest) = rest.split_first_chunk().ok_or("a message without a length")?;
            let key = Key::read(*key).ok_or("a key that is no message id")?;
            let len = u32::from_le_bytes(*len);
            let (bytes, rest) = if len == GONE { (None, rest) } else { take(rest, len as usize)? };
            let before = match bytes {
                Some(bytes) => {
                    let slot = Slot::read(bytes)
                        .ok_or_else(|| format!("message {} cannot be read", key.id()))?;
                    self.bytes += cost(&slot);
                    self.messages.insert(key, slot)
                }
                None => self.messages.remove(&key),
            };
            self.bytes -= before.as_ref().map_or(0, cost);
            piece = rest;
        }
        Ok(())
    }
}

fn take(bytes: &[u8], len: usize) -> Result<(Option<&[u8]>, &[u8]), String> {
    let (message, rest) = bytes.split_at_checked(len).ok_or("a piece that ends too early")?;
    Ok((Some(message), rest))
}

/// What a message takes in a piece.
fn cost(slot: &Slot) -> u64 {
    (size_of::<Key>() + size_of::<u32>() + slot.bytes().len()) as u64
}

fn put(piece: &mut Vec<u8>, key: Key, slot: Option<&Slot>) {
    piece.extend_from_slice(&key.write());
    // An entry, and so a message, is far below 4 GiB.
    let len = slot.map_or(GONE, |slot| u32::try_from(slot.bytes().len()).unwrap_or(GONE));
    piece.extend_from_slice(&len.to_le_bytes());
    if let Some(slot) = slot.filter(|_| len != GONE) {
        piece.extend_from_slice(slot.bytes());
    }
}

impl Index {
    /// From now on, changes are noted; nothing has been written yet.
    pub(in crate::queue) fn track(&mut self) {
        self.changed = Changed { tracked: true, all: true, keys: BTreeSet::new() };
    }

    /// Nothing of this index has been written, or too much has changed since: a round has to begin with all messages.
    pub(in crate::queue) fn all_changed(&self) -> bool {
        self.changed.all
    }

    /// A round with all messages begins, or everything was just read.
    pub(in crate::queue) fn none_changed(&mut self) {
        self.changed = Changed { tracked: true, all: false, keys: BTreeSet::new() };
    }

    /// Messages that have changed.
    pub(in crate::queue) fn changed(&self) -> usize {
        self.changed.keys.len()
    }

    /// The next messages behind `after`, and the last of them; `None`: there was none.
    pub(in crate::queue) fn piece(&self, after: Option<Key>) -> Option<(Vec<u8>, Key)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let (mut piece, mut last) = (Vec::new(), None);
        let behind = self.messages.range((from, std::ops::Bound::Unbounded));
        for (key, slot) in behind.take(KEPT_PIECE_MESSAGES) {
            put(&mut piece, *key, Some(slot));
            last = Some(*key);
            if piece.len() >= KEPT_PIECE_BYTES {
                break;
            }
        }
        Some((piece, last?))
    }

    /// Some messages that have changed; they count as written then.
    pub(in crate::queue) fn changed_piece(&mut self) -> Vec<u8> {
        let mut piece = Vec::new();
        for _ in 0..KEPT_PIECE_MESSAGES {
            let Some(key) = self.changed.keys.pop_first() else { break };
            put(&mut piece, key, self.messages.get(&key));
            if piece.len() >= KEPT_PIECE_BYTES {
                break;
            }
        }
        piece
    }

    /// The last entry that was applied.
    pub(in crate::queue) fn position(&self) -> Option<Position> {
        self.applied.map(|index| Position { term: self.term, index })
    }

    /// Everything but the messages, and but the grace, which is the leader's own. `None` before the first entry.
    pub(in crate::queue) fn rest(&self) -> Option<pb::IndexState> {
        let applied = self.position()?;
        let uploads = self.partials.iter().map(|(id, partial)| pb::Upload {
            message: Some(write_id(*id)),
            pin: partial.pin,
            term: partial.term,
            chunks: partial
                .chunks
                .iter()
                .map(|(&number, &(index, bytes))| pb::UploadedChunk { number, index, bytes })
                .collect(),
        });
        let (marks, volume) = self.volume.write();
        Some(pb::IndexState {
            version: VERSION,
            applied_term: applied.term,
            applied_index: applied.index,
            messages: self.messages.len() as u64,
            bytes: self.bytes,
            uploads: uploads.collect(),
            highest: self.highest.values().map(|id| write_id(*id)).collect(),
            handover: self.handover.map(|last| pb::LastHandover { term: last.term, to: last.to }),
            history: Some(self.history.write()),
            marks,
            volume,
            group: Default::default(),
        })
    }

    /// The index of which these are the messages and the rest.
    ///
    /// # Errors
    /// Why they are not.
    pub(in crate::queue) fn read(kept: Kept, rest: pb::IndexState) -> Result<Self, String> {
        if rest.version != VERSION {
            return Err(format!("format {}, this program reads format {VERSION}", rest.version));
        }
        let mut index = Self {
            applied: Some(rest.applied_index),
            term: rest.applied_term,
            history: History::read(rest.history.unwrap_or_default())?,
            volume: Volume::read(&rest.marks, rest.volume),
            handover: rest.handover.map(|last| Handover { term: last.term, to: last.to }),
            ..Self::default()
        };
        for (key, slot) in kept.messages {
            let head = slot.head().ok_or("a message that cannot be read")?;
            index.add(key, &head, slot);
        }
        if (index.messages.len() as u64, index.bytes) != (rest.messages, rest.bytes) {
            return Err(format!(
                "{} messages of {} bytes where {} of {} were written",
                index.messages.len(),
                index.bytes,
                rest.messages,
                rest.bytes
            ));
        }
        for upload in rest.uploads {
            let chunks = upload.chunks.iter().map(|c| (c.number, (c.index, c.bytes))).collect();
            let partial = Partial { chunks, pin: upload.pin, term: upload.term };
            index.pins.add(partial.pin);
            index.partials.insert(read_id(upload.message)?, partial);
        }
        for id in rest.highest {
            index.see(read_id(Some(id))?);
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::message::MessageId;

    #[test]
    fn too_many_changes_are_not_remembered_one_by_one() {
        let key = |counter| Key::of(MessageId { second: 1, counter, node: 1 }).unwrap();
        let mut changed = Changed::default();
        changed.note(key(0));
        assert!(changed.keys.is_empty(), "nobody writes");
        changed.tracked = true;
        (0..CHANGED_MAX as u64).for_each(|counter| changed.note(key(counter)));
        changed.note(key(0));
        assert_eq!((changed.all, changed.keys.len()), (false, CHANGED_MAX));
        changed.note(key(CHANGED_MAX as u64));
        changed.note(key(1));
        assert_eq!((changed.all, changed.keys.len()), (true, 0));
    }
}
