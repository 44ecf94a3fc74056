//! `ppswd.toml`: what one node must know before it can ask the cluster for anything.

mod https;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;

pub use https::HttpsConfig;

use crate::{
    deliver::{Sources, retry::RetryRule},
    files, limits,
    policy::Service,
};

/// The configuration file of one node. Every option is written in the example of `docs/operations.md`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Name in banners, `Received` and logs; the machine's host name in real life.
    pub name: String,
    /// `log/` (the spool), `identity/` and `callouts` (answers to callouts) are in it.
    pub data: PathBuf,
    /// `mainlog` and `events.jsonl` are written here.
    pub log: PathBuf,
    /// `policy.kdl`, `tables/`, `domains/`, `lists/`, `users/`.
    pub config: PathBuf,
    /// `NAME.pem` and `NAME.key` for each personality that offers TLS; `clients.pem`, the CAs of clients.
    pub certificates: PathBuf,
    /// Where other nodes and ppswctl reach this node.
    pub control: SocketAddr,
    /// `/livez`, `/readyz`, `/metrics`.
    pub http: SocketAddr,
    /// The agent check of HAProxy; none if absent.
    pub agent: Option<SocketAddr>,
    /// Resolvers to ask; the system's own if empty.
    #[serde(default)]
    pub dns: Vec<SocketAddr>,
    /// SMTP listeners.
    #[serde(default, rename = "listener")]
    pub listeners: Vec<ListenerConfig>,
    /// Our addresses for connections to other servers.
    #[serde(default, rename = "source")]
    sources: Vec<SourceConfig>,
    /// The listener where programs of this machine hand mail in, if there is one: list programs are told of it.
    pub local_smtp: Option<SocketAddr>,
    /// Size of one file of the spool's log, bytes.
    #[serde(default = "default_segment_bytes")]
    pub segment_bytes: u64,
    /// How long the log may get, in bytes, before what is old in it is carried, however little is alive.
    #[serde(default = "default_log_floor")]
    pub log_floor: u64,
    /// Memory for log entries that were appended lately, bytes.
    #[serde(default = "default_cache_bytes")]
    pub cache_bytes: usize,
    /// After an unplanned takeover, messages that may have been in flight wait this long.
    #[serde(default = "default_takeover_grace", deserialize_with = "period")]
    pub takeover_grace: Duration,
    /// A node that is to be drained goes on taking sessions for this long: balancers look at `/readyz` and the agent check now and
    /// then, and nobody is to be turned away before they have.
    #[serde(default = "default_drain_notice", deserialize_with = "period")]
    pub drain_notice: Duration,
    /// A retry rule for all addresses, as `F,2h,15m; F,5d,8h`; without it, those of the paper.
    #[serde(default, deserialize_with = "retry_rule")]
    pub retry: Option<RetryRule>,
    /// What a node does that cannot read its log any more.
    #[serde(default)]
    pub on_damage: OnDamage,
    /// How often the spool's log is read through in the background; zero: never.
    #[serde(default = "default_scrub_period", deserialize_with = "period")]
    scrub_period: Duration,
    /// The disk of `data` is low when fewer bytes are free there: `1000M`, or a number. `M` is 2^20.
    #[serde(default = "default_check_spool_space", deserialize_with = "bytes")]
    pub check_spool_space: u64,
    /// The disk of `data` is low when fewer files can be made there.
    #[serde(default = "default_check_spool_inodes")]
    pub check_spool_inodes: u64,
    /// What may be spent on fetching the aliases of managed domains.
    #[serde(default)]
    pub https_domains: HttpsConfig,
}

/// What a node does whose log is damaged or gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDamage {
    /// Moves the log aside and comes back under a new number, once: while a log lies aside, it stops instead.
    #[default]
    Rejoin,
    /// Stops, and waits for `ppswd rejoin`.
    Stop,
}

/// One SMTP listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    #[serde(deserialize_with = "service")]
    pub service: Service,
    pub address: SocketAddr,
    /// Networks of the balancers whose PROXY header (v1 or v2) begins each connection here: its addresses are those of
    /// client and server then. Empty: no header is expected, and none is taken.
    #[serde(default)]
    pub proxy_from: Vec<IpNet>,
}

/// An address for connections to other servers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Name of the personality whose mail goes out from it; `*` for that of all others.
    personality: String,
    address: IpAddr,
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
        self.sources.iter().map(|source| (source.personality.clone(), source.address)).collect()
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
        if self.sources.len() > limits::SOURCES_MAX {
            return Err(format!("source: expected at most {}", limits::SOURCES_MAX));
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
            && !self.listeners.iter().any(|l| l.takes_of(local) && l.proxy_from.is_empty())
        {
            return Err(format!(
                "local_smtp = \"{local}\": expected the address of a listener without proxy_from"
            ));
        }
        if let Some(listener) =
            self.listeners.iter().find(|l| l.proxy_from.len() > limits::PROXY_NETWORKS_MAX)
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
        for address in self.listeners.iter().map(|l| l.address).chain(own) {
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
    64 * 1024 * 1024
}

const fn default_drain_notice() -> Duration {
    limits::DRAIN_NOTICE
}

const fn default_takeover_grace() -> Duration {
    ppsw_spool::limits::TAKEOVER_GRACE
}

fn retry_rule<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<RetryRule>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

const fn default_scrub_period() -> Duration {
    ppsw_spool::limits::SCRUB_PERIOD
}

fn period<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|e| {
        serde::de::Error::custom(format!("{text:?} is no period: {e}; expected one like \"7days\""))
    })
}

