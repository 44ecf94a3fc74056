//! Rules that operators leave for messages that come to delivery, as a node works with them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use ppsw_proto::control as pb;
use ppsw_spool::{env::UnixMs, queue::QueuedMessage};

use crate::{
    Verb, Wanted,
    serve::filter::{Filter, Pattern},
};

/// The rules that stand, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Orders {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    id: u64,
    until: UnixMs,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Order { filter: Filter, wanted: Wanted },
    Suspend { destination: Pattern, text: String },
    Shed { personality: String, percent: u8 },
}

/// What is to be done with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Number of the rule.
    pub rule: u64,
    pub wanted: Wanted,
    /// Numbers of the recipients that it is about.
    pub recipients: Vec<u32>,
}

/// Why a destination gets nothing now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspension {
    /// Number of the rule.
    pub rule: u64,
    /// For people: who, why, and the number of the rule, which [`Suspension::is_by`] finds again.
    pub text: String,
    pub until: UnixMs,
}

impl Suspension {
    /// Whether a recipient's last error is of this rule.
    #[must_use]
    pub fn is_by(rule: u64, last_error: &str) -> bool {
        last_error.starts_with(&start(rule))
    }
}

impl Orders {
    /// Rules that this program does not understand are left out: a newer one made them.
    pub fn new(rules: impl Iterator<Item = pb::StandingRule>) -> Self {
        Self { rules: rules.filter_map(Rule::new).collect() }
    }

    /// Numbers of the rules that suspend a destination, at `now`.
    #[must_use]
    pub fn suspending(&self, now: UnixMs) -> Vec<u64> {
        let stands = |rule: &&Rule| matches!(rule.kind, Kind::Suspend { .. }) && now < rule.until;
        self.rules.iter().filter(stands).map(|rule| rule.id).collect()
    }

    /// The first rule that is about a message.
    #[must_use]
    pub fn about(&self, message: &QueuedMessage, now: UnixMs) -> Option<Order> {
        self.rules.iter().filter(|rule| now < rule.until).find_map(|rule| {
            let Kind::Order { filter, wanted } = &rule.kind else { return None };
            let mut recipients = filter.open_recipients(message)?;
            if let Verb::Redirect { to } = &wanted.verb {
                // Where it leads already.
                recipients.retain(|number| {
                    let attempt = message.recipients.get(*number as usize);
                    attempt.is_some_and(|a| !a.recipient.address.eq_ignore_ascii_case(to))
                });
            }
            let order = Order { rule: rule.id, wanted: wanted.clone(), recipients };
            (!order.recipients.is_empty()).then_some(order)
        })
    }

    /// How many of a hundred sessions of a personality are to be turned away: the most that a rule says.
    #[must_use]
    pub fn shed_percent(&self, personality: &str, now: UnixMs) -> u8 {
        let stands = self.rules.iter().filter(|rule| now < rule.until);
        let of = stands.filter_map(|rule| match &rule.kind {
            Kind::Shed { personality: shed, percent } if shed == personality => Some(*percent),
            _ => None,
        });
        of.max().unwrap_or(0)
    }

    /// Whether mail for this domain, or to hosts of these names and addresses, is to wait.
    #[must_use]
    pub fn suspended<'a>(
        &self,
        domain: &str,
        hosts: impl Iterator<Item = &'a str> + Clone,
        now: UnixMs,
    ) -> Option<Suspension> {
        self.rules.iter().filter(|rule| now < rule.until).find_map(|rule| {
            let Kind::Suspend { destination, text } = &rule.kind else { return None };
            let fits = destination.matches(domain)
                || hosts.clone().any(|host| destination.matches(host.trim_end_matches('.')));
            fits.then(|| Suspension { rule: rule.id, text: text.clone(), until: rule.until })
        })
    }
}

impl Rule {
    fn new(rule: pb::StandingRule) -> Option<Self> {
        let shed = rule.shed.and_then(|shed| {
            let percent = u8::try_from(shed.percent).ok().filter(|percent| *percent <= 100)?;
            Some(Kind::Shed { personality: shed.personality, percent })
        });
        let kind = match rule.order {
            _ if shed.is_some() => shed?,
            Some(order) => Kind::Order {
                wanted: Wanted::new(&order).ok()?,
                // The time counts only for ages, which no rule has.
                filter: Filter::new(order.filter, UnixMs(0)).ok()?,
            },
            None if rule.destination.is_empty() => return None,
            None => Kind::Suspend {
                destination: Pattern::new(&rule.destination),
                text: format!("{} {}: {}", start(rule.id), rule.by, rule.reason),
            },
        };
        Some(Self { id: rule.id, until: UnixMs(rule.until_ms), kind })
    }
}

