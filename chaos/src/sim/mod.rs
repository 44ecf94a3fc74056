//! The simulated harness.

use clap::Args;

use crate::report::Report;

/// What to simulate.
#[derive(Clone, Debug, Args)]
pub(crate) struct SimArgs {
    /// How many seeds to run, each a run of its own.
    #[arg(long, default_value_t = 20)]
    pub(crate) seeds: u64,
    /// The first seed; the same seed has the same faults.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// Why a simulation could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimError {
    #[error("the simulation of {0} seeds from {1} is not built yet; run `ppsw-chaos real`")]
    NotBuilt(u64, u64),
}

pub(crate) fn run(args: &SimArgs) -> Result<Report, Box<dyn std::error::Error>> {
    Err(SimError::NotBuilt(args.seeds, args.seed).into())
}
