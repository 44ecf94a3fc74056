//! A queue for each destination, so that a slow one does not hold up the others.
//!
//! How many transactions a destination has at once follows from what it does: a few at first, one more for each that is answered,
//! half as many after one that nobody answered. So a dead host holds one place of the node, and no more.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use metrics::gauge;
use ppsw_spool::queue::{MessageId, Turn};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::hosts::HostPlaces;
use crate::{
    limits::{
        DESTINATIONS_MAX, PIPES_MAX, RETRY_TRANSACTIONS_MAX, TRANSACTIONS_MAX,
        TRANSACTIONS_PER_DESTINATION_FIRST, TRANSACTIONS_PER_DESTINATION_MAX,
        WAITING_PER_DESTINATION_MAX,
    },
    route::{Destination, Protocol},
};

/// The same hosts are the same destination, whichever router led there and whatever order the DNS gave.
type Key = (Protocol, Vec<(String, u16)>);

pub(crate) struct Lanes {
    transactions: Arc<Semaphore>,
    /// Places for messages that have been tried before.
    retries: Arc<Semaphore>,
    hosts: HostPlaces,
    lanes: Mutex<HashMap<Key, Arc<Lane>>>,
    /// Messages that were turned away and may come again.
    released: Arc<Mutex<Vec<MessageId>>>,
}

struct Lane {
    places: Arc<Semaphore>,
    width: Mutex<Width>,
    /// Transactions that run.
    running: AtomicUsize,
    /// Messages that wait for a place, and for how many: a list has many transactions with one destination.
    waiting: Mutex<HashMap<MessageId, usize>>,
    /// Messages that were turned away, oldest first.
    parked: Mutex<BTreeSet<MessageId>>,
}

/// How many transactions a lane may have at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Width {
    /// From 1 to `most`.
    now: usize,
    most: usize,
    /// Places that are too many and in use: they are not given back.
    surplus: usize,
}

/// The right to run one transaction with a destination; given back when dropped.
pub(crate) struct Place {
    lane: Arc<Lane>,
    released: Arc<Mutex<Vec<MessageId>>>,
    /// `None` once it is given back.
    permit: Option<OwnedSemaphorePermit>,
}

/// A place of the node; given back when dropped. Counted while it is held.
pub(crate) struct NodePlace {
    _retry: Option<OwnedSemaphorePermit>,
    _place: OwnedSemaphorePermit,
}

impl Drop for NodePlace {
    fn drop(&mut self) {
        gauge!("ppsw_deliveries_in_flight").decrement(1.0);
    }
}

/// Where a message gets the places for one host: the host's first, then the node's, so that who waits for a slow host holds
/// nothing that others need. Whoever goes on to another host gives both back before.
#[derive(Clone, Copy)]
pub(crate) struct Gate<'a> {
    lanes: &'a Lanes,
    turn: Turn,
}

/// The right to talk to one host; given back when dropped.
pub(crate) struct HostPlace {
    pub(crate) address: SocketAddr,
    _node: NodePlace,
    _host: OwnedSemaphorePermit,
}

impl Gate<'_> {
    /// Waits for a place; `None` never comes.
    pub(crate) async fn enter(&self, address: SocketAddr) -> Option<HostPlace> {
        let host = self.lanes.hosts.enter(address).await?;
        let node = self.node().await.ok()?;
        Some(HostPlace { address, _node: node, _host: host })
    }

    /// Waits for a place of the node: for what goes to no host.
    pub(crate) async fn node(&self) -> Result<NodePlace, Full> {
        let of = |places: &Arc<Semaphore>| Arc::clone(places).acquire_owned();
        let retry = match self.turn {
            Turn::First => None,
            Turn::Again => Some(of(&self.lanes.retries).await.map_err(|_| Full)?),
        };
        let place = of(&self.lanes.transactions).await.map_err(|_| Full)?;
        gauge!("ppsw_deliveries_in_flight").increment(1.0);
        Ok(NodePlace { _retry: retry, _place: place })
    }
}

