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
