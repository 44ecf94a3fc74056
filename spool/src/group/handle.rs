//! One replica of one group, as the rest of the node uses it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    ChangeMembers, Instant,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, RaftError},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    ChangeError, GroupId, GroupStatus, ProposeError, Reply, Timing,
    store::Store,
    types::{Proposal, Raft, TypeConfig, proposal_of},
};
use crate::{NodeId, env::Clock, limits, log::LogError};

/// How often a condition that openraft does not announce is looked at.
const POLL: Duration = Duration::from_millis(10);

/// One replica of one group. Clones share it.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    id: GroupId,
    raft: Raft,
    store: Store,
    clock: Arc<dyn Clock>,
    timing: Timing,
    /// The term in which the machine was told that it leads; 0: it does not.
    led_term: AtomicU64,
    /// Set before a transfer begins: the followers' promise to this leader ends with it.
    handing_over: AtomicBool,
    stopping: AtomicBool,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

impl Group {
    pub(super) fn new(
        node: NodeId,
        id: GroupId,
        raft: Raft,
        store: Store,
        clock: Arc<dyn Clock>,
        timing: Timing,
    ) -> Self {
        let inner = Inner {
            node,
            id,
            raft,
            store,
            clock,
            timing,
            led_term: AtomicU64::new(0),
            handing_over: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            watcher: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    #[must_use]
    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    /// Makes a new group with these voters. Only for a group that nobody has initialised; done once ever.
    /// Does nothing if this replica already has log or vote.
    ///
    /// # Errors
    /// `NotNow` if openraft refuses.
    pub async fn initialise(&self, voters: &[NodeId]) -> Result<(), ChangeError> {
        let raft = &self.inner.raft;
        let stopped = |e: &dyn std::fmt::Display| ProposeError::Stopped(e.to_string());
        if raft.is_initialized().await.map_err(|e| stopped(&e))? {
            return Ok(());
        }
        let voters: BTreeSet<NodeId> = voters.iter().copied().collect();
        raft.initialize(voters).await.map_err(|e| ChangeError::NotNow(e.to_string()))
    }

    /// Proposes an entry and waits until it is applied here.
    ///
    /// # Errors
    /// See [`ProposeError`]; only `NotLeader` says that nothing was written.
    pub async fn propose(&self, payload: Bytes, deadline: Duration) -> Result<Reply, ProposeError> {
        let began = self.inner.clock.instant();
        let proposed = timeout(deadline, self.inner.raft.client_write(Proposal(payload))).await;
        match proposed {
            Ok(Ok(response)) => {
                let took = self.inner.clock.instant().saturating_duration_since(began);
                metrics::histogram!("ppsw_raft_commit_seconds").record(took.as_secs_f64());
                Ok(response.data)
            }
            Ok(Err(error)) => Err(propose_error(error)),
            Err(_) => Err(ProposeError::Timeout(deadline)),
        }
    }

    /// The leader known to this replica.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.raft.metrics().borrow_watched().current_leader
    }

    /// This replica leads, has applied an entry of its term, is not handing over, and a majority answered less
    /// than one lease ago. What the deliverer asks before each attempt and before each final dot. Cheap.
    #[must_use]
    pub fn has_lease(&self) -> bool {
        let inner = &self.inner;
        let Ok(leader) = inner.raft.as_leader() else { return false };
        let led = inner.led_term.load(Ordering::Acquire);
        if led == 0 || leader.leader_id().term != led || inner.handing_over.load(Ordering::Acquire)
        {
            return false;
        }
        if self.is_only_voter() {
            return true;
        }
        let lease = inner.timing.election_max.saturating_sub(limits::LEASE_MARGIN);
        // After a restart a former leader has no answer yet: no lease. The time is that of openraft's own clock.
        leader.last_quorum_acked().is_some_and(|at| at.elapsed() < lease)
    }

    /// This replica leads (perhaps without a majority now).
    #[must_use]
    pub fn leads(&self) -> bool {
        let led = self.inner.led_term.load(Ordering::Acquire);
        led != 0 && self.inner.raft.metrics().borrow_watched().current_term == led
    }

    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let replication = metrics.replication.as_ref();
        let age = metrics
            .last_quorum_acked
            .map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
        GroupStatus {
            id: self.inner.id,
            term: metrics.current_term,
            leader: metrics.current_leader,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            last_index: metrics.last_log_index,
            applied_index: metrics.last_applied.as_ref().map(|id| id.index),
            purged_index: metrics.purged.as_ref().map(|id| id.index),
            matched: replication
                .into_iter()
                .flatten()
                .map(|(node, id)| (*node, id.as_ref().map(|id| id.index)))
                .collect(),
            quorum_age_ms: age,
        }
    }

