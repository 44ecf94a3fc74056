//! The index in memory: for each group what its callers see, and what is durable and where it lies.
//!
//! The two differ by the records that wait for the writer. Callers change the first side when they call; the
//! writer changes the second, record by record, after the sync. Only the second decides which segments hold
//! something that is needed.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{
    Entry, GroupId, GroupState, Hold, LogError, Position,
    cache::{Recent, Ticket},
    record::{Kind, Record, Stamp},
    slots::{Dropped, Slot, Slots},
};
use crate::env::DiskFile;

/// A begun segment.
pub(super) struct Segment {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) stamp: Stamp,
    /// Size of the file.
    pub(super) bytes: u64,
    /// Entries in it that are neither truncated, purged nor forgotten.
    live: u64,
}

/// Where to read an entry.
pub(super) enum Place {
    Memory(Entry),
    Disk { slot: Slot, file: Arc<dyn DiskFile>, stamp: Stamp },
}

/// What is on the disk of a group.
#[derive(Default)]
struct Durable {
    vote: Option<Bytes>,
    checkpoint: Option<Bytes>,
    purged: Option<Position>,
    slots: Slots,
    /// Where the group's log begins although nothing was purged, as its first entry said.
    begin: Option<u64>,
}

/// What callers see of a group.
#[derive(Default)]
struct View {
    vote: Option<Bytes>,
    checkpoint: Option<Bytes>,
    purged: Option<Position>,
    /// Entries have the indexes `first..next`.
    first: u64,
    next: u64,
    recent: Recent,
}

#[derive(Default)]
struct Group {
    view: View,
    durable: Durable,
}

/// All groups and segments.
#[derive(Default)]
pub(super) struct Index {
    groups: BTreeMap<GroupId, Group>,
    segments: BTreeMap<u64, Segment>,
    ticket: Ticket,
}

impl Index {
    // What callers see.

    /// Appends an entry; the caller has asked [`Self::check_append`].
    pub(super) fn append(&mut self, group: GroupId, entry: &Entry) -> (Record, Ticket) {
        self.ticket += 1;
        let Position { term, index } = entry.position;
        let view = &mut self.groups.entry(group).or_default().view;
        let begins = view.is_empty() && view.purged.is_none();
        if view.is_empty() {
            view.first = index;
        }
        view.next = index + 1;
        view.recent.push(self.ticket, entry.clone());
        let payload = entry.payload.clone();
        (Record { kind: Kind::Entry, flag: begins, group, term, index, payload }, self.ticket)
    }

    /// Whether entries may be appended: consecutive, directly behind the last. A group that has neither
    /// entries nor a purge may begin anywhere.
    pub(super) fn check_append(&self, group: GroupId, entries: &[Entry]) -> Result<(), String> {
        let mut next = self.groups.get(&group).and_then(|g| g.view.next());
        for entry in entries {
            let index = entry.position.index;
            if next.is_some_and(|next| next != index) || index == u64::MAX {
                let next = next.unwrap_or_default();
                return Err(format!("group {group}: entry {index} where {next} comes next"));
            }
            next = Some(index + 1);
        }
        Ok(())
    }

    pub(super) fn save_vote(&mut self, group: GroupId, vote: Bytes) -> Record {
        self.groups.entry(group).or_default().view.vote = Some(vote.clone());
        Record { group, payload: vote, ..Record::plain(Kind::Vote, 0, 0) }
    }

    pub(super) fn save_checkpoint(&mut self, group: GroupId, checkpoint: Bytes) -> Record {
        self.groups.entry(group).or_default().view.checkpoint = Some(checkpoint.clone());
        Record { group, payload: checkpoint, ..Record::plain(Kind::Checkpoint, 0, 0) }
    }

