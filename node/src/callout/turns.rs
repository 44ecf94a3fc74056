//! Who may ask a host now.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use ppsw_spool::env::Clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{
    CALLBACK_WINDOW, CALLBACKS_PER_HOST_MAX, CALLOUT_HOSTS_MAX, CALLOUTS_MAX, CALLOUTS_PER_HOST_MAX,
};

pub(super) struct Turns {
    clock: Arc<dyn Clock>,
    all: Arc<Semaphore>,
    hosts: Mutex<HashMap<IpAddr, Host>>,
}

struct Host {
    places: Arc<Semaphore>,
    /// When the count began.
    since: Instant,
    called_back: u32,
}

/// The right to ask one host; given back when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _host: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Turns {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, all: Arc::new(Semaphore::new(CALLOUTS_MAX)), hosts: Mutex::default() }
    }

    /// Waits for a place, as long as the caller does.
    ///
    /// # Errors
    /// The host has been asked too often.
    pub(super) async fn take(&self, host: IpAddr, calls_back: bool) -> Result<Turn, &'static str> {
        const CLOSED: &str = "this node stops";
        let places = self.places(host.to_canonical(), calls_back)?;
        // First the host, then the node: who waits for a slow host holds nothing that others need.
        let host = places.acquire_owned().await.map_err(|_| CLOSED)?;
        let all = Arc::clone(&self.all).acquire_owned().await.map_err(|_| CLOSED)?;
        Ok(Turn { _host: host, _all: all })
    }

    fn places(&self, host: IpAddr, calls_back: bool) -> Result<Arc<Semaphore>, &'static str> {
        let now = self.clock.instant();
        let fresh = |host: &Host| now.saturating_duration_since(host.since) < CALLBACK_WINDOW;
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= CALLOUT_HOSTS_MAX && !hosts.contains_key(&host) {
            hosts.retain(|_, host| fresh(host) || Arc::strong_count(&host.places) > 1);
            if hosts.len() >= CALLOUT_HOSTS_MAX {
                return Err("too many hosts have been asked");
            }
        }
        let host = hosts.entry(host).or_insert_with(|| Host {
            places: Arc::new(Semaphore::new(CALLOUTS_PER_HOST_MAX)),
            since: now,
            called_back: 0,
        });
        if !fresh(host) {
            (host.since, host.called_back) = (now, 0);
        }
        if calls_back {
            if host.called_back >= CALLBACKS_PER_HOST_MAX {
                return Err("it has been asked often enough in the last minute");
            }
            host.called_back += 1;
        }
        Ok(Arc::clone(&host.places))
    }
}
