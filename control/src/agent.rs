//! What each node does by itself: it compares what the control group wants with what is, at every change and every
//! second, and takes the next safe step. Everything here may be repeated or cut short at any point.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ppsw_proto::control::{self as pb, command::Change};
use ppsw_spool::{NodeId, PartitionId, group::Group, queue::Partition};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    drain,
    identity::AddressBook,
    limits,
    placement::{self, Step},
    plane::{CONTROL, Shared},
    state::State,
};

/// The loop and what it remembers.
pub(crate) struct Agent {
    shared: Arc<Shared>,
    /// At most one change at a time for each group.
    tending: HashMap<PartitionId, JoinHandle<()>>,
    announcing: Option<JoinHandle<()>>,
    drain: Option<JoinHandle<()>>,
    /// What the node was told last of its being drained.
    told: bool,
    /// Home partition has been initialised, or was before.
    initialised: HashSet<PartitionId>,
    book: AddressBook,
    /// Replay of the control group's log has reached what was there when a leader was first seen.
    settled: bool,
    goal: Option<u64>,
    round: usize,
}

impl Agent {
    pub(crate) fn new(shared: Arc<Shared>, book: AddressBook) -> Self {
        Self {
            shared,
            tending: HashMap::new(),
            announcing: None,
            drain: None,
            told: book.drained,
            initialised: HashSet::new(),
            book,
            settled: false,
            goal: None,
            round: 0,
        }
    }

    /// Runs until the plane stops.
    pub(crate) async fn run(mut self) {
        let mut changes = self.shared.machine.watch();
        let mut leadership = self.shared.machine.watch_leadership();
        let stop = self.shared.stop.clone();
        while !stop.is_cancelled() {
            self.step().await;
            // The senders live in `shared`, so a change is the only thing that these can report.
            tokio::select! {
                () = stop.cancelled() => {}
                _ = changes.changed() => {}
                _ = leadership.changed() => {}
                () = sleep(limits::RECONCILE_INTERVAL) => {}
            }
        }
        let tasks = self.tending.into_values().chain(self.announcing).chain(self.drain);
        tasks.for_each(|task| task.abort());
    }

    async fn step(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.follow_state().await;
        let state = self.shared.state();
        self.tending.retain(|_, task| !task.is_finished());
        self.tend_control(&state);
        if !state.known() {
            return;
        }
        self.follow_drain(&state);
        self.announce(&state);
        self.open_partitions(&state).await;
        self.tend_partitions(&state);
        self.trim().await;
    }

    /// Takes the newest control state: from the own replica once it is not of the past, or, while this node has no
    /// vote in the control group, from a node that has.
    async fn follow_state(&mut self) {
        let status = self.shared.control.status();
        if self.goal.is_none() && status.leader.is_some() {
            self.goal = status.last_index;
        }
        self.settled |= self.shared.control.leads()
            || self.goal.is_some_and(|goal| status.applied_index.is_some_and(|at| at >= goal));
        let fresh = if self.settled && status.voters.contains(&self.shared.node) {
            Some(self.shared.machine.watch().borrow().clone())
        } else {
            self.borrow_state().await.map(Arc::new)
        };
        let Some(fresh) = fresh.filter(|state| state.known()) else { return };
        if *self.shared.state() != *fresh {
            self.shared.view.send_replace(Arc::clone(&fresh));
        }
        self.shared.was_drained.store(false, Ordering::Relaxed);
        self.keep_book(&fresh).await;
    }

    async fn borrow_state(&self) -> Option<State> {
        for node in self.shared.dialer.known() {
            if node == self.shared.node {
                continue;
            }
            let Some(mut client) = self.shared.dialer.node(node) else { continue };
            let asked = timeout(limits::REPORT_PATIENCE, client.state(pb::StateRequest {})).await;
            if let Ok(Ok(reply)) = asked
                && let Some(state) = reply.into_inner().state
                && let Ok(state) = State::from_proto(state)
                && state.known()
            {
                return Some(state);
            }
        }
        None
    }

    /// Addresses for dialling, now and at the next start.
    async fn keep_book(&mut self, state: &State) {
        let book = AddressBook::of(state, self.shared.node);
        if book == self.book {
            return;
        }
        let addresses = book.members.iter().map(|m| (m.id, m.control.clone())).collect();
        self.shared.dialer.update(addresses);
        let (data, copy) = (self.shared.options.data.clone(), book.clone());
        let stored = tokio::task::spawn_blocking(move || copy.store(&data)).await;
        match stored {
            Ok(Ok(())) => self.book = book,
            Ok(Err(error)) => tracing::error!(%error, "cannot keep the members' addresses"),
            // Only at the end of the runtime.
            Err(_) => {}
        }
    }

    fn follow_drain(&mut self, state: &State) {
        let drained = state.drained(self.shared.node);
        if drained != self.told {
            self.shared.hooks.set_draining(drained);
            self.told = drained;
        }
        if drained && self.drain.is_none() {
            self.drain = Some(tokio::spawn(drain::run(Arc::clone(&self.shared))));
        } else if !drained && let Some(task) = self.drain.take() {
            task.abort();
            self.shared.progress.send_replace(pb::DrainProgress::default());
            self.shared.spool.partitions().iter().for_each(Partition::resume);
        }
        metrics::gauge!("ppsw_drained").set(u8::from(drained));
        metrics::gauge!("ppsw_led_partitions").set(self.shared.led().len() as f64);
    }

