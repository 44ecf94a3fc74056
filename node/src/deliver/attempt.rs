//! One attempt to deliver one message: route, transmit, judge, record.

use std::{
    collections::BTreeSet,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use metrics::counter;
use ppsw_spool::{
    group::{ProposeError, Reply},
    queue::{Envelope, MessageId, Outcome, QueuedMessage, Turn, Verdict},
};
use tokio::sync::OnceCell;
use tracing::{info, warn};

use super::{
    Parts,
    lanes::{Full, Gate, Lanes, NodePlace, Place},
    plan::{Address, Leg, Plan, plan},
    progress::Known,
    record::record,
    result::{Attempted, Result},
    seams::{Fence, QueueSource, Routing},
    transaction::{Answer, Mail},
    transmit::{Hosts, Sent, Transmission, Transmitter, is_unanswered},
};
use crate::{
    limits::{BOUNCE_RETURN_BYTES_MAX, FENCE_POLL, RECORD_DEADLINE, ROUTE_DEPTH_MAX},
    maillog::{AddressEvent, ArrivalEvent},
    message::bounce::Excerpt,
    route::{Destination, Program},
};

/// What attempts of a node share.
pub(super) struct Workshop {
    pub(super) parts: Parts,
    pub(super) transmitter: Transmitter,
    pub(super) lanes: Lanes,
    /// Rules by which something waits here.
    pub(super) suspended_by: Mutex<BTreeSet<u64>>,
    /// This node ends: nothing more gets its final dot.
    pub(super) stopped: AtomicBool,
}

/// How an attempt ended, as far as the scheduler has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Recorded, or nothing to record.
    Done,
    /// Nothing was tried: the destinations have enough to do.
    Postponed,
}

/// What came of one leg.
pub(super) enum LegResult {
    Full,
    Sent(Vec<Sent>),
}

/// How a leg goes on.
enum Way<'a> {
    Program(&'a Program, NodePlace),
    Hosts(Hosts),
}

/// The lease of the partition, while this node is not to end; and the mark of the attempt in its log.
#[derive(Clone, Copy)]
pub(super) struct Lease<'a> {
    source: &'a dyn QueueSource,
    stopped: &'a AtomicBool,
    message: MessageId,
    /// One for all transactions of the attempt.
    begun: &'a OnceCell<bool>,
    /// What one transaction is for.
    addresses: &'a [Address],
}

#[async_trait]
impl Fence for Lease<'_> {
    fn holds(&self) -> bool {
        !self.stopped.load(Ordering::Acquire) && self.source.may_deliver()
    }

    async fn begun(&self) -> bool {
        *self.begun.get_or_init(|| self.source.begin(self.message)).await
    }

    fn is_open(&self) -> bool {
        let mut addresses: Vec<(u32, &str)> = Vec::new();
        for address in self.addresses {
            addresses.extend(address.recipients.iter().map(|number| (*number, &*address.key)));
        }
        self.source.are_open(self.message, &addresses)
    }

    async fn broken(&self) {
        // Asked, not told: the lease ends by time alone, without an event.
        while self.holds() {
            tokio::time::sleep(FENCE_POLL).await;
        }
    }
}

impl Workshop {
    /// One attempt. The caller sees to it that there is only one at a time for a message.
    pub(super) async fn attempt(
        &self,
        source: &dyn QueueSource,
        message: &Arc<QueuedMessage>,
    ) -> Ended {
        if let Some(ended) = self.obey(source, message).await {
            return ended;
        }
        let routing = self.parts.router.current();
        let begun = OnceCell::new();
        let fence = Lease {
            source,
            stopped: &self.stopped,
            message: message.id,
            begun: &begun,
            addresses: &[],
        };
        let planned = tokio::select! {
            planned = self.planned(source, message, &*routing) => planned,
            () = fence.broken() => return Ended::Done,
        };
        let (message, planned) = match planned {
            Ok(planned) => planned,
            Err(ended) => return ended,
        };
        let message = &message;
        if !fence.holds() {
            return Ended::Done;
        }
        let known = self.transmit(source, message, &*routing, &planned, fence).await;
        if known.nothing_was_tried() {
            return Ended::Postponed;
        }
        self.conclude(source, message, &*routing, &planned, known).await;
        Ended::Done
    }

