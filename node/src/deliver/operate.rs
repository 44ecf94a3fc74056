//! What operators do with messages that wait: the verbs of `ppswctl queue`.
//!
//! A recipient is given up, or becomes another, only while no attempt for its message runs here: nobody gets a message
//! that its sender is told was returned.

use std::sync::Arc;

use ppsw_control::{Verb, Wanted};
use ppsw_spool::{
    group::{ProposeError, Reply},
    queue::{Delivered, MessageId, MessageState, Outcome, QueuedMessage, Turn, Verdict},
};
use tokio::time::sleep;

use super::{
    Deliverer,
    attempt::{Workshop, created},
    plan::{Address, is_sendable, sender_for},
    result::{Early, Result as Judged},
    schedule::Token,
    seams::QueueSource,
    transaction::Rcpt,
};
use crate::{
    limits::{FENCE_POLL, OPERATE_PATIENCE, REDIRECTED_RECIPIENTS_MAX},
    maillog::OperatorEvent,
};

/// What the sender is told of a recipient that an operator gave up.
const CANCELLED: &str = "delivery cancelled by an administrator";

impl Deliverer {
    /// Does what an operator wants with one message, as far as it is about these of its recipients.
    ///
    /// # Errors
    /// A text for the operator: why nothing was done, or that nobody knows.
    pub async fn operate(
        &self,
        source: &dyn QueueSource,
        id: MessageId,
        recipients: &[u32],
        wanted: &Wanted,
    ) -> Result<(), String> {
        // While it is held, no attempt begins: none before the log has who wanted it. Those who only change a date do not
        // wait for one that runs.
        let _alone = match wanted.verb.is_about_recipients() {
            true => Some(self.alone(source, id).await?),
            false => Token::take(&self.shared, source.id(), Turn::First, id),
        };
        let message = source.get(id).ok_or("it has left the queue")?;
        let workshop = self.shared.workshop();
        let now = workshop.parts.clock.now();
        let held = message.state == MessageState::Held;
        match &wanted.verb {
            Verb::Hold if held => return Err("it is held already".to_owned()),
            Verb::Release if !held => return Err("it is not held".to_owned()),
            Verb::Retry if held => return Err("it is held: release it".to_owned()),
            Verb::Hold => done(source.hold(id, OPERATE_PATIENCE).await)?,
            Verb::Retry | Verb::Release => {
                done(source.release(id, now, OPERATE_PATIENCE).await)?;
            }
            Verb::Redirect { to } => {
                return workshop.redirect(source, &message, recipients, to, wanted).await;
            }
            Verb::Bounce | Verb::Drop => {
                return workshop.give_up(source, &message, recipients, wanted).await;
            }
        }
        workshop.log_operator(&message, recipients, wanted);
        Ok(())
    }

    /// Forgets which hosts could not be reached: an operator wants to see what comes of a new attempt.
    pub fn forget_hosts(&self) {
        self.shared.workshop().transmitter.forget_hosts();
    }

    /// The message for nobody else, when the attempt that may run has ended.
    async fn alone(&self, source: &dyn QueueSource, id: MessageId) -> Result<Token, String> {
        let clock = &self.shared.workshop().parts.clock;
        let until = clock.instant() + OPERATE_PATIENCE;
        loop {
            if let Some(token) = Token::take(&self.shared, source.id(), Turn::First, id) {
                return may_be_elsewhere(self, source, id).map(|()| token);
            }
            if clock.instant() >= until {
                return Err("an attempt is under way: hold it, and try again later".to_owned());
            }
            sleep(FENCE_POLL).await;
        }
    }
}

/// After a takeover the former leader may still bring a message to its end.
fn may_be_elsewhere(
    deliverer: &Deliverer,
    source: &dyn QueueSource,
    id: MessageId,
) -> Result<(), String> {
    let now = deliverer.shared.workshop().parts.clock.now();
    match source.get(id) {
        Some(message) if message.not_before > now => Err(format!(
            "the node that led before may have it in flight: try again in {} s",
            message.not_before.since(now).as_secs() + 1
        )),
        _ => Ok(()),
    }
}

impl Workshop {
    /// Gives recipients another address. What was done is logged, also if something goes wrong in the middle.
    pub(super) async fn redirect(
        &self,
        source: &dyn QueueSource,
        message: &QueuedMessage,
        recipients: &[u32],
        to: &str,
        wanted: &Wanted,
    ) -> Result<(), String> {
        if !is_sendable(to) {
            return Err(format!("{to} cannot stand in an SMTP command"));
        }
        if recipients.len() > REDIRECTED_RECIPIENTS_MAX {
            return Err(format!(
                "{} of its recipients are meant, and {REDIRECTED_RECIPIENTS_MAX} can be redirected at once: name them",
                recipients.len()
            ));
        }
        let (mut redirected, mut result) = (Vec::new(), Ok(()));
        for (number, attempt) in chosen(message, recipients) {
            // When it was due, it still is: a redirection is no reason to hurry.
            let due = attempt.next_due;
            result = done(source.redirect(message.id, number, to, due, OPERATE_PATIENCE).await);
            if result.is_err() {
                break;
            }
            redirected.push(number);
        }
        if !redirected.is_empty() {
            self.log_operator(message, &redirected, wanted);
        }
        result
    }

