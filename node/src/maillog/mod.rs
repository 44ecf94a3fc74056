//! The record of what happened to mail: `mainlog` in Exim's line format, for `exigrep` and `eximstats`, and the
//! same events as JSON lines in `events.jsonl`. `docs/logs.md` has the vocabulary.
//!
//! One function per event, no free text: what is not in the vocabulary cannot be logged. Nothing here blocks: events
//! go through a bounded queue to one writer thread; those that do not fit are counted, and the count is logged.
//!
//! Own code: the tracing appenders rotate by themselves and know no second format of the same event.

mod event;
mod line;
mod sessions;
mod writer;

use std::{io, path::Path, sync::Arc, sync::atomic::Ordering, thread, time::Duration};

use metrics::counter;
use ppsw_spool::{
    env::{Clock, UnixMs},
    queue::{Envelope, MessageId},
};
use tokio::sync::mpsc;

use event::{Arrival, Attempt, Delivery, Event, Operator, Record, Rejection};
use writer::{Entry, LogFile, Signals, Writer};

pub use event::Client;
pub(crate) use line::clean;

use crate::{
    limits::{LOG_ADDRESSES_MAX, LOG_QUEUE_MAX},
    message::date::{self, Stamps},
    policy::{ClientCertificate, Rewriting},
};

/// The mail log of a node. Clones share it.
#[derive(Clone)]
pub struct MailLog {
    node: u64,
    clock: Arc<dyn Clock>,
    events: mpsc::Sender<Entry>,
    signals: Arc<Signals>,
}

/// The writer thread.
#[derive(Debug)]
pub struct LogThread {
    thread: thread::JoinHandle<()>,
}

/// How an attempt to deliver to one address went: what `=>`, `**` and `==` have in common.
#[derive(Clone, Copy, Debug)]
pub struct AddressEvent<'a> {
    pub id: MessageId,
    /// The final address.
    pub address: &'a str,
    /// The addresses that led to it, recipient first; empty if it is the recipient's own.
    pub parents: &'a [String],
    /// Sender of the message.
    pub sender: &'a str,
    /// Sender of the transaction.
    pub return_path: &'a str,
    /// Empty if routing failed.
    pub router: &'a str,
    pub transport: &'a str,
    /// Name and `address:port` of the host that answered.
    pub host: Option<(&'a str, &'a str)>,
    /// Version and cipher of TLS with it; empty without.
    pub cipher: &'a str,
    /// Its reply, or our reason.
    pub text: &'a str,
}

/// A message that was accepted, or made here.
#[derive(Clone, Copy, Debug)]
pub struct ArrivalEvent<'a> {
    pub id: MessageId,
    pub envelope: &'a Envelope,
    /// Bytes with added fields.
    pub size: u64,
    /// SASL mechanism.
    pub mechanism: Option<&'a str>,
    /// What the client showed.
    pub certificate: Option<&'a ClientCertificate>,
    /// The message that this bounce or warning is about.
    pub about: Option<MessageId>,
    /// How long receiving took.
    pub elapsed: Duration,
    /// Accepted and thrown away.
    pub discarded: bool,
}

/// What an operator did with a message.
#[derive(Clone, Copy, Debug)]
pub struct OperatorEvent<'a> {
    pub id: MessageId,
    /// In the past tense.
    pub verb: &'static str,
    pub by: &'a str,
    /// Empty if not given.
    pub reason: &'a str,
    /// Recipients; empty if it is about the message.
    pub addresses: &'a [&'a str],
    /// Of a redirection.
    pub to: Option<&'a str>,
}

/// A refusal at SMTP time.
#[derive(Clone, Debug)]
pub struct RejectionEvent<'a> {
    pub peer: Client,
    /// `connect`, `helo`, `mail`, `rcpt`, `predata` or `data`.
    pub stage: &'static str,
    pub sender: Option<&'a str>,
    pub recipient: Option<&'a str>,
    /// Our reply, with code.
    pub text: &'a str,
    /// 5xx.
    pub permanent: bool,
}

impl MailLog {
    /// Opens (and makes) `mainlog` and `events.jsonl` in `dir` and starts the writer.
    ///
    /// # Errors
    /// If the directory or the files cannot be made for another reason than a disk that is full or fails.
    pub fn open(dir: &Path, node: u64, clock: Arc<dyn Clock>) -> io::Result<(Self, LogThread)> {
        std::fs::create_dir_all(dir)?;
        let (main, json) =
            (LogFile::open(&dir.join("mainlog"))?, LogFile::open(&dir.join("events.jsonl"))?);
        let (sender, events) = mpsc::channel(LOG_QUEUE_MAX);
        let signals = Arc::new(Signals::default());
        let writer = Writer {
            node,
            clock: Arc::clone(&clock),
            events,
            signals: Arc::clone(&signals),
            main,
            json,
            stamps: Stamps::default(),
        };
        let thread = thread::Builder::new().name("maillog".into()).spawn(move || writer.run())?;
        Ok((Self { node, clock, events: sender, signals }, LogThread { thread }))
    }

