//! What one attempt is to do: where each open recipient leads to, and which transactions that makes.

use std::collections::BTreeMap;

use ppsw_spool::{
    env::UnixMs,
    queue::{Attempt, QueuedMessage},
};

use super::{seams::Routing, transaction::Rcpt};
use crate::{
    limits::RECIPIENTS_PER_TRANSACTION_MAX,
    route::{Destination, Fate, Target},
};

/// The work of one attempt.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// One transaction each.
    pub(crate) legs: Vec<Leg>,
    /// Addresses that routing itself decided.
    pub(crate) decided: Vec<Decided>,
    /// For each recipient that was looked at: all addresses that it leads to.
    pub(crate) targets: BTreeMap<u32, Vec<String>>,
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
    /// Indexes of recipients; never empty.
    pub(crate) recipients: Vec<u32>,
    pub(crate) parents: Vec<String>,
    /// Whom a bounce goes to.
    pub(crate) return_path: String,
}

/// An address that goes nowhere now.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) address: Address,
    pub(crate) text: String,
    /// Failed; otherwise deferred.
    pub(crate) failed: bool,
}

/// Routes the recipients that are due at `now`.
pub(crate) async fn plan(message: &QueuedMessage, routing: &dyn Routing, now: UnixMs) -> Plan {
    let mut plan = Plan::default();
    let mut legs: BTreeMap<(String, Destination), Vec<Address>> = BTreeMap::new();
    for (number, attempt) in (0_u32..).zip(&message.recipients) {
        if !attempt.is_open() || attempt.next_due > now {
            continue;
        }
        let targets = routing.route(&attempt.recipient.address).await;
        plan.targets.insert(number, targets.iter().map(|t| t.address.clone()).collect());
        for target in targets {
            if attempt.done.contains(&target.address) {
                continue;
            }
            let return_path = return_path(message, &target);
            let (address, fate) = address(attempt, number, target, return_path);
            let (text, failed) = match fate {
                _ if !is_sendable(&address.rcpt.address) || !is_sendable(&address.return_path) => {
                    ("5.1.3 the address cannot be written in SMTP".to_owned(), true)
                }
                Fate::Deliver(destination) => {
                    let key = (address.return_path.clone(), destination);
                    add(legs.entry(key).or_default(), address);
                    continue;
                }
                Fate::Fail(text) => (text, true),
                Fate::Defer(text) => (text, false),
            };
            plan.decided.push(Decided { address, text, failed });
        }
    }
    for ((return_path, destination), addresses) in legs {
        for addresses in addresses.chunks(RECIPIENTS_PER_TRANSACTION_MAX) {
            plan.legs.push(Leg {
                destination: destination.clone(),
                return_path: return_path.clone(),
                addresses: addresses.to_vec(),
            });
        }
    }
    plan
}

/// A bounce keeps its null sender whatever `errors-to` says: else it could be bounced.
fn return_path(message: &QueuedMessage, target: &Target) -> String {
    let sender = &message.envelope.sender;
    match &target.errors_to {
        Some(errors_to) if !sender.is_empty() => errors_to.clone(),
        _ => sender.clone(),
    }
}

fn address(attempt: &Attempt, number: u32, target: Target, return_path: String) -> (Address, Fate) {
    let recipient = &attempt.recipient;
    let address = Address {
        rcpt: Rcpt {
            address: target.address,
            notify: recipient.notify.clone(),
            original: recipient.original.clone(),
        },
        recipients: vec![number],
        parents: target.parents,
        return_path,
    };
    (address, target.fate)
}

/// Two recipients that lead to one address get one copy.
fn add(addresses: &mut Vec<Address>, address: Address) {
    match addresses.iter_mut().find(|known| known.rcpt.address == address.rcpt.address) {
        Some(known) => known.recipients.extend(address.recipients),
        None => addresses.push(address),
    }
}

/// Whether an address can stand in a command line: nothing that ends the line or its brackets.
pub(crate) fn is_sendable(address: &str) -> bool {
    let quoted = address.rsplit_once('@').is_some_and(|(local, _)| local.starts_with('"'));
    address.len() <= 1_000
        && !address.chars().any(char::is_control)
        && (quoted || !address.contains(['<', '>', ' ']))
}
