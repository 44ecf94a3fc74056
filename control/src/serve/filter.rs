//! Which messages an operator means.

use std::collections::BTreeSet;

use ppsw_proto::control as pb;
use ppsw_spool::{
    env::UnixMs,
    queue::{Attempt, MessageId, MessageState, QueuedMessage, RecipientState},
};
use tonic::Status;

use super::queue::domain_of;

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
pub struct Pattern(Vec<String>);

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

    pub(super) fn matches(&self, message: &QueuedMessage) -> bool {
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
    pub(crate) fn open_recipients(&self, message: &QueuedMessage) -> Option<Vec<u32>> {
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
    /// `<>` is the empty address.
    #[must_use]
    pub fn new(text: &str) -> Self {
        // `<>` is how people write the null sender.
        let text = if text == "<>" { "" } else { text };
        Self(text.to_lowercase().split('*').map(str::to_owned).collect())
    }

    /// Whether the whole of a text fits.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
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

#[cfg(test)]
pub(crate) mod tests {
    use ppsw_spool::queue::{Body, Envelope, Recipient};

    use super::*;

    pub(crate) fn message(
        sender: &str,
        to: &[(&str, RecipientState)],
        received: u64,
    ) -> QueuedMessage {
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
}
