//! What tests put in the place of policy, spool, DNS and log, and a client that speaks line by line.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use ppsw_spool::{
    env::SystemClock,
    queue::{AcceptError, Envelope, MessageId},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
};

use super::{Ends, serve};
use crate::{
    callout::{Answer, Callouts, Question},
    dns::{Dns, DnsError, Mx},
    policy::{
        AddressPlace, Configuration, Connection, Decision, NodeFacts, Options, POLICY, Personality,
        Rewriting, Service, Stage, Surroundings, Transaction, Verdict,
    },
    rate::Rates,
    smtp::{
        Activity, Arrival, Certificates, Events, FrontEnd, Incoming, Intake, Peer, Policy,
        Rejection, Rules, reply::Reply,
    },
    trace::Tracer,
};

/// A client that may name its user by AUTH EXTERNAL.
pub(in crate::smtp) const MUA: &str = "127.0.0.66";

/// A client that is asked for a certificate.
pub(in crate::smtp) const ASKED: &str = "127.0.0.77";

const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 200, 1, 1));

/// The hash of `secret`.
pub(in crate::smtp) const SECRET: &str =
    "$5$saltstring$C3o4O1TC6aRHF4FI.QSZMXtHbaj2gSXr4sUc/3NcUi.";

pub(in crate::smtp) fn options() -> Options {
    Options {
        qualify_domain: "ppsw.example".into(),
        smtp_accept_max: 400,
        smtp_accept_reserve: 20,
        smtp_accept_max_per_host: 10,
        smtp_accept_max_per_relay_host: 200,
        smtp_load_reserve: None,
        shed_connections_over: None,
        shed_queue_over: None,
        shed_load_over: None,
        shed_commit_over: None,
        shed_space_under: None,
        queue_only_load: None,
        deliver_queue_load_max: None,
        remote_sort_domains: Vec::new(),
        message_size_limit: 1 << 20,
        bounce_return_size_limit: 10_240,
        errors_reply_to: None,
        delay_warning: Duration::from_secs(86_400),
        ignore_bounce_errors_after: Duration::from_secs(86_400),
        auto_thaw: Duration::from_secs(28_800),
        check_spool_space: 0,
        check_spool_inodes: 0,
        allow_domain_literals: true,
    }
}

pub(in crate::smtp) fn decision(verdict: Verdict) -> Decision {
    Decision {
        verdict,
        delay: Duration::ZERO,
        submission: None,
        enforce_sync_off: false,
        pipelining_off: false,
        banner: None,
        log: Vec::new(),
    }
}

type Rule = dyn Fn(Stage, &Connection, &Transaction) -> Decision + Send + Sync;

/// The rewriting rules of the paper.
static PAPER: LazyLock<Arc<Configuration>> = LazyLock::new(|| {
    let rules = r#"rewrite {
        address "*@cam" to="{1}@cam.ac.uk"
        address "*@*.hermes.cam.ac.uk" to="{1}@hermes.cam.ac.uk" flags="hF"
    }"#;
    let files = BTreeMap::from([(POLICY.to_owned(), rules.as_bytes().to_vec())]);
    Configuration::from_files(&files).unwrap()
});

/// A policy of one personality and one rule, and the rewriting rules of the paper.
pub(in crate::smtp) struct TestPolicy {
    pub(in crate::smtp) personality: Personality,
    pub(in crate::smtp) options: Options,
    pub(in crate::smtp) rule: Box<Rule>,
}

pub(in crate::smtp) fn personality(acl: &str) -> Personality {
    Personality {
        name: format!("{acl}.example"),
        acl: acl.into(),
        domain: Some("users.example".into()),
        size_limit: 10_000,
        pipelining: acl != "submit",
        normalise_line_ends: acl == "submit",
    }
}

#[async_trait]
impl Policy for TestPolicy {
    fn personality(&self, _: IpAddr) -> Personality {
        self.personality.clone()
    }

    async fn check(
        &self,
        stage: Stage,
        connection: &mut Connection,
        transaction: &Transaction,
        _: &Surroundings,
    ) -> Decision {
        (self.rule)(stage, connection, transaction)
    }

