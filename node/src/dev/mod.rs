//! `ppswd dev`: a cluster of real node processes on loopback addresses, with a mail sink and a DNS server, so that
//! nothing leaves the machine.
//!
//! The DNS server runs in this process; nodes and sink are processes of their own and end with this one. A node
//! that ends stays down, unless `--restart` was given: being able to kill one is what this is for.
//!
//! | in DIR | what |
//! | --- | --- |
//! | `cluster.json` | endpoints, process ids, passwords; exists only while the cluster is ready |
//! | `config/` | policy and tables that the nodes run |
//! | `dns/NAME.zone` | zones, read again when they change |
//! | `certs/` | the certificate of the submission service, signed by itself |
//! | `sink/` | the Maildir of the sink |
//! | `node-N/` | `ppswd.toml`, `data/`, `log/` (what the process prints is in `log/process.log`) |
//! | `admin`, `viewer` | credentials for `ppswctl` |
//! | `dev.json` | what `--resume` needs |

mod accounts;
mod children;
mod cluster;
pub mod configuration;
mod files;
mod listen;
mod nameserver;
mod operator;
mod plan;
mod probe;
mod screen;
mod sink;
mod zones;

use std::{io, path::PathBuf};

use tokio::signal::unix::{SignalKind, signal};

pub use sink::sink;

use crate::run::Failure;
use cluster::Cluster;

/// The command line of `ppswd dev`.
#[derive(Clone, Debug, clap::Args)]
pub struct DevArgs {
    /// How many nodes; ignored with --resume.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub nodes: u16,
    /// Where everything is kept. Made if missing; must be empty, unless --resume is given.
    #[arg(long, default_value = "dev-cluster")]
    pub dir: PathBuf,
    /// Ports count from here: SMTP is this + 25, submission + 87, control + 90, HTTP + 80; ignored with --resume.
    #[arg(long, default_value_t = plan::BASE_PORT)]
    pub base_port: u16,
    /// Start a node again when it ends.
    #[arg(long)]
    pub restart: bool,
    /// Start the cluster that lives in DIR again, with its data.
    #[arg(long)]
    pub resume: bool,
}

/// Why a `dev` cluster could not start, or had to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevError {
    #[error(
        "{dir} holds something already: give --resume to start the cluster in it again, or another --dir"
    )]
    Occupied { dir: PathBuf },
    #[error(
        "{dir} holds no cluster that can be resumed ({source}): leave --resume out to make one"
    )]
    NothingToResume { dir: PathBuf, source: io::Error },
    #[error("--base-port {0}: expected a number from 1100 to 64000")]
    BasePort(u16),
    #[error("{what}: {source}")]
    File { what: String, source: io::Error },
    #[error("{what} ended while the cluster was starting ({status}); the end of {log}:\n{tail}")]
    ChildEnded { what: String, status: String, log: PathBuf, tail: String },
    #[error("the control plane refused to {what}: {reason}")]
    Control { what: &'static str, reason: String },
    #[error("the cluster was not ready after {seconds} s:\n{reasons}")]
    NotReady { seconds: u64, reasons: String },
}

impl DevError {
    fn file(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::File { what, source }
    }
}

/// Runs a cluster until SIGINT or SIGTERM, then stops all of it.
///
/// Must be awaited on the main thread or a worker of the runtime: the children die with the thread that made them.
///
/// # Errors
/// The cluster could not be made or did not become ready; what was started is stopped.
pub async fn dev(args: DevArgs) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DevError::file("signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DevError::file("signals"))?;
    let mut cluster = Cluster::prepare(&args)?;
    let result = tokio::select! {
        result = cluster.run(&args) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    cluster.stop().await;
    Ok(result?)
}
