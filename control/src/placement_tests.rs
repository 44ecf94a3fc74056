use proptest::prelude::*;

use ppsw_proto::control as pb;

use super::*;
use crate::state::tests::cluster;

fn set(nodes: &[NodeId]) -> BTreeSet<NodeId> {
    nodes.iter().copied().collect()
}

#[test]
fn voters_are_home_and_the_next_of_the_ring() {
    assert_eq!(wanted_voters(1, &set(&[1]), 3), [1]);
    assert_eq!(wanted_voters(2, &set(&[1, 2]), 3), [2, 1]);
    assert_eq!(wanted_voters(3, &set(&[1, 2, 3, 4]), 3), [3, 4, 1]);
    assert_eq!(wanted_voters(9, &set(&[1, 5, 9]), 3), [9, 1, 5]);
    assert_eq!(wanted_voters(3, &set(&[1, 2, 3, 4, 5, 6]), 5), [3, 4, 5, 6, 1]);
    assert_eq!(wanted_voters(4, &set(&[1, 2, 5, 6]), 3), [5, 6, 1], "home is not there");
    assert_eq!(control_voters(&set(&[1, 2, 3, 4, 5, 6])), [1, 2, 3, 4, 5]);
}

#[test]
fn a_new_cluster_needs_all_its_placements() {
    assert_eq!(misplaced(&cluster(2)), [(1, vec![1, 2]), (2, vec![2, 1])]);
}

#[test]
fn a_partition_outlives_its_home_and_follows_who_is_there() {
    let mut state = cluster(4);
    state.partitions = misplaced(&state).into_iter().collect();
    assert!(misplaced(&state).is_empty());
    state.away.insert(2, pb::Away { node: 2, since_ms: 1 });
    let moved = vec![(1, vec![1, 3, 4]), (2, vec![3, 4, 1]), (4, vec![4, 1, 3])];
    assert_eq!(misplaced(&state), moved);
    state.away.clear();
    state.removals.insert(2, pb::Removal { node: 2, ..pb::Removal::default() });
    assert_eq!(misplaced(&state), moved, "the same for one that leaves");
    state.members.get_mut(&4).unwrap().started = false;
    state.partitions.remove(&4);
    assert!(
        misplaced(&state).iter().all(|(id, voters)| *id != 4 && !voters.contains(&4)),
        "one that has never started carries nothing"
    );
}

#[test]
fn a_dead_candidate_does_not_block_the_other() {
    let up = set(&[1, 3]);
    assert_eq!(next_step(&[1], &[1, 2, 3], 1, &up, 0), Some(Step::Add(3)));
    let up = set(&[1, 2, 3]);
    assert_eq!(next_step(&[1], &[1, 2, 3], 1, &up, 0), Some(Step::Add(2)));
    assert_eq!(next_step(&[1], &[1, 2, 3], 1, &up, 1), Some(Step::Add(3)));
    assert_eq!(next_step(&[2, 1], &[2], 1, &up, 0), None, "the leader hands over first");
}

#[test]
fn a_dead_voter_goes_first_and_a_live_one_stays_until_the_new_is_there() {
    assert_eq!(next_step(&[1, 2, 3], &[1, 2, 4], 1, &set(&[1, 2, 4]), 0), Some(Step::Remove(3)));
    assert_eq!(next_step(&[1, 2, 3], &[1, 2, 4], 1, &set(&[1, 2, 3, 4]), 0), Some(Step::Add(4)));
    assert_eq!(next_step(&[1, 2, 3], &[1, 2, 4], 1, &set(&[1, 2, 3]), 0), None);
    assert_eq!(
        next_step(&[1, 2, 3], &[1, 2], 1, &set(&[1, 3]), 0),
        None,
        "1 and 2 would be left, and 2 is down at this moment"
    );
}

fn walk(
    real: &BTreeSet<NodeId>,
    wanted: &[NodeId],
    up: &BTreeSet<NodeId>,
) -> Result<BTreeSet<NodeId>, TestCaseError> {
    let mut now: Vec<NodeId> = real.iter().copied().collect();
    for round in 0..40 {
        // As the agent does: a leader that is not wanted hands over to a wanted voter that is up, if there is one.
        let led = |n: &&NodeId| up.contains(n);
        let heir = wanted.iter().filter(|n| now.contains(n)).find(led);
        let Some(leader) = heir.or_else(|| now.iter().find(led)).copied() else { break };
        let Some(step) = next_step(&now, wanted, leader, up, round) else { break };
        let before = now.clone();
        match step {
            Step::Add(node) => {
                prop_assert!(up.contains(&node) && !now.contains(&node));
                now.push(node);
            }
            Step::Remove(node) => {
                prop_assert!(node != leader && !wanted.contains(&node));
                now.retain(|n| *n != node);
            }
        }
        prop_assert_eq!(now.len().abs_diff(before.len()), 1, "one voter at a time");
        prop_assert!(has_majority(&now, up), "{:?} → {:?} with {:?} up", before, now, up);
    }
    Ok(now.into_iter().collect())
}

proptest! {
    /// From any voters that have a majority, each step keeps it; if all that is wanted is up, the steps get there.
    #[test]
    fn steps_keep_the_majority_and_reach_the_goal(
        real in proptest::collection::btree_set(1_u64..9, 1..6),
        wanted in proptest::collection::btree_set(1_u64..9, 1..6),
        up in proptest::collection::btree_set(1_u64..9, 1..9),
    ) {
        let start: Vec<NodeId> = real.iter().copied().collect();
        prop_assume!(has_majority(&start, &up));
        let wanted: Vec<NodeId> = wanted.into_iter().collect();
        let end = walk(&real, &wanted, &up)?;
        if wanted.iter().all(|node| up.contains(node)) {
            prop_assert_eq!(end, wanted.into_iter().collect::<BTreeSet<_>>());
        }
    }

    /// While nodes come, go and fall silent, every placement is of present nodes, as many as there can be, and no
    /// partition that has mail is forgotten.
    #[test]
    fn placements_follow_the_members(
        away in proptest::collection::btree_set(1_u64..8, 0..4),
        leaving in proptest::collection::btree_set(1_u64..8, 0..4),
        five in any::<bool>(),
    ) {
        let mut state = cluster(7);
        state.partitions = misplaced(&state).into_iter().collect();
        state.settings.voters = if five { 5 } else { 0 };
        state.away = away.iter().map(|n| (*n, pb::Away { node: *n, since_ms: 1 })).collect();
        for node in &leaving {
            state.removals.insert(*node, pb::Removal { node: *node, ..pb::Removal::default() });
        }
        let present = state.present();
        prop_assume!(!present.is_empty());
        let placed = misplaced(&state);
        state.partitions.extend(placed);
        prop_assert_eq!(state.partitions.len(), 7);
        for (id, voters) in &state.partitions {
            prop_assert!(voters.iter().all(|node| present.contains(node)));
            prop_assert_eq!(voters.len(), state.voters().min(present.len()));
            let home = NodeId::from(*id);
            prop_assert!(!present.contains(&home) || voters[0] == home);
        }
        prop_assert!(misplaced(&state).is_empty());
    }
}
