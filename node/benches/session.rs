//! What a message costs between its session's lines: the content on the wire, the rules of a session, a table, a route.
//! `cargo bench -p ppsw-node`; `cargo test` runs each once.

#![allow(clippy::unwrap_used, reason = "what fails ends the measurement")]

use std::{collections::BTreeMap, fmt::Write as _, hint::black_box, path::Path, sync::Arc};

use async_trait::async_trait;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ppsw_node::{
    callout::{Answer, Callouts, Question},
    dns::FixedDns,
    policy::{Configuration, Connection, NodeFacts, Service, Stage, Surroundings, Transaction},
    rate::Rates,
    route::{About, route},
    smtp::{ContentReader, LineEnds},
    tables::Tables,
};
use tokio::runtime::{Builder, Runtime};

const CONTENT_BYTES: usize = 64 << 10;
const TABLE_ENTRIES: usize = 100_000;

struct Quiet;

#[async_trait]
impl Callouts for Quiet {
    async fn ask(&self, _: Question<'_>) -> Answer {
        Answer::Yes
    }
}

impl NodeFacts for Quiet {
    fn queue_length(&self) -> u64 {
        7
    }

    fn load(&self) -> Option<u32> {
        None
    }
}

fn cambridge() -> Arc<Configuration> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cambridge");
    Configuration::load(&dir).unwrap()
}

fn dns() -> FixedDns {
    FixedDns::default()
        .with_mx("cam.ac.uk", 10, "mx.cam.ac.uk")
        .with_mx("example.org", 10, "mx.example.org")
        .with_address("mx.example.org", "203.0.113.1".parse().unwrap())
        .with_host("client.example.org", "198.51.100.7".parse().unwrap())
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

fn content(c: &mut Criterion) {
    let mut content = Vec::new();
    while content.len() < CONTENT_BYTES {
        content.extend_from_slice(
            b"A line of text, as long as lines of mail are in the mean, more or less.\r\n",
        );
        content.extend_from_slice(b"..and one that begins with a dot\r\n");
    }
    content.extend_from_slice(b".\r\n");
    let mut group = c.benchmark_group("content");
    group.throughput(Throughput::Bytes(content.len() as u64));
    group.bench_function("DATA reader", |b| {
        let mut out = Vec::with_capacity(2 * content.len());
        b.iter(|| {
            out.clear();
            let mut reader = ContentReader::data(LineEnds::Refuse);
            reader.read(black_box(&content), &mut out);
            assert!(reader.ended());
        });
    });
    group.finish();
}

fn rules(c: &mut Criterion) {
    let (configuration, runtime) = (cambridge(), runtime());
    let around = Surroundings {
        dns: Arc::new(dns()),
        facts: Arc::new(Quiet),
        callouts: Arc::new(Quiet),
        rates: Rates::default(),
    };
    let transaction = Transaction {
        sender: "spqr1@hermes.cam.ac.uk".to_owned(),
        recipient: Some("spqr2@hermes.cam.ac.uk".to_owned()),
        recipients_accepted: 0,
        size_declared: Some(2_000),
    };
    let connection = || {
        let client = "131.111.9.9:40000".parse().unwrap();
        let mut connection =
            Connection::new(client, "131.111.8.140:25".parse().unwrap(), Service::Smtp);
        connection.helo = Some("x.csi.cam.ac.uk".to_owned());
        connection
    };
    c.bench_function("rules/rcpt", |b| {
        b.iter_batched_ref(
            connection,
            |connection| {
                let check = configuration.check(Stage::Rcpt, connection, &transaction, &around);
                black_box(runtime.block_on(check));
            },
            BatchSize::SmallInput,
        );
    });
}

fn tables(c: &mut Criterion) {
    let mut text = String::new();
    for n in 0..TABLE_ENTRIES {
        writeln!(text, "user{n:07}: user{n:07}@store-{}.example", n % 10).unwrap();
    }
    let files = BTreeMap::from([("tables/t".to_owned(), text.into_bytes())]);
    let tables = Tables::from_files(&files).unwrap();
    let keys: Vec<String> =
        (0..TABLE_ENTRIES).map(|n| format!("user{:07}", n * 7_919 % TABLE_ENTRIES)).collect();
    let mut keys = keys.iter().cycle();
    c.bench_function("table/found", |b| {
        b.iter(|| tables.get("t", keys.next().unwrap()).is_some());
    });
}

fn routes(c: &mut Criterion) {
    let (configuration, dns, runtime) = (cambridge(), dns(), runtime());
    let about = About { id: None, sender: "someone@example.org", personality: "mx" };
    c.bench_function("route/by MX", |b| {
        b.iter(|| runtime.block_on(route(&configuration, &dns, &about, "someone@example.org")));
    });
}

criterion_group!(benches, content, rules, tables, routes);
criterion_main!(benches);
