//! Around transactions: banner, HELO, STARTTLS, AUTH.

use ppsw_spool::env::UnixMs;
use tokio::time::sleep;

use super::{Hello, Session, State, names, refusal};
use crate::{
    limits::{AUTH_FAILURE_DELAY, AUTH_FAILURES_MAX},
    message::rfc5322_date,
    policy::{Service, Stage, Transaction},
    smtp::{
        Rejection,
        auth::{Credentials, EXTERNAL, Exchange, Step},
        client_name::verified_name,
        reply::{self, Reply},
        tls::Acceptor,
        wire::Lost,
    },
};

impl Session {
    /// TLS if the port begins with it, the rules for connections, and the banner.
    pub(super) async fn greet(&mut self) -> Result<State, Lost> {
        let front = self.front.clone();
        let client = self.connection.client.ip();
        self.connection.client_name = verified_name(&*front.around.dns, client).await;
        if self.tap.is_on() {
            let text = format!("connected to {}", self.connection.server);
            self.tap.note(names(&self.connection), &text);
        }
        if self.connection.service == Service::Submissions && self.connection.tls.is_none() {
            let Some(acceptor) = self.acceptor() else {
                tracing::warn!(name = self.personality.name, "no certificate for a TLS port");
                return Ok(State::Closed);
            };
            self.begin_tls(&acceptor).await?;
        }
        let decision = self.check(Stage::Connect, &Transaction::default()).await;
        if let Some(reply) = refusal(&decision.verdict, 554, 421) {
            self.note_rejection(&Rejection {
                stage: "connect",
                sender: None,
                recipient: None,
                reply: &reply,
            });
            return self.say(reply.closing(), State::Closed).await;
        }
        // Who talks before being greeted does not listen (the paper, "pump-and-dump"). Submission forgives it.
        let clear = self.connection.tls.is_none();
        if self.enforces_sync() && clear && self.wire.has_early_input() {
            let text = "SMTP synchronization error: wait for the greeting";
            let reply = Reply::new(554, reply::PROTOCOL, text).closing();
            return self.protocol_error(reply, State::Closed).await;
        }
        let mut banner = self.banner(front.clock.now());
        if let Some(more) = decision.banner {
            banner = format!("{banner}\n{more}");
        }
        self.greeted = true;
        self.say(Reply::plain(220, banner), State::Fresh).await
    }

    /// As the paper's `smtp_banner`: which machine, which personality.
    fn banner(&self, now: UnixMs) -> String {
        let server = self.connection.server;
        format!(
            "{} ({} [{}]:{}) ESMTP ppswitch {} {}",
            self.front.host_name,
            self.personality.name,
            server.ip(),
            server.port(),
            env!("CARGO_PKG_VERSION"),
            rfc5322_date(now)
        )
    }

    /// HELO or EHLO; ends a transaction (RFC 5321 §4.1.4).
    pub(super) async fn hello(&mut self, name: &str, hello: Hello) -> Result<State, Lost> {
        self.personality = self.policy().personality(self.connection.server.ip());
        self.connection.forget_message();
        let before = self.connection.helo.replace(name.to_owned());
        let decision = self.check(Stage::Helo, &Transaction::default()).await;
        if let Some(reply) = refusal(&decision.verdict, 550, 450) {
            self.note_rejection(&Rejection {
                stage: "helo",
                sender: None,
                recipient: None,
                reply: &reply,
            });
            let next = if before.is_some() { State::Ready } else { State::Fresh };
            self.connection.helo = before;
            return self.say(reply, next).await;
        }
        self.hello = hello;
        let text =
            format!("{} Hello {name} [{}]", self.front.host_name, self.connection.client.ip());
        let text = match hello {
            Hello::Helo => text,
            Hello::Ehlo => format!("{text}\n{}", self.extensions().join("\n")),
        };
        self.say(Reply::plain(250, text), State::Ready).await
    }

    fn extensions(&self) -> Vec<String> {
        let mut list = vec![format!("SIZE {}", self.personality.size_limit), "8BITMIME".into()];
        if self.offers_pipelining() {
            list.push("PIPELINING".into());
        }
        let always = ["CHUNKING", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"];
        list.extend(always.map(Into::into));
        if self.may_start_tls() {
            list.push("STARTTLS".into());
        }
        let mechanisms = self.mechanisms();
        if !mechanisms.is_empty() {
            list.push(format!("AUTH {}", mechanisms.join(" ")));
        }
        list.push("HELP".into());
        list
    }

    fn may_start_tls(&self) -> bool {
        self.connection.tls.is_none() && self.front.certificates.has(&self.personality.name)
    }

    /// What speaks TLS with this client, if this personality has a certificate.
    fn acceptor(&self) -> Option<Acceptor> {
        let connection = &self.connection;
        let (client, name) = (connection.client.ip(), connection.client_name.as_deref());
        let ask = self.policy().asks_certificate(client, name);
        self.front.certificates.acceptor(&self.personality.name, ask)
    }

    async fn begin_tls(&mut self, acceptor: &Acceptor) -> Result<(), Lost> {
        let negotiated = self.wire.start_tls(acceptor).await?;
        self.note(&format!("TLS: {}", negotiated.description));
        self.connection.tls = Some(negotiated.description);
        self.connection.certificate = negotiated.certificate;
        Ok(())
    }

    /// Passwords only over TLS; offered until used.
    fn mechanisms(&self) -> Vec<&'static str> {
        let mut list = Vec::new();
        if self.connection.authenticated.is_some() {
            return list;
        }
        if self.connection.tls.is_some() {
            list.extend(["PLAIN", "LOGIN"]);
        }
        if self.is_trusted() {
            list.push(EXTERNAL);
        }
        list
    }

