//! Routing: from a recipient to the addresses that it leads to, and for each the hosts to try. Pure logic over
//! [`Configuration`] and [`Dns`].

mod address;
pub(crate) mod compile;
mod hosts;
mod redirect;
pub(crate) mod router;
mod walk;

use std::net::IpAddr;

use crate::{
    dns::Dns,
    policy::{Configuration, Place},
};

/// How an address is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Smtp,
    /// RFC 2033: a reply per recipient after the final dot.
    Lmtp,
}

/// One host to try. Hosts of equal preference are tried at random.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    pub preference: u16,
}

/// Where an address goes. Addresses with equal destinations share a transaction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Name of the router, for the log.
    pub router: String,
    /// Name of the transport, for the log.
    pub transport: String,
    pub protocol: Protocol,
    /// By preference.
    pub hosts: Vec<Host>,
    /// Leave NUL bytes out (Cyrus refuses them) if the message has any.
    pub strip_nul: bool,
}

/// What one final address comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Deliver(Destination),
    /// Cannot be delivered, and why (goes into the bounce and the SMTP reply).
    Fail(String),
    /// Cannot be routed now, and why.
    Defer(String),
}

/// One address to which a recipient led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As it goes into RCPT.
    pub address: String,
    /// The addresses between the recipient and this one, recipient first; empty if no alias changed it.
    pub parents: Vec<String>,
    /// Envelope sender to use instead of the message's, from `errors-to`.
    pub errors_to: Option<String>,
    pub fate: Fate,
}

/// Result of the verification of an address at SMTP time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// With the one address that it leads to, and where that goes; `None` if it leads to several.
    Yes(Option<(String, Destination)>),
    No(String),
    /// Not known now.
    Later(String),
}

/// Routes a recipient. Never empty; de-duplicated; bounded by `limits`.
pub async fn route(configuration: &Configuration, dns: &dyn Dns, address: &str) -> Vec<Target> {
    walk::route(configuration, dns, address).await
}

/// What a router made of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriedRouter {
    pub name: String,
    pub place: Place,
    pub outcome: String,
    /// No other router is asked about this address.
    pub decides: bool,
}

/// An address on the way from a recipient, and the routers that were asked about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub address: String,
    pub routers: Vec<TriedRouter>,
}

/// As [`route`], and tells every router that was asked; with `verify` as a verification asks them.
pub async fn explain(
    configuration: &Configuration,
    dns: &dyn Dns,
    address: &str,
    verify: bool,
) -> (Vec<Target>, Vec<Stop>) {
    walk::explain(configuration, dns, address, verify).await
}

/// Whether mail for (or replies to) an address could be routed. Stops at the first address with several children.
pub async fn verify(configuration: &Configuration, dns: &dyn Dns, address: &str) -> Verified {
    walk::verify(configuration, dns, address).await
}

#[cfg(test)]
mod tests;