    /// Tells the control group where this node serves, if it has moved.
    fn announce(&mut self, state: &State) {
        let Some(member) = state.members.get(&self.shared.node) else { return };
        let options = &self.shared.options;
        let control = options.listen.to_string();
        let http = options.http.map(|address| address.to_string()).unwrap_or_default();
        let running = self.announcing.as_ref().is_some_and(|task| !task.is_finished());
        if running || (member.control == control && member.http == http) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.announcing = Some(tokio::spawn(async move {
            let change = Change::Announce(pb::Announce { node: shared.node, control, http });
            if let Err(error) = shared.command(change).await {
                tracing::warn!(%error, "cannot announce this node's addresses");
            }
        }));
    }

    async fn open_partitions(&mut self, state: &State) {
        let node = self.shared.node;
        for (id, voters) in &state.partitions {
            if !voters.contains(&node) || self.tending.contains_key(id) {
                continue;
            }
            let partition = match self.shared.spool.open(*id).await {
                Ok(partition) => partition,
                Err(error) => {
                    tracing::error!(partition = id, %error, "cannot start a partition");
                    continue;
                }
            };
            if *id == self.shared.home() && !self.initialised.contains(id) {
                match partition.group().initialise(&[node]).await {
                    Ok(()) => {
                        self.initialised.insert(*id);
                    }
                    Err(error) => tracing::warn!(partition = id, %error, "cannot initialise"),
                }
            }
        }
    }

    /// The control leader founds the cluster's record, keeps the wanted placement right, and gives votes.
    fn tend_control(&mut self, state: &Arc<State>) {
        let shared = &self.shared;
        if !shared.control.leads() || self.tending.contains_key(&CONTROL) {
            return;
        }
        let members = state.members.keys().copied().collect();
        let voters = shared.control.status().voters;
        let wanted = placement::control_voters(&members);
        let step = placement::next_step(&voters, &wanted, shared.node, self.round);
        let misplaced = placement::misplaced(state);
        let found = !state.known() && self.settled;
        if !(found || (state.known() && (step.is_some() || !misplaced.is_empty()))) {
            return;
        }
        let shared = Arc::clone(shared);
        let task = tokio::spawn(async move {
            if found {
                return found_cluster(&shared).await;
            }
            for (partition, voters) in misplaced {
                tracing::info!(partition, ?voters, "new placement");
                let place = pb::Place { partition, voters };
                if let Err(error) = shared.command(Change::Place(place)).await {
                    tracing::warn!(partition, %error, "cannot place a partition");
                }
            }
            if let Some(step) = step {
                take_step(&shared.control, step).await;
            }
        });
        self.tending.insert(CONTROL, task);
    }

    fn tend_partitions(&mut self, state: &Arc<State>) {
        if state.drained(self.shared.node) {
            // The drain hands over; a change of voters would be in its way.
            return;
        }
        for partition in self.shared.spool.partitions() {
            let id = partition.id();
            if self.tending.contains_key(&id) {
                continue;
            }
            let (shared, state, round) = (Arc::clone(&self.shared), Arc::clone(state), self.round);
            let wanted = state.partitions.get(&id).cloned().unwrap_or_default();
            let task = if partition.group().leads() {
                tokio::spawn(tend(shared, partition, state, wanted, round))
            } else if !wanted.is_empty() && !wanted.contains(&shared.node) {
                tokio::spawn(retire(shared, id, wanted))
            } else {
                continue;
            };
            self.tending.insert(id, task);
        }
    }

    /// Keeps the control group's log short.
    async fn trim(&self) {
        let status = self.shared.control.status();
        let purged = status.purged_index.unwrap_or(0);
        let behind = status.applied_index.unwrap_or(0).saturating_sub(purged);
        if behind > limits::CONTROL_CHECKPOINT_ENTRIES
            && let Err(error) = self.shared.control.checkpoint().await
        {
            tracing::warn!(%error, "cannot take a checkpoint of the control group");
        }
    }
}

/// The first entry ever.
async fn found_cluster(shared: &Shared) {
    if !shared.identity.founder {
        return;
    }
    let options = &shared.options;
    let first = pb::Member {
        id: shared.node,
        name: format!("node-{}", shared.node),
        control: options.listen.to_string(),
        http: options.http.map(|address| address.to_string()).unwrap_or_default(),
        joined_ms: shared.now().0,
        key_hash: bytes::Bytes::new(),
    };
    let found = pb::Found { cluster: shared.identity.cluster.clone(), first: Some(first) };
    if let Err(error) = shared.command(Change::Found(found)).await {
        tracing::warn!(%error, "cannot found the cluster");
    }
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
async fn tend(
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
    if let Some(step) = placement::next_step(&status.voters, &wanted, shared.node, round) {
        return take_step(&group, step).await;
    }
    if let Some(stray) = status.learners.iter().find(|node| !wanted.contains(node)) {
        return take_step(&group, Step::Remove(*stray)).await;
    }
    let to = if wanted.contains(&shared.node) {
        home_to_go_to(&shared, &partition, &state).await
    } else {
        group.best_successor()
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
async fn retire(shared: Arc<Shared>, partition: PartitionId, wanted: Vec<NodeId>) {
    for node in wanted {
        let Some(report) = shared.ask(node).await else { continue };
        let led = report.groups.iter().find(|group| group.id == partition && group.leads);
        let Some(group) = led else { continue };
        if group.voters.contains(&shared.node) || group.learners.contains(&shared.node) {
            break;
        }
        match shared.spool.close(partition).await {
            Ok(()) => tracing::info!(partition, "a replica that is not wanted here is gone"),
            Err(error) => tracing::error!(partition, %error, "cannot close a replica"),
        }
        return;
    }
    sleep(Duration::from_secs(5)).await;
}
