//! The groups that a node carries: starting, serving and stopping them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ppsw_proto::raft::raft_server::RaftServer;
use tokio::sync::watch;

use super::{
    Dial, Group, GroupId, Machine, Timing, handle::Parts, leadership, lease::Probation,
    machine::Adapter, network::Factory, pace::Pace, service::Service, space::Neighbours,
    store::Store, types::Raft,
};
use crate::{
    NodeId,
    env::Clock,
    limits,
    log::{Log, LogError},
};

/// All groups of this node. Clones share them.
#[derive(Clone)]
pub struct Groups {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    log: Log,
    clock: Arc<dyn Clock>,
    dial: Arc<dyn Dial>,
    timing: Timing,
    /// Replicas that lag are sent what they lack at a bounded rate, all together.
    pace: Arc<Pace>,
    groups: Mutex<BTreeMap<GroupId, Group>>,
    /// One group at a time is opened or closed.
    changing: tokio::sync::Mutex<()>,
    failure: watch::Sender<Option<String>>,
    neighbours: Arc<Neighbours>,
}

impl Groups {
    /// Groups of node `node` on `log`; none runs yet.
    #[must_use]
    pub fn new(
        node: NodeId,
        log: Log,
        clock: Arc<dyn Clock>,
        dial: Arc<dyn Dial>,
        timing: Timing,
    ) -> Self {
        let (failure, _) = watch::channel(None);
        let tell = failure.clone();
        log.on_failure(Box::new(move |why| fail(&tell, why)));
        let groups = Mutex::default();
        let changing = tokio::sync::Mutex::new(());
        let pace = Arc::new(Pace::new(clock.clone()));
        let neighbours = Arc::default();
        let inner =
            Inner { node, log, clock, dial, timing, pace, groups, changing, failure, neighbours };
        Self { inner: Arc::new(inner) }
    }

    /// Starts this node's replica of a group (idempotent).
    ///
    /// # Errors
    /// What the log says.
    pub async fn open(&self, id: GroupId, machine: Arc<dyn Machine>) -> Result<Group, LogError> {
        let _one = self.inner.changing.lock().await;
        if let Some(group) = self.get(id) {
            return Ok(group);
        }
        let inner = &self.inner;
        let store = Store::new(inner.log.clone(), id);
        let probation = Probation::new(store.has_vote(), inner.clock.instant(), inner.timing);
        let adapter = Adapter::new(machine.clone(), store.clone())?;
        let config = Arc::new(config(id, inner.timing)?);
        let factory = Factory {
            dial: inner.dial.clone(),
            group: id,
            clock: inner.clock.clone(),
            neighbours: inner.neighbours.clone(),
            pace: inner.pace.clone(),
            keeps_news: machine.can_wait_for_news(),
        };
        let peers = factory.clone();
        let raft = Raft::build(inner.node, config, factory, store.clone(), adapter.clone())
            .await
            .map_err(|e| LogError::Disk(format!("group {id} cannot start: {e}")))?;
        let group = Group::new(Parts {
            node: inner.node,
            id,
            raft,
            peers,
            store,
            adapter,
            clock: inner.clock.clone(),
            timing: inner.timing,
            probation,
            neighbours: inner.neighbours.clone(),
        });
        self.run(&group, probation);
        let failure = inner.failure.clone();
        let watcher = leadership::watch(group.clone(), machine, move |why| {
            fail(&failure, format!("group {id}: {why}"));
        });
        group.set_watcher(watcher);
        self.groups().insert(id, group.clone());
        Ok(group)
    }

    /// A group that runs here.
    #[must_use]
    pub fn get(&self, id: GroupId) -> Option<Group> {
        self.groups().get(&id).cloned()
    }

    /// Asks the leader of a group that runs here to make its log up to `upto` dispensable (see
    /// [`Group::trim_wanted`]). Nothing is promised.
    ///
    /// # Errors
    /// Why the leader could not be asked.
    pub async fn ask_trim(&self, id: GroupId, upto: u64) -> Result<(), String> {
        let group = self.get(id).ok_or_else(|| format!("group {id} does not run here"))?;
        if group.leads() {
            group.want_trim(upto);
            return Ok(());
        }
        let leader = group.leader().filter(|leader| *leader != self.inner.node);
        let leader = leader.ok_or_else(|| format!("group {id} has no known leader"))?;
        super::network::ask_trim(&*self.inner.dial, leader, id, upto).await
    }

