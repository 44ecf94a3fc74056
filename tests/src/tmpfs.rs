//! A disk of any size: a mounted tmpfs. Needs root.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// A file system in memory, with what was in its directory before. Unmounted when this is dropped.
#[derive(Debug)]
pub struct Tmpfs {
    dir: PathBuf,
}

impl Tmpfs {
    /// Mounts one of `bytes` on a directory, and copies into it what was there.
    ///
    /// # Panics
    /// If it cannot be mounted: a test of full disks that passes without one would be worth nothing.
    pub fn over(dir: &Path, bytes: u64) -> Self {
        let before = dir.with_extension("before");
        fs::rename(dir, &before).unwrap();
        fs::create_dir(dir).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), "ppswitch-test"]);
        let output = mount.arg(dir).output().expect("mount(8) is needed");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cannot mount a tmpfs (root is needed): {errors}");
        let this = Self { dir: dir.to_owned() };
        let copied = Command::new("cp").arg("-a").arg(before.join(".")).arg(dir).output().unwrap();
        let errors = String::from_utf8_lossy(&copied.stderr);
        assert!(copied.status.success(), "cannot copy {}: {errors}", dir.display());
        fs::remove_dir_all(&before).unwrap();
        this
    }

    /// Leaves at most `bytes` free, by a file that holds nothing of use.
    pub fn fill(&self, bytes: u64) {
        let file = fs::File::options().create(true).append(true).open(self.ballast()).unwrap();
        let free = || {
            let stat = rustix::fs::statvfs(&self.dir).unwrap();
            stat.f_bavail * stat.f_frsize
        };
        let zeros = vec![0_u8; 1 << 20];
        while free() > bytes {
            let step = usize::try_from(free() - bytes).unwrap_or(zeros.len()).min(zeros.len());
            match io::Write::write(&mut &file, &zeros[..step]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return,
                Err(error) => panic!("filling {}: {error}", self.dir.display()),
            }
        }
    }

    /// Gives back what `fill` took.
    pub fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process may still have files open in it.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}
