//! The file that says from when the scrub's period counts.

use std::{io, path::Path};

use crate::env::{Disk, UnixMs};

const NAME: &str = "scrub";

/// Fixed length: it is written over.
const BYTES: usize = 64;

/// First words, with the version of the form.
const TITLE: &str = "ppswlog-scrub 1";

/// What the time is that of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Basis {
    /// The log was read through then.
    Completed,
    /// It never was; the first period counts from then.
    Begun,
}

/// From when the scrub's period counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScrubDate {
    pub(super) basis: Basis,
    pub(super) at: UnixMs,
}

impl ScrubDate {
    /// What the directory has. Anything that is not understood is as good as nothing.
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Option<Self> {
        let mut bytes = [0; BYTES];
        disk.open(&dir.join(NAME)).ok()?.read_at(0, &mut bytes).ok()?;
        let text = std::str::from_utf8(&bytes).ok()?;
        let mut words = text.strip_prefix(TITLE)?.split_ascii_whitespace();
        let basis = match words.next()? {
            "completed" => Basis::Completed,
            "begun" => Basis::Begun,
            _ => return None,
        };
        Some(Self { basis, at: UnixMs(words.next()?.parse().ok()?) })
    }

    /// Replaces it. Not synced: a lost one costs a pass that is not due.
    pub(super) fn write(self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let path = dir.join(NAME);
        let file = match disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create(&path)?,
            other => other?,
        };
        let word = match self.basis {
            Basis::Completed => "completed",
            Basis::Begun => "begun",
        };
        let text = format!("{TITLE} {word} {}", self.at.0);
        file.write_at(0, &[format!("{text:<width$}\n", width = BYTES - 1).as_bytes()])
    }
}
