//! Listings of the queue: which messages an operator means, and how they are shown. Each node answers for the
//! partitions that it leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{Stream, stream};
use ppsw_proto::control as pb;
use ppsw_spool::{
    NodeId,
    env::UnixMs,
    queue::{Attempt, MessageId, MessageState, Partition, QueuedMessage, RecipientState},
};
use prost::Message;
use tonic::Status;

use crate::{
    limits,
    plane::{Shared, write_origin},
};

/// A checked filter. Empty parts match everything.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    sender: Option<Pattern>,
    recipient: Option<Pattern>,
    domain: Option<Pattern>,
    state: Option<Wanted>,
    /// Received before this.
    before: Option<UnixMs>,
    /// Received after this.
    after: Option<UnixMs>,
    ids: BTreeSet<MessageId>,
}

#[derive(Debug)]
enum Wanted {
    Message(MessageState),
    Recipient(RecipientState),
}

/// An address or domain with `*` for any characters; case does not count.
#[derive(Debug)]
struct Pattern(Vec<String>);

impl Filter {
    pub(crate) fn new(filter: Option<pb::QueueFilter>, now: UnixMs) -> Result<Self, Status> {
        let filter = filter.unwrap_or_default();
        let pattern = |text: &str| (!text.is_empty()).then(|| Pattern::new(text));
        let age = |ms: u64| (ms > 0).then(|| UnixMs(now.0.saturating_sub(ms)));
        let state = match filter.state.as_str() {
            "" => None,
            "queued" => Some(Wanted::Message(MessageState::Queued)),
            "held" => Some(Wanted::Message(MessageState::Held)),
            "new" => Some(Wanted::Recipient(RecipientState::New)),
            "deferred" => Some(Wanted::Recipient(RecipientState::Deferred)),
            "delivered" => Some(Wanted::Recipient(RecipientState::Delivered)),
            "failed" => Some(Wanted::Recipient(RecipientState::Failed)),
            other => {
                return Err(Status::invalid_argument(format!(
                    "expected --state queued, held, new, deferred, delivered or failed, not `{other}`"
                )));
            }
        };
        let ids = filter.ids.iter().map(|text| {
            text.parse().map_err(|_| {
                Status::invalid_argument(format!(
                    "expected a message id like 1vN3kq-000001-02, not `{text}`"
                ))
            })
        });
        Ok(Self {
            sender: pattern(&filter.sender),
            recipient: pattern(&filter.recipient),
            domain: pattern(&filter.domain),
            state,
            before: age(filter.older_than_ms),
            after: age(filter.younger_than_ms),
            ids: ids.collect::<Result<_, Status>>()?,
        })
    }

    fn matches(&self, message: &QueuedMessage) -> bool {
        let envelope = &message.envelope;
        (self.ids.is_empty() || self.ids.contains(&message.id))
            && self.sender.as_ref().is_none_or(|p| p.matches(&envelope.sender))
            && self.before.is_none_or(|at| envelope.received <= at)
            && self.after.is_none_or(|at| envelope.received >= at)
            && self.state.as_ref().is_none_or(|wanted| match wanted {
                Wanted::Message(state) => message.state == *state,
                Wanted::Recipient(state) => message.recipients.iter().any(|r| r.state == *state),
            })
            && (self.recipient.is_none() && self.domain.is_none()
                || message.recipients.iter().any(|r| self.matches_recipient(r)))
    }

    /// The recipients of a message that are meant and not done yet. `None`: the message is not meant, or has none.
    pub(super) fn open_recipients(&self, message: &QueuedMessage) -> Option<Vec<u32>> {
        if !self.matches(message) {
            return None;
        }
        let is_meant = |attempt: &Attempt| {
            let state = match &self.state {
                Some(Wanted::Recipient(state)) => attempt.state == *state,
                _ => true,
            };
            attempt.is_open() && state && self.matches_recipient(attempt)
        };
        let numbered = (0_u32..).zip(&message.recipients);
        let meant: Vec<u32> =
            numbered.filter(|(_, attempt)| is_meant(attempt)).map(|(number, _)| number).collect();
        (!meant.is_empty()).then_some(meant)
    }

    fn matches_recipient(&self, attempt: &Attempt) -> bool {
        let address = &attempt.recipient.address;
        self.recipient.as_ref().is_none_or(|p| p.matches(address))
            && self.domain.as_ref().is_none_or(|p| p.matches(domain_of(address)))
    }
}

impl Pattern {
    fn new(text: &str) -> Self {
        // `<>` is how people write the null sender.
        let text = if text == "<>" { "" } else { text };
        Self(text.to_lowercase().split('*').map(str::to_owned).collect())
    }

    fn matches(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        let Some((first, rest)) = self.0.split_first() else { return true };
        let Some((last, middle)) = rest.split_last() else { return text == *first };
        let Some(mut left) = text.strip_prefix(first.as_str()) else { return false };
        for part in middle {
            match left.find(part.as_str()) {
                Some(at) => left = &left[at + part.len()..],
                None => return false,
            }
        }
        left.ends_with(last.as_str())
    }
}

