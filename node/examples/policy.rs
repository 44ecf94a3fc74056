//! What the rules of a whole session cost: connect, helo, mail, rcpt, predata, data, quit of the Cambridge `mx`
//! personality, with answers of DNS and callouts at hand.
//!
//! `cargo run --release -p ppsw-node --example policy -- [BLOCKS [MESSAGES]]`

use std::{path::Path, sync::Arc, time::Instant};

use async_trait::async_trait;
use ppsw_node::{
    callout::{Answer, Callouts, Question},
    dns::{Dns, FixedDns},
    policy::{
        Configuration, Connection, NodeFacts, Service, Stage, Surroundings, Transaction, Verdict,
    },
    rate::Rates,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

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

/// Name, client and HELO of the sessions that are measured.
const CLIENTS: [(&str, &str, &str); 2] = [
    ("a client of the university (no DNS)", "131.111.9.9", "x.csi.cam.ac.uk"),
    ("a stranger (DNS lists and names, answers at hand)", "198.51.100.7", "client.example.org"),
];

fn dns() -> Result<FixedDns, Failure> {
    Ok(FixedDns::default()
        .with_mx("cam.ac.uk", 10, "mx.cam.ac.uk")
        .with_mx("example.org", 10, "mx.example.org")
        .with_address("mx.example.org", "203.0.113.1".parse()?)
        .with_host("client.example.org", "198.51.100.7".parse()?))
}

async fn session(
    configuration: &Configuration,
    around: &Surroundings,
    client: &str,
    helo: &str,
) -> Result<(), Failure> {
    let name = around.dns.names(client.parse()?).await.ok();
    let client = format!("{client}:40000").parse()?;
    let mut connection = Connection::new(client, "131.111.8.140:25".parse()?, Service::Smtp);
    connection.client_name = name.and_then(|names| names.into_iter().next());
    connection.helo = Some(helo.to_owned());
    let stages = [
        Stage::Connect,
        Stage::Helo,
        Stage::Mail,
        Stage::Rcpt,
        Stage::Predata,
        Stage::Data,
        Stage::Quit,
    ];
    for stage in stages {
        let transaction = Transaction {
            sender: "spqr1@hermes.cam.ac.uk".to_owned(),
            recipient: (stage == Stage::Rcpt).then(|| "spqr2@hermes.cam.ac.uk".to_owned()),
            recipients_accepted: usize::from(stage > Stage::Rcpt),
            size_declared: Some(2_000),
        };
        let decision = configuration.check(stage, &mut connection, &transaction, around).await;
        if decision.verdict != Verdict::Accept {
            return Err(format!("{stage:?}: {:?}", decision.verdict).into());
        }
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn main() -> Result<(), Failure> {
    let mut numbers = std::env::args().skip(1);
    let mut number = |default: usize| numbers.next().map_or(Ok(default), |text| text.parse());
    let (blocks, messages) = (number(20)?, number(20_000)?);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cambridge");
    let configuration = Configuration::load(&dir).map_err(|errors| format!("{errors:?}"))?;
    let dns: Arc<dyn Dns> = Arc::new(dns()?);
    let around = Surroundings {
        dns,
        facts: Arc::new(Quiet),
        callouts: Arc::new(Quiet),
        rates: Rates::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for (what, client, helo) in CLIENTS {
        let mut times = Vec::new();
        for _ in 0..blocks {
            let begun = Instant::now();
            runtime.block_on(async {
                for _ in 0..messages {
                    session(&configuration, &around, client, helo).await?;
                }
                Ok::<_, Failure>(())
            })?;
            times.push(begun.elapsed().as_secs_f64() * 1e6 / messages as f64);
        }
        times.sort_by(f64::total_cmp);
        let (min, median, max) = (times[0], times[times.len() / 2], times[times.len() - 1]);
        println!(
            "{what}: min {min:.2} µs, median {median:.2} µs, max {max:.2} µs a message; {blocks} blocks of {messages}"
        );
    }
    Ok(())
}
