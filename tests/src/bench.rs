//! What `bench` is made of: servers under the same load, and what it cost.
//!
//! Everything is measured in the same way for every server: the whole machine's CPU time less that of the load and of the sink, what
//! the block device was told to write, the syncs that a library in front of the C library saw.

mod bare;
mod closed;
mod cluster;
mod exim;
mod load;
mod meter;
mod opensmtpd;
mod postfix;
mod syncs;

use std::{
    path::{Path, PathBuf},
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

pub use self::{
    bare::Bare,
    cluster::Nodes,
    exim::Exim,
    load::{Beside, Content, DOMAIN, Latencies, Load, Sender},
    meter::{Cost, Meter},
    opensmtpd::OpenSmtpd,
    postfix::Postfix,
    syncs::Syncs,
};
use crate::process::Guard;

/// Time for a queue to become empty, from the end of the load.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a queue is looked at: what a measurement may be wrong by.
const LOOK: Duration = Duration::from_millis(50);
/// How often a long run looks at memory.
pub const MEMORY_LOOK: Duration = Duration::from_secs(60);

/// A mail server that can be loaded.
pub trait Server {
    fn name(&self) -> String;

    /// Starts it, or brings it to the state of an empty queue. `hold`: what is taken stays in the queue.
    fn begin(&mut self, hold: bool);

    /// Where it takes mail: the load is spread over all of these.
    fn addresses(&self) -> Vec<std::net::SocketAddr>;

    /// Whether the queue is empty.
    fn is_empty(&self) -> bool;

    /// Whether it delivers nothing, knows no TLS, and has messages in memory as a whole.
    fn only_takes(&self) -> bool {
        false
    }

    /// All its processes.
    fn processes(&self) -> Vec<u32>;

    /// Its mail logs.
    fn logs(&self) -> Vec<PathBuf>;

    /// Nothing runs that could disturb others.
    fn end(&mut self);
}

/// What one run of one server gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// Messages a second that were taken.
    pub taken: f64,
    /// Messages a second that were taken and delivered; as `taken` if nothing is delivered.
    pub relayed: f64,
    pub cost: Cost,
    /// Of the bytes that were written: those of mail logs, by the length of their lines.
    pub log_bytes: u64,
    pub messages: usize,
    /// Bytes of mail.
    pub bytes: u64,
    /// Times from the final dot to its reply, if the load was our own client.
    pub latencies: Option<Latencies>,
    /// Bytes of memory while the load went on, each [`MEMORY_LOOK`].
    pub memory: Vec<u64>,
}

/// Loads a server once. `sink` is where it delivers to: its CPU time does not count. `None`: what is taken stays.
pub fn run(server: &mut dyn Server, load: &Load, syncs: &Syncs, sink: Option<&Guard>) -> Run {
    server.begin(sink.is_none());
    let logged = lengths(&server.logs());
    let meter = Meter::begin(sink.map(Guard::pid), syncs);
    let begun = Instant::now() + load.start();
    let (addresses, processes) = (server.addresses(), server.processes());
    let (latencies, memory) = std::thread::scope(|scope| {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let watch = scope.spawn(move || {
            let mut seen = Vec::new();
            while ended.recv_timeout(MEMORY_LOOK).is_err_and(|e| e == RecvTimeoutError::Timeout) {
                seen.push(meter::memory_of(&processes));
                // Whoever breaks off a long run has seen so much.
                eprintln!("after {} min: {} MiB", seen.len(), seen[seen.len() - 1] >> 20);
            }
            seen
        });
        let latencies = load.run(&addresses);
        drop(end);
        (latencies, watch.join().unwrap())
    });
    let taken = begun.elapsed();
    if sink.is_some() {
        let loaded = Instant::now();
        while !server.is_empty() {
            assert!(
                loaded.elapsed() < PATIENCE,
                "{}: the queue does not become empty",
                server.name()
            );
            std::thread::sleep(LOOK);
        }
    }
    let relayed = begun.elapsed();
    let messages = latencies.as_ref().map_or(load.messages, Latencies::count);
    let cost = meter.end(&server.processes());
    let log_bytes = lengths(&server.logs()).saturating_sub(logged);
    server.end();
    let rate = |took: Duration| messages as f64 / took.as_secs_f64();
    let bytes = (messages * load.message_bytes()) as u64;
    let (taken, relayed) = (rate(taken), rate(relayed));
    Run { taken, relayed, cost, log_bytes, messages, bytes, latencies, memory }
}

/// Of files that are there.
fn lengths(files: &[PathBuf]) -> u64 {
    files.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|file| file.len()).sum()
}

/// An `smtp-sink` of Postfix for up to a thousand connections.
pub fn smtp_sink(address: std::net::SocketAddr, dir: &Path) -> Guard {
    let mut command = std::process::Command::new("/usr/sbin/smtp-sink");
    command.args(["-u", "nobody", &address.to_string(), "1000"]);
    let sink = Guard::spawn(&mut command, &dir.join("smtp-sink.log"));
    listens(address);
    sink
}

/// Waits until somebody listens.
fn listens(address: std::net::SocketAddr) {
    crate::wait_for(&format!("a server at {address}"), PATIENCE, || {
        std::net::TcpStream::connect(address).ok()
    });
}

/// Whether no file is below any of the directories.
fn no_files(dirs: &[PathBuf]) -> bool {
    dirs.iter().all(|dir| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.into_iter().all(|entry| {
            entry.file_type().is_ok_and(|kind| kind.is_dir()) && no_files(&[entry.path()])
        })
    })
}
