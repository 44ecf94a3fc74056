//! One session: a state machine over a [`Wire`].
//!
//! `greeting` has what happens around transactions (banner, HELO, STARTTLS, AUTH), `envelope` MAIL and RCPT,
//! `receive` DATA and BDAT. Here are the states, the loop, and what all of them use.

mod envelope;
mod greeting;
mod receive;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use tokio::time::{sleep, timeout};
use zeroize::Zeroize;

use self::{envelope::Mail, receive::Receiving};
use super::{
    FrontEnd, Peer, Policy, Rejection, Transport,
    auth::Exchange,
    command::{self, Command, CommandError},
    line::Line,
    reply::{self, Reply},
    wire::{Lost, Wire},
};
use crate::{
    limits::{
        RULES_DEADLINE, RULES_DELAY_MAX, SESSION_ERRORS_MAX, SESSION_IDLE_COMMANDS_MAX,
        SESSION_TIME_MAX,
    },
    policy::{Connection, Decision, Personality, Service, Stage, Transaction, Verdict},
    trace::{Direction, Names, Tap},
};

/// Both ends of a connection, and the kind of its port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    pub(super) service: Service,
}

/// Where a session stands.
enum State {
    /// The banner was sent. No HELO yet, or TLS has just begun and it is asked for again (RFC 3207 §4.2).
    Fresh,
    /// HELO or EHLO was accepted. No transaction.
    Ready,
    /// AUTH asked for a response, which is the next line.
    Auth(Exchange),
    /// MAIL was accepted; recipients are collected.
    Envelope(Box<Mail>),
    /// `354` was said; content arrives until the final dot.
    Data(Box<Receiving>),
    /// BDAT brought content; its last chunk has not come.
    Chunks(Box<Receiving>),
    /// The last reply was given.
    Closed,
}

/// How the client said hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hello {
    /// Basic SMTP: no extensions.
    Helo,
    Ehlo,
}

/// What is counted against the limits of a session.
#[derive(Debug, Default)]
struct Tally {
    errors: u32,
    idle_commands: u32,
    refused_recipients: u32,
    auth_failures: u32,
    messages: u32,
}

/// One session.
struct Session {
    front: Arc<FrontEnd>,
    wire: Wire,
    tap: Tap,
    connection: Connection,
    /// The client's address and ours, as each envelope has them.
    ends: [String; 2],
    personality: Personality,
    hello: Hello,
    /// A rule said not to offer PIPELINING.
    pipelining_off: bool,
    /// A rule said not to look whether the client waits for our replies.
    sync_off: bool,
    /// The client must wait for the reply to the current command.
    waits: bool,
    /// The banner was sent.
    greeted: bool,
    /// QUIT was said.
    quit: bool,
    /// SASL mechanism that authenticated the client.
    mechanism: Option<&'static str>,
    tally: Tally,
    /// Verb of the current command: a metric label.
    verb: &'static str,
}

/// Serves one client until its session ends.
pub(super) async fn serve(front: Arc<FrontEnd>, stream: Box<dyn Transport>, ends: Ends) {
    let server = SocketAddr::new(ends.server.ip().to_canonical(), ends.server.port());
    let client = SocketAddr::new(ends.client.ip().to_canonical(), ends.client.port());
    serve_from(front, stream, Connection::new(client, server, ends.service)).await;
}

/// Serves a client of whom something is known already: it may have authenticated, or use TLS.
pub(crate) async fn serve_from(
    front: Arc<FrontEnd>,
    stream: Box<dyn Transport>,
    connection: Connection,
) {
    let personality = front.rules.current().personality(connection.server.ip());
    let mut session = Session {
        tap: Tap::new(front.tracer.clone(), Direction::In, connection.client.ip()),
        front,
        wire: Wire::new(stream),
        ends: [connection.client, connection.server].map(|end| end.to_string()),
        connection,
        personality,
        hello: Hello::Helo,
        pipelining_off: false,
        sync_off: false,
        waits: false,
        greeted: false,
        quit: false,
        mechanism: None,
        tally: Tally::default(),
        verb: "connect",
    };
    match timeout(SESSION_TIME_MAX, session.run()).await {
        Ok(()) => {}
        Err(_) => {
            let reply = Reply::new(421, reply::TIMED_OUT, "Session has lasted too long").closing();
            let _ = session.say(reply, State::Closed).await;
        }
    }
    session.note("closed");
    if session.wire.flush().await.is_ok() {
        session.wire.close().await;
    }
}

