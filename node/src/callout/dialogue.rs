//! The question itself: MAIL, RCPT, RSET, and never DATA.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::deliver::{
    reply::Reply,
    session::{Session, SessionError},
};

/// What one host said. Also as it is kept: a change needs another version of the file (`cache`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Said {
    /// It takes the address.
    Yes,
    /// It takes any local part.
    Anything,
    /// It does not take the address.
    No(String),
    /// It takes nothing from this reverse-path.
    NotFrom(String),
    /// It does not say now.
    Later(String),
}

/// Whom to ask for, and as whom.
pub(super) struct Envelope<'a> {
    pub(super) reverse_path: &'a str,
    pub(super) address: &'a str,
    pub(super) random: bool,
    /// For each command.
    pub(super) time: Duration,
}

/// # Errors
/// The session is over, and has given no answer.
pub(super) async fn ask(
    session: &mut Session,
    envelope: &Envelope<'_>,
) -> Result<Said, SessionError> {
    session.transactions += 1;
    let time = envelope.time;
    let line = format!("MAIL FROM:<{}>\r\n", envelope.reverse_path);
    let reply = command(session, "MAIL", &line, time).await?;
    if !reply.is_positive() {
        let whole = format!("MAIL FROM:<{}> was refused: {}", envelope.reverse_path, reply.text());
        return Ok(if reply.is_permanent() { Said::NotFrom(whole) } else { Said::Later(whole) });
    }
    if envelope.random
        && let Some((_, domain)) = envelope.address.rsplit_once('@')
    {
        let nobody = format!("RCPT TO:<nobody-{:016x}@{domain}>\r\n", rand::random::<u64>());
        if command(session, "RCPT", &nobody, time).await?.is_positive() {
            return Ok(Said::Anything);
        }
    }
    let line = format!("RCPT TO:<{}>\r\n", envelope.address);
    let reply = command(session, "RCPT", &line, time).await?;
    Ok(if reply.is_positive() {
        Said::Yes
    } else if reply.is_permanent() {
        Said::No(reply.text())
    } else {
        Said::Later(reply.text())
    })
}

/// Takes the question back; whether the session can carry another one.
pub(super) async fn reset(session: &mut Session, time: Duration) -> bool {
    command(session, "RSET", "RSET\r\n", time).await.is_ok_and(|reply| reply.is_positive())
}

async fn command(
    session: &mut Session,
    stage: &'static str,
    line: &str,
    limit: Duration,
) -> Result<Reply, SessionError> {
    let reply = timeout(limit, session.command(stage, line)).await;
    reply.unwrap_or(Err(SessionError::Timeout { stage, limit }))
}
