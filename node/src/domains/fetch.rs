//! Fetches the aliases file of a domain from its web server: HTTPS with the server's certificate and name verified, HTTP
//! basic authentication (RFC 7617), conditional requests (RFC 9110 §13), and a bound on everything.
//!
//! Over hyper, without a client on top of it: redirections, retries and decompression are what has to be kept tight.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body, Incoming},
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use ppsw_control::https::{Password, Url};
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;
use url::{Host, Position};
use zeroize::Zeroizing;

use super::aliases::shown;
use crate::{
    deliver::connect::{Connector, Stream},
    dns::{Dns, DnsError},
    limits,
};

/// What may be spent on one fetch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// For a connection, TLS included.
    pub(crate) connect: Duration,
    /// For everything together.
    pub(crate) whole: Duration,
    pub(crate) bytes: u64,
}

/// Where a file is, and how to get at it.
pub(crate) struct Source {
    pub(crate) url: Url,
    pub(crate) user: String,
    pub(crate) password: Password,
    /// Authorities to trust instead of those of the web, PEM; empty: none.
    pub(crate) ca_pem: String,
}

/// By which a server knows the file that it gave last; empty if it said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Validators {
    pub(crate) etag: String,
    pub(crate) last_modified: String,
}

/// What a server has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// The file is as the validators say.
    NotModified,
    File {
        content: Vec<u8>,
        validators: Validators,
    },
}

/// Why there is no file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{host} has no address: {why}")]
    NoAddress { host: String, why: DnsError },
    #[error("cannot connect to {host}: {why}")]
    NoConnection { host: String, why: String },
    #[error("the certificate of {host} {fault}")]
    Certificate { host: String, fault: String },
    #[error("no TLS with {host}: {why}")]
    NoTls { host: String, why: String },
    #[error(
        "the server answered {status}: it does not take the user name and password that were given to us"
    )]
    Unauthorised { status: u16 },
    #[error("the server answered {0}")]
    Status(String),
    #[error(
        "the server redirects to {0}; only redirections to the same server by https are followed, so that the password \
         goes nowhere else"
    )]
    RedirectedAway(String),
    #[error("the server redirects more than {} times", limits::FETCH_REDIRECTIONS_MAX)]
    RedirectedTooOften,
    #[error("no {what} within {} s", after.as_secs())]
    Timeout { what: String, after: Duration },
    #[error("the file has more than {max} bytes, which is all that is read")]
    TooLarge { max: u64 },
    #[error("the answer broke off after {bytes} bytes: {why}")]
    BrokenOff { bytes: usize, why: String },
    #[error("the server does not speak HTTP as it should: {0}")]
    Protocol(String),
    #[error("{0}")]
    Unusable(String),
}

impl FetchError {
    /// The kind of error, for metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::NoAddress { .. } => "dns",
            Self::NoConnection { .. } => "connection",
            Self::Certificate { .. } => "certificate",
            Self::NoTls { .. } => "tls",
            Self::Unauthorised { .. } => "password",
            Self::Status(_) => "status",
            Self::RedirectedAway(_) | Self::RedirectedTooOften => "redirection",
            Self::Timeout { .. } => "timeout",
            Self::TooLarge { .. } => "size",
            Self::BrokenOff { .. } => "truncated",
            Self::Protocol(_) => "protocol",
            Self::Unusable(_) => "settings",
        }
    }

    /// What stays the same when the same happens again: not addresses of servers, nor counts of bytes.
    pub(crate) fn essence(&self) -> String {
        match self {
            Self::Certificate { fault, .. } => fault.clone(),
            Self::Unauthorised { status } => status.to_string(),
            Self::Status(status) | Self::RedirectedAway(status) => status.clone(),
            _ => String::new(),
        }
    }
}

/// Fetches files.
#[async_trait]
pub(crate) trait Fetch: Send + Sync + 'static {
    /// The file of a source, if it is another than the one that is known.
    async fn fetch(
        &self,
        source: &Source,
        known: Option<&Validators>,
    ) -> Result<Fetched, FetchError>;
}

/// Fetches over the network.
pub(crate) struct HttpsFetcher {
    dns: Arc<dyn Dns>,
    connector: Arc<dyn Connector>,
    allowance: Allowance,
    /// Trusts the authorities of the web.
    tls: Arc<ClientConfig>,
}

