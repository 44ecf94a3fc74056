//! Counts what programs sync, and makes it take longer: `tests/shim/syncs.c` in front of the C library.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// For any number of processes.
#[derive(Clone, Debug)]
pub struct Syncs {
    library: PathBuf,
    /// Eight bytes that all of them count in.
    count: PathBuf,
    delay_us: u64,
}

impl Syncs {
    /// Compiles the library into `dir`, which others may enter. Each sync takes `delay_us` longer.
    pub fn new(dir: &Path, delay_us: u64) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/syncs.c");
        let (library, count) = (dir.join("syncs.so"), dir.join("syncs.count"));
        let mut compiler = Command::new("cc");
        compiler.args(["-std=gnu11", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]);
        let output = compiler.arg(&library).arg(&source).arg("-ldl").output();
        let output = output.unwrap_or_else(|e| panic!("cc is needed: {e}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} does not compile:\n{errors}", source.display());
        fs::write(&count, [0; 8]).unwrap();
        // Postfix has many users.
        fs::set_permissions(&count, fs::Permissions::from_mode(0o666)).unwrap();
        Self { library, count, delay_us }
    }

    /// What has to be in the environment of a process.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("PPSW_SYNCS_COUNT", self.count.display().to_string()),
            ("PPSW_SYNCS_DELAY_US", self.delay_us.to_string()),
        ]
    }

    /// Syncs until now.
    pub fn count(&self) -> u64 {
        u64::from_ne_bytes(fs::read(&self.count).unwrap().try_into().unwrap())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn syncs_are_counted_and_take_longer() {
        let dir = tempfile::tempdir().unwrap();
        let syncs = Syncs::new(dir.path(), 300_000);
        let begun = Instant::now();
        let file = dir.path().join("x").display().to_string();
        let mut command = Command::new("dd");
        command.args(["if=/dev/zero", &format!("of={file}"), "bs=1k", "count=1", "conv=fsync"]);
        let output = command.envs(syncs.environment()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(syncs.count(), 1);
        assert!(begun.elapsed() >= Duration::from_millis(300));
    }
}
