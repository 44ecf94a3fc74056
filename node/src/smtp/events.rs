//! What the log hears of sessions.

use std::{net::SocketAddr, time::Duration};

use ppsw_spool::queue::{Envelope, MessageId};

use super::reply::Reply;
use crate::policy::{Connection, Rewriting};

/// The other side of a session, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    pub connection: &'a Connection,
    /// Name of the personality's rules: `mx`, `smart`, `submit`, `local`.
    pub personality: &'a str,
}

/// A message that was accepted: Exim's `<=`.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub id: MessageId,
    pub envelope: &'a Envelope,
    /// Bytes, with the fields that we added.
    pub size: u64,
    /// SASL mechanism, if authenticated.
    pub mechanism: Option<&'a str>,
    /// From the first byte after `354` to the commit.
    pub elapsed: Duration,
    /// The rules said to throw it away: it is not in the queue.
    pub discarded: bool,
    /// Addresses that are others now, in envelope and header.
    pub rewritten: &'a [Rewriting],
}

/// A command or message that was refused.
#[derive(Clone, Copy, Debug)]
pub struct Rejection<'a> {
    /// `connect`, `helo`, `mail`, `rcpt`, `predata` or `data`.
    pub stage: &'static str,
    /// Reverse-path, if known.
    pub sender: Option<&'a str>,
    /// Forward-path, if the stage has one.
    pub recipient: Option<&'a str>,
    pub reply: &'a Reply,
}

/// One method per thing that happens; none may block.
pub trait Events: Send + Sync + 'static {
    fn arrival(&self, peer: &Peer<'_>, arrival: &Arrival<'_>);
    /// 4xx or 5xx by rule, limit or trouble.
    fn rejected(&self, peer: &Peer<'_>, rejection: &Rejection<'_>);
    fn authentication_failed(&self, peer: &Peer<'_>, mechanism: &str, user: &str);
    /// The client broke the protocol: the reply that it got.
    fn protocol_error(&self, peer: &Peer<'_>, reply: &Reply);
    /// The connection ended without QUIT. `in_transaction`: a message was under way and is lost here.
    fn connection_lost(&self, peer: &Peer<'_>, why: &str, in_transaction: bool);
    /// A connection was turned away before it had a session.
    fn connection_refused(&self, client: SocketAddr, server: SocketAddr, why: &str);
    /// A rule's `log` modifier.
    fn note(&self, peer: &Peer<'_>, text: &str);
}