    fn password_hash(&self, user: &str) -> Option<&str> {
        (user == "spqr1").then_some(SECRET)
    }

    fn options(&self) -> &Options {
        &self.options
    }

    fn is_mua(&self, client: IpAddr) -> bool {
        client.to_string() == MUA
    }

    fn asks_certificate(&self, client: IpAddr, _: Option<&str>) -> bool {
        client.to_string() == ASKED
    }

    fn rewrite(&self, address: &str, place: AddressPlace) -> Option<Rewriting> {
        PAPER.rewrite(address, place)
    }

    fn rewrites_headers(&self) -> bool {
        PAPER.rewrites_headers()
    }

    fn rewrite_header(&self, header: &[u8]) -> Option<(Vec<u8>, Vec<Rewriting>)> {
        PAPER.rewrite_header(header)
    }

    fn is_relay_host(&self, client: IpAddr) -> bool {
        client.to_string().starts_with("127.0.")
    }
}

struct OnePolicy(Arc<dyn Policy>);

impl Rules for OnePolicy {
    fn current(&self) -> Arc<dyn Policy> {
        Arc::clone(&self.0)
    }
}

/// What the spool got, and what it shall say.
#[derive(Default)]
pub(in crate::smtp) struct TestSpool {
    pub(in crate::smtp) accepted: Mutex<Vec<(Envelope, Vec<u8>)>>,
    pub(in crate::smtp) aborted: Mutex<usize>,
    pub(in crate::smtp) begin_error: Mutex<Option<AcceptError>>,
    pub(in crate::smtp) accept_error: Mutex<Option<AcceptError>>,
    pub(in crate::smtp) longest_write: Mutex<usize>,
}

struct TestMessage {
    spool: Arc<TestSpool>,
    body: Vec<u8>,
}

pub(in crate::smtp) struct TestIntake(pub(in crate::smtp) Arc<TestSpool>);

#[async_trait]
impl Intake for TestIntake {
    async fn begin(&self) -> Result<Box<dyn Incoming>, AcceptError> {
        match self.0.begin_error.lock().unwrap().clone() {
            Some(error) => Err(error),
            None => Ok(Box::new(TestMessage { spool: Arc::clone(&self.0), body: Vec::new() })),
        }
    }
}

#[async_trait]
impl Incoming for TestMessage {
    fn id(&self) -> MessageId {
        MessageId { second: 1, counter: 2, node: 3 }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), AcceptError> {
        let mut longest = self.spool.longest_write.lock().unwrap();
        *longest = bytes.len().max(*longest);
        self.body.extend_from_slice(bytes);
        Ok(())
    }

    async fn accept(
        self: Box<Self>,
        envelope: Envelope,
        _: Duration,
    ) -> Result<MessageId, AcceptError> {
        if let Some(error) = self.spool.accept_error.lock().unwrap().clone() {
            return Err(error);
        }
        let id = self.id();
        self.spool.accepted.lock().unwrap().push((envelope, self.body));
        Ok(id)
    }

    async fn abort(self: Box<Self>) {
        *self.spool.aborted.lock().unwrap() += 1;
    }
}

/// Events as lines.
#[derive(Default)]
pub(in crate::smtp) struct TestEvents(pub(in crate::smtp) Mutex<Vec<String>>);

