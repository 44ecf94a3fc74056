//! Which nodes should carry which partition, and the next safe step towards it. Pure.

use std::collections::BTreeSet;

use ppsw_spool::NodeId;

use crate::{limits, state::State};

/// One change of a group's voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Add(NodeId),
    Remove(NodeId),
}

/// The home node and the members that follow it in the ring of node numbers, three in all, or all if there are fewer.
#[must_use]
pub fn wanted_voters(home: NodeId, members: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let after = members.range(home.saturating_add(1)..);
    let before = members.range(..home);
    members
        .get(&home)
        .into_iter()
        .chain(after)
        .chain(before)
        .copied()
        .take(limits::PARTITION_VOTERS)
        .collect()
}

/// The oldest members vote in the control group.
#[must_use]
pub fn control_voters(members: &BTreeSet<NodeId>) -> Vec<NodeId> {
    members.iter().copied().take(limits::CONTROL_VOTERS_MAX).collect()
}

/// Placements that are not as they should be: partition and wanted voters.
#[must_use]
pub fn misplaced(state: &State) -> Vec<(u32, Vec<NodeId>)> {
    let members: BTreeSet<NodeId> = state.members.keys().copied().collect();
    members
        .iter()
        .filter_map(|home| {
            let partition = u32::try_from(*home).ok()?;
            let wanted = wanted_voters(*home, &members);
            (state.partitions.get(&partition) != Some(&wanted)).then_some((partition, wanted))
        })
        .collect()
}

/// The next change towards the wanted voters: all additions first, so that a group never has fewer replicas than
/// before; the leader itself is never removed (it hands over first). `round` turns through the candidates, so that a
/// node that is down does not keep the others out.
#[must_use]
pub fn next_step(real: &[NodeId], wanted: &[NodeId], leader: NodeId, round: usize) -> Option<Step> {
    let missing: Vec<NodeId> = wanted.iter().filter(|n| !real.contains(n)).copied().collect();
    if !missing.is_empty() {
        return missing.get(round % missing.len()).copied().map(Step::Add);
    }
    real.iter().find(|n| !wanted.contains(n) && **n != leader).copied().map(Step::Remove)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::tests::cluster;

    fn set(nodes: &[NodeId]) -> BTreeSet<NodeId> {
        nodes.iter().copied().collect()
    }

    #[test]
    fn voters_are_home_and_the_next_two() {
        assert_eq!(wanted_voters(1, &set(&[1])), [1]);
        assert_eq!(wanted_voters(2, &set(&[1, 2])), [2, 1]);
        assert_eq!(wanted_voters(3, &set(&[1, 2, 3, 4])), [3, 4, 1]);
        assert_eq!(wanted_voters(9, &set(&[1, 5, 9])), [9, 1, 5]);
        assert_eq!(control_voters(&set(&[1, 2, 3, 4, 5, 6])), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_new_cluster_needs_all_its_placements() {
        let found = misplaced(&cluster(2));
        assert_eq!(found, [(1, vec![1, 2]), (2, vec![2, 1])]);
    }

    #[test]
    fn a_dead_candidate_does_not_block_the_other() {
        assert_eq!(next_step(&[1], &[1, 2, 3], 1, 0), Some(Step::Add(2)));
        assert_eq!(next_step(&[1], &[1, 2, 3], 1, 1), Some(Step::Add(3)));
        assert_eq!(next_step(&[2, 1], &[2], 1, 0), None, "the leader hands over first");
    }

    proptest! {
        /// Step by step every group gets to its wanted voters and never has fewer than before or wanted.
        #[test]
        fn steps_reach_the_goal(
            real in proptest::collection::btree_set(1_u64..8, 1..4),
            wanted in proptest::collection::btree_set(1_u64..8, 1..4),
        ) {
            let mut now: Vec<NodeId> = real.iter().copied().collect();
            let wanted: Vec<NodeId> = wanted.into_iter().collect();
            let leader = wanted[0];
            let floor = now.len().min(wanted.len());
            for round in 0..20 {
                match next_step(&now, &wanted, leader, round) {
                    Some(Step::Add(node)) => now.push(node),
                    Some(Step::Remove(node)) => now.retain(|n| *n != node),
                    None => break,
                }
                prop_assert!(now.len() >= floor);
            }
            now.sort_unstable();
            prop_assert_eq!(now, wanted);
        }
    }
}