/// The personality as a metric label: one of the closed set of the design, whatever the tables say.
pub(super) fn personality_label(acl: &str) -> &'static str {
    ["mx", "smart", "submit", "local"].into_iter().find(|l| *l == acl).unwrap_or("other")
}

impl Session {
    async fn run(&mut self) {
        let mut state = match self.greet().await {
            Ok(state) => state,
            Err(lost) => return self.lost(&lost, false).await,
        };
        while !matches!(state, State::Closed) {
            let in_transaction =
                matches!(state, State::Envelope(_) | State::Data(_) | State::Chunks(_));
            state = match self.step(state).await {
                Ok(state) => state,
                Err(lost) => return self.lost(&lost, in_transaction).await,
            };
            if in_transaction && matches!(state, State::Ready | State::Fresh) {
                self.connection.forget_message();
            }
        }
        if self.greeted && !self.quit {
            self.check(Stage::NotQuit, &Transaction::default()).await;
        }
    }

    async fn step(&mut self, state: State) -> Result<State, Lost> {
        match state {
            State::Data(receiving) => self.data(receiving).await,
            State::Auth(exchange) => {
                let strict = self.is_strict();
                let mut line = match self.wire.line(strict).await? {
                    Line::Whole(line) => line,
                    Line::TooLong => {
                        let reply = Reply::new(500, reply::AUTH_LINE, "Response is too long");
                        return self.protocol_error(reply, State::Ready).await;
                    }
                    other => return self.bad_line(&other, State::Ready).await,
                };
                if self.tap.is_on() {
                    self.tap.heard_secret(names(&self.connection));
                }
                let next = self.auth_step(exchange.respond(&line)).await;
                line.zeroize();
                next
            }
            State::Fresh | State::Ready => {
                let strict = self.is_strict();
                let mut draining = self.front.activity.draining.subscribe();
                let drained = async move { draining.wait_for(|d| *d).await.is_ok() };
                let line = tokio::select! {
                    biased;
                    _ = drained => {
                        let text = "This host takes no more mail now, try another";
                        let reply = Reply::new(421, reply::NOT_ACCEPTING, text).closing();
                        return self.say(reply, State::Closed).await;
                    }
                    line = self.wire.line(strict) => line?,
                };
                self.line(line, state).await
            }
            State::Envelope(_) | State::Chunks(_) => {
                let strict = self.is_strict();
                let line = self.wire.line(strict).await?;
                self.line(line, state).await
            }
            State::Closed => Ok(State::Closed),
        }
    }

    async fn line(&mut self, line: Line, state: State) -> Result<State, Lost> {
        let Line::Whole(mut line) = line else { return self.bad_line(&line, state).await };
        if self.tap.is_on() {
            self.tap.heard(names(&self.connection), &line);
        }
        self.verb = command::verb(&line);
        self.tally.idle_commands += 1;
        if self.tally.idle_commands > SESSION_IDLE_COMMANDS_MAX {
            let reply = Reply::new(421, reply::POLICY_LATER, "Too many commands without a message");
            return self.say(reply.closing(), State::Closed).await;
        }
        let next = match command::parse(&line) {
            Ok(command) => {
                self.waits = self.must_wait(&command);
                let next = self.command(command, state).await;
                self.waits = false;
                next
            }
            Err(error) => self.bad_command(&error, state).await,
        };
        if self.verb == "AUTH" {
            line.zeroize();
        }
        next
    }