impl TestEvents {
    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

impl Events for TestEvents {
    fn arrival(&self, peer: &Peer<'_>, arrival: &Arrival<'_>) {
        let discarded = if arrival.discarded { " discarded" } else { "" };
        for rewriting in arrival.rewritten {
            let Rewriting { place, old, new, rule, .. } = rewriting;
            self.push(format!("{old} from {place} is {new} by rule {rule}"));
        }
        self.push(format!("<= {} {}{discarded}", arrival.envelope.sender, peer.personality));
    }
    fn rejected(&self, _: &Peer<'_>, rejection: &Rejection<'_>) {
        let recipient = rejection.recipient.unwrap_or("-");
        self.push(format!("rejected {} {recipient} {}", rejection.stage, rejection.reply.code()));
    }
    fn authentication_failed(&self, _: &Peer<'_>, mechanism: &str, user: &str) {
        self.push(format!("auth {mechanism} {user}"));
    }
    fn protocol_error(&self, _: &Peer<'_>, reply: &Reply) {
        self.push(format!("protocol {}", reply.code()));
    }
    fn connection_lost(&self, _: &Peer<'_>, why: &str, in_transaction: bool) {
        self.push(format!("lost {why} {in_transaction}"));
    }
    fn connection_refused(&self, _: SocketAddr, _: SocketAddr, why: &str) {
        self.push(format!("refused {why}"));
    }
    fn note(&self, _: &Peer<'_>, text: &str) {
        self.push(format!("note {text}"));
    }
}

/// A DNS that knows one host.
struct TestDns;

#[async_trait]
impl Dns for TestDns {
    async fn mx(&self, _: &str) -> Result<Vec<Mx>, DnsError> {
        Err(DnsError::NoName)
    }
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        match host {
            "c1.example.net" => Ok(vec![[127, 200, 1, 1].into()]),
            _ => Err(DnsError::NoName),
        }
    }
    async fn names(&self, _: IpAddr) -> Result<Vec<String>, DnsError> {
        Ok(vec!["forged.example".into(), "c1.example.net".into()])
    }
    async fn texts(&self, _: &str) -> Result<Vec<String>, DnsError> {
        Err(DnsError::NoName)
    }
}

struct NoCallouts;

#[async_trait]
impl Callouts for NoCallouts {
    async fn ask(&self, _: Question<'_>) -> Answer {
        Answer::Yes
    }
}

struct NoFacts;

impl NodeFacts for NoFacts {
    fn queue_length(&self) -> u64 {
        0
    }

    fn load(&self) -> Option<u32> {
        None
    }
}

/// A front end over fakes.
pub(in crate::smtp) struct Bench {
    pub(in crate::smtp) front: Arc<FrontEnd>,
    pub(in crate::smtp) spool: Arc<TestSpool>,
    pub(in crate::smtp) events: Arc<TestEvents>,
    pub(in crate::smtp) service: Service,
    pub(in crate::smtp) client: IpAddr,
}

impl Bench {
    /// A personality that says yes to everything.
    pub(in crate::smtp) fn new(acl: &str) -> Self {
        Self::with(acl, |_, _, _| decision(Verdict::Accept))
    }

    pub(in crate::smtp) fn with(
        acl: &str,
        rule: impl Fn(Stage, &Connection, &Transaction) -> Decision + Send + Sync + 'static,
    ) -> Self {
        Self::of(TestPolicy {
            personality: personality(acl),
            options: options(),
            rule: Box::new(rule),
        })
    }

    /// The personality `local` of a policy.
    pub(in crate::smtp) fn configured(policy: &str) -> Self {
        let files = BTreeMap::from([(POLICY.to_owned(), policy.as_bytes().to_vec())]);
        Self::by(Configuration::from_files(&files).unwrap())
    }

    pub(in crate::smtp) fn of(policy: TestPolicy) -> Self {
        Self::by(Arc::new(policy))
    }

    fn by(policy: Arc<dyn Policy>) -> Self {
        let spool = Arc::new(TestSpool::default());
        let events = Arc::new(TestEvents::default());
        let made = rcgen::generate_simple_self_signed(["submit.example".to_owned()]).unwrap();
        let certificates = Certificates::default();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        certificates.add("submit.example", vec![made.cert.der().clone()], key.unwrap()).unwrap();
        let front = FrontEnd {
            host_name: "ppsw-1.example".into(),
            rules: Arc::new(OnePolicy(policy)),
            around: Surroundings {
                dns: Arc::new(TestDns),
                facts: Arc::new(NoFacts),
                callouts: Arc::new(NoCallouts),
                rates: Rates::default(),
            },
            intake: Arc::new(TestIntake(Arc::clone(&spool))),
            events: Arc::clone(&events) as Arc<dyn Events>,
            certificates,
            clock: Arc::new(SystemClock),
            activity: Activity::default(),
            tracer: Tracer::default(),
        };
        Self { front: Arc::new(front), spool, events, service: Service::Smtp, client: STRANGER }
    }

