//! Giving out message ids.

use std::sync::{Mutex, PoisonError};

use super::message::MessageId;
use crate::{NodeId, env::UnixMs, limits::NODE_IN_ID_MAX};

/// Bits of the counter that number the ids of one second.
const NUMBER_BITS: u32 = 20;

/// Bits of the counter above these that are drawn at each start. Together they stay below 62^6.
const START_BITS: u32 = 15;

/// The ids of one node. One for all of its partitions, since an id does not name the partition.
///
/// A node that starts does not know all the ids that it gave out: its log may lack entries that the other voters have,
/// and it leads one partition while it catches up in the next. Its clock may have stepped back, too. So the upper part
/// of the counter is another one after each start, and the ids of before are not continued.
#[derive(Debug)]
pub(super) struct Ids {
    node: Option<u16>,
    start: u64,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    /// Second and number of the last id given out.
    own: (u64, u64),
    /// The first second behind every id of an earlier start that was seen in a log.
    floor: u64,
}

impl Ids {
    pub(super) fn new(node: NodeId) -> Self {
        Self::of_start(node, rand::random())
    }

    fn of_start(node: NodeId, start: u16) -> Self {
        let node = u16::try_from(node).ok().filter(|node| u64::from(*node) <= NODE_IN_ID_MAX);
        let start = u64::from(start) & ((1 << START_BITS) - 1);
        Self { node, start, last: Mutex::default() }
    }

    /// A new id. `None` if the node's number does not fit into one.
    ///
    /// Greater than every id given out or seen before: a clock that steps back makes ids of the last second before
    /// that, with higher counters.
    pub(super) fn next(&self, now: UnixMs) -> Option<MessageId> {
        let node = self.node?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let second = (now.0 / 1000).max(last.floor);
        let (before, number) = last.own;
        last.own = if second > before {
            (second, 0)
        } else if number + 1 < 1 << NUMBER_BITS {
            (before, number + 1)
        } else {
            (before + 1, 0)
        };
        let (second, number) = last.own;
        Some(MessageId { second, counter: self.start << NUMBER_BITS | number, node })
    }

    /// An id stands in a log.
    pub(super) fn seen(&self, id: MessageId) {
        if Some(id.node) == self.node && id.counter >> NUMBER_BITS != self.start {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.floor = last.floor.max(id.second.saturating_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_over_clock_steps_and_restarts() {
        let ids = Ids::of_start(7, 5);
        let first = ids.next(UnixMs(100_500)).unwrap();
        let second = ids.next(UnixMs(100_900)).unwrap();
        let stepped_back = ids.next(UnixMs(40_000)).unwrap();
        assert!(first < second && second < stepped_back);
        assert_eq!((stepped_back.second, stepped_back.counter), (100, 5 << NUMBER_BITS | 2));
        // Its own come by in the log.
        ids.seen(stepped_back);
        assert_eq!(ids.next(UnixMs(40_000)).unwrap().counter, 5 << NUMBER_BITS | 3);

        let restarted = Ids::of_start(7, 4);
        restarted.seen(stepped_back);
        restarted.seen(MessageId { second: 900, counter: 0, node: 8 });
        assert!(restarted.next(UnixMs(50_000)).unwrap() > stepped_back);
        assert_eq!(restarted.next(UnixMs(200_000)).unwrap().second, 200);
    }

    #[test]
    fn what_a_start_has_not_seen_is_not_given_out_again() {
        let given: Vec<_> = {
            let ids = Ids::of_start(7, 5);
            (0..10).filter_map(|_| ids.next(UnixMs(100_000))).collect()
        };
        let restarted = Ids::of_start(7, 6);
        restarted.seen(given[3]);
        let again: Vec<_> = (0..20).filter_map(|_| restarted.next(UnixMs(99_000))).collect();
        assert!(again.iter().all(|id| !given.contains(id) && id.is_writable()));
        let unseen = Ids::of_start(7, u16::MAX);
        assert!(!given.contains(&unseen.next(UnixMs(100_000)).unwrap()));
    }

    #[test]
    fn a_full_second_goes_on_in_the_next() {
        let ids = Ids::of_start(7, u16::MAX);
        ids.last.lock().unwrap().own = (100, (1 << NUMBER_BITS) - 2);
        let last = ids.next(UnixMs(100_000)).unwrap();
        assert_eq!((last.second, last.is_writable()), (100, true));
        let next = ids.next(UnixMs(100_000)).unwrap();
        assert_eq!((next.second, next.counter), (101, ids.start << NUMBER_BITS));
    }

    #[test]
    fn a_node_number_beyond_two_digits_gets_no_ids() {
        assert!(Ids::new(NODE_IN_ID_MAX).next(UnixMs(0)).is_some());
        assert!(Ids::new(NODE_IN_ID_MAX + 1).next(UnixMs(0)).is_none());
    }
}
