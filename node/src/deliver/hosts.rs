//! Which hosts of a destination to try, in which order, which not just now, and how many at once.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ppsw_spool::env::Clock;
use rand::seq::SliceRandom;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::retry::{Cause, RetryRule};
use crate::{
    limits::{HOST_DOWN_FORGOTTEN, HOST_DOWN_TIME_MIN, HOSTS_KNOWN_MAX, TRANSACTIONS_PER_HOST_MAX},
    route::Host,
};

/// One address of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// It comes from an MX record.
    pub(crate) mx: bool,
}

/// All addresses: by preference, hosts of equal preference at random (RFC 5321 §5.1), and one address of each host
/// before the second of any, so that a host that is down costs one attempt at first.
pub(crate) fn candidates(hosts: &[Host]) -> Vec<Candidate> {
    let mut hosts: Vec<&Host> = hosts.iter().collect();
    hosts.shuffle(&mut rand::rng());
    hosts.sort_by_key(|host| host.preference);
    let mut out = Vec::new();
    for group in hosts.chunk_by(|a, b| a.preference == b.preference) {
        let most = group.iter().map(|host| host.addresses.len()).max().unwrap_or(0);
        for number in 0..most {
            for host in group {
                out.extend(host.addresses.get(number).map(|address| Candidate {
                    name: host.name.clone(),
                    address: SocketAddr::new(*address, host.port),
                    mx: host.mx,
                }));
            }
        }
    }
    out
}

/// Hosts that could not be reached, and when they may be asked again: by the retry rule, with the time since they were last
/// reached in place of a message's age (Exim's retry hints). Shared by all partitions of a node. In memory only: forgetting one
/// costs a connection attempt.
pub(crate) struct DownHosts {
    clock: Arc<dyn Clock>,
    hosts: Mutex<HashMap<SocketAddr, Down>>,
}

/// A host that could not be reached.
#[derive(Clone, Copy, Debug)]
struct Down {
    /// Since when nothing else is known of it.
    since: Instant,
    /// It is not asked before.
    until: Instant,
    cause: Cause,
}

impl DownHosts {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, hosts: Mutex::default() }
    }

    /// Why a host is not asked now, and for how long it is not.
    pub(crate) fn is_down(&self, address: SocketAddr) -> Option<(Cause, Duration)> {
        let now = self.clock.instant();
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let down = hosts.get(&address).filter(|down| down.until > now)?;
        Some((down.cause, down.until.saturating_duration_since(now)))
    }

    /// A host could not be reached; `rule` is that for whom it was asked for. A rule that is at its end is asked as if it had just
    /// begun: messages are given up by their own age.
    pub(crate) fn mark_down(&self, address: SocketAddr, cause: Cause, rule: &RetryRule) {
        self.mark(address, cause, |down| {
            rule.next(down).or_else(|| rule.next(Duration::ZERO)).unwrap_or_default()
        });
    }

    /// A host could not be reached, and is left alone for `wait`.
    pub(crate) fn mark_down_for(&self, address: SocketAddr, cause: Cause, wait: Duration) {
        self.mark(address, cause, |_| wait);
    }

    /// `wait` says how long to wait by the time that the host has been down.
    fn mark(&self, address: SocketAddr, cause: Cause, wait: impl FnOnce(Duration) -> Duration) {
        let now = self.clock.instant();
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= HOSTS_KNOWN_MAX {
            hosts.retain(|_, down| down.until > now);
        }
        if hosts.len() >= HOSTS_KNOWN_MAX {
            hosts.clear();
        }
        let known = hosts.get(&address).filter(|down| now < down.until + HOST_DOWN_FORGOTTEN);
        let since = known.map_or(now, |down| down.since);
        let until = now + wait(now.saturating_duration_since(since)).max(HOST_DOWN_TIME_MIN);
        hosts.insert(address, Down { since, until, cause });
    }

    /// Whoever was down may be asked again.
    pub(crate) fn forget(&self) {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn mark_up(&self, address: SocketAddr) {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }
}

/// Transactions at once with each address, whatever destinations lead there.
#[derive(Default)]
pub(crate) struct HostPlaces {
    hosts: Mutex<HashMap<SocketAddr, Arc<Semaphore>>>,
}

