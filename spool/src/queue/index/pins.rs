//! Which entries of the log begin something that lives: a bit for each, since most begin one thing only.

use std::collections::BTreeMap;

/// Indexes with how often each is pinned.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// A bit for each of 64 indexes.
    blocks: BTreeMap<u64, u64>,
    /// How often beyond the first (a bounce has the pin of the message that it came from).
    more: BTreeMap<u64, u32>,
}

impl Pins {
    pub(super) fn add(&mut self, index: u64) {
        let block = self.blocks.entry(index / 64).or_default();
        if *block & bit(index) == 0 {
            *block |= bit(index);
        } else {
            *self.more.entry(index).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, index: u64) {
        if let Some(more) = self.more.get_mut(&index) {
            *more -= 1;
            if *more == 0 {
                self.more.remove(&index);
            }
        } else if let Some(block) = self.blocks.get_mut(&(index / 64)) {
            *block &= !bit(index);
            if *block == 0 {
                self.blocks.remove(&(index / 64));
            }
        }
    }

    /// The lowest.
    pub(super) fn first(&self) -> Option<u64> {
        let (number, block) = self.blocks.first_key_value()?;
        Some(number * 64 + u64::from(block.trailing_zeros()))
    }
}

const fn bit(index: u64) -> u64 {
    1 << (index % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_is_the_one_that_has_not_been_removed_as_often_as_added() {
        let mut pins = Pins::default();
        assert_eq!(pins.first(), None);
        for index in [700, 64, 63, 63, 63, u64::MAX] {
            pins.add(index);
        }
        pins.remove(63);
        pins.remove(63);
        assert_eq!(pins.first(), Some(63));
        pins.remove(63);
        pins.remove(63);
        assert_eq!(pins.first(), Some(64));
        pins.remove(64);
        assert_eq!(pins.first(), Some(700));
        pins.remove(700);
        assert_eq!(pins.first(), Some(u64::MAX));
        pins.remove(u64::MAX);
        assert_eq!(pins.first(), None);
        assert!(pins.blocks.is_empty() && pins.more.is_empty());
    }
}
