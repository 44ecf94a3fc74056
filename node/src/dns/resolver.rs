//! The DNS through hickory: its cache and its sockets, our limits.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use async_trait::async_trait;
use hickory_resolver::{
    TokioResolver,
    config::{
        ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
        ResolverOpts,
    },
    net::{DnsError as Answer, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, RecordType},
    },
};
use ppsw_spool::env::{Clock as _, SystemClock};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Dns, DnsError, Mx,
    answers::{Addresses, Hosts},
};
use crate::limits;

/// A caching stub resolver: asks recursive servers.
pub struct Resolver {
    inner: TokioResolver,
    /// Bounds the questions under way, so that a storm of mail cannot exhaust ports and memory.
    questions: Semaphore,
    question_timeout: Duration,
    hosts: Hosts,
    addresses: Addresses,
}

/// Records, and how long they may be believed.
struct Found {
    records: Vec<RData>,
    time: Duration,
}

/// No records, and how long that may be believed.
struct Missing {
    error: DnsError,
    time: Duration,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// Asks these servers (UDP, and TCP for long answers).
    pub fn new(servers: &[SocketAddr]) -> Result<Self, DnsError> {
        let servers = servers.iter().map(|server| {
            let connection = |mut connection: ConnectionConfig| {
                connection.port = server.port();
                connection
            };
            let connections =
                vec![connection(ConnectionConfig::udp()), connection(ConnectionConfig::tcp())];
            NameServerConfig::new(server.ip(), true, connections)
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        Self::build(builder.with_options(options()))
    }

    /// Asks the servers of `/etc/resolv.conf`.
    pub fn system() -> Result<Self, DnsError> {
        let builder = TokioResolver::builder_tokio().map_err(|e| unusable(&e))?;
        Self::build(builder.with_options(options()))
    }

    fn build(
        builder: hickory_resolver::ResolverBuilder<TokioRuntimeProvider>,
    ) -> Result<Self, DnsError> {
        Ok(Self {
            inner: builder.build().map_err(|e| unusable(&e))?,
            questions: Semaphore::new(limits::DNS_QUESTIONS_MAX),
            question_timeout: limits::DNS_QUESTION_TIMEOUT,
            hosts: Hosts::new("MX"),
            addresses: Addresses::new("addresses"),
        })
    }

    /// The records of one type, in the order of the answer.
    async fn records(&self, name: Name, kind: RecordType) -> Result<Found, Missing> {
        let start = SystemClock.instant();
        let question = async {
            let _place = self.questions.acquire().await;
            self.inner.lookup(name, kind).await
        };
        let answer = timeout(self.question_timeout, question).await;
        let now = SystemClock.instant();
        let seconds = now.saturating_duration_since(start).as_secs_f64();
        let kind = label(kind);
        metrics::histogram!("ppsw_dns_question_seconds", "type" => kind).record(seconds);
        let count = |result| {
            metrics::counter!("ppsw_dns_questions_total", "type" => kind, "result" => result)
                .increment(1);
        };
        let Ok(answer) = answer else {
            count("timed_out");
            let error = DnsError::Temporary("no answer in time".to_owned());
            return Err(Missing { error, time: Duration::ZERO });
        };
        let lookup = answer.map_err(|e| missing(&e)).inspect_err(|missing| {
            count(match missing.error {
                DnsError::NoName => "no_name",
                DnsError::NoRecord => "no_record",
                DnsError::Temporary(_) => "failed",
            });
        })?;
        count("found");
        let records = lookup.answers().iter().map(|record| record.data.clone()).collect();
        Ok(Found { records, time: lookup.valid_until().saturating_duration_since(now) })
    }
}

/// Types that are asked for: a closed set, for metrics.
const fn label(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::MX => "MX",
        RecordType::PTR => "PTR",
        RecordType::TXT => "TXT",
        _ => "other",
    }
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = limits::DNS_ATTEMPT_TIMEOUT;
    options.attempts = limits::DNS_ATTEMPTS;
    options.cache_size = limits::DNS_CACHE_ANSWERS;
    options.positive_max_ttl = Some(limits::DNS_TTL_MAX);
    options.negative_max_ttl = Some(limits::DNS_TTL_MAX);
    // Mail goes where the DNS says; /etc/hosts would differ between nodes.
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.try_tcp_on_error = true;
    options
}

/// An absolute name, so that no search list is tried. A text that is no name exists nowhere.
fn name(text: &str) -> Result<Name, DnsError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.is_empty() || text.len() > limits::DNS_NAME_BYTES_MAX {
        return Err(DnsError::NoName);
    }
    let mut name = Name::from_utf8(text).map_err(|_| DnsError::NoName)?;
    name.set_fqdn(true);
    Ok(name)
}

