//! Who may have a session: limits in all and per host, with a reserve for our own hosts (`smtp_accept_max`,
//! `smtp_accept_reserve`, `smtp_accept_max_per_host` of the paper's configuration).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use crate::policy::Options;

/// Why a connection is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("Too many connections, try again later")]
    Full,
    #[error("Too many connections from your host, try again later")]
    HostFull,
    /// `smtp_load_reserve`.
    #[error("This host is too busy, try again later")]
    Busy,
    /// `ppswctl shed`.
    #[error("This service takes only a part of its mail now, try again later")]
    Shed,
}

impl Refusal {
    /// A metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::HostFull => "host_full",
            Self::Busy => "load",
            Self::Shed => "shed",
        }
    }
}

/// Counts sessions. One per node, for all its listeners.
#[derive(Debug, Default)]
pub(super) struct Admission {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    hosts: HashMap<IpAddr, usize>,
}

/// The right to one session; gives its place back when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    admission: Arc<Admission>,
    host: IpAddr,
}

impl Admission {
    /// A place for `client`, if there is one. `relay`: it is one of our own hosts.
    pub(super) fn admit(
        self: &Arc<Self>,
        client: IpAddr,
        relay: bool,
        options: &Options,
    ) -> Result<Ticket, Refusal> {
        let host = host_of(client);
        let (room, per_host) = if relay {
            (options.smtp_accept_max, options.smtp_accept_max_per_relay_host)
        } else {
            let room = options.smtp_accept_max.saturating_sub(options.smtp_accept_reserve);
            (room, options.smtp_accept_max_per_host)
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.total >= room {
            return Err(Refusal::Full);
        }
        let here = counts.hosts.entry(host).or_default();
        if *here >= per_host {
            return Err(Refusal::HostFull);
        }
        *here += 1;
        counts.total += 1;
        metrics::gauge!("ppsw_smtp_sessions").set(counts.total as f64);
        Ok(Ticket { admission: Arc::clone(self), host })
    }

    /// Sessions now.
    pub(super) fn sessions(&self) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        metrics::gauge!("ppsw_smtp_sessions").set(counts.total as f64);
        if let Some(here) = counts.hosts.get_mut(&self.host) {
            *here -= 1;
            if *here == 0 {
                counts.hosts.remove(&self.host);
            }
        }
    }
}

/// What counts as one host: an IPv4 address, or an IPv6 network that one customer has (RFC 6177).
pub(super) fn host_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::session::testing::options;

    #[test]
    fn each_host_and_all_of_them_have_limits() {
        let options = Options {
            smtp_accept_max: 6,
            smtp_accept_reserve: 2,
            smtp_accept_max_per_host: 3,
            smtp_accept_max_per_relay_host: 5,
            ..options()
        };
        let admission = Arc::new(Admission::default());
        let admit = |ip: &str, relay| admission.admit(ip.parse().unwrap(), relay, &options);
        let mut tickets: Vec<_> = (0..3).map(|_| admit("192.0.2.1", false).unwrap()).collect();
        assert_eq!(admit("::ffff:192.0.2.1", false).unwrap_err(), Refusal::HostFull);
        tickets.push(admit("2001:db8::1", false).unwrap());
        // Four of six places are taken: the other two are for our own hosts.
        assert_eq!(admit("2001:db8::2", false).unwrap_err(), Refusal::Full);
        tickets.push(admit("10.0.0.1", true).unwrap());
        tickets.push(admit("10.0.0.1", true).unwrap());
        assert_eq!(admit("10.0.0.1", true).unwrap_err(), Refusal::Full);
        tickets.clear();
        assert_eq!(admission.sessions(), 0);
        assert!(admission.counts.lock().unwrap().hosts.is_empty());
    }
}
