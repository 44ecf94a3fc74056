//! `ppswd.toml`: what one node must know before it can ask the cluster for anything.

#[macro_use]
mod documented;

mod annotated;
mod https;
mod values;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use annotated::{annotated, page};
pub use https::HttpsConfig;

use crate::{
    deliver::{Sources, retry::RetryRule},
    files, limits,
    policy::Service,
};

documented! {
/// What a node must know before it can ask the cluster for anything.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Name in banners, `Received` and logs; the machine's host name in real life.
    pub name: String,
    /// A directory: `log/` (the spool), `identity/`, `blobs/`, `active` and `callouts` (answers to callouts) are made in it.
    /// One ppswd at a time uses it.
    pub data: PathBuf,
    /// A directory: `mainlog` and `events.jsonl` are written here.
    pub log: PathBuf,
    /// A directory with `policy.kdl`, `tables/`, `domains/`, `lists/`, `users/`; read again on SIGHUP. Only until a version is
    /// pushed (`ppswctl tables push`): from then on it is not looked at.
    pub config: PathBuf,
    /// A directory with `NAME.pem` and `NAME.key` for each personality that offers TLS, and `clients.pem`, the CAs of clients;
    /// read again on SIGHUP.
    pub certificates: PathBuf,
    /// Where other nodes and ppswctl reach this node. An address of this machine, not of the service; only nodes and operators
    /// need to reach it.
    pub control: SocketAddr,
    /// For HTTP: `/livez`, `/readyz`, `/metrics`, and the status page at `/`. Balancers and Prometheus need to reach it.
    pub http: SocketAddr,
    /// For the agent check of HAProxy.
    pub agent: Option<SocketAddr>,
    /// Resolvers to ask; those of `/etc/resolv.conf` if there are none.
    #[serde(default)]
    pub dns: Vec<SocketAddr>,
    /// Where mail comes in: an SMTP listener each.
    #[serde(default, skip_serializing)]
    pub listener: Vec<ListenerConfig>,
    /// Our addresses for connections to other servers, one for each family of addresses; without, the operating system chooses.
    #[serde(default, skip_serializing)]
    source: Vec<SourceConfig>,
    /// The address of a listener without `proxy_from` where programs of this machine hand mail in: list programs are told of it.
    /// It must not be in the table `addrparams`.
    pub local_smtp: Option<SocketAddr>,
    /// Threads that do the node's work, beside those of the disks. Without, as many as this machine has processors; less where
    /// others want them, too: threads that take processors from each other cost more than they do.
    pub threads: Option<usize>,
    /// Size of one file of the spool's log, at least `8M`. Sizes are bytes, or have K, M or G behind them: 2^10, 2^20, 2^30.
    #[serde(
        default = "default_segment_bytes",
        deserialize_with = "values::bytes",
        serialize_with = "values::show_bytes"
    )]
    pub segment_bytes: u64,
    /// How long the log may get before what is old in it is carried, however little is alive; at least four times `segment_bytes`.
    #[serde(
        default = "default_log_floor",
        deserialize_with = "values::bytes",
        serialize_with = "values::show_bytes"
    )]
    pub log_floor: u64,
    /// Memory for log entries that were appended lately. What is older is read from the disk, most often from the system's
    /// cache of it; much more than the processor's own caches hold makes a node slower.
    #[serde(
        default = "default_cache_bytes",
        deserialize_with = "values::memory",
        serialize_with = "values::show_memory"
    )]
    pub cache_bytes: usize,
    /// After an unplanned takeover, messages that may have been in flight wait this long. Times are `30s`, `5m`, `1h 30m`, `7days`.
    #[serde(
        default = "default_takeover_grace",
        deserialize_with = "values::period",
        serialize_with = "values::show_period"
    )]
    pub takeover_grace: Duration,
    /// A node that is to be drained goes on taking sessions for this long: balancers look at `/readyz` and the agent check now and
    /// then, and nobody is to be turned away before they have. At most `1m`.
    #[serde(
        default = "default_drain_notice",
        deserialize_with = "values::period",
        serialize_with = "values::show_period"
    )]
    pub drain_notice: Duration,
    /// A retry rule for all addresses, instead of those of the policy: up to an age of the message, the time between two
    /// attempts (`F`), or that of the first two and by how much it grows (`G`).
    #[serde(default, deserialize_with = "values::retry_rule", skip_serializing)]
    pub retry: Option<RetryRule>,
    /// What to do when the log is damaged or gone: `rejoin` moves it aside and comes back under a new number, once: while a log
    /// lies aside it stops instead; `stop` stops, and waits for `ppswd rejoin`.
    #[serde(default)]
    pub on_damage: OnDamage,
    /// How often the spool's log is read through in the background: `1h` to a year. `0s`: never, which leaves damage to be found
    /// when the last whole copy may be gone; a warning says so.
    #[serde(
        default = "default_scrub_period",
        deserialize_with = "values::period",
        serialize_with = "values::show_period"
    )]
    scrub_period: Duration,
    /// The disk of `data` is low when less space than this is free there: the node takes no new mail then.
    #[serde(
        default = "default_check_spool_space",
        deserialize_with = "values::bytes",
        serialize_with = "values::show_bytes"
    )]
    pub check_spool_space: u64,
    /// The disk of `data` is low when fewer files than this can be made there.
    #[serde(default = "default_check_spool_inodes")]
    pub check_spool_inodes: u64,
    /// What may be spent on fetching the aliases of managed domains from web servers. The same on all nodes: any of them may be
    /// the one that fetches.
    #[serde(default)]
    pub https_domains: HttpsConfig,
}
}

