//! Idle sessions, kept a few seconds for the next message to the same address.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use ppsw_spool::env::Clock;

use super::session::Session;
use crate::{
    limits::{IDLE_CONNECTION_TIME, IDLE_CONNECTIONS_MAX, MESSAGES_PER_CONNECTION_MAX},
    route::{Protocol, Tls},
};

pub(crate) struct Pool {
    clock: Arc<dyn Clock>,
    /// Oldest first.
    idle: Mutex<VecDeque<(Instant, Session)>>,
}

impl Pool {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, idle: Mutex::default() }
    }

    /// The youngest idle session with this address that is still good.
    pub(crate) async fn take(
        &self,
        peer: SocketAddr,
        protocol: Protocol,
        tls: Tls,
    ) -> Option<Session> {
        loop {
            let mut session = self.remove(peer, protocol, tls)?;
            if session.is_quiet().await {
                return Some(session);
            }
        }
    }

    /// Keeps a session, or gives back one that is to be ended instead.
    pub(crate) fn put(&self, session: Session) -> Option<Session> {
        if session.transactions >= MESSAGES_PER_CONNECTION_MAX {
            return Some(session);
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push_back((self.clock.instant(), session));
        if idle.len() > IDLE_CONNECTIONS_MAX {
            return idle.pop_front().map(|(_, session)| session);
        }
        None
    }

    /// Removes sessions that have been idle for long enough; the caller ends them.
    pub(crate) fn expired(&self) -> Vec<Session> {
        let now = self.clock.instant();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = Vec::new();
        while idle
            .front()
            .is_some_and(|(since, _)| now.saturating_duration_since(*since) > IDLE_CONNECTION_TIME)
        {
            out.extend(idle.pop_front().map(|(_, session)| session));
        }
        out
    }

    /// Removes all sessions; the caller ends them.
    pub(crate) fn drain(&self) -> Vec<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.drain(..).map(|(_, session)| session).collect()
    }

    fn remove(&self, peer: SocketAddr, protocol: Protocol, tls: Tls) -> Option<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |s: &Session| s.peer == peer && s.protocol == protocol && s.tls == tls;
        let found = idle.iter().rposition(|(_, session)| fits(session))?;
        idle.remove(found).map(|(_, session)| session)
    }
}
