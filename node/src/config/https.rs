//! `[https_domains]`: what may be spent on fetching the aliases of domains from web servers.

use std::{ops::RangeInclusive, time::Duration};

use serde::{Deserialize, Serialize};

use super::values;
use crate::limits;

documented! {
/// What may be spent on fetching the aliases of managed domains from web servers. The same on all nodes: any of them may lead
/// the control group, and so do the fetching.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpsConfig {
    /// How often a domain is fetched: `10s` to `1day`.
    #[serde(deserialize_with = "values::period", serialize_with = "values::show_period")]
    pub period: Duration,
    /// Time for a connection, TLS included: `1s` to `10m`.
    #[serde(deserialize_with = "values::period", serialize_with = "values::show_period")]
    pub connect_time: Duration,
    /// Time for a whole fetch: `1s` to `10m`.
    #[serde(deserialize_with = "values::period", serialize_with = "values::show_period")]
    pub fetch_time: Duration,
    /// Largest file: `4K` to `64M`.
    #[serde(deserialize_with = "values::bytes", serialize_with = "values::show_bytes")]
    pub size_max: u64,
    /// How often managers get a report, if there is something to say: `1h` to a year.
    #[serde(deserialize_with = "values::period", serialize_with = "values::show_period")]
    pub report_period: Duration,
}
}

impl Default for HttpsConfig {
    fn default() -> Self {
        Self {
            period: limits::FETCH_PERIOD,
            connect_time: limits::FETCH_CONNECT_TIME,
            fetch_time: limits::FETCH_TIME,
            size_max: limits::FETCH_BYTES,
            report_period: limits::REPORT_PERIOD,
        }
    }
}

impl HttpsConfig {
    /// What makes no sense.
    pub(super) fn check(&self) -> Result<(), String> {
        let time = |name: &str, value: Duration, allowed: RangeInclusive<Duration>| {
            if allowed.contains(&value) {
                return Ok(());
            }
            let shown = humantime::format_duration;
            Err(format!(
                "https_domains: {name} = \"{}\": expected \"{}\" to \"{}\"",
                shown(value),
                shown(*allowed.start()),
                shown(*allowed.end())
            ))
        };
        time("period", self.period, limits::FETCH_PERIOD_MIN..=limits::FETCH_PERIOD_MAX)?;
        let times = limits::FETCH_TIME_MIN..=limits::FETCH_TIME_MAX;
        time("connect_time", self.connect_time, times.clone())?;
        time("fetch_time", self.fetch_time, times)?;
        let reports = limits::REPORT_PERIOD_MIN..=limits::REPORT_PERIOD_MAX;
        time("report_period", self.report_period, reports)?;
        let sizes = limits::FETCH_BYTES_MIN..=limits::FETCH_BYTES_MAX;
        if !sizes.contains(&self.size_max) {
            return Err(format!(
                "https_domains: size_max = {}: expected {} to {}",
                self.size_max,
                sizes.start(),
                sizes.end()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_bounds() {
        let parsed = |text: &str| toml::from_str::<HttpsConfig>(text).map_err(|e| e.to_string());
        let checked = |text: &str| parsed(text).unwrap().check();
        assert_eq!(checked(""), Ok(()));
        let short = "period = \"10s\"\nconnect_time = \"1s\"\nfetch_time = \"2s\"\nsize_max = \"64K\"\n\
                     report_period = \"1h\"";
        assert_eq!(checked(short), Ok(()));
        assert_eq!(parsed(short).unwrap().size_max, 65_536);
        for (text, expected) in [
            ("period = \"1s\"", "period = \"1s\": expected \"10s\" to \"1day\""),
            ("period = \"2days\"", "period"),
            ("connect_time = \"0s\"", "connect_time"),
            ("fetch_time = \"1h\"", "fetch_time"),
            ("report_period = \"1m\"", "report_period"),
            ("size_max = \"1G\"", "size_max"),
        ] {
            let why = checked(text).unwrap_err();
            assert!(why.contains(expected), "{text}: {why}");
        }
        assert!(parsed("perid = \"1h\"").unwrap_err().contains("perid"));
    }
}
