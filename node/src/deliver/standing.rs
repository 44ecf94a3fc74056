//! Rules that operators have left for messages that come to delivery: what is done with a message in place of an attempt, and
//! which destinations wait.

use std::{
    collections::BTreeSet,
    sync::{Arc, MutexGuard, PoisonError},
};

use futures::{StreamExt as _, stream};
use ppsw_control::{Order, Orders, Suspension, Verb};
use ppsw_spool::{
    env::UnixMs,
    queue::{MessageId, QueuedMessage},
};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    Deliverer,
    attempt::{Ended, Workshop},
    operate::done,
    plan::{Decided, Plan, Ruling},
    seams::QueueSource,
};
use crate::limits::{OPERATE_PATIENCE, RESUMED_AT_ONCE, STANDING_POLL};

/// Gives the rules of the moment.
pub type StandingOrders = Arc<dyn Fn() -> Arc<Orders> + Send + Sync>;

impl Workshop {
    /// Does what a rule wants with a message, which nobody else has. `None`: no rule is about it.
    pub(super) async fn obey(
        &self,
        source: &dyn QueueSource,
        message: &Arc<QueuedMessage>,
    ) -> Option<Ended> {
        let order = (self.parts.orders)().about(message, self.parts.clock.now())?;
        let Order { rule, mut wanted, recipients } = order;
        if wanted.verb == Verb::Bounce && message.envelope.sender.is_empty() {
            // Nobody could be told.
            wanted.verb = Verb::Drop;
        }
        let result = match &wanted.verb {
            Verb::Redirect { to } => self.redirect(source, message, &recipients, to, &wanted).await,
            Verb::Bounce | Verb::Drop => self.give_up(source, message, &recipients, &wanted).await,
            Verb::Hold => {
                let held = done(source.hold(message.id, OPERATE_PATIENCE).await);
                if held.is_ok() {
                    self.log_operator(message, &recipients, &wanted);
                }
                held
            }
            // Of a newer program.
            Verb::Retry | Verb::Release => return None,
        };
        match result {
            Ok(()) => Some(Ended::Done),
            Err(why) => {
                warn!(id = %message.id, rule, "a standing rule could not be followed: {why}");
                Some(Ended::Postponed)
            }
        }
    }

    /// Rules by which something waits.
    fn suspended_by(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.suspended_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what goes to a suspended destination out of a plan.
    pub(super) fn suspend(&self, plan: &mut Plan) {
        let (orders, now) = ((self.parts.orders)(), self.parts.clock.now());
        if orders.suspending(now).is_empty() {
            return;
        }
        let Plan { legs, decided, .. } = plan;
        legs.retain_mut(|leg| {
            let hosts = &leg.destination.hosts;
            let addresses = std::mem::take(&mut leg.addresses);
            for address in addresses {
                let domain = address.rcpt.address.rsplit_once('@').map_or("", |(_, domain)| domain);
                let names = hosts.iter().map(|host| host.name.as_str());
                match orders.suspended(domain, names, now) {
                    Some(Suspension { rule, text, until }) => {
                        self.suspended_by().insert(rule);
                        decided.push(Decided {
                            address,
                            text,
                            ruling: Ruling::Suspended { until },
                        });
                    }
                    None => leg.addresses.push(address),
                }
            }
            !leg.addresses.is_empty()
        });
    }
}

impl Deliverer {
    /// Sees to it that mail goes out soon after its destination is not suspended any more, until the task is aborted.
    pub(super) async fn follow_suspensions(&self) {
        let workshop = self.shared.workshop();
        loop {
            sleep(STANDING_POLL).await;
            let now = workshop.parts.clock.now();
            let suspending = (workshop.parts.orders)().suspending(now);
            let ended: Vec<u64> =
                workshop.suspended_by().extract_if(.., |rule| !suspending.contains(rule)).collect();
            for rule in ended {
                self.resume(rule, now).await;
            }
        }
    }

    /// Makes due what a rule has kept.
    async fn resume(&self, rule: u64, now: UnixMs) {
        let mut count = 0;
        for source in self.shared.workshop().parts.queues.partitions() {
            if !source.may_deliver() {
                continue;
            }
            let looked = Arc::clone(&source);
            // A long queue takes a while to look through.
            let kept = tokio::task::spawn_blocking(move || {
                looked.find(&|message| {
                    let mut open = message.recipients.iter().filter(|attempt| attempt.is_open());
                    open.any(|attempt| Suspension::is_by(rule, &attempt.last_error))
                })
            });
            let kept: Vec<MessageId> = kept.await.unwrap_or_default();
            count += kept.len();
            // One entry of the log each: they share its syncs.
            let release = async |id| {
                if let Err(why) = done(source.release_queued(id, now, OPERATE_PATIENCE).await) {
                    info!(%id, rule, "not due at once after a suspension: {why}");
                }
            };
            stream::iter(kept).for_each_concurrent(RESUMED_AT_ONCE, release).await;
        }
        info!(rule, count, "a suspension has ended");
    }
}
