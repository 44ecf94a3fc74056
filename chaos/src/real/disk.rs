//! The disk and the clock of a node: a small tmpfs, and two libraries between ppswd and the C library.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rand::Rng;

use super::{HarnessError, process};

/// Size of a node's disk: the logs of all its partitions, a segment that grows, and room for a minute's mail.
const DISK_BYTES: u64 = 768 << 20;
/// What is free on a full disk.
const LEFT_BYTES: u64 = 256 << 10;
/// A bit is flipped this far from the start of a segment at least: behind its header.
const FLIP_FROM: u64 = 64 << 10;

const DISK_SHIM: &str = include_str!("../../../tests/shim/disk.c");
const CLOCK_SHIM: &str = include_str!("../../shim/clock.c");

/// The two libraries, compiled.
#[derive(Clone, Debug)]
pub(super) struct Shims {
    libraries: String,
}

/// What a node's process believes of disk and time.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    /// Where the tmpfs is: the node's `data`.
    pub(super) data: PathBuf,
    rules: PathBuf,
    offset: PathBuf,
}

impl Shims {
    /// Compiles them into `dir`.
    pub(super) fn build(dir: &Path) -> Result<Self, HarnessError> {
        let mut libraries = Vec::new();
        for (name, source) in [("disk", DISK_SHIM), ("clock", CLOCK_SHIM)] {
            let (from, to) = (dir.join(format!("{name}.c")), dir.join(format!("{name}.so")));
            write(&from, source.as_bytes())?;
            process::run(
                Command::new("cc")
                    .args(["-std=gnu11", "-O1", "-shared", "-fPIC", "-o"])
                    .arg(&to)
                    .arg(&from)
                    .args(["-ldl", "-lpthread"]),
            )?;
            libraries.push(to.display().to_string());
        }
        Ok(Self { libraries: libraries.join(":") })
    }
}

impl Disk {
    /// A fresh, healthy disk below `dir`, mounted in our own mount namespace, with which it goes.
    pub(super) fn create(dir: &Path) -> Result<Self, HarnessError> {
        let data = dir.join("data");
        fs::create_dir_all(&data)
            .map_err(|error| HarnessError::File { path: data.clone(), error })?;
        let size = format!("size={DISK_BYTES},mode=700");
        process::run(
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "ppsw-chaos"]).arg(&data),
        )?;
        let disk = Self { rules: dir.join("disk.rules"), offset: dir.join("clock.offset"), data };
        disk.rules(&[])?;
        write(&disk.offset, &0_i64.to_ne_bytes())?;
        Ok(disk)
    }

    /// Gives the memory back.
    pub(super) fn unmount(&self) {
        let _ = process::run(Command::new("umount").arg("--lazy").arg(&self.data));
    }

    /// What has to be in the environment of the node's process.
    pub(super) fn environment(&self, shims: &Shims) -> [String; 5] {
        [
            format!("LD_PRELOAD={}", shims.libraries),
            format!("PPSW_SHIM_DIR={}", self.data.display()),
            format!("PPSW_SHIM_CONTROL={}", self.rules.display()),
            "PPSW_SHIM_STRICT=1".to_owned(),
            format!("PPSW_CLOCK_OFFSET={}", self.offset.display()),
        ]
    }

    /// Replaces the rules of the disk's faults; none: it is well.
    pub(super) fn rules(&self, rules: &[&str]) -> Result<(), HarnessError> {
        let next = self.rules.with_extension("next");
        write(&next, (rules.join("\n") + "\n").as_bytes())?;
        fs::rename(&next, &self.rules)
            .map_err(|error| HarnessError::File { path: self.rules.clone(), error })
    }

    /// Sets the wall clock this far forward, or back.
    pub(super) fn set_clock(&self, seconds: i64) -> Result<(), HarnessError> {
        let failed = |error| HarnessError::File { path: self.offset.clone(), error };
        // Written in place: the file is mapped.
        let file = File::options().write(true).open(&self.offset).map_err(failed)?;
        let nanoseconds = seconds.saturating_mul(1_000_000_000);
        file.write_all_at(&nanoseconds.to_ne_bytes(), 0).map_err(failed)
    }

    /// Makes the disk so small that it is full.
    pub(super) fn fill(&self) -> Result<(), HarnessError> {
        let failed = |error: rustix::io::Errno| HarnessError::File {
            path: self.data.clone(),
            error: error.into(),
        };
        let about = rustix::fs::statvfs(&self.data).map_err(failed)?;
        let used = (about.f_blocks - about.f_bfree) * about.f_frsize;
        self.resize(used + LEFT_BYTES)
    }

    /// As large as it was.
    pub(super) fn free(&self) -> Result<(), HarnessError> {
        self.resize(DISK_BYTES)
    }

    fn resize(&self, bytes: u64) -> Result<(), HarnessError> {
        let options = format!("remount,size={bytes}");
        process::run(Command::new("mount").args(["-o", &options]).arg(&self.data)).map(drop)
    }

    /// Flips one bit that was written in a segment that is not the newest; the node must be down. `None`: there is
    /// no such segment.
    pub(super) fn flip_bit(&self, rng: &mut impl Rng) -> Result<Option<String>, HarnessError> {
        let dir = self.data.join("log");
        let failed = |error| HarnessError::File { path: dir.clone(), error };
        let mut segments: Vec<(std::time::SystemTime, PathBuf, u64)> = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)?.flatten() {
            let about = entry.metadata().map_err(failed)?;
            let path = entry.path();
            let is_segment = path.extension().is_some_and(|extension| extension == "seg");
            if is_segment && about.is_file() && about.blocks() > 0 {
                segments.push((about.modified().map_err(failed)?, path, about.len()));
            }
        }
        segments.sort();
        // The newest is being written; its end is torn without being damaged.
        segments.pop();
        let usable: Vec<_> =
            segments.into_iter().filter(|(_, _, bytes)| *bytes > 2 * FLIP_FROM).collect();
        if usable.is_empty() {
            return Ok(None);
        }
        let (_, path, bytes) = &usable[rng.random_range(0..usable.len())];
        let failed = |error| HarnessError::File { path: path.clone(), error };
        let mut file = File::options().read(true).write(true).open(path).map_err(failed)?;
        for _ in 0..1_000 {
            let at = rng.random_range(FLIP_FROM..bytes / 2);
            let mut byte = [0];
            file.seek(SeekFrom::Start(at))
                .and_then(|_| file.read_exact(&mut byte))
                .map_err(failed)?;
            // Zeros may be what was never written, and is not read either.
            if byte[0] != 0 {
                byte[0] ^= 1 << rng.random_range(0..8);
                file.write_all_at(&byte, at).map_err(failed)?;
                // Without its index file it is read at the next start, not at the next scrub.
                let _ = fs::remove_file(path.with_extension("idx"));
                return Ok(Some(format!("{} at {at}", path.display())));
            }
        }
        Ok(None)
    }
}

/// Rules of a slow disk.
pub(super) fn slow(delay: Duration) -> String {
    format!("syncs delay_ms={}", delay.as_millis())
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), HarnessError> {
    fs::write(path, bytes).map_err(|error| HarnessError::File { path: path.to_owned(), error })
}