/// What a node does whose log is damaged or gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDamage {
    /// Moves the log aside and comes back under a new number, once: while a log lies aside, it stops instead.
    #[default]
    Rejoin,
    /// Stops, and waits for `ppswd rejoin`.
    Stop,
}

documented! {
/// One SMTP listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// `smtp`, `submission`, or `submissions` (TLS from the first byte).
    #[serde(deserialize_with = "values::service")]
    pub service: Service,
    /// Address and port.
    pub address: SocketAddr,
    /// Networks of the balancers whose PROXY header (v1 or v2) begins each connection here: its addresses are those of
    /// client and server then. Without, no header is expected, and none is taken: for anycast, IPVS, or one machine.
    #[serde(default)]
    pub proxy_from: Vec<IpNet>,
}
}

documented! {
/// An address for connections to other servers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Name of the personality whose mail goes out from it; `*` for that of all others.
    personality: String,
    /// An address of this machine.
    address: IpAddr,
}
}

impl ListenerConfig {
    /// Whether connections to `address` come here.
    fn takes_of(&self, address: SocketAddr) -> bool {
        self.address == address
            || self.address.ip().is_unspecified() && self.address.port() == address.port()
    }
}

/// Why `ppswd.toml` could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("cannot read {path}: {source}; give the path of a ppswd.toml with --config")]
    Read { path: PathBuf, source: std::io::Error },
    /// The text carries line, column and the line itself.
    #[error("{path}: {what}")]
    Parse { path: PathBuf, what: String },
    #[error("{path}: {what}")]
    Value { path: PathBuf, what: String },
}

