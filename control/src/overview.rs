//! What the reports of all nodes say together: who leads which group, what lies on which node, and what may be taken away
//! without harm. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ppsw_proto::control::{self as pb, drain_progress::Phase};
use ppsw_spool::{NodeId, PartitionId};

use crate::{
    placement::{self, has_majority},
    plane::CONTROL,
    state::State,
};

/// What each node that answered said.
pub(crate) type Reports = BTreeMap<NodeId, pb::NodeReport>;

/// A group as its leader of the highest term tells, else as its most advanced replica does.
pub(crate) fn group_status(id: u32, state: &State, reports: &Reports) -> pb::GroupStatus {
    let wanted = state.partitions.get(&id).cloned().unwrap_or_default();
    let orphaned = id != CONTROL && state.is_orphan(id);
    let best = replicas(id, reports)
        .max_by_key(|(_, group)| (group.leads, group.term, group.applied_index));
    let Some((node, group)) = best else {
        return pb::GroupStatus { id, wanted, orphaned, ..pb::GroupStatus::default() };
    };
    pb::GroupStatus {
        id,
        // A follower's belief may be old: only a node that says itself that it leads counts.
        leader: if group.leads { node } else { 0 },
        voters: group.voters.clone(),
        learners: group.learners.clone(),
        wanted,
        term: group.term,
        messages: group.messages,
        orphaned,
    }
}

/// All groups that there should be: the control group first.
pub(crate) fn groups(state: &State) -> impl Iterator<Item = u32> + '_ {
    std::iter::once(CONTROL).chain(state.partitions.keys().copied())
}

/// A node, with what is still on it.
pub(crate) fn node_status(member: &pb::Member, state: &State, reports: &Reports) -> pb::NodeStatus {
    let report = reports.get(&member.id).cloned();
    let drain = state.drains.get(&member.id).cloned();
    let removal = state.removals.get(&member.id).cloned();
    let phase = report.as_ref().and_then(|r| r.drain.as_ref()).map(pb::DrainProgress::phase);
    let word = match (&report, &drain) {
        _ if removal.is_some() => "removing",
        _ if !member.started => "joined",
        (None, _) => "down",
        (Some(_), None) => "up",
        (Some(_), Some(_)) if phase == Some(Phase::Safe) => "drained",
        (Some(_), Some(_)) => "draining",
    };
    pb::NodeStatus {
        member: Some(member.clone()),
        state: word.to_owned(),
        drain,
        report,
        removal,
        away: state.away.get(&member.id).copied(),
        groups: groups_on(member.id, state, reports),
    }
}

/// Groups that have a replica on a node, as far as their leaders say. A group without a leader counts if any of its
/// replicas knows the node.
pub(crate) fn groups_on(node: NodeId, state: &State, reports: &Reports) -> Vec<u32> {
    let on = |id: &u32| {
        let status = group_status(*id, state, reports);
        let told = |group: &pb::GroupReport| {
            group.voters.contains(&node) || group.learners.contains(&node)
        };
        if status.leader == 0 {
            return replicas(*id, reports).any(|(_, group)| told(group))
                || state.partitions.get(id).is_some_and(|voters| voters.contains(&node));
        }
        status.voters.contains(&node) || status.learners.contains(&node)
    };
    groups(state).filter(on).collect()
}

/// Nodes that are leaving and have nothing on them any more.
pub(crate) fn departures(state: &State, reports: &Reports) -> Vec<NodeId> {
    // Without its leader's word, nobody knows what a group's voters are.
    let led = |id| group_status(id, state, reports).leader != 0 || is_unborn(id, state, reports);
    if !groups(state).all(led) {
        return Vec::new();
    }
    let free = |node: &NodeId| {
        groups_on(*node, state, reports).is_empty()
            && !state.partitions.values().any(|voters| voters.contains(node))
    };
    state.removals.keys().copied().filter(free).collect()
}

/// Partitions without a home that can be forgotten: empty, and nothing can get into them. All voters have to say that
/// they take nothing new, so that whoever is elected next does not either.
pub(crate) fn retirements(state: &State, reports: &Reports) -> Vec<PartitionId> {
    let empty = |id: &PartitionId| {
        let leader = replicas(*id, reports)
            .filter(|(_, group)| group.leads)
            .max_by_key(|(_, group)| group.term);
        let Some((_, leader)) = leader else {
            return state.has_left((*id).into()) && is_unborn(*id, state, reports);
        };
        let closed = |node: &NodeId| {
            let replica = replicas(*id, reports).find(|(at, _)| at == node);
            replica.is_some_and(|(_, group)| !group.accepts)
        };
        leader.idle && leader.voters.iter().all(closed)
    };
    state.partitions.keys().copied().filter(|id| state.is_orphan(*id) && empty(id)).collect()
}

