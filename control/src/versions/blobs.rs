//! Contents on this node's disk, in `DATA/blobs/`, each under the SHA-256 of it. A content never changes; it is there as
//! a whole or not at all.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use ppsw_proto::control as pb;
use ppsw_spool::env::UnixMs;
use sha2::{Digest, Sha256};

use super::BlobHash;
use crate::{
    files::{self, Incoming},
    limits,
};

/// Suffix of what has not come as a whole.
const PARTIAL: &str = ".part";

/// The contents of one node. Clones share them. Everything here blocks.
#[derive(Clone)]
pub struct Blobs {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    /// For names of incoming files.
    next: AtomicU64,
}

/// How much lies there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
}

impl Blobs {
    /// Makes the directory, and removes what an earlier process left half done.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let dir = data.join("blobs");
        files::make_private_dir(&dir)?;
        for name in files::names(&dir, "")?.iter().filter(|name| name.ends_with(PARTIAL)) {
            files::remove(&dir.join(name))?;
        }
        Ok(Self { inner: Arc::new(Inner { dir, next: AtomicU64::new(0) }) })
    }

    /// Whether a content lies here. It may be damaged; reading tells.
    pub(crate) fn has(&self, hash: &BlobHash) -> bool {
        files::length(&self.path(hash)).is_some()
    }

    /// Those of `hashes` that are not here; the others are kept for another hour, whether they are referred to or not.
    pub(crate) fn lacking(
        &self,
        hashes: impl IntoIterator<Item = BlobHash>,
        now: UnixMs,
    ) -> BTreeSet<BlobHash> {
        hashes.into_iter().filter(|hash| files::touch(&self.path(hash), now).is_err()).collect()
    }

    /// A whole content, which is what its name says. One that is not is removed, so that it is fetched again.
    ///
    /// # Errors
    /// If it is not there, cannot be read, or was damaged.
    pub(crate) fn read(&self, hash: &BlobHash) -> io::Result<Vec<u8>> {
        let path = self.path(hash);
        let content = files::read_bytes(&path, limits::BLOB_BYTES_MAX)?;
        if BlobHash::of(&content) == *hash {
            return Ok(content);
        }
        tracing::error!(blob = %hash, "a content on the disk is damaged; it is removed and fetched again");
        files::remove(&path)?;
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("{}: damaged", path.display())))
    }

    /// Keeps a content that is in memory. Durable after [`Blobs::sync`].
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn put(&self, content: &[u8]) -> io::Result<BlobHash> {
        let hash = BlobHash::of(content);
        if !self.has(&hash) {
            let mut arrival = self.begin(hash, content.len() as u64)?;
            arrival.write(content)?;
            arrival.finish()?;
        }
        Ok(hash)
    }

    /// Begins to receive a content.
    ///
    /// # Errors
    /// What the disk says; or if it is too large.
    pub(crate) fn begin(&self, hash: BlobHash, bytes: u64) -> io::Result<Arrival> {
        if bytes > limits::BLOB_BYTES_MAX {
            let max = limits::BLOB_BYTES_MAX;
            return Err(io::Error::other(format!("{bytes} bytes; a file has at most {max}")));
        }
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let file = Incoming::create(self.inner.dir.join(format!("{number}{PARTIAL}")))?;
        Ok(Arrival { file, hasher: Sha256::new(), left: bytes, hash, to: self.path(&hash) })
    }

    /// Makes the names of all that has come durable.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn sync(&self) -> io::Result<()> {
        files::sync_dir(&self.inner.dir)
    }

    /// The pieces of those of `hashes` that are here, as they go over the wire.
    pub(crate) fn pieces(&self, hashes: impl IntoIterator<Item = BlobHash>) -> Pieces {
        Pieces { blobs: self.clone(), waiting: hashes.into_iter().collect(), open: None }
    }

    /// Removes contents that are not in `keep` and were not wanted for an hour. Gives what is left.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn collect(&self, keep: &BTreeSet<BlobHash>, now: UnixMs) -> io::Result<Kept> {
        let mut kept = Kept::default();
        for name in files::names(&self.inner.dir, "")? {
            let path = self.inner.dir.join(&name);
            let Ok(hash) = name.parse::<BlobHash>() else { continue };
            let idle = files::modified(&path).map(|at| now.0.saturating_sub(at.0));
            let idle = idle.is_some_and(|ms| Duration::from_millis(ms) > limits::BLOB_IDLE);
            if idle && !keep.contains(&hash) {
                tracing::info!(blob = %hash, "a content that nothing refers to is removed");
                files::remove(&path)?;
            } else {
                kept.blobs += 1;
                kept.bytes += files::length(&path).unwrap_or(0);
            }
        }
        Ok(kept)
    }

    fn path(&self, hash: &BlobHash) -> PathBuf {
        self.inner.dir.join(hash.to_string())
    }
}

/// A content that is on its way.
pub(crate) struct Arrival {
    file: Incoming,
    hasher: Sha256,
    left: u64,
    hash: BlobHash,
    to: PathBuf,
}

