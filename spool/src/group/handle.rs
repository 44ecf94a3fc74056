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
    ChangeMembers, Instant, RaftMetrics,
    alias::WatchReceiverOf,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, RaftError},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{
    ChangeError, GroupId, GroupStatus, Position, ProposeError, Reply, Timing,
    batches::{Batches, Failed},
    commit_time::CommitTime,
    lease::{self, Claim, Probation},
    machine::Adapter,
    network::{Factory, Peer},
    space::{self, Neighbours},
    store::Store,
    types::{Proposal, Raft, TypeConfig, proposal_of},
};
use crate::{NodeId, env::Clock, limits, log::LogError};

/// One replica of one group. Clones share it.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

/// What a replica is made of.
pub(super) struct Parts {
    pub(super) node: NodeId,
    pub(super) id: GroupId,
    pub(super) raft: Raft,
    pub(super) peers: Factory,
    pub(super) store: Store,
    pub(super) adapter: Adapter,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) timing: Timing,
    pub(super) probation: Probation,
    pub(super) neighbours: Arc<Neighbours>,
}

struct Inner {
    parts: Parts,
    metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    /// The term in which the machine was told that it leads; 0: it does not.
    led_term: AtomicU64,
    /// The newest term in which this replica began to hand over: the followers' promise to it ended with that.
    handed_over: AtomicU64,
    stopping: AtomicBool,
    commit_time: CommitTime,
    batches: Batches,
    /// Held by the transfer under way.
    transferring: tokio::sync::Mutex<()>,
    /// Held by the checkpoint under way.
    checkpointing: tokio::sync::Mutex<()>,
    watcher: Mutex<Option<JoinHandle<()>>>,
    /// The highest index up to which some replica's log should go.
    trim_wanted: watch::Sender<Option<u64>>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl Group {
    pub(super) fn new(parts: Parts) -> Self {
        let inner = Inner {
            metrics: parts.raft.metrics(),
            commit_time: CommitTime::new(parts.clock.instant()),
            batches: Batches::new(parts.raft.clone()),
            parts,
            led_term: AtomicU64::new(0),
            handed_over: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            transferring: tokio::sync::Mutex::default(),
            checkpointing: tokio::sync::Mutex::default(),
            watcher: Mutex::default(),
            trim_wanted: watch::Sender::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    #[must_use]
    pub fn id(&self) -> GroupId {
        self.inner.parts.id
    }

    /// Makes a new group with these voters. Only for a group that nobody has initialised; done once ever.
    /// Does nothing if this replica already has log or vote.
    ///
    /// # Errors
    /// `NotNow` if openraft refuses.
    pub async fn initialise(&self, voters: &[NodeId]) -> Result<(), ChangeError> {
        let raft = self.raft();
        let stopped = |e: &dyn std::fmt::Display| ProposeError::Stopped(e.to_string());
        if raft.is_initialized().await.map_err(|e| stopped(&e))? {
            return Ok(());
        }
        let voters: BTreeSet<NodeId> = voters.iter().copied().collect();
        raft.initialize(voters).await.map_err(|e| ChangeError::NotNow(e.to_string()))
    }

    /// Proposes an entry and waits until it is applied here. One of more than [`limits::PROPOSAL_BYTES_MAX`] bytes is
    /// refused without being written.
    ///
    /// # Errors
    /// See [`ProposeError`]; only `NotLeader` says that nothing was written.
    pub async fn propose(&self, payload: Bytes, deadline: Duration) -> Result<Reply, ProposeError> {
        self.propose_within(payload, Duration::ZERO, deadline).await
    }

    /// As `propose`, for what nobody waits for: it may go up to `patience` later, with others.
    ///
    /// # Errors
    /// As of `propose`.
    pub async fn propose_within(
        &self,
        payload: Bytes,
        patience: Duration,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        if payload.len() > limits::PROPOSAL_BYTES_MAX {
            return Ok(Reply::Refused(format!(
                "an entry of {} bytes; at most {} are taken",
                payload.len(),
                limits::PROPOSAL_BYTES_MAX
            )));
        }
        let clock = &self.inner.parts.clock;
        let began = clock.instant();
        let proposal = Proposal::new(&payload);
        match timeout(deadline, self.inner.batches.propose(proposal, patience)).await {
            Ok(Ok(reply)) => {
                let took = clock.instant().saturating_duration_since(began);
                // Waiting for company says nothing of how fast the group is.
                if patience.is_zero() {
                    metrics::histogram!("ppsw_raft_commit_seconds").record(took.as_secs_f64());
                    self.inner.commit_time.took(clock.instant(), took);
                }
                Ok(reply)
            }
            Ok(Err(Failed::Write(error))) => {
                let after = clock.instant().saturating_duration_since(began);
                Err(propose_error(RaftError::APIError(error), after))
            }
            Ok(Err(Failed::Stopped(why))) => Err(ProposeError::Stopped(why)),
            Err(_) => {
                self.inner.commit_time.took(clock.instant(), deadline);
                Err(ProposeError::Timeout(deadline))
            }
        }
    }

    /// Batches that proposals have gone in.
    #[cfg(test)]
    pub(super) fn batches(&self) -> u64 {
        self.inner.batches.count()
    }

    /// How long entries that were proposed here have lately taken to be committed; zero if there was none for ten seconds.
    #[must_use]
    pub fn commit_time(&self) -> Duration {
        self.inner.commit_time.now(self.inner.parts.clock.instant())
    }

    /// Proposes an entry through the leader that this replica knows of, which may be itself. For entries that do no
    /// harm when they are proposed twice.
    ///
    /// # Errors
    /// As of `propose`; `NotLeader` also if no leader is known.
    pub async fn forward(&self, payload: Bytes, deadline: Duration) -> Result<Reply, ProposeError> {
        match self.leader() {
            Some(leader) if leader != self.node() => {
                let peer = self.peer(leader);
                let asked = timeout(deadline, peer.propose(payload, deadline)).await;
                asked.unwrap_or(Err(ProposeError::Timeout(deadline)))
            }
            _ => self.propose(payload, deadline).await,
        }
    }

    /// The leader known to this replica.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.metrics.borrow_watched().current_leader
    }

    /// This replica leads, has applied an entry of its term, is not handing over, and a majority answered less
    /// than one lease ago. What the deliverer asks before each attempt and before each final dot. Cheap.
    #[must_use]
    pub fn has_lease(&self) -> bool {
        let inner = &self.inner;
        let claim = Claim {
            led_term: inner.led_term.load(Ordering::Acquire),
            handed_over: inner.handed_over.load(Ordering::Acquire),
        };
        claim.led_term != 0
            && !self.is_stopping()
            // Nothing can be recorded any longer, and this process is about to end.
            && !inner.parts.store.log().has_ended()
            && lease::holds(&inner.metrics.borrow_watched(), claim, inner.parts.timing)
    }

    /// This replica leads (perhaps without a majority now).
    #[must_use]
    pub fn leads(&self) -> bool {
        let led = self.inner.led_term.load(Ordering::Acquire);
        led != 0 && !self.is_stopping() && self.inner.metrics.borrow_watched().current_term == led
    }

    /// On the leader: bytes of new mail that a majority of the voters can take before their disks are low, as they
    /// said within the last two seconds; 0 if that many have not said so, or if this node's own log is short.
    #[must_use]
    pub fn headroom(&self) -> u64 {
        let parts = &self.inner.parts;
        let own = parts.store.log().space();
        if own.short {
            return 0;
        }
        let now = parts.clock.instant();
        let of = |node: &NodeId| match *node {
            node if node == parts.node => own.headroom(),
            node => parts.neighbours.headroom(node, now),
        };
        let metrics = self.inner.metrics.borrow_watched();
        let configurations = metrics.membership_config.membership().get_joint_config();
        let each = configurations.iter().map(|voters| space::of_majority(voters.iter().map(of)));
        each.min().unwrap_or(0)
    }

    /// This node's own disk is low.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.inner.parts.store.log().space().headroom() == 0
    }

    /// What an operator wants to know.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let metrics = self.inner.metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let replication = metrics.replication.as_ref();
        let millis = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let age = metrics.last_quorum_acked.map(|at| millis(at.elapsed()));
        let heard = metrics.heartbeat.as_ref().into_iter().flatten();
        GroupStatus {
            id: self.id(),
            term: metrics.current_term,
            leader: metrics.current_leader,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            last_index: metrics.last_log_index,
            applied_index: metrics.last_applied.as_ref().map(|id| id.index),
            purged_index: metrics.purged.as_ref().map(|id| id.index),
            checkpoint_index: self.inner.parts.adapter.saved_index(),
            matched: replication
                .into_iter()
                .flatten()
                .map(|(node, id)| (*node, id.as_ref().map(|id| id.index)))
                .collect(),
            heard_ms: heard
                .filter(|(node, _)| **node != self.node())
                .map(|(node, at)| (*node, at.as_ref().map(|at| millis(at.elapsed()))))
                .collect(),
            quorum_age_ms: age,
        }
    }