    /// Drops entries from the end. `None`: there is nothing to drop.
    pub(super) fn truncate(
        &mut self,
        group: GroupId,
        last: Option<Position>,
    ) -> Result<Option<Record>, String> {
        let Some(view) = self.groups.get_mut(&group).map(|g| &mut g.view) else { return Ok(None) };
        let keep = last.map_or(0, |last| last.index.saturating_add(1));
        if view.purged.is_some_and(|purged| keep <= purged.index) {
            return Err(format!("group {group}: truncation into what has been purged"));
        }
        if keep >= view.next {
            return Ok(None);
        }
        view.recent.drop_from(keep);
        view.next = keep.max(view.first);
        let Position { term, index } = last.unwrap_or_default();
        let flag = last.is_none();
        Ok(Some(Record { group, flag, ..Record::plain(Kind::Truncate, term, index) }))
    }

    /// Drops entries from the beginning. `None`: they were purged already.
    pub(super) fn purge(&mut self, group: GroupId, upto: Position) -> Option<Record> {
        let view = &mut self.groups.entry(group).or_default().view;
        if view.purged.is_some_and(|purged| purged.index >= upto.index) {
            return None;
        }
        view.recent.drop_to(upto.index);
        view.purged = Some(upto);
        view.first = upto.index.saturating_add(1);
        view.next = view.next.max(view.first);
        Some(Record { group, ..Record::plain(Kind::Purge, upto.term, upto.index) })
    }

    /// Forgets a group. `None`: it is not known.
    pub(super) fn forget(&mut self, group: GroupId) -> Option<Record> {
        self.groups.get_mut(&group)?.view = View::default();
        Some(Record { group, ..Record::plain(Kind::Forget, 0, 0) })
    }