    /// Adds a voter: first as learner until it has caught up, then as voter. Returns when committed.
    ///
    /// # Errors
    /// `Unfit` if it does not catch up in time; `Propose`.
    pub async fn add_voter(&self, node: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        let status = self.status();
        if status.voters.contains(&node) {
            return Ok(());
        }
        let work = async {
            if !status.learners.contains(&node) {
                let added = self.inner.raft.add_learner(node, openraft::EmptyNode {}, false).await;
                added.map_err(propose_error)?;
            }
            loop {
                let status = self.status();
                let matched = status.matched.get(&node).copied().flatten();
                if matched
                    .is_some_and(|m| m + limits::TRANSFER_LAG_MAX > status.last_index.unwrap_or(0))
                {
                    break;
                }
                sleep(POLL).await;
            }
            let voters = ChangeMembers::AddVoterIds(BTreeSet::from([node]));
            let changed = self.inner.raft.change_membership(voters, false).await;
            changed.map_err(propose_error)?;
            Ok(())
        };
        timeout(deadline, work).await.unwrap_or_else(|_| {
            let why = format!("it has not caught up within {deadline:?}; it goes on as a learner");
            Err(ChangeError::Unfit { node, why })
        })
    }

    /// Removes a voter or learner.
    ///
    /// # Errors
    /// `Propose`; `NotNow` if no majority committed it in time.
    pub async fn remove_voter(&self, node: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        let status = self.status();
        let nodes = BTreeSet::from([node]);
        let change = if status.voters.contains(&node) {
            ChangeMembers::RemoveVoters(nodes)
        } else if status.learners.contains(&node) {
            ChangeMembers::RemoveNodes(nodes)
        } else {
            return Ok(());
        };
        match timeout(deadline, self.inner.raft.change_membership(change, false)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(propose_error(error).into()),
            Err(_) => Err(ProposeError::Timeout(deadline).into()),
        }
    }

    /// Hands leadership to `to`; checks its lag first. A transfer that is stuck is aborted by a second one, to
    /// another voter: until then this leader would refuse writes and send no heartbeats.
    ///
    /// # Errors
    /// `Unfit` if `to` is no voter or lags; `NotNow` if leadership did not move.
    pub async fn transfer(&self, to: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        self.check_successor(to)?;
        self.inner.handing_over.store(true, Ordering::Release);
        let moved = timeout(deadline, self.transfer_or_abort(to)).await;
        self.inner.handing_over.store(false, Ordering::Release);
        moved.unwrap_or_else(|_| {
            Err(ChangeError::NotNow(format!("leadership has not moved within {deadline:?}")))
        })
    }

    /// The voter (not this one) that has the most entries and answers; candidate for `transfer`.
    #[must_use]
    pub fn best_successor(&self) -> Option<NodeId> {
        let status = self.status();
        status
            .voters
            .iter()
            .filter(|node| **node != self.inner.node)
            .filter(|node| self.check_successor(**node).is_ok())
            .max_by_key(|node| status.matched.get(*node).copied().flatten())
            .copied()
    }

    /// Whether [`Group::transfer`] to this node would be tried now.
    #[must_use]
    pub fn transfer_is_possible(&self, to: NodeId) -> bool {
        self.check_successor(to).is_ok()
    }

