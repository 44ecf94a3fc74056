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

use super::{FrontEnd, admission::Refusal, proxy, session};
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
        let busy = policy.options().smtp_load_reserve.is_some_and(|most| {
            // Read only where the policy asks for it.
            front.around.facts.load().is_some_and(|load| load > most)
        });
        let acl = policy.personality(self.server.ip().to_canonical()).acl;
        // Our own hosts would only keep their mail, and be as many tomorrow.
        let shed =
            !relay && front.shed_percent(&acl, policy.options()) > rand::random_range(0..100);
        let admitted = if busy && !relay {
            Err(Refusal::Busy)
        } else if shed {
            Err(Refusal::Shed)
        } else {
            front.activity.admission.admit(client, relay, policy.options())
        };
        let ticket = match admitted {
            Ok(ticket) => ticket,
            Err(refusal) => {
                let text = format!("421 4.7.0 {refusal}\r\n");
                return self.turn_away(front, refusal.label(), &text);
            }
        };
        count(&acl, "accepted");
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{
        policy::{Options, Stage, Verdict},
        smtp::session::testing::{Bench, TestPolicy, decision, options, personality},
    };

    async fn start(bench: &Bench, balancers: Option<Vec<IpNet>>) -> SocketAddr {
        let listener = Listener::open("127.0.0.1:0".parse().unwrap(), Service::Smtp).unwrap();
        let listener = match balancers {
            Some(nets) => listener.behind(nets),
            None => listener,
        };
        let address = listener.local_address().unwrap();
        tokio::spawn(listener.run(Arc::clone(&bench.front)));
        address
    }

    #[allow(clippy::disallowed_methods, reason = "a test is a client")]
    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.unwrap()
    }

    /// Everything until the server closes or a second has passed.
    async fn heard(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let _ = timeout(Duration::from_secs(1), stream.read_to_end(&mut bytes)).await;
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_hear_why() {
        let bench = Bench::of(TestPolicy {
            personality: personality("mx"),
            options: Options { smtp_accept_max_per_relay_host: 3, ..options() },
            rule: Box::new(|_, _, _| decision(Verdict::Accept)),
        });
        let address = start(&bench, None).await;
        let mut kept = Vec::new();
        for _ in 0..3 {
            let mut stream = connect(address).await;
            assert_eq!(stream.read_u8().await.unwrap(), b'2');
            kept.push(stream);
        }
        let refused = heard(&mut connect(address).await).await;
        assert!(refused.starts_with("421 4.7.0 Too many connections from your host"), "{refused}");
        assert_eq!(bench.front.activity.sessions(), 3);
        drop(kept);
        assert!(bench.front.activity.finish(Duration::from_secs(5)).await);
        assert_eq!(bench.front.activity.sessions(), 0);
        assert!(heard(&mut connect(address).await).await.starts_with("421 4.3.2"));
    }

    #[tokio::test]
    async fn who_talks_first_is_sent_away() {
        let bench = Bench::with("mx", |_, _, _| {
            let mut decision = decision(Verdict::Accept);
            decision.delay = Duration::from_millis(100);
            decision
        });
        let mut stream = connect(start(&bench, None).await).await;
        stream.write_all(b"EHLO early\r\n").await.unwrap();
        assert!(heard(&mut stream).await.starts_with("554 5.5.0"));
    }

    #[tokio::test]
    async fn who_talks_during_a_delay_is_sent_away() {
        let bench = Bench::with("mx", |stage, _, _| {
            let mut decision = decision(Verdict::Accept);
            if stage == Stage::Helo {
                decision.delay = Duration::from_millis(200);
            }
            decision
        });
        let mut stream = connect(start(&bench, None).await).await;
        let mut banner = [0; 4];
        stream.read_exact(&mut banner).await.unwrap();
        stream.write_all(b"EHLO pump\r\n").await.unwrap();
        sleep(Duration::from_millis(50)).await;
        stream.write_all(b"MAIL FROM:<a@x.org>\r\n").await.unwrap();
        let heard = heard(&mut stream).await;
        assert!(
            heard.contains("\n554 5.5.0 SMTP synchronization") && !heard.contains("250"),
            "{heard}"
        );
    }

    #[tokio::test]
    async fn a_balancer_tells_whom_it_brings() {
        let bench = Bench::new("mx");
        let address = start(&bench, Some(vec!["127.0.0.0/8".parse().unwrap()])).await;
        let mut stream = connect(address).await;
        stream.write_all(b"PROXY TCP4 192.0.2.9 192.0.2.1 4000 25\r\n").await.unwrap();
        assert!(heard(&mut stream).await.contains("(mx.example [192.0.2.1]:25)"));
        let mut stream = connect(address).await;
        stream.write_all(b"EHLO x\r\n").await.unwrap();
        assert!(heard(&mut stream).await.starts_with("421 4.7.0 PROXY"));
        let address = start(&bench, Some(vec!["10.0.0.0/8".parse().unwrap()])).await;
        assert!(heard(&mut connect(address).await).await.starts_with("421 4.7.0 Connect"));
    }

    #[test]
    fn an_address_that_cannot_be_had_is_named() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let first = Listener::open("127.0.0.1:0".parse().unwrap(), Service::Smtp).unwrap();
        let address = first.local_address().unwrap();
        let error = Listener::open(address, Service::Smtp).unwrap_err().to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("another process"),
            "{error}"
        );
    }
}
