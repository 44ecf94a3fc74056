//! Failed authentications by address: whoever guesses passwords is not heard for a while, however many sessions it opens.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::admission::host_of;
use crate::limits::{AUTH_FAILURES_PER_HOST_MAX, AUTH_FAILURES_TIME, AUTH_HOSTS_MAX};

/// Counts by host: an IPv4 address, or an IPv6 network of 64 bits. One per node.
#[derive(Debug, Default)]
pub(super) struct Guessing {
    hosts: Mutex<HashMap<IpAddr, Failures>>,
}

#[derive(Debug)]
struct Failures {
    since: Instant,
    count: u32,
}

impl Guessing {
    /// The host has failed too often lately.
    pub(super) fn is_blocked(&self, client: IpAddr, now: Instant) -> bool {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = hosts.get(&host_of(client));
        failures.is_some_and(|f| f.is_recent(now) && f.count >= AUTH_FAILURES_PER_HOST_MAX)
    }

    pub(super) fn failed(&self, client: IpAddr, now: Instant) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= AUTH_HOSTS_MAX {
            hosts.retain(|_, failures| failures.is_recent(now));
        }
        if hosts.len() >= AUTH_HOSTS_MAX {
            // So many guess at once that one address more or less does not matter; sessions have their own limit.
            return;
        }
        let fresh = Failures { since: now, count: 0 };
        let failures = hosts.entry(host_of(client)).or_insert(fresh);
        if !failures.is_recent(now) {
            *failures = Failures { since: now, count: 0 };
        }
        failures.count = failures.count.saturating_add(1);
    }
}

impl Failures {
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < AUTH_FAILURES_TIME
    }
}

#[cfg(test)]
mod tests {
    use ppsw_spool::env::{Clock, SystemClock};

    use super::*;

    #[test]
    fn a_host_that_guesses_is_blocked_for_a_while() {
        let (guessing, now) = (Guessing::default(), SystemClock.instant());
        let (bad, good) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..AUTH_FAILURES_PER_HOST_MAX {
            assert!(!guessing.is_blocked(bad, now));
            guessing.failed(bad, now);
        }
        assert!(guessing.is_blocked(bad, now) && !guessing.is_blocked(good, now));
        let later = now + AUTH_FAILURES_TIME;
        assert!(!guessing.is_blocked(bad, later));
        guessing.failed(bad, later);
        assert!(!guessing.is_blocked(bad, later), "counted anew");
    }

    #[test]
    fn an_ipv6_network_is_one_host() {
        let (guessing, now) = (Guessing::default(), SystemClock.instant());
        for n in 0..AUTH_FAILURES_PER_HOST_MAX {
            guessing.failed(format!("2001:db8::{n:x}").parse().unwrap(), now);
        }
        assert!(guessing.is_blocked("2001:db8::ffff".parse().unwrap(), now));
        assert!(!guessing.is_blocked("2001:db8:0:1::1".parse().unwrap(), now));
    }
}
