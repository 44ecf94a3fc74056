//! The harness on real processes: nodes in network namespaces of their own, each with a small disk.
//!
//! Two processes: a supervisor makes the namespaces, starts the harness proper in one of them, and removes everything
//! when that one has ended, however it did. Mounts are private to the harness and go with it.

mod cluster;
mod disk;
mod load;
mod measure;
mod names;
mod nemesis;
mod network;
mod process;
mod schedule;
mod sink;
mod supervisor;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;

use crate::report::{Report, Row};
use cluster::{Cluster, Programs};
use disk::Shims;
use load::Load;
use measure::Measure;
use nemesis::{Nemesis, Outcome};
use network::Network;
use schedule::Plan;
use sink::Shared;

/// Everything that was acknowledged has to arrive, and the queue to be empty, so long after the faults.
const DRAIN_MAX: Duration = Duration::from_secs(120);
/// Nodes have to be ready so long after the faults.
const READY_MAX: Duration = Duration::from_secs(60);
/// Between two looks at the queue.
const POLL: Duration = Duration::from_millis(250);

/// What to run.
#[derive(Clone, Debug, Args)]
pub(crate) struct RealArgs {
    /// How many rounds, each with faults of its own.
    #[arg(long, default_value_t = 10)]
    pub(crate) rounds: u64,
    /// Decides all faults; the same seed has the same schedule.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Only this round of the schedule, counted from 1.
    #[arg(long)]
    pub(crate) round: Option<u64>,
    /// Only faults whose name begins so, one in each round: `kill`, `stop`, `drain`, `slow disk`, …
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Option<String>,
    /// Stop processes for up to a minute.
    #[arg(long)]
    pub(crate) long: bool,
    /// Where ppswd and ppswctl are; by default beside this program.
    #[arg(long, value_name = "DIR")]
    pub(crate) program: Option<PathBuf>,
    /// Leave configuration and logs, also if all went well.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Set by the supervisor for the harness proper: its own process id.
    #[arg(long, hide = true)]
    pub(crate) supervisor: Option<u32>,
    /// Set by the supervisor: a directory for everything.
    #[arg(long, hide = true)]
    pub(crate) dir: Option<PathBuf>,
}

/// Why the harness could not do its work. None of these is a violation by the program under test.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HarnessError {
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("network namespaces need root and iproute2: ip {command}: {reason}")]
    Network { command: String, reason: String },
    #[error("{command}: {reason}")]
    Program { command: String, reason: String },
    #[error("cannot listen on {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("the cluster is not ready after {seconds} s: {reasons}")]
    NotReady { seconds: u64, reasons: String },
    #[error("no fault's name begins with {0:?}; names are those of the table that a run prints")]
    NoSuchFault(String),
}

pub(crate) fn run(args: &RealArgs) -> Result<Report, Box<dyn std::error::Error>> {
    match (args.supervisor, &args.dir) {
        (Some(pid), Some(dir)) => Ok(harness(args, Network::named(pid), dir)?),
        // Ends this process with the code of the harness, whose report is printed already.
        _ => Ok(supervisor::supervise(args)?),
    }
}

fn harness(args: &RealArgs, network: Network, dir: &Path) -> Result<Report, HarnessError> {
    let programs = programs(args)?;
    let shims = Shims::build(dir)?;
    let shared = Shared::new(args.seed);
    names::start()?;
    sink::start(&shared)?;
    let mut run = Run {
        network,
        programs,
        shims,
        dir,
        seed: args.seed,
        shared,
        measure: Measure::default(),
        cluster: None,
        made: 0,
    };
    let rounds: Vec<u64> = match args.round {
        Some(round) => vec![round.max(1)],
        None => (1..=args.rounds).collect(),
    };
    let mut report = Report::default();
    for &round in &rounds {
        let plan = planned(args, round)?;
        report.rows.push(run.round(round, &plan)?);
    }
    run.cluster = None;
    // What came after the end of its round counts, too.
    for (row, round) in report.rows.iter_mut().zip(rounds) {
        let own: Vec<_> =
            row.verdict.violations.drain(..).filter(|line| line.starts_with("nodes:")).collect();
        row.verdict = run.shared.with(round, |history| history.check());
        row.verdict.violations.extend(own);
    }
    report.measured = run.measure.lines();
    Ok(report)
}

fn programs(args: &RealArgs) -> Result<Programs, HarnessError> {
    let own = || -> io::Result<PathBuf> {
        Ok(std::env::current_exe()?.parent().unwrap_or_else(|| Path::new(".")).to_owned())
    };
    let dir = match &args.program {
        Some(dir) => std::path::absolute(dir),
        None => own(),
    };
    let dir = dir.map_err(|error| HarnessError::File { path: "--program".into(), error })?;
    let find = |name: &str| {
        let path = dir.join(name);
        match path.metadata() {
            Ok(_) => Ok(path),
            Err(error) => Err(HarnessError::Program {
                command: path.display().to_string(),
                reason: format!(
                    "{error}; build it with `cargo build --release`, or give --program DIR"
                ),
            }),
        }
    };
    Ok(Programs { ppswd: find("ppswd")?, ppswctl: find("ppswctl")? })
}

