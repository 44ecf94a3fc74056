//! What each node does by itself: it compares what the control group wants with what is, at every change and every
//! second, and takes the next safe step. Everything here may be repeated or cut short at any point.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use ppsw_proto::control::{self as pb, command::Change};
use ppsw_spool::{NodeId, PartitionId, queue::Partition};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    access, drain,
    identity::AddressBook,
    limits, placement,
    plane::{CONTROL, Shared},
    state::State,
    tend::{forget, retire, same, step_towards, tend},
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
    book: AddressBook,
    /// Asks another node for its state, although there is an own one.
    asking: Option<JoinHandle<Option<State>>>,
    asked: Instant,
    /// Replay of the control group's log has reached what was there when a leader was first seen.
    settled: bool,
    goal: Option<u64>,
    round: usize,
}

impl Agent {
    pub(crate) fn new(shared: Arc<Shared>, book: AddressBook) -> Self {
        let asked = shared.clock.instant();
        Self {
            asked,
            asking: None,
            shared,
            tending: HashMap::new(),
            announcing: None,
            drain: None,
            told: book.drained,
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
                () = self.shared.look.notified() => {}
                () = sleep(limits::RECONCILE_INTERVAL) => {}
            }
        }
        let tasks = self.tending.into_values().chain(self.announcing).chain(self.drain);
        self.asking.iter().for_each(JoinHandle::abort);
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
            let own = self.shared.machine.watch().borrow().clone();
            // Nobody tells a voter that it is none any more: its own replica may stand still.
            let other = self.second_opinion().await.filter(|other| other.revision > own.revision);
            Some(other.map_or(own, Arc::new))
        } else {
            borrow_state(&self.shared, self.round).await.map(Arc::new)
        };
        let known = self.shared.state().revision.max(self.book.revision);
        let newer = |state: &Arc<State>| state.known() && state.revision >= known;
        let Some(fresh) = fresh.filter(newer) else { return };
        if *self.shared.state() != *fresh {
            self.shared.view.send_replace(Arc::clone(&fresh));
        }
        self.shared.was_drained.store(false, Ordering::Relaxed);
        self.keep_book(&fresh).await;
    }

    /// What another node says, now and then, and unless this one leads the control group.
    async fn second_opinion(&mut self) -> Option<State> {
        if self.asking.as_ref().is_some_and(JoinHandle::is_finished) {
            return self.asking.take()?.await.ok()?;
        }
        let now = self.shared.clock.instant();
        let due = now.saturating_duration_since(self.asked) >= limits::MEMBERSHIP_CHECK;
        if due && self.asking.is_none() && !self.shared.control.leads() {
            self.asked = now;
            let (shared, round) = (Arc::clone(&self.shared), self.round);
            self.asking = Some(tokio::spawn(async move { borrow_state(&shared, round).await }));
        }
        None
    }

    /// Addresses for dialling, now and at the next start.
    async fn keep_book(&mut self, state: &State) {
        let mut book = AddressBook::of(state, self.shared.node);
        book.home_made = self.book.home_made;
        if book == self.book {
            return;
        }
        let addresses = book.members.iter().map(|m| (m.id, m.control.clone())).collect();
        self.shared.dialer.update(addresses);
        self.store_book(book).await;
    }

    async fn store_book(&mut self, book: AddressBook) {
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
        // One that was drained when it started has had no sessions: nobody needs notice.
        let notice =
            if self.told { std::time::Duration::ZERO } else { self.shared.options.drain_notice };
        if !drained && self.told {
            self.shared.hooks.set_draining(false);
        }
        self.told = drained;
        if drained && self.drain.is_none() {
            self.drain = Some(tokio::spawn(drain::run(Arc::clone(&self.shared), notice)));
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
        let signs = self.shared.identity.ca_key.is_some();
        let running = self.announcing.as_ref().is_some_and(|task| !task.is_finished());
        let told = member.started && member.signs == signs;
        if running || (told && member.control == control && member.http == http) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.announcing = Some(tokio::spawn(async move {
            let change = Change::Announce(pb::Announce { node: shared.node, control, http, signs });
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
            if *id == self.shared.home() && !self.book.home_made {
                self.make_home(&partition).await;
            }
        }
        for partition in self.shared.spool.partitions() {
            // One without a home is to get empty.
            partition.set_open(!state.is_orphan(partition.id()));
        }
    }

    /// Once in the life of a node: later, its partition may live on others while this node has no replica of it.
    async fn make_home(&mut self, partition: &Partition) {
        if let Err(error) = partition.group().initialise(&[self.shared.node]).await {
            tracing::warn!(partition = partition.id(), %error, "cannot initialise");
            return;
        }
        let mut book = self.book.clone();
        book.home_made = true;
        self.store_book(book).await;
    }

    /// The control leader founds the cluster's record, keeps the wanted placement right, and gives votes.
    fn tend_control(&mut self, state: &Arc<State>) {
        let shared = &self.shared;
        if !shared.control.leads() || self.tending.contains_key(&CONTROL) {
            return;
        }
        let voters = shared.control.status().voters;
        let wanted = placement::control_voters(&state.present());
        let differs = !wanted.is_empty() && !same(&voters, &wanted);
        let misplaced = placement::misplaced(state);
        let found = !state.known() && self.settled;
        if !(found || (state.known() && (differs || !misplaced.is_empty()))) {
            return;
        }
        let (shared, round) = (Arc::clone(shared), self.round);
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
            if differs {
                step_towards(&shared, &shared.control, &wanted, round).await;
            }
        });
        self.tending.insert(CONTROL, task);
    }

    fn tend_partitions(&mut self, state: &Arc<State>) {
        let node = self.shared.node;
        let drained = state.drained(node);
        for partition in self.shared.spool.partitions() {
            let id = partition.id();
            if self.tending.contains_key(&id) {
                continue;
            }
            let (shared, state, round) = (Arc::clone(&self.shared), Arc::clone(state), self.round);
            let wanted = state.partitions.get(&id).cloned().unwrap_or_default();
            // A drain hands over; a change of voters would be in its way. What an absent node has will be of use when it
            // gets its votes back.
            let unwanted = !wanted.is_empty() && !wanted.contains(&node);
            let task = if state.is_retired(id) {
                tokio::spawn(async move { forget(&shared, id, "the partition is retired").await })
            } else if partition.group().leads() {
                if drained {
                    continue;
                }
                tokio::spawn(tend(shared, partition, state, wanted, round))
            } else if unwanted && !state.away.contains_key(&node) {
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
        ..pb::Member::default()
    };
    let found = pb::Found { cluster: shared.identity.cluster.clone(), first: Some(first) };
    if let Err(error) = shared.command(Change::Found(found)).await {
        tracing::warn!(%error, "cannot found the cluster");
    }
}

/// The state as another node has it: the first that answers, beginning with another one each time.
async fn borrow_state(shared: &Shared, round: usize) -> Option<State> {
    let mut others: Vec<NodeId> = shared.dialer.known();
    others.retain(|node| *node != shared.node);
    if !others.is_empty() {
        let first = round % others.len();
        others.rotate_left(first);
    }
    for node in others {
        let Some(mut client) = shared.dialer.node(node) else { continue };
        match timeout(limits::REPORT_PATIENCE, client.state(pb::StateRequest {})).await {
            Ok(Ok(reply)) => {
                let state = reply.into_inner().state.map(State::from_proto);
                if let Some(Ok(state)) = state
                    && state.known()
                {
                    return Some(state);
                }
            }
            Ok(Err(status)) => {
                if let Some(why) = access::removed(&status) {
                    tracing::warn!(why, "this node is no member any more");
                    shared.removed.send_replace(Some(why));
                    return None;
                }
            }
            Err(_) => {}
        }
    }
    None
}
