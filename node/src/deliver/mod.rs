//! Delivery: takes due messages from the partitions that this node leads, routes and transmits them, and records
//! what happened.
//!
//! [`Deliverer`] takes messages (`schedule`); an `attempt` makes a `plan` (routing), waits for a place in each
//! destination's queue (`lanes`), brings the message to one of its hosts (`transmit`, `session`, `transaction`, `progress`),
//! makes one outcome of all answers (`result`), and records it (`record`). `operate` is what operators do with messages. What it needs of the rest of the node are
//! the traits in [`seams`].
//!
//! Promises: a message is in one attempt at a time; nothing is sent without the partition's lease, which is asked
//! again directly before the final dot, as is whether the recipients are still open; a message is not touched again before its outcome is recorded.

mod attempt;
pub mod connect;
mod dot;
pub(crate) mod hosts;
mod lanes;
mod operate;
mod pipe;
pub(crate) mod plan;
pub(crate) mod pool;
mod progress;
mod record;
pub(crate) mod reply;
mod result;
pub mod retry;
mod schedule;
pub mod seams;
pub(crate) mod session;
mod standing;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
pub(crate) mod transaction;
pub(crate) mod transmit;
mod user;

use std::sync::Arc;

use ppsw_spool::env::Clock;

pub(crate) use progress::totals;
pub use schedule::Deliverer;
pub use seams::ConfiguredRouter;
pub use standing::StandingOrders;
pub use transmit::Sources;

use crate::{load::Load, maillog::MailLog, trace::Tracer};

/// What a deliverer is made of.
#[derive(Clone)]
pub struct Parts {
    /// This machine's name: in EHLO, and in reports.
    pub name: String,
    pub queues: Arc<dyn seams::Queues>,
    pub router: Arc<dyn seams::Router>,
    pub connector: Arc<dyn connect::Connector>,
    pub forward: Arc<dyn seams::Forward>,
    pub clock: Arc<dyn Clock>,
    pub log: MailLog,
    pub programs: Programs,
    /// See [`Sources`].
    pub sources: Sources,
    pub load: Arc<Load>,
    pub orders: StandingOrders,
    /// Shows sessions to operators.
    pub tracer: Tracer,
}

/// What programs of this machine need to know of its node.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Messages are written here for them; files without a name.
    pub dir: std::path::PathBuf,
    /// Where they hand mail in.
    pub smtp: Option<std::net::SocketAddr>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("name", &self.name).finish_non_exhaustive()
    }
}
