//! What the SMTP front end tells the log.

use std::net::SocketAddr;

use super::{ArrivalEvent, Client, MailLog, RejectionEvent};
use crate::{
    limits::REWRITE_LOG_LINES_MAX,
    smtp::{Arrival, Events, Peer, Rejection, reply::Reply},
};

impl Events for MailLog {
    fn arrival(&self, peer: &Peer<'_>, arrival: &Arrival<'_>) {
        for rewriting in arrival.rewritten.iter().take(REWRITE_LOG_LINES_MAX) {
            self.rewritten(arrival.id, rewriting);
        }
        self.arrival(&ArrivalEvent {
            id: arrival.id,
            envelope: arrival.envelope,
            size: arrival.size,
            mechanism: arrival.mechanism,
            certificate: peer.connection.certificate.as_ref(),
            about: None,
            elapsed: arrival.elapsed,
            discarded: arrival.discarded,
        });
    }

    fn rejected(&self, peer: &Peer<'_>, rejection: &Rejection<'_>) {
        self.rejected(RejectionEvent {
            peer: client(peer),
            stage: rejection.stage,
            sender: rejection.sender,
            recipient: rejection.recipient,
            text: &rejection.reply.summary(),
            permanent: rejection.reply.code() >= 500,
        });
    }

    fn authentication_failed(&self, peer: &Peer<'_>, mechanism: &str, user: &str) {
        self.authentication_failed(client(peer), mechanism, user);
    }

    fn protocol_error(&self, peer: &Peer<'_>, reply: &Reply) {
        self.protocol_error(client(peer), &reply.summary());
    }

    fn connection_lost(&self, peer: &Peer<'_>, why: &str, in_transaction: bool) {
        self.connection_lost(client(peer), why, in_transaction);
    }

    fn connection_refused(&self, client: SocketAddr, server: SocketAddr, why: &str) {
        self.connection_refused(&client.to_string(), &server.to_string(), why);
    }

    fn note(&self, peer: &Peer<'_>, text: &str) {
        self.note(client(peer), text);
    }
}

fn client(peer: &Peer<'_>) -> Client {
    let connection = peer.connection;
    Client {
        client: connection.client.to_string(),
        client_name: connection.client_name.clone().unwrap_or_default(),
        helo: connection.helo.clone().unwrap_or_default(),
        server: connection.server.to_string(),
        personality: peer.personality.to_owned(),
        protocol: String::new(),
        tls: connection.tls.clone().unwrap_or_default(),
        authenticated: connection.authenticated.clone().unwrap_or_default(),
    }
}
