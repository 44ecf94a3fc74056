//! What one attempt is to do: where each open recipient leads to, which transactions that makes, and which expansions
//! have to be recorded before.

use std::collections::{BTreeMap, HashMap, HashSet};

use ppsw_spool::{
    env::UnixMs,
    limits::{EXPANDED_BYTES_MAX, RECIPIENT_OVERHEAD},
    queue::{Attempt, Expand, Expansion, QueuedMessage, Recipient},
};

use super::{seams::Routing, transaction::Rcpt};
use crate::{
    limits::{RECIPIENTS_PER_TRANSACTION_MAX, ROUTE_CHILDREN_MAX},
    route::{Destination, Fate, Target},
};

/// The work of one attempt.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Addresses that become others once and for all. While there are any, nothing else is done.
    pub(crate) expansions: Vec<Expand>,
    /// One transaction each.
    pub(crate) legs: Vec<Leg>,
    /// Addresses that routing itself decided.
    pub(crate) decided: Vec<Decided>,
    /// For each recipient that was looked at: the keys of everything that it leads to.
    pub(crate) targets: BTreeMap<u32, Vec<String>>,
    /// Keys that are done, for whichever recipient of the message.
    pub(crate) done: HashSet<String>,
}

/// Addresses that share a transaction.
#[derive(Debug)]
pub(crate) struct Leg {
    pub(crate) destination: Destination,
    /// Sender of the transaction.
    pub(crate) return_path: String,
    pub(crate) addresses: Vec<Address>,
}

/// One final address and the recipients that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) rcpt: Rcpt,
    /// Names it in what is recorded: the address, unless it is of a copy.
    pub(crate) key: String,
    /// Indexes of recipients; never empty.
    pub(crate) recipients: Vec<u32>,
    pub(crate) parents: Vec<String>,
    /// Whom a bounce goes to; empty: nobody.
    pub(crate) return_path: String,
}

/// An address that goes nowhere now.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) address: Address,
    pub(crate) text: String,
    pub(crate) ruling: Ruling,
}

/// What becomes of an address that goes nowhere now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    Failed,
    Deferred,
    /// An operator lets its destination wait.
    Suspended {
        until: UnixMs,
    },
}

/// Routes the recipients that are due at `now`.
pub(crate) async fn plan(message: &QueuedMessage, routing: &dyn Routing, now: UnixMs) -> Plan {
    let open = |attempt: &Attempt| attempt.is_open() && attempt.next_due <= now;
    let numbered = (0_u32..).zip(&message.recipients);
    let due: Vec<u32> = numbered.filter(|(_, a)| open(a)).map(|(number, _)| number).collect();
    let routed = routing.route(message, &due).await;
    let mut plan = Plan { done: done(message), ..Plan::default() };
    let mut legs = Legs::default();
    let mut expanded = Expanded::new(message);
    for (number, targets) in due.into_iter().zip(routed) {
        plan.targets.insert(number, targets.iter().map(Target::key).collect());
        for target in targets {
            let key = target.key();
            if plan.done.contains(&key) {
                continue;
            }
            let return_path = return_path(message, number, &target);
            let target = match target {
                Target { fate: Fate::Expand(into), address, parents, errors_to, .. } => {
                    let from = Expansion { recipient: number, address, parents, errors_to };
                    match expanded.add(from, into) {
                        Ok(expand) => {
                            plan.expansions.extend(expand);
                            continue;
                        }
                        Err((from, why)) => Target {
                            address: from.address,
                            copy: None,
                            parents: from.parents,
                            errors_to: from.errors_to,
                            fate: Fate::Defer(why),
                        },
                    }
                }
                target => target,
            };
            let (address, fate) = address(message, number, target, key, return_path);
            let (text, ruling) = match fate {
                _ if !is_sendable(&address.rcpt.address) || !is_sendable(&address.return_path) => {
                    ("5.1.3 the address cannot be written in SMTP".to_owned(), Ruling::Failed)
                }
                Fate::Deliver(destination) => {
                    legs.add(*destination, address);
                    continue;
                }
                Fate::Fail(text) => (text, Ruling::Failed),
                Fate::Defer(text) => (text, Ruling::Deferred),
                Fate::Expand(_) => continue,
            };
            plan.decided.push(Decided { address, text, ruling });
        }
    }
    plan.legs = legs.divided();
    let order = &routing.options().remote_sort_domains;
    if !order.is_empty() {
        plan.legs.sort_by_key(|leg| rank(order, leg));
    }
    plan
}

