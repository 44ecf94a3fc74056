//! A disk that fails on demand, for real processes: `tests/shim/disk.c` between ppswd and the C library.
//!
//! The comment at the top of that file says what a rule may be.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The faults of one directory. Any number of processes may be under it.
#[derive(Clone, Debug)]
pub struct Shim {
    library: PathBuf,
    /// What is watched: without symbolic links.
    dir: PathBuf,
    control: PathBuf,
}

impl Shim {
    /// For files below `dir`, which must exist; `control`, outside of it, is made and has no rule yet. Compiles the
    /// library, once per test process.
    pub fn new(dir: &Path, control: &Path) -> Self {
        let dir = dir.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        assert!(!control.starts_with(&dir), "the control file would be under its own faults");
        let shim = Self { library: library().to_owned(), dir, control: control.to_owned() };
        shim.clear();
        shim
    }

    /// Lets a process run with these faults.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.environment())
    }

    /// What has to be in the environment of a process.
    pub fn environment(&self) -> [(&'static str, PathBuf); 4] {
        [
            ("LD_PRELOAD", self.library.clone()),
            ("PPSW_SHIM_DIR", self.dir.clone()),
            ("PPSW_SHIM_CONTROL", self.control.clone()),
            ("PPSW_SHIM_STRICT", PathBuf::from("1")),
        ]
    }

    /// Replaces all rules; holds from each process's next call on. Counts begin anew.
    pub fn set(&self, rules: &[&str]) {
        let next = self.control.with_extension("next");
        fs::write(&next, rules.join("\n") + "\n").unwrap();
        fs::rename(&next, &self.control).unwrap();
    }

    /// The disk is well again.
    pub fn clear(&self) {
        self.set(&[]);
    }
}

/// The compiled library, beside the programs under test.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/disk.c");
        let test = std::env::current_exe().unwrap();
        let dir = test.parent().and_then(Path::parent).unwrap();
        // Under a name of this process until it is whole: other tests may compile it at the same time.
        let made = dir.join(format!("ppsw-disk-shim.{}.so", std::process::id()));
        let mut compiler = Command::new("cc");
        compiler.args(["-std=gnu11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]);
        let output = compiler.arg(&made).arg(&source).args(["-ldl", "-lpthread"]).output();
        let output = output.unwrap_or_else(|e| panic!("cc is needed to make the fault shim: {e}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} does not compile:\n{errors}", source.display());
        let library = dir.join("ppsw-disk-shim.so");
        fs::rename(&made, &library).unwrap();
        library
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a shell command under the shim.
    fn shell(shim: &Shim, script: &str) -> (bool, String) {
        let mut command = Command::new("sh");
        let output = shim.apply(command.arg("-c").arg(script)).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    #[test]
    fn faults_come_and_go_below_the_directory_only() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        let shim = Shim::new(&inside, &dir.path().join("control"));
        let dd =
            |to: &Path| format!("dd if=/dev/zero of={}/x bs=1k count=1 conv=fsync", to.display());
        assert!(shell(&shim, &dd(&inside)).0);
        for (rule, says) in [
            ("fsync errno=EIO", "Input/output error"),
            ("writes errno=ENOSPC", "No space left"),
            ("open errno=EROFS", "Read-only file system"),
            ("all errno=EROFS", "Read-only file system"),
        ] {
            shim.set(&[rule]);
            let (good, text) = shell(&shim, &dd(&inside));
            assert!(!good && text.contains(says), "{rule}: {text}");
            assert!(shell(&shim, &dd(&outside)).0, "{rule}");
            assert!(shell(&shim, &format!("cat {}/x", inside.display())).0, "{rule}");
        }
        shim.set(&["fsync errno=EIO after=1", "rename errno=EIO path=nowhere"]);
        assert!(shell(&shim, &dd(&inside)).0, "the rule begins with the second call of a process");
        assert!(shell(&shim, &format!("mv {0}/x {0}/y", inside.display())).0);
        shim.set(&["all errno=EIO"]);
        shim.clear();
        assert!(shell(&shim, &dd(&inside)).0);
    }
}
