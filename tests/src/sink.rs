//! What the sink of `ppswd dev` filed.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// The field by which tests know their messages again.
pub const ID_FIELD: &str = "X-Test-Id";

/// One file: one SMTP or LMTP transaction.
#[derive(Clone, Debug)]
pub struct Filed {
    /// Reverse-path, without brackets.
    pub sender: String,
    pub recipients: Vec<String>,
    /// As it came over the wire.
    pub content: Vec<u8>,
    pub filed: SystemTime,
}

impl Filed {
    fn read(path: &Path) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let filed = std::fs::metadata(path).ok()?.modified().ok()?;
        let mut rest = &bytes[..];
        let mut sender = String::new();
        let mut recipients = Vec::new();
        while let Some((line, after)) = split_line(rest) {
            if let Some(path) = line.strip_prefix("X-Sink-Envelope: ") {
                path.trim_matches(['<', '>']).clone_into(&mut sender);
            } else if let Some(path) = line.strip_prefix("X-Sink-Recipient: ") {
                recipients.push(path.trim_matches(['<', '>']).to_owned());
            } else {
                break;
            }
            rest = after;
        }
        Some(Self { sender, recipients, content: rest.to_vec(), filed })
    }

    /// Value of the test's own field.
    pub fn id(&self) -> Option<String> {
        field(&self.content, ID_FIELD)
    }
}

/// The Maildir of a sink. Remembers what it has read.
pub struct Maildir {
    dir: PathBuf,
    read: HashMap<PathBuf, Filed>,
}

impl Maildir {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), read: HashMap::new() }
    }

    /// All files, in no order.
    pub fn messages(&mut self) -> impl Iterator<Item = &Filed> {
        for entry in std::fs::read_dir(self.dir.join("new")).into_iter().flatten().flatten() {
            let path = entry.path();
            if !self.read.contains_key(&path)
                && let Some(filed) = Filed::read(&path)
            {
                self.read.insert(path, filed);
            }
        }
        self.read.values()
    }

    /// How often each test id arrived.
    pub fn counts(&mut self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for id in self.messages().filter_map(Filed::id) {
            *counts.entry(id).or_default() += 1;
        }
        counts
    }
}

/// Value of the first field of that name in a header, which ends at the first line that is no field.
pub fn field(content: &[u8], name: &str) -> Option<String> {
    let mut rest = content;
    while let Some((line, after)) = split_line(rest) {
        rest = after;
        if line.starts_with([' ', '\t']) {
            continue;
        }
        let (found, value) = line.split_once(':')?;
        let found = found.trim_end();
        if found.is_empty() || !found.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        if found.eq_ignore_ascii_case(name) {
            return Some(value.trim().to_owned());
        }
    }
    None
}

/// The first line without its end, and what follows.
fn split_line(bytes: &[u8]) -> Option<(std::borrow::Cow<'_, str>, &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    Some((String::from_utf8_lossy(line), &bytes[end + 1..]))
}
