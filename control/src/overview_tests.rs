use super::*;
use crate::state::tests::cluster;

fn report(node: NodeId, leads: &[u32], term: u64) -> (NodeId, pb::NodeReport) {
    let groups = (0..4)
        .map(|id| pb::GroupReport {
            id,
            term,
            leads: leads.contains(&id),
            voters: vec![1, 2, 3],
            ..pb::GroupReport::default()
        })
        .collect();
    (node, pb::NodeReport { node, groups, ..pb::NodeReport::default() })
}

fn placed() -> State {
    let mut state = cluster(3);
    state.partitions = (1..=3).map(|id| (id, vec![1, 2, 3])).collect();
    state
}

#[test]
fn the_leader_of_the_highest_term_counts() {
    let reports = [report(1, &[1], 4), report(2, &[1, 2], 5), report(3, &[], 5)].into();
    assert_eq!(group_status(1, &placed(), &reports).leader, 2);
    assert_eq!(group_status(3, &placed(), &reports).leader, 0, "nobody says that it leads");
}

#[test]
fn a_drain_needs_an_heir_that_is_up_and_not_drained() {
    let mut state = placed();
    let all = [report(1, &[1], 1), report(2, &[2], 1), report(3, &[3], 1)].into();
    assert_eq!(drain_is_safe(1, &state, &all), Ok(()));
    let alone: BTreeMap<_, _> = [report(1, &[1], 1)].into();
    assert!(drain_is_safe(1, &state, &alone).is_err());
    assert!(drain_is_safe(2, &state, &alone).unwrap_err().contains("does not answer"));
    for other in [2, 3] {
        state.drains.insert(other, pb::Drain::default());
    }
    assert!(drain_is_safe(1, &state, &all).is_err());
}

#[test]
fn a_node_is_up_down_draining_or_drained() {
    let mut state = placed();
    let mut reports: BTreeMap<_, _> = [report(1, &[], 1), report(2, &[], 1)].into();
    let word = |state: &State, reports: &BTreeMap<_, _>, node: NodeId| {
        node_status(&state.members[&node], state, reports).state
    };
    assert_eq!(word(&state, &reports, 1), "up");
    assert_eq!(word(&state, &reports, 3), "down");
    state.drains.insert(2, pb::Drain::default());
    assert_eq!(word(&state, &reports, 2), "draining");
    let safe = pb::DrainProgress { phase: Phase::Safe.into(), ..pb::DrainProgress::default() };
    reports.get_mut(&2).unwrap().drain = Some(safe);
    assert_eq!(word(&state, &reports, 2), "drained");
}

/// Reports of these nodes about groups 0 to 3: each group is led by the first of them that votes in it.
fn cluster_of(voters: &[(u32, &[NodeId])], up: &[NodeId]) -> Reports {
    let of = |node: &NodeId| {
        let groups = voters.iter().filter(|(_, all)| all.contains(node)).map(|(id, all)| {
            let leader = up.iter().find(|n| all.contains(n));
            let alive = all.iter().filter(|n| up.contains(n)).count();
            pb::GroupReport {
                id: *id,
                term: 3,
                leads: leader == Some(node) && 2 * alive > all.len(),
                voters: all.to_vec(),
                ..pb::GroupReport::default()
            }
        });
        let groups = groups.collect();
        (*node, pb::NodeReport { node: *node, groups, ..pb::NodeReport::default() })
    };
    up.iter().map(of).collect()
}

const ALL: &[NodeId] = &[1, 2, 3];
const EVERYWHERE: &[(u32, &[NodeId])] = &[(0, ALL), (1, ALL), (2, ALL), (3, ALL)];

fn refusal(node: NodeId, force: bool, state: &State, reports: &Reports) -> String {
    removal_is_safe(node, force, state, reports).err().unwrap_or_default()
}

