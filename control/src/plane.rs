//! The control plane of one node: what its parts share, and the public handle.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use ppsw_proto::control::{self as pb, command::Change};
use ppsw_spool::{
    NodeId, PartitionId,
    env::{Clock, Disk, UnixMs},
    group::{Group, Groups},
    log::{Log, LogError, Options, Space, SpaceLimits},
    queue::{Checkpoints, Outcome, Partition, Spool, SpoolOptions},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    NodeHooks, PlaneError, PlaneOptions,
    agent::Agent,
    census,
    dial::Dialer,
    events::{self, EventLog, Kind},
    figures, gauges,
    identity::{AddressBook, Identity},
    limits, serve,
    standing::{Compiled, Orders},
    state::{ControlMachine, State},
    versions::{self as tables, Shelf},
    view::{ClusterView, Views},
};

mod command;
mod https;
mod outcome;
mod versions;

pub(crate) use command::CommandError;
pub(crate) use outcome::{from_proto as outcome_from_proto, write_origin};

/// The control group's number.
pub(crate) const CONTROL: u32 = 0;

/// The control plane of one node. Clones share it.
#[derive(Clone)]
pub struct Plane {
    shared: Arc<Shared>,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// What the agent, the drain and the services work on.
pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(crate) identity: Identity,
    pub(crate) options: PlaneOptions,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) hooks: Arc<dyn NodeHooks>,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) groups: Groups,
    pub(crate) spool: Spool,
    pub(crate) control: Group,
    pub(crate) machine: Arc<ControlMachine>,
    /// The control state that this node acts on: never one of the past that a replay passes through.
    pub(crate) view: watch::Sender<Arc<State>>,
    /// The agent is to look for a newer one at once.
    pub(crate) look: Notify,
    /// This node was drained when it stopped, and has heard nothing else since.
    pub(crate) was_drained: AtomicBool,
    pub(crate) progress: watch::Sender<pb::DrainProgress>,
    /// Policy and tables on this node.
    pub(crate) shelf: Shelf,
    /// This node ran a version when it stopped.
    pub(crate) has_run_version: bool,
    /// Why this node is no member any more.
    pub(crate) removed: watch::Sender<Option<String>>,
    /// When this process started.
    pub(crate) started: UnixMs,
    /// The standing rules of the state, ready for use.
    pub(crate) orders: Compiled,
    /// What happened lately.
    pub(crate) events: EventLog,
    /// What others are shown of the cluster.
    pub(crate) views: Views,
    /// The agent and drains end.
    pub(crate) stop: CancellationToken,
    /// The server ends.
    pub(crate) closed: CancellationToken,
}

