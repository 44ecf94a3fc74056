//! From the answers of an attempt to its outcome: verdicts, bounces, warnings.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use bytes::Bytes;
use ppsw_spool::{
    env::UnixMs,
    queue::{Delivered, Envelope, MessageId, Outcome, QueuedMessage, Verdict},
};

use super::{
    hosts::Candidate,
    plan::{Address, Plan},
    reply::printable,
    retry::{Cause, Trouble},
    seams::Routing,
    transaction::Answer,
};
use crate::{
    limits::{SUSPENDED_RETRY, UNREAD_RETRY},
    message::bounce::{Excerpt, Kind, Report, Reported, divide, wants_warning},
};

/// What became of one address.
#[derive(Clone, Debug)]
pub(crate) struct Result {
    pub(crate) address: Address,
    pub(crate) verdict: Verdict,
    pub(crate) text: String,
    pub(crate) router: String,
    pub(crate) transport: String,
    pub(crate) host: Option<Candidate>,
    pub(crate) time: Duration,
    /// Not the first address of its transaction.
    pub(crate) further: bool,
    /// The next hop sends no notifications of success.
    pub(crate) relayed: bool,
    /// Version and cipher of TLS with the host; empty without.
    pub(crate) cipher: String,
    /// What a program wrote, if it is to be returned.
    pub(crate) output: String,
}

impl Result {
    /// Of an address that no host was asked about.
    pub(crate) fn without_host(address: Address, verdict: Verdict, text: String) -> Self {
        Self {
            address,
            verdict,
            text,
            router: String::new(),
            transport: String::new(),
            host: None,
            time: Duration::ZERO,
            further: false,
            relayed: false,
            cipher: String::new(),
            output: String::new(),
        }
    }
}

/// What is not for the log to know but for the outcome: the message's part in it.
pub(crate) struct Attempted<'a> {
    pub(crate) message: &'a QueuedMessage,
    pub(crate) routing: &'a dyn Routing,
    pub(crate) now: UnixMs,
    /// This machine's name.
    pub(crate) name: &'a str,
}

/// What was recorded of an attempt before its end.
#[derive(Debug, Default)]
pub(crate) struct Early {
    /// By recipient: the addresses that are done.
    pub(crate) done: BTreeMap<u32, BTreeSet<String>>,
    pub(crate) finished: BTreeSet<u32>,
}

/// A report that is to be made.
#[derive(Debug)]
pub(crate) struct Wanted {
    kind: Kind,
    to: String,
    recipients: Vec<Reported>,
}

