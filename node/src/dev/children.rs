//! The processes of a `dev` cluster: nodes and sink.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child as Process, Command},
    time::timeout,
};

use super::files;
use crate::limits::DEV_STOP_MAX;

/// Which process it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Node(u16),
    Sink,
}

/// A process that we started. Dropping it kills the process.
pub(super) struct Child {
    pub(super) role: Role,
    pub(super) pid: u32,
    process: Process,
    /// It has ended and that was told.
    ended: bool,
}

/// How to start a process of this program.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
}

impl Program {
    /// The program that runs now.
    pub(super) fn current() -> io::Result<Self> {
        Ok(Self { path: std::env::current_exe()? })
    }

    /// Starts `ppswd ARGUMENTS --die-with-parent`; what it prints is appended to `output`.
    ///
    /// The kernel ends the child when the *thread* that started it ends, so this must be called on the main thread
    /// or a worker of the runtime, not on a thread for blocking calls.
    pub(super) fn start<I>(&self, role: Role, arguments: I, output: &Path) -> io::Result<Child>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        let output = files::append(output)?;
        let process = Command::new(&self.path)
            .args(arguments)
            .arg("--die-with-parent")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A group of its own: Ctrl-C in the terminal reaches us alone, and we stop the others in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = process.id().ok_or_else(|| io::Error::other("the process ended at once"))?;
        Ok(Child { role, pid, process, ended: false })
    }
}

impl Child {
    /// Whether it has ended since the last call; told once.
    pub(super) fn newly_ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended {
            return Ok(None);
        }
        let status = self.process.try_wait()?;
        self.ended = status.is_some();
        Ok(status)
    }

    pub(super) fn alive(&self) -> bool {
        !self.ended
    }

    /// Asks it to end.
    pub(super) fn terminate(&self) {
        // `id` is `None` once the process was waited for: no stranger with the same number is hit.
        let pid = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended in between, which is what we want.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Waits for its end; kills it when that takes too long.
    pub(super) async fn gone(&mut self) {
        if timeout(DEV_STOP_MAX, self.process.wait()).await.is_err() {
            tracing::warn!(role = ?self.role, pid = self.pid, "did not end in time: killed");
            let _ = self.process.kill().await;
        }
        self.ended = true;
    }
}
