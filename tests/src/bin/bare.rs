//! A node that does nothing with mail but have it on the disks of a majority before its reply: what the machine allows a cluster of this
//! shape. `bench --peers bare` runs it beside ppswitch; with neither consensus nor TLS, rules, routes or a queue it is no mail server.
//!
//! Each node takes mail, keeps one log that its own messages and those of the others go into, in flushes of all that waits, and
//! sends what it takes to all others.

#![allow(clippy::disallowed_methods, reason = "a measurement uses the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement fails by panicking"
)]

use std::{
    collections::VecDeque,
    fs::File,
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use clap::Parser;
use rustix::fs::{FallocateFlags, fallocate};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
};

/// As ppswitch has them.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Of one flush.
const FLUSH_BYTES_MAX: usize = 8 << 20;
/// What is sent to another node at once.
const SENT_AT_ONCE_MAX: usize = 1_024;
/// A longer message ends the connection.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
const LINE_BYTES_MAX: usize = 2_048;
const READ_BYTES: usize = 32 * 1024;
const RETRY: Duration = Duration::from_millis(20);

#[derive(Parser)]
#[command(about = "Has mail on the disks of a majority, and does nothing else with it")]
struct Arguments {
    /// Of this node, from 0
    #[arg(long)]
    number: usize,
    /// Where its log is
    #[arg(long)]
    dir: PathBuf,
    /// Where it takes mail
    #[arg(long)]
    smtp: SocketAddr,
    /// Where each node hears the others, its own among them
    #[arg(long, value_delimiter = ',')]
    links: Vec<SocketAddr>,
}

/// What goes into the log, and who wants to know when it is there.
struct Entry {
    body: Arc<[u8]>,
    of: Of,
}

enum Of {
    /// This node's message of that number.
    Own(u64),
    /// The message of that number of another node, which is told.
    Other(u64, UnboundedSender<u64>),
}

/// The messages that this node has taken.
struct Taken {
    state: Mutex<State>,
    log: UnboundedSender<Entry>,
    links: Vec<UnboundedSender<Arc<[u8]>>>,
}

struct State {
    /// How many there have been.
    count: u64,
    /// Up to which of them each node has synced.
    synced: Vec<u64>,
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
}

impl Taken {
    /// Returns when a majority has it.
    async fn take(&self, body: Vec<u8>) {
        let body: Arc<[u8]> = body.into();
        let (tell, told) = oneshot::channel();
        {
            let mut state = self.state.lock().unwrap();
            state.count += 1;
            let number = state.count;
            state.waiting.push_back((number, tell));
            for link in &self.links {
                // A node that has gone gets nothing more.
                let _ = link.send(Arc::clone(&body));
            }
            self.log.send(Entry { body, of: Of::Own(number) }).unwrap();
        }
        told.await.unwrap();
    }

    /// A node has synced all up to `number`.
    fn synced(&self, node: usize, number: u64) {
        let mut state = self.state.lock().unwrap();
        state.synced[node] = number;
        let mut by_node = state.synced.clone();
        by_node.sort_unstable_by(|one, other| other.cmp(one));
        let majority = by_node[by_node.len() / 2];
        while state.waiting.front().is_some_and(|(number, _)| *number <= majority) {
            let (_, tell) = state.waiting.pop_front().unwrap();
            // A client that has gone does not wait.
            let _ = tell.send(());
        }
    }
}

fn main() {
    let arguments = Arguments::parse();
    let processors = std::thread::available_parallelism().unwrap().get();
    // As `ppswd dev` divides them.
    let threads = (processors / arguments.links.len()).max(1);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(threads).enable_all().build().unwrap().block_on(run(arguments));
}

async fn run(arguments: Arguments) {
    let Arguments { number, dir, smtp, links } = arguments;
    let (log, entries) = unbounded_channel();
    let state = State { count: 0, synced: vec![0; links.len()], waiting: VecDeque::new() };
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for (node, address) in links.iter().enumerate().filter(|(node, _)| *node != number) {
        let (sender, receiver) = unbounded_channel();
        senders.push(sender);
        receivers.push((node, *address, receiver));
    }
    let taken = Arc::new(Taken { state: Mutex::new(state), log: log.clone(), links: senders });
    let writer = Arc::clone(&taken);
    std::thread::spawn(move || write(&dir, entries, |last| writer.synced(number, last)));
    for (node, address, receiver) in receivers {
        tokio::spawn(send(Arc::clone(&taken), node, address, receiver));
    }
    let others = TcpListener::bind(links[number]).await.unwrap();
    tokio::spawn(async move {
        loop {
            tokio::spawn(hear(others.accept().await.unwrap().0, log.clone()));
        }
    });
    let clients = TcpListener::bind(smtp).await.unwrap();
    loop {
        let (stream, _) = clients.accept().await.unwrap();
        let taken = Arc::clone(&taken);
        tokio::spawn(async move {
            // However it ends.
            let _ = talk(stream, &taken).await;
        });
    }
}

