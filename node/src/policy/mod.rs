//! Policy: `policy.kdl`, parsed and checked once per version, evaluated per SMTP command.

mod compile;
mod condition;
mod diagnostic;
mod dns_list;
mod evaluate;
mod explanation;
pub(crate) mod list;
mod open_relay;
mod options;
pub(crate) mod personality;
mod retry;
mod rewrite;
mod rule;
pub(crate) mod source;
pub(crate) mod template;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

pub(crate) use compile::Compiler;
pub use diagnostic::{Place, PlainError, PolicyError, Problem};
pub(crate) use evaluate::found;
pub use explanation::{AskedCondition, Explanation, TriedRule};
pub use open_relay::OpenRelay;
pub use rewrite::{AddressPlace, Rewriting};
#[cfg(test)]
pub(crate) use source::parse_duration;

use crate::{
    callout::Callouts,
    dns::Dns,
    files, limits,
    rate::Rates,
    tables::{TableError, Tables},
};
use compile::Compiled;
use list::{List, NoFacts, Subject, World};
use personality::Personalities;
use rule::{Acl, Body};

/// Policy and tables of one version: what a node switches to at once. Immutable; sessions share it.
#[derive(Debug)]
pub struct Configuration {
    pub tables: Tables,
    pub(crate) compiled: Compiled,
    pub(crate) personalities: Personalities,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// What the client showed when it was asked for a certificate.
    pub certificate: Option<ClientCertificate>,
    /// Set by rules.
    pub variables: BTreeMap<String, String>,
    /// How many messages waited when a rule asked for the first time: it is asked once.
    pub queue_length: Option<u64>,
}

/// Variables whose names begin so are those of a message, as in Exim.
const MESSAGE_VARIABLE: &str = "acl_m";

impl Connection {
    /// A client of which nothing else is known yet.
    pub fn new(client: SocketAddr, server: SocketAddr, service: Service) -> Self {
        Self {
            client,
            server,
            service,
            client_name: None,
            helo: None,
            authenticated: None,
            tls: None,
            certificate: None,
            variables: BTreeMap::new(),
            queue_length: None,
        }
    }

    /// Forgets what rules have remembered for this message only.
    pub fn forget_message(&mut self) {
        self.variables.retain(|name, _| !name.starts_with(MESSAGE_VARIABLE));
    }

    /// The certificate of the client, if it is to be believed.
    pub fn verified_certificate(&self) -> Option<&ClientCertificate> {
        self.certificate.as_ref().filter(|certificate| certificate.refused.is_none())
    }
}

/// A certificate that a client showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its subject, written as in RFC 4514: `CN=relay.example,O=Example,C=GB`.
    pub subject: String,
    /// The DNS names that it is for; its common name, if it has none.
    pub names: Vec<String>,
    /// Why it is not believed: no CA of ours signed it, it is out of date, the client has not its key.
    pub refused: Option<String>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

impl Stage {
    /// As it is called in the policy.
    pub fn name(self) -> &'static str {
        rule::STAGES.iter().find(|(_, stage)| *stage == self).map_or("", |(name, _)| name)
    }
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
    /// Do not check whether the client waits for our replies.
    pub enforce_sync_off: bool,
    /// Do not offer PIPELINING on this connection.
    pub pipelining_off: bool,
    /// Text of a rule that accepts a connection: more lines of the banner.
    pub banner: Option<String>,
    /// Lines for the log.
    pub log: Vec<String>,
}

impl Verdict {
    /// As the verb that gives it is called in the policy.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Discard => "discard",
            Self::Deny(_) => "deny",
            Self::Defer(_) => "defer",
            Self::Drop(_) => "drop",
        }
    }
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
pub trait NodeFacts: Send + Sync + 'static {
    /// Messages that wait in this node's queue (`queue-over`).
    fn queue_length(&self) -> u64;
    /// Load of the machine over the last minute, times 100 (`load-over`). `None`: not known.
    fn load(&self) -> Option<u32>;
    /// How long entries have lately taken to be on the disks of a majority (`shed_commit_over`).
    fn commit_time(&self) -> Duration {
        Duration::ZERO
    }
    /// Free bytes of the spool (`shed_space_under`). `None`: not known.
    fn room_bytes(&self) -> Option<u64> {
        None
    }
    /// How many of a hundred sessions of a personality are to be turned away (`ppswctl shed`).
    fn shed_percent(&self, personality: &str) -> u8 {
        let _ = personality;
        0
    }
}