impl NodeConfig {
    /// Reads a configuration file. Relative paths in it count from its directory.
    ///
    /// # Errors
    /// `Read`, `Parse` with line and column, `Value` for what parses and makes no sense.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes = files::read(path, limits::NODE_CONFIG_BYTES_MAX)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let text = String::from_utf8_lossy(&bytes);
        let mut config: Self = toml::from_str(&text)
            .map_err(|e| ConfigError::Parse { path: path.to_owned(), what: e.to_string() })?;
        config.check().map_err(|what| ConfigError::Value { path: path.to_owned(), what })?;
        let base = path.parent().unwrap_or_else(|| Path::new("."));
        for field in
            [&mut config.data, &mut config.log, &mut config.config, &mut config.certificates]
        {
            *field = base.join(&*field);
        }
        Ok(config)
    }

    /// How often the spool's log is to be read through; `None`: never.
    #[must_use]
    pub fn scrub_period(&self) -> Option<Duration> {
        (!self.scrub_period.is_zero()).then_some(self.scrub_period)
    }

    /// Our addresses for connections to other servers, by personality.
    #[must_use]
    pub fn sources(&self) -> Sources {
        self.source.iter().map(|source| (source.personality.clone(), source.address)).collect()
    }

    fn check(&self) -> Result<(), String> {
        let name_is_sane = !self.name.is_empty()
            && self.name.len() <= 255
            && self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
        if !name_is_sane {
            return Err(format!(
                "name {:?}: expected a host name (letters, digits, `.`, `-`)",
                self.name
            ));
        }
        if self.source.len() > limits::SOURCES_MAX {
            return Err(format!("source: expected at most {}", limits::SOURCES_MAX));
        }
        if let Some(threads) = self.threads
            && !(1..=limits::THREADS_MAX).contains(&threads)
        {
            return Err(format!("threads = {threads}: expected 1 to {}", limits::THREADS_MAX));
        }
        if self.drain_notice > limits::DRAIN_NOTICE_MAX {
            return Err(format!(
                "drain_notice = \"{}\": expected at most \"{}\"",
                humantime::format_duration(self.drain_notice),
                humantime::format_duration(limits::DRAIN_NOTICE_MAX)
            ));
        }
        const SEGMENT_BYTES_MIN: u64 = 8 * 1024 * 1024;
        if self.segment_bytes < SEGMENT_BYTES_MIN {
            return Err(format!(
                "segment_bytes = {}: expected at least {SEGMENT_BYTES_MIN}",
                self.segment_bytes
            ));
        }
        if let Some(local) = self.local_smtp
            && !self.listener.iter().any(|l| l.takes_of(local) && l.proxy_from.is_empty())
        {
            return Err(format!(
                "local_smtp = \"{local}\": expected the address of a listener without proxy_from"
            ));
        }
        if let Some(listener) =
            self.listener.iter().find(|l| l.proxy_from.len() > limits::PROXY_NETWORKS_MAX)
        {
            return Err(format!(
                "proxy_from of {}: expected at most {} networks",
                listener.address,
                limits::PROXY_NETWORKS_MAX
            ));
        }
        if let Some(period) = self.scrub_period()
            && !(limits::SCRUB_PERIOD_MIN..=limits::SCRUB_PERIOD_MAX).contains(&period)
        {
            return Err(format!(
                "scrub_period = \"{}\": expected \"{}\" to \"{}\", or \"0s\" for never",
                humantime::format_duration(period),
                humantime::format_duration(limits::SCRUB_PERIOD_MIN),
                humantime::format_duration(limits::SCRUB_PERIOD_MAX)
            ));
        }
        // Segments that are just begun, and those that wait for their checkpoint, are no reason to carry.
        let floor_min = self.segment_bytes.saturating_mul(4);
        if self.log_floor < floor_min {
            return Err(format!(
                "log_floor = {}: expected at least {floor_min}, four times segment_bytes",
                self.log_floor
            ));
        }
        self.https_domains.check()?;
        let mut seen = std::collections::BTreeSet::new();
        let own = [self.control, self.http].into_iter().chain(self.agent);
        for address in self.listener.iter().map(|l| l.address).chain(own) {
            if !seen.insert(address) {
                return Err(format!("{address} is used twice"));
            }
        }
        Ok(())
    }
}

const fn default_segment_bytes() -> u64 {
    64 * 1024 * 1024
}

const fn default_log_floor() -> u64 {
    ppsw_spool::limits::LOG_FLOOR_BYTES
}

const fn default_cache_bytes() -> usize {
    ppsw_spool::limits::LOG_CACHE_BYTES
}

const fn default_drain_notice() -> Duration {
    limits::DRAIN_NOTICE
}

const fn default_takeover_grace() -> Duration {
    ppsw_spool::limits::TAKEOVER_GRACE
}

const fn default_scrub_period() -> Duration {
    ppsw_spool::limits::SCRUB_PERIOD
}

const fn default_check_spool_space() -> u64 {
    1000 << 20
}

const fn default_check_spool_inodes() -> u64 {
    1000
}

#[cfg(test)]
mod tests;
