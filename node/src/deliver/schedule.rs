//! Takes due messages and keeps count of those in flight.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use ppsw_spool::{
    PartitionId,
    queue::{MessageId, MessageState, Pulse, Turn},
};
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use super::{
    Parts,
    attempt::{Ended, Workshop},
    lanes::Lanes,
    seams::QueueSource,
    transmit::{Transmitter, quit_all},
};
use crate::limits::{
    DESTINATION_FULL_DELAY, DUE_BATCH, MESSAGES_TAKEN_MAX, POSTPONED_MAX, RETRIES_TAKEN_MAX,
    SCAN_COALESCE, SCAN_INTERVAL, SCAN_PAUSE_FACTOR,
};

/// Delivers the messages of the partitions that this node leads. Clones share it.
#[derive(Clone)]
pub struct Deliverer {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    workshop: Workshop,
    taken: Mutex<Taken>,
    /// An attempt ended, or delivery is to stop.
    changed: Notify,
    attempts: TaskTracker,
    /// Nothing runs any more.
    ended: watch::Sender<bool>,
}

/// Messages that are not to be taken (again) now.
#[derive(Default)]
struct Taken {
    in_flight: BTreeMap<PartitionId, HashSet<MessageId>>,
    count: usize,
    /// Of these, messages that had been tried before.
    retries: usize,
    postponed: HashMap<MessageId, Instant>,
    /// When those that have waited for long were last looked for.
    swept: Option<Instant>,
}

impl Deliverer {
    /// Starts to deliver; [`Self::finish`] ends it.
    #[must_use]
    pub fn start(parts: Parts) -> Self {
        let deliverer = Self::new(parts);
        let running = deliverer.clone();
        tokio::spawn(async move { running.run_all().await });
        deliverer
    }

    /// Everything that it does, until [`Self::stop`]. To be called once.
    pub(super) async fn run_all(&self) {
        tokio::select! {
            () = self.run() => {}
            () = self.follow_suspensions() => {}
        }
    }

    /// A deliverer that does nothing until it runs.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let transmitter = Transmitter::new(
            Arc::clone(&parts.connector),
            Arc::clone(&parts.clock),
            parts.name.clone(),
            parts.sources.clone(),
        )
        .watched(parts.tracer.clone());
        let stopped = AtomicBool::new(false);
        describe_metrics();
        let (lanes, suspended_by) = (Lanes::new(), Mutex::default());
        let workshop = Workshop { parts, transmitter, lanes, suspended_by, stopped };
        let shared = Shared {
            workshop,
            taken: Mutex::default(),
            changed: Notify::new(),
            attempts: TaskTracker::new(),
            ended: watch::Sender::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Delivers until [`Self::stop`]; then waits for the attempts in flight to be recorded. To be called once.
    pub async fn run(&self) {
        let shared = &self.shared;
        let mut pulses: BTreeMap<PartitionId, watch::Receiver<Pulse>> = BTreeMap::new();
        while !shared.workshop.stopped.load(Ordering::Acquire) {
            let sources = shared.workshop.parts.queues.partitions();
            pulses.retain(|id, _| sources.iter().any(|source| source.id() == *id));
            for source in &sources {
                // Seen before the queue is looked at: no change is missed.
                pulses.entry(source.id()).or_insert_with(|| source.watch()).mark_unchanged();
            }
            let begin = shared.workshop.parts.clock.instant();
            shared.forget_postponed(begin);
            shared.take(&sources);
            let took = shared.workshop.parts.clock.instant().saturating_duration_since(begin);
            shared.wait(&sources, &mut pulses).await;
            tokio::time::sleep(SCAN_COALESCE.max(took * SCAN_PAUSE_FACTOR)).await;
            shared.tidy();
        }
        shared.attempts.close();
        shared.attempts.wait().await;
        quit_all(shared.workshop.transmitter.idle()).await;
        shared.ended.send_replace(true);
    }

    /// Takes no more messages, and gives up what has not come to its final dot.
    pub fn stop(&self) {
        self.shared.workshop.stopped.store(true, Ordering::Release);
        self.shared.changed.notify_one();
    }

    /// Stops, and waits up to `patience` until all that was sent is recorded. False: something is left.
    pub async fn finish(&self, patience: Duration) -> bool {
        self.stop();
        let mut ended = self.shared.ended.subscribe();
        // The sender lives in `shared`, so the wait ends by the value alone.
        tokio::time::timeout(patience, ended.wait_for(|ended| *ended)).await.is_ok()
    }

    /// Attempts of a partition that have begun and are not yet recorded: a drain waits until there are none.
    #[must_use]
    pub fn attempts_in_flight(&self, partition: PartitionId) -> usize {
        self.shared.lock().in_flight.get(&partition).map_or(0, HashSet::len)
    }
}

