//! DATA and BDAT: from the first byte of content to the reply that takes responsibility for it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ppsw_spool::queue::{AcceptError, Envelope, MessageId, Origin};
use tokio::time::timeout;

use super::{Hello, Mail, Session, State, names, refusal};
use crate::{
    limits::{COMMIT_DEADLINE, DATA_TIME_MAX},
    message::{Trace, rfc5322_date},
    policy::{AddressPlace, Rewriting, Stage, Verdict},
    smtp::{
        Arrival, Policy, Rejection,
        content::{Content, Failure, FixUp},
        data::{ContentReader, LineEnds},
        reply::{self, Reply},
        wire::Lost,
    },
};

/// A transaction whose content comes.
pub(super) struct Receiving {
    mail: Box<Mail>,
    content: Content,
    /// Addresses of the envelope that are others now.
    rewritten: Vec<Rewriting>,
    id: MessageId,
    since: Instant,
}

impl Receiving {
    /// Gives the message up.
    pub(super) async fn abort(&mut self) {
        self.content.abort().await;
    }

    /// Hands the message over to the spool; it is safe when this returns `Ok`.
    async fn commit(&mut self, envelope: Envelope) -> Result<(), Reply> {
        let Some(writer) = self.content.take_writer() else {
            return Err(Failure::Spool("message has no writer".into()).reply());
        };
        // The spool keeps the deadline itself; a spool that doesn't must not hold the client.
        let patience = COMMIT_DEADLINE + Duration::from_secs(5);
        let result = match timeout(patience, writer.accept(envelope, COMMIT_DEADLINE)).await {
            Ok(result) => result,
            Err(_) => Err(AcceptError::NoMajority),
        };
        result.map(|_| ()).map_err(|error| {
            tracing::warn!(%error, id = %self.id, "message refused for now");
            Failure::from(error).reply()
        })
    }
}

impl Session {
    /// The DATA command.
    pub(super) async fn begin_data(&mut self, state: State) -> Result<State, Lost> {
        let mail = match state {
            State::Envelope(mail) => mail,
            State::Chunks(_) => {
                return self.out_of_sequence("DATA and BDAT must not be mixed", state).await;
            }
            _ => return self.out_of_sequence("Sender must come first", state).await,
        };
        if let Some(reply) = no_recipients(&mail) {
            return self.protocol_error(reply, State::Envelope(mail)).await;
        }
        match self.begin_content(mail, ContentReader::data).await {
            Ok(receiving) => {
                let reply = Reply::plain(354, "End with a dot on a line by itself");
                self.say(reply, State::Data(receiving)).await
            }
            Err(reply) => self.say(reply, State::Ready).await,
        }
    }

    /// Reads content up to the final dot.
    pub(super) async fn data(&mut self, mut receiving: Box<Receiving>) -> Result<State, Lost> {
        let all = async {
            while !receiving.content.ended() {
                let input = self.wire.content().await?;
                let used = receiving.content.feed(input).await;
                self.wire.consume(used);
                self.tap.count(used);
                if receiving.content.is_hopeless() {
                    return Ok::<_, Lost>(false);
                }
            }
            Ok(true)
        };
        match timeout(DATA_TIME_MAX, all).await {
            Ok(complete) => {
                if !complete? {
                    return self.hopeless(receiving).await;
                }
            }
            Err(_) => return Err(Lost::TimedOut),
        }
        self.finish(receiving).await
    }

    /// The BDAT command and its octets, which follow whatever we think of it (RFC 3030 §2).
    pub(super) async fn bdat(
        &mut self,
        size: u64,
        last: bool,
        state: State,
    ) -> Result<State, Lost> {
        let receiving = match state {
            State::Chunks(receiving) => Ok(receiving),
            State::Envelope(mail) => match no_recipients(&mail) {
                None => self
                    .begin_content(mail, ContentReader::chunks)
                    .await
                    .map_err(|r| (r, State::Ready)),
                Some(reply) => Err((reply, State::Envelope(mail))),
            },
            state => Err((Reply::new(503, reply::BAD_COMMAND, "Sender must come first"), state)),
        };
        match receiving {
            Ok(receiving) => {
                let chunk = timeout(DATA_TIME_MAX, self.chunk(receiving, size, last));
                chunk.await.map_err(|_| Lost::TimedOut)?
            }
            Err((reply, next)) => self.skip_chunk(size, reply, next).await,
        }
    }

    async fn chunk(
        &mut self,
        mut receiving: Box<Receiving>,
        size: u64,
        last: bool,
    ) -> Result<State, Lost> {
        let mut left = size;
        while left > 0 {
            let input = self.wire.content().await?;
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
            let used = receiving.content.feed(&input[..piece]).await;
            self.wire.consume(used);
            self.tap.count(used);
            left -= used as u64;
            if receiving.content.is_hopeless() {
                return self.hopeless(receiving).await;
            }
        }
        if last {
            return self.finish(receiving).await;
        }
        // Only the whole message can be told that its line ends are wrong; the rest can be told at once.
        if receiving.content.failure().is_some() {
            return self.finish(receiving).await;
        }
        self.tap.end_of_content(names(&self.connection));
        let reply = Reply::new(250, reply::OK, format!("{size} octets received"));
        self.say(reply, State::Chunks(receiving)).await
    }

