//! Accepting connections.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::{FrontEnd, proxy, session};
use crate::{
    limits::{ACCEPT_BACK_OFF, PROXY_HEADER_TIMEOUT},
    net::{self, BindError},
    policy::Service,
};

/// One address on which we take connections.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    service: Service,
    /// Networks of the balancers whose PROXY header is expected here.
    balancers: Option<Vec<IpNet>>,
}

impl Listener {
    /// Opens the address. [`Service::Submissions`] speaks TLS from the first byte.
    pub fn open(address: SocketAddr, service: Service) -> Result<Self, BindError> {
        Ok(Self { socket: net::listen(address)?, service, balancers: None })
    }

    /// Every connection must come from `balancers` and begin with a PROXY header; its addresses count then.
    #[must_use]
    pub fn behind(self, balancers: Vec<IpNet>) -> Self {
        Self { balancers: Some(balancers), ..self }
    }

    /// Where it listens (the port is known when 0 was asked for).
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Takes connections until the future is dropped. Sessions go on without it: see [`super::Activity::finish`].
    pub async fn run(self, front: Arc<FrontEnd>) {
        loop {
            match self.socket.accept().await {
                Ok((stream, client)) => self.welcome(&front, stream, client),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept SMTP connections; trying again");
                    metrics::counter!("ppsw_smtp_accept_errors_total").increment(1);
                    sleep(ACCEPT_BACK_OFF).await;
                }
            }
        }
    }

    fn welcome(&self, front: &Arc<FrontEnd>, stream: TcpStream, client: SocketAddr) {
        // Gone already: nothing to serve.
        let Ok(server) = stream.local_addr() else { return };
        let connection = Connected { stream, client, server, service: self.service };
        match &self.balancers {
            None => connection.begin(front),
            Some(balancers) if contains(balancers, client.ip()) => connection.unwrap_proxy(front),
            Some(_) => {
                connection.turn_away(front, "bad_proxy", "421 4.7.0 Connect to the balancer\r\n");
            }
        }
    }
}

fn contains(nets: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    nets.iter().any(|net| net.contains(&address))
}

/// The client gave up before it was accepted; no reason to wait.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// A connection that has no session yet.
struct Connected {
    stream: TcpStream,
    client: SocketAddr,
    server: SocketAddr,
    service: Service,
}

impl Connected {
    /// Reads the balancer's header, then begins.
    fn unwrap_proxy(mut self, front: &Arc<FrontEnd>) {
        let Ok(permit) = Arc::clone(&front.activity.unnamed).try_acquire_owned() else {
            return self.turn_away(front, "full", "421 4.3.2 Too many connections\r\n");
        };
        let front = Arc::clone(front);
        front.activity.tasks.clone().spawn(async move {
            let header = timeout(PROXY_HEADER_TIMEOUT, proxy::read_header(&mut self.stream)).await;
            drop(permit);
            match header {
                Ok(Ok(addresses)) => {
                    if let Some(real) = addresses {
                        (self.client, self.server) = (real.client, real.server);
                    }
                    self.begin(&front);
                }
                Ok(Err(error)) => {
                    tracing::warn!(balancer = %self.client, %error, "connection without good PROXY header");
                    self.turn_away(&front, "bad_proxy", "421 4.7.0 PROXY header expected\r\n");
                }
                Err(_) => self.turn_away(&front, "bad_proxy", "421 4.7.0 PROXY header expected\r\n"),
            }
        });
    }

    /// Gives the client a session, if it may have one.
    fn begin(self, front: &Arc<FrontEnd>) {
        if front.activity.is_draining() {
            let text = "421 4.3.2 This host takes no mail now, try another\r\n";
            return self.turn_away(front, "draining", text);
        }
        let policy = front.rules.current();
        let client = self.client.ip();
        let relay = policy.is_relay_host(client);
        let ticket = match front.activity.admission.admit(client, relay, policy.options()) {
            Ok(ticket) => ticket,
            Err(refusal) => {
                let text = format!("421 4.7.0 {refusal}\r\n");
                return self.turn_away(front, refusal.label(), &text);
            }
        };
        let personality = policy.personality(self.server.ip().to_canonical());
        count(&personality.acl, "accepted");
        let _ = self.stream.set_nodelay(true);
        let task = session::serve(
            Arc::clone(front),
            Box::new(self.stream),
            session::Ends { client: self.client, server: self.server, service: self.service },
        );
        front.activity.tasks.spawn(async move {
            task.await;
            drop(ticket);
        });
    }

    fn turn_away(self, front: &FrontEnd, result: &'static str, text: &str) {
        let personality = front.rules.current().personality(self.server.ip().to_canonical());
        count(&personality.acl, result);
        front.events.connection_refused(self.client, self.server, text.trim_end());
        // Under TLS nothing can be said before the handshake.
        let clear = self.service != Service::Submissions;
        net::turn_away(self.stream, if clear { text.as_bytes() } else { b"" });
    }
}

fn count(personality: &str, result: &'static str) {
    metrics::counter!("ppsw_smtp_connections_total",
        "personality" => session::personality_label(personality), "result" => result)
    .increment(1);
}