impl Plane {
    /// Opens log and groups, serves gRPC, and begins to follow the control group: starts the partitions that this
    /// node is to carry, changes their voters step by step, hands partitions back home, follows drains.
    ///
    /// # Errors
    /// If this machine is in no cluster, its log cannot be read, or the address is taken.
    pub async fn start(
        options: PlaneOptions,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        hooks: Arc<dyn NodeHooks>,
    ) -> Result<Self, PlaneError> {
        let identity = Identity::load(&options.data)?;
        let book = AddressBook::load(&options.data)?;
        let shelf = Shelf::open(&options.data)?;
        let ran = tables::load_active(&options.data);
        let dialer = Arc::new(Dialer::new(&identity));
        dialer.update(book.members.iter().map(|m| (m.id, m.control.clone())).collect());
        let disk_of_checkpoints = Arc::clone(&disk);
        let log = open_log(&options, disk).await?;
        let carried = log.groups();
        if book.started && carried.is_empty() {
            return Err(PlaneError::LogLost(format!(
                "the log in {} is gone, but node {} had replicas in it. With an empty log it could vote twice and \
                 lose mail: run `ppswd rejoin`, which makes this machine join again under a new number",
                options.data.join("log").display(),
                identity.node,
            )));
        }
        let node = identity.node;
        let checkpoints = open_checkpoints(&options, disk_of_checkpoints, node, &log);
        let groups =
            Groups::new(node, log, Arc::clone(&clock), Arc::clone(&dialer) as _, options.timing);
        // Bound before any group runs: a node that nobody can answer must not stand for election.
        let listener = serve::listen(options.listen)?;
        let machine = Arc::new(ControlMachine::default());
        let control = groups.open(CONTROL, Arc::clone(&machine) as _).await?;
        let spool = Spool::with_options(
            node,
            groups.clone(),
            Arc::clone(&clock),
            SpoolOptions { takeover_grace: options.takeover_grace, checkpoints },
        );
        // At once, so that the partitions have their majority although the control group is not heard yet.
        for id in carried.into_iter().filter(|id| *id != CONTROL) {
            let partition = spool.open(id).await?;
            // Nothing new, before it is known that the partition's home is still a member.
            partition.set_open(NodeId::from(id) == node && !book.drained);
        }
        if book.drained {
            hooks.set_draining(true);
        }
        let started = clock.now();
        figures::describe();
        let shared = Arc::new(Shared {
            node,
            identity,
            options,
            clock,
            hooks,
            dialer,
            groups,
            spool,
            control,
            machine,
            view: watch::Sender::default(),
            look: Notify::new(),
            was_drained: AtomicBool::new(book.drained),
            orders: Compiled::default(),
            events: EventLog::default(),
            views: Views::default(),
            started,
            progress: watch::Sender::default(),
            shelf,
            has_run_version: ran.is_some(),
            removed: watch::Sender::default(),
            stop: CancellationToken::new(),
            closed: CancellationToken::new(),
        });
        let served = tokio::spawn(serve::run(Arc::clone(&shared), listener)?);
        if shared.identity.founder
            && let Err(error) = shared.control.initialise(&[node]).await
        {
            return Err(PlaneError::Refused(format!("the control group cannot start: {error}")));
        }
        let agent = tokio::spawn(Agent::new(Arc::clone(&shared), book).run());
        let census = tokio::spawn(census::run(Arc::clone(&shared)));
        let tables = tokio::spawn(tables::follow(Arc::clone(&shared), ran));
        let events = tokio::spawn(events::run(Arc::clone(&shared)));
        let gauges = tokio::spawn(gauges::run(Arc::clone(&shared)));
        let tasks = vec![agent, census, tables, events, gauges, served];
        Ok(Self { shared, tasks: Arc::new(Mutex::new(tasks)) })
    }

