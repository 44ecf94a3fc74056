//! Takes due messages and keeps count of those in flight.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ppsw_spool::{
    PartitionId,
    env::Clock,
    queue::{MessageId, Pulse, QueuedMessage},
};
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use super::{
    Parts,
    attempt::{Ended, Workshop},
    connect::TcpConnector,
    lanes::Lanes,
    seams::{Forward, QueueSource, Queues, Router},
    transmit::{Transmitter, quit_all},
};
use crate::{
    limits::{
        DESTINATION_FULL_DELAY, DUE_BATCH, MESSAGES_TAKEN_MAX, POSTPONED_MAX, SCAN_COALESCE,
        SCAN_INTERVAL,
    },
    maillog::MailLog,
};

/// Delivers the messages of the partitions that this node leads. Clones share it.
#[derive(Clone)]
pub struct Deliverer {
    shared: Arc<Shared>,
}

struct Shared {
    workshop: Workshop,
    taken: Mutex<Taken>,
    /// An attempt ended, or delivery is to stop.
    changed: Notify,
    attempts: TaskTracker,
    /// The loop that takes messages.
    loops: TaskTracker,
}

/// Messages that are not to be taken (again) now.
#[derive(Default)]
struct Taken {
    in_flight: BTreeMap<PartitionId, HashSet<MessageId>>,
    count: usize,
    postponed: HashMap<MessageId, Instant>,
}

impl Deliverer {
    /// Starts to deliver, over TCP, until [`Self::finish`].
    #[must_use]
    pub fn start(
        name: String,
        queues: Arc<dyn Queues>,
        router: Arc<dyn Router>,
        forward: Arc<dyn Forward>,
        log: MailLog,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let connector = Arc::new(TcpConnector);
        Self::with(Parts { name, queues, router, connector, forward, clock, log })
    }

    /// Like [`Self::start`], with whatever connections.
    #[must_use]
    pub fn with(parts: Parts) -> Self {
        let transmitter = Transmitter::new(
            Arc::clone(&parts.connector),
            Arc::clone(&parts.clock),
            parts.name.clone(),
        );
        let stopped = AtomicBool::new(false);
        let workshop = Workshop { parts, transmitter, lanes: Lanes::new(), stopped };
        let shared = Shared {
            workshop,
            taken: Mutex::default(),
            changed: Notify::new(),
            attempts: TaskTracker::new(),
            loops: TaskTracker::new(),
        };
        let deliverer = Self { shared: Arc::new(shared) };
        let running = deliverer.clone();
        deliverer.shared.loops.spawn(async move { running.run().await });
        deliverer
    }

    async fn run(&self) {
        let shared = &self.shared;
        let mut pulses: BTreeMap<PartitionId, watch::Receiver<Pulse>> = BTreeMap::new();
        while !shared.workshop.stopped.load(Ordering::Acquire) {
            let sources = shared.workshop.parts.queues.partitions();
            pulses.retain(|id, _| sources.iter().any(|source| source.id() == *id));
            for source in &sources {
                // Seen before the queue is looked at: no change is missed.
                pulses.entry(source.id()).or_insert_with(|| source.watch()).mark_unchanged();
            }
            if !shared.take(&sources) {
                shared.wait(&sources, &mut pulses).await;
            }
            shared.tidy();
        }
        shared.attempts.close();
        shared.attempts.wait().await;
        quit_all(shared.workshop.transmitter.idle()).await;
    }

    /// Takes no more messages, gives up what has not come to its final dot, and waits up to `patience` for the rest
    /// to be recorded. False: something is left.
    pub async fn finish(&self, patience: Duration) -> bool {
        self.shared.workshop.stopped.store(true, Ordering::Release);
        self.shared.changed.notify_one();
        self.shared.loops.close();
        tokio::time::timeout(patience, self.shared.loops.wait()).await.is_ok()
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
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts attempts for due messages. True if there may be more at once.
    fn take(self: &Arc<Self>, sources: &[Arc<dyn QueueSource>]) -> bool {
        let clock = &self.workshop.parts.clock;
        let mut more = false;
        for source in sources {
            if !source.may_deliver() {
                continue;
            }
            let room = {
                let mut taken = self.lock();
                let now = clock.instant();
                taken.postponed.retain(|_, until| *until > now);
                if taken.postponed.len() >= POSTPONED_MAX {
                    0
                } else {
                    (MESSAGES_TAKEN_MAX - taken.count.min(MESSAGES_TAKEN_MAX)).min(DUE_BATCH)
                }
            };
            if room == 0 {
                continue;
            }
            let id = source.id();
            let skip = |message| self.lock().holds(id, message);
            let due = source.due(clock.now(), room, &skip);
            more |= due.len() == room;
            for message in due {
                self.start(source, message);
            }
        }
        more
    }

    fn start(self: &Arc<Self>, source: &Arc<dyn QueueSource>, message: Arc<QueuedMessage>) {
        let Some(mut taken) = Token::take(self, source.id(), message.id) else { return };
        let source = Arc::clone(source);
        self.attempts.spawn(async move {
            // The token is given back when the outcome is recorded, and not before.
            taken.ended = taken.shared.workshop.attempt(&*source, &message).await;
            drop(taken);
        });
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
        tokio::time::sleep(SCAN_COALESCE).await;
    }
}

/// A change of the queue. A queue that is gone does not change.
async fn changed(pulse: &mut watch::Receiver<Pulse>) {
    if pulse.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Taken {
    fn holds(&self, partition: PartitionId, message: MessageId) -> bool {
        self.postponed.contains_key(&message)
            || self.in_flight.get(&partition).is_some_and(|ids| ids.contains(&message))
    }
}

/// The right to attempt one message, exclusive on this node.
struct Token {
    shared: Arc<Shared>,
    partition: PartitionId,
    message: MessageId,
    ended: Ended,
}

impl Token {
    fn take(shared: &Arc<Shared>, partition: PartitionId, message: MessageId) -> Option<Self> {
        let mut taken = shared.lock();
        if !taken.in_flight.entry(partition).or_default().insert(message) {
            return None;
        }
        taken.count += 1;
        Some(Self { shared: Arc::clone(shared), partition, message, ended: Ended::Done })
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
        if self.ended == Ended::Postponed {
            let until = self.shared.workshop.parts.clock.instant() + DESTINATION_FULL_DELAY;
            taken.postponed.insert(self.message, until);
        }
        drop(taken);
        self.shared.changed.notify_one();
    }
}
