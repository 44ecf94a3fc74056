//! Where the mail goes: an SMTP server that refuses, stalls and cuts connections, and writes down each final dot.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{HarnessError, network};
use crate::checker::{Delivery, History, Item, body_hash};

/// The field that carries `ROUND-NUMBER`.
pub(super) const ID_FIELD: &str = "X-Chaos-Id";
/// Envelope sender of all mail; bounces come back to a sink.
pub(super) const SENDER: &str = "sender@d1.example";
/// Connections that say nothing for so long are closed.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Longest content; the load makes much less.
const CONTENT_BYTES_MAX: u64 = 64 << 20;
const FIRST_PORT: u16 = 2600;

/// What the nodes run: takes everything, leads each domain to its sink.
pub(super) const POLICY: &str = r#"
qualify_domain "chaos.example"
smtp_accept_max 1000
smtp_accept_max_per_host 1000
message_size_limit "20M"
check_spool_space "16M"
check_spool_inodes 100
acl "relay" { rcpt { accept; } }
routers { manualroute "sink" route="{table:routes:{domain}}" transport="smtp"; }
transports { smtp "smtp" port=2525; }
"#;

/// How a sink behaves while faults are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Temper {
    /// Takes everything.
    Good,
    /// 4xx for a recipient, or after the final dot.
    Refusing,
    /// Answers the final dot late.
    Stalling,
    /// Cuts the connection before the final dot, or after it and before the answer.
    Cutting,
    /// 550 for some recipients: their senders get bounces.
    Unknowing,
}

const TEMPERS: [Temper; 5] =
    [Temper::Good, Temper::Refusing, Temper::Stalling, Temper::Cutting, Temper::Unknowing];

/// Domains, each with a sink.
pub(super) const DOMAINS: u16 = TEMPERS.len() as u16;

/// Domain of a sink, from 1.
pub(super) fn domain(number: u16) -> String {
    format!("d{number}.example")
}

/// The table that leads each domain to its sink.
pub(super) fn routes() -> String {
    let mut text = String::new();
    for number in 1..=DOMAINS {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{} {}", domain(number), network::harness(FIRST_PORT + number));
    }
    text
}

/// A delivery by another node than the one that took the message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Takeover {
    /// Who took it.
    pub(super) accepted_by: u16,
    /// When the final dot came.
    pub(super) at: Duration,
}

/// What the sinks share with the rest of the harness.
#[derive(Debug)]
pub(super) struct Shared {
    begin: Instant,
    seed: u64,
    calm: AtomicBool,
    connections: AtomicU64,
    /// By round, from 1; what comes late still counts for its own.
    histories: Mutex<Vec<History>>,
    takeovers: Mutex<Vec<Takeover>>,
}

