//! Which hosts of a destination to try, in which order, and which not just now.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use ppsw_spool::env::Clock;
use rand::seq::SliceRandom;

use super::retry::Cause;
use crate::{
    limits::{HOST_DOWN_TIME, HOSTS_DOWN_MAX},
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

/// Hosts that could not be reached a moment ago. In memory only: forgetting it costs a connection attempt.
pub(crate) struct DownHosts {
    clock: Arc<dyn Clock>,
    until: Mutex<HashMap<SocketAddr, (Instant, Cause)>>,
}

impl DownHosts {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, until: Mutex::default() }
    }

    /// Why a host is not asked now.
    pub(crate) fn is_down(&self, address: SocketAddr) -> Option<Cause> {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, cause) = until.get(&address)?;
        (*until > self.clock.instant()).then_some(*cause)
    }

    pub(crate) fn mark_down(&self, address: SocketAddr, cause: Cause) {
        let now = self.clock.instant();
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= HOSTS_DOWN_MAX {
            until.retain(|_, (until, _)| *until > now);
        }
        if until.len() >= HOSTS_DOWN_MAX {
            until.clear();
        }
        until.insert(address, (now + HOST_DOWN_TIME, cause));
    }

    /// Whoever was down may be asked again.
    pub(crate) fn forget(&self) {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn mark_up(&self, address: SocketAddr) {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

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
        let down = DownHosts::new(Arc::new(ppsw_spool::env::SystemClock));
        let address = "192.0.2.1:25".parse().unwrap();
        assert_eq!(down.is_down(address), None);
        down.mark_down(address, Cause::Refused);
        assert_eq!(down.is_down(address), Some(Cause::Refused));
        down.mark_up(address);
        assert_eq!(down.is_down(address), None);
    }
}