    async fn command(&mut self, command: Command<'_>, state: State) -> Result<State, Lost> {
        match command {
            Command::Ehlo(name) => self.hello(name, Hello::Ehlo).await,
            Command::Helo(name) => self.hello(name, Hello::Helo).await,
            Command::StartTls => self.starttls(state).await,
            Command::Auth { mechanism, initial } => self.auth(mechanism, initial, state).await,
            Command::Mail { sender, parameters } => self.mail(sender, parameters, state).await,
            Command::Rcpt { recipient, parameters } => {
                self.rcpt(recipient, parameters, state).await
            }
            Command::Data => self.begin_data(state).await,
            Command::Bdat { size, last } => self.bdat(size, last, state).await,
            Command::Rset => {
                let next = match state {
                    State::Chunks(mut receiving) => {
                        receiving.abort().await;
                        State::Ready
                    }
                    State::Fresh => State::Fresh,
                    _ => State::Ready,
                };
                self.connection.forget_message();
                self.say(Reply::new(250, reply::OK, "Reset"), next).await
            }
            Command::Noop => self.say(Reply::new(250, reply::OK, "OK"), state).await,
            Command::Vrfy => {
                // RFC 5321 §7.3: sites that don't want to be asked answer 252.
                let text = "Cannot verify, but will take a message and attempt delivery";
                self.say(Reply::new(252, reply::OK, text), state).await
            }
            Command::Help => {
                let text = "Commands: AUTH BDAT DATA EHLO HELO HELP MAIL NOOP QUIT RCPT RSET \
                            STARTTLS VRFY\nWrite to postmaster for help from people";
                self.say(Reply::new(214, reply::OK, text), state).await
            }
            Command::Quit => {
                self.quit = true;
                self.check(Stage::Quit, &Transaction::default()).await;
                let text = format!("{} closing connection", self.front.host_name);
                self.say(Reply::new(221, reply::OK, text).closing(), State::Closed).await
            }
        }
    }

    /// A line that is no command in form.
    async fn bad_line(&mut self, line: &Line, state: State) -> Result<State, Lost> {
        self.verb = "other";
        let reply = match line {
            Line::BareLineEnd => {
                let text = "Command has a bare CR or LF; lines must end with CRLF";
                Reply::new(550, reply::BARE_LINE_END, text)
            }
            Line::Tls => {
                let text = "This port does not begin with TLS; use STARTTLS";
                Reply::new(500, reply::BAD_COMMAND, text).closing()
            }
            Line::TooLong | Line::Whole(_) => Reply::new(500, reply::SYNTAX, "Line is too long"),
        };
        self.protocol_error(reply, state).await
    }

    async fn bad_command(&mut self, error: &CommandError, state: State) -> Result<State, Lost> {
        self.protocol_error(error.reply(), state).await
    }

    /// The client broke the protocol: it hears so, a limited number of times.
    async fn protocol_error(&mut self, reply: Reply, state: State) -> Result<State, Lost> {
        self.tally.errors += 1;
        self.front.events.protocol_error(&self.peer(), &reply);
        let next = self.say(reply, state).await?;
        if matches!(next, State::Closed) || self.tally.errors <= SESSION_ERRORS_MAX {
            return Ok(next);
        }
        let reply = Reply::new(421, reply::POLICY_LATER, "Too many errors").closing();
        self.say(reply, State::Closed).await
    }

    /// A command at the wrong time (RFC 5321 §4.1.4).
    async fn out_of_sequence(&mut self, text: &'static str, state: State) -> Result<State, Lost> {
        self.protocol_error(Reply::new(503, reply::BAD_COMMAND, text), state).await
    }

    /// Gives a reply and goes on to `next`, or to the end if the reply closes the session.
    async fn say(&mut self, reply: Reply, next: State) -> Result<State, Lost> {
        // Looked for after the rules: whoever talks on during their delays is caught, too.
        let early = self.waits && self.enforces_sync() && self.wire.has_early_input();
        let reply = if early && !reply.closes() {
            let text = "SMTP synchronization error: wait for the reply to each command";
            let reply = Reply::new(554, reply::PROTOCOL, text).closing();
            self.front.events.protocol_error(&self.peer(), &reply);
            reply
        } else {
            reply
        };
        self.front.activity.replies.count(self.verb, reply.class());
        self.show(&reply);
        self.wire.send(&reply).await?;
        Ok(if reply.closes() { State::Closed } else { next })
    }

    /// Runs the rules of a stage, and does what they ask besides the verdict.
    async fn check(&mut self, stage: Stage, transaction: &Transaction) -> Decision {
        let policy = self.front.rules.current();
        let front = &self.front;
        let check = policy.check(stage, &mut self.connection, transaction, &front.around);
        let decision = timeout(RULES_DEADLINE, check).await.unwrap_or_else(|_| Decision {
            verdict: Verdict::Defer("Checks take too long, try again later".into()),
            log: vec![format!("rules of {stage:?} took too long")],
            ..Decision::default()
        });
        self.pipelining_off |= decision.pipelining_off;
        self.sync_off |= decision.enforce_sync_off;
        for line in &decision.log {
            self.front.events.note(&self.peer(), line);
        }
        if !decision.delay.is_zero() && stage != Stage::NotQuit {
            // What was answered before must not wait with this one.
            if self.wire.flush().await.is_ok() {
                sleep(decision.delay.min(RULES_DELAY_MAX)).await;
            }
        }
        decision
    }