/// Matching messages of the partitions that this node leads, oldest first in each, a page at a time.
pub(crate) fn pages_here(
    shared: Arc<Shared>,
    filter: Filter,
) -> impl Stream<Item = pb::QueuePage> + Send + 'static {
    let node = shared.node;
    let mut items = shared
        .led()
        .into_iter()
        .flat_map(|partition| {
            let id = partition.id();
            partition.messages().map(move |message| (id, message))
        })
        .filter(move |(_, message)| filter.matches(message))
        .map(move |(partition, message)| item(&message, partition, node));
    stream::iter(std::iter::from_fn(move || {
        let mut page = pb::QueuePage::default();
        let mut bytes = 0;
        while bytes < limits::QUEUE_PAGE_BYTES
            && let Some(item) = items.next()
        {
            bytes += item.encoded_len();
            page.items.push(item);
        }
        (!page.items.is_empty()).then_some(page)
    }))
}

/// Figures of the matching messages of the partitions that this node leads.
pub(crate) fn summary_here(shared: &Shared, filter: &Filter) -> pb::QueueSummary {
    let mut sum = Sum::default();
    let messages = shared.led().into_iter().flat_map(|partition: Partition| partition.messages());
    for message in messages.filter(|message| filter.matches(message)) {
        sum.add(&message);
    }
    sum.finish()
}

/// Adds up what several nodes said.
pub(crate) fn merge(parts: Vec<pb::QueueSummary>) -> pb::QueueSummary {
    let mut sum = Sum::default();
    for part in parts {
        sum.total.messages += part.messages;
        sum.total.recipients += part.recipients;
        sum.total.bytes += part.bytes;
        sum.total.oldest_ms = oldest(sum.total.oldest_ms, part.oldest_ms);
        sum.total.silent.extend(part.silent);
        for domain in part.domains {
            sum.add_domain(domain);
        }
    }
    sum.finish()
}

#[derive(Default)]
struct Sum {
    total: pb::QueueSummary,
    domains: BTreeMap<String, pb::DomainSummary>,
}

impl Sum {
    fn add(&mut self, message: &QueuedMessage) {
        let received_ms = message.envelope.received.0;
        self.total.messages += 1;
        self.total.bytes += message.size;
        self.total.oldest_ms = oldest(self.total.oldest_ms, received_ms);
        for attempt in message.recipients.iter().filter(|attempt| attempt.is_open()) {
            self.total.recipients += 1;
            self.add_domain(pb::DomainSummary {
                domain: domain_of(&attempt.recipient.address).to_lowercase(),
                recipients: 1,
                deferred: u64::from(attempt.state == RecipientState::Deferred),
                oldest_ms: received_ms,
            });
        }
    }

    fn add_domain(&mut self, part: pb::DomainSummary) {
        let full = self.domains.len() >= limits::SUMMARY_DOMAINS_MAX;
        let name = if full && !self.domains.contains_key(&part.domain) {
            "*".to_owned()
        } else {
            part.domain
        };
        let entry = self.domains.entry(name).or_default();
        entry.recipients += part.recipients;
        entry.deferred += part.deferred;
        entry.oldest_ms = oldest(entry.oldest_ms, part.oldest_ms);
    }

    fn finish(self) -> pb::QueueSummary {
        let mut domains: Vec<_> = self
            .domains
            .into_iter()
            .map(|(domain, entry)| pb::DomainSummary { domain, ..entry })
            .collect();
        domains.sort_by(|a, b| b.recipients.cmp(&a.recipients).then(a.domain.cmp(&b.domain)));
        pb::QueueSummary { domains, ..self.total }
    }
}

fn item(message: &QueuedMessage, partition: u32, node: NodeId) -> pb::QueueItem {
    let envelope = &message.envelope;
    let held = message.state == MessageState::Held;
    let next = message.recipients.iter().filter(|r| r.is_open()).map(|r| r.next_due).min();
    let next = next.map(|due| due.max(message.not_before)).filter(|_| !held);
    pb::QueueItem {
        id: message.id.to_string(),
        sender: envelope.sender.clone(),
        recipients: message.recipients.iter().map(recipient).collect(),
        received_ms: envelope.received.0,
        next_retry_ms: next.map_or(0, |due| due.0),
        expires_ms: envelope.received.plus(limits::MESSAGE_LIFETIME).0,
        size: message.size,
        state: if held { "held" } else { "queued" }.to_owned(),
        node,
        partition,
        warned: message.warned,
        origin: Some(write_origin(envelope.origin.clone())),
    }
}

fn recipient(attempt: &Attempt) -> pb::QueueRecipient {
    let state = match attempt.state {
        RecipientState::New => "new",
        RecipientState::Deferred => "deferred",
        RecipientState::Delivered => "delivered",
        RecipientState::Failed => "failed",
    };
    pb::QueueRecipient {
        address: attempt.recipient.address.clone(),
        state: state.to_owned(),
        attempts: attempt.attempts,
        last_error: attempt.last_error.clone(),
        next_due_ms: if attempt.is_open() { attempt.next_due.0 } else { 0 },
    }
}