    /// Adds a voter: first as learner until it has caught up, then as voter. Returns when committed. Doing it again
    /// after an error continues where it stopped.
    ///
    /// # Errors
    /// `Unfit` if it does not catch up in time; `NotNow` if another change is under way; `Propose`.
    pub async fn add_voter(&self, node: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        let status = self.status();
        if status.voters.contains(&node) {
            return Ok(());
        }
        let work = async {
            if !status.learners.contains(&node) {
                // Not `blocking`: openraft would wait by `replication_lag_threshold`, which is without limit here.
                let added = self.raft().add_learner(node, openraft::EmptyNode {}, false).await;
                added.map_err(|e| change_error(e, deadline))?;
            }
            self.caught_up(node).await?;
            let voters = ChangeMembers::AddVoterIds(BTreeSet::from([node]));
            let changed = self.raft().change_membership(voters, false).await;
            changed.map_err(|e| change_error(e, deadline))?;
            Ok(())
        };
        timeout(deadline, work).await.unwrap_or_else(|_| {
            let status = self.status();
            let matched = status.matched.get(&node).copied().flatten();
            let why = format!(
                "it has entry {matched:?} of {:?} after {deadline:?}; it goes on as a learner",
                status.last_index
            );
            Err(ChangeError::Unfit { node, why })
        })
    }

