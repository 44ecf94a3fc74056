//! The rest of the node, as the fetching of domains sees it.

use std::sync::Arc;

use async_trait::async_trait;
use ppsw_control::{
    Plane,
    https::Password,
    versions::{BlobHash, Expected, NewContent, NewContents},
};
use ppsw_proto::control::{self as pb, command::Change};
use ppsw_spool::{
    env::Clock,
    queue::{MessageId, Spool},
};
use tokio::sync::watch;

use super::{
    Domains, Periods,
    aliases::{Size, table_name},
    fetch::{Allowance, HttpsFetcher},
    letter::{Letter, Writer},
    seams::{LiveCopies, LiveCopy, Post, Registry},
};
use crate::{
    config::HttpsConfig,
    deliver::connect::TcpConnector,
    dns::Dns,
    limits,
    maillog::{ArrivalEvent, MailLog},
    policy::Configuration,
    tables::Tables,
};

/// What a node has for its managed domains.
pub struct Parts {
    pub plane: Plane,
    pub configuration: watch::Receiver<Arc<Configuration>>,
    pub dns: Arc<dyn Dns>,
    pub clock: Arc<dyn Clock>,
    pub log: MailLog,
    /// This machine's name.
    pub host_name: String,
    pub settings: HttpsConfig,
}

impl Domains {
    /// The managed domains of the cluster of a node.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(parts: Parts) -> Result<Self, rustls::Error> {
        let Parts { plane, configuration, dns, clock, log, host_name, settings } = parts;
        let allowance = Allowance {
            connect: settings.connect_time,
            whole: settings.fetch_time,
            bytes: settings.size_max,
        };
        let post = Mail {
            spool: plane.spool(),
            configuration: configuration.clone(),
            log,
            host_name,
            clock: clock.clone(),
        };
        describe_metrics();
        Ok(Self {
            registry: Arc::new(plane.clone()),
            live: Arc::new(Active { plane, configuration }),
            fetcher: Arc::new(HttpsFetcher::new(
                dns.clone(),
                Arc::new(TcpConnector::default()),
                allowance,
            )?),
            post: Arc::new(post),
            dns,
            clock,
            periods: Periods { fetch: settings.period, report: settings.report_period },
        })
    }
}

#[async_trait]
impl Registry for Plane {
    fn leads(&self) -> bool {
        self.leads_control()
    }

    fn domains(&self) -> Vec<Arc<pb::HttpsDomain>> {
        self.https_domains()
    }

    fn password(&self, domain: &pb::HttpsDomain) -> Result<Password, String> {
        self.https_password(domain).map_err(|error| error.to_string())
    }

    async fn record_fetch(&self, record: pb::RecordFetch) -> Result<(), String> {
        let done = self.command(Change::RecordFetch(record)).await;
        done.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn record_letter(&self, record: pb::RecordLetter) -> Result<(), String> {
        let done = self.command(Change::RecordLetter(record)).await;
        done.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// The active version of policy and tables, with what is laid over it.
struct Active {
    plane: Plane,
    configuration: watch::Receiver<Arc<Configuration>>,
}

#[async_trait]
impl LiveCopies for Active {
    fn current(&self) -> Arc<Configuration> {
        self.configuration.borrow().clone()
    }

    async fn find(&self, domain: &str) -> Result<Option<LiveCopy>, String> {
        let path = table_name(domain);
        let file = self.plane.file(&path).await.map_err(|error| error.to_string())?;
        let Some(file) = file else { return Ok(None) };
        let tables = Tables::from_files(&[(path, file.content.to_vec())].into());
        // It compiled before it was made active.
        let tables =
            tables.map_err(|errors| format!("the live copy cannot be read: {errors:?}"))?;
        let size = Size::live(&tables, domain).unwrap_or_default();
        Ok(Some(LiveCopy { hash: file.hash, size }))
    }

    async fn publish(
        &self,
        domain: &str,
        table: String,
        before: Option<BlobHash>,
    ) -> Result<(), String> {
        let content = NewContent {
            path: table_name(domain),
            content: Some(table.into()),
            expected: before.map_or(Expected::Nothing, Expected::Content),
        };
        let new = NewContents {
            files: vec![content],
            by: format!("node-{}", self.plane.node()),
            author: String::new(),
            reason: format!("fetched from the web server of {domain}"),
            source: pb::Source::Https,
            // Its own checks are as strict, and an operator may overrule them.
            force: true,
        };
        self.plane.change(new).await.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// Letters go into the spool of the cluster, like bounces.
struct Mail {
    spool: Spool,
    configuration: watch::Receiver<Arc<Configuration>>,
    log: MailLog,
    host_name: String,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Post for Mail {
    async fn send(&self, letter: &Letter) -> Result<MessageId, String> {
        let begun = self.clock.instant();
        let failed = |error: ppsw_spool::queue::AcceptError| error.to_string();
        let mut incoming = self.spool.begin(limits::BEGIN_PATIENCE).await.map_err(failed)?;
        let configuration = self.configuration.borrow().clone();
        let writer = Writer {
            options: configuration.options(),
            host_name: &self.host_name,
            id: incoming.id(),
            now: self.clock.now(),
        };
        let (envelope, bytes) = letter.to_message(&writer);
        incoming.write(&bytes).await.map_err(failed)?;
        let accepted = incoming.accept(envelope.clone(), limits::COMMIT_DEADLINE).await;
        let id = accepted.map_err(failed)?;
        self.log.arrival(&ArrivalEvent {
            id,
            envelope: &envelope,
            size: bytes.len() as u64,
            mechanism: None,
            about: None,
            certificate: None,
            elapsed: self.clock.instant().saturating_duration_since(begun),
            discarded: false,
        });
        Ok(id)
    }
}

fn describe_metrics() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!(
        "ppsw_https_fetches_total",
        "Fetches of domains' aliases, by what came of them"
    );
    describe_histogram!("ppsw_https_fetch_seconds", "Time of fetches of domains' aliases");
    describe_counter!("ppsw_https_letters_total", "Letters to the managers of fetched domains");
    describe_gauge!(
        "ppsw_https_domains",
        "Domains that are fetched, on the control leader; 0 elsewhere"
    );
    describe_gauge!(
        "ppsw_https_domains_failing",
        "On the control leader: domains whose last fetch gave nothing that can be used"
    );
    describe_gauge!(
        "ppsw_https_oldest_success_age_seconds",
        "On the control leader: time since the domain that waits longest was fetched well, or set"
    );
}
