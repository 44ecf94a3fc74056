//! `ppswd.toml`: what one node must know before it can ask the cluster for anything.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{files, limits, policy::Service};

/// The configuration file of one node. Every option is written in the example of `docs/operations.md`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Name in banners, `Received` and logs; the machine's host name in real life.
    pub name: String,
    /// `log/` (the spool) and `identity/` are in it.
    pub data: PathBuf,
    /// `mainlog` and `events.jsonl` are written here.
    pub log: PathBuf,
    /// `policy.kdl`, `tables/`, `domains/`, `lists/`, `users/`.
    pub config: PathBuf,
    /// `NAME.pem` and `NAME.key` for each personality that offers TLS.
    pub certificates: PathBuf,
    /// Where other nodes and ppswctl reach this node.
    pub control: SocketAddr,
    /// `/livez`, `/readyz`, `/metrics`.
    pub http: SocketAddr,
    /// Resolvers to ask; the system's own if empty.
    #[serde(default)]
    pub dns: Vec<SocketAddr>,
    /// SMTP listeners.
    #[serde(default, rename = "listener")]
    pub listeners: Vec<ListenerConfig>,
    /// Size of one file of the spool's log, bytes.
    #[serde(default = "default_segment_bytes")]
    pub segment_bytes: u64,
    /// Memory for log entries that were appended lately, bytes.
    #[serde(default = "default_cache_bytes")]
    pub cache_bytes: usize,
    /// What a node does that cannot read its log any more.
    #[serde(default)]
    pub on_damage: OnDamage,
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
        const SEGMENT_BYTES_MIN: u64 = 8 * 1024 * 1024;
        if self.segment_bytes < SEGMENT_BYTES_MIN {
            return Err(format!(
                "segment_bytes = {}: expected at least {SEGMENT_BYTES_MIN}",
                self.segment_bytes
            ));
        }
        let mut seen = std::collections::BTreeSet::new();
        for address in self.listeners.iter().map(|l| l.address).chain([self.control, self.http]) {
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

const fn default_cache_bytes() -> usize {
    64 * 1024 * 1024
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
    fn an_address_used_twice_is_refused() {
        let config: NodeConfig = toml::from_str(&GOOD.replace("2580", "2590")).unwrap();
        assert!(config.check().unwrap_err().contains("used twice"));
    }
}