impl HttpsFetcher {
    pub(crate) fn new(
        dns: Arc<dyn Dns>,
        connector: Arc<dyn Connector>,
        allowance: Allowance,
    ) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        Ok(Self { dns, connector, allowance, tls: client_config(roots)? })
    }

    /// Asks until there is an answer that is no redirection.
    async fn follow(
        &self,
        source: &Source,
        known: Option<&Validators>,
        deadline: Instant,
    ) -> Result<Fetched, FetchError> {
        let tls = self.trust(&source.ca_pem)?;
        let mut url = source.url.as_url().clone();
        for _ in 0..=limits::FETCH_REDIRECTIONS_MAX {
            let mut connection = self.connect(&url, &tls, deadline).await?;
            let request = request(&url, source, known)?;
            let sent = connection.sender.send_request(request);
            let response = self.within(deadline, "answer", sent).await?.map_err(protocol)?;
            if response.status().is_redirection() && response.status() != StatusCode::NOT_MODIFIED {
                url = redirection(&url, response.headers())?;
                continue;
            }
            return self.read(response, known, deadline).await;
        }
        Err(FetchError::RedirectedTooOften)
    }

    fn trust(&self, ca_pem: &str) -> Result<Arc<ClientConfig>, FetchError> {
        if ca_pem.is_empty() {
            return Ok(Arc::clone(&self.tls));
        }
        let unusable =
            |why: &dyn std::fmt::Display| FetchError::Unusable(format!("the CA file: {why}"));
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            let certificate = certificate.map_err(|error| unusable(&error))?;
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
        client_config(roots).map_err(|error| unusable(&error))
    }

    async fn connect(
        &self,
        url: &url::Url,
        tls: &Arc<ClientConfig>,
        deadline: Instant,
    ) -> Result<Connection, FetchError> {
        let (host, name, addresses) = self.resolve(url, deadline).await?;
        let deadline = deadline.min(Instant::now() + self.allowance.connect);
        let port = url.port_or_known_default().unwrap_or(443);
        let mut last = FetchError::NoConnection { host: host.clone(), why: "no address".into() };
        let mut open = None;
        for address in addresses.into_iter().take(limits::FETCH_ADDRESSES_MAX) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.connector.connect(None, SocketAddr::new(address, port), left).await {
                Ok(stream) => {
                    open = Some(stream);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    last = self.timed_out("connection", self.allowance.connect);
                }
                Err(error) => {
                    let why = format!("{address} port {port}: {error}");
                    last = FetchError::NoConnection { host: host.clone(), why };
                }
            }
        }
        let stream: Box<dyn Stream> = open.ok_or(last)?;
        let handshake = TlsConnector::from(Arc::clone(tls)).connect(name, stream);
        let stream = match timeout_at(deadline, handshake).await {
            Ok(done) => done.map_err(|error| tls_error(&host, &error))?,
            Err(_) => return Err(self.timed_out("TLS handshake", self.allowance.connect)),
        };
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(limits::FETCH_HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(protocol)?;
        let mut task = JoinSet::new();
        // What goes wrong on the connection is told to who waits for the answer.
        task.spawn(async move { drop(driver.await) });
        Ok(Connection { sender, _task: task })
    }

    async fn resolve(
        &self,
        url: &url::Url,
        deadline: Instant,
    ) -> Result<(String, ServerName<'static>, Vec<std::net::IpAddr>), FetchError> {
        match url.host() {
            Some(Host::Ipv4(address)) => Ok((
                address.to_string(),
                ServerName::from(std::net::IpAddr::from(address)),
                vec![address.into()],
            )),
            Some(Host::Ipv6(address)) => Ok((
                address.to_string(),
                ServerName::from(std::net::IpAddr::from(address)),
                vec![address.into()],
            )),
            Some(Host::Domain(host)) => {
                let name = ServerName::try_from(host.to_owned()).map_err(|_| {
                    FetchError::Unusable(format!("{host:?} is no name of a server"))
                })?;
                let host = host.to_owned();
                let asked = self.dns.addresses(&host);
                let addresses = self.within(deadline, "answer of DNS", asked).await?;
                match addresses {
                    Ok(addresses) => Ok((host, name, addresses)),
                    Err(why) => Err(FetchError::NoAddress { host, why }),
                }
            }
            None => Err(FetchError::Unusable("the URL has no host".to_owned())),
        }
    }

    async fn read(
        &self,
        response: Response<Incoming>,
        known: Option<&Validators>,
        deadline: Instant,
    ) -> Result<Fetched, FetchError> {
        let status = response.status();
        match status {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if known.is_some() => return Ok(Fetched::NotModified),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(FetchError::Unauthorised { status: status.as_u16() });
            }
            _ => return Err(FetchError::Status(status.to_string())),
        }
        if let Some(encoding) = response.headers().get(header::CONTENT_ENCODING)
            && encoding != "identity"
        {
            let what = format!("the file is encoded ({encoding:?}), which was not asked for");
            return Err(FetchError::Protocol(what));
        }
        let validators = Validators {
            etag: validator(response.headers(), &header::ETAG),
            last_modified: validator(response.headers(), &header::LAST_MODIFIED),
        };
        let too_large = || FetchError::TooLarge { max: self.allowance.bytes };
        let mut body = response.into_body();
        if body.size_hint().lower() > self.allowance.bytes {
            return Err(too_large());
        }
        let mut content = Vec::new();
        loop {
            let what = || format!("end of the file ({} bytes had come)", content.len());
            let frame = match timeout_at(deadline, body.frame()).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(Fetched::File { content, validators }),
                Err(_) => return Err(self.timed_out(&what(), self.allowance.whole)),
            };
            let frame = frame.map_err(|error| FetchError::BrokenOff {
                bytes: content.len(),
                why: deepest(&error),
            })?;
            if let Ok(data) = frame.into_data() {
                if (content.len() + data.len()) as u64 > self.allowance.bytes {
                    return Err(too_large());
                }
                content.extend_from_slice(&data);
            }
        }
    }

    async fn within<T>(
        &self,
        deadline: Instant,
        what: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, FetchError> {
        timeout_at(deadline, work).await.map_err(|_| self.timed_out(what, self.allowance.whole))
    }

    fn timed_out(&self, what: &str, after: Duration) -> FetchError {
        FetchError::Timeout { what: what.to_owned(), after }
    }
}

