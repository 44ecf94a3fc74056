//! Brings one message to one destination: host after host until each recipient has an answer.

use std::{sync::Arc, time::Duration};

use ppsw_spool::env::Clock;

use super::{
    connect::Connector,
    hosts::{Candidate, DownHosts, candidates},
    pool::Pool,
    seams::{BodySource, Fence},
    session::{Session, SessionError},
    transaction::{self, Answer, Mail, Rcpt},
};
use crate::{
    limits::{CONNECT_TIMEOUT, HOSTS_TRIED_MAX},
    route::Destination,
};

/// What one recipient got, and from whom.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) answer: Answer,
    /// The host that gave the answer; `None` if there was none to ask.
    pub(crate) host: Option<Candidate>,
    /// From the connection to the answer.
    pub(crate) time: Duration,
    /// The host was told of the recipient's `NOTIFY` and reports success itself.
    pub(crate) notifies: bool,
    /// What a program wrote, if it is to be returned.
    pub(crate) output: String,
}

pub(crate) struct Transmitter {
    connector: Arc<dyn Connector>,
    clock: Arc<dyn Clock>,
    /// Our name in EHLO.
    name: String,
    pool: Pool,
    down: DownHosts,
}

/// One transmission: what, to whom, and whether we still may.
pub(crate) struct Transmission<'a> {
    pub(crate) destination: &'a Destination,
    pub(crate) mail: &'a Mail,
    pub(crate) recipients: &'a [Rcpt],
    /// Opens the message's bytes, anew for each host.
    pub(crate) body: &'a (dyn Fn() -> Box<dyn BodySource> + Send + Sync),
    pub(crate) fence: &'a dyn Fence,
}

impl Transmitter {
    pub(crate) fn new(connector: Arc<dyn Connector>, clock: Arc<dyn Clock>, name: String) -> Self {
        let (pool, down) = (Pool::new(Arc::clone(&clock)), DownHosts::new(Arc::clone(&clock)));
        Self { connector, clock, name, pool, down }
    }

    /// Hosts that could not be reached a moment ago may be asked again.
    pub(crate) fn forget_hosts(&self) {
        self.down.forget();
    }

    /// Takes out sessions that have been idle for long; the caller ends them.
    pub(crate) fn expired(&self) -> Vec<Session> {
        self.pool.expired()
    }

    /// Takes out all idle sessions; the caller ends them.
    pub(crate) fn idle(&self) -> Vec<Session> {
        self.pool.drain()
    }

    /// Tries the destination's hosts. One answer for each recipient, in their order.
    pub(crate) async fn transmit(&self, what: &Transmission<'_>) -> Vec<Sent> {
        let begin = self.clock.instant();
        let nobody = "no host to deliver to".to_owned();
        let untried = Sent {
            answer: Answer::Deferred { text: nobody, elsewhere: true },
            host: None,
            time: Duration::ZERO,
            notifies: false,
            output: String::new(),
        };
        let mut sent = vec![untried; what.recipients.len()];
        let mut tried = 0;
        for candidate in candidates(&what.destination.hosts) {
            let open: Vec<usize> = (0..sent.len()).filter(|i| sent[*i].is_open()).collect();
            if open.is_empty() || tried == HOSTS_TRIED_MAX {
                break;
            }
            if self.down.is_down(candidate.address) {
                note_down(&mut sent, &candidate);
                continue;
            }
            tried += 1;
            let (answers, notifies) = self.try_host(what, &candidate, &open).await;
            let time = self.clock.instant().saturating_duration_since(begin);
            for (index, answer) in open.into_iter().zip(answers) {
                let (host, output) = (Some(candidate.clone()), String::new());
                sent[index] = Sent { answer, host, time, notifies, output };
            }
        }
        sent
    }

    /// One host, for the recipients at the indexes `open`: their answers, and whether the host sends notifications.
    async fn try_host(
        &self,
        what: &Transmission<'_>,
        candidate: &Candidate,
        open: &[usize],
    ) -> (Vec<Answer>, bool) {
        let recipients: Vec<Rcpt> = open.iter().map(|i| what.recipients[*i].clone()).collect();
        if let Some(mut session) =
            self.pool.take(candidate.address, what.destination.protocol).await
        {
            let outcome = self.run(what, &mut session, &recipients).await;
            if !outcome.stale {
                let notifies = session.extensions.dsn;
                self.keep(session, outcome.reusable).await;
                return (outcome.answers, notifies);
            }
        }
        let opened = tokio::select! {
            opened = self.open(what, candidate) => opened,
            () = what.fence.broken() => Err(SessionError::Fenced),
        };
        let mut session = match opened {
            Ok(session) => session,
            Err(SessionError::Fenced) => return (vec![Answer::Fenced; recipients.len()], false),
            Err(error) => {
                let answer = Answer::Deferred { text: error.to_string(), elsewhere: true };
                return (vec![answer; recipients.len()], false);
            }
        };
        let outcome = self.run(what, &mut session, &recipients).await;
        let notifies = session.extensions.dsn;
        self.keep(session, outcome.reusable).await;
        (outcome.answers, notifies)
    }

    async fn run(
        &self,
        what: &Transmission<'_>,
        session: &mut Session,
        recipients: &[Rcpt],
    ) -> transaction::Outcome {
        let mut body = (what.body)();
        transaction::send(session, what.mail, recipients, body.as_mut(), what.fence).await
    }

    async fn open(
        &self,
        what: &Transmission<'_>,
        candidate: &Candidate,
    ) -> Result<Session, SessionError> {
        let protocol = what.destination.protocol;
        let opened = Session::open(
            &*self.connector,
            candidate.address,
            protocol,
            &self.name,
            CONNECT_TIMEOUT,
        )
        .await;
        match &opened {
            Ok(_) => self.down.mark_up(candidate.address),
            // Busy is not down: a host that answers is asked again.
            Err(SessionError::Refused { .. } | SessionError::Fenced) => {}
            Err(_) => self.down.mark_down(candidate.address),
        }
        opened
    }

    async fn keep(&self, session: Session, reusable: bool) {
        if reusable && let Some(surplus) = self.pool.put(session) {
            surplus.quit().await;
        }
    }
}

/// Ends sessions politely.
pub(crate) async fn quit_all(sessions: Vec<Session>) {
    futures::future::join_all(sessions.into_iter().map(Session::quit)).await;
}

impl Sent {
    /// Another host may be asked.
    fn is_open(&self) -> bool {
        matches!(self.answer, Answer::Deferred { elsewhere: true, .. })
    }
}

/// Says why a host was left out, where nothing better is known.
fn note_down(sent: &mut [Sent], candidate: &Candidate) {
    for slot in sent.iter_mut().filter(|slot| slot.is_open() && slot.host.is_none()) {
        let text = format!(
            "host {} [{}] could not be reached a moment ago",
            candidate.name,
            candidate.address.ip()
        );
        slot.answer = Answer::Deferred { text, elsewhere: true };
    }
}
