//! The newest entries of one group in memory: those that are not on the disk yet, and a cache of those before.

use std::collections::VecDeque;

use super::{Entry, Position};
use crate::limits::LOG_RECORD_OVERHEAD;

/// Tells one appended entry from another that takes its place after a truncation. Rises with each append
/// to the log, over all groups.
pub(super) type Ticket = u64;

/// Consecutive entries up to the group's last.
#[derive(Default)]
pub(super) struct Recent {
    items: VecDeque<(Ticket, Entry)>,
    /// How many of them, from the first on, are on the disk: only these may be evicted.
    placed: usize,
    /// What those cost.
    placed_bytes: usize,
}

impl Recent {
    /// Adds the group's new last entry, not on the disk yet.
    pub(super) fn push(&mut self, ticket: Ticket, entry: Entry) {
        self.items.push_back((ticket, entry));
    }

    /// The entry with this index, if it is in memory.
    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        let first = self.first()?;
        let at = usize::try_from(index.checked_sub(first)?).ok()?;
        self.items.get(at).map(|(_, entry)| entry)
    }

    /// The last entry's position.
    pub(super) fn last(&self) -> Option<Position> {
        self.items.back().map(|(_, entry)| entry.position)
    }

    /// An entry is on the disk. Ignored if it has been dropped or replaced meanwhile.
    pub(super) fn place(&mut self, ticket: Ticket) {
        if let Some((found, entry)) = self.items.get(self.placed)
            && *found == ticket
        {
            self.placed_bytes += cost(entry);
            self.placed += 1;
        }
    }

    /// Drops entries from the end while their index is at least `index`.
    pub(super) fn drop_from(&mut self, index: u64) {
        while let Some((_, entry)) = self.items.pop_back_if(|(_, e)| e.position.index >= index) {
            if self.placed > self.items.len() {
                self.placed -= 1;
                self.placed_bytes -= cost(&entry);
            }
        }
    }

    /// Drops entries from the beginning while their index is at most `index`.
    pub(super) fn drop_to(&mut self, index: u64) {
        while let Some((_, entry)) = self.items.pop_front_if(|(_, e)| e.position.index <= index) {
            self.dropped_front(&entry);
        }
    }

    /// The age of the oldest entry that may be evicted.
    pub(super) fn oldest(&self) -> Option<Ticket> {
        (self.placed > 0).then(|| self.items.front().map(|(ticket, _)| *ticket)).flatten()
    }

    /// Drops the oldest entry if it is on the disk.
    pub(super) fn evict(&mut self) {
        if self.placed > 0
            && let Some((_, entry)) = self.items.pop_front()
        {
            self.dropped_front(&entry);
        }
    }

    /// What the entries cost that may be evicted.
    pub(super) const fn placed_bytes(&self) -> usize {
        self.placed_bytes
    }

    fn first(&self) -> Option<u64> {
        self.items.front().map(|(_, entry)| entry.position.index)
    }

    fn dropped_front(&mut self, entry: &Entry) {
        if self.placed > 0 {
            self.placed -= 1;
            self.placed_bytes -= cost(entry);
        }
    }
}

/// What an entry costs in memory.
pub(super) fn cost(entry: &Entry) -> usize {
    entry.payload.len() + LOG_RECORD_OVERHEAD
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(index: u64) -> Entry {
        Entry { position: Position { term: 1, index }, payload: Bytes::from_static(b"12345") }
    }

    #[test]
    fn evicts_only_what_is_on_the_disk() {
        let mut recent = Recent::default();
        for i in 0..4 {
            recent.push(i, entry(10 + i));
        }
        recent.evict();
        assert_eq!(recent.get(10), Some(&entry(10)));
        recent.place(0);
        recent.place(1);
        assert_eq!(recent.placed_bytes(), 2 * cost(&entry(0)));
        assert_eq!(recent.oldest(), Some(0));
        recent.evict();
        recent.evict();
        recent.evict();
        assert_eq!((recent.get(11), recent.get(12)), (None, Some(&entry(12))));
        assert_eq!(recent.placed_bytes(), 0);
    }

    #[test]
    fn a_replaced_entry_is_not_taken_for_its_successor() {
        let mut recent = Recent::default();
        recent.push(0, entry(5));
        recent.push(1, entry(6));
        recent.drop_from(6);
        recent.push(2, entry(6));
        recent.place(0);
        recent.place(1);
        assert_eq!(recent.placed_bytes(), cost(&entry(5)));
        recent.place(2);
        assert_eq!(recent.placed_bytes(), 2 * cost(&entry(5)));
        recent.drop_to(5);
        assert_eq!(recent.placed_bytes(), cost(&entry(6)));
        recent.drop_from(0);
        assert_eq!((recent.placed_bytes(), recent.last()), (0, None));
    }

    #[test]
    fn entries_purged_before_they_are_placed_are_ignored() {
        let mut recent = Recent::default();
        for i in 0..3 {
            recent.push(i, entry(i));
        }
        recent.drop_to(1);
        recent.place(0);
        recent.place(1);
        assert_eq!(recent.placed_bytes(), 0);
        recent.place(2);
        assert_eq!(recent.oldest(), Some(2));
    }
}
