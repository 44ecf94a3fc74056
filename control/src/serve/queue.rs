//! Listings of the queue, and how messages are shown. Each node answers for the
//! partitions that it leads.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{Stream, future::join_all, stream};
use ppsw_proto::control as pb;
use ppsw_spool::{
    NodeId,
    env::UnixMs,
    queue::{Attempt, MessageState, Partition, QueuedMessage, RecipientState},
};
use prost::Message;
use tokio::time::timeout;

use super::filter::Filter;
use crate::{
    limits,
    plane::{Shared, write_origin},
};

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
    let mut sum = Sum::new(shared.now());
    let messages = shared.led().into_iter().flat_map(|partition: Partition| partition.messages());
    for message in messages.filter(|message| filter.matches(message)) {
        sum.add(&message);
    }
    sum.finish()
}

/// The same of several nodes, asked at once; those that do not answer in time are named. With the time
/// of the one that answered last.
pub(crate) async fn summary_of(
    shared: &Shared,
    nodes: &[NodeId],
    filter: &Filter,
    request: &pb::QueueRequest,
    patience: Duration,
) -> (pb::QueueSummary, Duration) {
    let clock = &shared.clock;
    let start = clock.instant();
    let took = || clock.instant().saturating_duration_since(start);
    let parts = nodes.iter().map(|node| async {
        if *node == shared.node {
            return (summary_here(shared, filter), took());
        }
        let asked = async {
            let mut client = shared.dialer.node(*node)?;
            let answer = timeout(patience, client.summarise(request.clone())).await;
            Some((answer.ok()?.ok()?.into_inner(), took()))
        };
        let silent = pb::QueueSummary { silent: vec![*node], ..pb::QueueSummary::default() };
        asked.await.unwrap_or((silent, Duration::ZERO))
    });
    let (parts, times): (Vec<_>, Vec<_>) = join_all(parts).await.into_iter().unzip();
    (merge(parts), times.into_iter().max().unwrap_or_default())
}

/// Adds up what several nodes said.
fn merge(parts: Vec<pb::QueueSummary>) -> pb::QueueSummary {
    // Their ages are counted already.
    let mut sum = Sum::new(UnixMs(0));
    for part in parts {
        sum.total.messages += part.messages;
        sum.total.held += part.held;
        sum.total.recipients += part.recipients;
        sum.total.bytes += part.bytes;
        sum.total.oldest_ms = oldest(sum.total.oldest_ms, part.oldest_ms);
        sum.total.silent.extend(part.silent);
        for age in part.ages {
            *sum.ages.entry(age.from_ms).or_default() += age.messages;
        }
        for domain in part.domains {
            sum.add_domain(domain);
        }
    }
    sum.finish()
}

struct Sum {
    now: UnixMs,
    total: pb::QueueSummary,
    domains: BTreeMap<String, pb::DomainSummary>,
    /// Messages by the step of `limits::AGE_STEPS` that they have reached, in milliseconds.
    ages: BTreeMap<u64, u64>,
}

impl Sum {
    fn new(now: UnixMs) -> Self {
        // All steps, so that a listing has the same rows always.
        let ages = limits::AGE_STEPS.into_iter().map(|step| (millis(step), 0)).collect();
        Self { now, total: pb::QueueSummary::default(), domains: BTreeMap::new(), ages }
    }

    fn add(&mut self, message: &QueuedMessage) {
        let received_ms = message.envelope.received.0;
        self.total.messages += 1;
        self.total.bytes += message.size;
        self.total.oldest_ms = oldest(self.total.oldest_ms, received_ms);
        self.total.held += u64::from(message.state == MessageState::Held);
        let age = self.now.0.saturating_sub(received_ms);
        if let Some((_, messages)) = self.ages.range_mut(..=age).next_back() {
            *messages += 1;
        }
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
        let ages = self.ages.into_iter();
        let ages = ages.map(|(from_ms, messages)| pb::AgeSummary { from_ms, messages }).collect();
        pb::QueueSummary { domains, ages, ..self.total }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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

pub(super) fn domain_of(address: &str) -> &str {
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
    use super::{super::filter::tests::message, *};

    #[test]
    fn sums_of_nodes_add_up() {
        let hour = 3_600_000;
        let sum = |message: &QueuedMessage| {
            let mut sum = Sum::new(UnixMs(hour + 8));
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
        let ages: Vec<_> = merged.ages.iter().map(|age| (age.from_ms, age.messages)).collect();
        assert!(ages.contains(&(hour, 1)) && ages.contains(&(600_000, 1)), "{ages:?}");
        assert_eq!(ages.len(), limits::AGE_STEPS.len());
        let first = &merged.domains[0];
        assert_eq!((first.domain.as_str(), first.recipients, first.deferred), ("a.test", 2, 1));
    }
}
