//! A Raft group of one that does what a test wants of it, and a clock that stands still.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use super::*;
use crate::{
    NodeId,
    env::Clock,
    group::{ChangeError, Leadership, Machine, Position, ProposeError, Reply},
    log::LogError,
    queue::{
        ids::Ids,
        machine::QueueMachine,
        replica::{Proposals, Replica},
    },
};

pub(super) const NODE: NodeId = 1;

/// What becomes of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Applied and answered, one for each permit of the gate.
    Commits,
    /// Applied, but the proposer never hears of it.
    Mute,
    /// Another node leads.
    Elsewhere,
}

pub(super) struct Fake {
    machine: Arc<QueueMachine>,
    pub(super) log: Mutex<Vec<Bytes>>,
    pub(super) mode: Mutex<Mode>,
    /// Proposals that may be committed.
    pub(super) gate: Semaphore,
    pub(super) term: AtomicU64,
    /// Proposals that wait, now and at most.
    waiting: AtomicU64,
    pub(super) waiting_most: AtomicU64,
    trimmed: AtomicU64,
    pub(super) trim_wanted: watch::Sender<Option<u64>>,
    /// Whether `forward` finds a leader.
    pub(super) leader_known: Mutex<bool>,
    /// What the disks can take.
    pub(super) headroom: AtomicU64,
}

#[async_trait]
impl Proposals for Fake {
    async fn propose_within(
        &self,
        payload: Bytes,
        _: Duration,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        self.waiting_most.fetch_max(waiting, Ordering::SeqCst);
        let permit = tokio::time::timeout(deadline, self.gate.acquire()).await;
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        match permit {
            Ok(permit) => permit.unwrap().forget(),
            Err(_) => return Err(ProposeError::Timeout(deadline)),
        }
        let mode = *self.mode.lock().unwrap();
        if mode == Mode::Elsewhere {
            return Err(ProposeError::NotLeader { leader: Some(2) });
        }
        let reply = self.append(payload);
        if mode == Mode::Mute {
            tokio::time::sleep(deadline).await;
            return Err(ProposeError::Timeout(deadline));
        }
        Ok(reply)
    }

    async fn forward(&self, payload: Bytes, _: Duration) -> Result<Reply, ProposeError> {
        if !*self.leader_known.lock().unwrap() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        Ok(self.append(payload))
    }

    async fn read(&self, index: u64) -> Result<Bytes, LogError> {
        let log = self.log.lock().unwrap();
        let trimmed = self.trimmed.load(Ordering::SeqCst);
        let entry = log.get(index as usize).filter(|_| trimmed == 0 || index > trimmed).cloned();
        entry.ok_or(LogError::Missing { group: 1, index })
    }

    async fn transfer(&self, to: NodeId, _deadline: Duration) -> Result<(), ChangeError> {
        if to == 9 {
            return Err(ChangeError::Unfit { node: to, why: "far behind".into() });
        }
        if to != NODE {
            self.machine.leadership(Leadership::Following { leader: Some(to) });
        }
        Ok(())
    }

    async fn checkpoint(&self) -> Result<(), ChangeError> {
        Ok(())
    }

    fn has_lease(&self) -> bool {
        *self.mode.lock().unwrap() != Mode::Elsewhere
    }

    fn headroom(&self) -> u64 {
        self.headroom.load(Ordering::SeqCst)
    }

    fn is_low(&self) -> bool {
        self.headroom() == 0
    }

    fn purged(&self) -> Option<u64> {
        None
    }

    fn trim_wanted(&self) -> watch::Receiver<Option<u64>> {
        self.trim_wanted.subscribe()
    }
}

impl Fake {
    /// Commits an entry, as if any node had proposed it.
    pub(super) fn append(&self, payload: Bytes) -> Reply {
        let mut log = self.log.lock().unwrap();
        let at = Position { term: self.term.load(Ordering::SeqCst), index: log.len() as u64 };
        log.push(payload.clone());
        self.machine.apply(at, &payload)
    }

    pub(super) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// Entries up to this one are no longer there.
    pub(super) fn trim(&self, upto: u64) {
        self.trimmed.store(upto, Ordering::SeqCst);
    }

    /// The replica leads in a new term.
    pub(super) fn elect(&self) -> u64 {
        let term = self.term.fetch_add(1, Ordering::SeqCst) + 1;
        self.machine.leadership(Leadership::Leading { term });
        term
    }
}

#[derive(Debug)]
pub(super) struct StillClock(pub(super) AtomicU64);

impl Clock for StillClock {
    fn now(&self) -> UnixMs {
        UnixMs(self.0.load(Ordering::SeqCst))
    }

    fn instant(&self) -> Instant {
        crate::env::SystemClock.instant()
    }
}

pub(super) struct World {
    pub(super) replica: Arc<Replica>,
    pub(super) fake: Arc<Fake>,
    pub(super) clock: Arc<StillClock>,
    pub(super) ids: Arc<Ids>,
}

/// A replica that follows, at second 2000.
pub(super) fn world() -> World {
    let clock = Arc::new(StillClock(AtomicU64::new(2_000_000)));
    let ids = Arc::new(Ids::new(NODE));
    let machine = Arc::new(QueueMachine::new(
        1,
        NODE,
        clock.clone(),
        Arc::clone(&ids),
        watch::Sender::new(0),
    ));
    let fake = Arc::new(Fake {
        machine: Arc::clone(&machine),
        log: Mutex::default(),
        mode: Mutex::new(Mode::Commits),
        gate: Semaphore::new(10_000),
        term: AtomicU64::new(0),
        waiting: AtomicU64::new(0),
        waiting_most: AtomicU64::new(0),
        trimmed: AtomicU64::new(0),
        trim_wanted: watch::Sender::new(None),
        leader_known: Mutex::new(true),
        headroom: AtomicU64::new(u64::MAX),
    });
    let replica = Arc::new(Replica::new(machine, fake.clone(), clock.clone()));
    World { replica, fake, clock, ids }
}

impl World {
    pub(super) fn writer(&self) -> MessageWriter {
        let id = self.ids.next(self.clock.now()).unwrap();
        let term = self.replica.machine.leading().unwrap();
        MessageWriter::new(Arc::clone(&self.replica), id, term)
    }

    pub(super) fn get(&self, id: MessageId) -> Option<Arc<QueuedMessage>> {
        self.replica.machine.lock().index.get(id)
    }

    pub(super) fn summary(&self) -> Summary {
        self.replica.machine.lock().index.summary()
    }

    pub(super) fn due(&self) -> Vec<MessageId> {
        let of = |turn| self.replica.due(self.clock.now(), turn, 100, &|_| false);
        let mut due: Vec<_> = [Turn::First, Turn::Again].into_iter().flat_map(of).collect();
        let when = |message: &QueuedMessage| {
            message.recipients.iter().filter(|r| r.is_open()).map(|r| r.next_due).min()
        };
        due.sort_by_key(|message| (when(message), message.id));
        due.iter().map(|message| message.id).collect()
    }

    pub(super) async fn body(&self, id: MessageId) -> Vec<u8> {
        let message = self.get(id).unwrap();
        let mut reader = BodyReader::new(Arc::clone(&self.replica), &message);
        let mut all = Vec::new();
        while let Some(bytes) = reader.next().await.unwrap() {
            all.extend_from_slice(&bytes);
        }
        all
    }
}
