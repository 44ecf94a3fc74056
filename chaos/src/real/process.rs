//! Processes of nodes, and signals to them.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::HarnessError;

/// A process that ends when this is dropped.
#[derive(Debug)]
pub(super) struct Process(Child);

impl Process {
    /// Starts a command; what it prints is appended to `output`.
    pub(super) fn start(command: &mut Command, output: &Path) -> Result<Self, HarnessError> {
        let file = |error| HarnessError::File { path: output.to_owned(), error };
        let output = File::options().create(true).append(true).open(output).map_err(file)?;
        command.stdin(Stdio::null()).stdout(output.try_clone().map_err(file)?).stderr(output);
        let child = command.spawn().map_err(|error| HarnessError::Program {
            command: format!("{command:?}"),
            reason: error.to_string(),
        })?;
        Ok(Self(child))
    }

    pub(super) fn signal(&self, kind: Signal) {
        signal(self.0.id(), kind);
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    /// kill -9; returns when it is gone.
    pub(super) fn kill(&mut self) {
        // A stopped process dies of it, too.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process that may be gone.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Runs a command to its end; gives what it printed.
pub(super) fn run(command: &mut Command) -> Result<String, HarnessError> {
    let name = format!("{command:?}");
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => {
            return Err(HarnessError::Program { command: name, reason: error.to_string() });
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Err(HarnessError::Program { command: name, reason: format!("{}: {text}", output.status) })
}