    pub(super) fn state(&self, group: GroupId) -> GroupState {
        self.groups.get(&group).map_or_else(GroupState::default, |g| GroupState {
            vote: g.view.vote.clone(),
            purged: g.view.purged,
            first: (g.view.first < g.view.next).then_some(g.view.first),
            last: g.last(),
            checkpoint: g.view.checkpoint.clone(),
        })
    }

    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.groups.iter().filter(|(_, g)| g.view.exists()).map(|(id, _)| *id).collect()
    }

    /// Where to read an entry; `None`: it is not there.
    pub(super) fn locate(&self, group: GroupId, index: u64) -> Option<Place> {
        let group = self.groups.get(&group)?;
        if !(group.view.first..group.view.next).contains(&index) {
            return None;
        }
        if let Some(entry) = group.view.recent.get(index) {
            return Some(Place::Memory(entry.clone()));
        }
        let slot = group.durable.slots.get(index)?;
        let segment = self.segments.get(&slot.generation)?;
        Some(Place::Disk { slot, file: Arc::clone(&segment.file), stamp: segment.stamp })
    }

    /// The position of an entry that is there, or of the last that was purged.
    pub(super) fn position(&self, group: GroupId, index: u64) -> Option<Position> {
        let Group { view, durable } = self.groups.get(&group)?;
        if !(view.first..view.next).contains(&index) {
            return view.purged.filter(|purged| purged.index == index);
        }
        let recent = view.recent.get(index).map(|entry| entry.position);
        recent.or_else(|| durable.slots.get(index).map(|slot| Position { term: slot.term, index }))
    }

    // What is durable.

    /// A segment was begun; it may hold records from now on.
    pub(super) fn begin(&mut self, stamp: Stamp, file: Arc<dyn DiskFile>, bytes: u64) {
        self.segments.insert(stamp.generation, Segment { file, stamp, bytes, live: 0 });
    }

    /// A record is durable at a place.
    ///
    /// # Errors
    /// If it does not fit what was durable before. Only possible at recovery.
    pub(super) fn place(
        &mut self,
        record: &Record,
        len: usize,
        generation: u64,
        offset: u64,
    ) -> Result<(), String> {
        if matches!(record.kind, Kind::Commit | Kind::Head | Kind::Release | Kind::Seal) {
            return Ok(());
        }
        let durable = &mut self.groups.entry(record.group).or_default().durable;
        let dropped = match record.kind {
            // What comes behind it would have no index. Never written; `check_append` refuses it.
            Kind::Entry if record.index == u64::MAX => {
                return Err("an entry with the last possible index".to_owned());
            }
            Kind::Entry => {
                let slot = Slot {
                    generation,
                    term: record.term,
                    offset: u32::try_from(offset).unwrap_or(u32::MAX),
                    len: u32::try_from(len).unwrap_or(u32::MAX),
                };
                durable.push(record.index, record.flag, slot)?;
                if let Some(segment) = self.segments.get_mut(&generation) {
                    segment.live += 1;
                }
                Dropped::new()
            }
            Kind::Vote => {
                durable.vote = Some(record.payload.clone());
                Dropped::new()
            }
            Kind::Checkpoint => {
                durable.checkpoint = Some(record.payload.clone());
                Dropped::new()
            }
            Kind::Truncate if record.flag => durable.slots.drop_from(0),
            Kind::Truncate => durable.slots.drop_from(record.index.saturating_add(1)),
            Kind::Purge => durable.purge(Position { term: record.term, index: record.index }),
            Kind::Forget => std::mem::take(durable).slots.drop_from(0),
            Kind::Commit | Kind::Head | Kind::Release | Kind::Seal => Dropped::new(),
        };
        self.release(&dropped);
        if record.kind == Kind::Forget {
            self.groups.retain(|id, g| *id != record.group || g.view.exists());
        }
        Ok(())
    }

    /// The entry with this ticket is on the disk, and may be evicted from memory.
    pub(super) fn placed(&mut self, group: GroupId, ticket: Ticket) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.view.recent.place(ticket);
        }
    }

    /// Drops the oldest cached entries until `bytes_max` are kept.
    pub(super) fn evict(&mut self, bytes_max: usize) {
        let mut bytes: usize = self.groups.values().map(|g| g.view.recent.placed_bytes()).sum();
        while bytes > bytes_max {
            let oldest = self
                .groups
                .values_mut()
                .map(|g| &mut g.view.recent)
                .filter(|recent| recent.oldest().is_some())
                .min_by_key(|recent| recent.oldest());
            let Some(recent) = oldest else { return };
            bytes -= recent.placed_bytes();
            recent.evict();
            bytes += recent.placed_bytes();
        }
    }

    /// The records that a new segment begins with, so that no older one is needed for a group's state.
    pub(super) fn head_records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for (&group, Group { durable, .. }) in &self.groups {
            let saved = [(Kind::Vote, &durable.vote), (Kind::Checkpoint, &durable.checkpoint)];
            for (kind, payload) in saved {
                if let Some(payload) = payload {
                    let payload = payload.clone();
                    records.push(Record { group, payload, ..Record::plain(kind, 0, 0) });
                }
            }
            if let Some(Position { term, index }) = durable.purged {
                records.push(Record { group, ..Record::plain(Kind::Purge, term, index) });
            }
        }
        records
    }

    /// The oldest generation that holds a live entry.
    pub(super) fn oldest_live(&self) -> Option<u64> {
        self.segments
            .iter()
            .find(|(_, segment)| segment.live > 0)
            .map(|(&generation, _)| generation)
    }

    /// A begun segment that was not released.
    pub(super) fn segment(&self, generation: u64) -> Option<&Segment> {
        self.segments.get(&generation)
    }

    /// The first of them from a generation on.
    pub(super) fn segment_from(&self, generation: u64) -> Option<u64> {
        self.segments.range(generation..).next().map(|(&generation, _)| generation)
    }

    /// Takes out the segments before a generation.
    pub(super) fn take_before(&mut self, generation: u64) -> BTreeMap<u64, Segment> {
        let kept = self.segments.split_off(&generation);
        std::mem::replace(&mut self.segments, kept)
    }

    /// Begun segments and their bytes.
    pub(super) fn usage(&self) -> (u64, u64) {
        (self.segments.len() as u64, self.segments.values().map(|s| s.bytes).sum())
    }

    /// What each group keeps on the disk.
    pub(super) fn holds(&self) -> Vec<Hold> {
        let hold = |(&group, Group { durable, .. }): (&GroupId, &Group)| {
            let first = durable.slots.first();
            let generation = durable.slots.get(first)?.generation;
            Some(Hold { group, first, generation })
        };
        self.groups.iter().filter_map(hold).collect()
    }

    /// Generations and sizes of the begun segments, oldest first.
    pub(super) fn segments(&self) -> Vec<(u64, u64)> {
        self.segments.iter().map(|(&generation, segment)| (generation, segment.bytes)).collect()
    }

    /// The last entry of a group in the segments before a generation.
    pub(super) fn last_before(&self, group: GroupId, generation: u64) -> Option<u64> {
        let durable = &self.groups.get(&group)?.durable;
        let first = durable.slots.first();
        // Entries are written in the order of their indexes, so generations ascend.
        let (mut before, mut behind) = (0, durable.slots.len());
        while before < behind {
            let middle = before.midpoint(behind);
            if durable.slots.get(first + middle)?.generation < generation {
                before = middle + 1;
            } else {
                behind = middle;
            }
        }
        first.checked_add(before.checked_sub(1)?)
    }

    /// Ends recovery: what is durable is what callers see.
    ///
    /// # Errors
    /// `Damaged` if entries are missing.
    pub(super) fn settle(&mut self) -> Result<(), LogError> {
        for (&id, Group { view, durable }) in &mut self.groups {
            let begin = durable.purged.map_or(durable.begin, |p| Some(p.index.saturating_add(1)));
            if !durable.slots.is_empty() && begin != Some(durable.slots.first()) {
                return Err(LogError::Damaged {
                    file: format!("group {id}"),
                    offset: 0,
                    what: format!(
                        "entries begin at {}, expected {}",
                        durable.slots.first(),
                        begin.unwrap_or_default()
                    ),
                });
            }
            view.vote.clone_from(&durable.vote);
            view.checkpoint.clone_from(&durable.checkpoint);
            view.purged = durable.purged;
            view.first = begin.unwrap_or_default();
            view.next = view.first + durable.slots.len();
        }
        self.groups.retain(|_, g| g.view.exists());
        Ok(())
    }

    fn release(&mut self, dropped: &Dropped) {
        for (generation, entries) in dropped {
            if let Some(segment) = self.segments.get_mut(generation) {
                segment.live = segment.live.saturating_sub(*entries);
            }
        }
    }
}

