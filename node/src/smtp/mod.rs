//! The SMTP front end: takes connections, speaks SMTP, asks the rules, and streams messages into the spool.
//!
//! [`Listener`] accepts and limits connections; each becomes a session: an enum state machine (`session`) over a
//! `wire` that buffers lines and replies. What the session needs of the rest of the node comes through four
//! traits, so that it is tested without them: [`Rules`] and [`Policy`] (decisions), [`Intake`] (the spool),
//! [`Events`] (the log), and [`Dns`].

mod address;
mod admission;
mod auth;
mod client_certificate;
mod client_name;
mod command;
mod content;
mod counts;
mod data;
mod events;
mod guessing;
mod intake;
mod line;
mod listener;
mod password;
mod pressure;
mod proxy;
pub mod reply;
mod rules;
mod session;
pub(crate) mod tls;
mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ppsw_proto::control as pb;
use ppsw_spool::env::Clock;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::task::TaskTracker;

pub(crate) use address::mailbox_fault;
pub(crate) use command::chunk_size;
pub use data::{ContentReader, LineEnds};
pub use events::{Arrival, Events, Peer, Rejection};
pub use intake::{Incoming, Intake};
pub use listener::Listener;
pub use rules::{Policy, Rules};
pub(crate) use session::serve_from;
pub use tls::{Certificates, TlsError};
pub use wire::Transport;

use admission::Admission;

use counts::ReplyCounts;
use guessing::Guessing;
use pressure::{Level, Pressure};

use crate::{
    limits::{AUTH_CONCURRENT_MAX, PROXY_HEADERS_PENDING_MAX},
    policy::{Options, Surroundings},
    trace::Tracer,
};

/// What all sessions of a node share.
pub struct FrontEnd {
    /// This machine's own name: first word of the banner (RFC 5321 §4.2).
    pub host_name: String,
    pub rules: Arc<dyn Rules>,
    /// Whom rules may ask.
    pub around: Surroundings,
    pub intake: Arc<dyn Intake>,
    pub events: Arc<dyn Events>,
    pub certificates: Certificates,
    pub clock: Arc<dyn Clock>,
    /// Sessions, transactions and drain of this node.
    pub activity: Activity,
    /// Shows sessions to operators.
    pub tracer: Tracer,
}

impl FrontEnd {
    /// How many of a hundred new sessions of a personality are to be turned away: by `ppswctl shed`, or by what there is to do here.
    fn shed_percent(&self, personality: &str, options: &Options) -> u8 {
        let level = self.pressure(options);
        level.percent(personality).max(self.around.facts.shed_percent(personality))
    }

    fn pressure(&self, options: &Options) -> Level {
        let (now, sessions) = (self.clock.instant(), self.activity.sessions());
        self.activity.pressure.level(now, options, &*self.around.facts, sessions)
    }

    /// What this node turns away by itself, for those who look; `None`: nothing.
    pub fn shedding(&self) -> Option<pb::Shedding> {
        self.pressure(self.rules.current().options()).report()
    }
}

impl std::fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontEnd").field("host_name", &self.host_name).finish_non_exhaustive()
    }
}

/// Counts what runs, and ends it politely.
#[derive(Debug)]
pub struct Activity {
    transactions: AtomicUsize,
    draining: watch::Sender<bool>,
    /// Bounds the CPU that password checks take.
    hashing: Semaphore,
    guessing: Guessing,
    /// Bounds the connections of balancers that have not said yet whom they bring.
    unnamed: Arc<Semaphore>,
    admission: Arc<Admission>,
    pressure: Pressure,
    replies: ReplyCounts,
    tasks: TaskTracker,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            transactions: AtomicUsize::new(0),
            draining: watch::Sender::new(false),
            hashing: Semaphore::new(AUTH_CONCURRENT_MAX),
            guessing: Guessing::default(),
            unnamed: Arc::new(Semaphore::new(PROXY_HEADERS_PENDING_MAX)),
            admission: Arc::default(),
            pressure: Pressure::default(),
            replies: ReplyCounts::default(),
            tasks: TaskTracker::new(),
        }
    }
}

impl Activity {
    /// With `true`: new connections hear `421 4.3.2`; sessions between two messages too, others after their message.
    pub fn drain(&self, draining: bool) {
        self.draining.send_replace(draining);
    }

    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Transactions that have begun (MAIL was accepted) and not ended. A drain waits until there are none.
    pub fn open_transactions(&self) -> usize {
        self.transactions.load(Ordering::Acquire)
    }

    /// Sessions that have a place.
    pub fn sessions(&self) -> usize {
        self.admission.sessions()
    }

    /// Drains, and waits up to `patience` for the sessions to end. True if all did.
    pub async fn finish(&self, patience: Duration) -> bool {
        self.drain(true);
        self.tasks.close();
        timeout(patience, self.tasks.wait()).await.is_ok()
    }
}

/// One open transaction in [`Activity`], for as long as it lives.
#[derive(Debug)]
struct OpenTransaction(Arc<FrontEnd>);

impl OpenTransaction {
    fn new(front: &Arc<FrontEnd>) -> Self {
        front.activity.transactions.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(front))
    }
}

impl Drop for OpenTransaction {
    fn drop(&mut self) {
        self.0.activity.transactions.fetch_sub(1, Ordering::AcqRel);
    }
}
