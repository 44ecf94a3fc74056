//! Clients that hand mail in at all nodes until they are stopped, and write down what they were told.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    cluster,
    sink::{self, Shared},
};
use crate::checker::{Answer, BodyHash, Item, body_hash};

/// Clients of each node.
const CLIENTS: u16 = 3;
/// After a refused connection or an error.
const BACK_OFF: Duration = Duration::from_millis(50);
/// Between two messages.
const PAUSE: Duration = Duration::from_millis(25);
/// How long a client waits for an answer: the first of each node is patient, the others are not.
const PATIENCE: [Duration; 2] = [Duration::from_secs(65), Duration::from_secs(5)];
const TEXT_BYTES: usize = 16 * 1024;
/// Longest line of a body.
const LINE_MAX: usize = 500;
const MESSAGES_PER_CONNECTION: u32 = 30;

/// Who got a 250, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) node: u16,
    pub(super) client: u16,
    pub(super) at: Duration,
}

/// The clients of one round.
pub(super) struct Load {
    shared: Arc<LoadShared>,
    threads: Vec<JoinHandle<()>>,
    clients: Vec<(u16, u16)>,
    begin: Duration,
}

struct LoadShared {
    sink: Arc<Shared>,
    round: u64,
    seed: u64,
    stop: AtomicBool,
    next: AtomicU64,
    taken: Mutex<Vec<Taken>>,
}

/// A message that is handed in until its answer is seen or given up.
struct Letter {
    number: u64,
    recipients: Vec<String>,
    content: Vec<u8>,
    hash: BodyHash,
}

/// How far a client got, and why not further.
struct Fault {
    answer: Answer,
}

impl Load {
    /// Starts clients of all nodes.
    pub(super) fn start(sink: &Arc<Shared>, round: u64, seed: u64, nodes: u16) -> Self {
        let shared = Arc::new(LoadShared {
            sink: Arc::clone(sink),
            round,
            seed,
            stop: AtomicBool::new(false),
            next: AtomicU64::new(1),
            taken: Mutex::default(),
        });
        let clients: Vec<_> =
            (1..=nodes).flat_map(|node| (0..CLIENTS).map(move |client| (node, client))).collect();
        let threads = clients.iter().map(|&(node, client)| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || Client::new(&shared, node, client).run())
        });
        Self { threads: threads.collect(), clients, begin: sink.now(), shared }
    }

    /// Lets every client end its message; gives the pauses of all clients.
    pub(super) fn stop(self) -> Pauses {
        let end = self.shared.sink.now();
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // A client does not panic; if it did, its messages would be missing in the history.
            let _ = thread.join();
        }
        let taken = self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let pauses = self.clients.iter().map(|&(node, client)| {
            let mut last = self.begin;
            let mut longest = Duration::ZERO;
            let own = taken.iter().filter(|taken| (taken.node, taken.client) == (node, client));
            for at in own.map(|taken| taken.at.min(end)).chain([end]) {
                longest = longest.max(at.saturating_sub(last));
                last = at;
            }
            (node, longest)
        });
        Pauses(pauses.collect())
    }
}

/// The longest time without a 250 of each client, by the node it belongs to.
#[derive(Clone, Debug, Default)]
pub(super) struct Pauses(Vec<(u16, Duration)>);

impl Pauses {
    pub(super) fn longest(&self) -> Option<Duration> {
        self.0.iter().map(|(_, pause)| *pause).max()
    }

    /// Of clients whose node is not in the list.
    pub(super) fn longest_elsewhere(&self, faulty: &[u16]) -> Option<Duration> {
        self.0.iter().filter(|(node, _)| !faulty.contains(node)).map(|(_, pause)| *pause).max()
    }
}

struct Client<'a> {
    shared: &'a LoadShared,
    node: u16,
    client: u16,
    rng: StdRng,
    text: Vec<u8>,
}

impl<'a> Client<'a> {
    fn new(shared: &'a LoadShared, node: u16, client: u16) -> Self {
        let mixed = shared.seed ^ (shared.round << 32) ^ (u64::from(node) << 8) ^ u64::from(client);
        let mut rng = StdRng::seed_from_u64(mixed);
        Self { shared, node, client, text: text(&mut rng), rng }
    }

