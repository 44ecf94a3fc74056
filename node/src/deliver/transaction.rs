//! One mail transaction: MAIL, RCPT, DATA, the message, the final dot, and what each recipient got for an answer.

use ppsw_spool::env::UnixMs;

use super::{
    dot::DotStuffer,
    reply::Reply,
    retry::Cause,
    seams::{BodySource, Fence},
    session::{FINAL_DOT, Session, SessionError},
};
use crate::{
    limits::{
        CONTENT_HELD_BYTES, DATA_REPLY_TIMEOUT, FINAL_REPLY_TIMEOUT, QUIT_TIMEOUT,
        REMOTE_REPLY_TIMEOUT,
    },
    route::{ClientOptions, Protocol},
};

/// What is to be sent, without its bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mail {
    /// Reverse-path, empty for `<>`.
    pub(crate) sender: String,
    pub(crate) size: u64,
    pub(crate) eight_bit: bool,
    pub(crate) smtputf8: bool,
    pub(crate) strip_nul: bool,
    pub(crate) return_headers_only: bool,
    pub(crate) envelope_id: String,
}

/// One forward-path of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rcpt {
    pub(crate) address: String,
    /// `NOTIFY=` and `ORCPT=` (RFC 3461), empty if not given.
    pub(crate) notify: String,
    pub(crate) original: String,
}

/// What one recipient got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Delivered(String),
    Failed(String),
    /// `elsewhere`: another host may be asked now; the server has not had the whole message.
    Deferred {
        text: String,
        elsewhere: bool,
        cause: Cause,
    },
    /// This node cannot read the message now. Nobody is at fault but us: never a reason to give up.
    Unread(String),
    /// An operator lets the destination wait: never a reason to give up.
    Suspended {
        text: String,
        until: UnixMs,
    },
    /// Not known and not recorded: the partition moved before the final dot.
    Fenced,
}

/// What a transaction came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// One for each recipient, in their order.
    pub(crate) answers: Vec<Answer>,
    /// The session can carry another transaction.
    pub(crate) reusable: bool,
    /// The server never answered anything: on a reused connection, it had been closed.
    pub(crate) stale: bool,
}

/// Runs one transaction. Every recipient has an answer at the end, whatever happened.
pub(crate) async fn send(
    session: &mut Session,
    client: &ClientOptions,
    mail: &Mail,
    recipients: &[Rcpt],
    body: &mut dyn BodySource,
    fence: &dyn Fence,
) -> Outcome {
    session.transactions += 1;
    let offered = session.extensions;
    let chunking = client.chunking && offered.chunking && offered.pipelining;
    let answers = vec![None; recipients.len()];
    let (talked, chunks, held) = (false, 0, Vec::new());
    let mut run = Run { session, mail, recipients, answers, talked, chunking, chunks, held };
    if mail.smtputf8 && !run.session.extensions.smtputf8 {
        // RFC 6531 §3.5.
        run.settle(&Answer::Failed(
            "5.6.7 the message needs SMTPUTF8, which the remote mail server does not offer".into(),
        ));
        return run.outcome(true);
    }
    if mail.eight_bit && client.eight_bit_strict && !run.session.extensions.eight_bit {
        // RFC 6152 §3. The other way that it allows, a conversion, is not ours: it breaks signatures.
        run.settle(&Answer::Failed(
            "5.6.3 the message has 8-bit content, which the remote mail server does not take"
                .into(),
        ));
        return run.outcome(true);
    }
    let prepared = tokio::select! {
        prepared = run.prepare(body) => prepared,
        () = fence.broken() => Err(SessionError::Fenced),
    };
    let ready = match prepared {
        Ok(ready) => ready,
        // The log has ended, so the lease has: a successor with a whole copy delivers it.
        Err(SessionError::Spool(_)) if !fence.holds() => {
            return run.broken(&SessionError::Fenced);
        }
        Err(error) => return run.broken(&error),
    };
    if !ready {
        return run.reset().await;
    }
    let begun = tokio::select! {
        begun = fence.begun() => begun,
        () = fence.broken() => false,
    };
    if !begun || !fence.is_open() || !fence.holds() {
        return run.broken(&SessionError::Fenced);
    }
    run.finish(fence).await
}

