//! Processes: our own programs, and signals to others.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};

/// A program that was built with these tests: `target/PROFILE/NAME` beside `target/PROFILE/deps/TEST`, or beside the
/// program that asks.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let dir = test.parent().unwrap();
    let dir = if dir.ends_with("deps") { dir.parent().unwrap() } else { dir };
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is missing: run tests/run, or `cargo build --workspace --bins` with the same profile before `cargo test`",
        path.display()
    );
    path
}

/// A process that ends when this is dropped.
pub struct Guard(pub Child);

impl Guard {
    /// Starts a command; what it prints goes to `output`.
    pub fn spawn(command: &mut Command, output: &Path) -> Self {
        let output = std::fs::File::options().create(true).append(true).open(output).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Self(command.spawn().unwrap_or_else(|error| panic!("can't start {command:?}: {error}")))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        if self.alive() {
            signal(self.pid(), Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// A process with children of its own, which all end when this is dropped.
pub struct GroupGuard(Guard);

impl GroupGuard {
    /// Starts a command in a process group of its own; what it prints goes to `output`.
    pub fn spawn(command: &mut Command, output: &Path) -> Self {
        Self(Guard::spawn(command.process_group(0), output))
    }

    /// The first process.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Whether the first process still runs.
    pub fn alive(&mut self) -> bool {
        self.0.alive()
    }
}

impl Drop for GroupGuard {
    fn drop(&mut self) {
        let _ = kill_process_group(to_pid(self.0.pid()), Signal::KILL);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal to a process that may be gone.
pub fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(to_pid(pid), signal);
}

/// Whether a process with this id exists.
pub fn exists(pid: u32) -> bool {
    test_kill_process(to_pid(pid)).is_ok()
}

/// Resident memory of a process in bytes, from `/proc`.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// CPU time that a process has used, from `/proc` (proc_pid_stat(5)).
pub fn cpu_time(pid: u32) -> Duration {
    /// What the kernel counts in for programs, on every machine.
    const TICK_MS: u64 = 10;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name may have blanks: fields are counted behind its bracket.
    let fields = stat.rsplit_once(')').unwrap().1;
    let ticks = |number: usize| -> u64 {
        fields.split_whitespace().nth(number - 3).unwrap().parse().unwrap()
    };
    Duration::from_millis((ticks(14) + ticks(15)) * TICK_MS)
}

fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}
