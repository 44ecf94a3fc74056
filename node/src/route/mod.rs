//! Routing: from a recipient to the addresses that it leads to, and for each the hosts to try, or the program that takes
//! it. Pure logic over [`Configuration`] and [`Dns`].

mod address;
mod ask;
pub(crate) mod compile;
mod hosts;
mod notes;
mod redirect;
pub(crate) mod router;
mod walk;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use ppsw_spool::queue::{Expansion, MessageId};

use crate::{
    dns::Dns,
    limits::MESSAGES_PER_CONNECTION_MAX,
    policy::{Configuration, Place},
};

/// How an address is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Smtp,
    /// RFC 2033: a reply per recipient after the final dot.
    Lmtp,
    /// To a program on this machine.
    Pipe,
}

/// One host to try. Hosts of equal preference are tried at random.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    pub preference: u16,
    /// It comes from an MX record.
    pub mx: bool,
}

/// A program that takes a message on its standard input, for one address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Program {
    /// Program and arguments. No shell sees them.
    pub words: Vec<String>,
    /// As whom it runs, `USER` or `UID:GID`; `None`: as this process.
    pub user: Option<String>,
    pub timeout: Duration,
    /// Bytes of output that are kept.
    pub max_output: u64,
    /// What it printed goes into the bounce if it fails.
    pub return_fail_output: bool,
    /// Exit codes that mean: try again.
    pub temp_errors: Vec<i32>,
    /// Before and behind the message.
    pub prefix: String,
    pub suffix: String,
    /// What of its environment depends on the address.
    pub environment: Vec<(&'static str, String)>,
}

/// Whether mail is encrypted on its way to a host (RFC 3207).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tls {
    Never,
    /// If the host offers it; where that fails, without.
    #[default]
    May,
    /// Or not at all. Whose certificate it is does not count.
    Must,
    /// Or not at all, with a certificate for the host's name that an authority answers for.
    Verify,
}

/// How a transport talks to hosts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientOptions {
    /// The authorities (PEM) of [`Tls::Verify`]; those of the web if not given.
    pub tls_ca_file: Option<PathBuf>,
    /// Messages that go over one connection.
    pub connection_max_messages: u32,
    /// 8-bit content fails where `8BITMIME` is not offered (RFC 6152 §3); else it is sent all the same.
    pub eight_bit_strict: bool,
    /// `BDAT` is used where it is offered (RFC 3030).
    pub chunking: bool,
    pub auth: Option<Auth>,
}

/// How a client says who it is (RFC 4954).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Auth {
    /// The host knows already. Empty: whoever it takes us for.
    External { identity: String },
    /// The password is the first line of a file of each node: it is in no policy and no log.
    Plain { user: String, password_file: PathBuf },
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            tls_ca_file: None,
            connection_max_messages: MESSAGES_PER_CONNECTION_MAX,
            eight_bit_strict: false,
            chunking: false,
            auth: None,
        }
    }
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
    pub tls: Tls,
    pub client: ClientOptions,
    /// If the protocol is `Pipe`.
    pub program: Option<Program>,
}

/// What one final address comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Deliver(Box<Destination>),
    /// Cannot be delivered, and why (goes into the bounce and the SMTP reply).
    Fail(String),
    /// Cannot be routed now, and why.
    Defer(String),
    /// Becomes these addresses once and for all: only from [`route_recipients`].
    Expand(Vec<String>),
}

/// One address to which a recipient led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As it goes into RCPT.
    pub address: String,
    /// This is a copy that a router with `unseen` made; its name.
    pub copy: Option<String>,
    /// The addresses between the recipient and this one, recipient first; empty if no alias changed it.
    pub parents: Vec<String>,
    /// Envelope sender to use instead of the message's, from `errors-to`.
    pub errors_to: Option<String>,
    pub fate: Fate,
}

impl Target {
    /// Tells the targets of a recipient apart, also when a copy and the real thing have one address.
    #[must_use]
    pub fn key(&self) -> String {
        match (&self.copy, &self.fate) {
            (Some(router), _) => format!("{} via {router}", self.address),
            (None, Fate::Expand(_)) => Expansion::key(&self.address),
            (None, _) => self.address.clone(),
        }
    }
}

/// What routers may ask about the message whose recipients they route.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    /// `None` while it has none: an address is being verified.
    pub id: Option<MessageId>,
    /// Empty for a bounce.
    pub sender: &'a str,
    /// By which it came; empty if nobody knows.
    pub personality: &'a str,
}

/// A recipient of a queued message.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    pub address: &'a str,
    /// The addresses from which it was made by expansions that are recorded, oldest first.
    pub ancestors: Vec<&'a str>,
}

/// Result of the verification of an address at SMTP time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// With the one address that it leads to, and where that goes; `None` if it leads to several.
    Yes(Option<(String, Box<Destination>)>),
    No(String),
    /// Not known now.
    Later(String),
}

/// Where an address leads, to the end. Never empty; de-duplicated; bounded by `limits`.
pub async fn route(
    configuration: &Configuration,
    dns: &dyn Dns,
    about: &About<'_>,
    address: &str,
) -> Vec<Target> {
    let asked = Asked { address, ancestors: Vec::new() };
    walk::Walk::new(configuration, dns, about).route(&asked).await
}

/// Where the recipients of a queued message lead, each as far as it can be delivered now: what is expanded once and for
/// all is to be recorded first. Look-ups of hosts are shared, and made concurrently within a bound.
pub async fn route_recipients(
    configuration: &Configuration,
    dns: &dyn Dns,
    about: &About<'_>,
    recipients: &[Asked<'_>],
) -> Vec<Vec<Target>> {
    walk::Walk::new(configuration, dns, about).expanding().route_all(recipients).await
}

/// What a router made of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriedRouter {
    pub name: String,
    pub place: Place,
    pub outcome: String,
    /// What it looked up in tables and in the DNS, and what it found.
    pub lookups: Vec<String>,
    /// No other router is asked about this address.
    pub decides: bool,
}

/// An address on the way from a recipient, and the routers that were asked about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub address: String,
    /// The stop from which it was made, by number.
    pub parent: Option<usize>,
    pub routers: Vec<TriedRouter>,
}

/// As [`route`], and tells every router that was asked; with `verify` as a verification asks them.
pub async fn explain(
    configuration: &Configuration,
    dns: &dyn Dns,
    about: &About<'_>,
    address: &str,
    verify: bool,
) -> (Vec<Target>, Vec<Stop>) {
    walk::Walk::new(configuration, dns, about).verifying(verify).explain(address).await
}

/// Whether mail for (or replies to) an address could be routed. Stops at the first address with several children.
pub async fn verify(
    configuration: &Configuration,
    dns: &dyn Dns,
    about: &About<'_>,
    address: &str,
) -> Verified {
    walk::Walk::new(configuration, dns, about).verifying(true).verify(address).await
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
