//! Free space of the voters of a group: what a leader knows before it takes mail (docs/spool.md, "Full disks").
//!
//! Every answer to a heartbeat or to entries says how much its node can take. So a leader that holds the lease has
//! heard it from a majority less than a second ago.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{NodeId, limits::SPACE_KNOWN_MAX};

/// What other nodes said last. One for all groups of a node.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    heard: Mutex<BTreeMap<NodeId, (u64, Instant)>>,
}

impl Neighbours {
    /// A node has answered. `None`: it is of a version that does not say.
    pub(super) fn note(&self, node: NodeId, headroom: Option<u64>, now: Instant) {
        self.heard().insert(node, (headroom.unwrap_or(u64::MAX), now));
    }

    /// What a node can take; 0 if it has not said so lately.
    pub(super) fn headroom(&self, node: NodeId, now: Instant) -> u64 {
        let known = |at| now.saturating_duration_since(at) < SPACE_KNOWN_MAX;
        match self.heard().get(&node) {
            Some(&(headroom, at)) if known(at) => headroom,
            _ => 0,
        }
    }

    fn heard(&self) -> MutexGuard<'_, BTreeMap<NodeId, (u64, Instant)>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a majority of these voters can take.
pub(super) fn of_majority(voters: impl Iterator<Item = u64>) -> u64 {
    let mut voters: Vec<u64> = voters.collect();
    voters.sort_unstable_by(|a, b| b.cmp(a));
    voters.get(voters.len() / 2).copied().unwrap_or(u64::MAX)
}

const _: () = assert!(SPACE_KNOWN_MAX.as_millis() > Duration::from_secs(1).as_millis());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Clock, SystemClock};

    #[test]
    fn any_majority_counts_and_silence_is_no_space() {
        assert_eq!(of_majority([5].into_iter()), 5);
        assert_eq!(of_majority([0, 7].into_iter()), 0);
        assert_eq!(of_majority([0, 7, 9].into_iter()), 7);
        assert_eq!(of_majority([0, 0, 9].into_iter()), 0);
        assert_eq!(of_majority([1, 2, 3, 4].into_iter()), 2);
        assert_eq!(of_majority([0, 0, 3, 4, 5].into_iter()), 3);

        let now = SystemClock.instant();
        let neighbours = Neighbours::default();
        assert_eq!(neighbours.headroom(2, now), 0);
        neighbours.note(2, Some(9), now);
        assert_eq!(neighbours.headroom(2, now), 9);
        assert_eq!(neighbours.headroom(2, now + SPACE_KNOWN_MAX), 0);
        neighbours.note(2, None, now);
        assert_eq!(neighbours.headroom(2, now), u64::MAX);
    }
}
