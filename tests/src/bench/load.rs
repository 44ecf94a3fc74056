//! Clients: Postfix's `smtp-source`, and our own, which looks at the clock.

use std::{
    net::SocketAddr,
    ops::Range,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::closed::{Message, closed};
use crate::client::{Client, Reply};

const SOURCE: &str = "/usr/sbin/smtp-source";
/// Messages of a connection of our own client, if it may send many.
pub(super) const MANY: usize = 100;
/// Refused or broken connections of one client in a row, after which the run has failed.
pub(super) const ERRORS_MAX: usize = 20;

/// So long before the first message is due at a given rate its client's threads are made, and connect: they are not what is measured.
const START: Duration = Duration::from_millis(200);

/// Where the mail goes that is measured.
pub const DOMAIN: &str = "example.org";

/// What `smtp-source` sends in front of the body that it is asked for: `From`, `To`, `Date`, `Message-Id` and an empty line,
/// without the name of the host.
const SOURCE_HEADER_BYTES: usize = 128;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    pub bytes: usize,
    pub recipients: usize,
    /// Of all recipients.
    pub domain: &'static str,
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// `smtp-source`, one for each address.
    Source,
    /// Our own client: each session sends the next message as soon as the last is answered, for so long.
    Closed { time: Duration, tls: bool },
    /// Our own client: so many messages a second in all, at even distances, whether the server keeps up or not. What is late because a
    /// session still waits counts as the server's time.
    Open { time: Duration, per_second: u32 },
}

/// Long messages that come beside a load, as long as it goes on: the last of each session is given up.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    pub sessions: usize,
    pub bytes: usize,
}

/// A load: always to addresses of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub sender: Sender,
    pub sessions: usize,
    /// How many, of `smtp-source`.
    pub messages: usize,
    /// One message on each connection, or many.
    pub many: bool,
    pub content: Content,
    /// Only of our own client.
    pub beside: Option<Beside>,
}

/// Times from the final dot to its reply, in order.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// So many thousandths are not slower than this.
    pub fn per_mille(&self, rank: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0.get(last * rank / 1_000).copied().unwrap_or_default()
    }
}

impl Load {
    /// How long after its beginning the first message is due.
    pub(super) const fn start(&self) -> Duration {
        match self.sender {
            Sender::Open { .. } => START,
            Sender::Source | Sender::Closed { .. } => Duration::ZERO,
        }
    }

    /// Loads these addresses evenly; returns when everything is answered.
    pub fn run(&self, addresses: &[SocketAddr]) -> Option<Latencies> {
        assert!(addresses.iter().all(|address| address.ip().is_loopback()), "{addresses:?}");
        match self.sender {
            Sender::Source => {
                self.source(addresses);
                None
            }
            Sender::Closed { time, tls: false } => {
                let mut all = closed(addresses, self.sessions, time, self.message());
                all.sort();
                Some(Latencies(all))
            }
            Sender::Closed { time, tls: true } => Some(self.clients(addresses, time, true, None)),
            Sender::Open { time, per_second } => {
                let distance = Duration::from_secs(1) / per_second;
                Some(self.clients(addresses, time, false, Some(distance)))
            }
        }
    }

