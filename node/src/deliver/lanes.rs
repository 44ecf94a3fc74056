//! A queue for each destination, so that a slow one does not hold up the others.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ppsw_spool::queue::MessageId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    limits::{
        DESTINATIONS_MAX, PIPES_MAX, TRANSACTIONS_MAX, TRANSACTIONS_PER_DESTINATION_MAX,
        WAITING_PER_DESTINATION_MAX,
    },
    route::{Destination, Protocol},
};

/// The same hosts are the same destination, whichever router led there and whatever order the DNS gave.
type Key = (Protocol, Vec<(String, u16)>);

pub(crate) struct Lanes {
    transactions: Arc<Semaphore>,
    lanes: Mutex<HashMap<Key, Arc<Lane>>>,
    /// Messages that were turned away and may come again.
    released: Arc<Mutex<Vec<MessageId>>>,
}

struct Lane {
    places: Arc<Semaphore>,
    most: usize,
    /// Messages that wait for a place, and for how many: a list has many transactions with one destination.
    waiting: Mutex<HashMap<MessageId, usize>>,
    /// Messages that were turned away, oldest first.
    parked: Mutex<BTreeSet<MessageId>>,
}

/// The right to run one transaction; given back when dropped.
pub(crate) struct Place {
    lane: Arc<Lane>,
    released: Arc<Mutex<Vec<MessageId>>>,
    _lane: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
}

/// So many wait for this destination that one more had better stay in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Lanes {
    pub(crate) fn new() -> Self {
        Self {
            transactions: Arc::new(Semaphore::new(TRANSACTIONS_MAX)),
            lanes: Mutex::default(),
            released: Arc::default(),
        }
    }

    /// Waits for a place, first come first served. A message that is turned away is [`Self::released`] when the
    /// destination has room for it.
    pub(crate) async fn enter(
        &self,
        destination: &Destination,
        message: MessageId,
    ) -> Result<Place, Full> {
        let lane = self.lane(destination);
        let Some(_waiting) = Waiting::begin(&lane, message) else {
            lane.parked.lock().unwrap_or_else(PoisonError::into_inner).insert(message);
            return Err(Full);
        };
        // First the lane, then the node: who waits for a slow destination holds nothing that others need.
        let places = Arc::clone(&lane.places).acquire_owned().await.map_err(|_| Full)?;
        let node = Arc::clone(&self.transactions).acquire_owned().await.map_err(|_| Full)?;
        let released = Arc::clone(&self.released);
        Ok(Place { lane: Arc::clone(&lane), released, _lane: places, _node: node })
    }

    /// Messages that were turned away and for which there is room now.
    pub(crate) fn released(&self) -> Vec<MessageId> {
        std::mem::take(&mut *self.released.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Transactions that run.
    #[cfg(test)]
    fn running(&self) -> usize {
        TRANSACTIONS_MAX - self.transactions.available_permits()
    }

    fn lane(&self, destination: &Destination) -> Arc<Lane> {
        let mut hosts: Vec<_> =
            destination.hosts.iter().map(|host| (host.name.clone(), host.port)).collect();
        hosts.sort();
        let mut places = TRANSACTIONS_PER_DESTINATION_MAX;
        if destination.program.is_some() {
            hosts = vec![(destination.transport.clone(), 0)];
            places = PIPES_MAX;
        }
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() >= DESTINATIONS_MAX {
            lanes.retain(|_, lane| lane.is_busy());
        }
        let lane = lanes.entry((destination.protocol, hosts)).or_insert_with(|| {
            Arc::new(Lane {
                places: Arc::new(Semaphore::new(places)),
                most: places,
                waiting: Mutex::default(),
                parked: Mutex::default(),
            })
        });
        Arc::clone(lane)
    }
}

impl Lane {
    fn waiting(&self) -> MutexGuard<'_, HashMap<MessageId, usize>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_busy(&self) -> bool {
        !self.waiting().is_empty() || self.places.available_permits() < self.most
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let room = WAITING_PER_DESTINATION_MAX.saturating_sub(self.lane.waiting().len());
        let mut parked = self.lane.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        released.extend((0..room).map_while(|_| parked.pop_first()));
    }
}

/// Counts a message that waits, while it does.
struct Waiting<'a>(&'a Lane, MessageId);

impl<'a> Waiting<'a> {
    /// `None`: too many other messages wait.
    fn begin(lane: &'a Lane, message: MessageId) -> Option<Self> {
        let mut waiting = lane.waiting();
        let room = waiting.len() < WAITING_PER_DESTINATION_MAX;
        match waiting.entry(message) {
            Entry::Occupied(mut places) => *places.get_mut() += 1,
            Entry::Vacant(first) if room => drop(first.insert(1)),
            Entry::Vacant(_) => return None,
        }
        Some(Self(lane, message))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut places) = self.0.waiting().entry(self.1) {
            *places.get_mut() -= 1;
            if *places.get() == 0 {
                places.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;
    use crate::route::{Host, Tls};

    fn destination(host: &str) -> Destination {
        Destination {
            router: "r".into(),
            transport: "t".into(),
            protocol: Protocol::Smtp,
            hosts: vec![Host {
                name: host.into(),
                addresses: vec![],
                port: 25,
                preference: 0,
                mx: true,
            }],
            strip_nul: false,
            tls: Tls::May,
            program: None,
        }
    }

    #[tokio::test]
    async fn a_full_destination_blocks_nobody_else() {
        let lanes = Lanes::new();
        let (slow, fast) = (destination("slow"), destination("fast"));
        let message = |counter| MessageId { second: 1, counter, node: 1 };
        let id = message(0);
        let mut places = Vec::new();
        for _ in 0..TRANSACTIONS_PER_DESTINATION_MAX {
            places.push(lanes.enter(&slow, id).await.unwrap());
        }
        let mut waiting = Vec::new();
        // Messages are counted, not what each has to bring: the first is a list.
        let messages = (1..WAITING_PER_DESTINATION_MAX as u64).map(message);
        for id in [id; 2 * WAITING_PER_DESTINATION_MAX].into_iter().chain(messages) {
            let mut entry = Box::pin(lanes.enter(&slow, id));
            assert!((&mut entry).now_or_never().is_none());
            waiting.push(entry);
        }
        let late = message(1_000);
        assert_eq!(lanes.enter(&slow, late).await.err(), Some(Full));
        assert!(lanes.released().is_empty());
        assert!(lanes.enter(&fast, id).now_or_never().unwrap().is_ok());
        assert_eq!(lanes.running(), TRANSACTIONS_PER_DESTINATION_MAX);
        drop(places);
        while !waiting.is_empty() {
            let first = waiting.remove(0);
            assert!(tokio::time::timeout(Duration::from_secs(5), first).await.unwrap().is_ok());
        }
        assert_eq!(lanes.released(), [late]);
        assert!(lanes.lane(&slow).waiting().is_empty());
    }
}