    /// Opens the files anew before the next line (SIGHUP). A file that was renamed is found within a second anyway.
    pub fn reopen(&self) {
        self.signals.reopen.store(true, Ordering::Relaxed);
    }

    /// Ends the log: what was told before is written, what comes later is not.
    pub async fn close(&self) {
        // The writer may have ended already.
        let _ = self.events.send(Entry::End).await;
    }

    /// `<=`
    pub fn arrival(&self, arrival: &ArrivalEvent<'_>) {
        let envelope = arrival.envelope;
        self.put(Event::Arrival(Arrival {
            id: arrival.id.to_string(),
            sender: envelope.sender.clone(),
            recipients: envelope.recipients.iter().map(|r| r.address.clone()).collect(),
            size: arrival.size,
            peer: Client::of(envelope),
            mechanism: arrival.mechanism.unwrap_or_default().to_owned(),
            certificate: arrival.certificate.map(|own| own.subject.clone()),
            certificate_verified: arrival.certificate.map(|own| own.refused.is_none()),
            message_id: envelope.message_id_field.clone(),
            about: arrival.about.map(|id| id.to_string()),
            receive_seconds: arrival.elapsed.as_secs_f64(),
            discarded: arrival.discarded,
        }));
    }

    /// An address of a message that arrives is another now.
    pub fn rewritten(&self, id: MessageId, rewriting: &Rewriting) {
        self.put(Event::Rewriting {
            id: id.to_string(),
            old: rewriting.old.clone(),
            place: rewriting.place.to_string(),
            new: rewriting.new.clone(),
            rule: rewriting.rule,
        });
    }

    /// `=>`; `->` if `further`: not the first address of its transaction.
    pub fn delivered(
        &self,
        event: &AddressEvent<'_>,
        further: bool,
        size: u64,
        queue_time: Duration,
        delivery_time: Duration,
    ) {
        self.put(Event::Delivery(Delivery {
            attempt: attempt(event, None),
            further,
            size,
            queue_seconds: queue_time.as_secs_f64(),
            delivery_seconds: delivery_time.as_secs_f64(),
        }));
    }

    /// `**`
    pub fn failed(&self, event: &AddressEvent<'_>) {
        self.put(Event::Failure(attempt(event, None)));
    }

    /// `==`
    pub fn deferred(&self, event: &AddressEvent<'_>, next_due: UnixMs) {
        self.put(Event::Deferral(attempt(event, Some(next_due))));
    }

    /// `Completed`: every recipient is done.
    pub fn completed(&self, id: MessageId, queue_time: Duration) {
        let id = id.to_string();
        self.put(Event::Completion { id, queue_seconds: queue_time.as_secs_f64() });
    }

    /// A bounce was given up.
    pub fn bounce_dropped(&self, id: MessageId, age: Duration) {
        self.put(Event::BounceDropped { id: id.to_string(), age_seconds: age.as_secs_f64() });
    }

    /// An operator did something with a message.
    pub fn operated(&self, event: &OperatorEvent<'_>) {
        let shown = event.addresses.iter().take(LOG_ADDRESSES_MAX);
        self.put(Event::Operator(Operator {
            id: event.id.to_string(),
            verb: event.verb,
            by: event.by.to_owned(),
            reason: event.reason.to_owned(),
            addresses: shown.map(|address| (*address).to_owned()).collect(),
            to: event.to.map(str::to_owned),
        }));
    }

    /// The result of an attempt could not be recorded anywhere.
    pub fn outcome_lost(&self, id: MessageId, why: &str) {
        self.put(Event::OutcomeLost { id: id.to_string(), text: why.to_owned() });
    }

    /// A command, message or connection was refused.
    pub fn rejected(&self, event: RejectionEvent<'_>) {
        self.put(Event::Rejection(Rejection {
            peer: event.peer,
            stage: event.stage,
            sender: event.sender.map(str::to_owned),
            recipient: event.recipient.map(str::to_owned),
            text: event.text.to_owned(),
            permanent: event.permanent,
        }));
    }

    /// A wrong password.
    pub fn authentication_failed(&self, peer: Client, mechanism: &str, user: &str) {
        let (mechanism, user) = (mechanism.to_owned(), user.to_owned());
        self.put(Event::AuthenticationFailure { peer, mechanism, user });
    }

    /// The client broke the protocol and got `reply`.
    pub fn protocol_error(&self, peer: Client, reply: &str) {
        self.put(Event::ProtocolError { peer, text: reply.to_owned() });
    }