#[async_trait]
impl Fetch for HttpsFetcher {
    async fn fetch(
        &self,
        source: &Source,
        known: Option<&Validators>,
    ) -> Result<Fetched, FetchError> {
        self.follow(source, known, Instant::now() + self.allowance.whole).await
    }
}

/// A connection to a server. It ends when this is dropped.
struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
    _task: JoinSet<()>,
}

fn client_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn request(
    url: &url::Url,
    source: &Source,
    known: Option<&Validators>,
) -> Result<Request<Empty<Bytes>>, FetchError> {
    let pair = Zeroizing::new(format!("{}:{}", source.user, source.password.expose()));
    let basic = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())));
    let mut authorisation = HeaderValue::from_str(&basic)
        .map_err(|_| FetchError::Unusable("the password fits into no header".to_owned()))?;
    authorisation.set_sensitive(true);
    let mut request = Request::get(&url[Position::BeforePath..Position::AfterQuery])
        .header(header::HOST, &url[Position::BeforeHost..Position::AfterPort])
        .header(header::USER_AGENT, concat!("ppswitch/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "text/plain, */*;q=0.5")
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::CONNECTION, "close")
        .header(header::AUTHORIZATION, authorisation);
    if let Some(known) = known {
        if !known.etag.is_empty() {
            request = request.header(header::IF_NONE_MATCH, &known.etag);
        }
        if !known.last_modified.is_empty() {
            request = request.header(header::IF_MODIFIED_SINCE, &known.last_modified);
        }
    }
    request.body(Empty::new()).map_err(|error| FetchError::Unusable(format!("the URL: {error}")))
}

/// Where a redirection leads, if it may be followed.
fn redirection(from: &url::Url, headers: &HeaderMap) -> Result<url::Url, FetchError> {
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    let Some(location) = location else {
        return Err(FetchError::Protocol("a redirection that does not say where to".to_owned()));
    };
    let away = || FetchError::RedirectedAway(shown(location));
    let to = from.join(location).map_err(|_| away())?;
    let same = to.scheme() == from.scheme()
        && to.host() == from.host()
        && to.port_or_known_default() == from.port_or_known_default();
    let plain = to.username().is_empty() && to.password().is_none();
    if same && plain { Ok(to) } else { Err(away()) }
}

fn validator(headers: &HeaderMap, name: &HeaderName) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if value.len() > limits::FETCH_VALIDATOR_BYTES_MAX { String::new() } else { value.to_owned() }
}

fn tls_error(host: &str, error: &io::Error) -> FetchError {
    let host = host.to_owned();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(certificate)) = tls else {
        return FetchError::NoTls { host, why: deepest(error) };
    };
    let fault = match certificate {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is for another name".to_owned()
        }
        CertificateError::UnknownIssuer => {
            "is signed by nobody whom we trust, or by itself".to_owned()
        }
        CertificateError::BadSignature => "has a wrong signature".to_owned(),
        other => format!("cannot be used: {other}"),
    };
    FetchError::Certificate { host, fault }
}

fn protocol(error: hyper::Error) -> FetchError {
    FetchError::Protocol(deepest(&error))
}

/// The cause that says most.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    shown_plain(&cause.to_string())
}

fn shown_plain(text: &str) -> String {
    text.chars()
        .take(limits::DOMAIN_TEXT_SHOWN * 2)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
