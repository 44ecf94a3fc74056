//! Fills a queue, and measures its memory and how long starts take with it.
//!
//! `cargo run --release -p ppsw-spool --example million [MESSAGES] [DIR]` (1,000,000 messages of 1 KiB need 2.5 GB of
//! disk below DIR, which is removed at the end). Every figure is of a process of its own, one partition, one voter.

#![allow(clippy::disallowed_methods, reason = "a program that measures owns its clock and files")]
#![allow(clippy::unwrap_used, reason = "what fails ends the measurement")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use ppsw_spool::{
    NodeId,
    env::{Clock, SystemClock, SystemDisk, UnixMs},
    group::{Dial, Groups, Lane, Timing},
    log::{Log, Options},
    queue::{Checkpoints, Envelope, Origin, Partition, Recipient, Spool, SpoolOptions},
};

const PATIENCE: Duration = Duration::from_secs(600);
const WRITERS: u64 = 256;

struct Alone;

#[async_trait]
impl Dial for Alone {
    fn channel(&self, _node: NodeId, _lane: Lane) -> Option<tonic::transport::Channel> {
        None
    }
}

#[derive(Clone, Copy)]
enum Step {
    Fill(u64),
    Start,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text = |at: usize| args.get(at).map(String::as_str);
    match (text(0), text(1), text(2)) {
        (Some("fill"), Some(dir), Some(messages)) => {
            run(Path::new(dir), Step::Fill(messages.parse().unwrap())).await;
        }
        (Some("start"), Some(dir), _) => run(Path::new(dir), Step::Start).await,
        (messages, dir, _) => {
            let messages = messages.unwrap_or("1000000");
            let dir = dir.map_or_else(|| std::env::temp_dir().join("ppsw-million"), PathBuf::from);
            measure(&dir, messages);
        }
    }
}

fn measure(dir: &Path, messages: &str) {
    std::fs::create_dir(dir).unwrap();
    println!("filling with {messages} messages:");
    child(&["fill", dir.to_str().unwrap(), messages]);
    let start = || child(&["start", dir.to_str().unwrap()]);
    println!("start with local checkpoint and index files:");
    start();
    println!("start without local checkpoint:");
    std::fs::remove_dir_all(dir.join("sled")).unwrap();
    start();
    println!("start without index files of segments:");
    for file in std::fs::read_dir(dir.join("log")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "idx") {
            std::fs::remove_file(path).unwrap();
        }
    }
    start();
    std::fs::remove_dir_all(dir).unwrap();
}

fn child(args: &[&str]) {
    let status = Command::new(std::env::current_exe().unwrap()).args(args).status().unwrap();
    assert!(status.success(), "{args:?}: {status}");
}

async fn run(dir: &Path, step: Step) {
    let begun = Instant::now();
    let empty = resident();
    let disk = Arc::new(SystemDisk);
    let options = Options { dir: dir.join("log"), segment_bytes: 64 << 20, cache_bytes: 8 << 20 };
    let log = Log::open(disk.clone(), options).unwrap();
    let opened = begun.elapsed();
    let checkpoints = Checkpoints::open(disk, dir.join("sled"), 1, &log).ok();
    let clock = Arc::new(SystemClock);
    let groups = Groups::new(1, log, clock.clone(), Arc::new(Alone), Timing::default());
    let options = SpoolOptions { checkpoints, ..SpoolOptions::default() };
    let spool = Spool::with_options(1, groups.clone(), clock, options);
    let partition = spool.open(1).await.unwrap();
    if let Step::Fill(_) = step {
        partition.group().initialise(&[1]).await.unwrap();
    }
    while !partition.may_deliver() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let leads = begun.elapsed();
    match step {
        Step::Fill(messages) => fill(&spool, messages).await,
        Step::Start => println!("  log open after {opened:.2?}, leads after {leads:.2?}"),
    }
    report(&partition, empty);
    spool.save().await;
    groups.shutdown().await;
}

async fn fill(spool: &Spool, messages: u64) {
    let begun = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let writers = (0..WRITERS).map(|_| {
        let (spool, next) = (spool.clone(), Arc::clone(&next));
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= messages {
                    return;
                }
                let mut writer = spool.begin(PATIENCE).await.unwrap();
                writer.write(&[b'm'; 1024]).await.unwrap();
                writer.accept(envelope(number), PATIENCE).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    println!("  {:.0} messages/s", messages as f64 / begun.elapsed().as_secs_f64());
}

/// An envelope as a relay sees it: no two alike.
fn envelope(number: u64) -> Envelope {
    let (a, b) = (number / 250 % 250, number % 250);
    let client_name = format!("mail-{a}-{b}.outbound.example.com");
    let recipient = Recipient {
        address: format!("recipient.{number:07}@college-{b}.example.ac.uk"),
        ..Recipient::default()
    };
    let received = SystemClock.now();
    Envelope {
        sender: format!("sender.number.{number:07}@department-{a}.example.org"),
        prepend: Bytes::from(format!(
            "Received: from {client_name} ([192.0.{a}.{b}]:52114)\r\n\tby ppsw-1.csi.cam.ac.uk \
             (smtp.hermes.cam.ac.uk [131.111.8.151]:25)\r\n\twith esmtps (TLS1.3:TLS_AES_256_GCM_SHA384:256)\r\n\tid \
             1abcde-{number:06}-01 (Exim 4.50) for <{}>\r\n\t(return-path <sender.number.{number:07}@department-{a}.\
             example.org>); Mon, 23 Nov 2026 23:00:00 +0000\r\n",
            recipient.address
        )),
        recipients: vec![recipient],
        origin: Origin {
            client: format!("192.0.{a}.{b}:52114"),
            helo: client_name.clone(),
            client_name,
            server: "131.111.8.151:25".into(),
            personality: "mx".into(),
            protocol: "ESMTPS".into(),
            tls: "TLS1.3:TLS_AES_256_GCM_SHA384:256".into(),
            ..Origin::default()
        },
        received: UnixMs(received.0),
        message_id_field: format!("<{number:016x}.{a}.{b}@department-{a}.example.org>"),
        received_count: 2,
        ..Envelope::default()
    }
}

fn report(partition: &Partition, empty: u64) {
    let messages = partition.len() as u64;
    let more = resident().saturating_sub(empty);
    println!(
        "  {messages} messages, {} MiB resident more than an empty process: {} bytes per message",
        more >> 20,
        more / messages.max(1)
    );
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}