impl Group {
    /// The last entry that callers see, or where the next one must continue.
    fn last(&self) -> Option<Position> {
        let View { recent, purged, first, next, .. } = &self.view;
        if first == next {
            return *purged;
        }
        let index = next - 1;
        recent.last().or_else(|| {
            self.durable.slots.get(index).map(|slot| Position { term: slot.term, index })
        })
    }
}

impl View {
    const fn is_empty(&self) -> bool {
        self.first == self.next
    }

    /// The index that must come next; `None`: any.
    fn next(&self) -> Option<u64> {
        (!self.is_empty() || self.purged.is_some()).then_some(self.next)
    }

    const fn exists(&self) -> bool {
        self.vote.is_some()
            || self.checkpoint.is_some()
            || self.purged.is_some()
            || !self.is_empty()
    }
}

impl Durable {
    fn push(&mut self, index: u64, begins: bool, slot: Slot) -> Result<(), String> {
        let pushed = self.slots.push(index, slot);
        pushed.map_err(|next| format!("entry {index} stands where {next} comes next"))?;
        if begins {
            self.begin = Some(index);
        }
        Ok(())
    }

    /// Takes out the entries up to a position, and notes it.
    fn purge(&mut self, upto: Position) -> Dropped {
        self.purged = Some(upto);
        self.slots.drop_before(upto.index.saturating_add(1))
    }
}
