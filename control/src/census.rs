//! What the control leader does about its members: notices who has been silent for too long, lets nodes that are leaving
//! go when nothing is on them any more, and retires partitions that have no home and are empty. Everything that it
//! decides is a command to the control group; after a change of leader the next one finds the same facts again.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use ppsw_proto::control::{self as pb, command::Change};
use ppsw_spool::{NodeId, env::UnixMs};
use tokio::time::sleep;

use crate::{
    events::Kind,
    limits,
    overview::{self, Reports},
    plane::Shared,
    state::State,
};

/// Runs until the plane stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut census = Census::default();
    let stop = shared.stop.clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(limits::CENSUS_INTERVAL) => {}
        }
        if !shared.control.leads() {
            census = Census::default();
            // Who leads says it now.
            count(&State::default());
            continue;
        }
        let state = shared.state();
        if !state.known() {
            continue;
        }
        let reports = shared.ask_all(&state).await;
        let now = shared.now();
        let mut changes = census.look(shared.clock.instant(), now, &state, &reports);
        census.told(&state).into_iter().for_each(|event| shared.tell(event));
        changes.extend(overview::departures(&state, &reports).into_iter().map(|node| {
            tracing::info!(node, "nothing is on this node any more: it leaves");
            Change::FinishRemoval(pb::FinishRemoval { node, at_ms: now.0 })
        }));
        changes.extend(overview::retirements(&state, &reports).into_iter().map(|partition| {
            tracing::info!(partition, "its home has left and it is empty: retired");
            Change::RetirePartition(pb::RetirePartition { partition })
        }));
        for change in changes {
            if let Err(error) = shared.command(change).await {
                tracing::warn!(%error, "a change of the members was not made");
            }
        }
        count(&state);
    }
}

fn count(state: &State) {
    metrics::gauge!("ppsw_away_nodes").set(state.away.len() as f64);
    metrics::gauge!("ppsw_leaving_nodes").set(state.removals.len() as f64);
}

/// Who answered when, since this node leads the control group.
#[derive(Debug, Default)]
struct Census {
    heard: BTreeMap<NodeId, Heard>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    /// The last answer, or the first question.
    at: Instant,
    /// Answers since then without a miss.
    answers: u32,
    /// Misses since the last answer.
    misses: u32,
    /// It was told that it does not answer.
    told: bool,
}

impl Census {
    /// Takes one round of reports; gives what has to change.
    fn look(
        &mut self,
        now: Instant,
        wall: UnixMs,
        state: &State,
        reports: &Reports,
    ) -> Vec<Change> {
        self.heard.retain(|node, _| state.members.contains_key(node));
        let mut changes = Vec::new();
        for (node, member) in &state.members {
            let heard = self.heard.entry(*node).or_insert(Heard {
                at: now,
                answers: 0,
                misses: 0,
                told: false,
            });
            let away = state.away.contains_key(node);
            let set = |away| Change::SetAway(pb::SetAway { node: *node, away, at_ms: wall.0 });
            if reports.contains_key(node) {
                let answers = heard.answers.saturating_add(1);
                *heard = Heard { at: now, answers, misses: 0, ..*heard };
                if away && heard.answers >= limits::ANSWERS_TO_RETURN {
                    tracing::info!(node, "answers again: it gets its votes back");
                    changes.push(set(false));
                }
                continue;
            }
            heard.answers = 0;
            heard.misses = heard.misses.saturating_add(1);
            let silent = now.saturating_duration_since(heard.at);
            if member.started && !away && silent >= patience(*node, state, reports) {
                tracing::warn!(node, ?silent, "silent for too long: others take its votes");
                changes.push(set(true));
            }
        }
        changes
    }

    /// Who does not answer any more, and who does again, since the last round.
    fn told(&mut self, state: &State) -> Vec<pb::Event> {
        let mut events = Vec::new();
        for (node, heard) in &mut self.heard {
            let started = state.members.get(node).is_some_and(|member| member.started);
            if !heard.told && started && heard.misses >= limits::UNREACHABLE_MISSES {
                events.push(Kind::NodeUnreachable.of(*node));
                heard.told = true;
            } else if heard.told && heard.misses == 0 {
                events.push(Kind::NodeBack.of(*node));
                heard.told = false;
            }
        }
        events
    }
}