impl Shared {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            begin: Instant::now(),
            seed,
            calm: AtomicBool::new(true),
            connections: AtomicU64::new(0),
            histories: Mutex::default(),
            takeovers: Mutex::default(),
        })
    }

    /// Time of the histories.
    pub(super) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Calm sinks take everything.
    pub(super) fn set_calm(&self, calm: bool) {
        self.calm.store(calm, Ordering::Relaxed);
    }

    /// Works on the history of a round, counted from 1.
    pub(super) fn with<T>(&self, round: u64, work: impl FnOnce(&mut History) -> T) -> T {
        let mut histories = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(round).unwrap_or(usize::MAX).saturating_sub(1);
        if histories.len() <= index {
            histories.resize_with(index + 1, History::default);
        }
        work(&mut histories[index])
    }

    /// Deliveries by another node than the one that took the message, since the last call.
    pub(super) fn takeovers(&self) -> Vec<Takeover> {
        std::mem::take(&mut *self.takeovers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn record(&self, from: Option<u16>, mail: &Mail, answered: Option<Duration>) {
        let content = String::from_utf8_lossy(&mail.content);
        let Some((round, message)) = id(&content) else {
            // Without an id it is of no round; the first one reports it.
            self.with(1, |history| {
                history.stranger(format!("mail without id from {}", mail.sender))
            });
            return;
        };
        if mail.sender.is_empty() {
            // One report per recipient that failed; which one is in its machine-readable part.
            let failed = content.lines().filter_map(|line| {
                line.strip_prefix("Final-Recipient:")?
                    .split_once(';')
                    .map(|(_, address)| address.trim())
            });
            let items: Vec<Item> = failed
                .filter_map(|address| Some(Item { message, recipient: recipient(address)? }))
                .collect();
            self.with(round, |history| items.iter().for_each(|item| history.bounce(*item)));
            return;
        }
        let body = mail.content.windows(4).position(|end| end == b"\r\n\r\n");
        let body = body_hash(body.map_or(&[], |end| &mail.content[end + 4..]));
        self.with(round, |history| {
            for address in &mail.recipients {
                let Some(recipient) = recipient(address) else {
                    history.stranger(format!("a recipient {address}"));
                    continue;
                };
                let delivery = Delivery { body, dot: mail.dot, answered };
                let item = Item { message, recipient };
                match from {
                    Some(node) => history.deliver_from(node, item, delivery),
                    None => history.deliver(item, delivery),
                }
            }
        });
        let by = accepted_by(&content);
        if let Some(accepted_by) = by.filter(|by| Some(*by) != from) {
            let takeover = Takeover { accepted_by, at: mail.dot };
            self.takeovers.lock().unwrap_or_else(PoisonError::into_inner).push(takeover);
        }
    }
}

/// Opens the sinks and serves them until the process ends.
pub(super) fn start(shared: &Arc<Shared>) -> Result<(), HarnessError> {
    for (number, temper) in (1..).zip(TEMPERS) {
        let address = network::harness(FIRST_PORT + number);
        let listener =
            TcpListener::bind(address).map_err(|error| HarnessError::Listen { address, error })?;
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // An error is the end of a connection, as it is of many here.
                std::thread::spawn(move || Session::new(&shared, temper, stream)?.run());
            }
        });
    }
    Ok(())
}

/// A transaction.
#[derive(Debug, Default)]
struct Mail {
    sender: String,
    recipients: Vec<String>,
    content: Vec<u8>,
    dot: Duration,
}

struct Session<'a> {
    shared: &'a Shared,
    temper: Temper,
    /// The node at the other end.
    from: Option<u16>,
    rng: StdRng,
    reader: BufReader<TcpStream>,
}