    /// What is to be done, after all expansions that it needs are in the log; and the message as it is then.
    async fn planned(
        &self,
        source: &dyn QueueSource,
        message: &Arc<QueuedMessage>,
        routing: &dyn Routing,
    ) -> std::result::Result<(Arc<QueuedMessage>, Plan), Ended> {
        let mut message = Arc::clone(message);
        // A list of lists: each round goes one level down, and routing bounds how many there are.
        for _ in 0..=ROUTE_DEPTH_MAX {
            let mut planned = plan(&message, routing, self.parts.clock.now()).await;
            if planned.expansions.is_empty() {
                self.suspend(&mut planned);
                return Ok((message, planned));
            }
            for expand in planned.expansions {
                let (address, into) = (expand.from.address.clone(), expand.into.len());
                match source.expand(expand, RECORD_DEADLINE).await {
                    Ok(Reply::Refused(why)) => {
                        warn!(id = %message.id, address, "an expansion was refused: {why}");
                        return Err(Ended::Postponed);
                    }
                    Ok(_) => info!(id = %message.id, address, into, "expanded"),
                    // Whoever leads now does it.
                    Err(ProposeError::NotLeader { .. }) => return Err(Ended::Done),
                    Err(error) => {
                        warn!(id = %message.id, address, "an expansion is not recorded: {error}");
                        return Err(Ended::Postponed);
                    }
                }
            }
            message = source.get(message.id).ok_or(Ended::Done)?;
        }
        warn!(id = %message.id, "expansions do not come to an end");
        Err(Ended::Postponed)
    }

    /// One transaction, when its destination has a place for it.
    pub(super) async fn leg(
        &self,
        source: &dyn QueueSource,
        message: &QueuedMessage,
        routing: &dyn Routing,
        leg: &Leg,
        fence: Lease<'_>,
    ) -> LegResult {
        let fence = Lease { addresses: &leg.addresses, ..fence };
        let tried = message.recipients.iter().any(|attempt| attempt.attempts > 0);
        let gate = self.lanes.gate(if tried { Turn::Again } else { Turn::First });
        let entered = tokio::select! {
            entered = self.enter(message.id, &leg.destination, gate) => entered,
            () = fence.broken() => return fenced(leg),
        };
        let Ok((place, way)) = entered else { return LegResult::Full };
        if !fence.holds() {
            return fenced(leg);
        }
        let sent = match way {
            Way::Program(program, _place) => self.pipe(source, message, leg, program, &fence).await,
            Way::Hosts(hosts) => {
                self.transmission(source, message, routing, leg, &fence, (hosts, gate)).await
            }
        };
        if is_unanswered(&sent) {
            place.unanswered();
        } else {
            place.answered();
        }
        LegResult::Sent(sent)
    }

