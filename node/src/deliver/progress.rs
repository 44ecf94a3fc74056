//! What becomes known in the course of an attempt. What is delivered is recorded while other destinations of the message
//! keep the attempt waiting, so that a crash repeats no more than what was on its way.

use std::{
    future::pending,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use metrics::{counter, histogram};
use ppsw_proto::control as pb;
use ppsw_spool::{
    env::UnixMs,
    queue::{Outcome, QueuedMessage, Verdict},
};
use tokio::time::{Sleep, sleep};
use tracing::warn;

use super::{
    attempt::{Lease, LegResult, Workshop},
    plan::{Leg, Plan, Ruling},
    record::record,
    result::{Attempted, Early, Result, label},
    retry::Cause,
    seams::{QueueSource, Routing},
    transaction::Answer,
    transmit::Sent,
};
use crate::{
    limits::{DESTINATION_FULL_RETRY, OUTCOME_GATHER, OUTCOME_GATHER_MAX, OUTCOME_PAUSE_FACTOR},
    route::Protocol,
};

/// What is known of an attempt.
#[derive(Default)]
pub(super) struct Known {
    /// Not recorded yet.
    results: Vec<Result>,
    /// Legs (numbers) whose destination had no place.
    full: Vec<usize>,
    /// Legs that are under way.
    running: usize,
    early: Early,
    /// Something was decided by routing, or sent.
    tried: bool,
}

/// What an attempt waits for.
enum Step {
    /// A leg has ended.
    Ended(usize, LegResult),
    /// These have been recorded early, by this outcome; without one they could not be, and are left for the end.
    Recorded(Vec<Result>, Option<Outcome>),
}

impl Known {
    /// The destinations have enough to do, all of them.
    pub(super) fn nothing_was_tried(&self) -> bool {
        !self.tried && !self.full.is_empty()
    }

    /// What is left to record at the end, and what was recorded before.
    pub(super) fn end(mut self, plan: &Plan, now: UnixMs) -> (Vec<Result>, Early) {
        for number in self.full {
            if let Some(leg) = plan.legs.get(number) {
                full_results(now, leg, &mut self.results);
            }
        }
        (self.results, self.early)
    }

    fn ended(&mut self, attempted: &Attempted<'_>, plan: &Plan, number: usize, is: LegResult) {
        self.running -= 1;
        match (is, plan.legs.get(number)) {
            (LegResult::Sent(sent), Some(leg)) => {
                self.tried = true;
                sent_results(attempted, leg, sent, &mut self.results);
            }
            _ => self.full.push(number),
        }
    }

    /// Whether there is something to record before the end: only what nobody has to be told of. Failures wait for each
    /// other, for one bounce.
    fn has_early(&self, attempted: &Attempted<'_>) -> bool {
        self.running > 0 && self.results.iter().any(|result| is_early(attempted, result))
    }

    fn take_early(&mut self, attempted: &Attempted<'_>) -> Vec<Result> {
        let results = std::mem::take(&mut self.results);
        let (early, rest) = results.into_iter().partition(|result| is_early(attempted, result));
        self.results = rest;
        early
    }
}

impl Early {
    fn add(&mut self, outcome: Outcome) {
        for result in outcome.results {
            self.done.entry(result.recipient).or_default().insert(result.address);
        }
        self.finished.extend(outcome.finished);
    }
}

fn is_early(attempted: &Attempted<'_>, result: &Result) -> bool {
    result.verdict == Verdict::Delivered
        && attempted.reports(std::slice::from_ref(result)).is_empty()
}

impl Workshop {
    /// All legs of an attempt, at the same time.
    pub(super) async fn transmit(
        &self,
        source: &dyn QueueSource,
        message: &Arc<QueuedMessage>,
        routing: &dyn Routing,
        plan: &Plan,
        fence: Lease<'_>,
    ) -> Known {
        let decided = decided_results(&self.attempted(message, routing), plan);
        let (tried, running) = (!decided.is_empty(), plan.legs.len());
        let mut known = Known { results: decided, running, tried, ..Known::default() };
        let legs = plan.legs.iter().enumerate().map(|(number, leg)| {
            let leg = self.leg(source, message, routing, leg, fence);
            leg.map(move |result| Step::Ended(number, result)).boxed()
        });
        let mut steps: FuturesUnordered<BoxFuture<'_, Step>> = legs.collect();
        let mut gather: Option<Pin<Box<Sleep>>> = None;
        // Recording what has become known of a message costs as much as it has recipients: a list must not be busy with it.
        let (mut pause, mut recording) = (OUTCOME_GATHER, None);
        loop {
            let gathered = async {
                match &mut gather {
                    Some(gather) => gather.await,
                    None => pending().await,
                }
            };
            let step = tokio::select! {
                step = steps.next() => step,
                () = gathered => {
                    gather = None;
                    let attempted = self.attempted(message, routing);
                    if known.has_early(&attempted) {
                        recording = Some(self.parts.clock.instant());
                        let results = known.take_early(&attempted);
                        let outcome = attempted.outcome(plan, &results, &known.early);
                        steps.push(self.record_early(source, results, outcome).boxed());
                    }
                    continue;
                }
            };
            match step {
                None => return known,
                Some(Step::Ended(number, result)) => {
                    let attempted = self.attempted(message, routing);
                    known.ended(&attempted, plan, number, result);
                }
                Some(Step::Recorded(results, outcome)) => {
                    if let Some(since) = recording.take() {
                        let took = self.parts.clock.instant().saturating_duration_since(since);
                        pause =
                            (took * OUTCOME_PAUSE_FACTOR).clamp(OUTCOME_GATHER, OUTCOME_GATHER_MAX);
                    }
                    match outcome {
                        Some(outcome) => {
                            self.log(&self.attempted(message, routing), &results);
                            known.early.add(outcome);
                        }
                        None => known.results.extend(results),
                    }
                }
            }
            if gather.is_none() && recording.is_none() {
                let attempted = self.attempted(message, routing);
                if known.has_early(&attempted) {
                    gather = Some(Box::pin(sleep(pause)));
                }
            }
        }
    }

    async fn record_early(
        &self,
        source: &dyn QueueSource,
        results: Vec<Result>,
        outcome: Outcome,
    ) -> Step {
        let outcome = Outcome { goes_on: true, ..outcome };
        let recorded = record(source, &*self.parts.forward, outcome.clone()).await;
        if let Err(why) = &recorded {
            warn!(id = %outcome.message, "an early outcome could not be recorded: {}", why.0);
        }
        Step::Recorded(results, recorded.is_ok().then_some(outcome))
    }
}

/// What routing itself decided.
fn decided_results(attempted: &Attempted<'_>, plan: &Plan) -> Vec<Result> {
    let mut out = Vec::new();
    for decided in &plan.decided {
        let text = decided.text.clone();
        let answer = match decided.ruling {
            Ruling::Failed => Answer::Failed(text),
            Ruling::Deferred => Answer::Deferred { text, elsewhere: false, cause: Cause::Other },
            Ruling::Suspended { until } => Answer::Suspended { text, until },
        };
        let Some((verdict, text)) = attempted.judge(&decided.address.rcpt.address, answer, None)
        else {
            continue;
        };
        count(&verdict, "none");
        out.push(Result::without_host(decided.address.clone(), verdict, text));
    }
    out
}

fn sent_results(attempted: &Attempted<'_>, leg: &Leg, sent: Vec<Sent>, out: &mut Vec<Result>) {
    let mut further = false;
    for (address, sent) in leg.addresses.iter().zip(sent) {
        let Some((verdict, text)) = attempted.judge(&address.rcpt.address, sent.answer, sent.mx)
        else {
            continue;
        };
        let transport = match leg.destination.protocol {
            Protocol::Smtp => "smtp",
            Protocol::Lmtp => "lmtp",
            Protocol::Pipe => "pipe",
        };
        count(&verdict, transport);
        if sent.host.is_some() || leg.destination.protocol == Protocol::Pipe {
            histogram!("ppsw_delivery_seconds", "transport" => transport)
                .record(sent.time.as_secs_f64());
        }
        let delivered = verdict == Verdict::Delivered;
        out.push(Result {
            address: address.clone(),
            verdict,
            text,
            router: leg.destination.router.clone(),
            transport: leg.destination.transport.clone(),
            host: sent.host,
            time: sent.time,
            further: delivered && further,
            relayed: !sent.notifies,
            cipher: sent.cipher,
            output: sent.output,
        });
        further |= delivered;
    }
}

/// Other addresses of the message were tried, these were not: again soon, without counting as a failure of theirs.
fn full_results(now: UnixMs, leg: &Leg, out: &mut Vec<Result>) {
    for address in &leg.addresses {
        let verdict = Verdict::Deferred { next_due: now.plus(DESTINATION_FULL_RETRY) };
        let text = "many messages wait for this destination".to_owned();
        out.push(Result {
            router: leg.destination.router.clone(),
            transport: leg.destination.transport.clone(),
            ..Result::without_host(address.clone(), verdict, text)
        });
    }
}

/// Attempts of this process by their result: what the counter below says, for those who ask the node itself.
static TOTALS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Results of all attempts since this process was started.
pub(crate) fn totals() -> pb::Totals {
    let [delivered, deferred, failed] =
        TOTALS.each_ref().map(|total| total.load(Ordering::Relaxed));
    pb::Totals { delivered, deferred, failed, ..pb::Totals::default() }
}

fn count(verdict: &Verdict, transport: &'static str) {
    let place = match verdict {
        Verdict::Delivered => 0,
        Verdict::Deferred { .. } => 1,
        Verdict::Failed => 2,
    };
    TOTALS[place].fetch_add(1, Ordering::Relaxed);
    counter!(
        "ppsw_delivery_attempts_total",
        "result" => label(verdict),
        "transport" => transport
    )
    .increment(1);
}
