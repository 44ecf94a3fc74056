//! Why a node must not simply be started again, and the exit codes that say so to supervisors.

use std::{
    io,
    path::{Path, PathBuf},
};

use ppsw_control::{Plane, PlaneError};
use ppsw_spool::log::LogError;

use super::Failure;
use crate::config::NodeConfig;

/// Why a node must not simply be started again. Each has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// It was removed from the cluster.
    #[error("{0}. This machine is no member any more: do not start it again")]
    Removed(String),
    /// Its log cannot be read, or is gone.
    #[error(
        "{why}\nThis node cannot go on with its log. Run `ppswd rejoin --config …`: it moves the log aside and brings the \
         machine back under a new number, with its data from the others. Exit code {EXIT_DAMAGED}"
    )]
    Damaged {
        /// Where, and what is wrong there.
        why: String,
    },
    /// The machine's disk does not do its work. A start that follows at once would meet the same.
    #[error(
        "{what}. This node has ended, and the others go on without it. Look at the disk and the kernel's log; start ppswd \
         again when the disk is well, or empty {} as a whole and join again, under a new number",
        data.display()
    )]
    Disk {
        /// Which file, and what the system said.
        what: String,
        /// The directory of the node's data.
        data: PathBuf,
    },
}

/// `EX_DATAERR` of sysexits.h.
const EXIT_DAMAGED: u8 = 65;

/// `EX_IOERR` of sysexits.h.
const EXIT_DISK: u8 = 74;

/// `EX_NOPERM` of sysexits.h.
const EXIT_REMOVED: u8 = 77;

impl Stop {
    /// For scripts and service managers: none of these is cured by a restart at once.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Removed(_) => EXIT_REMOVED,
            Self::Damaged { .. } => EXIT_DAMAGED,
            Self::Disk { .. } => EXIT_DISK,
        }
    }

    /// A data directory that cannot be written to is its disk's fault, unless somebody else uses it or may.
    pub(super) fn of_lock(data: &Path, error: &io::Error) -> Failure {
        use io::ErrorKind::{PermissionDenied, WouldBlock};
        let what = format!("{} cannot be locked: {error}", data.join("lock").display());
        if matches!(error.kind(), WouldBlock | PermissionDenied) {
            return what.into();
        }
        Self::Disk { what, data: data.to_owned() }.into()
    }

    /// Why the control plane did not start.
    pub(super) fn of_start(config: &NodeConfig, error: PlaneError) -> Failure {
        match error {
            PlaneError::Log(error @ LogError::Disk(_)) => {
                Self::Disk { what: error.to_string(), data: config.data.clone() }.into()
            }
            error => error.into(),
        }
    }

    /// Why a running control plane cannot go on.
    pub(super) fn of_plane(config: &NodeConfig, plane: &Plane, why: &str) -> Failure {
        let why = format!("this node must stop: {why}");
        if plane.is_damaged() {
            return Self::Damaged { why }.into();
        }
        match plane.disk_failure() {
            Some(error @ LogError::Disk(_)) => {
                Self::Disk { what: error.to_string(), data: config.data.clone() }.into()
            }
            _ => why.into(),
        }
    }
}
