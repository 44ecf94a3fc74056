//! MAIL and RCPT.

use ppsw_spool::queue::Recipient;

use super::{Hello, Session, State, refusal};
use crate::{
    limits::{RECIPIENTS_MAX, SESSION_MESSAGES_MAX, SESSION_REFUSED_RECIPIENTS_MAX},
    policy::{Personality, Stage, Submission, Transaction, Verdict},
    smtp::{
        OpenTransaction, Rejection,
        address::Path,
        command::{CommandError, MailParameters, RcptParameters},
        content::Failure,
        reply::{self, Reply},
        wire::Lost,
    },
};

/// A transaction until its content comes.
pub(super) struct Mail {
    /// What the rules see.
    pub(super) transaction: Transaction,
    pub(super) parameters: MailParameters,
    pub(super) recipients: Vec<Recipient>,
    /// Recipients were refused; with none accepted that makes a difference to DATA.
    pub(super) refused: bool,
    /// Take the message and throw it away.
    pub(super) discard: bool,
    /// Recipients that were accepted to be thrown away.
    pub(super) discarded: usize,
    /// Fix up the header, as a rule said.
    pub(super) submission: Option<Submission>,
    /// The personality when the transaction began: its limits hold to its end.
    pub(super) personality: Personality,
    _open: OpenTransaction,
}

impl Session {
    /// MAIL FROM.
    pub(super) async fn mail(
        &mut self,
        sender: Path,
        parameters: MailParameters,
        state: State,
    ) -> Result<State, Lost> {
        match state {
            State::Ready => {}
            State::Fresh => return self.out_of_sequence("Say HELO or EHLO first", state).await,
            _ => return self.out_of_sequence("Sender has been given already", state).await,
        }
        self.personality = self.policy().personality(self.connection.server.ip());
        if self.tally.messages >= SESSION_MESSAGES_MAX {
            let reply = Reply::new(421, reply::POLICY_LATER, "Too many messages in one session");
            return self.say(reply.closing(), State::Closed).await;
        }
        if let Some(reply) = self.mail_parameters_refused(&sender, &parameters) {
            return self.protocol_error(reply, State::Ready).await;
        }
        let sender = match sender {
            Path::Mailbox(address) => address,
            Path::Null | Path::Postmaster => String::new(),
        };
        let limit = self.personality.size_limit;
        let declared = parameters.size;
        let transaction = Transaction { sender, size_declared: declared, ..Transaction::default() };
        if declared.is_some_and(|size| size > limit) {
            let text = format!("Message is larger than {limit} bytes");
            let reply = Reply::new(552, reply::TOO_BIG, text);
            return self.mail_rejected(&transaction, reply).await;
        }
        // Before the rules are asked, and before a client sends what cannot be kept (RFC 1870 §6.1).
        if let Err(error) = self.front.intake.check_space(declared.unwrap_or(0)) {
            return self.mail_rejected(&transaction, Failure::from(error).reply()).await;
        }
        let decision = self.check(Stage::Mail, &transaction).await;
        if let Some(reply) = refusal(&decision.verdict, 550, 451) {
            return self.mail_rejected(&transaction, reply).await;
        }
        self.tally.idle_commands = 0;
        let mail = Mail {
            transaction,
            parameters,
            recipients: Vec::new(),
            refused: false,
            discard: decision.verdict == Verdict::Discard,
            discarded: 0,
            submission: decision.submission,
            personality: self.personality.clone(),
            _open: OpenTransaction::new(&self.front),
        };
        let reply = Reply::new(250, reply::SENDER_OK, "Sender OK");
        self.say(reply, State::Envelope(Box::new(mail))).await
    }

    async fn mail_rejected(
        &mut self,
        transaction: &Transaction,
        reply: Reply,
    ) -> Result<State, Lost> {
        self.note_rejection(&Rejection {
            stage: "mail",
            sender: Some(&transaction.sender),
            recipient: None,
            reply: &reply,
        });
        self.say(reply, State::Ready).await
    }

