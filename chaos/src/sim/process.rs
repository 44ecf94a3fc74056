//! A process for each seed: everything random in it comes from the seed, by a preloaded library of ours.
//!
//! Own code instead of a library: those that do this replace clock and system calls in ways that need `unsafe` here,
//! and three lines of C are all that is needed.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Outcome, SimError};

/// What `getrandom` is replaced with.
const SOURCE: &str = include_str!("../../shim/random.c");

/// A seed that takes longer hangs: most take seconds.
const SEED_MAX: Duration = Duration::from_secs(900);

/// The preloaded library, for as long as this value lives.
pub(crate) struct Shim {
    dir: TempDir,
}

impl Shim {
    /// Compiles it. Needs a C compiler.
    ///
    /// # Errors
    /// If there is none, or it fails.
    pub(crate) fn build() -> Result<Self, SimError> {
        let dir = TempDir::new().map_err(SimError::Files)?;
        let source = dir.path().join("random.c");
        std::fs::write(&source, SOURCE).map_err(SimError::Files)?;
        let shim = Self { dir };
        let built = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(shim.library())
            .arg(&source)
            .status();
        match built {
            Ok(status) if status.success() => Ok(shim),
            Ok(status) => Err(SimError::Compiler(status.to_string())),
            Err(error) => Err(SimError::Compiler(error.to_string())),
        }
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("librandom.so")
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// A seed that is being run.
pub(crate) struct Running {
    seed: u64,
    child: Child,
    begun: Instant,
    output: PathBuf,
}

impl Running {
    /// Starts this program again for one seed.
    pub(crate) fn start(shim: &Shim, seed: u64, fault: Option<&str>) -> io::Result<Self> {
        let output = shim.path().join(format!("seed-{seed}"));
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["sim", "--alone", "--seed", &seed.to_string()])
            .env("LD_PRELOAD", shim.library())
            .env("PPSW_SIM_SEED", seed.to_string())
            .env_remove("PPSW_FAULT")
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&output)?);
        if let Some(fault) = fault {
            command.env("PPSW_FAULT", fault);
        }
        Ok(Self { seed, child: command.spawn()?, begun: Instant::now(), output })
    }

    /// What came of it, if it has ended.
    pub(crate) fn poll(&mut self) -> io::Result<Option<Outcome>> {
        let Some(status) = self.child.try_wait()? else {
            if self.begun.elapsed() < SEED_MAX {
                return Ok(None);
            }
            self.child.kill()?;
            self.child.wait()?;
            return Ok(Some(Outcome::broken(self.seed, "it hangs: nothing after 15 minutes")));
        };
        let mut text = String::new();
        std::fs::File::open(&self.output)?.read_to_string(&mut text)?;
        std::fs::remove_file(&self.output)?;
        let outcome = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
        let broken = || {
            let why = format!("the simulation has ended with {status}; its last words are above");
            Outcome::broken(self.seed, &why)
        };
        Ok(Some(outcome.unwrap_or_else(broken)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Of no use any longer; an error means that it has just ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