/// The place of a leg's first domain in `remote_sort_domains`.
fn rank(order: &[String], leg: &Leg) -> usize {
    let address = leg.addresses.first().map_or("", |address| address.rcpt.address.as_str());
    let domain = address.rsplit_once('@').map_or("", |(_, domain)| domain).to_ascii_lowercase();
    let fits = |pattern: &String| match pattern.strip_prefix('*') {
        Some(end) => domain.ends_with(end),
        None => domain == *pattern,
    };
    order.iter().position(fits).unwrap_or(order.len())
}

/// Keys of all that is done for any recipient: nobody gets a message twice because a second alias leads there later.
fn done(message: &QueuedMessage) -> HashSet<String> {
    let mut done = HashSet::new();
    for attempt in &message.recipients {
        done.extend(attempt.done.iter().cloned());
        if !attempt.is_open() && attempt.done.is_empty() {
            done.insert(attempt.recipient.address.clone());
        }
    }
    done
}

/// Addresses by destination and sender, each once.
#[derive(Default)]
struct Legs {
    list: Vec<(Destination, Vec<Address>)>,
    by_place: BTreeMap<(String, Destination), usize>,
    /// By key: leg, and place in it.
    known: HashMap<String, (usize, usize)>,
}

impl Legs {
    /// Two recipients that lead to one address get one copy.
    fn add(&mut self, destination: Destination, address: Address) {
        if let Some((leg, at)) = self.known.get(&address.key)
            && let Some(known) = self.list.get_mut(*leg).and_then(|(_, leg)| leg.get_mut(*at))
        {
            known.recipients.extend(address.recipients);
            return;
        }
        let place = (address.return_path.clone(), destination);
        let leg = match self.by_place.get(&place) {
            Some(leg) => *leg,
            None => {
                self.list.push((place.1.clone(), Vec::new()));
                self.by_place.insert(place, self.list.len() - 1);
                self.list.len() - 1
            }
        };
        if let Some((_, addresses)) = self.list.get_mut(leg) {
            self.known.insert(address.key.clone(), (leg, addresses.len()));
            addresses.push(address);
        }
    }

    fn divided(self) -> Vec<Leg> {
        let mut legs = Vec::new();
        for (destination, mut rest) in self.list {
            // A program gets one address, as in Exim: its environment names it.
            let most = match destination.program {
                Some(_) => 1,
                None => RECIPIENTS_PER_TRANSACTION_MAX,
            };
            while !rest.is_empty() {
                let behind = rest.split_off(rest.len().min(most));
                let return_path = rest.first().map(|a| a.return_path.clone()).unwrap_or_default();
                let destination = destination.clone();
                legs.push(Leg { destination, return_path, addresses: rest });
                rest = behind;
            }
        }
        legs
    }
}

/// The expansions of one attempt.
struct Expanded<'a> {
    message: &'a QueuedMessage,
    /// Addresses that are recipients already.
    known: HashSet<String>,
    /// Addresses that are expanded now.
    now: HashSet<String>,
    /// Recipients that the message will have.
    count: usize,
    /// Bytes of those that come from expansions.
    bytes: usize,
}

impl<'a> Expanded<'a> {
    fn new(message: &'a QueuedMessage) -> Self {
        let from_expansions = message.recipients.iter().filter(|a| a.expansion.is_some());
        let bytes = from_expansions.map(|a| a.recipient.address.len() + RECIPIENT_OVERHEAD).sum();
        let (known, now) = (HashSet::new(), HashSet::new());
        Self { message, known, now, count: message.recipients.len(), bytes }
    }