    /// A session ended without QUIT.
    pub fn connection_lost(&self, peer: Client, why: &str, in_transaction: bool) {
        self.put(Event::ConnectionLost { peer, text: why.to_owned(), in_transaction });
    }

    /// A connection was turned away before it had a session.
    pub fn connection_refused(&self, client: &str, server: &str, why: &str) {
        let (client, server) = (client.to_owned(), server.to_owned());
        self.put(Event::ConnectionRefused { client, server, text: why.to_owned() });
    }

    /// A rule's `log` modifier.
    pub fn note(&self, peer: Client, text: &str) {
        self.put(Event::Note { peer, text: text.to_owned() });
    }

    fn put(&self, event: Event) {
        let record = Record { time: self.clock.now(), event };
        if self.events.try_send(Entry::Event(record)).is_err() {
            self.signals.lost.fetch_add(1, Ordering::Relaxed);
            counter!("ppsw_maillog_lost_total").increment(1);
        }
    }
}

impl std::fmt::Debug for MailLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MailLog").field("node", &self.node).finish_non_exhaustive()
    }
}

impl LogThread {
    /// Waits until everything is written, once [`MailLog::close`] was called or all [`MailLog`]s are gone. Blocks.
    pub fn join(self) {
        // A panic of the writer ends the process before anybody could wait for it.
        let _ = self.thread.join();
    }
}

fn attempt(event: &AddressEvent<'_>, next_due: Option<UnixMs>) -> Attempt {
    let (host, host_address) = event.host.unwrap_or_default();
    Attempt {
        id: event.id.to_string(),
        address: event.address.to_owned(),
        parents: event.parents.to_vec(),
        sender: event.sender.to_owned(),
        return_path: event.return_path.to_owned(),
        router: event.router.to_owned(),
        transport: event.transport.to_owned(),
        host: host.to_owned(),
        host_address: host_address.to_owned(),
        tls: event.cipher.to_owned(),
        text: event.text.to_owned(),
        next_due: next_due.map(date::rfc3339),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests look at the files")]
mod tests {
    use ppsw_spool::{env::SystemClock, queue::Recipient};

    use super::*;

    fn arrival(log: &MailLog, counter: u64) {
        let id = MessageId { second: 1_795_464_000, counter, node: 1 };
        let recipients = vec![Recipient { address: "x@y".into(), ..Recipient::default() }];
        let envelope = Envelope { recipients, ..Envelope::default() };
        log.arrival(&ArrivalEvent {
            id,
            envelope: &envelope,
            size: 10,
            mechanism: None,
            certificate: None,
            about: None,
            elapsed: Duration::ZERO,
            discarded: false,
        });
    }

    #[test]
    fn a_full_disk_costs_lines_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let lines =
            |name: &str| std::fs::read_to_string(path(name)).unwrap_or_default().lines().count();
        let wait = |what: &str, done: &dyn Fn() -> bool| {
            for _ in 0..1000 {
                if done() {
                    return;
                }
                thread::sleep(Duration::from_millis(10));
            }
            panic!("{what}");
        };
        std::os::unix::fs::symlink("/dev/full", path("mainlog")).unwrap();
        let (log, thread) = MailLog::open(dir.path(), 7, Arc::new(SystemClock)).unwrap();
        arrival(&log, 1);
        wait("the other file", &|| lines("events.jsonl") == 1);
        std::fs::remove_file(path("mainlog")).unwrap();
        log.reopen();
        arrival(&log, 2);
        wait("the disk that has space again", &|| lines("mainlog") == 1);
        drop(log);
        thread.join();
        assert_eq!(lines("events.jsonl"), 2);
    }

    #[test]
    fn events_reach_both_files_and_follow_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        let wait = |name: &str, lines: usize| {
            for _ in 0..500 {
                if read(name).lines().count() >= lines {
                    return;
                }
                thread::sleep(Duration::from_millis(10));
            }
            panic!("{name} has not {lines} lines: {}", read(name));
        };
        let (log, thread) = MailLog::open(dir.path(), 7, Arc::new(SystemClock)).unwrap();
        arrival(&log, 1);
        wait("events.jsonl", 1);
        std::fs::rename(dir.path().join("mainlog"), dir.path().join("mainlog.1")).unwrap();
        log.reopen();
        arrival(&log, 2);
        drop(log);
        thread.join();
        assert_eq!(read("mainlog.1").lines().count(), 1);
        assert_eq!(read("mainlog").lines().count(), 1);
        let events = read("events.jsonl");
        let last: serde_json::Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
        assert_eq!(last["event"], "arrival");
        assert_eq!(last["node"], 7);
        assert_eq!(last["recipients"][0], "x@y");
        let id = last["id"].as_str().unwrap();
        assert!(read("mainlog").contains(&format!(" {id} <= <> P= S=10 for x@y")));
    }
}
