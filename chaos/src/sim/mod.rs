//! The simulated harness: several nodes in one process, with turmoil's network and time and a disk in memory. They run
//! the real log, groups and queue of `spool`. Everything follows from the seed. See docs/simulation.md.

mod client;
mod cluster;
mod deliverer;
mod invariants;
mod ledger;
mod nemesis;
mod network;
mod node;
mod process;

use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use self::process::{Running, Shim};
use crate::{
    checker::Verdict,
    report::{Report, Row},
};

/// Seeds when none is named: a short run.
const SEEDS_DEFAULT: u64 = 20;

/// What to simulate.
#[derive(Clone, Debug, Args)]
pub(crate) struct SimArgs {
    /// How many seeds to run, each a simulation of its own [default: 20, or 1 with --seed]
    #[arg(long)]
    pub(crate) seeds: Option<u64>,
    /// The (first) seed. The same seed has the same faults at the same instants
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Builds a bug in, to see that it is found: ack-before-commit, skip-sync, one-voter-majority,
    /// deliver-without-lease, drop-outcome or truncate-early. Needs the feature `deliberate-faults`
    #[arg(long, value_name = "NAME")]
    pub(crate) fault: Option<String>,
    /// Ends at the first seed that fails
    #[arg(long)]
    pub(crate) until_failure: bool,
    /// Runs one seed in this process: what the harness starts for each
    #[arg(long, hide = true)]
    alone: bool,
}

/// Why a simulation could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimError {
    #[error("the C compiler cc is needed for the library that makes a seed repeatable: {0}")]
    Compiler(String),
    #[error("a temporary file: {0}")]
    Files(#[from] std::io::Error),
    #[error("--fault {0}: no such fault; see --help")]
    UnknownFault(String),
    #[error("--fault needs bugs that are built in: `--features deliberate-faults`")]
    NoFaults,
}

/// The bugs that can be chosen.
const FAULTS: [&str; 6] = [
    "ack-before-commit",
    "skip-sync",
    "one-voter-majority",
    "deliver-without-lease",
    "drop-outcome",
    "truncate-early",
];

/// What came of one seed, as its process tells.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Outcome {
    seed: u64,
    faults: String,
    verdict: Verdict,
    pause_ms: u64,
    /// Hash of everything that happened: the same for each run of a seed.
    trace: String,
    simulated_ms: u64,
    elections: u64,
    forwarded: u64,
    committed: u64,
}

impl Outcome {
    /// Of a simulation that told nothing.
    fn broken(seed: u64, why: &str) -> Self {
        let verdict = Verdict { violations: vec![why.to_owned()], ..Verdict::default() };
        Self { seed, verdict, ..Self::default() }
    }
}

pub(crate) fn run(args: &SimArgs) -> Result<Report, Box<dyn std::error::Error>> {
    if args.alone {
        return alone(args.seed.unwrap_or(1));
    }
    if let Some(fault) = &args.fault {
        if !FAULTS.contains(&fault.as_str()) {
            return Err(SimError::UnknownFault(fault.clone()).into());
        }
        if !cfg!(feature = "deliberate-faults") {
            return Err(SimError::NoFaults.into());
        }
    }
    let first = args.seed.unwrap_or(1);
    let default = if args.seed.is_some() { 1 } else { SEEDS_DEFAULT };
    let count = args.seeds.unwrap_or(default);
    let outcomes = run_all(args, first, count)?;
    Ok(report(args, &outcomes))
}

/// Runs one seed here, and prints what came of it as one line.
fn alone(seed: u64) -> Result<Report, Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off")),
        )
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let default = std::panic::take_hook();
    // A task that panics would only be missing; whatever panics here is a finding.
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
    let outcome = cluster::simulate(seed);
    println!("{}", serde_json::to_string(&outcome)?);
    // Without the end of the simulated hosts, which nobody looks at.
    std::process::exit(0)
}

fn run_all(args: &SimArgs, first: u64, count: u64) -> Result<Vec<Outcome>, SimError> {
    let shim = Shim::build()?;
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let mut seeds = first..first.saturating_add(count);
    let (mut running, mut outcomes) = (Vec::<Running>::new(), Vec::new());
    loop {
        while running.len() < at_once
            && let Some(seed) = seeds.next()
        {
            running.push(Running::start(&shim, seed, args.fault.as_deref())?);
        }
        if running.is_empty() {
            break;
        }
        let mut still = Vec::new();
        for mut one in running {
            match one.poll()? {
                Some(outcome) => outcomes.push(outcome),
                None => still.push(one),
            }
        }
        running = still;
        let failed = |outcome: &Outcome| !outcome.verdict.violations.is_empty();
        if args.until_failure && outcomes.iter().any(failed) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    outcomes.sort_by_key(|outcome| outcome.seed);
    Ok(outcomes)
}

fn report(args: &SimArgs, outcomes: &[Outcome]) -> Report {
    let mut report = Report::default();
    let fault = args.fault.as_ref().map(|fault| format!(" --fault {fault}")).unwrap_or_default();
    for outcome in outcomes {
        let row = Row {
            name: outcome.seed.to_string(),
            faults: outcome.faults.clone(),
            verdict: outcome.verdict.clone(),
            pause: Some(Duration::from_millis(outcome.pause_ms)),
            pause_elsewhere: None,
        };
        if !row.passed() {
            report.measured.push(format!(
                "again: cargo run --release -p ppsw-chaos -- sim --seed {}{fault}",
                outcome.seed
            ));
        }
        if outcomes.len() == 1 {
            report.measured.push(format!("trace {}", outcome.trace));
        }
        report.rows.push(row);
    }
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    report.measured.push(format!(
        "simulated {} s, {} entries committed, {} leaders elected, {} outcomes forwarded",
        sum(|outcome| outcome.simulated_ms) / 1000,
        sum(|outcome| outcome.committed),
        sum(|outcome| outcome.elections),
        sum(|outcome| outcome.forwarded),
    ));
    report
}
