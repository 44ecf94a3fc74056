//! What routers look up, told to whoever wants an explanation.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use crate::{
    dns::{Dns, DnsError, Mx},
    limits::ROUTE_NOTES_MAX,
};

/// Look-ups of one router, in their order.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<Vec<String>>);

impl Notes {
    pub(super) fn add(&self, note: String) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < ROUTE_NOTES_MAX && notes.last() != Some(&note) {
            notes.push(note);
        }
    }

    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Questions to the DNS that are noted.
#[derive(Clone, Copy)]
pub(super) struct Lookups<'a> {
    pub(super) dns: &'a dyn Dns,
    pub(super) notes: Option<&'a Notes>,
}

impl Lookups<'_> {
    pub(super) async fn mx(&self, domain: &str) -> Result<Vec<Mx>, DnsError> {
        let found = self.dns.mx(domain).await;
        self.note("MX", domain, &found, &|mx: &Mx| {
            format!("{} {}", mx.preference, if mx.host.is_empty() { "." } else { &mx.host })
        });
        found
    }

    pub(super) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        let found = self.dns.addresses(host).await;
        self.note("A", host, &found, &|address: &IpAddr| address.to_string());
        found
    }

    fn note<T>(
        &self,
        kind: &str,
        name: &str,
        found: &Result<Vec<T>, DnsError>,
        show: &dyn Fn(&T) -> String,
    ) {
        let Some(notes) = self.notes else { return };
        let found = match found {
            Ok(found) => found.iter().map(show).collect::<Vec<_>>().join(", "),
            Err(error) => error.to_string(),
        };
        notes.add(format!("DNS: {kind} {name}: {found}"));
    }
}
