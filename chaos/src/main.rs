//! `ppsw-chaos`: produces the faults that machines have, and checks that no mail is lost. See docs/reliability.md.
//!
//! Two harnesses, `sim` and `real`, share one `checker` and one `report`.

#![allow(
    clippy::disallowed_methods,
    reason = "a harness uses the machine's own clock, files and sockets"
)]

mod checker;
mod real;
mod report;
mod sim;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Makes faults happen to a ppswitch cluster, and checks what it promised.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 nothing was violated; 1 something was, or the harness failed; 2 wrong usage."
)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Nodes, disks and network simulated in one process.
    Sim(sim::SimArgs),
    /// Real processes in network namespaces of this machine. Needs root and iproute2.
    Real(real::RealArgs),
}

fn main() -> ExitCode {
    let done = match Args::parse().verb {
        Verb::Sim(args) => sim::run(&args),
        Verb::Real(args) => real::run(&args),
    };
    match done {
        Ok(report) if report.print() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ppsw-chaos: {error}");
            ExitCode::FAILURE
        }
    }
}