    /// Removes a voter or learner. The leader does not remove itself: it would go on leading without a vote, and
    /// then hand over in the middle of deliveries.
    ///
    /// # Errors
    /// `Unfit` for this replica itself; `NotNow` if another change is under way; `Propose`.
    pub async fn remove_voter(&self, node: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        if node == self.node() {
            let why = "it asks for its own removal; hand leadership over first".to_owned();
            return Err(ChangeError::Unfit { node, why });
        }
        let status = self.status();
        let nodes = BTreeSet::from([node]);
        let change = if status.voters.contains(&node) {
            ChangeMembers::RemoveVoters(nodes)
        } else if status.learners.contains(&node) {
            ChangeMembers::RemoveNodes(nodes)
        } else {
            return Ok(());
        };
        match timeout(deadline, self.raft().change_membership(change, false)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(change_error(error, deadline)),
            Err(_) => Err(ProposeError::Timeout(deadline).into()),
        }
    }

    /// Takes a checkpoint from the machine and saves it durably, if the machine has a later one than the last. The
    /// log is purged up to it then: at once, or as soon as no follower is being sent what goes.
    ///
    /// # Errors
    /// `Propose(Stopped)`; `NotNow` if the disk does not take it in [`limits::CHECKPOINT_TAKE_MAX`].
    pub async fn checkpoint(&self) -> Result<(), ChangeError> {
        let _one = self.inner.checkpointing.lock().await;
        let mut taken = self.inner.parts.adapter.taken();
        let work = async {
            loop {
                let triggered = self.raft().trigger().snapshot().await;
                triggered.map_err(|e| ProposeError::Stopped(e.to_string()))?;
                // Asked again, because openraft drops the question while it has not yet noted the end of the
                // checkpoint before.
                if timeout(limits::CHECKPOINT_ASK_AGAIN, taken.changed()).await.is_ok() {
                    return Ok(());
                }
            }
        };
        timeout(limits::CHECKPOINT_TAKE_MAX, work).await.unwrap_or_else(|_| {
            Err(ChangeError::NotNow(
                "the checkpoint is not saved yet; is the disk slow?".to_owned(),
            ))
        })
    }

