//! Where the entries of one group lie on the disk: 8 bytes an entry, since generation and term are the same for
//! many in a row.

use std::collections::VecDeque;

/// Where an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) generation: u64,
    pub(super) term: u64,
    pub(super) offset: u32,
    /// Payload bytes.
    pub(super) len: u32,
}

/// What of a slot differs from entry to entry.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u32,
    len: u32,
}

/// Entries from `first` on, up to the next run, are in one segment and of one term.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    generation: u64,
    term: u64,
}

/// Entries that were taken out: how many of each generation.
pub(super) type Dropped = Vec<(u64, u64)>;

/// The slots of consecutive entries.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Index of `places[0]`.
    first: u64,
    places: VecDeque<Place>,
    /// By `first`; the earliest begins at or before `first`.
    runs: VecDeque<Run>,
}

impl Slots {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn len(&self) -> u64 {
        self.places.len() as u64
    }

    /// Index of the first entry, or where the next may be.
    pub(super) const fn first(&self) -> u64 {
        self.first
    }

    /// Adds an entry, directly behind the last; the first may have any index.
    ///
    /// # Errors
    /// The index that comes next instead.
    pub(super) fn push(&mut self, index: u64, slot: Slot) -> Result<(), u64> {
        let next = self.first.saturating_add(self.len());
        if self.places.is_empty() {
            self.first = index;
            self.runs.clear();
        } else if index != next {
            return Err(next);
        }
        let Slot { generation, term, offset, len } = slot;
        let same = |run: &Run| run.generation == generation && run.term == term;
        if !self.runs.back().is_some_and(same) {
            self.runs.push_back(Run { first: index, generation, term });
        }
        self.places.push_back(Place { offset, len });
        Ok(())
    }

    pub(super) fn get(&self, index: u64) -> Option<Slot> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        let Place { offset, len } = *self.places.get(at)?;
        let run = self.runs.partition_point(|run| run.first <= index).checked_sub(1)?;
        let Run { generation, term, .. } = *self.runs.get(run)?;
        Some(Slot { generation, term, offset, len })
    }

    /// Takes out the entries from `index` on.
    pub(super) fn drop_from(&mut self, index: u64) -> Dropped {
        let end = self.first.saturating_add(self.len());
        let from = index.max(self.first);
        let dropped = self.count(from, end);
        let keep = usize::try_from(from - self.first).unwrap_or(usize::MAX);
        self.places.truncate(keep);
        self.runs.truncate(self.runs.partition_point(|run| run.first < from));
        self.shrink();
        dropped
    }

    /// Takes out the entries before `begin`, which is where the next may be if none is left.
    pub(super) fn drop_before(&mut self, begin: u64) -> Dropped {
        let end = self.first.saturating_add(self.len());
        let upto = begin.min(end);
        let dropped = self.count(self.first, upto);
        let gone = usize::try_from(upto.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.places.drain(..gone.min(self.places.len()));
        let passed = self.runs.partition_point(|run| run.first <= begin).saturating_sub(1);
        self.runs.drain(..passed);
        self.first = self.first.max(begin);
        self.shrink();
        dropped
    }

    /// Entries of `from..upto` by generation.
    fn count(&self, from: u64, upto: u64) -> Dropped {
        let mut counts = Dropped::new();
        for (at, run) in self.runs.iter().enumerate() {
            let behind = self.runs.get(at + 1).map_or(u64::MAX, |next| next.first);
            let begin = run.first.max(from);
            let entries = behind.min(upto).saturating_sub(begin);
            if entries > 0 {
                counts.push((run.generation, entries));
            }
        }
        counts
    }

    /// Gives back what a long backlog needed.
    fn shrink(&mut self) {
        if self.places.len() < self.places.capacity() / 4 {
            self.places.shrink_to(self.places.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(generation: u64, term: u64, offset: u32) -> Slot {
        Slot { generation, term, offset, len: offset + 1 }
    }

    /// Entries 10 to 19 in the segments 1 and 2, of the terms 1 and 3.
    fn some() -> Slots {
        let mut slots = Slots::default();
        for index in 10..20 {
            let (generation, term) = (1 + index / 15, if index < 13 { 1 } else { 3 });
            slots.push(index, slot(generation, term, index as u32)).unwrap();
        }
        slots
    }

    #[test]
    fn an_entry_has_eight_bytes() {
        assert_eq!(size_of::<Place>(), 8);
    }

    #[test]
    fn slots_come_back() {
        let mut slots = some();
        assert_eq!((slots.first(), slots.len(), slots.runs.len()), (10, 10, 3));
        assert_eq!(slots.get(9), None);
        assert_eq!(slots.get(12), Some(slot(1, 1, 12)));
        assert_eq!(slots.get(13), Some(slot(1, 3, 13)));
        assert_eq!(slots.get(19), Some(slot(2, 3, 19)));
        assert_eq!(slots.get(20), None);
        assert_eq!(slots.push(21, slot(2, 3, 0)), Err(20));
    }

    #[test]
    fn what_is_replaced_behind_a_truncation_is_not_of_the_old_run() {
        let mut slots = some();
        assert_eq!(slots.drop_from(12), [(1, 1), (1, 2), (2, 5)]);
        assert_eq!(slots.get(12), None);
        slots.push(12, slot(4, 5, 1)).unwrap();
        assert_eq!((slots.get(11), slots.get(12)), (Some(slot(1, 1, 11)), Some(slot(4, 5, 1))));
        assert_eq!(slots.drop_from(0), [(1, 2), (4, 1)]);
        assert!(slots.is_empty());
        slots.push(7, slot(5, 6, 2)).unwrap();
        assert_eq!((slots.first(), slots.get(7)), (7, Some(slot(5, 6, 2))));
    }

    #[test]
    fn purging_counts_what_goes() {
        let mut slots = some();
        assert_eq!(slots.drop_before(14), [(1, 3), (1, 1)]);
        assert_eq!((slots.first(), slots.len()), (14, 6));
        assert_eq!(slots.get(14), Some(slot(1, 3, 14)));
        assert_eq!(slots.drop_before(3), []);
        assert_eq!(slots.drop_before(30), [(1, 1), (2, 5)]);
        assert_eq!((slots.first(), slots.len()), (30, 0));
        slots.push(30, slot(9, 9, 9)).unwrap();
        assert_eq!(slots.get(30), Some(slot(9, 9, 9)));
    }

    #[test]
    fn a_long_backlog_gives_its_memory_back() {
        let mut slots = Slots::default();
        for index in 0..100_000 {
            slots.push(index, slot(1, 1, 0)).unwrap();
        }
        slots.drop_before(99_990);
        assert!(slots.places.capacity() < 1000, "{}", slots.places.capacity());
        assert_eq!(slots.get(99_999), Some(slot(1, 1, 0)));
    }
}
