//! Giving out message ids.

use std::sync::{Mutex, PoisonError};

use super::message::MessageId;
use crate::{NodeId, env::UnixMs, limits::NODE_IN_ID_MAX};

/// The ids of one node. One for all of its partitions, since an id does not name the partition.
#[derive(Debug)]
pub(super) struct Ids {
    node: Option<u16>,
    /// Second and counter of the last id given out, or seen in a log.
    last: Mutex<(u64, u64)>,
}

impl Ids {
    pub(super) fn new(node: NodeId) -> Self {
        let node = u16::try_from(node).ok().filter(|node| u64::from(*node) <= NODE_IN_ID_MAX);
        Self { node, last: Mutex::new((0, 0)) }
    }

    /// A new id. `None` if the node's number does not fit into one.
    ///
    /// Greater than every id given out or seen before: a clock that steps back makes ids of the last second before
    /// that, with higher counters.
    pub(super) fn next(&self, now: UnixMs) -> Option<MessageId> {
        let node = self.node?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let second = now.0 / 1000;
        *last = if second > last.0 { (second, 0) } else { (last.0, last.1 + 1) };
        Some(MessageId { second: last.0, counter: last.1, node })
    }

    /// An id stands in a log: after a restart, it must not be given out again.
    pub(super) fn seen(&self, id: MessageId) {
        if Some(id.node) == self.node {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last = (id.second, id.counter).max(*last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_over_clock_steps_and_restarts() {
        let ids = Ids::new(7);
        let first = ids.next(UnixMs(100_500)).unwrap();
        let second = ids.next(UnixMs(100_900)).unwrap();
        let stepped_back = ids.next(UnixMs(40_000)).unwrap();
        assert!(first < second && second < stepped_back);
        assert_eq!((stepped_back.second, stepped_back.counter), (100, 2));

        let restarted = Ids::new(7);
        restarted.seen(stepped_back);
        restarted.seen(MessageId { second: 900, counter: 0, node: 8 });
        assert!(restarted.next(UnixMs(50_000)).unwrap() > stepped_back);
        assert_eq!(restarted.next(UnixMs(200_000)).unwrap().second, 200);
    }

    #[test]
    fn a_node_number_beyond_two_digits_gets_no_ids() {
        assert!(Ids::new(NODE_IN_ID_MAX).next(UnixMs(0)).is_some());
        assert!(Ids::new(NODE_IN_ID_MAX + 1).next(UnixMs(0)).is_none());
    }
}
