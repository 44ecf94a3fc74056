//! Brings one message to one destination: host after host until each recipient has an answer.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ppsw_spool::env::Clock;

use super::{
    connect::Connector,
    hosts::{Candidate, DownHosts, candidates},
    lanes::{Gate, HostPlace},
    pool::Pool,
    retry::{Cause, RetryRule, Trouble},
    seams::{BodySource, Fence},
    session::{Line, Remote, Session, SessionError},
    transaction::{self, Answer, Mail, Rcpt},
};
use crate::{
    limits::{CONNECT_TIMEOUT, HOSTS_TRIED_MAX},
    route::Destination,
    trace::Tracer,
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
    sources: Sources,
    tracer: Tracer,
}

/// Our own addresses for connections to other servers, by personality; `*` is any. Without one of the family of the
/// host's, the operating system chooses.
pub type Sources = Vec<(String, IpAddr)>;

/// The hosts to try, in order; and a place at the first of them that may be asked now, if there is one.
pub(crate) struct Hosts {
    candidates: Vec<Candidate>,
    place: Option<HostPlace>,
}

/// One transmission: what, to whom, and whether we still may.
pub(crate) struct Transmission<'a> {
    pub(crate) destination: &'a Destination,
    pub(crate) gate: Gate<'a>,
    /// Of the message.
    pub(crate) personality: &'a str,
    /// Says when a host is asked again that could not be reached, by what went wrong.
    pub(crate) retry: &'a (dyn Fn(Trouble) -> RetryRule + Send + Sync),
    pub(crate) mail: &'a Mail,
    pub(crate) recipients: &'a [Rcpt],
    /// Opens the message's bytes, anew for each host.
    pub(crate) body: &'a (dyn Fn() -> Box<dyn BodySource> + Send + Sync),
    pub(crate) fence: &'a dyn Fence,
}

impl Transmitter {
    pub(crate) fn new(
        connector: Arc<dyn Connector>,
        clock: Arc<dyn Clock>,
        name: String,
        sources: Sources,
    ) -> Self {
        let (pool, down) = (Pool::new(Arc::clone(&clock)), DownHosts::new(Arc::clone(&clock)));
        Self { connector, clock, name, pool, down, sources, tracer: Tracer::default() }
    }

    /// With who watches its sessions.
    pub(crate) fn watched(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    /// The hosts of a destination in an order for one transmission, when the first of them has a place for it.
    pub(crate) async fn hosts(&self, destination: &Destination, gate: Gate<'_>) -> Hosts {
        let candidates = candidates(&destination.hosts);
        let first = candidates.iter().find(|host| self.down.is_down(host.address).is_none());
        let place = match first {
            Some(host) => gate.enter(host.address).await,
            None => None,
        };
        Hosts { candidates, place }
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

    /// Tries the hosts. One answer for each recipient, in their order.
    pub(crate) async fn transmit(&self, what: &Transmission<'_>, hosts: Hosts) -> Vec<Sent> {
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
        let (mut tried, mut place) = (0, hosts.place);
        for candidate in hosts.candidates {
            let open: Vec<usize> = (0..sent.len()).filter(|i| sent[*i].is_open()).collect();
            if open.is_empty() || tried == HOSTS_TRIED_MAX {
                break;
            }
            if let Some((cause, left)) = self.down.is_down(candidate.address) {
                note_down(&mut sent, &candidate, cause, left);
                continue;
            }
            if place.as_ref().is_none_or(|place| place.address != candidate.address) {
                // What is held for the host before is given back before anything is waited for.
                drop(place.take());
                place = tokio::select! {
                    entered = what.gate.enter(candidate.address) => entered,
                    () = what.fence.broken() => None,
                };
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
        let line = Line::new(what.destination, candidate, self.source(what, candidate.address));
        if let Some(mut session) = self.pool.take(&line).await {
            let outcome = self.run(what, &mut session, &recipients).await;
            if !outcome.stale {
                return self.end(what, session, outcome).await;
            }
        }
        let opened = tokio::select! {
            opened = self.open(what, candidate, &line) => opened,
            () = what.fence.broken() => Err(SessionError::Fenced),
        };
        let answer = match opened {
            Ok(mut session) => {
                let outcome = self.run(what, &mut session, &recipients).await;
                return self.end(what, session, outcome).await;
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

    /// Our address for a connection.
    fn source(&self, what: &Transmission<'_>, to: SocketAddr) -> Option<IpAddr> {
        let fits = |(_, from): &&(String, IpAddr)| from.is_ipv4() == to.is_ipv4();
        let of = |name: &str| self.sources.iter().filter(fits).find(|(of, _)| of == name);
        of(what.personality).or_else(|| of("*")).map(|(_, from)| *from)
    }

    async fn end(
        &self,
        what: &Transmission<'_>,
        session: Session,
        outcome: transaction::Outcome,
    ) -> Heard {
        let (notifies, cipher) = (session.extensions.dsn, session.cipher.clone());
        let most = what.destination.client.connection_max_messages;
        if let Some(surplus) = outcome.reusable.then(|| self.pool.put(session, most)).flatten() {
            surplus.quit().await;
        }
        Heard { answers: outcome.answers, notifies, cipher }
    }

    async fn run(
        &self,
        what: &Transmission<'_>,
        session: &mut Session,
        recipients: &[Rcpt],
    ) -> transaction::Outcome {
        let mut body = (what.body)();
        let client = &what.destination.client;
        transaction::send(session, client, what.mail, recipients, body.as_mut(), what.fence).await
    }

    async fn open(
        &self,
        what: &Transmission<'_>,
        candidate: &Candidate,
        line: &Line,
    ) -> Result<Session, SessionError> {
        let remote = Remote { line, name: &candidate.name, tracer: &self.tracer };
        let opened = Session::open(&*self.connector, remote, &self.name, CONNECT_TIMEOUT).await;
        match &opened {
            Ok(_) => self.down.mark_up(candidate.address),
            // Busy is not down, and who has no TLS may do for others: a host that answers is asked again.
            Err(
                SessionError::Refused { .. }
                | SessionError::Tls(_)
                | SessionError::Auth(_)
                | SessionError::Fenced,
            ) => {}
            Err(error) => {
                let cause = error.cause();
                let rule = (what.retry)(Trouble { cause, mx: Some(candidate.mx) });
                self.down.mark_down(candidate.address, cause, &rule);
            }
        }
        opened
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

/// Whether nobody answered for the destination: it is down, or wants to be left alone. A `4xx` to a recipient is an answer.
pub(crate) fn is_unanswered(sent: &[Sent]) -> bool {
    let unanswered = |sent: &Sent| match &sent.answer {
        Answer::Deferred { cause, elsewhere: true, .. } => !matches!(cause, Cause::Reply { .. }),
        _ => false,
    };
    sent.iter().all(unanswered)
}

/// Says why a host was left out, and for how long it will be, where nothing better is known.
fn note_down(sent: &mut [Sent], candidate: &Candidate, cause: Cause, left: Duration) {
    for slot in sent.iter_mut().filter(|slot| slot.is_open() && slot.host.is_none()) {
        let text = format!(
            "retry time not reached for host {} [{}]: {cause}, asked again in {}",
            candidate.name,
            candidate.address.ip(),
            humantime::format_duration(Duration::from_secs(left.as_secs() + 1)),
        );
        slot.answer = Answer::Deferred { text, elsewhere: true, cause };
        slot.mx = Some(candidate.mx);
    }
}