    /// A parameter of an extension that was not offered, or an address that needs one that was not asked for.
    fn mail_parameters_refused(&self, sender: &Path, parameters: &MailParameters) -> Option<Reply> {
        let MailParameters { size, eight_bit, smtputf8, auth, return_headers_only, envelope_id } =
            parameters;
        let extended = size.is_some()
            || eight_bit.is_some()
            || *smtputf8
            || return_headers_only.is_some()
            || envelope_id.is_some();
        if (self.hello == Hello::Helo && extended)
            // AUTH was offered over TLS, and to those who may name their users.
            || (auth.is_some() && self.connection.tls.is_none() && !self.is_trusted())
        {
            return Some(CommandError::UnknownParameter("MAIL").reply());
        }
        needs_smtputf8(sender, *smtputf8)
    }

    /// RCPT TO.
    pub(super) async fn rcpt(
        &mut self,
        recipient: Path,
        parameters: RcptParameters,
        state: State,
    ) -> Result<State, Lost> {
        let mut mail = match state {
            State::Envelope(mail) => mail,
            State::Fresh | State::Ready => {
                return self.out_of_sequence("Sender must come first", state).await;
            }
            _ => return self.out_of_sequence("Recipients must come before content", state).await,
        };
        self.tally.idle_commands = 0;
        let dsn = parameters.notify.is_some() || parameters.original.is_some();
        if dsn && self.hello == Hello::Helo {
            let reply = CommandError::UnknownParameter("RCPT").reply();
            return self.protocol_error(reply, State::Envelope(mail)).await;
        }
        if let Some(reply) = needs_smtputf8(&recipient, mail.parameters.smtputf8) {
            return self.protocol_error(reply, State::Envelope(mail)).await;
        }
        if mail.recipients.len() + mail.discarded >= RECIPIENTS_MAX {
            let text = "Too many recipients; send the others in another transaction";
            let reply = Reply::new(452, reply::TOO_MANY_RECIPIENTS, text);
            return self.say(reply, State::Envelope(mail)).await;
        }
        let address = match recipient {
            Path::Mailbox(address) => address,
            Path::Null | Path::Postmaster => {
                format!("postmaster@{}", self.policy().options().qualify_domain)
            }
        };
        let reply = self.check_recipient(&mut mail, address, parameters).await;
        if self.tally.refused_recipients > SESSION_REFUSED_RECIPIENTS_MAX {
            self.say(reply, State::Closed).await?;
            let reply = Reply::new(421, reply::POLICY_LATER, "Too many unacceptable recipients");
            return self.say(reply.closing(), State::Closed).await;
        }
        self.say(reply, State::Envelope(mail)).await
    }

    /// Asks the rules about one recipient, and keeps it if they agree.
    async fn check_recipient(
        &mut self,
        mail: &mut Mail,
        address: String,
        parameters: RcptParameters,
    ) -> Reply {
        mail.transaction.recipient = Some(address.clone());
        mail.transaction.recipients_accepted = mail.recipients.len() + mail.discarded;
        let decision = self.check(Stage::Rcpt, &mail.transaction).await;
        mail.transaction.recipient = None;
        if let Some(reply) = refusal(&decision.verdict, 550, 451) {
            mail.refused = true;
            self.tally.refused_recipients += 1;
            self.note_rejection(&Rejection {
                stage: "rcpt",
                sender: Some(&mail.transaction.sender),
                recipient: Some(&address),
                reply: &reply,
            });
            return reply;
        }
        mail.submission = decision.submission.or_else(|| mail.submission.take());
        if decision.verdict == Verdict::Discard {
            mail.discarded += 1;
        } else {
            mail.recipients.push(Recipient {
                address,
                notify: parameters.notify.unwrap_or_default(),
                original: parameters.original.unwrap_or_default(),
            });
        }
        mail.transaction.recipients_accepted = mail.recipients.len() + mail.discarded;
        Reply::new(250, reply::RECIPIENT_OK, "Recipient OK")
    }
}

/// RFC 6531 §3.5: an address outside ASCII needs SMTPUTF8.
fn needs_smtputf8(path: &Path, smtputf8: bool) -> Option<Reply> {
    match path {
        Path::Mailbox(address) if !smtputf8 && !address.is_ascii() => Some(Reply::new(
            553,
            reply::NEEDS_SMTPUTF8,
            "Address is not ASCII: MAIL needs the SMTPUTF8 parameter",
        )),
        _ => None,
    }
}
