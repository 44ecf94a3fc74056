//! Load with a memory: which messages were answered 250, which may or may not have been taken.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use crate::{client::Client, sink::ID_FIELD};

/// Wait after a refused connection or an error.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Messages of one connection.
const MESSAGES_PER_CONNECTION: usize = 20;

/// What became of the messages of a load.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answered 250, and when.
    pub taken: HashMap<String, SystemTime>,
    /// Sent in full and not answered: may have been taken.
    pub in_doubt: HashSet<String>,
    /// Answered with a refusal: the reply, and how often.
    pub refused: HashMap<String, usize>,
}

impl Tally {
    /// Everything that may be somewhere in the cluster.
    pub fn sent(&self) -> HashSet<String> {
        self.taken.keys().chain(&self.in_doubt).cloned().collect()
    }
}

/// Clients that send until they are stopped.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    /// Beginning of the ids.
    name: String,
    next: AtomicU64,
    pause: Duration,
    recipients: Vec<String>,
    tally: Mutex<Tally>,
}

impl Load {
    /// As [`Load::start_named`], under the name `load`.
    pub fn start(
        addresses: &[SocketAddr],
        clients: usize,
        pause: Duration,
        recipients: &[&str],
    ) -> Self {
        Self::start_named("load", addresses, clients, pause, recipients)
    }

    /// Starts `clients` threads for each address. Each sends small messages to one of `recipients` in turn and
    /// pauses after each.
    pub fn start_named(
        name: &str,
        addresses: &[SocketAddr],
        clients: usize,
        pause: Duration,
        recipients: &[&str],
    ) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            name: name.to_owned(),
            next: AtomicU64::new(0),
            pause,
            recipients: recipients.iter().map(|&recipient| recipient.to_owned()).collect(),
            tally: Mutex::default(),
        });
        let threads = addresses
            .iter()
            .flat_map(|&address| std::iter::repeat_n(address, clients))
            .map(|address| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    while !shared.stop.load(Ordering::Relaxed) {
                        if shared.connection(address).is_err() {
                            std::thread::sleep(BACK_OFF);
                        }
                    }
                })
            })
            .collect();
        Self { shared, threads }
    }

    /// How it stands now.
    pub fn tally(&self) -> Tally {
        self.shared.tally.lock().unwrap().clone()
    }

    /// Messages that were answered 250 until now.
    pub fn taken(&self) -> usize {
        self.shared.tally.lock().unwrap().taken.len()
    }

    /// Lets every client end its message, and gives the result.
    pub fn stop(self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.shared.tally.lock().unwrap().clone()
    }
}

impl Shared {
    fn connection(&self, address: SocketAddr) -> std::io::Result<()> {
        let mut client = Client::connect(address)?;
        client.ehlo()?;
        for _ in 0..MESSAGES_PER_CONNECTION {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            self.message(&mut client)?;
            std::thread::sleep(self.pause);
        }
        client.quit();
        Ok(())
    }

    fn message(&self, client: &mut Client) -> std::io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", self.name);
        let recipient = &self.recipients[usize::try_from(number).unwrap() % self.recipients.len()];
        let content = format!(
            "{ID_FIELD}: {id}\r\nFrom: sender@example.org\r\nTo: {recipient}\r\nSubject: {number}\r\n\r\n{}",
            "a line of text that is there for its size\r\n"
                .repeat(usize::try_from(number % 50).unwrap())
        );
        let result = client.send("sender@example.org", &[recipient], content.as_bytes());
        let mut tally = self.tally.lock().unwrap();
        match result {
            Ok(reply) if reply.code == 250 => {
                tally.taken.insert(id, SystemTime::now());
                Ok(())
            }
            Ok(reply) => {
                // The queue id in some replies would make each of them a kind of its own.
                let kind =
                    format!("{} {}", reply.code, reply.text.chars().take(40).collect::<String>());
                *tally.refused.entry(kind).or_default() += 1;
                Err(std::io::Error::other("refused"))
            }
            Err(error) => {
                if error.in_doubt {
                    tally.in_doubt.insert(id);
                }
                Err(error.source)
            }
        }
    }
}