const fn default_check_spool_space() -> u64 {
    1000 << 20
}

const fn default_check_spool_inodes() -> u64 {
    1000
}

/// A number of bytes, or a text of a number and `K`, `M` or `G` (2^10, 2^20, 2^30).
fn bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Bytes {
        Number(u64),
        Text(String),
    }
    let text = match Bytes::deserialize(deserializer)? {
        Bytes::Number(bytes) => return Ok(bytes),
        Bytes::Text(text) => text,
    };
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        _ => None,
    };
    let number = digits.parse::<u64>().ok().zip(shift);
    let bytes = number.and_then(|(number, shift)| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| {
        serde::de::Error::custom(format!(
            "{text:?}: expected a number of bytes, or one with K, M or G behind it, as in \"1000M\""
        ))
    })
}

fn service<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Service, D::Error> {
    let word = String::deserialize(deserializer)?;
    match word.as_str() {
        "smtp" => Ok(Service::Smtp),
        "submission" => Ok(Service::Submission),
        "submissions" => Ok(Service::Submissions),
        _ => Err(serde::de::Error::unknown_variant(&word, &["smtp", "submission", "submissions"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "ppsw-1.example"
data = "data"
log = "log"
config = "../config"
certificates = "../certs"
control = "127.10.1.9:2590"
http = "127.10.1.9:2580"
[[listener]]
service = "smtp"
address = "127.10.1.1:2525"
"#;

    #[test]
    fn a_misspelt_option_is_an_error_with_its_line() {
        let error = toml::from_str::<NodeConfig>(&GOOD.replace("http =", "htp =")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 8") && text.contains("htp"), "{text}");
    }

    #[test]
    fn a_retry_rule_is_read_and_a_bad_one_refused() {
        let with =
            |rule: &str| toml::from_str::<NodeConfig>(&format!("retry = \"{rule}\"\n{GOOD}"));
        let config = with("F,1h,2s").unwrap();
        let wait = config.retry.unwrap().next(Duration::ZERO);
        assert_eq!(wait, Some(Duration::from_secs(2)));
        assert_eq!(config.drain_notice, Duration::from_secs(3));
        assert_eq!(config.takeover_grace, ppsw_spool::limits::TAKEOVER_GRACE);
        assert!(with("F,1h").is_err());
    }

    #[test]
    fn the_scrub_is_switched_off_only_on_purpose() {
        let parsed = |line: &str| {
            let text = GOOD.replace("[[listener]]", &format!("{line}\n[[listener]]"));
            toml::from_str::<NodeConfig>(&text)
        };
        assert_eq!(parsed("").unwrap().scrub_period(), Some(ppsw_spool::limits::SCRUB_PERIOD));
        let daily = parsed("scrub_period = \"1day\"").unwrap();
        assert_eq!(daily.scrub_period(), Some(Duration::from_secs(86_400)));
        assert_eq!(parsed("scrub_period = \"0s\"").unwrap().scrub_period(), None);
        assert_eq!(parsed("scrub_period = \"0\"").unwrap().scrub_period(), None);
        let often = parsed("scrub_period = \"1s\"").unwrap().check().unwrap_err();
        assert!(often.contains("1s") && often.contains("never"), "{often}");
        let text = parsed("scrub_period = \"weekly\"").unwrap_err().to_string();
        assert!(text.contains("weekly") && text.contains("7days"), "{text}");
    }

    #[test]
    fn sizes_are_numbers_with_or_without_a_unit() {
        let with = |value: &str| {
            let text = format!("check_spool_space = {value}\n{GOOD}");
            toml::from_str::<NodeConfig>(&text).map(|config| config.check_spool_space)
        };
        assert_eq!(with("\"1000M\"").unwrap(), 1_048_576_000);
        assert_eq!(with("\"3G\"").unwrap(), 3 << 30);
        assert_eq!(with("\"0\"").unwrap(), 0);
        assert_eq!(with("123456").unwrap(), 123_456);
        for bad in [
            "\"1000MB\"",
            "\"MM\"",
            "\"1MM\"",
            "\"\"",
            "\"-1\"",
            "-1",
            "\"99999999999999999999\"",
            "\"99999999999G\"",
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
        let default: NodeConfig = toml::from_str(GOOD).unwrap();
        assert_eq!((default.check_spool_space, default.check_spool_inodes), (1000 << 20, 1000));
    }

    #[test]
    fn an_address_used_twice_is_refused() {
        let config: NodeConfig = toml::from_str(&GOOD.replace("2580", "2590")).unwrap();
        assert!(config.check().unwrap_err().contains("used twice"));
    }
}