fn plain(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase();
    text.strip_suffix('.').map_or_else(|| text.clone(), str::to_owned)
}

fn missing(error: &NetError) -> Missing {
    let seconds = match error {
        NetError::Dns(Answer::NoRecordsFound(none)) => none.negative_ttl.unwrap_or(0),
        _ => 0,
    };
    let error = match error {
        NetError::Dns(Answer::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => DnsError::NoName,
            ResponseCode::NoError => DnsError::NoRecord,
            code => DnsError::Temporary(mnemonic(code)),
        },
        NetError::Dns(Answer::ResponseCode(ResponseCode::NXDomain)) => DnsError::NoName,
        NetError::Dns(Answer::ResponseCode(code)) => DnsError::Temporary(mnemonic(*code)),
        other => DnsError::Temporary(other.to_string()),
    };
    Missing { error, time: Duration::from_secs(seconds.into()) }
}

impl From<Missing> for DnsError {
    fn from(missing: Missing) -> Self {
        missing.error
    }
}

/// What a postmaster knows the code as (IANA's names): clients and logs see it.
fn mnemonic(code: ResponseCode) -> String {
    match code {
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => other.to_string(),
    }
}

fn unusable(error: &NetError) -> DnsError {
    DnsError::Temporary(format!("the resolver cannot be set up: {error}"))
}

#[async_trait]
impl Dns for Resolver {
    async fn mx(&self, domain: &str) -> Result<Vec<Mx>, DnsError> {
        if let Some(known) = self.hosts.get(domain, SystemClock.instant()) {
            return known;
        }
        let (answer, time) = match self.records(name(domain)?, RecordType::MX).await {
            Ok(Found { records, time }) => (hosts(&records), time),
            Err(Missing { error, time }) => (Err(error), time),
        };
        self.hosts.put(domain, &answer, SystemClock.instant(), time);
        answer
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        if let Some(known) = self.addresses.get(host, SystemClock.instant()) {
            return known;
        }
        let asked = name(host)?;
        let (six, four) = tokio::join!(
            self.records(asked.clone(), RecordType::AAAA),
            self.records(asked, RecordType::A)
        );
        // A family that failed for now is asked for again at once.
        let time = |answer: &Result<Found, Missing>| match answer {
            Ok(found) => found.time,
            Err(missing) => missing.time,
        };
        let time = time(&six).min(time(&four));
        let answer = both(six, four);
        self.addresses.put(host, &answer, SystemClock.instant(), time);
        answer
    }

    async fn names(&self, address: IpAddr) -> Result<Vec<String>, DnsError> {
        let records = self.records(Name::from(address), RecordType::PTR).await?.records;
        let names = records.iter().filter_map(|data| match data {
            RData::PTR(ptr) => Some(plain(&ptr.0)),
            _ => None,
        });
        Ok(names.take(limits::HOST_ADDRESSES_MAX).collect())
    }

