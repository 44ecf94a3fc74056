//! Callouts: asks the hosts that an address leads to whether they would take mail for it, without sending any.
//!
//! Call-forward for recipients, call-back for senders (the paper, sections 3.6 and 3.7). What was learnt is kept
//! (`cache`); a host is asked by few sessions at once, and a stranger's only so often (`turns`): whoever sends us forged
//! senders must not be able to aim our questions at a third party.

mod cache;
mod dialogue;
#[cfg(test)]
mod tests;
mod turns;

use std::{io, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use metrics::counter;
use ppsw_spool::env::Clock;
use tokio::time::{sleep, timeout};

use crate::{
    deliver::{
        connect::Connector,
        hosts::{Candidate, DownHosts, candidates},
        plan::is_sendable,
        pool::Pool,
        retry::Cause,
        session::{Line, Remote, Session, SessionError},
        transmit::quit_all,
    },
    limits::{
        CALLOUT_HOST_DOWN_TIME, CALLOUT_SAVE_PERIOD, CALLOUT_TIME, HOSTS_TRIED_MAX,
        IDLE_CONNECTION_TIME, MESSAGES_PER_CONNECTION_MAX,
    },
    route::Destination,
    trace::Tracer,
};
use cache::{Cache, Key};
use dialogue::{Envelope, Said};
use turns::Turns;

/// How a rule wants a callout to be made (`callout="…"`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalloutOptions {
    pub reverse_path: ReversePath,
    /// An answer that is not known now counts as yes.
    pub defer_ok: bool,
    /// What was learnt before is neither used nor added to.
    pub no_cache: bool,
    /// Asks for a local part that nobody has first: who takes that says nothing by taking others.
    pub random: bool,
    /// For each command.
    pub time: Duration,
    /// For a connection; `time` if not given.
    pub connect: Option<Duration>,
    /// For all hosts together; four times `time` if not given.
    pub maxwait: Option<Duration>,
}

/// Who asks: the reverse-path of the question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReversePath {
    /// `<>`.
    #[default]
    Null,
    /// The message's own sender.
    Sender,
    /// Our postmaster.
    Postmaster,
}

impl Default for CalloutOptions {
    fn default() -> Self {
        Self {
            reverse_path: ReversePath::Null,
            defer_ok: false,
            no_cache: false,
            random: false,
            time: CALLOUT_TIME,
            connect: None,
            maxwait: None,
        }
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// As routing left it.
    pub address: &'a str,
    /// Its hosts; without any, there is nobody to ask.
    pub destination: &'a Destination,
    /// Reverse-path of the question, empty for `<>`.
    pub reverse_path: &'a str,
    /// The address came from a stranger and is not one of those that we relay to.
    pub calls_back: bool,
    pub options: &'a CalloutOptions,
}

/// What is known of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    /// Refused for good, with what the host said.
    No(String),
    /// Not known now, and why.
    Later(String),
}

/// Who asks. Tests have their own.
#[async_trait]
pub trait Callouts: Send + Sync + 'static {
    /// Never longer than the question's `maxwait`.
    async fn ask(&self, question: Question<'_>) -> Answer;
}

/// Asks over SMTP.
pub struct Caller {
    connector: Arc<dyn Connector>,
    clock: Arc<dyn Clock>,
    /// Our name in EHLO.
    name: String,
    cache: Cache,
    turns: Turns,
    pool: Pool,
    down: DownHosts,
    tracer: Tracer,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Callouts for Caller {
    async fn ask(&self, question: Question<'_>) -> Answer {
        if question.destination.hosts.is_empty() {
            return Answer::Yes;
        }
        if !is_sendable(question.address) || !is_sendable(question.reverse_path) {
            return Answer::No("the address cannot be written in SMTP".to_owned());
        }
        let key = Key::new(question.address, question.reverse_path);
        if !question.options.no_cache
            && let Some(said) = self.cache.get(&key, self.clock.now())
        {
            let answer = said.answer(question.address);
            count(&answer, true);
            return answer;
        }
        let time = question.options.time;
        let maxwait = question.options.maxwait.unwrap_or(time * 4);
        let said = timeout(maxwait, self.ask_hosts(&question)).await.unwrap_or_else(|_| {
            let text = format!("no host answered a callout within {} s", maxwait.as_secs());
            Said::Later(text)
        });
        if !question.options.no_cache {
            self.cache.learn(&key, &said, self.clock.now());
        }
        let answer = said.answer(question.address);
        count(&answer, false);
        answer
    }
}

impl Caller {
    /// Begins with what the file at `path` says was known, if there is one that can be read.
    pub fn open(
        connector: Arc<dyn Connector>,
        clock: Arc<dyn Clock>,
        name: String,
        path: &Path,
    ) -> Self {
        let cache = Cache::default();
        match cache.load(path, clock.now()) {
            Ok(known) => tracing::debug!(known, "callouts of before are known"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error,
                "what callouts have learnt cannot be read; it is learnt anew"),
        }
        Self {
            name,
            cache,
            turns: Turns::new(Arc::clone(&clock)),
            pool: Pool::new(Arc::clone(&clock)),
            down: DownHosts::new(Arc::clone(&clock)),
            connector,
            clock,
            tracer: Tracer::default(),
        }
    }