    /// Reads and forgets the octets of a chunk that is not wanted.
    async fn skip_chunk(&mut self, size: u64, reply: Reply, next: State) -> Result<State, Lost> {
        if size > self.personality.size_limit.saturating_mul(2) {
            return self.protocol_error(reply.closing(), State::Closed).await;
        }
        let mut left = size;
        while left > 0 {
            let waiting = self.wire.content().await?.len();
            let used = usize::try_from(left).unwrap_or(usize::MAX).min(waiting);
            self.wire.consume(used);
            self.tap.count(used);
            left -= used as u64;
        }
        self.tap.end_of_content(names(&self.connection));
        self.wire.shrink();
        if reply.code() == 503 || reply.code() == 554 {
            return self.protocol_error(reply, next).await;
        }
        self.say(reply, next).await
    }

    /// Asks the rules and the spool; on a no the transaction is over.
    async fn begin_content(
        &mut self,
        mail: Box<Mail>,
        reader: impl FnOnce(LineEnds) -> ContentReader,
    ) -> Result<Box<Receiving>, Reply> {
        let decision = self.check(Stage::Predata, &mail.transaction).await;
        if let Some(reply) = refusal(&decision.verdict, 550, 451) {
            self.reject("predata", &mail, &reply);
            return Err(reply);
        }
        let writer = match timeout(COMMIT_DEADLINE, self.front.intake.begin()).await {
            Ok(Ok(writer)) => writer,
            Ok(Err(error)) => return Err(self.spool_failed(&mail, error)),
            Err(_) => return Err(self.spool_failed(&mail, AcceptError::NoPartition)),
        };
        let mut mail = mail;
        mail.discard |= decision.verdict == Verdict::Discard || mail.recipients.is_empty();
        let policy = self.policy();
        let rewritten = rewrite_envelope(&mut mail, &*policy);
        let submission = decision.submission.or_else(|| mail.submission.clone());
        let fix_up = submission.map(|submission| FixUp {
            authenticated: self.author(submission.domain.as_deref(), &mail),
            envelope_sender: mail.transaction.sender.clone(),
            sender_retain: submission.sender_retain,
            host_name: self.front.host_name.clone(),
            date: rfc5322_date(self.front.clock.now()),
        });
        let line_ends = if self.is_strict() { LineEnds::Refuse } else { LineEnds::Normalise };
        let id = writer.id();
        let policy = policy.rewrites_headers().then_some(policy);
        let limit = mail.personality.size_limit;
        let content = Content::new(reader(line_ends), writer, fix_up, policy, limit);
        let since = self.front.clock.instant();
        Ok(Box::new(Receiving { mail, content, rewritten, id, since }))
    }

    /// The authenticated user as an address.
    fn author(&self, domain: Option<&str>, mail: &Mail) -> Option<String> {
        let user = self.connection.authenticated.as_deref()?;
        if user.contains('@') {
            return Some(user.to_owned());
        }
        let policy = self.policy();
        let domain = domain
            .or(mail.personality.domain.as_deref())
            .unwrap_or(&policy.options().qualify_domain);
        Some(format!("{user}@{domain}"))
    }

    fn spool_failed(&self, mail: &Mail, error: AcceptError) -> Reply {
        tracing::warn!(%error, "message refused for now");
        let reply = Failure::from(error).reply();
        self.reject("data", mail, &reply);
        reply
    }

    fn reject(&self, stage: &'static str, mail: &Mail, reply: &Reply) {
        let recipient = match mail.recipients.as_slice() {
            [only] => Some(only.address.as_str()),
            _ => None,
        };
        let sender = Some(mail.transaction.sender.as_str());
        self.note_rejection(&Rejection { stage, sender, recipient, reply });
    }

    /// Far beyond the limit: reading on would serve nobody.
    async fn hopeless(&mut self, mut receiving: Box<Receiving>) -> Result<State, Lost> {
        self.tap.end_of_content(names(&self.connection));
        receiving.abort().await;
        let failure = receiving.content.failure().unwrap_or(&Failure::TooBig);
        let reply = failure.reply().closing();
        self.reject("data", &receiving.mail, &reply);
        self.say(reply, State::Closed).await
    }

    /// The content is complete: the decision, the commit, and the reply.
    async fn finish(&mut self, mut receiving: Box<Receiving>) -> Result<State, Lost> {
        let dot = self.front.clock.instant();
        self.tap.end_of_content(names(&self.connection));
        receiving.content.finish().await;
        self.wire.shrink();
        self.tally.messages += 1;
        self.tally.idle_commands = 0;
        let outcome = match receiving.content.failure() {
            Some(failure) => {
                if let Failure::Spool(error) = failure {
                    tracing::warn!(%error, "message refused for now");
                }
                Err(failure.reply())
            }
            None => self.decide(&mut receiving).await,
        };
        let reply = match outcome {
            Ok(()) => Reply::new(250, reply::OK, format!("OK id={}", receiving.id)),
            Err(reply) => {
                receiving.abort().await;
                self.reject("data", &receiving.mail, &reply);
                reply
            }
        };
        let elapsed = self.front.clock.instant().saturating_duration_since(dot);
        metrics::histogram!("ppsw_smtp_message_seconds").record(elapsed.as_secs_f64());
        self.say(reply, State::Ready).await
    }

