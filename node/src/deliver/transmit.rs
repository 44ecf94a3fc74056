//! Brings one message to one destination: host after host until each recipient has an answer.

use std::{sync::Arc, time::Duration};

use ppsw_spool::env::Clock;

use super::{
    connect::Connector,
    hosts::{Candidate, DownHosts, candidates},
    pool::Pool,
    retry::Cause,
    seams::{BodySource, Fence},
    session::{Remote, Session, SessionError},
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
    /// Whether the host that could not be asked comes from an MX record.
    pub(crate) mx: Option<bool>,
    /// From the connection to the answer.
    pub(crate) time: Duration,
    /// The host was told of the recipient's `NOTIFY` and reports success itself.
    pub(crate) notifies: bool,
    /// Version and cipher of TLS; empty without.
    pub(crate) cipher: String,
    /// What a program wrote, if it is to be returned.
    pub(crate) output: String,
}

/// What one host said.
struct Heard {
    /// One for each recipient.
    answers: Vec<Answer>,
    /// The host sends notifications.
    notifies: bool,
    /// Version and cipher of TLS; empty without.
    cipher: String,
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
            answer: Answer::Deferred { text: nobody, elsewhere: true, cause: Cause::Other },
            host: None,
            mx: None,
            time: Duration::ZERO,
            notifies: false,
            cipher: String::new(),
            output: String::new(),
        };
        let mut sent = vec![untried; what.recipients.len()];
        let mut tried = 0;
        for candidate in candidates(&what.destination.hosts) {
            let open: Vec<usize> = (0..sent.len()).filter(|i| sent[*i].is_open()).collect();
            if open.is_empty() || tried == HOSTS_TRIED_MAX {
                break;
            }
            if let Some(cause) = self.down.is_down(candidate.address) {
                note_down(&mut sent, &candidate, cause);
                continue;
            }
            tried += 1;
            let Heard { answers, notifies, cipher } = self.try_host(what, &candidate, &open).await;
            let time = self.clock.instant().saturating_duration_since(begin);
            for (index, answer) in open.into_iter().zip(answers) {
                let (host, output) = (Some(candidate.clone()), String::new());
                let cipher = cipher.clone();
                let mx = Some(candidate.mx);
                sent[index] = Sent { answer, host, mx, time, notifies, cipher, output };
            }
        }
        sent
    }

    /// One host, for the recipients at the indexes `open`.
    async fn try_host(
        &self,
        what: &Transmission<'_>,
        candidate: &Candidate,
        open: &[usize],
    ) -> Heard {
        let recipients: Vec<Rcpt> = open.iter().map(|i| what.recipients[*i].clone()).collect();
        let Destination { protocol, tls, .. } = *what.destination;
        if let Some(mut session) = self.pool.take(candidate.address, protocol, tls).await {
            let outcome = self.run(what, &mut session, &recipients).await;
            if !outcome.stale {
                return self.end(session, outcome).await;
            }
        }
        let opened = tokio::select! {
            opened = self.open(what, candidate) => opened,
            () = what.fence.broken() => Err(SessionError::Fenced),
        };
        let answer = match opened {
            Ok(mut session) => {
                let outcome = self.run(what, &mut session, &recipients).await;
                return self.end(session, outcome).await;
            }
            Err(SessionError::Fenced) => Answer::Fenced,
            Err(error) => {
                let cause = error.cause();
                Answer::Deferred { text: error.to_string(), elsewhere: true, cause }
            }
        };
        let answers = vec![answer; recipients.len()];
        Heard { answers, notifies: false, cipher: String::new() }
    }

    async fn end(&self, session: Session, outcome: transaction::Outcome) -> Heard {
        let (notifies, cipher) = (session.extensions.dsn, session.cipher.clone());
        self.keep(session, outcome.reusable).await;
        Heard { answers: outcome.answers, notifies, cipher }
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
        let remote = Remote {
            address: candidate.address,
            name: &candidate.name,
            protocol: what.destination.protocol,
            tls: what.destination.tls,
        };
        let opened = Session::open(&*self.connector, remote, &self.name, CONNECT_TIMEOUT).await;
        match &opened {
            Ok(_) => self.down.mark_up(candidate.address),
            // Busy is not down, and who has no TLS may do for others: a host that answers is asked again.
            Err(SessionError::Refused { .. } | SessionError::Tls(_) | SessionError::Fenced) => {}
            Err(error) => self.down.mark_down(candidate.address, error.cause()),
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
fn note_down(sent: &mut [Sent], candidate: &Candidate, cause: Cause) {
    for slot in sent.iter_mut().filter(|slot| slot.is_open() && slot.host.is_none()) {
        let text = format!(
            "host {} [{}] could not be reached a moment ago",
            candidate.name,
            candidate.address.ip()
        );
        slot.answer = Answer::Deferred { text, elsewhere: true, cause };
        slot.mx = Some(candidate.mx);
    }
}
