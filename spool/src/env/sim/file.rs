//! A file in memory: what reads see, what the medium has, and what is on its way there.

use rand::{Rng, rngs::StdRng};

/// What a disk persists at once; a sector itself may still be torn.
const SECTOR: usize = 512;

#[derive(Clone, Default)]
pub(super) struct File {
    /// What reads see.
    pub(super) cached: Vec<u8>,
    /// What survives a power cut.
    pub(super) durable: Vec<u8>,
    /// Writes that were not synced, oldest first.
    pub(super) pending: Vec<(usize, Vec<u8>)>,
}

impl File {
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        put(&mut self.cached, at, bytes);
        self.pending.push((at, bytes.to_vec()));
    }

    /// The medium may have what was cut off until the next sync.
    pub(super) fn shorten(&mut self, len: usize, rng: &mut StdRng) {
        self.cached.truncate(len);
        self.pending.retain_mut(|(at, bytes)| {
            bytes.truncate(len.saturating_sub(*at));
            !bytes.is_empty()
        });
        if rng.random() {
            self.durable.truncate(len);
        }
    }

    /// What is dirty reaches the medium; what only the cache has, and calls clean, does not.
    pub(super) fn sync(&mut self) {
        self.durable.resize(self.cached.len(), 0);
        for (at, bytes) in std::mem::take(&mut self.pending) {
            put(&mut self.durable, at, &bytes);
        }
    }

    /// Lets an arbitrary part of the pending writes reach the medium.
    pub(super) fn persist_some(&mut self, rng: &mut StdRng) {
        let mode = rng.random_range(0..4);
        for (at, bytes) in std::mem::take(&mut self.pending) {
            let prefix = rng.random_range(0..=bytes.len());
            let mut from = 0;
            while from < bytes.len() {
                // Sectors of the file, not of the write.
                let to = (((at + from) / SECTOR + 1) * SECTOR - at).min(bytes.len());
                let keep = match mode {
                    0 => true,
                    1 => false,
                    2 => to <= prefix,
                    _ => rng.random(),
                };
                let torn = rng.random_ratio(1, 16);
                let to_here = if torn { rng.random_range(from..=to) } else { to };
                if keep {
                    put(&mut self.durable, at + from, &bytes[from..to_here]);
                }
                from = to;
            }
        }
    }

    pub(super) fn lose(&mut self, rng: &mut StdRng) {
        self.persist_some(rng);
        if rng.random() {
            // The size, set by an allocation, may be durable before any data is.
            let len = self.durable.len().max(self.cached.len());
            self.durable.resize(len, 0);
        }
        self.cached.clone_from(&self.durable);
    }
}

fn put(to: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if to.len() < at + bytes.len() {
        to.resize(at + bytes.len(), 0);
    }
    to[at..at + bytes.len()].copy_from_slice(bytes);
}
