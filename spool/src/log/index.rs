//! Where the entries of each group are: in memory, rebuilt at start.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use bytes::Bytes;

use super::{Entry, GroupId, GroupState, LogError, Position};

/// Where an entry's record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Generation of the segment; 0: not yet written, so the payload is in memory.
    pub(super) generation: u64,
    /// Of the record's header in the file.
    pub(super) offset: u32,
    pub(super) payload_bytes: u32,
}

/// An entry that the log has.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) term: u64,
    pub(super) place: Place,
    /// The payload, while it is in the cache.
    pub(super) payload: Option<Bytes>,
}

/// One group.
#[derive(Debug, Default)]
pub(super) struct GroupIndex {
    pub(super) vote: Option<Bytes>,
    pub(super) checkpoint: Option<Bytes>,
    pub(super) purged: Option<Position>,
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
}

impl GroupIndex {
    pub(super) fn state(&self) -> GroupState {
        GroupState {
            vote: self.vote.clone(),
            purged: self.purged,
            first: self.first(),
            last: self.last().or(self.purged),
            checkpoint: self.checkpoint.clone(),
        }
    }

    /// Index that the next entry must have; `None`: any (an empty group).
    pub(super) fn next(&self) -> Option<u64> {
        if self.slots.is_empty() {
            self.purged.map(|p| p.index + 1)
        } else {
            Some(self.first + self.slots.len() as u64)
        }
    }

    pub(super) fn first(&self) -> Option<u64> {
        (!self.slots.is_empty()).then_some(self.first)
    }

    pub(super) fn last(&self) -> Option<Position> {
        let slot = self.slots.back()?;
        Some(Position { term: slot.term, index: self.first + self.slots.len() as u64 - 1 })
    }

    pub(super) fn push(&mut self, index: u64, slot: Slot) {
        if self.slots.is_empty() {
            self.first = index;
        }
        debug_assert_eq!(index, self.first + self.slots.len() as u64);
        self.slots.push_back(slot);
    }

    pub(super) fn clear(&mut self) {
        self.slots.clear();
    }

    /// Drops the entries behind `last`; returns the bytes that the cache gives up.
    pub(super) fn truncate_after(&mut self, last: Option<Position>) -> usize {
        let keep = last.map_or(0, |p| (p.index + 1).saturating_sub(self.first));
        let keep = usize::try_from(keep).unwrap_or(usize::MAX).min(self.slots.len());
        self.slots.drain(keep..).map(|slot| slot.payload.map_or(0, |p| p.len())).sum()
    }

    /// Drops the entries up to `upto`; returns the bytes that the cache gives up.
    pub(super) fn purge(&mut self, upto: Position) -> usize {
        if self.purged.is_some_and(|p| p.index >= upto.index) {
            return 0;
        }
        self.purged = Some(upto);
        let drop = (upto.index + 1).saturating_sub(self.first);
        let drop = usize::try_from(drop).unwrap_or(usize::MAX).min(self.slots.len());
        self.first += drop as u64;
        self.slots.drain(..drop).map(|slot| slot.payload.map_or(0, |p| p.len())).sum()
    }

    pub(super) fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    pub(super) fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }
}

/// All groups, and the cache of payloads.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) groups: BTreeMap<GroupId, GroupIndex>,
    /// Entries in the order in which they came into the cache.
    cached: VecDeque<(GroupId, Position)>,
    pub(super) cached_bytes: usize,
}

impl Index {
    /// Checks that `entries` follow the group's last one, and takes them in.
    pub(super) fn append(&mut self, group: GroupId, entries: &[Entry]) -> Result<(), LogError> {
        let state = self.groups.entry(group).or_default();
        let mut next = state.next();
        for entry in entries {
            let index = entry.position.index;
            if next.is_some_and(|next| next != index) {
                return Err(LogError::Misuse(format!(
                    "group {group}: entry {index} appended where {next:?} must follow"
                )));
            }
            next = Some(index + 1);
        }
        for entry in entries {
            let place = Place {
                generation: 0,
                offset: 0,
                // Entries are far below 4 GiB: `Log::append` has refused others.
                payload_bytes: u32::try_from(entry.payload.len()).unwrap_or(u32::MAX),
            };
            let payload = Some(entry.payload.clone());
            state.push(entry.position.index, Slot { term: entry.position.term, place, payload });
            self.cached.push_back((group, entry.position));
            self.cached_bytes += entry.payload.len();
        }
        Ok(())
    }

    /// Notes where an entry was written, unless it has been truncated or replaced meanwhile.
    pub(super) fn written(&mut self, group: GroupId, position: Position, place: Place) {
        let Some(slot) = self.groups.get_mut(&group).and_then(|g| g.slot_mut(position.index))
        else {
            return;
        };
        if slot.term == position.term {
            slot.place = place;
        }
    }

    /// Lets go of the oldest payloads that are on disk, until the cache holds at most `bytes_max`.
    pub(super) fn evict(&mut self, bytes_max: usize) {
        while self.cached_bytes > bytes_max {
            let Some((group, position)) = self.cached.front().copied() else { return };
            let slot = self.groups.get_mut(&group).and_then(|g| g.slot_mut(position.index));
            if let Some(slot) = slot.filter(|slot| slot.term == position.term) {
                if slot.place.generation == 0 {
                    return;
                }
                if let Some(payload) = slot.payload.take() {
                    self.cached_bytes -= payload.len();
                }
            }
            self.cached.pop_front();
        }
    }

    /// Forgets cache records of entries that are gone, so that the list stays bounded by what is cached.
    pub(super) fn compact(&mut self) {
        const SLACK: usize = 4096;
        let live: usize = self.groups.values().map(|g| g.slots.len()).sum();
        if self.cached.len() > 2 * live + SLACK {
            let groups = &self.groups;
            self.cached.retain(|(group, position)| {
                groups
                    .get(group)
                    .and_then(|g| g.slot(position.index))
                    .is_some_and(|slot| slot.term == position.term && slot.payload.is_some())
            });
        }
    }

    /// The slots of a range until `bytes_max` are reached, at least one.
    pub(super) fn collect(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<(Position, Slot)>, LogError> {
        let state = self.groups.get(&group);
        let mut found = Vec::new();
        let mut bytes = 0;
        for index in range {
            let slot =
                state.and_then(|g| g.slot(index)).ok_or(LogError::Missing { group, index })?;
            bytes += slot.place.payload_bytes as usize;
            if !found.is_empty() && bytes > bytes_max {
                break;
            }
            found.push((Position { term: slot.term, index }, slot.clone()));
        }
        Ok(found)
    }

    /// The generation of the oldest segment that a live entry needs; `None`: none is needed.
    pub(super) fn oldest_generation(&self) -> Option<u64> {
        self.groups
            .values()
            .filter_map(|group| group.slots.front())
            .map(|slot| slot.place.generation)
            .filter(|generation| *generation != 0)
            .min()
    }
}