impl Arrival {
    /// The next piece.
    ///
    /// # Errors
    /// If it is longer than was said, or what the disk says.
    pub(crate) fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.left = self.left.checked_sub(piece.len() as u64).ok_or_else(|| {
            io::Error::other(format!("content {} is longer than was said", self.hash))
        })?;
        self.hasher.update(piece);
        self.file.write(piece)
    }

    /// Whether all of it has come.
    pub(crate) const fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// Keeps it, if it is what was said.
    ///
    /// # Errors
    /// If it is not, or what the disk says.
    pub(crate) fn finish(self) -> io::Result<()> {
        let Self { file, hasher, left, hash, to } = self;
        let found = BlobHash::finish(hasher);
        if left > 0 || found != hash {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "content {hash} did not arrive as it was sent: {left} bytes are missing, its hash is {found}"
                ),
            ));
        }
        file.finish(&to)
    }
}

/// Contents as they go over the wire.
pub(crate) struct Pieces {
    blobs: Blobs,
    waiting: VecDeque<BlobHash>,
    open: Option<fs::File>,
}

impl Pieces {
    /// The next piece; `None` at the end. What cannot be read is left out, or cut off: its receiver notices.
    pub(crate) fn next(&mut self) -> Option<pb::BlobChunk> {
        if let Some(mut file) = self.open.take() {
            let data = piece(&mut file).unwrap_or_default();
            if !data.is_empty() {
                self.open = Some(file);
                return Some(pb::BlobChunk { data, ..pb::BlobChunk::default() });
            }
        }
        loop {
            let hash = self.waiting.pop_front()?;
            let Ok((mut file, bytes)) = files::open(&self.blobs.path(&hash)) else { continue };
            let Ok(data) = piece(&mut file) else { continue };
            self.open = Some(file);
            return Some(pb::BlobChunk { sha256: hash.to_bytes(), bytes, data });
        }
    }
}

fn piece(file: &mut fs::File) -> io::Result<Bytes> {
    let mut data = Vec::with_capacity(limits::BLOB_CHUNK_BYTES);
    file.take(limits::BLOB_CHUNK_BYTES as u64).read_to_end(&mut data)?;
    Ok(data.into())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        (dir, blobs)
    }

    #[test]
    fn contents_go_over_the_wire_and_arrive_whole() {
        let (_one, here) = blobs();
        let (_two, there) = blobs();
        let large: Vec<u8> = (0..700_001_u32).map(|n| (n % 251) as u8).collect();
        let hashes = [here.put(&large).unwrap(), here.put(b"").unwrap(), here.put(b"x").unwrap()];
        let mut pieces = here.pieces(hashes.into_iter().chain([BlobHash::of(b"not here")]));
        let mut arrival: Option<Arrival> = None;
        let mut count = 0;
        while let Some(chunk) = pieces.next() {
            count += 1;
            if let Some(hash) = BlobHash::from_bytes(&chunk.sha256) {
                assert!(arrival.is_none(), "the one before is complete");
                arrival = Some(there.begin(hash, chunk.bytes).unwrap());
            }
            let mut coming = arrival.take().unwrap();
            coming.write(&chunk.data).unwrap();
            if coming.is_complete() {
                coming.finish().unwrap();
            } else {
                arrival = Some(coming);
            }
        }
        assert_eq!(count, 5);
        assert_eq!(there.read(&hashes[0]).unwrap(), large);
        assert!(there.lacking(hashes, UnixMs(1)).is_empty());
    }

    #[test]
    fn what_is_not_what_it_should_be_is_not_kept() {
        let (dir, blobs) = blobs();
        let hash = BlobHash::of(b"hello");
        for (bytes, content) in [(5, "hallo"), (4, "hell"), (9, "hello")] {
            let mut arrival = blobs.begin(hash, bytes).unwrap();
            arrival.write(content.as_bytes()).unwrap();
            assert!(arrival.finish().is_err(), "{content}");
        }
        assert!(blobs.begin(hash, 4).unwrap().write(b"hello").is_err(), "longer than was said");
        assert!(blobs.begin(hash, limits::BLOB_BYTES_MAX + 1).is_err());
        assert!(!blobs.has(&hash));
        assert_eq!(
            fs::read_dir(dir.path().join("blobs")).unwrap().count(),
            0,
            "nothing is left behind"
        );
    }

    #[test]
    fn a_damaged_content_is_found_and_removed() {
        let (dir, blobs) = blobs();
        let hash = blobs.put(b"hello").unwrap();
        fs::write(dir.path().join("blobs").join(hash.to_string()), "hellO").unwrap();
        assert!(blobs.read(&hash).is_err());
        assert!(!blobs.has(&hash));
        blobs.put(b"hello").unwrap();
        assert_eq!(blobs.read(&hash).unwrap(), b"hello");
    }

    #[test]
    fn only_what_nobody_wants_for_an_hour_goes() {
        let (dir, blobs) = blobs();
        let [wanted, asked, idle] = ["a", "b", "c"].map(|text| blobs.put(text.as_bytes()).unwrap());
        fs::write(dir.path().join("blobs").join(format!("7{PARTIAL}")), "half").unwrap();
        let now = UnixMs(1_800_000_000_000);
        assert!(blobs.lacking([wanted, asked, idle], now).is_empty());
        let later = UnixMs(now.0 + HOUR + 1);
        assert!(blobs.lacking([asked], later).is_empty());
        let kept = blobs.collect(&BTreeSet::from([wanted]), later).unwrap();
        assert_eq!(kept, Kept { blobs: 2, bytes: 2 });
        assert!(blobs.has(&wanted) && blobs.has(&asked) && !blobs.has(&idle));
        let again = Blobs::open(dir.path()).unwrap();
        assert!(!dir.path().join("blobs").join(format!("7{PARTIAL}")).exists());
        assert!(again.has(&wanted));
    }
}
