//! The outer process: makes the namespaces, and removes everything whatever happens to the harness in them.

use std::{path::Path, process::Stdio};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::{HarnessError, RealArgs, network::Network, process};
use crate::report::Report;

/// Exit code of a harness that was ended by a signal.
const FAILED: i32 = 1;

/// Runs the harness to its end and ends this process with its exit code.
pub(super) fn supervise(args: &RealArgs) -> Result<Report, HarnessError> {
    let network = Network::named(std::process::id());
    let file = |error| HarnessError::File { path: std::env::temp_dir(), error };
    let dir = tempfile::Builder::new().prefix("ppswitch-chaos-").tempdir().map_err(file)?;
    let ran = network.create().and_then(|()| run(args, network, dir.path()));
    network.remove();
    let code = ran?;
    if args.keep || code != 0 {
        eprintln!("configuration and logs are in {}", dir.keep().display());
    } else {
        drop(dir);
    }
    std::process::exit(code)
}

/// Starts the harness and waits for it; a signal to stop is passed on.
fn run(args: &RealArgs, network: Network, dir: &Path) -> Result<i32, HarnessError> {
    let failed = |what: &str, error: std::io::Error| HarnessError::Program {
        command: what.to_owned(),
        reason: error.to_string(),
    };
    let program = std::env::current_exe().map_err(|error| failed("this program's file", error))?;
    let mut command = network.in_hub();
    command.arg(program).args(["real", "--supervisor", &std::process::id().to_string(), "--dir"]);
    command.arg(dir).args(["--rounds", &args.rounds.to_string(), "--seed", &args.seed.to_string()]);
    if let Some(round) = args.round {
        command.args(["--round", &round.to_string()]);
    }
    if let Some(only) = &args.only {
        command.args(["--only", only]);
    }
    if args.long {
        command.arg("--long");
    }
    if let Some(programs) = &args.program {
        let programs = std::path::absolute(programs).map_err(|error| failed("--program", error))?;
        command.arg("--program").arg(programs);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed("a runtime for signals", error))?;
    runtime.block_on(async {
        let (interrupt, terminate) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        let (mut interrupt, mut terminate) = (
            interrupt.map_err(|error| failed("SIGINT", error))?,
            terminate.map_err(|error| failed("SIGTERM", error))?,
        );
        let mut child = tokio::process::Command::from(command)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed("ip netns exec", error))?;
        let pid = child.id();
        loop {
            tokio::select! {
                status = child.wait() => {
                    let status = status.map_err(|error| failed("the harness", error))?;
                    return Ok(status.code().unwrap_or(FAILED));
                }
                _ = interrupt.recv() => end(pid),
                _ = terminate.recv() => end(pid),
            }
        }
    })
}

fn end(pid: Option<u32>) {
    if let Some(pid) = pid {
        process::signal(pid, Signal::TERM);
    }
}