    fn run(mut self) {
        let mut again: Option<Letter> = None;
        while !self.stopped() {
            let Some(mut connection) = Connection::open(self.node, self.patience()) else {
                std::thread::sleep(BACK_OFF);
                continue;
            };
            for _ in 0..MESSAGES_PER_CONNECTION {
                if self.stopped() {
                    break;
                }
                let letter = again.take().unwrap_or_else(|| self.letter());
                if self.rng.random_bool(0.01) {
                    connection.vanish(&letter);
                    self.note(&letter, Answer::NotOffered);
                    break;
                }
                let sent = connection.send(&letter);
                let answer = sent.as_ref().map_or_else(|fault| fault.answer, |answer| *answer);
                self.note(&letter, answer);
                if answer == Answer::Unknown && self.rng.random_bool(0.5) {
                    again = Some(letter);
                }
                if sent.is_err() {
                    std::thread::sleep(BACK_OFF);
                    break;
                }
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn patience(&self) -> Duration {
        PATIENCE[usize::from(self.client.min(1))]
    }

    fn note(&self, letter: &Letter, answer: Answer) {
        let shared = self.shared;
        shared.sink.with(shared.round, |history| {
            letter.items().for_each(|item| history.answer(item, answer));
        });
        if answer == Answer::Acknowledged {
            let taken = Taken { node: self.node, client: self.client, at: shared.sink.now() };
            shared.taken.lock().unwrap_or_else(PoisonError::into_inner).push(taken);
        }
    }

    /// A new message; announced before its first byte is sent.
    fn letter(&mut self) -> Letter {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let count = if self.rng.random_bool(0.2) { self.rng.random_range(2..=4) } else { 1 };
        let recipients: Vec<String> = (0..count)
            .map(|recipient| {
                let domain = sink::domain(self.rng.random_range(1..=sink::DOMAINS));
                format!("r{recipient}.{number}@{domain}")
            })
            .collect();
        let bytes = match self.rng.random_range(0..60) {
            // Several chunks.
            0 => self.rng.random_range(300_000..1_500_000),
            // More than travels inside the accepting entry.
            1..=3 => self.rng.random_range(65_000..200_000),
            _ => self.rng.random_range(100..8_000),
        };
        let body = body(&mut self.rng, &self.text, bytes);
        let hash = body_hash(&body);
        let head = format!(
            "{}: {}-{number}\r\nFrom: {from}\r\nTo: {}\r\nSubject: {number}\r\n\r\n",
            sink::ID_FIELD,
            self.shared.round,
            recipients.join(", "),
            from = sink::SENDER,
        );
        let content = [head.into_bytes(), body].concat();
        let letter = Letter { number, recipients, content, hash };
        self.shared.sink.with(self.shared.round, |history| {
            letter.items().for_each(|item| history.offer(item, letter.hash));
        });
        letter
    }
}

impl Letter {
    fn items(&self) -> impl Iterator<Item = Item> + '_ {
        let count = u16::try_from(self.recipients.len()).unwrap_or(u16::MAX);
        (0..count).map(|recipient| Item { message: self.number, recipient })
    }
}

/// Random text that bodies are made of: making each anew would cost more than sending it.
fn text(rng: &mut StdRng) -> Vec<u8> {
    (0..TEXT_BYTES).map(|_| rng.random_range(b' '..=b'~')).collect()
}

/// Lines of random pieces of a text, some of which begin with a dot.
fn body(rng: &mut StdRng, text: &[u8], bytes: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(bytes + LINE_MAX);
    while body.len() < bytes {
        if rng.random_bool(0.05) {
            body.push(b'.');
        }
        let begin = rng.random_range(0..text.len() - LINE_MAX);
        body.extend_from_slice(&text[begin..begin + rng.random_range(0..LINE_MAX)]);
        body.extend_from_slice(b"\r\n");
    }
    body
}

struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    fn open(node: u16, patience: Duration) -> Option<Self> {
        let stream =
            TcpStream::connect_timeout(&cluster::smtp(node), Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        stream.set_write_timeout(Some(patience)).ok()?;
        stream.set_nodelay(true).ok()?;
        let mut connection = Self { reader: BufReader::new(stream) };
        (connection.reply().ok()? == 220).then_some(())?;
        (connection.command("EHLO client.example").ok()? == 250).then_some(connection)
    }

    /// One transaction; after an `Err` the connection is of no use.
    fn send(&mut self, letter: &Letter) -> Result<Answer, Fault> {
        let before = |_| Fault { answer: Answer::NotOffered };
        if !self.envelope(letter).map_err(before)? {
            return Err(Fault { answer: Answer::NotOffered });
        }
        let wire = stuffed(&letter.content);
        self.reader.get_mut().write_all(&wire).map_err(before)?;
        // From here on nobody knows, until there is an answer.
        let unknown = |_| Fault { answer: Answer::Unknown };
        self.reader.get_mut().write_all(b".\r\n").map_err(unknown)?;
        match self.reply().map_err(unknown)? {
            250 => Ok(Answer::Acknowledged),
            _ => Err(Fault { answer: Answer::Refused }),
        }
    }

    /// Goes away in the middle of the content.
    fn vanish(&mut self, letter: &Letter) {
        if self.envelope(letter).is_ok_and(|good| good) {
            let half = &letter.content[..letter.content.len() / 2];
            let _ = self.reader.get_mut().write_all(&stuffed(half));
        }
    }

    /// Up to the answer of DATA; whether it was 354.
    fn envelope(&mut self, letter: &Letter) -> std::io::Result<bool> {
        if self.command(&format!("MAIL FROM:<{}>", sink::SENDER))? != 250 {
            return Ok(false);
        }
        for recipient in &letter.recipients {
            if self.command(&format!("RCPT TO:<{recipient}>"))? != 250 {
                return Ok(false);
            }
        }
        Ok(self.command("DATA")? == 354)
    }

    fn command(&mut self, line: &str) -> std::io::Result<u16> {
        self.reader.get_mut().write_all(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    /// The code of a reply, of however many lines.
    fn reply(&mut self) -> std::io::Result<u16> {
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line.get(..3).and_then(|code| code.parse().ok()).unwrap_or(0));
            }
        }
    }
}

/// With dots doubled at the beginning of lines (RFC 5321 §4.5.2).
fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(content.len() + 64);
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    wire
}