    /// Stops this node's replica of a group and forgets its records.
    ///
    /// # Errors
    /// What the log says.
    pub async fn close(&self, id: GroupId) -> Result<(), LogError> {
        let _one = self.inner.changing.lock().await;
        // Not in the match: the lock must not be held while the group stops.
        let group = self.groups().remove(&id);
        if let Some(group) = group {
            group.stop().await;
        }
        let store = Store::new(self.inner.log.clone(), id);
        store.forget().await.map_err(|e| LogError::Disk(e.to_string()))
    }

    /// The gRPC service that serves the other nodes. Mount it behind a check that the peer is a node of the cluster.
    #[must_use]
    pub fn service(&self) -> tonic::service::Routes {
        let server = RaftServer::new(Service::new(self.clone()))
            .max_decoding_message_size(limits::RPC_BYTES_MAX)
            .max_encoding_message_size(limits::RPC_BYTES_MAX);
        tonic::service::Routes::new(server)
    }

    /// Resolves when a group or the log has failed for good: the process must end.
    pub async fn failed(&self) -> String {
        let mut failure = self.inner.failure.subscribe();
        let seen = failure.wait_for(Option::is_some).await;
        // The sender lives in `self`, so waiting cannot end otherwise.
        seen.ok().and_then(|why| why.clone()).unwrap_or_default()
    }

    /// Whether the log has failed because it is damaged: it must not be used again, as opposed to a disk that failed.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        matches!(self.inner.log.failure(), Some(LogError::Damaged { .. }))
    }

    /// Reads the log through once in `period`, in the background.
    ///
    /// # Errors
    /// As [`Log::start_scrub`].
    pub fn start_scrub(&self, period: std::time::Duration) -> Result<(), LogError> {
        self.inner.log.start_scrub(self.inner.clock.clone(), period)
    }

    /// Stops all groups in an orderly way.
    pub async fn shutdown(&self) {
        let groups = std::mem::take(&mut *self.groups());
        for group in groups.into_values() {
            group.stop().await;
        }
    }

    /// The node's log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.inner.log
    }

    pub(super) fn node(&self) -> NodeId {
        self.inner.node
    }

    /// Starts a replica. It does not campaign before its probation is over, unless it is the only voter; and not at
    /// the same moment as others that were started together with it.
    fn run(&self, group: &Group, probation: Probation) {
        let raft = group.raft().clone();
        let left = probation.left(self.inner.clock.instant());
        raft.runtime_config().elect(left.is_none());
        raft.run();
        let Some(left) = left else { return };
        let (node, spread) = (self.inner.node, self.inner.timing.election_min);
        tokio::spawn(async move {
            let alone = raft.with_raft_state(move |state| {
                let mut voters = state.membership_state.effective().voter_ids();
                voters.next() == Some(node) && voters.next().is_none()
            });
            if !alone.await.unwrap_or(false) {
                tokio::time::sleep(left + spread.mul_f64(rand::random())).await;
            }
            raft.runtime_config().elect(true);
        });
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<GroupId, Group>> {
        self.inner.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first reason is the one that counts.
fn fail(failure: &watch::Sender<Option<String>>, why: String) {
    failure.send_if_modified(|before| {
        let first = before.is_none();
        if first {
            *before = Some(why);
        }
        first
    });
}

fn config(id: GroupId, timing: Timing) -> Result<openraft::Config, LogError> {
    let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: format!("group-{id}"),
        heartbeat_interval: ms(timing.heartbeat),
        // Heartbeats always go: the lease counts on them (`lease.rs`).
        heartbeat_min_interval: Some(0),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        enable_pre_vote: Some(true),
        // Its own documentation forbids it with a volatile state machine.
        enable_leader_restore: Some(false),
        // A leader whose heartbeats arrive but who hears no answers would keep its followers from electing another:
        // without a majority it falls silent, for longer than a lease and the longest election time-out together.
        quorum_loss_probe_interval: Some(3 * ms(timing.election_max)),
        // Checkpoints are taken when the machine can give something up, not by count.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        replication_lag_threshold: u64::MAX,
        install_snapshot_timeout: 5_000,
        max_payload_entries: 300,
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|e| LogError::Misuse(format!("timing of group {id}: {e}")))
}