impl std::fmt::Debug for Deliverer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deliverer").field("in_flight", &self.shared.lock().count).finish()
    }
}

impl Shared {
    pub(super) fn workshop(&self) -> &Workshop {
        &self.workshop
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts attempts for due messages, those first that have not been tried yet.
    fn take(self: &Arc<Self>, sources: &[Arc<dyn QueueSource>]) {
        let turns = self.turns();
        for turn in turns {
            for source in sources.iter().filter(|source| source.may_deliver()) {
                let room = self.lock().room(turn);
                if room == 0 {
                    continue;
                }
                let id = source.id();
                let skip = |message| self.lock().holds(id, message);
                let due = source.due(self.workshop.parts.clock.now(), turn, room, &skip);
                if due.len() == room {
                    // There may be more.
                    self.changed.notify_one();
                }
                for message in due {
                    self.start(source, turn, message.id);
                }
            }
        }
    }

    /// What may be taken by the load of the machine (`queue_only_load`, `deliver_queue_load_max`).
    fn turns(&self) -> Vec<Turn> {
        let routing = self.workshop.parts.router.current();
        let options = routing.options();
        let limits =
            [(Turn::First, options.queue_only_load), (Turn::Again, options.deliver_queue_load_max)];
        let parts = &self.workshop.parts;
        let load = || parts.load.hundredths(parts.clock.instant());
        // A load that is not known is below everything.
        let below = |most: Option<u32>| most.is_none_or(|most| load().is_none_or(|is| is <= most));
        limits.into_iter().filter(|(_, most)| below(*most)).map(|(turn, _)| turn).collect()
    }

    fn start(self: &Arc<Self>, source: &Arc<dyn QueueSource>, turn: Turn, id: MessageId) {
        let Some(mut taken) = Token::take(self, source.id(), turn, id) else { return };
        // Asked anew under the token: an attempt that ended while the queue was looked at has changed it.
        let Some(message) = source.get(id) else { return };
        let now = self.workshop.parts.clock.now();
        if message.state != MessageState::Queued || message.not_before > now {
            return;
        }
        let source = Arc::clone(source);
        self.attempts.spawn(async move {
            // The token is given back when the outcome is recorded, and not before.
            taken.ended = taken.shared.workshop.attempt(&*source, &message).await;
            drop(taken);
        });
    }

    /// Lets messages be taken again for which there is room now, or which have waited for long.
    fn forget_postponed(&self, now: Instant) {
        let released = self.workshop.lanes.released();
        let mut taken = self.lock();
        for id in released {
            taken.postponed.remove(&id);
        }
        let swept = taken.swept.is_some_and(|at| now < at + SCAN_INTERVAL);
        if !swept {
            taken.swept = Some(now);
            taken.postponed.retain(|_, until| *until > now);
        }
    }

    /// Ends idle connections, not in anybody's way.
    fn tidy(self: &Arc<Self>) {
        let expired = self.workshop.transmitter.expired();
        if !expired.is_empty() {
            self.attempts.spawn(quit_all(expired));
        }
    }

    /// Waits until there may be something to take.
    async fn wait(
        &self,
        sources: &[Arc<dyn QueueSource>],
        pulses: &mut BTreeMap<PartitionId, watch::Receiver<Pulse>>,
    ) {
        let now = self.workshop.parts.clock.now();
        let due = sources.iter().filter(|source| source.may_deliver());
        // What is due already is in flight: its end wakes us.
        let due = due.filter_map(|source| source.next_due()).filter(|due| *due > now).min();
        let pause = due.map_or(SCAN_INTERVAL, |due| due.since(now)).min(SCAN_INTERVAL);
        let pulse = async {
            if pulses.is_empty() {
                std::future::pending::<()>().await;
            }
            futures::future::select_all(pulses.values_mut().map(|p| Box::pin(changed(p)))).await;
        };
        tokio::select! {
            () = self.changed.notified() => {}
            () = pulse => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn describe_metrics() {
    describe_counter!(
        "ppsw_delivery_attempts_total",
        "Addresses tried, by result (delivered, deferred, failed) and transport (smtp, lmtp, none)"
    );
    describe_histogram!(
        "ppsw_delivery_seconds",
        Unit::Seconds,
        "From the first connection for an address to its answer, by transport"
    );
    describe_gauge!("ppsw_deliveries_in_flight", "Transactions with other servers that run");
    describe_counter!(
        "ppsw_delivery_connections_total",
        "Connections to other servers, by tls (yes, no, failed)"
    );
    describe_counter!("ppsw_bounces_total", "Bounces, delay warnings and relay reports made");
    describe_counter!(
        "ppsw_outcomes_forwarded_total",
        "Outcomes that were recorded by another node, after the partition had moved"
    );
    describe_counter!(
        "ppsw_operated_messages_total",
        "Messages that operators did something with, by verb (retried, held, released, bounced, dropped, redirected)"
    );
    describe_counter!(
        "ppsw_outcomes_lost_total",
        "Outcomes that could be recorded nowhere: each may make a duplicate"
    );
}

/// A change of the queue. A queue that is gone does not change.
async fn changed(pulse: &mut watch::Receiver<Pulse>) {
    if pulse.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Taken {
    /// How many messages of a turn may be taken from one queue.
    fn room(&self, turn: Turn) -> usize {
        if self.postponed.len() >= POSTPONED_MAX {
            return 0;
        }
        let room = MESSAGES_TAKEN_MAX.saturating_sub(self.count);
        let room = match turn {
            Turn::First => room,
            Turn::Again => room.min(RETRIES_TAKEN_MAX.saturating_sub(self.retries)),
        };
        room.min(DUE_BATCH)
    }

    fn holds(&self, partition: PartitionId, message: MessageId) -> bool {
        self.postponed.contains_key(&message)
            || self.in_flight.get(&partition).is_some_and(|ids| ids.contains(&message))
    }
}

/// The right to attempt one message, or to end it, exclusive on this node.
pub(super) struct Token {
    shared: Arc<Shared>,
    partition: PartitionId,
    message: MessageId,
    turn: Turn,
    ended: Ended,
}

impl Token {
    pub(super) fn take(
        shared: &Arc<Shared>,
        partition: PartitionId,
        turn: Turn,
        message: MessageId,
    ) -> Option<Self> {
        let mut taken = shared.lock();
        if !taken.in_flight.entry(partition).or_default().insert(message) {
            return None;
        }
        taken.count += 1;
        taken.retries += usize::from(turn == Turn::Again);
        Some(Self { shared: Arc::clone(shared), partition, message, turn, ended: Ended::Done })
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let mut taken = self.shared.lock();
        let empty = taken.in_flight.get_mut(&self.partition).is_some_and(|ids| {
            ids.remove(&self.message);
            ids.is_empty()
        });
        if empty {
            taken.in_flight.remove(&self.partition);
        }
        taken.count -= 1;
        taken.retries -= usize::from(self.turn == Turn::Again);
        if self.ended == Ended::Postponed {
            let until = self.shared.workshop.parts.clock.instant() + DESTINATION_FULL_DELAY;
            taken.postponed.insert(self.message, until);
        }
        drop(taken);
        self.shared.changed.notify_one();
    }
}