impl Attempted<'_> {
    /// How old the message is.
    pub(crate) fn age(&self) -> Duration {
        self.now.since(self.message.envelope.received)
    }

    /// The message is itself a bounce: nobody is told of its failure.
    fn is_bounce(&self) -> bool {
        self.message.envelope.sender.is_empty()
    }

    /// What an answer means by the retry rules. `None`: nothing is known, nothing is recorded.
    pub(crate) fn judge(
        &self,
        address: &str,
        answer: Answer,
        mx: Option<bool>,
    ) -> Option<(Verdict, String)> {
        let cause = match &answer {
            Answer::Deferred { cause, .. } => *cause,
            _ => Cause::Other,
        };
        let next = self.routing.retry(address, &Trouble { cause, mx }).next(self.age());
        let (verdict, text) = match answer {
            Answer::Fenced => return None,
            Answer::Delivered(text) => (Verdict::Delivered, text),
            Answer::Failed(text) => (Verdict::Failed, text),
            Answer::Unread(text) => {
                let wait = next.unwrap_or(UNREAD_RETRY);
                (Verdict::Deferred { next_due: self.now.plus(wait) }, text)
            }
            Answer::Suspended { text, until } => {
                let next_due = until.min(self.now.plus(SUSPENDED_RETRY));
                (Verdict::Deferred { next_due }, text)
            }
            Answer::Deferred { text, .. } => match next {
                Some(wait) => (Verdict::Deferred { next_due: self.now.plus(wait) }, text),
                None => (Verdict::Failed, format!("retry timeout exceeded; last: {text}")),
            },
        };
        let text = printable(&text);
        let patience = self.routing.options().ignore_bounce_errors_after;
        if verdict == Verdict::Failed && self.is_bounce() && self.age() < patience {
            // A bounce that fails may yet be delivered, by a mended table, or to a mended server: Exim freezes it until
            // `auto_thaw`, and drops it when it is too old.
            let left = patience.saturating_sub(self.age());
            let wait = self.routing.options().auto_thaw.min(left).max(Duration::from_secs(1));
            return Some((Verdict::Deferred { next_due: self.now.plus(wait) }, text));
        }
        Some((verdict, text))
    }

    /// The outcome, without reports. Empty if nothing became known.
    pub(crate) fn outcome(&self, plan: &Plan, results: &[Result], early: &Early) -> Outcome {
        let mut done: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
        let mut out = Vec::new();
        for result in results {
            for recipient in &result.address.recipients {
                let address = &result.address.key;
                if !matches!(result.verdict, Verdict::Deferred { .. }) {
                    done.entry(*recipient).or_default().insert(address);
                }
                out.push(Delivered {
                    recipient: *recipient,
                    address: address.clone(),
                    verdict: result.verdict.clone(),
                    text: result.text.clone(),
                });
            }
        }
        let finished = plan
            .targets
            .iter()
            .filter(|(number, _)| !early.finished.contains(number))
            .filter(|(number, targets)| {
                let before = self.message.recipients.get(**number as usize).map(|r| &r.done);
                let now = done.get(number);
                let early = early.done.get(number);
                targets.iter().all(|target| {
                    plan.done.contains(target)
                        || before.is_some_and(|done| done.contains(target))
                        || now.is_some_and(|done| done.contains(target.as_str()))
                        || early.is_some_and(|done| done.contains(target))
                })
            })
            .map(|(number, _)| *number)
            .collect();
        Outcome {
            message: self.message.id,
            results: out,
            finished,
            creates: Vec::new(),
            warned: false,
            goes_on: false,
        }
    }

    /// Whether every recipient is done after this outcome.
    pub(crate) fn completes(&self, outcome: &Outcome, early: &Early) -> bool {
        let finished: HashSet<u32> = outcome.finished.iter().copied().collect();
        (0_u32..).zip(&self.message.recipients).all(|(number, attempt)| {
            !attempt.is_open() || finished.contains(&number) || early.finished.contains(&number)
        })
    }

    /// The reports that the results ask for (RFC 3461 §4.1 for `NOTIFY`), one for each who is to be told.
    pub(crate) fn reports(&self, results: &[Result]) -> Vec<Wanted> {
        if self.is_bounce() {
            return Vec::new();
        }
        let warn = !self.message.warned && self.age() >= self.routing.options().delay_warning;
        let (mut failed, mut late) = (BTreeMap::new(), BTreeMap::new());
        let mut relayed = BTreeMap::new();
        for result in results {
            if result.address.return_path.is_empty() {
                // `errors-to=""`: nobody wants to know.
                continue;
            }
            for recipient in &result.address.recipients {
                let Some(attempt) = self.message.recipients.get(*recipient as usize) else {
                    continue;
                };
                let asked = |what| asks(&attempt.recipient.notify, what);
                let list: &mut BTreeMap<String, Vec<Reported>> = match result.verdict {
                    Verdict::Failed if asked("FAILURE") => &mut failed,
                    Verdict::Deferred { .. } if warn && asked("DELAY") => &mut late,
                    Verdict::Delivered if result.relayed && asked("SUCCESS") => &mut relayed,
                    _ => continue,
                };
                list.entry(result.address.return_path.clone()).or_default().push(Reported {
                    recipient: attempt.recipient.address.clone(),
                    original: attempt.recipient.original.clone(),
                    address: result.address.rcpt.address.clone(),
                    text: result.text.clone(),
                    remote: result.host.as_ref().map(|host| host.name.clone()),
                    output: result.output.clone(),
                });
            }
        }
        let until = self.give_up_time(&late);
        let of = |kind: Kind, lists: BTreeMap<String, Vec<Reported>>| {
            lists.into_iter().map(move |(to, recipients)| Wanted { kind, to, recipients })
        };
        of(Kind::Failed, failed)
            .chain(of(Kind::Delayed { until }, late))
            .chain(of(Kind::Relayed, relayed))
            .collect()
    }

    /// When the last of the late recipients will be given up.
    fn give_up_time(&self, late: &BTreeMap<String, Vec<Reported>>) -> UnixMs {
        let longest = late
            .values()
            .flatten()
            .map(|reported| {
                self.routing.retry(&reported.address, &Trouble::default()).expires_after()
            })
            .max()
            .unwrap_or_default();
        self.message.envelope.received.plus(longest)
    }

    /// Adds reports to an outcome, in which `excerpt` is the beginning of the message.
    pub(crate) fn attach(
        &self,
        outcome: &mut Outcome,
        wanted: Vec<Wanted>,
        excerpt: &Excerpt,
        new_id: &dyn Fn() -> Option<MessageId>,
    ) {
        let options = self.routing.options();
        for Wanted { kind, to, recipients } in wanted {
            if matches!(kind, Kind::Delayed { .. }) {
                // Once, wanted or not.
                outcome.warned = true;
                if !wants_warning(&excerpt.bytes) {
                    continue;
                }
            }
            for recipients in divide(&recipients) {
                let Some(id) = new_id() else { continue };
                let report = Report {
                    kind,
                    id,
                    to: &to,
                    reporter: self.name,
                    domain: &options.qualify_domain,
                    reply_to: options.errors_reply_to.as_deref(),
                    about: self.message.id,
                    envelope: &self.message.envelope,
                    recipients,
                    excerpt,
                    now: self.now,
                };
                let (envelope, bytes): (Envelope, Bytes) = report.to_message();
                outcome.creates.push((id, envelope, bytes));
            }
        }
    }
}

/// Whether `NOTIFY` asks for reports of a kind. Without it: of failures, and of delays as we see fit.
fn asks(notify: &str, what: &str) -> bool {
    if notify.is_empty() {
        return what != "SUCCESS";
    }
    notify.split(',').any(|word| word.trim().eq_ignore_ascii_case(what))
}

/// The class of a reply for metrics: bounded.
pub(crate) fn label(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Delivered => "delivered",
        Verdict::Failed => "failed",
        Verdict::Deferred { .. } => "deferred",
    }
}
