//! One file per transaction, moved from `tmp` to `new` when it is whole.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ppsw_spool::env::Clock;

use crate::{dev::files, limits::SINK_BUFFER_BYTES};

/// A Maildir that messages are delivered to.
pub(in crate::dev) struct Maildir {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    count: AtomicU64,
}

impl Maildir {
    /// Makes the three folders where they are missing.
    pub(in crate::dev) fn create(dir: &Path, clock: Arc<dyn Clock>) -> io::Result<Self> {
        for folder in ["tmp", "new", "cur"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        Ok(Self { dir: dir.to_owned(), clock, count: AtomicU64::new(0) })
    }

    /// Begins a message whose file starts with `head`.
    pub(super) fn begin(&self, head: Vec<u8>) -> Draft {
        // Unique by time, process and counter, and sorted by arrival: one process writes one Maildir.
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.P{}Q{count:09}.sink", self.clock.now().0, std::process::id());
        Draft {
            temporary: self.dir.join("tmp").join(&name),
            filed: self.dir.join("new").join(name),
            file: None,
            buffer: head,
        }
    }
}

/// A message on its way into the Maildir. Dropped before [`Self::finish`], it leaves nothing behind.
pub(super) struct Draft {
    temporary: PathBuf,
    filed: PathBuf,
    file: Option<File>,
    /// What comes next in the file. Bounded by `SINK_BUFFER_BYTES` and one read.
    pub(super) buffer: Vec<u8>,
}

impl Draft {
    /// Moves a full buffer to the file.
    pub(super) fn spill(&mut self) -> io::Result<()> {
        if self.buffer.len() < SINK_BUFFER_BYTES { Ok(()) } else { self.write() }
    }

    /// Writes the rest and shows the message in `new`.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.write()?;
        fs::rename(&self.temporary, &self.filed)?;
        self.file = None;
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(files::create_new(&self.temporary)?),
        };
        file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nothing to be done if it fails: `tmp` may hold litter by Maildir's own rules.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