    /// This node's number.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.shared.node
    }

    /// The rules that operators have left for messages that come to delivery.
    #[must_use]
    pub fn orders(&self) -> Arc<Orders> {
        self.shared.orders.of(&self.shared.state().standing)
    }

    /// The partitions that this node carries.
    #[must_use]
    pub fn spool(&self) -> Spool {
        self.shared.spool.clone()
    }

    /// This node is being drained (replicated state, so it survives restarts).
    #[must_use]
    pub fn draining(&self) -> bool {
        self.shared.draining()
    }

    /// Reasons why this node should not get new connections: no quorum, draining, does not lead its home
    /// partition, still catching up. Empty: ready.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        self.shared.not_ready()
    }

    /// The whole cluster as this node sees it, at most some seconds old: all who ask meanwhile get the same. Nodes that do
    /// not answer soon are silent in it. `None`: the process ends.
    pub async fn view(&self) -> Option<Arc<ClusterView>> {
        self.shared.views.get(&self.shared).await
    }

    /// Records an outcome with whoever leads the partition now (called when `Partition::record` said `NotLeader`).
    ///
    /// # Errors
    /// If nobody took it within `deadline`. It may still be recorded: forward the same outcome again.
    pub async fn forward_outcome(
        &self,
        partition: PartitionId,
        outcome: Outcome,
        deadline: Duration,
    ) -> Result<(), PlaneError> {
        let work = self.shared.forward_outcome(partition, &outcome);
        timeout(deadline, work).await.map_err(|_| {
            PlaneError::Peer(format!(
                "no leader of partition {partition} took an outcome within {deadline:?}"
            ))
        })
    }

    /// Resolves when this node has been removed from the cluster, with who did it and why. The process should end: its
    /// replicas are with others, and nobody listens to it any more.
    pub async fn removed(&self) -> String {
        let mut removed = self.shared.removed.subscribe();
        let seen = removed.wait_for(Option::is_some).await;
        // The sender lives in `self`, so waiting cannot end otherwise.
        seen.ok().and_then(|why| why.clone()).unwrap_or_default()
    }

    /// Sets below which free space the disk of this node counts as low: it is not ready then, and partitions with
    /// fewer than a majority of voters that are not low take no mail.
    pub fn limit_space(&self, limits: SpaceLimits) {
        self.shared.groups.log().limit_space(limits);
    }

    /// Bytes that the log can still take, as they were measured last.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.shared.groups.log().space().free_bytes
    }

    /// Tells operators who watch that the certificates for clients were read again, or that they could not be.
    pub fn certificates_read(&self, done: Result<(), String>) {
        self.shared.tell(match done {
            Ok(()) => Kind::CertificatesReloaded.of(self.shared.node),
            Err(text) => pb::Event { text, ..Kind::CertificatesRefused.of(self.shared.node) },
        });
    }

    /// The disk of the log has failed, and how; `None` as long as it has not.
    #[must_use]
    pub fn disk_failure(&self) -> Option<LogError> {
        self.shared.groups.log().failure()
    }

    /// Resolves when the process must end, with the reason.
    pub async fn failed(&self) -> String {
        self.shared.groups.failed().await
    }

    /// Whether it must end because its log is damaged: then it must not be started again before it was re-seeded.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.shared.groups.is_damaged()
    }

    /// Reads the log through once in `period`, in the background, to find damage while other replicas are whole.
    ///
    /// # Errors
    /// If there can be no thread for it.
    pub fn start_scrub(&self, period: Duration) -> Result<(), PlaneError> {
        Ok(self.shared.groups.start_scrub(period)?)
    }

    /// Gives leadership away if that is quick, stops serving and closes the groups.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.give_away().await;
        self.shared.spool.save().await;
        self.shared.groups.shutdown().await;
        self.shared.closed.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for mut task in tasks {
            if timeout(limits::SHUTDOWN_ANSWERS, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

impl Shared {
    /// The control state that this node knows; empty before it knows any.
    pub(crate) fn state(&self) -> Arc<State> {
        self.view.borrow().clone()
    }

    pub(crate) fn now(&self) -> UnixMs {
        self.clock.now()
    }

    pub(crate) fn draining(&self) -> bool {
        self.state().drained(self.node) || self.was_drained.load(Ordering::Relaxed)
    }

    pub(crate) fn home(&self) -> PartitionId {
        // Numbers are at most NODE_ID_MAX.
        PartitionId::try_from(self.node).unwrap_or(PartitionId::MAX)
    }

    /// Partitions that this node leads now.
    pub(crate) fn led(&self) -> Vec<Partition> {
        self.spool.partitions().into_iter().filter(|p| p.group().leads()).collect()
    }

    pub(crate) fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.draining() {
            reasons.push("this node is drained".to_owned());
        }
        if !self.state().known() {
            reasons.push("the control group has not been heard yet".to_owned());
        }
        reasons.extend(self.shelf.behind(&self.state()));
        let home = self.home();
        match self.spool.get(home).map(|partition| partition.group()) {
            None => reasons.push(format!("partition {home} has not been started here yet")),
            Some(group) if !group.leads() => reasons.push(group.leader().map_or_else(
                || format!("partition {home} has no leader"),
                |leader| format!("partition {home} is led by node {leader}"),
            )),
            Some(group) if !group.has_lease() => {
                reasons.push(format!("partition {home} has no majority"));
            }
            Some(group) if group.headroom() == 0 => reasons.push(format!(
                "disk low: fewer than a majority of the voters of partition {home} have space for mail"
            )),
            Some(_) => {}
        }
        reasons.extend(self.disk_low());
        reasons
    }

    /// Why the disk of the log is low, if it is.
    pub(crate) fn disk_low(&self) -> Option<String> {
        let space = self.groups.log().space();
        (space.headroom() == 0).then(|| low(&space))
    }

    /// Tells whoever watches what happens.
    pub(crate) fn tell(&self, event: pb::Event) {
        let node = if event.node == 0 { self.node } else { event.node };
        self.events.tell(pb::Event { time_ms: self.now().0, node, ..event });
    }

    /// What this node tells others of itself.
    pub(crate) fn report(&self) -> pb::NodeReport {
        let partitions = self.spool.partitions();
        let groups = std::iter::once(group_report(&self.control, 0))
            .chain(partitions.iter().map(partition_report))
            .collect();
        pb::NodeReport {
            node: self.node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            not_ready: self.not_ready(),
            drain: Some(self.progress.borrow().clone()),
            groups,
            started_ms: self.started.0,
            shedding: self.hooks.shedding(),
            totals: Some(pb::Totals {
                accepted: ppsw_spool::queue::accepted_total(),
                ..self.hooks.delivered()
            }),
            tables: Some(self.tables_report()),
        }
    }

    /// Asks a node (perhaps this one) for its report; `None` if it does not answer soon.
    pub(crate) async fn ask(&self, node: NodeId) -> Option<pb::NodeReport> {
        if node == self.node {
            return Some(self.report());
        }
        let mut client = self.dialer.node(node)?;
        let answer = timeout(limits::REPORT_PATIENCE, client.report(pb::ReportRequest {})).await;
        answer.ok()?.ok().map(tonic::Response::into_inner)
    }

    /// Which of these nodes answer now.
    pub(crate) async fn answering(
        &self,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> BTreeSet<NodeId> {
        let asked = nodes.into_iter().map(|node| async move { self.ask(node).await.map(|_| node) });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Asks all members at once.
    pub(crate) async fn ask_all(&self, state: &State) -> BTreeMap<NodeId, pb::NodeReport> {
        let asked =
            state.members.keys().map(|node| async { Some((*node, self.ask(*node).await?)) });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Before an orderly stop: the successors then need no election, and need not fear attempts in flight.
    async fn give_away(&self) {
        let partitions = self.led();
        let deadline = limits::SHUTDOWN_HANDOVER;
        let partitions = partitions.iter().map(|partition| async move {
            if let Some(to) = partition.group().best_successor() {
                partition.quiesce();
                // Without success the successors hold an election.
                let _ = partition.hand_over(to, deadline).await;
            }
        });
        let control = async {
            if self.control.leads()
                && let Some(to) = self.control.best_successor()
            {
                let _ = self.control.transfer(to, deadline).await;
            }
        };
        let _ = timeout(deadline, futures::future::join(join_all(partitions), control)).await;
    }
}

/// Why a disk is low, in words.
fn low(space: &Space) -> String {
    const M: u64 = 1 << 20;
    let Space { free_bytes, free_inodes, limits, short } = *space;
    if short {
        return format!(
            "disk low: {}M are free, no space for another segment of the log",
            free_bytes / M
        );
    }
    if free_inodes < limits.inodes {
        return format!(
            "disk low: {free_inodes} inodes are free, check_spool_inodes is {}",
            limits.inodes
        );
    }
    format!("disk low: {}M are free, check_spool_space is {}M", free_bytes / M, limits.bytes / M)
}

fn group_report(group: &Group, messages: usize) -> pb::GroupReport {
    let status = group.status();
    pb::GroupReport {
        id: status.id,
        term: status.term,
        leader: status.leader.unwrap_or(0),
        leads: group.leads(),
        voters: status.voters,
        learners: status.learners,
        last_index: status.last_index,
        applied_index: status.applied_index,
        messages: messages as u64,
        quorum_age_ms: status.quorum_age_ms,
        ..pb::GroupReport::default()
    }
}

fn partition_report(partition: &Partition) -> pb::GroupReport {
    let group = partition.group();
    // What the leader keeps for replicas that lack it.
    let lags = if group.leads() { group.status().matched } else { BTreeMap::new() };
    let lags = lags
        .into_iter()
        .map(|(node, matched)| pb::Lag { node, bytes: partition.bytes_behind(matched) })
        .filter(|lag| lag.bytes > limits::LAG_REPORTED_BYTES)
        .collect();
    pb::GroupReport {
        accepts: partition.is_open(),
        idle: partition.is_idle(),
        lags,
        ..group_report(&group, partition.len())
    }
}

/// The local checkpoints of the queues. A node that cannot have them starts more slowly, and that is all.
fn open_checkpoints(
    options: &PlaneOptions,
    disk: Arc<dyn Disk>,
    node: NodeId,
    log: &Log,
) -> Option<Checkpoints> {
    let dir = options.data.join("sled");
    Checkpoints::open(disk, dir.clone(), node, log)
        .inspect_err(|error| tracing::warn!(dir = %dir.display(), "no local checkpoints: {error}"))
        .ok()
}

async fn open_log(options: &PlaneOptions, disk: Arc<dyn Disk>) -> Result<Log, PlaneError> {
    let options = Options {
        dir: options.data.join("log"),
        segment_bytes: options.segment_bytes,
        cache_bytes: options.cache_bytes,
    };
    // Recovery reads the whole log.
    let opened = tokio::task::spawn_blocking(move || Log::open(disk, options)).await;
    opened
        .map_err(|error| PlaneError::Refused(format!("opening the log ended: {error}")))?
        .map_err(Into::into)
}