/// How the text of a suspension begins.
fn start(rule: u64) -> String {
    format!("suspended by rule {rule} of")
}

/// Remembers the compiled rules of a state.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    last: Mutex<Option<(Rules, Arc<Orders>)>>,
}

type Rules = Arc<BTreeMap<u64, pb::StandingRule>>;

impl Compiled {
    pub(crate) fn of(&self, rules: &Rules) -> Arc<Orders> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, orders)) = last.as_ref()
            && (Arc::ptr_eq(known, rules) || known == rules)
        {
            return Arc::clone(orders);
        }
        let orders = Arc::new(Orders::new(rules.values().cloned()));
        *last = Some((Arc::clone(rules), Arc::clone(&orders)));
        orders
    }
}

#[cfg(test)]
mod tests {
    use ppsw_spool::queue::RecipientState::{Delivered, New};

    use super::*;
    use crate::serve::filter::tests::message;

    const NOW: UnixMs = UnixMs(10);

    fn order(id: u64, until_ms: u64, verb: pb::QueueVerb, domain: &str) -> pb::StandingRule {
        let filter = pb::QueueFilter { domain: domain.to_owned(), ..Default::default() };
        let order = pb::OperateRequest {
            filter: Some(filter),
            verb: verb.into(),
            reason: "a test".to_owned(),
            to: "anna@there.example".to_owned(),
            by: "root".to_owned(),
            all: false,
        };
        pb::StandingRule { id, until_ms, order: Some(order), ..Default::default() }
    }

    fn suspend(id: u64, until_ms: u64, destination: &str) -> pb::StandingRule {
        pb::StandingRule {
            id,
            until_ms,
            destination: destination.to_owned(),
            by: "root".to_owned(),
            reason: "it floods".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn the_first_rule_that_is_about_a_message_and_stands_decides() {
        let rules = [
            order(1, 10, pb::QueueVerb::Drop, "a.test"),
            order(2, 11, pb::QueueVerb::Redirect, "*.test"),
            order(3, 11, pb::QueueVerb::Hold, "a.test"),
            order(4, 11, pb::QueueVerb::Hold, "there.example"),
        ];
        let orders = Orders::new(rules.into_iter());
        let about = |to: &[(&str, _)]| {
            let order = orders.about(&message("s@x", to, 1), NOW)?;
            Some((order.rule, order.recipients))
        };
        assert_eq!(about(&[("bo@a.test", New), ("cy@c.example", New)]), Some((2, vec![0])));
        assert_eq!(about(&[("bo@a.test", Delivered), ("cy@b.test", New)]), Some((2, vec![1])));
        assert_eq!(about(&[("bo@c.example", New)]), None);
        // What a redirection has led where it leads is not led there again.
        assert_eq!(about(&[("Anna@there.example", New)]), Some((4, vec![0])));
        assert_eq!(about(&[("bo@a.test", Delivered)]), None);
        assert!(orders.suspending(NOW).is_empty());
    }

    #[test]
    fn the_largest_share_that_stands_is_shed() {
        let shed = |id, until_ms, personality: &str, percent| pb::StandingRule {
            id,
            until_ms,
            shed: Some(pb::Shed { personality: personality.to_owned(), percent }),
            ..Default::default()
        };
        let rules = [
            shed(1, 10, "mx", 90),
            shed(2, 11, "mx", 20),
            shed(3, 11, "mx", 40),
            shed(4, 11, "smart", 101),
        ];
        let orders = Orders::new(rules.into_iter());
        let percent = |personality| orders.shed_percent(personality, NOW);
        assert_eq!((percent("mx"), percent("smart"), percent("submit")), (40, 0, 0));
    }

    #[test]
    fn a_destination_is_a_domain_or_a_host() {
        let rules = [suspend(7, 11, "*.floods.example"), suspend(8, 11, "mx.there.example")];
        let orders = Orders::new(rules.into_iter());
        let suspended = |domain: &str, hosts: &[&str]| {
            orders.suspended(domain, hosts.iter().copied(), NOW).map(|s| s.text)
        };
        let text = suspended("a.Floods.example", &[]).unwrap();
        assert_eq!(text, "suspended by rule 7 of root: it floods");
        assert!(Suspension::is_by(7, &text) && !Suspension::is_by(8, &text));
        assert!(!Suspension::is_by(7, "suspended by rule 70 of root: x"));
        assert!(suspended("b.example", &["mx2.example.", "mx.there.example."]).is_some());
        assert!(suspended("floods.example", &["mx2.example"]).is_none());
        assert_eq!(orders.suspending(NOW), [7, 8]);
        assert!(orders.suspended("a.floods.example", [].into_iter(), UnixMs(11)).is_none());
    }
}