    fn source(&self, addresses: &[SocketAddr]) {
        let share = |all: usize, number: usize| (all + number) / addresses.len();
        let start = |(number, address): (usize, &SocketAddr)| -> Option<Child> {
            let sessions = share(self.sessions, number);
            let messages = share(self.messages, number);
            (sessions > 0).then(|| self.smtp_source(*address, sessions, messages))
        };
        let children: Vec<Child> = addresses.iter().enumerate().filter_map(start).collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && errors.is_empty(), "smtp-source: {errors}");
        }
    }

    fn message(&self) -> Message {
        let Content { bytes, recipients, domain } = self.content;
        let recipient = |number| format!("RCPT TO:<to{number}@{domain}>\r\n");
        let mut envelope = vec!["MAIL FROM:<from@example.org>\r\n".to_owned()];
        envelope.extend((0..recipients).map(recipient));
        Message { envelope, content: content(bytes), many: self.many }
    }

    /// Bytes of one message, header and body.
    pub(super) fn message_bytes(&self) -> usize {
        let header = if self.sender == Sender::Source { SOURCE_HEADER_BYTES } else { 0 };
        header + self.content.bytes
    }

    fn smtp_source(&self, address: SocketAddr, sessions: usize, messages: usize) -> Child {
        let mut command = Command::new(SOURCE);
        if self.many {
            command.arg("-d");
        }
        let Content { bytes, recipients, domain } = self.content;
        for (option, value) in
            [("-s", sessions), ("-m", messages), ("-l", bytes), ("-r", recipients)]
        {
            command.arg(option).arg(value.to_string());
        }
        command.args(["-f", "from@example.org", "-t", &format!("to@{domain}")]);
        command.arg(address.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap_or_else(|error| panic!("can't start {SOURCE}: {error}"))
    }

    fn clients(
        &self,
        addresses: &[SocketAddr],
        time: Duration,
        tls: bool,
        distance: Option<Duration>,
    ) -> Latencies {
        let content = content(self.content.bytes);
        let recipient = |n| format!("RCPT TO:<to{n}@{}>", self.content.domain);
        let recipients: Vec<String> = (0..self.content.recipients).map(recipient).collect();
        let begin = Instant::now() + self.start();
        let schedule = Schedule { begin, time, distance, next: AtomicU64::new(0) };
        let mut all = std::thread::scope(|scope| {
            let client = |number: usize| {
                let address = addresses[number % addresses.len()];
                let (content, recipients, schedule) = (&content, &recipients, &schedule);
                scope.spawn(move || self.client(address, tls, content, recipients, schedule))
            };
            let clients: Vec<_> = (0..self.sessions).map(client).collect();
            let beside = self
                .beside
                .into_iter()
                .flat_map(|beside| (0..beside.sessions).map(move |number| (number, beside.bytes)));
            for (number, bytes) in beside {
                let (address, recipients) = (addresses[number % addresses.len()], &recipients);
                scope.spawn(move || long(address, recipients, bytes, begin..begin + time));
            }
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
        });
        all.sort();
        Latencies(all)
    }

    fn client(
        &self,
        address: SocketAddr,
        tls: bool,
        content: &[u8],
        recipients: &[String],
        schedule: &Schedule,
    ) -> Vec<Duration> {
        let (mut latencies, mut errors) = (Vec::new(), 0);
        let connection = |latencies: &mut Vec<Duration>| -> std::io::Result<bool> {
            let mut client = Client::connect(address)?;
            client.ehlo()?;
            if tls {
                client.start_tls()?;
            }
            for _ in 0..if self.many { MANY } else { 1 } {
                let Some(due) = schedule.next() else { return Ok(false) };
                let dot = message(&mut client, recipients, content)?;
                latencies.push(due.unwrap_or(dot).elapsed());
            }
            client.quit();
            Ok(true)
        };
        loop {
            match connection(&mut latencies) {
                Ok(true) => errors = 0,
                Ok(false) => return latencies,
                Err(error) => {
                    errors += 1;
                    assert!(errors < ERRORS_MAX, "{address}: {error}");
                }
            }
        }
    }
}

/// When messages are sent.
struct Schedule {
    begin: Instant,
    time: Duration,
    distance: Option<Duration>,
    next: AtomicU64,
}

impl Schedule {
    /// Waits for the next message's time, and gives it if it is fixed. `None`: it is over.
    fn next(&self) -> Option<Option<Instant>> {
        let Some(distance) = self.distance else {
            return (self.begin.elapsed() < self.time).then_some(None);
        };
        let number = u32::try_from(self.next.fetch_add(1, Ordering::Relaxed)).ok()?;
        let due = self.begin + distance * number;
        if due >= self.begin + self.time {
            return None;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        Some(Some(due))
    }
}

/// Sends one; gives when its final dot went off.
fn message(client: &mut Client, recipients: &[String], content: &[u8]) -> std::io::Result<Instant> {
    let want = |reply: Reply, code| match reply.code == code {
        true => Ok(()),
        false => Err(std::io::Error::other(format!("{} {}", reply.code, reply.text))),
    };
    want(client.command("MAIL FROM:<from@example.org>")?, 250)?;
    for recipient in recipients {
        want(client.command(recipient)?, 250)?;
    }
    want(client.command("DATA")?, 354)?;
    client.send_raw(content)?;
    let dot = Instant::now();
    want(client.reply()?, 250)?;
    Ok(dot)
}

/// Sends one long message after the other for so long. A server that breaks off is asked again.
fn long(address: SocketAddr, recipients: &[String], bytes: usize, time: Range<Instant>) {
    /// What is written at once.
    const PIECE: usize = 64 << 10;
    let content = content(PIECE);
    // Without the final dot.
    let piece = &content[..content.len() - 3];
    std::thread::sleep(time.start.saturating_duration_since(Instant::now()));
    let end = time.end;
    let message = || -> std::io::Result<()> {
        let mut client = Client::connect(address)?;
        client.ehlo()?;
        while Instant::now() < end {
            client.command("MAIL FROM:<from@example.org>")?;
            client.command(&recipients[0])?;
            client.command("DATA")?;
            for _ in 0..bytes / PIECE {
                if Instant::now() >= end {
                    return Ok(());
                }
                client.send_raw(piece)?;
            }
            client.send_raw(b".\r\n")?;
            client.reply()?;
        }
        Ok(())
    };
    while Instant::now() < end {
        if message().is_err() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A message of this length, lines as usual, none with a dot in front; and the final dot.
fn content(bytes: usize) -> Vec<u8> {
    let mut content =
        b"Subject: t\r\nFrom: <from@example.org>\r\nTo: <to@example.org>\r\n\r\n".to_vec();
    while content.len() < bytes {
        let length = (bytes - content.len()).clamp(2, 78);
        content.resize(content.len() + length - 2, b'x');
        content.extend_from_slice(b"\r\n");
    }
    content.extend_from_slice(b".\r\n");
    content
}