    /// Tells log and metrics of a refusal.
    fn note_rejection(&self, rejection: &Rejection<'_>) {
        metrics::counter!("ppsw_smtp_rejects_total", "stage" => rejection.stage).increment(1);
        self.front.events.rejected(&self.peer(), rejection);
    }

    /// Input has ended where it should not.
    async fn lost(&mut self, lost: &Lost, in_transaction: bool) {
        if self.greeted {
            self.check(Stage::NotQuit, &Transaction::default()).await;
        }
        self.front.events.connection_lost(&self.peer(), &lost.to_string(), in_transaction);
        self.tap.end_of_content(names(&self.connection));
        self.note(&lost.to_string());
        if let Lost::TimedOut = lost {
            let text = "Nothing heard for too long, closing connection";
            let reply = Reply::new(421, reply::TIMED_OUT, text);
            self.show(&reply);
            let _ = self.wire.send(&reply).await;
        }
    }

    /// Shows a reply to whoever watches.
    fn show(&mut self, reply: &Reply) {
        if self.tap.is_on() {
            let mut bytes = Vec::new();
            reply.write(&mut bytes);
            self.tap.replied(names(&self.connection), &bytes);
        }
    }

    /// Tells whoever watches what happens besides commands and replies.
    fn note(&mut self, text: &str) {
        if self.tap.is_on() {
            self.tap.note(names(&self.connection), text);
        }
    }

    fn peer(&self) -> Peer<'_> {
        Peer { connection: &self.connection, personality: &self.personality.acl }
    }

    fn policy(&self) -> Arc<dyn Policy> {
        self.front.rules.current()
    }

    /// The client must not send anything before the reply to this (RFC 2920 §3.1; without PIPELINING, to none). BDAT,
    /// AUTH, QUIT and HELP are let off, as in Exim; STARTTLS looks for itself.
    fn must_wait(&self, command: &Command<'_>) -> bool {
        match command {
            Command::Ehlo(_) | Command::Helo(_) | Command::Data | Command::Vrfy | Command::Noop => {
                true
            }
            Command::Mail { .. } | Command::Rcpt { .. } | Command::Rset => {
                self.hello == Hello::Helo || !self.offers_pipelining()
            }
            Command::Bdat { .. }
            | Command::Auth { .. }
            | Command::Quit
            | Command::Help
            | Command::StartTls => false,
        }
    }

    fn offers_pipelining(&self) -> bool {
        self.personality.pipelining && !self.pipelining_off
    }

    /// Clients that do not wait for our replies are sent away. Submission forgives them.
    fn enforces_sync(&self) -> bool {
        self.is_strict() && !self.sync_off
    }

    /// Bare line ends are refused instead of normalised.
    fn is_strict(&self) -> bool {
        !self.personality.normalise_line_ends
    }
}

/// Names of the client, for those who watch.
fn names(connection: &Connection) -> Names<'_> {
    [connection.client_name.as_deref(), connection.helo.as_deref()]
}

/// What a verdict says to the client, if it is no yes. `code` for a no, `later` for a not yet.
fn refusal(verdict: &Verdict, code: u16, later: u16) -> Option<Reply> {
    let or = |text: &str, default: &str| {
        if text.is_empty() { default.to_owned() } else { text.to_owned() }
    };
    match verdict {
        Verdict::Accept | Verdict::Discard => None,
        Verdict::Deny(text) => {
            Some(Reply::new(code, reply::REFUSED, or(text, "Administrative prohibition")))
        }
        Verdict::Drop(text) => {
            let text = or(text, "Administrative prohibition");
            Some(Reply::new(code, reply::REFUSED, text).closing())
        }
        Verdict::Defer(text) => Some(Reply::new(
            later,
            reply::REFUSED_LATER,
            or(text, "Refused for now, try again later"),
        )),
    }
}
