//! Questions to the DNS.

mod answers;
mod fixed;
mod resolver;

use std::net::IpAddr;

use async_trait::async_trait;

pub use fixed::FixedDns;
pub use resolver::Resolver;

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// The name does not exist (NXDOMAIN).
    #[error("no such domain")]
    NoName,
    /// The name exists, without such a record.
    #[error("no such record")]
    NoRecord,
    /// No answer now (SERVFAIL, time-out): try again later.
    #[error("DNS gave no answer: {0}")]
    Temporary(String),
}

/// One MX record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mx {
    pub preference: u16,
    /// Lower case, without the final dot. Empty for the null MX (RFC 7505).
    pub host: String,
}

/// The questions that mail asks. Answers are cached by whoever implements it.
#[async_trait]
pub trait Dns: Send + Sync + 'static {
    /// MX records, by preference.
    async fn mx(&self, domain: &str) -> Result<Vec<Mx>, DnsError>;
    /// AAAA and A records.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError>;
    /// PTR names.
    async fn names(&self, address: IpAddr) -> Result<Vec<String>, DnsError>;
    /// TXT records, each joined to one string.
    async fn texts(&self, name: &str) -> Result<Vec<String>, DnsError>;
}