    /// The client may say who its user is.
    pub(super) fn is_trusted(&self) -> bool {
        self.policy().is_mua(self.connection.client.ip())
    }

    /// STARTTLS (RFC 3207).
    pub(super) async fn starttls(&mut self, state: State) -> Result<State, Lost> {
        if self.connection.tls.is_some() {
            return self.out_of_sequence("TLS is already in use", state).await;
        }
        if !matches!(state, State::Ready | State::Fresh) {
            return self.out_of_sequence("STARTTLS is not allowed in a transaction", state).await;
        }
        let Some(acceptor) = self.acceptor() else {
            let text = "TLS is not available on this address";
            return self.protocol_error(Reply::new(502, reply::BAD_COMMAND, text), state).await;
        };
        if self.wire.has_buffered_input() {
            let text = "Nothing may follow STARTTLS before its reply";
            let reply = Reply::new(554, reply::PROTOCOL, text).closing();
            return self.protocol_error(reply, State::Closed).await;
        }
        let decision = self.check(Stage::Starttls, &Transaction::default()).await;
        if let Some(reply) = refusal(&decision.verdict, 554, 454) {
            return self.say(reply, state).await;
        }
        self.say(Reply::new(220, reply::OK, "Ready to start TLS"), State::Fresh).await?;
        self.begin_tls(&acceptor).await?;
        // What was said in clear may have been said by somebody else (RFC 3207 §4.2).
        self.connection.helo = None;
        self.connection.authenticated = None;
        self.mechanism = None;
        self.connection.forget_message();
        Ok(State::Fresh)
    }

    /// AUTH (RFC 4954).
    pub(super) async fn auth(
        &mut self,
        mechanism: &str,
        initial: Option<&str>,
        state: State,
    ) -> Result<State, Lost> {
        let trusted = self.is_trusted();
        let external = trusted && mechanism.eq_ignore_ascii_case(EXTERNAL);
        if self.connection.tls.is_none() && !external {
            let text = "Authentication needs TLS: use STARTTLS first";
            return self.protocol_error(Reply::new(538, reply::NEEDS_TLS, text), state).await;
        }
        match state {
            State::Ready => {}
            State::Fresh => return self.out_of_sequence("Say EHLO first", state).await,
            _ => return self.out_of_sequence("AUTH is not allowed in a transaction", state).await,
        }
        let (client, now) = (self.connection.client.ip(), self.front.clock.instant());
        // One that speaks for many users has many that mistype.
        if !trusted && self.front.activity.guessing.is_blocked(client, now) {
            metrics::counter!("ppsw_smtp_auth_blocked_total").increment(1);
            let text = "Too many failed authentications from your address, try again later";
            return self.say(Reply::new(454, reply::POLICY_LATER, text), state).await;
        }
        if self.connection.authenticated.is_some() {
            return self.out_of_sequence("Already authenticated", state).await;
        }
        let decision = self.check(Stage::Auth, &Transaction::default()).await;
        if let Some(reply) = refusal(&decision.verdict, 535, 454) {
            return self.say(reply, State::Ready).await;
        }
        self.auth_step(Exchange::begin(mechanism, initial, trusted)).await
    }

    /// Goes on with an exchange.
    pub(super) async fn auth_step(&mut self, step: Step) -> Result<State, Lost> {
        self.verb = "AUTH";
        match step {
            Step::Challenge(exchange, reply) => self.say(reply, State::Auth(exchange)).await,
            Step::Failed(reply) => self.protocol_error(reply, State::Ready).await,
            Step::Credentials(credentials) => self.authenticate(credentials).await,
            Step::Trusted(user) => self.authenticated(EXTERNAL, user).await,
        }
    }

    async fn authenticated(
        &mut self,
        mechanism: &'static str,
        user: String,
    ) -> Result<State, Lost> {
        self.connection.authenticated = Some(user);
        self.mechanism = Some(mechanism);
        let reply = Reply::new(235, reply::AUTH_OK, "Authentication succeeded");
        self.say(reply, State::Ready).await
    }

    async fn authenticate(&mut self, credentials: Credentials) -> Result<State, Lost> {
        let (mechanism, user) = (credentials.mechanism, credentials.user.clone());
        if credentials.verify(&self.front, self.policy()).await {
            return self.authenticated(mechanism, user).await;
        }
        self.front.events.authentication_failed(&self.peer(), mechanism, &user);
        metrics::counter!("ppsw_smtp_auth_failures_total").increment(1);
        self.tally.auth_failures += 1;
        let (client, now) = (self.connection.client.ip(), self.front.clock.instant());
        self.front.activity.guessing.failed(client, now);
        self.wire.flush().await?;
        sleep(AUTH_FAILURE_DELAY).await;
        let reply = if self.tally.auth_failures < AUTH_FAILURES_MAX {
            Reply::new(535, reply::BAD_CREDENTIALS, "Wrong user name or password")
        } else {
            Reply::new(421, reply::POLICY_LATER, "Too many failed authentications").closing()
        };
        self.say(reply, State::Ready).await
    }
}