    /// Ends recipients. The report for the sender is in the same entry of the log.
    pub(super) async fn give_up(
        &self,
        source: &dyn QueueSource,
        message: &Arc<QueuedMessage>,
        recipients: &[u32],
        wanted: &Wanted,
    ) -> Result<(), String> {
        let tells = wanted.verb == Verb::Bounce;
        if tells && message.envelope.sender.is_empty() {
            return Err("it has no sender who could be told: drop it".to_owned());
        }
        let text = if tells { CANCELLED } else { "dropped by an administrator" };
        let results: Vec<Judged> =
            chosen(message, recipients).map(|(number, _)| judged(message, number, text)).collect();
        let of_result = |result: &Judged| Delivered {
            recipient: result.address.recipients.first().copied().unwrap_or_default(),
            address: result.address.key.clone(),
            verdict: Verdict::Failed,
            text: result.text.clone(),
        };
        let mut outcome = Outcome {
            message: message.id,
            results: results.iter().map(of_result).collect(),
            finished: chosen(message, recipients).map(|(number, _)| number).collect(),
            creates: Vec::new(),
            warned: false,
            goes_on: false,
        };
        let routing = self.parts.router.current();
        let attempted = self.attempted(message, &*routing);
        if tells {
            let reports = attempted.reports(&results);
            let excerpt = self.excerpt(source, message, &*routing).await;
            attempted.attach(&mut outcome, reports, &excerpt, &|| self.parts.queues.new_id());
        }
        let (completes, created) =
            (attempted.completes(&outcome, &Early::default()), created(&outcome));
        source.record(outcome, OPERATE_PATIENCE).await.map_err(|error| unsure(&error))?;
        // Before `Completed`, behind which readers of the log look for nothing.
        self.log_operator(message, recipients, wanted);
        if tells {
            self.log(&attempted, &results);
        }
        self.log_created(message.id, created);
        if completes {
            let now = self.parts.clock.now();
            self.parts.log.completed(message.id, now.since(message.envelope.received));
        }
        Ok(())
    }

    pub(super) fn log_operator(
        &self,
        message: &QueuedMessage,
        recipients: &[u32],
        wanted: &Wanted,
    ) {
        let about = wanted.verb.is_about_recipients();
        let addresses: Vec<&str> = chosen(message, recipients)
            .filter(|_| about)
            .map(|(_, attempt)| attempt.recipient.address.as_str())
            .collect();
        let to = match &wanted.verb {
            Verb::Redirect { to } => Some(to.as_str()),
            _ => None,
        };
        metrics::counter!("ppsw_operated_messages_total", "verb" => wanted.verb.past())
            .increment(1);
        self.parts.log.operated(&OperatorEvent {
            id: message.id,
            verb: wanted.verb.past(),
            by: &wanted.by,
            reason: &wanted.reason,
            addresses: &addresses,
            to,
        });
    }
}

/// The recipients that are meant and still open.
fn chosen<'a>(
    message: &'a QueuedMessage,
    recipients: &'a [u32],
) -> impl Iterator<Item = (u32, &'a ppsw_spool::queue::Attempt)> {
    recipients.iter().filter_map(|number| {
        let attempt = message.recipients.get(*number as usize)?;
        attempt.is_open().then_some((*number, attempt))
    })
}

/// A recipient that an operator gave up, as if it had been tried.
fn judged(message: &QueuedMessage, number: u32, text: &str) -> Judged {
    let recipient = message.recipients.get(number as usize).map(|attempt| &attempt.recipient);
    let address = recipient.map(|to| to.address.clone()).unwrap_or_default();
    let rcpt = Rcpt { address: address.clone(), ..Rcpt::default() };
    let address = Address {
        rcpt,
        key: address,
        recipients: vec![number],
        parents: Vec::new(),
        return_path: sender_for(message, number),
    };
    Judged::without_host(address, Verdict::Failed, text.to_owned())
}

pub(super) fn done(answer: Result<Reply, ProposeError>) -> Result<(), String> {
    match answer {
        Ok(Reply::Refused(why)) => Err(why),
        Ok(_) => Ok(()),
        Err(error) => Err(unsure(&error)),
    }
}

fn unsure(error: &ProposeError) -> String {
    match error {
        ProposeError::NotLeader { .. } => {
            "another node leads its partition now: ask again".to_owned()
        }
        error => format!("it is not known whether this was done: {error}"),
    }
}