impl HostPlaces {
    /// Waits for a place; `None` never comes.
    pub(crate) async fn enter(&self, address: SocketAddr) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            if hosts.len() >= HOSTS_KNOWN_MAX {
                // Held by nobody else: nobody is in it, and nobody waits.
                hosts.retain(|_, places| Arc::strong_count(places) > 1);
            }
            let places = hosts
                .entry(address)
                .or_insert_with(|| Arc::new(Semaphore::new(TRANSACTIONS_PER_HOST_MAX)));
            Arc::clone(places)
        };
        places.acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Mutex};

    use futures::FutureExt as _;
    use ppsw_spool::env::UnixMs;

    use super::*;

    /// A monotonic clock that the test moves.
    struct StillClock(Mutex<Instant>);

    impl Default for StillClock {
        fn default() -> Self {
            Self(Mutex::new(ppsw_spool::env::SystemClock.instant()))
        }
    }

    impl StillClock {
        fn advance(&self, by: Duration) {
            *self.0.lock().unwrap() += by;
        }
    }

    impl Clock for StillClock {
        fn now(&self) -> UnixMs {
            UnixMs(0)
        }
        fn instant(&self) -> Instant {
            *self.0.lock().unwrap()
        }
    }

    fn host(name: &str, addresses: &[&str], preference: u16) -> Host {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Host { name: name.into(), addresses, port: 25, preference, mx: true }
    }

    #[test]
    fn hosts_come_by_preference_and_at_random_within() {
        let hosts = [
            host("back", &["192.0.2.9"], 20),
            host("a", &["192.0.2.1", "192.0.2.2"], 10),
            host("b", &["192.0.2.3"], 10),
        ];
        let mut firsts = BTreeSet::new();
        for _ in 0..200 {
            let order = candidates(&hosts);
            let names: Vec<_> = order.iter().map(|c| c.name.as_str()).collect();
            assert_eq!(names[2..], ["a", "back"]);
            firsts.insert(names[0].to_owned());
        }
        assert_eq!(firsts.len(), 2);
    }

    #[test]
    fn a_host_is_down_until_it_is_seen_up() {
        let clock = Arc::new(StillClock::default());
        let down = DownHosts::new(Arc::clone(&clock) as _);
        let rule: RetryRule = "F,2h,15m; G,16h,30m,1.5; F,5d,8h".parse().unwrap();
        let (address, minute) = ("192.0.2.1:25".parse().unwrap(), Duration::from_secs(60));
        assert_eq!(down.is_down(address), None);
        // Asked whenever it may be, it fails again: after 15 minutes up to two hours, then after 30, 45, ...
        for wait in [[15; 8].as_slice(), &[30, 45, 68]].concat() {
            down.mark_down(address, Cause::Refused, &rule);
            let (cause, left) = down.is_down(address).unwrap();
            assert_eq!((cause, left.as_secs().div_ceil(60)), (Cause::Refused, wait));
            clock.advance(left - minute / 60);
            assert!(down.is_down(address).is_some());
            clock.advance(minute / 60);
            assert_eq!(down.is_down(address), None);
        }
        down.mark_up(address);
        down.mark_down(address, Cause::TimeoutConnect, &rule);
        assert_eq!(down.is_down(address), Some((Cause::TimeoutConnect, 15 * minute)));
        clock.advance(HOST_DOWN_FORGOTTEN + 16 * minute);
        down.mark_down(address, Cause::Refused, &rule);
        assert_eq!(down.is_down(address), Some((Cause::Refused, 15 * minute)), "it was forgotten");
    }

    #[tokio::test]
    async fn a_host_of_many_destinations_is_not_flooded() {
        let places = HostPlaces::default();
        let (address, other) = ("192.0.2.1:25".parse().unwrap(), "192.0.2.2:25".parse().unwrap());
        let mut taken = Vec::new();
        while let Some(place) = places.enter(address).now_or_never() {
            taken.push(place.unwrap());
        }
        assert_eq!(taken.len(), TRANSACTIONS_PER_HOST_MAX);
        assert!(places.enter(other).now_or_never().is_some());
        taken.pop();
        assert!(places.enter(address).now_or_never().is_some());
    }
}