struct Run<'a> {
    session: &'a mut Session,
    mail: &'a Mail,
    recipients: &'a [Rcpt],
    answers: Vec<Option<Answer>>,
    /// The server answered something.
    talked: bool,
    /// `BDAT` in place of `DATA`.
    chunking: bool,
    /// Those whose replies are still to come.
    chunks: usize,
    /// Of the message, as it goes over the wire, not yet sent.
    held: Vec<u8>,
}

impl Run<'_> {
    /// Everything before the final dot. False: nothing (more) is to be sent, all answers are known.
    async fn prepare(&mut self, body: &mut dyn BodySource) -> Result<bool, SessionError> {
        if self.chunking {
            self.envelope_for_chunks().await?;
            if self.answers.iter().all(Option::is_some) {
                return Ok(false);
            }
            self.data(body).await?;
            return Ok(true);
        }
        let data = if self.session.extensions.pipelining {
            self.envelope_at_once().await?
        } else {
            self.envelope_step_by_step().await?
        };
        let Some(data) = data else { return Ok(false) };
        if data.code != 354 {
            self.settle(&answer("DATA", &data));
            return Ok(false);
        }
        if self.answers.iter().all(Option::is_some) {
            // RFC 2920 §3.1: the server waits for data though it took no recipient; it gets none.
            self.session.say("end of data", FINAL_DOT).await?;
            self.session.reply("end of data", REMOTE_REPLY_TIMEOUT).await?;
            return Ok(false);
        }
        self.data(body).await?;
        Ok(true)
    }

    /// Commands in one write, then their replies (RFC 2920).
    async fn envelope_at_once(&mut self) -> Result<Option<Reply>, SessionError> {
        let mut commands = self.mail_command();
        for recipient in self.recipients {
            commands.push_str(&self.rcpt_command(recipient));
        }
        commands.push_str("DATA\r\n");
        self.session.say("MAIL", commands.as_bytes()).await?;
        let reply = self.reply("MAIL", REMOTE_REPLY_TIMEOUT).await?;
        if !reply.is_positive() {
            self.settle(&answer("MAIL", &reply));
        }
        for index in 0..self.recipients.len() {
            let reply = self.reply("RCPT", REMOTE_REPLY_TIMEOUT).await?;
            self.recipient_reply(index, &reply);
        }
        self.reply("DATA", DATA_REPLY_TIMEOUT).await.map(|reply| {
            // A refusal of DATA after refusals of all else says nothing new.
            let refused = self.answers.iter().all(Option::is_some) && reply.code != 354;
            (!refused).then_some(reply)
        })
    }

    /// RFC 3030: no command says that data will come. Who offers `CHUNKING` and no pipelining gets `DATA`.
    async fn envelope_for_chunks(&mut self) -> Result<(), SessionError> {
        let mut commands = self.mail_command();
        for recipient in self.recipients {
            commands.push_str(&self.rcpt_command(recipient));
        }
        self.session.say("MAIL", commands.as_bytes()).await?;
        let reply = self.reply("MAIL", REMOTE_REPLY_TIMEOUT).await?;
        if !reply.is_positive() {
            self.settle(&answer("MAIL", &reply));
        }
        for index in 0..self.recipients.len() {
            let reply = self.reply("RCPT", REMOTE_REPLY_TIMEOUT).await?;
            self.recipient_reply(index, &reply);
        }
        Ok(())
    }

    async fn envelope_step_by_step(&mut self) -> Result<Option<Reply>, SessionError> {
        let command = self.mail_command();
        self.session.say("MAIL", command.as_bytes()).await?;
        let reply = self.reply("MAIL", REMOTE_REPLY_TIMEOUT).await?;
        if !reply.is_positive() {
            self.settle(&answer("MAIL", &reply));
            return Ok(None);
        }
        for (index, recipient) in self.recipients.iter().enumerate() {
            let command = self.rcpt_command(recipient);
            self.session.say("RCPT", command.as_bytes()).await?;
            let reply = self.reply("RCPT", REMOTE_REPLY_TIMEOUT).await?;
            self.recipient_reply(index, &reply);
        }
        if self.answers.iter().all(Option::is_some) {
            return Ok(None);
        }
        self.session.say("DATA", b"DATA\r\n").await?;
        self.reply("DATA", DATA_REPLY_TIMEOUT).await.map(Some)
    }

    /// The message but for its end: what is left in `held` goes with the final dot or in the last chunk.
    async fn data(&mut self, body: &mut dyn BodySource) -> Result<(), SessionError> {
        let strip_nul = self.mail.strip_nul;
        let mut stuffer = if self.chunking {
            DotStuffer::undotted(strip_nul)
        } else {
            DotStuffer::new(strip_nul)
        };
        loop {
            let chunk = body.next().await.map_err(|e| SessionError::Spool(e.to_string()))?;
            let Some(chunk) = chunk else {
                stuffer.finish(&mut self.held);
                return Ok(());
            };
            stuffer.encode(&chunk, &mut self.held);
            if self.held.len() < CONTENT_HELD_BYTES {
                continue;
            }
            self.chunks += usize::from(self.chunking);
            let content = std::mem::take(&mut self.held);
            if let Err(error) = self.session.send_content(content, self.chunking).await {
                self.session.end_of_content();
                return Err(self.said_instead(error).await);
            }
        }
    }

    /// A server that refuses in the middle of the data may have said why before it closed the connection.
    async fn said_instead(&mut self, error: SessionError) -> SessionError {
        match self.session.reply("DATA", QUIT_TIMEOUT).await {
            Ok(reply) if !reply.is_positive() => SessionError::Refused { stage: "DATA", reply },
            Err(said @ SessionError::Refused { .. }) => said,
            Ok(_) | Err(_) => error,
        }
    }

    /// The final dot and the replies to it. From here on a lost connection leaves the result unknown.
    async fn finish(mut self, fence: &dyn Fence) -> Outcome {
        let stage = "end of data";
        let rest = std::mem::take(&mut self.held);
        // A server that reads slowly has the data wait here, and the dot behind it, for longer than any lease. What
        // is not written in full when the fence breaks is no final dot.
        let end = tokio::select! {
            biased;
            written = self.session.send_end(rest, self.chunking) => written,
            () = fence.broken() => return self.broken(&SessionError::Fenced),
        };
        if let Err(error) = end {
            // It has not got all of it.
            let why = self.said_instead(error).await;
            return self.broken(&why);
        }
        if let Err(error) = self.final_replies(stage).await {
            let text = error.to_string();
            // No other host: this one may have taken the message (RFC 5321 §4.5.3.2.6, RFC 1047).
            self.settle(&Answer::Deferred { text, elsewhere: false, cause: error.cause() });
            return self.outcome(false);
        }
        self.outcome(true)
    }

    async fn final_replies(&mut self, stage: &'static str) -> Result<(), SessionError> {
        // A chunk that was refused says why; what the server says of those behind it, and of the last, does not.
        let mut refused = None;
        for _ in 0..std::mem::take(&mut self.chunks) {
            let reply = self.reply(stage, FINAL_REPLY_TIMEOUT).await?;
            refused = refused.or_else(|| (!reply.is_positive()).then_some(reply));
        }
        if let Some(reply) = refused {
            self.settle(&answer(stage, &reply));
            // LMTP has one reply here for each recipient, or one for all: the session is of no more use.
            return if self.session.protocol == Protocol::Lmtp {
                Err(SessionError::Refused { stage, reply })
            } else {
                self.reply(stage, FINAL_REPLY_TIMEOUT).await.map(|_| ())
            };
        }
        match self.session.protocol {
            Protocol::Smtp | Protocol::Pipe => {
                let reply = self.reply(stage, FINAL_REPLY_TIMEOUT).await?;
                self.settle(&answer(stage, &reply));
            }
            Protocol::Lmtp => {
                // RFC 2033 §4.2: one reply for each recipient that was accepted, in their order.
                let open: Vec<usize> =
                    (0..self.answers.len()).filter(|i| self.answers[*i].is_none()).collect();
                for index in open {
                    let reply = self.reply(stage, FINAL_REPLY_TIMEOUT).await?;
                    self.answers[index] = Some(answer(stage, &reply));
                }
            }
        }
        Ok(())
    }

    /// Ends a transaction that came to nothing, so that the session can be used again.
    async fn reset(self) -> Outcome {
        let reusable =
            self.session.command("RSET", "RSET\r\n").await.is_ok_and(|reply| reply.is_positive());
        self.outcome(reusable)
    }

    /// The session is over before the final dot.
    fn broken(mut self, error: &SessionError) -> Outcome {
        let answer = match error {
            SessionError::Fenced => Answer::Fenced,
            // In the middle of the data: an answer to the message, not to us.
            SessionError::Refused { stage: stage @ "DATA", reply } if reply.is_permanent() => {
                answer(stage, reply)
            }
            SessionError::Spool(_) => Answer::Unread(error.to_string()),
            _ => {
                let cause = error.cause();
                Answer::Deferred { text: error.to_string(), elsewhere: true, cause }
            }
        };
        self.settle(&answer);
        self.outcome(false)
    }

    async fn reply(
        &mut self,
        stage: &'static str,
        limit: std::time::Duration,
    ) -> Result<Reply, SessionError> {
        let reply = self.session.reply(stage, limit).await?;
        self.talked = true;
        Ok(reply)
    }

    fn recipient_reply(&mut self, index: usize, reply: &Reply) {
        if self.answers[index].is_none() && !reply.is_positive() {
            let stage = format!("RCPT TO:<{}>", self.recipients[index].address);
            self.answers[index] = Some(answer(&stage, reply));
        }
    }

    /// Gives an answer to all recipients that have none.
    fn settle(&mut self, answer: &Answer) {
        for slot in self.answers.iter_mut().filter(|slot| slot.is_none()) {
            *slot = Some(answer.clone());
        }
    }

    fn outcome(self, reusable: bool) -> Outcome {
        let unanswered = Answer::Deferred {
            text: "no answer from remote mail server".into(),
            elsewhere: false,
            cause: Cause::Other,
        };
        let answers =
            self.answers.into_iter().map(|a| a.unwrap_or_else(|| unanswered.clone())).collect();
        Outcome { answers, reusable, stale: !self.talked && !reusable }
    }

    fn mail_command(&self) -> String {
        let (mail, offered) = (self.mail, self.session.extensions);
        let mut line = format!("MAIL FROM:<{}>", mail.sender);
        if offered.size {
            line.push_str(&format!(" SIZE={}", mail.size));
        }
        // 8-bit content goes to servers that do not offer 8BITMIME too: they take it, and a bounce helps nobody.
        if mail.eight_bit && offered.eight_bit {
            line.push_str(" BODY=8BITMIME");
        }
        if mail.smtputf8 {
            line.push_str(" SMTPUTF8");
        }
        if offered.dsn {
            if mail.return_headers_only {
                line.push_str(" RET=HDRS");
            }
            if !mail.envelope_id.is_empty() {
                line.push_str(&format!(" ENVID={}", mail.envelope_id));
            }
        }
        line.push_str("\r\n");
        line
    }

    fn rcpt_command(&self, recipient: &Rcpt) -> String {
        let mut line = format!("RCPT TO:<{}>", recipient.address);
        if self.session.extensions.dsn {
            if !recipient.notify.is_empty() {
                line.push_str(&format!(" NOTIFY={}", recipient.notify));
            }
            if !recipient.original.is_empty() {
                line.push_str(&format!(" ORCPT={}", recipient.original));
            }
        }
        line.push_str("\r\n");
        line
    }
}

/// What a reply means for a recipient.
fn answer(stage: &str, reply: &Reply) -> Answer {
    let error = || format!("SMTP error from remote mail server after {stage}: {}", reply.text());
    if reply.is_positive() {
        Answer::Delivered(reply.text())
    } else if reply.is_permanent() {
        Answer::Failed(super::reply::printable(&error()))
    } else {
        let elsewhere = stage != "end of data";
        let cause = reply.cause(stage);
        Answer::Deferred { text: super::reply::printable(&error()), elsewhere, cause }
    }
}
