//! What the queue costs without a network: an append to the log, a message through a group of one voter into the index, a look at the
//! index. `cargo bench -p ppsw-spool`; `cargo test` runs each once.

#![allow(clippy::unwrap_used, reason = "what fails ends the measurement")]
#![allow(clippy::disallowed_methods, reason = "a benchmark uses the machine as it is")]

use std::{hint::black_box, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ppsw_spool::{
    NodeId,
    env::{Clock, SystemClock, SystemDisk},
    group::{Dial, Groups, Lane, Timing},
    log::{Log, Options},
    queue::{Envelope, Partition, Recipient, Spool, SpoolOptions, Turn},
};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(60);
const BODY: [u8; 4_096] = [b'm'; 4_096];
/// Messages at once: what shares a sync.
const TOGETHER: usize = 64;

struct Alone;

#[async_trait]
impl Dial for Alone {
    fn channel(&self, _node: NodeId, _lane: Lane) -> Option<tonic::transport::Channel> {
        None
    }
}

fn open(dir: &Path) -> Log {
    let options = Options { dir: dir.join("log"), segment_bytes: 64 << 20, cache_bytes: 8 << 20 };
    Log::open(Arc::new(SystemDisk), options).unwrap()
}

async fn lead(dir: &Path) -> (Spool, Partition) {
    let clock = Arc::new(SystemClock);
    let groups = Groups::new(1, open(dir), clock.clone(), Arc::new(Alone), Timing::default());
    let spool = Spool::with_options(1, groups, clock, SpoolOptions::default());
    let partition = spool.open(1).await.unwrap();
    partition.group().initialise(&[1]).await.unwrap();
    while !partition.may_deliver() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (spool, partition)
}

async fn accept(spool: &Spool) {
    let recipient = Recipient { address: "to@example.org".to_owned(), ..Recipient::default() };
    let envelope = Envelope {
        sender: "from@example.org".to_owned(),
        recipients: vec![recipient],
        received: SystemClock.now(),
        ..Envelope::default()
    };
    let mut writer = spool.begin(PATIENCE).await.unwrap();
    writer.write(&BODY).await.unwrap();
    writer.accept(envelope, PATIENCE).await.unwrap();
}

fn queue(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (spool, partition) = runtime.block_on(lead(dir.path()));
    let mut group = c.benchmark_group("queue");
    group.bench_function("accept 4 KiB, one at a time", |b| {
        b.iter(|| runtime.block_on(accept(&spool)));
    });
    group.throughput(Throughput::Elements(TOGETHER as u64));
    group.bench_function("accept 4 KiB, 64 at a time", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let all = (0..TOGETHER).map(|_| {
                    let spool = spool.clone();
                    tokio::spawn(async move { accept(&spool).await })
                });
                for one in all.collect::<Vec<_>>() {
                    one.await.unwrap();
                }
            });
        });
    });
    group.finish();
    c.bench_function("index/500 that are due", |b| {
        b.iter(|| black_box(partition.due(SystemClock.now(), Turn::First, 500, &|_| false)).len());
    });
}

criterion_group!(benches, queue);
criterion_main!(benches);
