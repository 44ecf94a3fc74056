//! Policy: `policy.kdl`, parsed and checked once per version, evaluated per SMTP command.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use crate::{dns::Dns, tables::Tables};

/// Policy and tables of one version: what a node switches to at once. Immutable; sessions share it.
#[derive(Debug)]
pub struct Configuration {
    pub tables: Tables,
}

/// Which kind of port the client came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Port 25 in the paper.
    Smtp,
    /// Port 587.
    Submission,
    /// Port 465: TLS from the start.
    Submissions,
}

/// What a server address makes of us (`addrparams`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Personality {
    /// Host name shown in the banner, name of the certificate.
    pub name: String,
    /// `mx`, `smart`, `submit`; `local` for an address without entry.
    pub acl: String,
    /// Domain for submission fix-ups.
    pub domain: Option<String>,
    /// Largest message, bytes.
    pub size_limit: u64,
    /// PIPELINING is advertised (not on `submit`: the paper, section 3).
    pub pipelining: bool,
    /// Bare CR or LF is normalised (`submit`) instead of refused.
    pub normalise_line_ends: bool,
}

/// Connection-scope facts and variables. One per connection; rules may set variables in it.
#[derive(Clone, Debug)]
pub struct Connection {
    pub client: SocketAddr,
    pub server: SocketAddr,
    pub service: Service,
    /// Verified reverse name of the client.
    pub client_name: Option<String>,
    pub helo: Option<String>,
    pub authenticated: Option<String>,
    /// TLS version and cipher.
    pub tls: Option<String>,
    /// Set by rules.
    pub variables: std::collections::BTreeMap<String, String>,
}

/// Message-scope facts.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// Reverse-path; empty for `<>`.
    pub sender: String,
    /// The recipient that is being checked (`rcpt` only).
    pub recipient: Option<String>,
    pub recipients_accepted: usize,
    pub size_declared: Option<u64>,
}

/// When rules run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    Connect,
    Helo,
    Starttls,
    Auth,
    Mail,
    Rcpt,
    Predata,
    Data,
    Quit,
    NotQuit,
}

/// What the rules decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// Accept and throw away.
    Discard,
    /// 5xx. Text without code; several lines separated by `\n`.
    Deny(String),
    /// 4xx.
    Defer(String),
    /// 5xx and close.
    Drop(String),
}

/// Verdict and side effects of one evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    /// Wait before answering.
    pub delay: Duration,
    /// Fix up the header as for submission.
    pub submission: Option<Submission>,
    /// Lines for the log.
    pub log: Vec<String>,
}

/// What `control submission` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Leave `Sender:` alone (`smart`).
    pub sender_retain: bool,
    /// Domain for unqualified authenticated users.
    pub domain: Option<String>,
}

/// Facts about this node that rules may ask for.
pub trait NodeFacts: Send + Sync {
    /// Messages that wait in this node's queue (`queue-over`).
    fn queue_length(&self) -> u64;
}

#[allow(unused_variables, clippy::todo, clippy::unused_async, reason = "skeleton")]
impl Configuration {
    /// Reads `policy.kdl` and the tables below `dir`. Every error found, with file, line and column.
    pub fn load(dir: &Path) -> Result<Arc<Self>, Vec<miette::Report>> {
        todo!()
    }
    /// The personality of a server address.
    pub fn personality(&self, server: std::net::IpAddr) -> Personality {
        todo!()
    }
    /// Runs the rules of the connection's personality for one stage.
    pub async fn check(
        &self,
        stage: Stage,
        connection: &mut Connection,
        transaction: &Transaction,
        dns: &dyn Dns,
        facts: &dyn NodeFacts,
    ) -> Decision {
        todo!()
    }
    /// The crypt(3) hash of a user's password (`users/passwd`).
    pub fn password_hash(&self, user: &str) -> Option<&str> {
        todo!()
    }
    /// Options outside ACLs: `smtp_accept_max`, `smtp_accept_max_per_host`, reserve and so on.
    pub fn options(&self) -> &Options {
        todo!()
    }
}

/// Options of `policy.kdl` outside ACLs and routers, with the paper's values as defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub qualify_domain: String,
    pub smtp_accept_max: usize,
    pub smtp_accept_reserve: usize,
    pub smtp_accept_max_per_host: usize,
    pub smtp_accept_max_per_relay_host: usize,
    pub message_size_limit: u64,
    pub bounce_return_size_limit: u64,
    pub errors_reply_to: Option<String>,
    pub delay_warning: Duration,
    pub ignore_bounce_errors_after: Duration,
    pub auto_thaw: Duration,
}