    /// Up to which index some node wants this group's log to go: the highest such wish.
    #[must_use]
    pub fn trim_wanted(&self) -> watch::Receiver<Option<u64>> {
        self.inner.trim_wanted.subscribe()
    }

    /// A node wishes that the log up to `upto` goes. Wakes those who watch, also when it is no news.
    pub(super) fn want_trim(&self, upto: u64) {
        self.inner.trim_wanted.send_modify(|wanted| *wanted = (*wanted).max(Some(upto)));
    }

    /// Reads one proposal of this group back (CRC checked). For bodies.
    ///
    /// # Errors
    /// `Missing` if it was purged or is no proposal; `Damaged`, `Disk`.
    pub async fn read(&self, index: u64) -> Result<Bytes, LogError> {
        let entries = self.inner.parts.store.read(index, index + 1, 0).await?;
        let missing = LogError::Missing { group: self.id(), index };
        entries.first().and_then(|entry| proposal_of(&entry.payload)).ok_or(missing)
    }

    /// What this group must know beside a state of its machine that contains all entries up to `at` and no other, if
    /// that is to be used at the next start ([`super::Machine::recall`]). `at` must have been applied. `None` if it is
    /// from before the last checkpoint.
    #[must_use]
    pub fn note(&self, at: Position) -> Option<Bytes> {
        self.inner.parts.adapter.note(at)
    }

    pub(super) fn peer(&self, node: NodeId) -> Peer {
        self.inner.parts.peers.peer(node, false)
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.inner.parts.raft
    }

    pub(super) fn node(&self) -> NodeId {
        self.inner.parts.node
    }

    pub(super) fn timing(&self) -> Timing {
        self.inner.parts.timing
    }

    pub(super) fn transferring(&self) -> &tokio::sync::Mutex<()> {
        &self.inner.transferring
    }

    /// Whether this replica must not vote yet.
    pub(super) fn is_on_probation(&self) -> bool {
        let parts = &self.inner.parts;
        parts.probation.left(parts.clock.instant()).is_some()
    }

    pub(super) fn set_led_term(&self, term: u64) {
        self.inner.led_term.store(term, Ordering::Release);
    }

    pub(super) fn give_up_lease(&self, term: u64) {
        self.inner.handed_over.fetch_max(term, Ordering::AcqRel);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.inner.stopping.load(Ordering::Acquire)
    }

    pub(super) fn set_watcher(&self, watcher: JoinHandle<()>) {
        *self.inner.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(watcher);
    }

    /// Stops the replica; its records stay. The machine has been told that it does not lead when this returns.
    pub(super) async fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        // A replica that has failed cannot be joined; there is nothing left to stop.
        let _ = self.raft().shutdown().await;
        self.inner.parts.adapter.close().await;
        let watcher = self.inner.watcher.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(watcher) = watcher {
            // Ends by itself: openraft has closed what it watches. An error is a panic of the machine's.
            let _ = watcher.await;
        }
    }

    /// Waits until a learner lacks little.
    async fn caught_up(&self, node: NodeId) -> Result<(), ChangeError> {
        let mut metrics = self.raft().metrics();
        loop {
            let status = self.status();
            if status.leader != Some(self.node()) {
                return Err(ProposeError::NotLeader { leader: status.leader }.into());
            }
            let matched = status.matched.get(&node).copied().flatten();
            let last = status.last_index.unwrap_or(0);
            if matched.is_some_and(|m| m + limits::LEARNER_LAG_MAX >= last) {
                return Ok(());
            }
            if metrics.changed().await.is_err() {
                return Err(ProposeError::Stopped("while a learner caught up".to_owned()).into());
            }
        }
    }
}

fn propose_error(
    error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
    after: Duration,
) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            ProposeError::NotLeader { leader: forward.leader_id }
        }
        // Another leader's log has replaced it here, but it may have been committed elsewhere: unknown, like one
        // that was not answered.
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => ProposeError::Timeout(after),
        other => ProposeError::Stopped(other.to_string()),
    }
}

fn change_error(
    error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
    deadline: Duration,
) -> ChangeError {
    match error {
        RaftError::APIError(ClientWriteError::ChangeMembershipError(refused)) => {
            ChangeError::NotNow(refused.to_string())
        }
        other => propose_error(other, deadline).into(),
    }
}