    /// With who watches its sessions.
    #[must_use]
    pub fn watched(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    /// Ends idle sessions, and writes down now and then what is known, until the task is aborted.
    pub async fn upkeep(&self, path: &Path) {
        let mut since_saved = Duration::ZERO;
        loop {
            sleep(IDLE_CONNECTION_TIME).await;
            quit_all(self.pool.expired()).await;
            since_saved += IDLE_CONNECTION_TIME;
            if since_saved >= CALLOUT_SAVE_PERIOD {
                since_saved = Duration::ZERO;
                self.save(path).await;
            }
        }
    }

    /// Writes down what is known, beside the event loop. That it fails costs callouts after the next start.
    pub async fn save(&self, path: &Path) {
        let (cache, to, now) = (self.cache.clone(), path.to_owned(), self.clock.now());
        let saved = tokio::task::spawn_blocking(move || cache.save(&to, now)).await;
        if let Err(error) = saved.map_err(io::Error::other).flatten() {
            tracing::warn!(path = %path.display(), %error, "what callouts have learnt is not kept");
        }
    }

    /// Host after host, until one knows.
    async fn ask_hosts(&self, question: &Question<'_>) -> Said {
        let mut last = "no host could be reached".to_owned();
        let up = |host: &Candidate| self.down.is_down(host.address).is_none();
        let hosts = candidates(&question.destination.hosts);
        for host in hosts.into_iter().filter(up).take(HOSTS_TRIED_MAX) {
            match self.ask_host(question, &host).await {
                Said::Later(why) => last = why,
                said => return said,
            }
        }
        Said::Later(last)
    }

    async fn ask_host(&self, question: &Question<'_>, host: &Candidate) -> Said {
        let _turn = match self.turns.take(host.address.ip(), question.calls_back).await {
            Ok(turn) => turn,
            Err(why) => return Said::Later(format!("{}: {why}", host.name)),
        };
        let envelope = Envelope {
            reverse_path: question.reverse_path,
            address: question.address,
            random: question.options.random,
            time: question.options.time,
        };
        let line = Line::new(question.destination, host, None);
        if let Some(session) = self.pool.take(&line).await {
            // It may have been closed while it was idle: only an answer counts.
            if let Ok(said) = self.converse(session, &envelope).await {
                return said;
            }
        }
        let limit = question.options.connect.unwrap_or(question.options.time);
        let remote = Remote { line: &line, name: &host.name, tracer: &self.tracer };
        let open = Session::open(&*self.connector, remote, &self.name, limit);
        let opened = timeout(limit + question.options.time, open).await;
        match opened {
            Ok(Ok(session)) => {
                self.down.mark_up(host.address);
                let said = self.converse(session, &envelope).await;
                said.unwrap_or_else(|error| Said::Later(format!("{}: {error}", host.name)))
            }
            // A host that does not want to talk to us has said nothing of the address.
            Ok(Err(error @ SessionError::Refused { .. })) => {
                Said::Later(format!("{}: {error}", host.name))
            }
            Ok(Err(error)) => {
                self.down.mark_down_for(host.address, error.cause(), CALLOUT_HOST_DOWN_TIME);
                Said::Later(format!("{}: {error}", host.name))
            }
            Err(_) => {
                self.down.mark_down_for(host.address, Cause::Timeout, CALLOUT_HOST_DOWN_TIME);
                Said::Later(format!("{}: no greeting in time", host.name))
            }
        }
    }

    async fn converse(
        &self,
        mut session: Session,
        envelope: &Envelope<'_>,
    ) -> Result<Said, SessionError> {
        let said = dialogue::ask(&mut session, envelope).await?;
        if dialogue::reset(&mut session, envelope.time).await
            && let Some(surplus) = self.pool.put(session, MESSAGES_PER_CONNECTION_MAX)
        {
            surplus.quit().await;
        }
        Ok(said)
    }
}

fn count(answer: &Answer, cached: bool) {
    let result = match answer {
        Answer::Yes => "yes",
        Answer::No(_) => "no",
        Answer::Later(_) => "later",
    };
    let cached = if cached { "yes" } else { "no" };
    counter!("ppsw_callouts_total", "result" => result, "cached" => cached).increment(1);
}

impl Said {
    fn answer(self, address: &str) -> Answer {
        match self {
            Self::Yes | Self::Anything => Answer::Yes,
            Self::No(text) | Self::NotFrom(text) => {
                Answer::No(format!("Callout verification failed:\n{text}"))
            }
            Self::Later(why) => {
                Answer::Later(format!("Could not ask whether <{address}> takes mail: {why}"))
            }
        }
    }
}
