//! Answers that were read once: hosts of domains and addresses of hosts, as long as their records live, and that there are
//! none. hickory's own cache has them too; but each of its answers is a question parsed, hashed and copied record by record,
//! three for each recipient of a relay.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use metrics::Counter;
use moka::sync::Cache as Bounded;

use super::{DnsError, Mx};
use crate::limits::{DNS_CACHE_ANSWERS, DNS_TTL_MAX};

/// What is known, by name.
pub(super) struct Answers<T> {
    known: Bounded<String, (Instant, Answer<T>)>,
    /// Label of the metrics.
    kind: &'static str,
    hits: OnceLock<Counter>,
}

/// Records, or why there are none: never for now only.
type Answer<T> = Result<Arc<[T]>, DnsError>;

pub(super) type Hosts = Answers<Mx>;
pub(super) type Addresses = Answers<IpAddr>;

impl<T: Clone + Send + Sync + 'static> Answers<T> {
    pub(super) fn new(kind: &'static str) -> Self {
        Self { known: Bounded::new(DNS_CACHE_ANSWERS), kind, hits: OnceLock::new() }
    }

    /// What is still believed.
    pub(super) fn get(&self, name: &str, now: Instant) -> Option<Result<Vec<T>, DnsError>> {
        let (until, found) = self.known.get(&*key(name))?;
        if until <= now {
            return None;
        }
        let hits = || metrics::counter!("ppsw_dns_cache_hits_total", "type" => self.kind);
        self.hits.get_or_init(hits).increment(1);
        Some(found.map(|found| found.to_vec()))
    }

    /// Notes an answer that may be believed for `time`, unless it is of no use later.
    pub(super) fn put(
        &self,
        name: &str,
        answer: &Result<Vec<T>, DnsError>,
        now: Instant,
        time: Duration,
    ) {
        let answer = match answer {
            Ok(found) => Ok(Arc::from(found.as_slice())),
            Err(DnsError::Temporary(_)) => return,
            Err(error) => Err(error.clone()),
        };
        if !time.is_zero() {
            let until = now + time.min(DNS_TTL_MAX);
            self.known.insert(key(name).into_owned(), (until, answer));
        }
    }
}

fn key(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use ppsw_spool::env::{Clock as _, SystemClock};

    use super::*;

    #[test]
    fn answers_are_believed_as_long_as_their_records_live() {
        let answers = Addresses::new("addresses");
        let (now, address) = (SystemClock.instant(), IpAddr::from([192, 0, 2, 1]));
        let found = Ok(vec![address]);
        assert_eq!(answers.get("a.example", now), None);
        answers.put("A.example.", &found, now, Duration::from_secs(60));
        for name in ["a.example", "A.EXAMPLE", "a.example."] {
            assert_eq!(answers.get(name, now + Duration::from_secs(59)), Some(found.clone()));
        }
        assert_eq!(answers.get("a.example", now + Duration::from_secs(60)), None);
        assert_eq!(answers.get("b.example", now), None);
        // Nobody's TTL is believed for days.
        answers.put("a.example", &found, now, Duration::from_secs(1 << 30));
        assert_eq!(answers.get("a.example", now + DNS_TTL_MAX), None);

        answers.put("a.example", &Err(DnsError::NoName), now, Duration::from_secs(60));
        assert_eq!(answers.get("a.example", now), Some(Err(DnsError::NoName)));
        let failed = Err(DnsError::Temporary("SERVFAIL".to_owned()));
        answers.put("c.example", &failed, now, Duration::from_secs(60));
        answers.put("d.example", &found, now, Duration::ZERO);
        assert_eq!((answers.get("c.example", now), answers.get("d.example", now)), (None, None));
    }
}
