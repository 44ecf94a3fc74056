//! What callouts have learnt: of addresses, and of whole domains. Bounded, and kept over restarts in a file; losing it
//! costs callouts, so it is not synced, and a damaged line is passed over.

use std::{io, path::Path, time::Duration};

use moka::sync::Cache as Bounded;
use ppsw_spool::env::UnixMs;
use serde::{Deserialize, Serialize};

use super::dialogue::Said;
use crate::{
    files,
    limits::{
        CALLOUT_ADDRESS_NO_TIME, CALLOUT_ADDRESS_YES_TIME, CALLOUT_CACHE_BYTES_MAX,
        CALLOUT_CACHE_MAX, CALLOUT_DOMAIN_NO_TIME, CALLOUT_DOMAIN_YES_TIME, CALLOUT_TEXT_BYTES_MAX,
    },
};

/// First line of the file, with the version of its form.
const HEAD: &str = "ppswitch callouts 1";

/// Clones share what is known.
#[derive(Clone)]
pub(super) struct Cache {
    entries: Bounded<String, Entry>,
}

/// What is known, under which names.
pub(super) struct Key {
    address: String,
    /// What a domain does with everybody.
    domain: String,
    /// What a domain does with one reverse-path.
    from: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    said: Said,
    /// Wall clock, milliseconds.
    until: u64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    #[serde(flatten)]
    entry: Entry,
}

impl Key {
    pub(super) fn new(address: &str, reverse_path: &str) -> Self {
        let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
        let domain = domain.to_lowercase();
        // No address that can be asked about has a tab.
        Self {
            address: ["address\t", reverse_path, "\t", local, "@", &domain].concat(),
            from: ["from\t", reverse_path, "\t", &domain].concat(),
            domain: ["domain\t", &domain].concat(),
        }
    }
}

/// How long something stays known; `None` if it is not to be kept.
fn time(said: &Said) -> Option<Duration> {
    match said {
        Said::Yes => Some(CALLOUT_ADDRESS_YES_TIME),
        Said::No(_) => Some(CALLOUT_ADDRESS_NO_TIME),
        Said::Anything => Some(CALLOUT_DOMAIN_YES_TIME),
        Said::NotFrom(_) => Some(CALLOUT_DOMAIN_NO_TIME),
        Said::Later(_) => None,
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { entries: Bounded::new(CALLOUT_CACHE_MAX) }
    }
}

impl Cache {
    pub(super) fn get(&self, key: &Key, now: UnixMs) -> Option<Said> {
        [&key.from, &key.domain, &key.address].into_iter().find_map(|name| {
            let entry = self.entries.get(name)?;
            (entry.until > now.0).then_some(entry.said)
        })
    }

    pub(super) fn learn(&self, key: &Key, said: &Said, now: UnixMs) {
        let Some(time) = time(said) else { return };
        let mut said = said.clone();
        if let Said::No(text) | Said::NotFrom(text) = &mut said {
            text.truncate(text.floor_char_boundary(CALLOUT_TEXT_BYTES_MAX));
        }
        let name = match said {
            Said::Anything => &key.domain,
            Said::NotFrom(_) => &key.from,
            Said::Yes | Said::No(_) | Said::Later(_) => &key.address,
        };
        self.entries.insert(name.clone(), Entry { said, until: now.plus(time).0 });
    }

    /// Adds what a file says; how many answers that was.
    ///
    /// # Errors
    /// The file is not there, too large, or of another version.
    pub(super) fn load(&self, path: &Path, now: UnixMs) -> io::Result<usize> {
        let bytes = files::read(path, CALLOUT_CACHE_BYTES_MAX)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return Err(io::Error::other(format!("it does not begin with {HEAD:?}")));
        }
        let known = lines.filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let mut count = 0;
        for Line { key, entry } in known {
            // A clock that was ahead when it was written must not keep an answer for ever.
            let latest = time(&entry.said).map_or(0, |time| now.plus(time).0);
            if entry.until > now.0 && entry.until <= latest {
                self.entries.insert(key, entry);
                count += 1;
            }
        }
        Ok(count)
    }

    /// # Errors
    /// Of the disk.
    pub(super) fn save(&self, path: &Path, now: UnixMs) -> io::Result<()> {
        let mut text = format!("{HEAD}\n");
        for (key, entry) in &self.entries {
            if entry.until <= now.0 {
                continue;
            }
            let line = Line { key: key.as_ref().clone(), entry };
            text.push_str(&serde_json::to_string(&line).map_err(io::Error::other)?);
            text.push('\n');
            if text.len() as u64 > CALLOUT_CACHE_BYTES_MAX / 2 {
                break;
            }
        }
        files::replace(path, text.as_bytes())
    }
}
