//! The closed vocabulary of the mail log. `docs/logs.md` explains each event and field.

use ppsw_spool::{env::UnixMs, queue::Envelope};
use serde::Serialize;

/// One thing that happened, owned, as it goes to the writer.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) time: UnixMs,
    pub(super) event: Event,
}

/// A line of `events.jsonl`.
#[derive(Debug, Serialize)]
pub(super) struct JsonLine<'a> {
    /// RFC 3339 with milliseconds.
    pub(super) time: &'a str,
    /// The node that writes.
    pub(super) node: u64,
    #[serde(flatten)]
    pub(super) event: &'a Event,
}

/// What happened. The tag is the JSON member `event`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// `<=`
    Arrival(Arrival),
    /// An address of a message that arrives is another now.
    Rewriting { id: String, old: String, place: String, new: String, rule: usize },
    /// `=>`, or `->` for a further address of the same transaction.
    Delivery(Delivery),
    /// `**`
    Failure(Attempt),
    /// `==`
    Deferral(Attempt),
    /// `Completed`
    Completion { id: String, queue_seconds: f64 },
    /// A bounce could not be delivered and was given up.
    BounceDropped { id: String, age_seconds: f64 },
    /// An operator did something with a message that waits.
    Operator(Operator),
    /// What an attempt did could not be recorded: duplicates are possible.
    OutcomeLost { id: String, text: String },
    /// A command, message or connection was refused.
    Rejection(Rejection),
    /// A wrong password.
    AuthenticationFailure { peer: Client, mechanism: String, user: String },
    /// The client broke the protocol.
    ProtocolError { peer: Client, text: String },
    /// The connection ended without QUIT.
    ConnectionLost { peer: Client, text: String, in_transaction: bool },
    /// A connection was turned away before it had a session.
    ConnectionRefused { client: String, server: String, text: String },
    /// A rule's `log` modifier.
    Note { peer: Client, text: String },
    /// The writer was too slow for this many events.
    Lost { count: u64 },
}

/// The other side of a session. Empty: not known.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Client {
    /// Address and port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client: String,
    /// Verified reverse name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub helo: String,
    /// Our address and port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub personality: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tls: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub authenticated: String,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Arrival {
    pub(super) id: String,
    pub(super) sender: String,
    pub(super) recipients: Vec<String>,
    pub(super) size: u64,
    #[serde(flatten)]
    pub(super) peer: Client,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) mechanism: String,
    /// Subject of the client's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate_verified: Option<bool>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message_id: String,
    /// The message that this one reports about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) about: Option<String>,
    pub(super) receive_seconds: f64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) discarded: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Delivery {
    #[serde(flatten)]
    pub(super) attempt: Attempt,
    /// Not the first address of its transaction.
    pub(super) further: bool,
    pub(super) size: u64,
    pub(super) queue_seconds: f64,
    pub(super) delivery_seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Attempt {
    pub(super) id: String,
    pub(super) address: String,
    /// From the recipient on, what led to the address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) parents: Vec<String>,
    pub(super) sender: String,
    pub(super) return_path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) router: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) transport: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) host: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) host_address: String,
    /// Version and cipher.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) tls: String,
    /// Reply of the host, or our reason.
    pub(super) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_due: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Operator {
    pub(super) id: String,
    /// `retried`, `held`, `released`, `bounced`, `dropped` or `redirected`.
    pub(super) verb: &'static str,
    /// Name of the operator's certificate.
    pub(super) by: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
    /// Recipients, if it is not about the whole message; the first of very many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) addresses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Rejection {
    #[serde(flatten)]
    pub(super) peer: Client,
    pub(super) stage: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sender: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recipient: Option<String>,
    /// Our reply.
    pub(super) text: String,
    pub(super) permanent: bool,
}

impl Client {
    /// The client of a message that is here.
    pub(super) fn of(envelope: &Envelope) -> Self {
        let origin = &envelope.origin;
        Self {
            client: origin.client.clone(),
            client_name: origin.client_name.clone(),
            helo: origin.helo.clone(),
            server: origin.server.clone(),
            personality: origin.personality.clone(),
            protocol: origin.protocol.clone(),
            tls: origin.tls.clone(),
            authenticated: origin.authenticated.clone(),
        }
    }
}
