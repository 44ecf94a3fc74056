//! The harness on real processes.

use std::path::PathBuf;

use clap::Args;

use crate::report::Report;

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
    /// Where ppswd and ppswctl are; by default beside this program.
    #[arg(long, value_name = "DIR")]
    pub(crate) program: Option<PathBuf>,
}

pub(crate) fn run(args: &RealArgs) -> Result<Report, Box<dyn std::error::Error>> {
    Err(format!("real processes: not built yet ({args:?})").into())
}
