//! What delivery needs of the rest of ppswitch, as traits, so that its logic is tested without any of it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use ppsw_spool::{
    PartitionId,
    env::UnixMs,
    group::{ProposeError, Reply},
    log::LogError,
    queue::{
        BodyReader, Expand, MessageId, MessageState, Outcome, Partition, Pulse, QueuedMessage,
        Spool, Turn,
    },
};
use tokio::sync::watch;

use super::retry::{RULE_OTHERS, RULE_OURS, RetryRule, Trouble};
use crate::{
    dns::Dns,
    policy::{Configuration, Options},
    route::{About, Asked, Target, route_recipients},
};

/// The bytes of one message, in order.
#[async_trait]
pub trait BodySource: Send {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, LogError>;
}

/// One partition's queue, as the deliverer sees it.
#[async_trait]
pub trait QueueSource: Send + Sync + 'static {
    fn id(&self) -> PartitionId;
    fn watch(&self) -> watch::Receiver<Pulse>;
    /// The message as it is now.
    fn get(&self, id: MessageId) -> Option<Arc<QueuedMessage>>;
    /// See [`Partition::due`].
    fn due(
        &self,
        now: UnixMs,
        turn: Turn,
        limit: usize,
        skip: &dyn Fn(MessageId) -> bool,
    ) -> Vec<Arc<QueuedMessage>>;
    fn next_due(&self) -> Option<UnixMs>;
    /// See [`Partition::may_deliver`].
    fn may_deliver(&self) -> bool;
    /// See [`Partition::are_open`].
    fn are_open(&self, id: MessageId, addresses: &[(u32, &str)]) -> bool;
    /// See [`Partition::begin`].
    async fn begin(&self, id: MessageId) -> bool;
    /// See [`Partition::expand`].
    async fn expand(&self, expand: Expand, deadline: Duration) -> Result<Reply, ProposeError>;
    /// See [`Partition::record`].
    async fn record(&self, outcome: Outcome, deadline: Duration) -> Result<(), ProposeError>;
    /// See [`Partition::hold`].
    async fn hold(&self, id: MessageId, deadline: Duration) -> Result<Reply, ProposeError>;
    /// See [`Partition::release`].
    async fn release(
        &self,
        id: MessageId,
        due: UnixMs,
        deadline: Duration,
    ) -> Result<Reply, ProposeError>;
    /// Like [`Self::release`], for messages that are not held.
    async fn release_queued(
        &self,
        id: MessageId,
        due: UnixMs,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        match self.get(id) {
            Some(message) if message.state == MessageState::Queued => {
                self.release(id, due, deadline).await
            }
            _ => Ok(Reply::Refused("it is held, or gone".to_owned())),
        }
    }
    /// Messages that `wanted` is true for. Looks at the whole queue.
    fn find(&self, wanted: &dyn Fn(&QueuedMessage) -> bool) -> Vec<MessageId>;
    /// See [`Partition::redirect`].
    async fn redirect(
        &self,
        id: MessageId,
        recipient: u32,
        address: &str,
        due: UnixMs,
        deadline: Duration,
    ) -> Result<Reply, ProposeError>;
    fn body(&self, message: &QueuedMessage) -> Box<dyn BodySource>;
}

/// The partitions of this node.
pub trait Queues: Send + Sync + 'static {
    /// All partitions with a replica here.
    fn partitions(&self) -> Vec<Arc<dyn QueueSource>>;
    /// A new id, unique in the cluster, for a message that is made here; `None` if this node cannot make any.
    fn new_id(&self) -> Option<MessageId>;
}

/// Policy and tables of one version: the same for a whole attempt.
#[async_trait]
pub trait Routing: Send + Sync + 'static {
    /// See [`route_recipients`]; `numbers` are those of recipients.
    async fn route(&self, message: &QueuedMessage, numbers: &[u32]) -> Vec<Vec<Target>>;
    fn options(&self) -> &Options;
    /// The retry rule of an address, by what went wrong.
    fn retry(&self, address: &str, trouble: &Trouble) -> RetryRule;
}