/// A partition that never had a voter: its home node left before it made it.
fn is_unborn(id: u32, state: &State, reports: &Reports) -> bool {
    let mut wanted = state.partitions.get(&id).into_iter().flatten();
    let blank = |node: &NodeId| {
        let replica = replicas(id, reports).find(|(at, _)| at == node);
        replica.is_some_and(|(_, group)| group.voters.is_empty() && group.term == 0)
    };
    id != CONTROL && state.is_orphan(id) && wanted.all(blank)
}

fn replicas(id: u32, reports: &Reports) -> impl Iterator<Item = (NodeId, &pb::GroupReport)> {
    reports.iter().flat_map(move |(node, report)| {
        report.groups.iter().filter(move |group| group.id == id).map(move |group| (*node, group))
    })
}

/// Whether each partition that the node carries, and the control group, keeps a majority and a possible leader.
pub(crate) fn drain_is_safe(node: NodeId, state: &State, reports: &Reports) -> Result<(), String> {
    if !reports.contains_key(&node) {
        return Err(format!(
            "node {node} does not answer, so it cannot hand anything over; other nodes take over what it led by \
             themselves. To keep it from coming back into service, use --force"
        ));
    }
    for partition in state.partitions.keys() {
        let now = group_status(*partition, state, reports);
        if !now.voters.contains(&node) {
            continue;
        }
        let heirs = now
            .voters
            .iter()
            .filter(|other| **other != node && reports.contains_key(*other))
            .filter(|other| !state.drained(**other));
        if heirs.count() == 0 {
            return Err(format!(
                "no other node can take partition {partition}: of its voters {:?} only node {node} is up and not \
                 drained. Start another one, or join one and wait until `ppswctl status` shows it as a voter",
                now.voters
            ));
        }
    }
    Ok(())
}

/// Whether a node may leave for good. `force` says that it never comes back.
pub(crate) fn removal_is_safe(
    node: NodeId,
    force: bool,
    state: &State,
    reports: &Reports,
) -> Result<(), String> {
    let Some(member) = state.members.get(&node) else {
        return Err(format!("there is no node {node}: `ppswctl node list` shows all"));
    };
    if state.staying().all(|other| other == node) {
        return Err(format!(
            "node {node} is the last one, and nobody could take its queue: to end the cluster, stop it"
        ));
    }
    if !member.started {
        return Ok(());
    }
    match (reports.contains_key(&node), force) {
        (true, true) => {
            return Err(format!(
                "node {node} answers, and --force is for one that never comes back: without it, the node hands over \
                 what it has"
            ));
        }
        (false, false) => {
            return Err(format!(
                "node {node} does not answer, so it cannot hand anything over: start it, or use --force if it never \
                 comes back"
            ));
        }
        _ => {}
    }
    let signs = |other: &NodeId| {
        *other != node && (state.members[other].signs || *other == state.authority)
    };
    if !force && !state.staying().any(|other| signs(&other)) {
        return Err(format!(
            "node {node} is the only one with the CA's key, and without it no machine can join: copy \
             identity/ca-key.pem of its data directory into that of another node, and restart that one"
        ));
    }
    loss_is_safe(node, !reports.contains_key(&node), state, reports)
}

/// Whether every group that a node votes in can still commit the change of voters that removes it, and has a majority
/// afterwards. `lost` says that the node itself counts as down.
pub(crate) fn loss_is_safe(
    node: NodeId,
    lost: bool,
    state: &State,
    reports: &Reports,
) -> Result<(), String> {
    let up: BTreeSet<NodeId> = reports.keys().copied().filter(|n| !lost || *n != node).collect();
    for id in groups(state) {
        let now = group_status(id, state, reports);
        if !now.voters.contains(&node) {
            continue;
        }
        let present: BTreeSet<NodeId> =
            state.present().into_iter().filter(|other| *other != node).collect();
        let (name, next) = if id == CONTROL {
            ("the control group".to_owned(), placement::control_voters(&present))
        } else {
            let next = placement::wanted_voters(id.into(), &present, state.voters());
            (format!("partition {id}"), next)
        };
        let alive = |voters: &[NodeId]| -> Vec<NodeId> {
            voters.iter().copied().filter(|n| up.contains(n)).collect()
        };
        if !has_majority(&now.voters, &up) {
            return Err(format!(
                "{name} would lose its majority: of its voters {:?} only {:?} are up without node {node}. Start another \
                 of them first",
                now.voters,
                alive(&now.voters)
            ));
        }
        if !has_majority(&next, &up) {
            return Err(format!(
                "{name} would have no majority without node {node}: it would move to {next:?}, of which only {:?} are \
                 up. Start the others, or remove those that never come back first",
                alive(&next)
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "overview_tests.rs"]
mod tests;