    /// Takes a checkpoint from the machine, saves it, and purges the log up to it.
    ///
    /// # Errors
    /// `Propose(Stopped)`.
    pub async fn checkpoint(&self) -> Result<(), ChangeError> {
        let triggered = self.inner.raft.trigger().snapshot().await;
        triggered.map_err(|e| ProposeError::Stopped(e.to_string()).into())
    }

    /// Reads one proposal of this group back (CRC checked). For bodies.
    ///
    /// # Errors
    /// `Missing` if it was purged or is no proposal; `Damaged`, `Disk`.
    pub async fn read(&self, index: u64) -> Result<Bytes, LogError> {
        let entries = self.inner.store.read(index, index + 1, 0).await?;
        let missing = LogError::Missing { group: self.inner.id, index };
        entries.first().and_then(|entry| proposal_of(&entry.payload)).ok_or(missing)
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.inner.raft
    }

    pub(super) fn set_led_term(&self, term: u64) {
        self.inner.led_term.store(term, Ordering::Release);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.inner.stopping.load(Ordering::Acquire)
    }

    pub(super) fn set_watcher(&self, watcher: JoinHandle<()>) {
        *self.inner.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(watcher);
    }

    /// Stops the replica; its records stay.
    pub(super) async fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        // A replica that has failed cannot be joined; there is nothing left to stop.
        let _ = self.inner.raft.shutdown().await;
        let watcher = self.inner.watcher.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(watcher) = watcher {
            watcher.abort();
        }
    }

    fn is_only_voter(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.voter_ids();
        voters.next() == Some(self.inner.node) && voters.next().is_none()
    }

    fn check_successor(&self, to: NodeId) -> Result<(), ChangeError> {
        let status = self.status();
        let unfit = |why: &str| ChangeError::Unfit { node: to, why: why.to_owned() };
        if status.leader != Some(self.inner.node) {
            return Err(ProposeError::NotLeader { leader: status.leader }.into());
        }
        if !status.voters.contains(&to) {
            return Err(unfit("it is no voter of this group"));
        }
        let matched = status.matched.get(&to).copied().flatten();
        let last = status.last_index.unwrap_or(0);
        if matched.is_none_or(|m| m + limits::TRANSFER_LAG_MAX < last) {
            return Err(unfit("it lags behind; wait until it has caught up"));
        }
        let heard = self
            .inner
            .raft
            .metrics()
            .borrow_watched()
            .heartbeat
            .as_ref()
            .and_then(|all| all.get(&to).copied().flatten().map(|at| at.elapsed()));
        if heard.is_none_or(|silence| silence > self.inner.timing.election_min) {
            return Err(unfit("it has not answered a heartbeat lately"));
        }
        Ok(())
    }

    async fn transfer_or_abort(&self, to: NodeId) -> Result<(), ChangeError> {
        let stopped = |e: &dyn std::fmt::Display| ProposeError::Stopped(e.to_string());
        let trigger = self.inner.raft.trigger();
        trigger.transfer_leader(to).await.map_err(|e| stopped(&e))?;
        if timeout(limits::TRANSFER_STUCK, self.led_by_another()).await.is_ok() {
            return self.moved_to(to);
        }
        let other =
            self.status().voters.into_iter().find(|node| *node != to && *node != self.inner.node);
        if let Some(other) = other {
            trigger.transfer_leader(other).await.map_err(|e| stopped(&e))?;
        }
        self.led_by_another().await;
        self.moved_to(to)
    }

    async fn led_by_another(&self) {
        loop {
            if self.leader().is_some_and(|leader| leader != self.inner.node) {
                return;
            }
            sleep(POLL).await;
        }
    }

    fn moved_to(&self, wanted: NodeId) -> Result<(), ChangeError> {
        let leader = self.leader();
        if leader == Some(wanted) {
            return Ok(());
        }
        let why = format!("it did not take over in time; node {} leads now", leader.unwrap_or(0));
        Err(ChangeError::Unfit { node: wanted, why })
    }
}

fn propose_error(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            ProposeError::NotLeader { leader: forward.leader_id }
        }
        other => ProposeError::Stopped(other.to_string()),
    }
}