/// Whom rules may ask.
pub struct Surroundings {
    pub dns: Arc<dyn Dns>,
    pub facts: Arc<dyn NodeFacts>,
    pub callouts: Arc<dyn Callouts>,
    pub rates: Rates,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}

/// Name of the policy's file in a configuration's directory.
pub const POLICY: &str = "policy.kdl";

impl Configuration {
    /// Reads `policy.kdl` and the tables below `dir`. Every error found, with file, line and column.
    pub fn load(dir: &Path) -> Result<Arc<Self>, Vec<miette::Report>> {
        let files = files::read_tree(dir).map_err(|errors| {
            errors.into_iter().map(|e| PlainError(e.to_string()).into()).collect::<Vec<_>>()
        })?;
        Self::from_files(&files)
    }

    /// Makes a configuration of files that were read already: path below its directory, and content.
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Arc<Self>, Vec<miette::Report>> {
        let tables = Tables::from_files(files).map_err(table_errors)?;
        let policy = files.get(POLICY).map(Vec::as_slice);
        Self::from_parts(policy, tables)
    }

    /// Makes a configuration of a policy and tables that were parsed already.
    pub fn from_parts(
        policy: Option<&[u8]>,
        tables: Tables,
    ) -> Result<Arc<Self>, Vec<miette::Report>> {
        let plain = |what: String| vec![miette::Report::from(PlainError(what))];
        let policy = policy.ok_or_else(|| plain(format!("{POLICY}: there is no such file")))?;
        if policy.len() as u64 > limits::POLICY_BYTES_MAX {
            return Err(plain(format!("{POLICY}: at most {} bytes", limits::POLICY_BYTES_MAX)));
        }
        let policy =
            std::str::from_utf8(policy).map_err(|e| plain(format!("{POLICY}: not UTF-8: {e}")))?;
        let compiled = compile::compile(POLICY, policy, &tables)
            .map_err(|errors| errors.into_iter().map(miette::Report::from).collect::<Vec<_>>())?;
        let personalities =
            Personalities::compile(&tables, &compiled.options).map_err(table_errors)?;
        let configuration = Self { tables, compiled, personalities };
        let missing = configuration.missing_acls();
        if missing.is_empty() { Ok(Arc::new(configuration)) } else { Err(missing) }
    }

    /// Everything that is wrong with the configuration in a directory; that it relays for everybody, too.
    pub async fn problems(dir: &Path) -> Vec<Problem> {
        match Self::load(dir) {
            Err(reports) => reports.iter().map(Problem::of_report).collect(),
            Ok(configuration) => {
                let open = configuration.open_relays().await;
                open.iter().map(|relay| Problem::plain(relay.to_string())).collect()
            }
        }
    }

    /// Names of all personalities.
    #[must_use]
    pub fn personality_names(&self) -> Vec<String> {
        self.personalities.names()
    }

    /// The personality of a server address.
    pub fn personality(&self, server: IpAddr) -> Personality {
        self.personalities.at(server).clone()
    }

    /// Runs the rules of the connection's personality for one stage.
    pub async fn check(
        &self,
        stage: Stage,
        connection: &mut Connection,
        transaction: &Transaction,
        around: &Surroundings,
    ) -> Decision {
        evaluate::run(self, stage, connection, transaction, around).await
    }

    /// As [`Self::check`], and tells how it came to the decision.
    pub async fn explain(
        &self,
        stage: Stage,
        connection: &mut Connection,
        transaction: &Transaction,
        around: &Surroundings,
    ) -> (Decision, Explanation) {
        evaluate::explain(self, stage, connection, transaction, around).await
    }

    /// The crypt(3) hash of a user's password (`users/passwd`).
    pub fn password_hash(&self, user: &str) -> Option<&str> {
        self.tables.get("users/passwd", user).filter(|hash| !hash.is_empty())
    }

    /// Options outside ACLs: `smtp_accept_max`, `smtp_accept_max_per_host`, reserve and so on.
    pub fn options(&self) -> &Options {
        &self.compiled.options
    }

    /// Whether a client is one for whom connections are reserved (`smtp_reserve_hosts`).
    pub fn is_reserve_host(&self, client: IpAddr) -> bool {
        self.holds(&self.compiled.reserve_hosts, Subject::Host(client, None, None))
    }

