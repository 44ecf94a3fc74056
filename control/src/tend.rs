//! The steps of one group: its voters towards the wanted ones, its leadership towards its home, its replica away from a
//! node that is not to have one.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ppsw_proto::control as pb;
use ppsw_spool::{NodeId, PartitionId, group::Group, queue::Partition};
use tokio::{sync::watch, time::sleep};

use crate::{
    drain, limits,
    placement::{self, Step},
    plane::{CONTROL, Shared},
    state::State,
};

/// Whether a group has the voters that it should have, in any order.
pub(crate) fn same(voters: &[NodeId], wanted: &[NodeId]) -> bool {
    voters.len() == wanted.len() && voters.iter().all(|node| wanted.contains(node))
}

/// One change of a group's voters, if one is due and safe now.
pub(crate) async fn step_towards(
    shared: &Shared,
    group: &Group,
    wanted: &[NodeId],
    round: usize,
) -> bool {
    let voters = group.status().voters;
    let up = shared.answering(voters.iter().chain(wanted).copied().collect::<BTreeSet<_>>()).await;
    let Some(step) = placement::next_step(&voters, wanted, shared.node, &up, round) else {
        return false;
    };
    let mut view = shared.view.subscribe();
    tokio::select! {
        () = take_step(group, step) => {}
        // The next state may want another voter, and the one that was to come may have no replica any more: then the
        // wait for it would last to its deadline. A change that was proposed already counts or not; the next look tells.
        () = until_unwanted(&mut view, group.id(), step) => {
            tracing::info!(group = group.id(), ?step, "no longer wanted");
        }
    }
    true
}

/// Returns when the state of the cluster doesn't want the voter any more that is being added.
async fn until_unwanted(view: &mut watch::Receiver<Arc<State>>, group: PartitionId, step: Step) {
    let wanted = |state: &Arc<State>| {
        let Step::Add(node) = step else { return true };
        if group == CONTROL {
            return placement::control_voters(&state.present()).contains(&node);
        }
        state.partitions.get(&group).is_some_and(|voters| voters.contains(&node))
    };
    // The sender lives in `Shared`, which the caller holds.
    let _ = view.wait_for(|state| !wanted(state)).await;
}

/// One change of a group's voters.
async fn take_step(group: &Group, step: Step) {
    let changed = match step {
        Step::Add(node) => group.add_voter(node, limits::VOTER_CHANGE_DEADLINE).await,
        Step::Remove(node) => group.remove_voter(node, limits::VOTER_CHANGE_DEADLINE).await,
    };
    match changed {
        Ok(()) => tracing::info!(group = group.id(), ?step, "voters changed"),
        Err(error) => tracing::warn!(group = group.id(), ?step, %error, "voters not changed"),
    }
}

/// The next step for a partition that this node leads.
pub(crate) async fn tend(
    shared: Arc<Shared>,
    partition: Partition,
    state: Arc<State>,
    wanted: Vec<NodeId>,
    round: usize,
) {
    let group = partition.group();
    let status = group.status();
    if wanted.is_empty() {
        return;
    }
    if !same(&status.voters, &wanted) && step_towards(&shared, &group, &wanted, round).await {
        return;
    }
    if let Some(stray) = status.learners.iter().find(|node| !wanted.contains(node)) {
        return take_step(&group, Step::Remove(*stray)).await;
    }
    let to = if wanted.contains(&shared.node) {
        home_to_go_to(&shared, &partition, &state).await
    } else {
        let status = group.status();
        let matched = |node| status.matched.get(&node).copied().flatten();
        let heirs = placement::heirs(&wanted, &status.voters, matched);
        heirs.into_iter().find(|node| group.transfer_is_possible(*node))
    };
    if let Some(to) = to
        && let Err(error) = drain::give(&shared, &partition, to).await
    {
        tracing::warn!(partition = partition.id(), to, %error, "not handed over");
        // Keeps this partition's turn, and so the next try, for a while.
        sleep(limits::HANDOVER_RETRY).await;
    }
}

/// The home node of a partition that is led away from home, if it is fit to take it.
async fn home_to_go_to(shared: &Shared, partition: &Partition, state: &State) -> Option<NodeId> {
    let home = NodeId::from(partition.id());
    if home == shared.node || !state.members.contains_key(&home) || state.drained(home) {
        return None;
    }
    let status = partition.group().status();
    let matched = status.matched.get(&home).copied().flatten()?;
    let last = status.last_index.unwrap_or(0);
    if !status.voters.contains(&home) || matched + limits::HOME_LAG_ENTRIES < last {
        return None;
    }
    // Not if the node has just gone away again, or is about to be drained.
    let report = shared.ask(home).await?;
    let there = report.groups.iter().find(|group| group.id == partition.id())?;
    let willing = report.drain.is_none_or(|drain| drain.phase() == pb::drain_progress::Phase::None);
    let applied = there.applied_index.unwrap_or(0) + limits::HOME_LAG_ENTRIES >= last;
    (willing && applied).then_some(home)
}

/// Forgets a replica that is not wanted here any more, once the group's leader says that it has no part in it.
pub(crate) async fn retire(shared: Arc<Shared>, partition: PartitionId, wanted: Vec<NodeId>) {
    for node in wanted {
        let Some(report) = shared.ask(node).await else { continue };
        let led = report.groups.iter().find(|group| group.id == partition && group.leads);
        let Some(group) = led else { continue };
        if group.voters.contains(&shared.node) || group.learners.contains(&shared.node) {
            break;
        }
        return forget(&shared, partition, "a replica is not wanted here any more").await;
    }
    sleep(Duration::from_secs(5)).await;
}

pub(crate) async fn forget(shared: &Shared, partition: PartitionId, why: &str) {
    match shared.spool.close(partition).await {
        Ok(()) => tracing::info!(partition, why, "replica forgotten"),
        Err(error) => tracing::error!(partition, %error, "cannot forget a replica"),
    }
}