/// Gives the routing of the moment.
pub trait Router: Send + Sync + 'static {
    fn current(&self) -> Arc<dyn Routing>;
}

/// Brings an outcome to whoever leads the partition now.
#[async_trait]
pub trait Forward: Send + Sync + 'static {
    /// # Errors
    /// Why it was not recorded, or is not known to be.
    async fn forward(
        &self,
        partition: PartitionId,
        outcome: Outcome,
        deadline: Duration,
    ) -> Result<(), String>;
}

/// Whether this node may still deliver a message (design §4).
#[async_trait]
pub trait Fence: Send + Sync {
    /// Asked directly before the final dot.
    fn holds(&self) -> bool;
    /// Resolves when it is in the log that an attempt is under way: awaited before the final dot. False: it is not,
    /// and nothing may be sent.
    async fn begun(&self) -> bool;
    /// Asked directly before the final dot, too: nothing of what is to be sent has been recorded as done meanwhile, by
    /// a former leader whose outcome came late.
    fn is_open(&self) -> bool;
    /// Resolves when the fence no longer holds.
    async fn broken(&self);
}

#[async_trait]
impl BodySource for BodyReader {
    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        Self::next(self).await
    }
}

#[async_trait]
impl QueueSource for Partition {
    fn id(&self) -> PartitionId {
        Self::id(self)
    }
    fn watch(&self) -> watch::Receiver<Pulse> {
        Self::watch(self)
    }
    fn get(&self, id: MessageId) -> Option<Arc<QueuedMessage>> {
        Self::get(self, id)
    }
    fn due(
        &self,
        now: UnixMs,
        turn: Turn,
        limit: usize,
        skip: &dyn Fn(MessageId) -> bool,
    ) -> Vec<Arc<QueuedMessage>> {
        Self::due(self, now, turn, limit, skip)
    }
    fn next_due(&self) -> Option<UnixMs> {
        Self::next_due(self)
    }
    fn may_deliver(&self) -> bool {
        Self::may_deliver(self)
    }
    fn are_open(&self, id: MessageId, addresses: &[(u32, &str)]) -> bool {
        Self::are_open(self, id, addresses)
    }
    async fn begin(&self, id: MessageId) -> bool {
        Self::begin(self, id).await
    }
    async fn expand(&self, expand: Expand, deadline: Duration) -> Result<Reply, ProposeError> {
        Self::expand(self, expand, deadline).await
    }
    async fn record(&self, outcome: Outcome, deadline: Duration) -> Result<(), ProposeError> {
        Self::record(self, outcome, deadline).await
    }
    async fn hold(&self, id: MessageId, deadline: Duration) -> Result<Reply, ProposeError> {
        Self::hold(self, id, deadline).await
    }
    async fn release(
        &self,
        id: MessageId,
        due: UnixMs,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        Self::release(self, id, Some(due), deadline).await
    }
    async fn redirect(
        &self,
        id: MessageId,
        recipient: u32,
        address: &str,
        due: UnixMs,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        Self::redirect(self, id, recipient, address, due, deadline).await
    }
    fn find(&self, wanted: &dyn Fn(&QueuedMessage) -> bool) -> Vec<MessageId> {
        self.messages().filter(|message| wanted(message)).map(|message| message.id).collect()
    }
    fn body(&self, message: &QueuedMessage) -> Box<dyn BodySource> {
        Box::new(Self::body(self, message))
    }
}

impl Queues for Spool {
    fn partitions(&self) -> Vec<Arc<dyn QueueSource>> {
        Self::partitions(self)
            .into_iter()
            .map(|partition| Arc::new(partition) as Arc<dyn QueueSource>)
            .collect()
    }
    fn new_id(&self) -> Option<MessageId> {
        Self::new_id(self)
    }
}

