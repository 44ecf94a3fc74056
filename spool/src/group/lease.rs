//! The lease: how a leader knows, without asking, that nobody else leads.
//!
//! A follower that hears from its leader grants no vote for one longest election time-out from then on. So a leader
//! whose newest request that a majority answered was *sent* less than that ago, is the only one. openraft keeps that
//! sending time; looking at it costs no message. Two things end the promise early, and have to be known here: a
//! transfer (the followers vote at once for the one who was asked to take over), and a follower that starts again
//! and has forgotten when it last heard from the leader (see [`Probation`]).

use std::time::{Duration, Instant as StdInstant};

use openraft::{Instant, RaftMetrics};

use super::{Timing, types::TypeConfig};
use crate::limits;

/// What decides on the lease beside openraft's own state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// The term in which the machine was told that it leads; 0: it was not.
    pub(super) led_term: u64,
    /// The newest term in which this replica has asked another one to take over; 0: none.
    pub(super) handed_over: u64,
}

/// Whether a replica in this state holds the lease now.
pub(super) fn holds(metrics: &RaftMetrics<TypeConfig>, claim: Claim, timing: Timing) -> bool {
    let vote = &metrics.vote;
    let leads = metrics.running_state.is_ok()
        && metrics.state.is_leader()
        && vote.committed
        && vote.leader_id.voted_for == metrics.id
        && vote.leader_id.term == claim.led_term;
    // What was said in a transfer cannot be taken back: the one who was asked may campaign at any later time,
    // so a leader that began to hand over never holds the lease again in this term.
    if !leads || claim.led_term == 0 || claim.handed_over >= claim.led_term {
        return false;
    }
    let mut voters = metrics.membership_config.voter_ids();
    if voters.next() == Some(metrics.id) && voters.next().is_none() {
        // Nobody else could be elected, and nobody answers either.
        return true;
    }
    // openraft takes an answer as one to news of a commit, too, that it made before the answer came and that is kept back
    // (`news.rs`). The promise may be as old as the follower's last heartbeat then, which comes up to a tick late.
    let lease = timing.election_max.saturating_sub(2 * timing.heartbeat + limits::LEASE_MARGIN);
    // `None`: no answer yet in this term, for instance after a restart. The age is measured by the clock that
    // stamped it, openraft's.
    metrics.last_quorum_acked.is_some_and(|at| at.elapsed() < lease)
}

/// The time after a start in which a replica that may have heard from a leader before neither votes nor campaigns:
/// that leader counts on it for one longest election time-out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probation {
    until: Option<StdInstant>,
}

impl Probation {
    /// `has_voted`: the log of the replica holds a vote.
    pub(super) fn new(has_voted: bool, now: StdInstant, timing: Timing) -> Self {
        Self { until: has_voted.then(|| now + timing.election_max) }
    }

    /// What is left of it.
    pub(super) fn left(self, now: StdInstant) -> Option<Duration> {
        let left = self.until?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use openraft::{ServerState, type_config::TypeConfigExt};

    use crate::env::{Clock, SystemClock};

    use super::{
        super::types::{Membership, StoredMembership, Vote},
        *,
    };

    fn leader(voters: &[u64], acked: Option<Duration>) -> RaftMetrics<TypeConfig> {
        let voters: BTreeSet<u64> = voters.iter().copied().collect();
        let membership = Membership::new_with_defaults(vec![voters], []);
        let mut metrics = RaftMetrics::new_initial(1);
        metrics.state = ServerState::Leader;
        metrics.vote = Vote::new_committed(5, 1);
        metrics.membership_config = Arc::new(StoredMembership::new(None, membership));
        metrics.last_quorum_acked = acked.map(|age| (TypeConfig::now() - age).into());
        metrics
    }

    const MINE: Claim = Claim { led_term: 5, handed_over: 0 };

    fn holds_by_default(metrics: &RaftMetrics<TypeConfig>, claim: Claim) -> bool {
        holds(metrics, claim, Timing::default())
    }

    #[test]
    fn a_fresh_answer_of_a_majority_is_a_lease_and_an_old_one_is_not() {
        let fresh = Some(Duration::from_millis(10));
        assert!(holds_by_default(&leader(&[1, 2, 3], fresh), MINE));
        assert!(holds_by_default(&leader(&[1, 2, 3], Some(Duration::from_millis(550))), MINE));
        assert!(!holds_by_default(&leader(&[1, 2, 3], Some(Duration::from_millis(601))), MINE));
        assert!(!holds_by_default(&leader(&[1, 2, 3], None), MINE));
        assert!(holds_by_default(&leader(&[1], None), MINE));
    }

    #[test]
    fn no_lease_without_an_own_entry_nor_in_a_term_that_was_handed_over() {
        let metrics = leader(&[1, 2, 3], Some(Duration::ZERO));
        assert!(!holds_by_default(&metrics, Claim { led_term: 0, ..MINE }));
        assert!(!holds_by_default(&metrics, Claim { led_term: 4, ..MINE }));
        assert!(!holds_by_default(&metrics, Claim { handed_over: 5, ..MINE }));
        assert!(holds_by_default(&metrics, Claim { handed_over: 4, ..MINE }));
        let mut follower = metrics.clone();
        follower.state = ServerState::Follower;
        assert!(!holds_by_default(&follower, MINE));
        let mut deposed = metrics;
        deposed.vote = Vote::new(6, 2);
        assert!(!holds_by_default(&deposed, MINE));
    }

    #[test]
    fn only_who_may_have_heard_from_a_leader_is_on_probation() {
        let now = SystemClock.instant();
        let timing = Timing::default();
        assert_eq!(Probation::new(false, now, timing).left(now), None);
        let probation = Probation::new(true, now, timing);
        assert_eq!(probation.left(now), Some(timing.election_max));
        assert_eq!(probation.left(now + timing.election_max), None);
    }
}