/// So many wait for this destination that one more had better stay in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Lanes {
    pub(crate) fn new() -> Self {
        Self {
            transactions: Arc::new(Semaphore::new(TRANSACTIONS_MAX)),
            retries: Arc::new(Semaphore::new(RETRY_TRANSACTIONS_MAX)),
            hosts: HostPlaces::default(),
            lanes: Mutex::default(),
            released: Arc::default(),
        }
    }

    /// Waits for a place at the destination, first come first served. A message that is turned away is [`Self::released`] when the
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
        let permit = Arc::clone(&lane.places).acquire_owned().await.map_err(|_| Full)?;
        lane.running.fetch_add(1, Ordering::Relaxed);
        let released = Arc::clone(&self.released);
        Ok(Place { lane: Arc::clone(&lane), released, permit: Some(permit) })
    }

    /// The other places that a message needs, by whether it has been tried before.
    pub(crate) fn gate(&self, turn: Turn) -> Gate<'_> {
        Gate { lanes: self, turn }
    }

    /// Messages that were turned away and for which there is room now.
    pub(crate) fn released(&self) -> Vec<MessageId> {
        std::mem::take(&mut *self.released.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lane(&self, destination: &Destination) -> Arc<Lane> {
        let mut hosts: Vec<_> =
            destination.hosts.iter().map(|host| (host.name.clone(), host.port)).collect();
        hosts.sort();
        let (mut most, mut first) =
            (TRANSACTIONS_PER_DESTINATION_MAX, TRANSACTIONS_PER_DESTINATION_FIRST);
        if destination.program.is_some() {
            hosts = vec![(destination.transport.clone(), 0)];
            (most, first) = (PIPES_MAX, PIPES_MAX);
        }
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() >= DESTINATIONS_MAX {
            lanes.retain(|_, lane| lane.is_busy());
        }
        let lane = lanes.entry((destination.protocol, hosts)).or_insert_with(|| {
            Arc::new(Lane {
                places: Arc::new(Semaphore::new(first)),
                width: Mutex::new(Width { now: first, most, surplus: 0 }),
                running: AtomicUsize::new(0),
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
        !self.waiting().is_empty() || self.running.load(Ordering::Relaxed) > 0
    }

    fn width(&self) -> MutexGuard<'_, Width> {
        self.width.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The destination has answered: it may have one more transaction.
    pub(crate) fn answered(&self) {
        let mut width = self.lane.width();
        if width.now == width.most {
            return;
        }
        width.now += 1;
        match width.surplus.checked_sub(1) {
            Some(fewer) => width.surplus = fewer,
            None => self.lane.places.add_permits(1),
        }
    }

    /// Nobody answered for the destination: it gets half as many.
    pub(crate) fn unanswered(&self) {
        let mut width = self.lane.width();
        let fewer = width.now - (width.now / 2).max(1);
        width.now -= fewer;
        // Those that are free go at once, the others when they are given back.
        width.surplus += fewer - self.lane.places.forget_permits(fewer);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lane.running.fetch_sub(1, Ordering::Relaxed);
        let mut width = self.lane.width();
        if let Some(fewer) = width.surplus.checked_sub(1)
            && let Some(permit) = self.permit.take()
        {
            width.surplus = fewer;
            permit.forget();
        }
        drop(width);
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
    use tokio::task::unconstrained;

    use super::*;
    use crate::limits::TRANSACTIONS_PER_HOST_MAX;
    use crate::route::{ClientOptions, Host, Tls};

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
            client: ClientOptions::default(),
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
        for _ in 0..TRANSACTIONS_PER_DESTINATION_FIRST {
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
        drop(places);
        while !waiting.is_empty() {
            let first = waiting.remove(0);
            assert!(tokio::time::timeout(Duration::from_secs(5), first).await.unwrap().is_ok());
        }
        assert_eq!(lanes.released(), [late]);
        assert!(lanes.lane(&slow).waiting().is_empty());
    }

    #[tokio::test]
    async fn who_waits_for_a_host_holds_no_place_of_the_node() {
        let lanes = Lanes::new();
        let address = |host: usize| format!("192.0.2.{host}:25").parse().unwrap();
        let gate = lanes.gate(Turn::First);
        // The backup of everybody has no place left, and neither has the node.
        let mut backup = Vec::new();
        for _ in 0..TRANSACTIONS_PER_HOST_MAX {
            backup.push(gate.enter(address(0)).await.unwrap());
        }
        let mut others = Vec::new();
        for number in 0..TRANSACTIONS_MAX - TRANSACTIONS_PER_HOST_MAX {
            others.push(gate.enter(address(1 + number / TRANSACTIONS_PER_HOST_MAX)).await.unwrap());
        }
        // Without the budget of a task, which ends in the middle of so many.
        assert!(unconstrained(gate.node()).now_or_never().is_none());
        // All others turn to the backup: each gives back what it has, and waits.
        let waits = others.drain(..).map(|place| {
            drop(place);
            let mut entry = Box::pin(gate.enter(address(0)));
            assert!(unconstrained(&mut entry).now_or_never().is_none());
            entry
        });
        let waiting: Vec<_> = waits.collect();
        assert!(unconstrained(gate.node()).now_or_never().is_some());
        drop(backup);
        for entry in waiting {
            assert!(tokio::time::timeout(Duration::from_secs(5), entry).await.unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn a_destination_gets_as_much_as_it_takes() {
        let lanes = Lanes::new();
        let there = destination("there");
        let id = MessageId { second: 1, counter: 0, node: 1 };
        // How many may run: as many as get a place without waiting.
        let width = || {
            let mut places = Vec::new();
            while let Some(place) = lanes.enter(&there, id).now_or_never() {
                places.push(place.unwrap());
            }
            places.len()
        };
        assert_eq!(width(), TRANSACTIONS_PER_DESTINATION_FIRST);
        let place = lanes.enter(&there, id).await.unwrap();
        place.answered();
        drop(place);
        assert_eq!(width(), TRANSACTIONS_PER_DESTINATION_FIRST + 1);
        for _ in 0..2 * TRANSACTIONS_PER_DESTINATION_MAX {
            lanes.enter(&there, id).await.unwrap().answered();
        }
        assert_eq!(width(), TRANSACTIONS_PER_DESTINATION_MAX);
        let mut running = Vec::new();
        for _ in 0..TRANSACTIONS_PER_DESTINATION_MAX {
            running.push(lanes.enter(&there, id).await.unwrap());
        }
        running[0].unanswered();
        running[1].unanswered();
        drop(running.split_off(5));
        assert_eq!(width(), 0, "5 of 5 run");
        drop(running);
        assert_eq!(width(), 5);
        for _ in 0..10 {
            lanes.enter(&there, id).await.unwrap().unanswered();
        }
        assert_eq!(width(), 1, "somebody has to find out whether it is there again");
        lanes.enter(&there, id).await.unwrap().answered();
        assert_eq!(width(), 2);
    }
}