/// The plan of a round; with `--only`, the next of the schedule's faults of that name.
fn planned(args: &RealArgs, round: u64) -> Result<Plan, HarnessError> {
    let Some(only) = &args.only else { return Ok(schedule::plan(args.seed, round, args.long)) };
    let found = |plan: &Plan| {
        let mut faults = plan.faults.iter().filter(|fault| {
            let name = fault.kind.to_string();
            // `kill` is not `kill all`.
            name.strip_prefix(only.as_str()).is_some_and(|rest| !rest.starts_with(" all"))
        });
        faults.next().cloned()
    };
    let mut plans = (1..10_000).map(|round| schedule::plan(args.seed, round, args.long));
    let mut matching = plans.by_ref().filter_map(|plan| found(&plan).map(|fault| (plan, fault)));
    let skip = usize::try_from(round - 1).unwrap_or(usize::MAX);
    let (plan, fault) = matching
        .by_ref()
        .filter(|(plan, _)| plan.nodes == 3)
        .nth(skip)
        .ok_or_else(|| HarnessError::NoSuchFault(only.clone()))?;
    Ok(Plan { faults: vec![fault], ..plan })
}

/// What goes from round to round.
struct Run<'a> {
    network: Network,
    programs: Programs,
    shims: Shims,
    dir: &'a Path,
    seed: u64,
    shared: Arc<Shared>,
    measure: Measure,
    cluster: Option<Cluster>,
    /// Clusters that were made.
    made: u32,
}

impl Run<'_> {
    fn round(&mut self, round: u64, plan: &Plan) -> Result<Row, HarnessError> {
        let names: Vec<String> = plan.faults.iter().map(ToString::to_string).collect();
        println!("round {round}: {} nodes: {}", plan.nodes, names.join(", "));
        let mut cluster = match self.cluster.take() {
            Some(cluster) if cluster.size() == plan.nodes => cluster,
            // The old one goes first: they share addresses.
            old => {
                drop(old);
                self.create(plan.nodes)?
            }
        };
        self.shared.set_calm(false);
        let load = Load::start(&self.shared, round, self.seed, plan.nodes);
        let nemesis = Nemesis::new(
            &mut cluster,
            self.network,
            &self.shared,
            &mut self.measure,
            round,
            self.seed,
        );
        let mut outcome = nemesis.run(plan, READY_MAX)?;
        self.shared.set_calm(true);
        let pauses = load.stop();
        self.drain(round, &mut cluster, &mut outcome)?;

        let mut verdict = self.shared.with(round, |history| history.check());
        verdict.violations.extend(outcome.violations.iter().map(|line| format!("nodes: {line}")));
        let faulty: Vec<u16> = plan.faults.iter().flat_map(|fault| fault.kind.nodes()).collect();
        let all_faulty = plan.faults.iter().any(|fault| fault.kind.nodes().is_empty());
        let pause_elsewhere = if all_faulty { None } else { pauses.longest_elsewhere(&faulty) };
        self.measure.round(&self.shared, plan.faults.len() == 1, pause_elsewhere);
        let faults = names.into_iter().chain(outcome.notes).collect::<Vec<_>>().join("\n");
        let row = Row {
            name: round.to_string(),
            faults,
            pause: pauses.longest(),
            pause_elsewhere,
            verdict,
        };
        summarise(&row);
        if !outcome.spoilt && row.passed() {
            self.cluster = Some(cluster);
        }
        Ok(row)
    }

    fn create(&mut self, nodes: u16) -> Result<Cluster, HarnessError> {
        self.made += 1;
        let dir = self.dir.join(format!("cluster-{}", self.made));
        Cluster::create(self.network, &self.programs, &self.shims, &dir, nodes)
    }

    /// Waits until all has arrived and the queue is empty, and notes what is left if that takes too long.
    fn drain(
        &self,
        round: u64,
        cluster: &mut Cluster,
        outcome: &mut Outcome,
    ) -> Result<(), HarnessError> {
        let begin = Instant::now();
        loop {
            for ended in cluster.supervise()? {
                let text = format!("node {} ended while draining: {}", ended.node, ended.status);
                outcome.violations.push(format!("{text}\n    {}", ended.tail));
            }
            let missing = self.shared.with(round, |history| history.missing());
            // A node that does not answer now may do so at the next question.
            let left = cluster.queued().unwrap_or(None);
            if (missing == 0 && left == Some(0)) || begin.elapsed() > DRAIN_MAX {
                if left != Some(0) {
                    println!("  left: {}", cluster.queue_list());
                }
                self.shared.with(round, |history| history.left(left));
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
    }
}

fn summarise(row: &Row) {
    let verdict = &row.verdict;
    println!(
        "  {} acknowledged, {} delivered, {} lost, {} duplicated, {} in flight, longest pause {:.1?}: {}",
        verdict.acknowledged,
        verdict.delivered,
        verdict.lost,
        verdict.duplicated,
        verdict.in_flight,
        row.pause.unwrap_or_default(),
        if row.passed() { "passed" } else { "FAILED" }
    );
    for violation in &verdict.violations {
        println!("  VIOLATION: {violation}");
    }
}