    async fn texts(&self, text_name: &str) -> Result<Vec<String>, DnsError> {
        let records = self.records(name(text_name)?, RecordType::TXT).await?.records;
        let texts = records.iter().filter_map(|data| match data {
            RData::TXT(txt) => {
                let bytes: Vec<u8> = txt.txt_data.iter().flatten().copied().collect();
                Some(String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => None,
        });
        Ok(texts.collect())
    }
}

/// By preference.
fn hosts(records: &[RData]) -> Result<Vec<Mx>, DnsError> {
    let hosts = records.iter().filter_map(|data| match data {
        RData::MX(mx) => Some(Mx { preference: mx.preference, host: plain(&mx.exchange) }),
        _ => None,
    });
    let mut hosts: Vec<Mx> = hosts.collect();
    hosts.sort_by_key(|mx| mx.preference);
    hosts.truncate(limits::MX_HOSTS_MAX);
    if hosts.is_empty() { Err(DnsError::NoRecord) } else { Ok(hosts) }
}

/// The addresses of both families; why there are none, if there are none of either.
fn both(
    six: Result<Found, Missing>,
    four: Result<Found, Missing>,
) -> Result<Vec<IpAddr>, DnsError> {
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    };
    let records = [&six, &four].into_iter().flatten().flat_map(|found| &found.records);
    let found: Vec<IpAddr> = records.filter_map(address).take(limits::HOST_ADDRESSES_MAX).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let error = |answer: Result<Found, Missing>| answer.err().map(DnsError::from);
    match (error(six), error(four)) {
        (Some(e @ DnsError::Temporary(_)), _) | (_, Some(e)) | (Some(e), None) => Err(e),
        // Only aliases that lead nowhere.
        (None, None) => Err(DnsError::NoRecord),
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::{
        op::{Message, OpCode},
        rr::{
            Record,
            rdata::{A, MX, PTR, TXT},
        },
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// Answers that a name server gives to one question.
    fn answers(name: &str, kind: RecordType) -> Result<Vec<RData>, ResponseCode> {
        let name_of = |text: &str| Name::from_ascii(text).unwrap();
        Ok(match (name, kind) {
            ("example.org.", RecordType::MX) => vec![
                RData::MX(MX::new(20, name_of("B.example.org."))),
                RData::MX(MX::new(10, name_of("a.example.org."))),
            ],
            ("null.example.org.", RecordType::MX) => vec![RData::MX(MX::new(0, Name::root()))],
            ("a.example.org.", RecordType::A) => vec![RData::A(A::new(192, 0, 2, 1))],
            ("a.example.org.", RecordType::TXT) => {
                vec![RData::TXT(TXT::new(vec!["one ".to_owned(), "text".to_owned()]))]
            }
            ("1.2.0.192.in-addr.arpa.", RecordType::PTR) => {
                vec![RData::PTR(PTR(name_of("a.example.org.")))]
            }
            ("a.example.org.", _) => vec![],
            ("broken.example.org.", _) => return Err(ResponseCode::ServFail),
            _ => return Err(ResponseCode::NXDomain),
        })
    }

    #[allow(clippy::disallowed_methods, reason = "a name server for this test")]
    async fn name_server() -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 4_096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
                let query = question.queries[0].clone();
                let mut answer = Message::response(question.metadata.id, OpCode::Query);
                match answers(&query.name().to_string().to_ascii_lowercase(), query.query_type()) {
                    Ok(data) => {
                        for data in data {
                            answer.add_answer(Record::from_rdata(query.name().clone(), 60, data));
                        }
                    }
                    Err(code) => answer.metadata.response_code = code,
                }
                answer.queries.push(query);
                let _ = socket.send_to(&answer.to_vec().unwrap(), client).await;
            }
        });
        (address, task)
    }

    #[tokio::test]
    async fn a_real_name_server_is_understood() {
        let (server, task) = name_server().await;
        let dns = Resolver::new(&[server]).unwrap();
        let mx = |preference, host: &str| Mx { preference, host: host.to_owned() };
        let found = dns.mx("Example.org").await.unwrap();
        assert_eq!(found, [mx(10, "a.example.org"), mx(20, "b.example.org")]);
        assert_eq!(dns.mx("null.example.org").await.unwrap(), [mx(0, "")]);
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(dns.addresses("a.example.org.").await.unwrap(), [address]);
        assert_eq!(dns.names(address).await.unwrap(), ["a.example.org"]);
        assert_eq!(dns.texts("a.example.org").await.unwrap(), ["one text"]);
        assert_eq!(dns.mx("a.example.org").await, Err(DnsError::NoRecord));
        assert_eq!(dns.mx("nosuch.example.org").await, Err(DnsError::NoName));
        assert_eq!(dns.addresses("nosuch.example.org").await, Err(DnsError::NoName));
        for bad in ["", ".", "a..b", &"x".repeat(300)] {
            assert_eq!(dns.addresses(bad).await, Err(DnsError::NoName), "{bad:?}");
        }
        let broken = dns.mx("broken.example.org").await;
        assert_eq!(broken, Err(DnsError::Temporary("SERVFAIL".to_owned())));
        task.abort();
        // Still in the cache.
        assert_eq!(dns.texts("a.example.org").await.unwrap(), ["one text"]);
    }
}
