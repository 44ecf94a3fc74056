//! Answers from memory: for tests and for dry runs without a network.

use std::{collections::BTreeMap, net::IpAddr};

use async_trait::async_trait;

use super::{Dns, DnsError, Mx};

/// A DNS whose answers are given beforehand. A name without any record does not exist.
#[derive(Clone, Debug, Default)]
pub struct FixedDns {
    names: BTreeMap<String, Records>,
    reverse: BTreeMap<IpAddr, Vec<String>>,
}

#[derive(Clone, Debug, Default)]
struct Records {
    mx: Vec<Mx>,
    addresses: Vec<IpAddr>,
    texts: Vec<String>,
    broken: bool,
}

impl FixedDns {
    /// Adds an MX record.
    #[must_use]
    pub fn with_mx(mut self, domain: &str, preference: u16, host: &str) -> Self {
        self.records(domain).mx.push(Mx { preference, host: host.to_owned() });
        self
    }

    /// Adds an address record.
    #[must_use]
    pub fn with_address(mut self, host: &str, address: IpAddr) -> Self {
        self.records(host).addresses.push(address);
        self
    }

    /// Adds a PTR record, and the address record that it needs to be believed.
    #[must_use]
    pub fn with_host(self, host: &str, address: IpAddr) -> Self {
        self.with_pointer(address, host).with_address(host, address)
    }

    /// Adds a PTR record.
    #[must_use]
    pub fn with_pointer(mut self, address: IpAddr, host: &str) -> Self {
        self.reverse.entry(address).or_default().push(host.to_owned());
        self
    }

    /// Adds a TXT record.
    #[must_use]
    pub fn with_text(mut self, name: &str, text: &str) -> Self {
        self.records(name).texts.push(text.to_owned());
        self
    }

    /// Makes every question for this name fail for now (SERVFAIL).
    #[must_use]
    pub fn broken(mut self, name: &str) -> Self {
        self.records(name).broken = true;
        self
    }

    /// Makes the name exist, without any record of its own.
    #[must_use]
    pub fn empty(mut self, name: &str) -> Self {
        self.records(name);
        self
    }

    fn records(&mut self, name: &str) -> &mut Records {
        self.names.entry(name.to_ascii_lowercase()).or_default()
    }

    fn answer<T: Clone>(
        &self,
        name: &str,
        part: impl Fn(&Records) -> &Vec<T>,
    ) -> Result<Vec<T>, DnsError> {
        let records = self.names.get(&name.to_ascii_lowercase()).ok_or(DnsError::NoName)?;
        if records.broken {
            return Err(DnsError::Temporary("SERVFAIL".to_owned()));
        }
        let found = part(records);
        if found.is_empty() { Err(DnsError::NoRecord) } else { Ok(found.clone()) }
    }
}

#[async_trait]
impl Dns for FixedDns {
    async fn mx(&self, domain: &str) -> Result<Vec<Mx>, DnsError> {
        let mut found = self.answer(domain, |records| &records.mx)?;
        found.sort_by_key(|mx| mx.preference);
        Ok(found)
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        self.answer(host, |records| &records.addresses)
    }

    async fn names(&self, address: IpAddr) -> Result<Vec<String>, DnsError> {
        self.reverse.get(&address).cloned().ok_or(DnsError::NoName)
    }

    async fn texts(&self, name: &str) -> Result<Vec<String>, DnsError> {
        self.answer(name, |records| &records.texts)
    }
}