fn domain_of(address: &str) -> &str {
    address.rsplit_once('@').map_or("", |(_, domain)| domain)
}

/// The earlier of two times; 0 means none.
const fn oldest(a: u64, b: u64) -> u64 {
    match (a, b) {
        (0, other) | (other, 0) => other,
        (a, b) if a < b => a,
        (_, b) => b,
    }
}

#[cfg(test)]
mod tests {
    use ppsw_spool::queue::{Body, Envelope, Recipient};

    use super::*;

    fn message(sender: &str, to: &[(&str, RecipientState)], received: u64) -> QueuedMessage {
        let recipients = to
            .iter()
            .map(|(address, state)| Attempt {
                recipient: Recipient { address: (*address).to_owned(), ..Recipient::default() },
                state: *state,
                attempts: 0,
                last_error: String::new(),
                next_due: UnixMs(received + 5),
                done: BTreeSet::new(),
                expansion: None,
            })
            .collect();
        QueuedMessage {
            id: MessageId { second: received, counter: 0, node: 1 },
            envelope: Envelope {
                sender: sender.to_owned(),
                received: UnixMs(received),
                ..Envelope::default()
            },
            state: MessageState::Queued,
            recipients,
            expansions: Vec::new(),
            body: Body::Inline { index: 0 },
            size: 100,
            warned: false,
            not_before: UnixMs(0),
        }
    }

    fn filter(change: impl FnOnce(&mut pb::QueueFilter)) -> Filter {
        let mut filter = pb::QueueFilter::default();
        change(&mut filter);
        Filter::new(Some(filter), UnixMs(10_000)).unwrap()
    }

    #[test]
    fn filters_match_whole_addresses_and_patterns() {
        let mail = message(
            "Anna@Example.org",
            &[("bo@a.test", RecipientState::New), ("cy@b.test", RecipientState::Deferred)],
            9_000,
        );
        assert!(filter(|_| ()).matches(&mail));
        assert!(filter(|f| f.sender = "anna@example.org".into()).matches(&mail));
        assert!(filter(|f| f.sender = "*@example.*".into()).matches(&mail));
        assert!(!filter(|f| f.sender = "example".into()).matches(&mail));
        assert!(filter(|f| f.domain = "B.test".into()).matches(&mail));
        assert!(filter(|f| f.state = "deferred".into()).matches(&mail));
        assert!(!filter(|f| f.state = "held".into()).matches(&mail));
        assert!(filter(|f| f.older_than_ms = 1_000).matches(&mail));
        assert!(!filter(|f| f.older_than_ms = 1_001).matches(&mail));
        assert!(!filter(|f| f.younger_than_ms = 500).matches(&mail));
        // Both parts must fit one recipient.
        let both = filter(|f| {
            f.recipient = "bo@*".into();
            f.domain = "b.test".into();
        });
        assert!(!both.matches(&mail));
        assert_eq!(filter(|f| f.domain = "b.test".into()).open_recipients(&mail), Some(vec![1]));
        assert_eq!(filter(|f| f.state = "new".into()).open_recipients(&mail), Some(vec![0]));
        assert_eq!(filter(|f| f.state = "queued".into()).open_recipients(&mail), Some(vec![0, 1]));
        assert_eq!(filter(|f| f.domain = "c.test".into()).open_recipients(&mail), None);
        let ids = filter(|f| f.ids = vec![mail.id.to_string()]);
        assert!(ids.matches(&mail));
        let null = message("", &[("bo@a.test", RecipientState::New)], 1);
        assert!(filter(|f| f.sender = "<>".into()).matches(&null));
    }

    #[test]
    fn nonsense_is_refused_with_what_was_expected() {
        for bad in [
            pb::QueueFilter { state: "stuck".to_owned(), ..pb::QueueFilter::default() },
            pb::QueueFilter { ids: vec!["x".to_owned()], ..pb::QueueFilter::default() },
        ] {
            let error = Filter::new(Some(bad), UnixMs(0)).unwrap_err();
            assert!(error.message().contains("expected"), "{error}");
        }
    }

    #[test]
    fn sums_of_nodes_add_up() {
        let sum = |message: &QueuedMessage| {
            let mut sum = Sum::default();
            sum.add(message);
            sum.finish()
        };
        let one = sum(&message("a@x", &[("bo@a.test", RecipientState::Deferred)], 9));
        let two = sum(&message(
            "a@x",
            &[
                ("bo@A.test", RecipientState::New),
                ("cy@b.test", RecipientState::New),
                ("di@b.test", RecipientState::Delivered),
            ],
            7,
        ));
        let merged = merge(vec![one, two]);
        assert_eq!((merged.messages, merged.recipients, merged.bytes), (2, 3, 200));
        assert_eq!(merged.oldest_ms, 7);
        let first = &merged.domains[0];
        assert_eq!((first.domain.as_str(), first.recipients, first.deferred), ("a.test", 2, 1));
    }
}