    /// Connects without reading the banner.
    pub(in crate::smtp) fn connect(&self) -> Client {
        let (near, far) = tokio::io::duplex(256 * 1024);
        let ends = Ends {
            client: SocketAddr::new(self.client, 40_000),
            server: "127.10.1.1:2525".parse().unwrap(),
            service: self.service,
        };
        let task = tokio::spawn(serve(Arc::clone(&self.front), Box::new(far), ends));
        Client { stream: Box::new(near), input: Vec::new(), task }
    }

    /// Connects and says EHLO.
    pub(in crate::smtp) async fn hello(&self) -> Client {
        let mut client = self.connect();
        client.expect("220 ").await;
        client.ask("EHLO client.example.net", "250").await;
        client
    }

    pub(in crate::smtp) fn accepted(&self) -> Vec<(Envelope, String)> {
        let accepted = self.spool.accepted.lock().unwrap();
        let text = |b: &Vec<u8>| String::from_utf8_lossy(b).into_owned();
        accepted.iter().map(|(envelope, body)| (envelope.clone(), text(body))).collect()
    }

    pub(in crate::smtp) fn events(&self) -> Vec<String> {
        self.events.0.lock().unwrap().clone()
    }
}

pub(in crate::smtp) trait Pipe:
    tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin
{
}
impl Pipe for DuplexStream {}
impl Pipe for tokio_rustls::client::TlsStream<Box<dyn Pipe>> {}

/// The client's side of a session.
pub(in crate::smtp) struct Client {
    pub(in crate::smtp) stream: Box<dyn Pipe>,
    input: Vec<u8>,
    pub(in crate::smtp) task: JoinHandle<()>,
}

impl Client {
    pub(in crate::smtp) async fn raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// One reply, all lines of it.
    pub(in crate::smtp) async fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let Some(end) = memchr::memchr(b'\n', &self.input) else {
                if self.stream.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                    return format!("{reply}<closed>");
                }
                continue;
            };
            let line = String::from_utf8(self.input.drain(..=end).collect()).unwrap();
            assert!(line.ends_with("\r\n"), "{line:?}");
            reply.push_str(&line);
            if line.as_bytes().get(3) == Some(&b' ') {
                return reply;
            }
        }
    }

    pub(in crate::smtp) async fn expect(&mut self, prefix: &str) -> String {
        let reply = self.reply().await;
        assert!(reply.starts_with(prefix), "expected {prefix}, got {reply}");
        reply
    }

    pub(in crate::smtp) async fn ask(&mut self, command: &str, prefix: &str) -> String {
        self.raw(format!("{command}\r\n")).await;
        self.expect(prefix).await
    }

    /// Nothing more comes.
    pub(in crate::smtp) async fn expect_end(&mut self) {
        assert_eq!(self.reply().await, "<closed>");
    }

    /// A transaction up to 354.
    pub(in crate::smtp) async fn begin(&mut self) {
        self.ask("MAIL FROM:<a@x.org>", "250 2.1.0").await;
        self.ask("RCPT TO:<b@y.org>", "250 2.1.5").await;
        self.ask("DATA", "354 ").await;
    }

    /// STARTTLS without questions about the certificate's signer.
    pub(in crate::smtp) async fn start_tls(self) -> Self {
        self.start_tls_showing(rustls::ALL_VERSIONS, None).await
    }

    /// The same by these versions, with a certificate for those who ask.
    pub(in crate::smtp) async fn start_tls_showing(
        self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        shown: Option<Shown>,
    ) -> Self {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting(versions, shown)));
        let name = rustls::pki_types::ServerName::try_from("submit.example").unwrap();
        let stream = connector.connect(name, self.stream).await.unwrap();
        Self { stream: Box::new(stream), ..self }
    }
}

/// A certificate of a client, and its key, or another's.
pub(in crate::smtp) type Shown =
    (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>);

fn trusting(
    versions: &[&'static rustls::SupportedProtocolVersion],
    shown: Option<Shown>,
) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    let Some((chain, key)) = shown else { return builder.with_no_client_auth() };
    // Unlike rustls' own, it does not look whether the two belong together.
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let own = rustls::sign::CertifiedKey::new(chain, key);
    builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own)))
}

#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
