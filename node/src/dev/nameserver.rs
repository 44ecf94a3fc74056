//! The DNS server of `dev`: answers from [`Zones`], over UDP and TCP, and reads zone files again when they change.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use hickory_proto::{
    op::{Header, HeaderCounts, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Record, RecordType},
};
use hickory_server::{
    Server,
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};

use super::{
    listen,
    zones::{Answer, Zones},
};
use crate::limits::{ZONE_POLL, ZONE_TCP_TIMEOUT};

/// Answers of one TCP connection that may wait to be sent.
const TCP_ANSWERS_MAX: usize = 64;

/// A DNS server that runs until it is dropped.
pub(super) struct NameServer {
    _server: Server<Answerer>,
    reload: tokio::task::JoinHandle<()>,
}

impl NameServer {
    /// Starts to answer on `address` from the zone files of `dir`.
    pub(super) async fn start(address: SocketAddr, dir: &Path) -> io::Result<Self> {
        let zones = Arc::new(RwLock::new(Arc::new(load(dir)?)));
        let mut server = Server::new(Answerer { zones: Arc::clone(&zones) });
        let tcp = listen::tcp(address, "DNS").await?;
        server.register_socket(listen::udp(tcp.local_addr()?, "DNS").await?);
        server.register_listener(tcp, ZONE_TCP_TIMEOUT, TCP_ANSWERS_MAX);
        let reload = tokio::spawn(reload(dir.to_owned(), zones));
        Ok(Self { _server: server, reload })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.reload.abort();
    }
}

struct Answerer {
    zones: Arc<RwLock<Arc<Zones>>>,
}

#[async_trait]
impl RequestHandler for Answerer {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut respond: R,
    ) -> ResponseInfo {
        let zones = Arc::clone(&self.zones.read().unwrap_or_else(PoisonError::into_inner));
        let (code, answers, soa) = outcome(&zones, request);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = true;
        // Resolvers of mail servers ask us as if we were their recursive one.
        metadata.recursion_available = true;
        metadata.response_code = code;
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &request.edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, &answers, [], &soa, []);
        respond.send_response(response).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "DNS answer not sent");
            Header { metadata, counts: HeaderCounts::default() }.into()
        })
    }
}

fn outcome(zones: &Zones, request: &Request) -> (ResponseCode, Vec<Record>, Vec<Record>) {
    let nothing = |code| (code, vec![], vec![]);
    if request.metadata.op_code != OpCode::Query {
        return nothing(ResponseCode::NotImp);
    }
    let Ok(info) = request.request_info() else { return nothing(ResponseCode::FormErr) };
    let kind = info.query.query_type();
    if info.query.query_class() != DNSClass::IN || kind == RecordType::AXFR {
        return nothing(ResponseCode::Refused);
    }
    match zones.answer(info.query.name(), kind) {
        Answer::Records(records) => (ResponseCode::NoError, records, vec![]),
        Answer::NoRecord(soa) => (ResponseCode::NoError, vec![], soa.into_iter().collect()),
        Answer::NoName(soa) => (ResponseCode::NXDomain, vec![], soa.into_iter().collect()),
        Answer::Failure => nothing(ResponseCode::ServFail),
    }
}

async fn reload(dir: PathBuf, zones: Arc<RwLock<Arc<Zones>>>) {
    loop {
        tokio::time::sleep(ZONE_POLL).await;
        let now = Arc::clone(&zones.read().unwrap_or_else(PoisonError::into_inner));
        if !now.stale(&dir) {
            continue;
        }
        match load(&dir) {
            Ok(fresh) => *zones.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh),
            Err(error) => {
                tracing::warn!(%error, dir = %dir.display(), "zone files can't be read: the old ones stay")
            }
        }
    }
}

fn load(dir: &Path) -> io::Result<Zones> {
    let (zones, faults) = Zones::load(dir)?;
    for fault in faults {
        tracing::warn!(%fault, "this zone answers SERVFAIL");
    }
    Ok(zones)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test\'s own files")]
mod tests {
    use std::fs;

    use hickory_resolver::{
        TokioResolver,
        config::{NameServerConfig, ResolverConfig},
        net::runtime::TokioRuntimeProvider,
    };

    use super::*;

    #[tokio::test]
    async fn a_real_resolver_gets_answers_over_udp_and_tcp() {
        let dir = tempfile::tempdir().unwrap();
        let many: String = (0..200).map(|n| format!("many A 127.10.0.{n}\n")).collect();
        let zone =
            format!("$TTL 0\n@ SOA ns host 1 2 3 4 5\n@ MX 10 sink\nsink A 127.10.0.1\n{many}");
        fs::write(dir.path().join("example.org.zone"), &zone).unwrap();
        fs::write(dir.path().join("broken.example.org.zone"), "@ BROKEN\n").unwrap();
        // Port 0 for both kinds of socket would give two ports: ask for a free one first.
        let probe = listen::tcp("127.0.0.1:0".parse().unwrap(), "test").await.unwrap();
        let address = probe.local_addr().unwrap();
        drop(probe);
        let _server = NameServer::start(address, dir.path()).await.unwrap();

        let mut server = NameServerConfig::udp_and_tcp(address.ip());
        for connection in &mut server.connections {
            connection.port = address.port();
        }
        let config = ResolverConfig::from_parts(None, vec![], vec![server]);
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .build()
            .unwrap();
        let mx = resolver.mx_lookup("example.org.").await.unwrap();
        assert_eq!(mx.answers()[0].data.to_string(), "10 sink.example.org.");
        let many = resolver.ipv4_lookup("many.example.org.").await.unwrap();
        assert_eq!(many.answers().len(), 200);
        let error = resolver.mx_lookup("unknown.example.org.").await.unwrap_err();
        assert!(error.is_nx_domain(), "{error}");
        let error = resolver.mx_lookup("sink.example.org.").await.unwrap_err();
        assert!(error.is_no_records_found() && !error.is_nx_domain(), "{error}");
        let error = resolver.mx_lookup("broken.example.org.").await.unwrap_err();
        assert!(!error.is_no_records_found(), "{error}");

        fs::write(dir.path().join("example.org.zone"), format!("{zone}later A 127.10.0.9\n"))
            .unwrap();
        tokio::time::sleep(ZONE_POLL * 2).await;
        let later = resolver.ipv4_lookup("later.example.org.").await.unwrap();
        assert_eq!(later.answers()[0].data.to_string(), "127.10.0.9");
    }
}