#[test]
fn a_removal_keeps_every_majority() {
    let mut state = placed();
    let all = cluster_of(EVERYWHERE, ALL);
    assert_eq!(removal_is_safe(3, false, &state, &all), Ok(()));
    assert!(refusal(1, false, &state, &all).contains("CA's key"));
    state.members.get_mut(&2).unwrap().signs = true;
    assert_eq!(removal_is_safe(1, false, &state, &all), Ok(()));
    assert!(refusal(9, false, &state, &all).contains("no node 9"));
    assert!(refusal(3, true, &state, &all).contains("answers"));

    let two = cluster_of(EVERYWHERE, &[1, 2]);
    assert!(refusal(3, false, &state, &two).contains("use --force"));
    assert_eq!(removal_is_safe(3, true, &state, &two), Ok(()));
    let text = refusal(2, false, &state, &two);
    assert!(text.contains("the control group would have no majority without node 2"), "{text}");
    let one = cluster_of(EVERYWHERE, &[1]);
    let text = refusal(3, true, &state, &one);
    assert!(text.contains("would lose its majority") && text.contains("[1]"), "{text}");
    // Only one partition is in danger: it is named.
    let uneven: &[(u32, &[NodeId])] = &[(0, ALL), (1, ALL), (2, &[2, 3]), (3, ALL)];
    let text = refusal(3, true, &state, &cluster_of(uneven, &[1, 2]));
    assert!(text.contains("partition 2 would lose its majority"), "{text}");

    for gone in [2, 3] {
        state.removals.insert(gone, pb::Removal::default());
    }
    assert!(refusal(1, false, &state, &all).contains("the last one"));
}

#[test]
fn a_node_leaves_when_every_leader_says_that_it_has_nothing() {
    let mut state = placed();
    state.removals.insert(3, pb::Removal::default());
    assert!(departures(&state, &cluster_of(EVERYWHERE, ALL)).is_empty());
    let rest: &[NodeId] = &[1, 2];
    state.partitions = (1..=3).map(|id| (id, rest.to_vec())).collect();
    let moved: &[(u32, &[NodeId])] = &[(0, rest), (1, rest), (2, rest), (3, rest)];
    assert_eq!(departures(&state, &cluster_of(moved, ALL)), [3]);
    let one_left: &[(u32, &[NodeId])] = &[(0, rest), (1, rest), (2, ALL), (3, rest)];
    assert!(departures(&state, &cluster_of(one_left, ALL)).is_empty());
    assert_eq!(groups_on(3, &state, &cluster_of(one_left, ALL)), [2]);
    let mut leaderless = cluster_of(moved, ALL);
    for report in leaderless.values_mut() {
        report.groups.iter_mut().filter(|g| g.id == 1).for_each(|g| g.leads = false);
    }
    assert!(departures(&state, &leaderless).is_empty(), "nobody knows what partition 1 has");
}

#[test]
fn a_partition_is_retired_when_nothing_is_in_it_and_nothing_can_get_in() {
    let rest: &[NodeId] = &[1, 2];
    let mut state = placed();
    let groups: &[(u32, &[NodeId])] = &[(0, rest), (1, rest), (2, rest), (3, rest)];
    let with = |idle: bool, accepts: [bool; 2]| {
        let mut reports = cluster_of(groups, rest);
        for (report, accepts) in reports.values_mut().zip(accepts) {
            let third = report.groups.iter_mut().find(|group| group.id == 3).unwrap();
            (third.idle, third.accepts) = (third.leads && idle, accepts);
        }
        reports
    };
    let quiet = with(true, [false, false]);
    assert!(retirements(&state, &quiet).is_empty(), "its home is a member");
    state.removals.insert(3, pb::Removal::default());
    assert_eq!(retirements(&state, &quiet), [3]);
    assert!(retirements(&state, &with(false, [false, false])).is_empty());
    assert!(retirements(&state, &with(true, [false, true])).is_empty(), "the other might lead");
    let mut silent = with(true, [false, false]);
    silent.remove(&2);
    assert!(retirements(&state, &silent).is_empty(), "who knows what node 2 takes");
}