    /// What is to be recorded; `None`: another recipient leads to the same list. An error says why it is too much.
    fn add(
        &mut self,
        from: Expansion,
        into: Vec<String>,
    ) -> Result<Option<Expand>, (Expansion, String)> {
        if self.now.contains(&from.address) {
            return Ok(None);
        }
        if self.known.is_empty() {
            self.known =
                self.message.recipients.iter().map(|a| same(&a.recipient.address)).collect();
        }
        // What an address was made from may be among what it is made into: it has still to find its way.
        let number = from.recipient;
        let mut own: HashSet<String> = self
            .message
            .ancestors(number)
            .into_iter()
            .chain(from.parents.iter().map(String::as_str))
            .map(same)
            .collect();
        own.insert(same(&from.address));
        own.extend(
            self.message.recipients.get(number as usize).map(|a| same(&a.recipient.address)),
        );
        let parent = self.message.recipients.get(number as usize).map(|a| &a.recipient);
        let mut seen = HashSet::new();
        let mut new = Vec::new();
        for address in into {
            let key = same(&address);
            if seen.insert(key.clone()) && (own.contains(&key) || self.known.insert(key)) {
                // A list has notifications of its own (RFC 3461 §5.2.7.3).
                let keeps = parent.filter(|_| from.errors_to.is_none());
                new.push(Recipient {
                    address,
                    notify: keeps.map(|parent| parent.notify.clone()).unwrap_or_default(),
                    original: keeps.map(|parent| parent.original.clone()).unwrap_or_default(),
                });
            }
        }
        let bytes = new
            .iter()
            .map(|to| to.address.len() + to.notify.len() + to.original.len() + RECIPIENT_OVERHEAD);
        let (bytes, count) = (self.bytes + bytes.sum::<usize>(), self.count + new.len());
        if count > ROUTE_CHILDREN_MAX + self.message.envelope.recipients.len() + 1
            || bytes > EXPANDED_BYTES_MAX
        {
            let why = format!(
                "{} leads to {} addresses: more than a message can have; shorten its lists",
                from.address,
                new.len()
            );
            return Err((from, why));
        }
        let first = u32::try_from(self.count).unwrap_or(u32::MAX);
        (self.bytes, self.count) = (bytes, count);
        self.now.insert(from.address.clone());
        Ok(Some(Expand {
            message: self.message.id,
            from,
            into: new,
            due: self.message.envelope.received,
            first,
            goes_on: false,
        }))
    }
}

/// Equal for texts that are the same address: domains have no case.
fn same(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((local, domain)) => format!("{local}@{}", domain.to_ascii_lowercase()),
        None => address.to_owned(),
    }
}

/// A bounce keeps its null sender whatever `errors-to` says: else it could be bounced.
fn return_path(message: &QueuedMessage, number: u32, target: &Target) -> String {
    let sender = &message.envelope.sender;
    if sender.is_empty() {
        return String::new();
    }
    match &target.errors_to {
        Some(errors_to) => errors_to.clone(),
        None => sender_for(message, number),
    }
}

/// The sender of what goes to a recipient, by the lists that it comes from.
pub(crate) fn sender_for(message: &QueuedMessage, number: u32) -> String {
    let sender = &message.envelope.sender;
    if sender.is_empty() {
        return String::new();
    }
    let mut number = number;
    // An expansion is of an earlier recipient, so this ends.
    while let Some(from) = message.expansion_of(number).filter(|from| from.recipient < number) {
        if let Some(errors_to) = &from.errors_to {
            return errors_to.clone();
        }
        number = from.recipient;
    }
    sender.clone()
}

fn address(
    message: &QueuedMessage,
    number: u32,
    target: Target,
    key: String,
    return_path: String,
) -> (Address, Fate) {
    let recipient = message.recipients.get(number as usize).map(|attempt| &attempt.recipient);
    // Under another sender the notifications are not those that ours asked for (RFC 3461 §5.2.7.3).
    let recipient = recipient.filter(|_| return_path == message.envelope.sender);
    let address = Address {
        rcpt: Rcpt {
            address: target.address,
            notify: recipient.map(|to| to.notify.clone()).unwrap_or_default(),
            original: recipient.map(|to| to.original.clone()).unwrap_or_default(),
        },
        key,
        recipients: vec![number],
        parents: target.parents,
        return_path,
    };
    (address, target.fate)
}

/// Whether an address can stand in a command line: nothing that ends the line or its brackets.
pub(crate) fn is_sendable(address: &str) -> bool {
    let quoted = address.rsplit_once('@').is_some_and(|(local, _)| local.starts_with('"'));
    address.len() <= 1_000
        && !address.chars().any(char::is_control)
        && (quoted || !address.contains(['<', '>', ' ']))
}