    /// Waits for the destination's place, and then for those that are needed to begin.
    async fn enter<'a>(
        &self,
        message: MessageId,
        destination: &'a Destination,
        gate: Gate<'_>,
    ) -> std::result::Result<(Place, Way<'a>), Full> {
        let place = self.lanes.enter(destination, message).await?;
        let way = match &destination.program {
            Some(program) => Way::Program(program, gate.node().await?),
            None => Way::Hosts(self.transmitter.hosts(destination, gate).await),
        };
        Ok((place, way))
    }

    /// Brings the message to one of the hosts.
    async fn transmission(
        &self,
        source: &dyn QueueSource,
        message: &QueuedMessage,
        routing: &dyn Routing,
        leg: &Leg,
        fence: &Lease<'_>,
        (hosts, gate): (Hosts, Gate<'_>),
    ) -> Vec<Sent> {
        let envelope = &message.envelope;
        // What was asked for goes with the sender who asked (RFC 3461 §5.2.7.3).
        let keeps = leg.return_path == envelope.sender;
        let mail = Mail {
            sender: leg.return_path.clone(),
            size: message.size,
            eight_bit: envelope.eight_bit,
            smtputf8: envelope.smtputf8,
            strip_nul: leg.destination.strip_nul && envelope.nul_count > 0,
            return_headers_only: keeps && envelope.return_headers_only,
            envelope_id: if keeps { envelope.envelope_id.clone() } else { String::new() },
        };
        let recipients: Vec<_> = leg.addresses.iter().map(|a| a.rcpt.clone()).collect();
        let first = recipients.first().map_or("", |to| to.address.as_str());
        let retry = |trouble| routing.retry(first, &trouble);
        let transmission = Transmission {
            destination: &leg.destination,
            gate,
            personality: &envelope.origin.personality,
            retry: &retry,
            mail: &mail,
            recipients: &recipients,
            body: &|| source.body(message),
            fence,
        };
        let mut transmit = pin!(self.transmitter.transmit(&transmission, hosts));
        // The mark is written beside the dialogue, which waits for it before the final dot.
        tokio::select! {
            sent = &mut transmit => sent,
            _ = fence.begun() => transmit.await,
        }
    }

    /// Judges, logs, records.
    async fn conclude(
        &self,
        source: &dyn QueueSource,
        message: &Arc<QueuedMessage>,
        routing: &dyn Routing,
        plan: &Plan,
        known: Known,
    ) {
        let (results, early) = known.end(plan, self.parts.clock.now());
        let attempted = self.attempted(message, routing);
        self.log(&attempted, &results);
        let mut outcome = attempted.outcome(plan, &results, &early);
        if outcome.results.is_empty() && outcome.finished.is_empty() {
            return;
        }
        let wanted = attempted.reports(&results);
        if !wanted.is_empty() {
            let excerpt = self.excerpt(source, message, routing).await;
            attempted.attach(&mut outcome, wanted, &excerpt, &|| self.parts.queues.new_id());
        }
        let (completes, created) = (attempted.completes(&outcome, &early), created(&outcome));
        if let Err(why) = record(source, &*self.parts.forward, outcome).await {
            counter!("ppsw_outcomes_lost_total").increment(1);
            warn!(id = %message.id, "an outcome could not be recorded: {}", why.0);
            self.parts.log.outcome_lost(message.id, &why.0);
            return;
        }
        self.log_created(message.id, created);
        if completes {
            let now = self.parts.clock.now();
            self.parts.log.completed(message.id, now.since(message.envelope.received));
        }
    }

    /// The arrival of each report about a message.
    pub(super) fn log_created(&self, about: MessageId, created: Vec<(MessageId, Envelope, u64)>) {
        for (id, envelope, size) in created {
            counter!("ppsw_bounces_total").increment(1);
            self.parts.log.arrival(&ArrivalEvent {
                id,
                envelope: &envelope,
                size,
                mechanism: None,
                certificate: None,
                about: Some(about),
                elapsed: Duration::ZERO,
                discarded: false,
            });
        }
    }

    pub(super) fn attempted<'a>(
        &'a self,
        message: &'a QueuedMessage,
        routing: &'a dyn Routing,
    ) -> Attempted<'a> {
        let (now, name) = (self.parts.clock.now(), self.parts.name.as_str());
        Attempted { message, routing, now, name }
    }

    /// One line for each address.
    pub(super) fn log(&self, attempted: &Attempted<'_>, results: &[Result]) {
        let (message, log) = (attempted.message, &self.parts.log);
        for result in results {
            let peer = result.host.as_ref().map(|h| (h.name.as_str(), h.address.to_string()));
            let event = AddressEvent {
                id: message.id,
                address: &result.address.rcpt.address,
                parents: &result.address.parents,
                sender: &message.envelope.sender,
                return_path: &result.address.return_path,
                router: &result.router,
                transport: &result.transport,
                host: peer.as_ref().map(|(name, address)| (*name, address.as_str())),
                cipher: &result.cipher,
                text: &result.text,
            };
            match result.verdict {
                Verdict::Delivered => log.delivered(
                    &event,
                    result.further,
                    message.size,
                    attempted.age(),
                    result.time,
                ),
                Verdict::Failed => {
                    log.failed(&event);
                    if message.envelope.sender.is_empty() {
                        log.bounce_dropped(message.id, attempted.age());
                    }
                }
                Verdict::Deferred { next_due } => log.deferred(&event, next_due),
            }
        }
    }

    /// The beginning of a message, for a report. What cannot be read is left out: a report without it is better than
    /// none.
    pub(super) async fn excerpt(
        &self,
        source: &dyn QueueSource,
        message: &QueuedMessage,
        routing: &dyn Routing,
    ) -> Excerpt {
        let limit = usize::try_from(routing.options().bounce_return_size_limit)
            .unwrap_or(usize::MAX)
            .min(BOUNCE_RETURN_BYTES_MAX);
        let mut excerpt =
            Excerpt { headers_only: message.envelope.return_headers_only, ..Excerpt::default() };
        let mut body = source.body(message);
        while excerpt.bytes.len() <= limit {
            match body.next().await {
                Ok(Some(chunk)) => {
                    let room = (limit + 1).saturating_sub(excerpt.bytes.len());
                    excerpt.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
                }
                Ok(None) => break,
                Err(error) => {
                    warn!(id = %message.id, "a report goes without its message: {error}");
                    break;
                }
            }
        }
        excerpt.cut = excerpt.bytes.len() > limit;
        excerpt.bytes.truncate(limit);
        if excerpt.headers_only
            && let Some(end) = excerpt.bytes.windows(4).position(|w| w == b"\r\n\r\n")
        {
            excerpt.bytes.truncate(end + 2);
        }
        excerpt
    }
}

/// What a leg comes to that was not to be begun any more.
fn fenced(leg: &Leg) -> LegResult {
    let sent = Sent {
        answer: Answer::Fenced,
        host: None,
        mx: None,
        time: Duration::ZERO,
        notifies: false,
        cipher: String::new(),
        output: String::new(),
    };
    LegResult::Sent(vec![sent; leg.addresses.len()])
}

/// What the log says of the messages that an outcome makes.
pub(super) fn created(outcome: &Outcome) -> Vec<(MessageId, Envelope, u64)> {
    let size = |bytes: &bytes::Bytes| bytes.len() as u64;
    outcome.creates.iter().map(|(id, envelope, b)| (*id, envelope.clone(), size(b))).collect()
}