/// The log: all that waits is written and synced at once.
fn write(dir: &Path, mut entries: UnboundedReceiver<Entry>, synced: impl Fn(u64)) {
    let segment = |number: u64| {
        let file = File::create_new(dir.join(format!("{number}.seg"))).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, SEGMENT_BYTES).unwrap();
        let _ = std::fs::remove_file(dir.join(format!("{}.seg", number.saturating_sub(2))));
        file
    };
    let (mut number, mut offset) = (2, 0);
    let mut file = segment(number);
    while let Some(entry) = entries.blocking_recv() {
        let (mut flush, mut own, mut told) = (Vec::new(), 0, Vec::new());
        let mut next = Some(entry);
        while let Some(Entry { body, of }) = next {
            flush.extend_from_slice(&(body.len() as u64).to_le_bytes());
            flush.extend_from_slice(&body);
            match of {
                Of::Own(number) => own = number,
                Of::Other(number, who) => told.push((number, who)),
            }
            next = (flush.len() < FLUSH_BYTES_MAX).then(|| entries.try_recv().ok()).flatten();
        }
        if offset + flush.len() as u64 > SEGMENT_BYTES {
            number += 1;
            (file, offset) = (segment(number), 0);
        }
        file.write_all_at(&flush, offset).unwrap();
        file.sync_data().unwrap();
        offset += flush.len() as u64;
        if own > 0 {
            synced(own);
        }
        for (number, who) in told {
            // A node that has gone is not told.
            let _ = who.send(number);
        }
    }
}

/// Sends what is taken here to another node, and hears what it has.
async fn send(
    taken: Arc<Taken>,
    node: usize,
    address: SocketAddr,
    mut bodies: UnboundedReceiver<Arc<[u8]>>,
) {
    let stream = loop {
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    stream.set_nodelay(true).unwrap();
    let (mut answers, mut link) = stream.into_split();
    tokio::spawn(async move {
        while let Ok(number) = answers.read_u64_le().await {
            taken.synced(node, number);
        }
    });
    let mut next = Vec::new();
    while bodies.recv_many(&mut next, SENT_AT_ONCE_MAX).await > 0 {
        let mut wire = Vec::new();
        for body in next.drain(..) {
            wire.extend_from_slice(&(body.len() as u64).to_le_bytes());
            wire.extend_from_slice(&body);
        }
        if link.write_all(&wire).await.is_err() {
            return;
        }
    }
}

/// Hears what another node takes, and tells it what is synced here.
async fn hear(stream: TcpStream, log: UnboundedSender<Entry>) {
    stream.set_nodelay(true).unwrap();
    let (link, mut answers) = stream.into_split();
    let mut link = BufReader::with_capacity(READ_BYTES, link);
    let (tell, mut told) = unbounded_channel();
    tokio::spawn(async move {
        let mut synced = Vec::new();
        while told.recv_many(&mut synced, SENT_AT_ONCE_MAX).await > 0 {
            let last: u64 = *synced.last().unwrap();
            synced.clear();
            if answers.write_all(&last.to_le_bytes()).await.is_err() {
                return;
            }
        }
    });
    for number in 1.. {
        let Ok(octets) = link.read_u64_le().await else { return };
        assert!(octets <= MESSAGE_BYTES_MAX as u64, "another node sends {octets} octets");
        let mut body = vec![0; octets as usize];
        if link.read_exact(&mut body).await.is_err() {
            return;
        }
        let of = Of::Other(number, tell.clone());
        log.send(Entry { body: body.into(), of }).unwrap();
    }
}

/// A session: everything is welcome.
async fn talk(stream: TcpStream, taken: &Taken) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (client, mut replies) = stream.into_split();
    let mut client = BufReader::with_capacity(READ_BYTES, client);
    replies.write_all(b"220 bare ESMTP\r\n").await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut client).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await?;
        line.make_ascii_uppercase();
        match line.get(..4) {
            None => return Ok(()),
            Some(b"DATA") => {
                let Some(body) = content(&mut client, &mut replies).await? else { return Ok(()) };
                taken.take(body).await;
                replies.write_all(b"250 2.0.0 OK\r\n").await?;
            }
            Some(b"QUIT") => return replies.write_all(b"221 2.0.0 bye\r\n").await,
            Some(_) => replies.write_all(b"250 bare\r\n").await?,
        }
    }
}

/// Up to the final dot; `None` if that does not come. The client waits for the reply, so nothing is behind it.
async fn content(
    client: &mut BufReader<OwnedReadHalf>,
    replies: &mut OwnedWriteHalf,
) -> std::io::Result<Option<Vec<u8>>> {
    replies.write_all(b"354 go on\r\n").await?;
    let mut body = Vec::new();
    while !body.ends_with(b"\r\n.\r\n") {
        let piece = client.fill_buf().await?;
        let length = piece.len();
        if length == 0 || body.len() > MESSAGE_BYTES_MAX {
            return Ok(None);
        }
        body.extend_from_slice(piece);
        client.consume(length);
    }
    Ok(Some(body))
}
