//! What this node would do, and why: `ppswctl route` and `ppswctl session`.
//!
//! A made-up session is a real one, with the same rules, tables, DNS and certificates, whose connection leads to an
//! operator and whose messages lead nowhere (`rehearsal`).

mod rehearsal;
mod wire;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ppsw_control::Rehearsal;
use ppsw_proto::control as pb;
use tokio::sync::{Semaphore, watch};

use crate::{
    limits::REHEARSALS_MAX,
    policy::{ClientCertificate, Configuration, Connection, Service},
    route::{self, About},
    smtp::FrontEnd,
};

/// Explains.
#[derive(Debug)]
pub struct Explainer {
    front: Arc<FrontEnd>,
    configuration: watch::Receiver<Arc<Configuration>>,
    places: Arc<Semaphore>,
}

impl Explainer {
    /// Explains what sessions of `front` do by this configuration.
    pub fn new(front: Arc<FrontEnd>, configuration: watch::Receiver<Arc<Configuration>>) -> Self {
        Self { front, configuration, places: Arc::new(Semaphore::new(REHEARSALS_MAX)) }
    }

    /// Where mail for an address would go.
    ///
    /// The answer says what is wrong with the address.
    pub async fn route(&self, request: &pb::RouteRequest) -> pb::RouteReply {
        let configuration = self.configuration.borrow().clone();
        let dns = &*self.front.around.dns;
        let about = About {
            id: request.message.parse().ok(),
            sender: &request.sender,
            personality: &request.personality,
        };
        let (targets, stops) =
            route::explain(&configuration, dns, &about, &request.address, request.verify).await;
        wire::route(targets, stops)
    }

    /// Begins a made-up session.
    ///
    /// # Errors
    /// What is wrong with the operator's wishes, or that there are too many sessions.
    pub fn rehearse(&self, open: &pb::SessionOpen) -> Result<Box<dyn Rehearsal>, String> {
        let connection = connection(open)?;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            format!("{REHEARSALS_MAX} made-up sessions run here already: try again later")
        })?;
        let configuration = self.configuration.borrow().clone();
        let rehearsal =
            rehearsal::begin(&self.front, configuration, connection, open.callouts, place);
        Ok(Box::new(rehearsal))
    }
}

/// The connection that an operator makes up.
fn connection(open: &pb::SessionOpen) -> Result<Connection, String> {
    let address = |what: &str, text: &str, port: u16| {
        let address = text.parse::<IpAddr>();
        let address = address.map(|address| SocketAddr::new(address.to_canonical(), port));
        address.map_err(|_| format!("--{what}: expected an IP address, not {text:?}"))
    };
    let (service, port) = match open.service.as_str() {
        "" | "smtp" => (Service::Smtp, 25),
        "submission" => (Service::Submission, 587),
        "submissions" => (Service::Submissions, 465),
        other => {
            return Err(format!("expected smtp, submission or submissions, not {other:?}"));
        }
    };
    // Nobody authenticates in clear; but the hosts that AUTH EXTERNAL is for, which can say so in the session.
    let tls = open.tls
        || !open.user.is_empty()
        || !open.certificate.is_empty()
        || service == Service::Submissions;
    let certificate = (!open.certificate.is_empty()).then(|| ClientCertificate {
        subject: format!("CN={}", open.certificate),
        names: vec![open.certificate.to_ascii_lowercase()],
        refused: None,
    });
    let client = address("client", &open.client, 0)?;
    let server = address("server", &open.server, port)?;
    Ok(Connection {
        authenticated: (!open.user.is_empty()).then(|| open.user.clone()),
        tls: tls.then(|| "assumed".to_owned()),
        certificate,
        ..Connection::new(client, server, service)
    })
}