impl<'a> Session<'a> {
    fn new(shared: &'a Shared, temper: Temper, stream: TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(IDLE_MAX))?;
        stream.set_write_timeout(Some(IDLE_MAX))?;
        stream.set_nodelay(true)?;
        let from = stream.peer_addr().ok().and_then(network::node_of);
        let number = shared.connections.fetch_add(1, Ordering::Relaxed);
        let rng = StdRng::seed_from_u64(shared.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Ok(Self { shared, temper, from, rng, reader: BufReader::new(stream) })
    }

    fn run(mut self) -> std::io::Result<()> {
        self.say("220 sink")?;
        let mut mail = Mail::default();
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" => self.say("250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE")?,
                "MAIL" => {
                    mail = Mail { sender: path(line), ..Mail::default() };
                    self.say("250 sender")?;
                }
                "RCPT" => {
                    if self.refuses(Temper::Refusing, 0.1) {
                        self.say("451 4.2.0 not now")?;
                    } else if self.temper == Temper::Unknowing && unknown_mailbox(&path(line)) {
                        self.say("550 5.1.1 nobody here by that name")?;
                    } else {
                        mail.recipients.push(path(line));
                        self.say("250 recipient")?;
                    }
                }
                "DATA" if mail.recipients.is_empty() => self.say("503 5.5.1 no recipient")?,
                "DATA" => {
                    self.say("354 go on")?;
                    self.data(std::mem::take(&mut mail))?;
                }
                "QUIT" => return self.say("221 bye"),
                _ => self.say("250 fine")?,
            }
        }
    }

    /// Content, final dot, answer.
    fn data(&mut self, mut mail: Mail) -> std::io::Result<()> {
        if self.refuses(Temper::Cutting, 0.08) {
            let mut some = [0; 512];
            let _ = self.reader.read(&mut some)?;
            return self.cut();
        }
        loop {
            let mut line = Vec::new();
            let read = (&mut self.reader).take(CONTENT_BYTES_MAX).read_until(b'\n', &mut line)?;
            if read == 0 || mail.content.len() as u64 > CONTENT_BYTES_MAX {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if line == b".\r\n" {
                break;
            }
            let dots = usize::from(line.starts_with(b"."));
            mail.content.extend_from_slice(&line[dots..]);
        }
        mail.dot = self.shared.now();
        if self.refuses(Temper::Refusing, 0.1) {
            return self.say("451 4.3.0 not this one");
        }
        if self.refuses(Temper::Stalling, 0.2) {
            std::thread::sleep(Duration::from_millis(self.rng.random_range(100..2_500)));
        }
        if self.refuses(Temper::Cutting, 0.08) {
            self.shared.record(self.from, &mail, None);
            return self.cut();
        }
        let said = self.say("250 2.0.0 taken");
        let answered = said.is_ok().then(|| self.shared.now());
        self.shared.record(self.from, &mail, answered);
        said
    }

    /// Whether a sink of this temper shows it now.
    fn refuses(&mut self, temper: Temper, chance: f64) -> bool {
        self.temper == temper
            && !self.shared.calm.load(Ordering::Relaxed)
            && self.rng.random_bool(chance)
    }

    fn cut(&self) -> std::io::Result<()> {
        let _ = self.reader.get_ref().shutdown(Shutdown::Both);
        Err(std::io::ErrorKind::ConnectionAborted.into())
    }

    fn say(&mut self, line: &str) -> std::io::Result<()> {
        self.reader.get_mut().write_all(format!("{line}\r\n").as_bytes())
    }
}

/// Between `<` and `>`.
fn path(line: &str) -> String {
    let inside = line.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inside.map_or("", |(path, _)| path).to_owned()
}

/// One in seven mailboxes does not exist, always the same ones: local parts are `rRECIPIENT.MESSAGE`.
pub(super) fn unknown_mailbox(address: &str) -> bool {
    let local = address.split('@').next().unwrap_or_default();
    let message = local.split('.').nth(1).and_then(|number| number.parse::<u64>().ok());
    message.is_some_and(|message| message % 7 == 0)
}

/// An item's recipient number from its address `rNUMBER.MESSAGE@…`.
fn recipient(address: &str) -> Option<u16> {
    address.strip_prefix('r')?.split('.').next()?.parse().ok()
}

/// Round and number of a message, or of the one that a bounce quotes.
fn id(content: &str) -> Option<(u64, u64)> {
    let line = content.lines().find_map(|line| line.strip_prefix(ID_FIELD)?.strip_prefix(": "))?;
    let (round, number) = line.trim().split_once('-')?;
    Some((round.parse().ok()?, number.parse().ok()?))
}

/// The node that took the message: `by node-N` of its newest trace field.
fn accepted_by(content: &str) -> Option<u16> {
    let (_, rest) = content.split_once("by node-")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_addresses_and_trace_fields_are_read() {
        let content =
            "Received: from x\r\n\tby node-3 with esmtp\r\nX-Chaos-Id: 2-17\r\n\r\ntext\r\n";
        assert_eq!(id(content), Some((2, 17)));
        assert_eq!(accepted_by(content), Some(3));
        assert_eq!(recipient("r4.17@d1.example"), Some(4));
        assert_eq!(recipient("other@d1.example"), None);
        assert_eq!(path("RCPT TO:<r1.2@d1.example> X"), "r1.2@d1.example");
        assert!(unknown_mailbox("r0.14@d5.example") && !unknown_mailbox("r0.15@d5.example"));
    }
}
