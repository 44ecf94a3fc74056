//! The files of a version: paths and names of contents. Encoded, it is a content itself, and its name is the version's.

use std::collections::BTreeMap;

use bytes::Bytes;
use ppsw_proto::control as pb;
use prost::Message;

use super::{BlobHash, is_path};
use crate::limits;

/// The format that this program writes and reads.
const VERSION: u32 = 1;

/// The files of a version, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    files: BTreeMap<String, (BlobHash, u64)>,
}

impl Manifest {
    /// From what an operator says that it has.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn new(refs: Vec<pb::FileRef>) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let mut files = BTreeMap::new();
        if refs.len() > limits::VERSION_FILES_MAX {
            let (count, max) = (refs.len(), limits::VERSION_FILES_MAX);
            return Err(vec![format!("{count} files; a version has at most {max}")]);
        }
        for pb::FileRef { path, sha256, bytes } in refs {
            let Some(hash) = BlobHash::from_bytes(&sha256) else {
                errors.push(format!("{path:?}: expected a SHA-256"));
                continue;
            };
            if !is_path(&path) {
                errors.push(format!(
                    "{path:?}: names of tables, domains and lists are of a-z, 0-9, `.`, `_` and `-`"
                ));
            }
            if bytes > limits::BLOB_BYTES_MAX {
                errors.push(format!(
                    "{path}: {bytes} bytes; a file has at most {}",
                    limits::BLOB_BYTES_MAX
                ));
            }
            if let Some(twice) = files.insert(path.clone(), (hash, bytes)) {
                errors
                    .push(format!("{path:?} is named twice, with contents {} and {hash}", twice.0));
            }
        }
        let found = Self { files };
        if found.bytes() > limits::VERSION_BYTES_MAX {
            let (bytes, max) = (found.bytes(), limits::VERSION_BYTES_MAX);
            errors.push(format!("{bytes} bytes; a version has at most {max}"));
        }
        errors.truncate(limits::REFUSAL_LINES_MAX);
        if errors.is_empty() { Ok(found) } else { Err(errors) }
    }

    /// From its encoded form.
    ///
    /// # Errors
    /// If it is of another format, or damaged.
    pub(crate) fn decode(encoded: &[u8]) -> Result<Self, String> {
        let manifest = pb::Manifest::decode(encoded)
            .map_err(|error| format!("the list of a version's files is damaged: {error}"))?;
        if manifest.version != VERSION {
            return Err(format!(
                "the list of a version's files has format {}, this program reads {VERSION}: use a newer ppswd",
                manifest.version
            ));
        }
        Self::new(manifest.files).map_err(|errors| errors.join("\n"))
    }

    /// The same files always give the same bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let files = self.files.iter().map(|(path, (hash, bytes))| pb::FileRef {
            path: path.clone(),
            sha256: hash.to_bytes(),
            bytes: *bytes,
        });
        pb::Manifest { version: VERSION, files: files.collect() }.encode_to_vec().into()
    }

    /// What a path has.
    pub(crate) fn get(&self, path: &str) -> Option<BlobHash> {
        self.files.get(path).map(|(hash, _)| *hash)
    }

    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.files.values().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// The names of all contents.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = BlobHash> + '_ {
        self.files.values().map(|(hash, _)| *hash)
    }

    /// Its files with `changes` laid over them, by path.
    pub(crate) fn with(&self, changes: &BTreeMap<String, BlobHash>) -> BTreeMap<String, BlobHash> {
        let mut files: BTreeMap<_, _> =
            self.files.iter().map(|(path, (hash, _))| (path.clone(), *hash)).collect();
        files.extend(changes.iter().map(|(path, hash)| (path.clone(), *hash)));
        files
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn file(path: &str, content: &str) -> pb::FileRef {
        let sha256 = BlobHash::of(content.as_bytes()).to_bytes();
        pb::FileRef { path: path.to_owned(), sha256, bytes: content.len() as u64 }
    }

    #[test]
    fn the_order_of_files_does_not_matter() {
        let (a, b) = (file("policy.kdl", "a"), file("tables/t", "bb"));
        let one = Manifest::new(vec![a.clone(), b.clone()]).unwrap();
        let other = Manifest::new(vec![b, a]).unwrap();
        assert_eq!(one.encode(), other.encode());
        assert_eq!(Manifest::decode(&one.encode()).unwrap(), one);
        assert_eq!((one.len(), one.bytes()), (2, 3));
        let change = BTreeMap::from([("tables/t".to_owned(), BlobHash::of(b"c"))]);
        assert_eq!(one.with(&change)["tables/t"], BlobHash::of(b"c"));
        assert_eq!(one.with(&change)["policy.kdl"], BlobHash::of(b"a"));
    }

    #[test]
    fn what_no_version_can_have_is_refused() {
        let twice = vec![file("tables/t", "a"), file("tables/t", "b")];
        let no_hash = pb::FileRef { path: "tables/t".to_owned(), ..pb::FileRef::default() };
        let large = pb::FileRef { bytes: limits::BLOB_BYTES_MAX + 1, ..file("tables/t", "") };
        for bad in [
            twice,
            vec![file("../etc/passwd", "a")],
            vec![file("tables/T", "a")],
            vec![file("", "a")],
            vec![no_hash],
            vec![large],
        ] {
            assert!(Manifest::new(bad.clone()).is_err(), "{bad:?}");
        }
        let newer = pb::Manifest { version: 2, files: Vec::new() }.encode_to_vec();
        assert!(Manifest::decode(&newer).unwrap_err().contains("format 2"));
        assert!(Manifest::decode(b"\xff\xff").is_err());
    }
}