    /// Whether a client with this verified name is asked for a certificate (`tls_try_verify_hosts`).
    pub fn asks_certificate(&self, client: IpAddr, name: Option<&str>) -> bool {
        let list = &self.compiled.certificate_hosts;
        !list.items.is_empty() && self.holds(list, Subject::Host(client, name, None))
    }

    /// Whether any client is asked for a certificate.
    pub fn asks_certificates(&self) -> bool {
        !self.compiled.certificate_hosts.items.is_empty()
    }

    /// Whether `addrparams` says yes to a parameter of an address.
    pub fn says_yes(&self, address: IpAddr, name: &str) -> bool {
        self.parameter(address, name).is_some_and(evaluate::says_yes)
    }

    /// What `addrparams` says of an address: `benice`, `mua` and so on.
    pub fn parameter(&self, address: IpAddr, name: &str) -> Option<&str> {
        self.personalities.parameter(address, name)
    }

    /// Whether a list whose items need no facts of a session holds the subject.
    pub(crate) fn holds(&self, list: &List, subject: Subject<'_>) -> bool {
        list.holds(subject, &self.world(&NoFacts(&self.tables)))
    }

    pub(crate) fn world<'a>(&'a self, facts: &'a dyn template::Facts) -> World<'a> {
        World {
            lists: &self.compiled.lists,
            tables: &self.tables,
            personalities: &self.personalities,
            facts,
        }
    }

    fn acl(&self, name: &str) -> Option<&Acl> {
        self.compiled.acls.iter().find(|acl| acl.name == name)
    }

    /// Personalities whose ACL does not exist or takes no recipients.
    fn missing_acls(&self) -> Vec<miette::Report> {
        let mut errors = Vec::new();
        for (name, address) in self.personalities.acls().into_iter().chain([("local", LOOPBACK)]) {
            let takes = |body: &Body| match body {
                Body::Stages(stages) => stages.contains_key(&Stage::Rcpt),
                Body::Rules(_) => false,
            };
            if !self.acl(name).is_some_and(|acl| takes(&acl.body)) {
                let what = format!(
                    "tables/addrparams: {address} has acl={name}, but {POLICY} has no acl {name:?} \
                     with a block rcpt {{ … }}"
                );
                errors.push(PlainError(what).into());
            }
        }
        errors
    }
}

fn table_errors(errors: Vec<TableError>) -> Vec<miette::Report> {
    errors.into_iter().map(|e| PlainError(e.to_string()).into()).collect()
}

/// Stands for every address without entry.
const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Options of `policy.kdl` outside ACLs and routers, with the paper's values as defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub qualify_domain: String,
    pub smtp_accept_max: usize,
    pub smtp_accept_reserve: usize,
    pub smtp_accept_max_per_host: usize,
    pub smtp_accept_max_per_relay_host: usize,
    /// Load average, times 100, above which only `smtp_reserve_hosts` get a session.
    pub smtp_load_reserve: Option<u32>,
    /// Beyond each of these a part of new sessions is turned away (smtp/pressure.rs). `None`: it is not looked at.
    pub shed_connections_over: Option<u64>,
    /// Messages in the queue of this node.
    pub shed_queue_over: Option<u64>,
    /// Load average, times 100.
    pub shed_load_over: Option<u32>,
    /// Time until an entry is on the disks of a majority.
    pub shed_commit_over: Option<Duration>,
    /// Free bytes of the spool.
    pub shed_space_under: Option<u64>,
    /// Load average, times 100, above which new messages wait in the queue.
    pub queue_only_load: Option<u32>,
    /// Load average, times 100, above which nothing is tried again.
    pub deliver_queue_load_max: Option<u32>,
    /// The order in which the domains of one message are delivered to: patterns, `*` in front is anything. Others come last.
    pub remote_sort_domains: Vec<String>,
    pub message_size_limit: u64,
    pub bounce_return_size_limit: u64,
    pub errors_reply_to: Option<String>,
    pub delay_warning: Duration,
    pub ignore_bounce_errors_after: Duration,
    pub auto_thaw: Duration,
    /// Free bytes of the spool below which mail is answered `452`.
    pub check_spool_space: u64,
    /// Free inodes of the spool below which mail is answered `452`.
    pub check_spool_inodes: u64,
    /// `user@[192.0.2.1]` is routed to that address.
    pub allow_domain_literals: bool,
}

#[cfg(test)]
pub(crate) mod golden;
#[cfg(test)]
mod tests;