    /// The rules for whole messages, then the spool.
    async fn decide(&mut self, receiving: &mut Receiving) -> Result<(), Reply> {
        let decision = self.check(Stage::Data, &receiving.mail.transaction).await;
        if let Some(reply) = refusal(&decision.verdict, 550, 451) {
            return Err(reply);
        }
        let discard = receiving.mail.discard || decision.verdict == Verdict::Discard;
        let envelope = self.envelope(receiving);
        let size = receiving.content.size + envelope.prepend.len() as u64;
        if discard {
            receiving.abort().await;
        } else {
            receiving.commit(envelope.clone()).await?;
        }
        let elapsed = self.since(receiving.since);
        receiving.rewritten.append(&mut receiving.content.rewritten);
        let arrival = Arrival {
            id: receiving.id,
            envelope: &envelope,
            size,
            mechanism: self.mechanism,
            elapsed,
            discarded: discard,
            rewritten: &receiving.rewritten,
        };
        self.front.events.arrival(&self.peer(), &arrival);
        Ok(())
    }

    fn since(&self, then: Instant) -> Duration {
        self.front.clock.instant().saturating_duration_since(then)
    }

    fn envelope(&self, receiving: &Receiving) -> Envelope {
        let Receiving { mail, content, id, .. } = receiving;
        let origin = self.origin(mail);
        let received = self.front.clock.now();
        let trace = Trace {
            origin: &origin,
            host_name: &self.front.host_name,
            service_name: &mail.personality.name,
            mechanism: self.mechanism,
            id: *id,
            sender: &mail.transaction.sender,
            recipient: match mail.recipients.as_slice() {
                [only] if mail.discarded == 0 => Some(&only.address),
                _ => None,
            },
            received,
        };
        let mut prepend = trace.to_field();
        prepend.push_str(&content.added);
        Envelope {
            sender: mail.transaction.sender.clone(),
            recipients: mail.recipients.clone(),
            received,
            prepend: Bytes::from(prepend),
            eight_bit: mail.parameters.eight_bit == Some(true) || content.eight_bit,
            smtputf8: mail.parameters.smtputf8,
            nul_count: content.nul_count,
            return_headers_only: mail.parameters.return_headers_only == Some(true),
            envelope_id: mail.parameters.envelope_id.clone().unwrap_or_default(),
            message_id_field: content.facts.message_id.clone(),
            received_count: content.facts.received_count,
            origin,
        }
    }

    fn origin(&self, mail: &Mail) -> Origin {
        let connection = &self.connection;
        let [client, server] = self.ends.clone();
        let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
        // Only an authenticated client's word counts (RFC 4954 §5).
        let auth_sender = match &connection.authenticated {
            Some(_) => or_empty(&mail.parameters.auth),
            None => String::new(),
        };
        Origin {
            client,
            client_name: or_empty(&connection.client_name),
            helo: or_empty(&connection.helo),
            server,
            personality: mail.personality.acl.clone(),
            protocol: self.protocol(mail.parameters.smtputf8),
            authenticated: or_empty(&connection.authenticated),
            auth_sender,
            tls: or_empty(&connection.tls),
        }
    }

    /// RFC 3848, RFC 6531 §4.3.
    fn protocol(&self, smtputf8: bool) -> String {
        let base = match self.hello {
            Hello::Helo => return "SMTP".into(),
            Hello::Ehlo if smtputf8 => "UTF8SMTP",
            Hello::Ehlo => "ESMTP",
        };
        let tls = if self.connection.tls.is_some() { "S" } else { "" };
        let authenticated = if self.connection.authenticated.is_some() { "A" } else { "" };
        format!("{base}{tls}{authenticated}")
    }
}

/// Exim's order: the rules have seen the addresses as they were given, the rest sees what they become.
fn rewrite_envelope(mail: &mut Mail, policy: &dyn Policy) -> Vec<Rewriting> {
    let mut done = Vec::new();
    let mut rewrite = |address: &mut String, place| {
        if let Some(rewriting) = policy.rewrite(address, place) {
            address.clone_from(&rewriting.new);
            done.push(rewriting);
        }
    };
    rewrite(&mut mail.transaction.sender, AddressPlace::EnvelopeSender);
    for recipient in &mut mail.recipients {
        rewrite(&mut recipient.address, AddressPlace::EnvelopeRecipient);
    }
    done
}

/// RFC 5321 §3.3: content needs a recipient.
fn no_recipients(mail: &Mail) -> Option<Reply> {
    if !mail.recipients.is_empty() || mail.discarded > 0 {
        None
    } else if mail.refused {
        Some(Reply::new(554, reply::BAD_COMMAND, "No valid recipients"))
    } else {
        Some(Reply::new(503, reply::BAD_COMMAND, "Recipients must come first"))
    }
}