/// How long a node may be silent: less if the others have to keep much of their logs for it.
fn patience(node: NodeId, state: &State, reports: &Reports) -> Duration {
    let lags = reports.values().flat_map(|report| &report.groups).flat_map(|group| &group.lags);
    let pinned = lags.filter(|lag| lag.node == node).map(|lag| lag.bytes).max().unwrap_or(0);
    if pinned > limits::PINNED_BYTES_MAX {
        state.replace_after().min(limits::PINNED_PATIENCE)
    } else {
        state.replace_after()
    }
}

#[cfg(test)]
mod tests {
    use ppsw_spool::env::{Clock as _, SystemClock};

    use super::*;
    use crate::state::tests::cluster;

    const WALL: UnixMs = UnixMs(7);

    fn reports(nodes: &[NodeId], lag: Option<(NodeId, u64)>) -> Reports {
        let lags = lag.map(|(node, bytes)| pb::Lag { node, bytes }).into_iter().collect();
        let group = pb::GroupReport { id: 1, lags, ..pb::GroupReport::default() };
        let report = pb::NodeReport { groups: vec![group], ..pb::NodeReport::default() };
        nodes.iter().map(|node| (*node, report.clone())).collect()
    }

    fn away(change: &[Change]) -> Vec<(NodeId, bool)> {
        let told = change.iter().map(|change| match change {
            Change::SetAway(set) => (set.node, set.away),
            other => panic!("{other:?}"),
        });
        told.collect()
    }

    #[test]
    fn a_silent_node_is_away_after_its_time_and_back_after_some_answers() {
        let mut state = cluster(3);
        let (mut census, start) = (Census::default(), SystemClock.instant());
        let limit = state.replace_after();
        let second = Duration::from_secs(1);
        let mut look = |state: &State, after: Duration, up: &[NodeId]| {
            away(&census.look(start + after, WALL, state, &reports(up, None)))
        };
        assert_eq!(look(&state, Duration::ZERO, &[1, 2, 3]), []);
        assert_eq!(look(&state, limit - second, &[1, 2]), []);
        assert_eq!(look(&state, limit, &[1, 2]), [(3, true)]);
        state.away.insert(3, pb::Away { node: 3, since_ms: 1 });
        assert_eq!(look(&state, limit + second, &[1, 2]), []);
        assert_eq!(look(&state, limit + 2 * second, &[1, 2, 3]), []);
        assert_eq!(look(&state, limit + 3 * second, &[1, 2]), []);
        for _ in 1..limits::ANSWERS_TO_RETURN {
            assert_eq!(look(&state, limit + 4 * second, &[1, 2, 3]), []);
        }
        assert_eq!(look(&state, limit + 5 * second, &[1, 2, 3]), [(3, false)]);
    }

    #[test]
    fn it_is_told_once_who_does_not_answer_and_once_who_is_back() {
        let state = cluster(3);
        let (mut census, now) = (Census::default(), SystemClock.instant());
        let mut round = |up: &[NodeId]| {
            census.look(now, WALL, &state, &reports(up, None));
            let told = census.told(&state);
            told.into_iter().map(|event| (event.event, event.node)).collect::<Vec<_>>()
        };
        assert_eq!(round(&[1, 2]), [], "one miss is nothing");
        assert_eq!(round(&[1, 2]), [("node_unreachable".to_owned(), 3)]);
        assert_eq!(round(&[1, 2]), []);
        assert_eq!(round(&[1, 2, 3]), [("node_back".to_owned(), 3)]);
        assert_eq!(round(&[1, 2, 3]), []);
    }

    #[test]
    fn one_that_pins_much_log_is_away_sooner_and_a_new_leader_waits_anew() {
        let state = cluster(3);
        let start = SystemClock.instant();
        let much = Some((3, limits::PINNED_BYTES_MAX + 1));
        let mut census = Census::default();
        let mut look =
            |after, lag| census.look(start + after, WALL, &state, &reports(&[1, 2], lag));
        assert!(look(Duration::ZERO, much).is_empty());
        assert!(look(limits::PINNED_PATIENCE, Some((3, limits::PINNED_BYTES_MAX))).is_empty());
        assert_eq!(away(&look(limits::PINNED_PATIENCE, much)), [(3, true)]);
        let mut next = Census::default();
        let later = start + 10 * limits::REPLACE_AFTER;
        assert!(next.look(later, WALL, &state, &reports(&[1, 2], None)).is_empty());
    }
}
