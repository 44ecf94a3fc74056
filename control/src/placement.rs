//! Which nodes should carry which partition, and the next safe step towards it. Pure.

use std::{cmp::Reverse, collections::BTreeSet};

use ppsw_spool::{NodeId, PartitionId};

use crate::{limits, state::State};

/// One change of a group's voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Add(NodeId),
    Remove(NodeId),
}

/// The home node and the nodes that follow it in the ring of node numbers, of those that are present; `count` in all,
/// or all if there are fewer. If home is not present, its partition lives on those that follow.
#[must_use]
pub fn wanted_voters(home: NodeId, present: &BTreeSet<NodeId>, count: usize) -> Vec<NodeId> {
    present.range(home..).chain(present.range(..home)).copied().take(count).collect()
}

/// The oldest nodes that are present vote in the control group.
#[must_use]
pub fn control_voters(present: &BTreeSet<NodeId>) -> Vec<NodeId> {
    present.iter().copied().take(limits::CONTROL_VOTERS_MAX).collect()
}

/// Placements that are not as they should be: partition and wanted voters.
#[must_use]
pub fn misplaced(state: &State) -> Vec<(PartitionId, Vec<NodeId>)> {
    let present = state.present();
    if present.is_empty() {
        return Vec::new();
    }
    // A partition begins when its home node is there, and is kept until it is retired.
    let new = present.iter().filter_map(|home| PartitionId::try_from(*home).ok());
    let all: BTreeSet<PartitionId> = new.chain(state.partitions.keys().copied()).collect();
    all.into_iter()
        .map(|id| (id, wanted_voters(id.into(), &present, state.voters())))
        .filter(|(id, wanted)| state.partitions.get(id) != Some(wanted))
        .collect()
}

/// The next change of a group's voters towards the wanted ones, one voter at a time. `up` are the nodes that answer.
///
/// 1. A dead voter that is not wanted goes first: that costs nothing, and may make a majority easier.
/// 2. Then what is missing comes, if it is up: so a group gets its new replicas before it loses the old ones.
/// 3. Then the others that are not wanted go, if those that are left and up are a majority of what is left.
///
/// The leader itself is never removed (it hands over first). `round` turns through the candidates, so that one that does
/// not catch up does not keep the others out.
#[must_use]
pub fn next_step(
    real: &[NodeId],
    wanted: &[NodeId],
    leader: NodeId,
    up: &BTreeSet<NodeId>,
    round: usize,
) -> Option<Step> {
    let surplus = || real.iter().copied().filter(|n| !wanted.contains(n) && *n != leader);
    if let Some(dead) = surplus().find(|node| !up.contains(node)) {
        return Some(Step::Remove(dead));
    }
    let missing: Vec<NodeId> =
        wanted.iter().copied().filter(|n| !real.contains(n) && up.contains(n)).collect();
    if !missing.is_empty() {
        return missing.get(round % missing.len()).copied().map(Step::Add);
    }
    let fits = |node: NodeId| {
        let left: Vec<NodeId> = real.iter().copied().filter(|n| *n != node).collect();
        has_majority(&left, up)
    };
    // As long as a wanted one is missing (it is down), the old replica is worth more than the order.
    let complete = wanted.iter().all(|node| real.contains(node));
    surplus().find(|node| complete && fits(*node)).map(Step::Remove)
}

/// Whether enough of the voters are up to commit anything.
#[must_use]
pub fn has_majority(voters: &[NodeId], up: &BTreeSet<NodeId>) -> bool {
    2 * voters.iter().filter(|node| up.contains(node)).count() > voters.len()
}

/// To whom a leader that is not wanted in its group should hand over, best first: the wanted order, what lacks least.
#[must_use]
pub fn heirs(
    wanted: &[NodeId],
    voters: &[NodeId],
    matched: impl Fn(NodeId) -> Option<u64>,
) -> Vec<NodeId> {
    let mut heirs: Vec<NodeId> = wanted.iter().copied().filter(|n| voters.contains(n)).collect();
    heirs.sort_by_key(|node| Reverse(matched(*node)));
    heirs
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
