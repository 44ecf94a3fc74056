//! Idle sessions, kept a few seconds for the next message to the same address.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use ppsw_spool::env::Clock;

use super::session::{Line, Session};
use crate::limits::{IDLE_CONNECTION_TIME, IDLE_CONNECTIONS_MAX};

pub(crate) struct Pool {
    clock: Arc<dyn Clock>,
    /// Oldest first.
    idle: Mutex<VecDeque<(Instant, Session)>>,
}

impl Pool {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, idle: Mutex::default() }
    }

    /// The youngest idle session of this kind that is still good.
    pub(crate) async fn take(&self, line: &Line) -> Option<Session> {
        loop {
            let mut session = self.remove(line)?;
            if session.is_quiet().await {
                return Some(session);
            }
        }
    }

    /// Keeps a session that may carry up to `messages_max` messages, or gives back one that is to be ended instead.
    pub(crate) fn put(&self, session: Session, messages_max: u32) -> Option<Session> {
        if session.transactions >= messages_max {
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

    fn remove(&self, line: &Line) -> Option<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle.iter().rposition(|(_, session)| session.line == *line)?;
        idle.remove(found).map(|(_, session)| session)
    }
}