#[async_trait]
impl Forward for ppsw_control::Plane {
    async fn forward(
        &self,
        partition: PartitionId,
        outcome: Outcome,
        deadline: Duration,
    ) -> Result<(), String> {
        self.forward_outcome(partition, outcome, deadline).await.map_err(|e| e.to_string())
    }
}

/// Routing by the configuration that is active at the moment.
#[derive(Clone)]
pub struct ConfiguredRouter {
    configuration: watch::Receiver<Arc<Configuration>>,
    dns: Arc<dyn Dns>,
    rules: Arc<Rules>,
}

struct Rules {
    /// For all addresses, whatever the policy says.
    only: Option<RetryRule>,
    /// If the policy says nothing.
    ours: RetryRule,
    others: RetryRule,
}

struct Configured {
    configuration: Arc<Configuration>,
    dns: Arc<dyn Dns>,
    rules: Arc<Rules>,
}

impl ConfiguredRouter {
    /// Follows `configuration`.
    #[must_use]
    #[allow(clippy::expect_used, reason = "two constant rules, which a test of retry.rs parses")]
    pub fn new(configuration: watch::Receiver<Arc<Configuration>>, dns: Arc<dyn Dns>) -> Self {
        let parse = |text: &str| text.parse::<RetryRule>().expect("a constant rule");
        let rules =
            Arc::new(Rules { only: None, ours: parse(RULE_OURS), others: parse(RULE_OTHERS) });
        Self { configuration, dns, rules }
    }

    /// One rule for all addresses instead of those of the policy, if there is one.
    #[must_use]
    pub fn with_retry(self, rule: Option<&RetryRule>) -> Self {
        let Some(rule) = rule else { return self };
        let Rules { ours, others, .. } = &*self.rules;
        let (ours, others) = (ours.clone(), others.clone());
        let rules = Arc::new(Rules { only: Some(rule.clone()), ours, others });
        Self { rules, ..self }
    }
}

impl std::fmt::Debug for ConfiguredRouter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfiguredRouter").finish_non_exhaustive()
    }
}

impl Router for ConfiguredRouter {
    fn current(&self) -> Arc<dyn Routing> {
        Arc::new(Configured {
            configuration: Arc::clone(&self.configuration.borrow()),
            dns: Arc::clone(&self.dns),
            rules: Arc::clone(&self.rules),
        })
    }
}

#[async_trait]
impl Routing for Configured {
    async fn route(&self, message: &QueuedMessage, numbers: &[u32]) -> Vec<Vec<Target>> {
        let envelope = &message.envelope;
        let about = About {
            id: Some(message.id),
            sender: &envelope.sender,
            personality: &envelope.origin.personality,
        };
        let recipients: Vec<Asked<'_>> = numbers
            .iter()
            .map(|number| Asked {
                address: message
                    .recipients
                    .get(*number as usize)
                    .map_or("", |attempt| attempt.recipient.address.as_str()),
                ancestors: message.ancestors(*number),
            })
            .collect();
        route_recipients(&self.configuration, &*self.dns, &about, &recipients).await
    }
    fn options(&self) -> &Options {
        self.configuration.options()
    }
    fn retry(&self, address: &str, trouble: &Trouble) -> RetryRule {
        let rule = self.rules.only.as_ref();
        if let Some(rule) = rule.or_else(|| self.configuration.retry_rule(address, trouble)) {
            return rule.clone();
        }
        // The paper's `+our_domains`: domains that we hold or relay for, and our own names.
        let domain = address.rsplit_once('@').map_or("", |(_, domain)| domain).to_lowercase();
        let tables = &self.configuration.tables;
        let ours = ["domainlist", "longshort", "special_routes", "ppswnames"]
            .iter()
            .any(|table| tables.get(table, &domain).is_some())
            || tables.get_partial("relay_domains", &domain).is_some();
        if ours { self.rules.ours.clone() } else { self.rules.others.clone() }
    }
}
