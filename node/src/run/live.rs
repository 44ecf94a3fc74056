//! The configuration that this node runs: its own directory's, or a version of the cluster's
//! (docs/decisions/022-versions.md).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use ppsw_control::{
    CompileError, Compiled,
    versions::{BlobHash, Files},
};
use ppsw_proto::control as pb;
use tokio::sync::{oneshot, watch};

use crate::{
    limits,
    policy::{Configuration, POLICY, Problem},
    tables::{Parsed, SharedTable, Tables},
};

/// What runs, and what it shares with what may run next. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Live(Arc<Shared>);

#[derive(Default)]
struct Shared {
    running: Mutex<Running>,
    /// Files that some configuration has, by path and content.
    known: Mutex<HashMap<(String, BlobHash), SharedTable>>,
}

#[derive(Default)]
struct Running {
    configuration: Option<Arc<Configuration>>,
    /// It is a version of the cluster's.
    is_version: bool,
    /// Sessions and attempts look here.
    switch: Option<watch::Sender<Arc<Configuration>>>,
}

impl Running {
    fn switch_to(&mut self, configuration: Arc<Configuration>) {
        if let Some(switch) = &self.switch {
            switch.send_replace(Arc::clone(&configuration));
        }
        self.configuration = Some(configuration);
    }
}

impl Live {
    /// Runs the node's own directory from now on; not if a version became active while it was read.
    pub(super) fn run_own(&self, configuration: Arc<Configuration>) {
        let mut running = self.lock();
        if !running.is_version {
            running.switch_to(configuration);
        }
    }

    fn run_version(&self, configuration: Arc<Configuration>) {
        let mut running = self.lock();
        running.is_version = true;
        running.switch_to(configuration);
    }

    pub(super) fn running(&self) -> Option<Arc<Configuration>> {
        self.lock().configuration.clone()
    }

    /// What runs, now and later. `None`: nothing does yet.
    pub(super) fn watch(&self) -> Option<watch::Receiver<Arc<Configuration>>> {
        let mut running = self.lock();
        let now = Arc::clone(running.configuration.as_ref()?);
        let switch = running.switch.get_or_insert_with(|| watch::Sender::new(now));
        Some(switch.subscribe())
    }

    /// As the control plane sees it.
    pub(super) fn compiled(&self) -> Option<Arc<dyn Compiled>> {
        let configuration = self.running()?;
        Some(Arc::new(Prepared { configuration, live: self.clone() }))
    }

    /// Makes a configuration of a version's files, off the reactor.
    pub(super) async fn compile(&self, files: Files) -> Result<Arc<dyn Compiled>, CompileError> {
        let live = self.clone();
        let (give, made) = oneshot::channel();
        let thread = std::thread::Builder::new().name("compile".to_owned()).spawn(move || {
            // Of this thread alone. Mail goes first: nobody waits for a version as a client waits for a reply.
            if let Err(error) = rustix::process::nice(limits::COMPILE_NICENESS) {
                tracing::debug!(%error, "cannot make room for mail");
            }
            // Nobody waits for it any more, if this fails.
            let _ = give.send(live.compile_here(&files));
        });
        thread
            .map_err(|error| CompileError::Unread(format!("no thread to compile in: {error}")))?;
        let configuration =
            made.await.map_err(|error| CompileError::Unread(error.to_string()))??;
        Ok(Arc::new(Prepared { configuration, live: self.clone() }))
    }

    fn compile_here(&self, files: &Files) -> Result<Arc<Configuration>, CompileError> {
        let unread = |path: &str, error: std::io::Error| {
            CompileError::Unread(format!("{path} cannot be read: {error}"))
        };
        let (mut policy, mut tables, mut errors) = (None, Vec::new(), Vec::new());
        let mut known = HashMap::new();
        for (path, hash) in &files.paths {
            if path == POLICY {
                policy = Some(files.read(hash).map_err(|error| unread(path, error))?);
                continue;
            }
            let key = (path.clone(), *hash);
            let parsed = match self.known(&key) {
                Some(parsed) => Ok(parsed),
                None => Parsed::of(path, &files.read(hash).map_err(|error| unread(path, error))?),
            };
            match parsed {
                Ok(table) => {
                    known.insert(key, table.downgrade());
                    tables.push(table);
                }
                Err(wrong) => errors.extend(wrong.iter().map(ToString::to_string)),
            }
            if errors.len() > limits::CONFIGURATION_ERRORS_MAX {
                break;
            }
        }
        if !errors.is_empty() {
            return Err(CompileError::Wrong(errors));
        }
        let made = Configuration::from_parts(policy.as_deref(), Tables::from_parsed(tables));
        let configuration = made.map_err(|reports| {
            CompileError::Wrong(
                reports.iter().map(|report| in_words(&Problem::of_report(report))).collect(),
            )
        })?;
        let mut shared = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|_, table| table.upgrade().is_some());
        shared.extend(known);
        Ok(configuration)
    }

    fn known(&self, key: &(String, BlobHash)) -> Option<Parsed> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner).get(key)?.upgrade()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Running> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line for a person who pushes.
fn in_words(problem: &Problem) -> String {
    let place = match (&problem.file, problem.line, problem.column) {
        (Some(file), Some(line), Some(column)) => format!("{file}:{line}:{column}: "),
        _ => String::new(),
    };
    let help = problem.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
    format!("{place}{}{help}", problem.what)
}

struct Prepared {
    configuration: Arc<Configuration>,
    live: Live,
}

#[async_trait]
impl Compiled for Prepared {
    fn tables(&self) -> Vec<(String, u64)> {
        let sizes = self.configuration.tables.sizes();
        sizes.map(|(name, entries)| (path_of(name), entries as u64)).collect()
    }

    fn bytes(&self) -> u64 {
        self.configuration.tables.bytes()
    }

    async fn objections(&self) -> Vec<String> {
        let open = self.configuration.open_relays().await;
        open.iter().map(ToString::to_string).collect()
    }

    fn look_up(&self, table: &str, key: &str) -> Option<pb::GetReply> {
        let tables = &self.configuration.tables;
        let found = tables.find(table, key)?;
        let found = found.into_iter().map(|found| pb::get_reply::Match {
            how: found.how.to_owned(),
            key: found.key.to_owned(),
            value: found.value.to_owned(),
            line: found.line,
        });
        Some(pb::GetReply {
            entries: tables.len(table) as u64,
            found: found.collect(),
            ..pb::GetReply::default()
        })
    }

    fn activate(&self) {
        self.live.run_version(Arc::clone(&self.configuration));
    }
}

/// Where a table's file lies.
fn path_of(table: &str) -> String {
    if table.contains('/') { table.to_owned() } else { format!("tables/{table}") }
}

/// What differs between two contents of a file: entries of a table, lines of anything else.
pub(super) fn diff(
    path: &str,
    before: Option<&[u8]>,
    after: Option<&[u8]>,
    limit: usize,
) -> pb::FileDiff {
    let (before, after) = (Side::of(path, before), Side::of(path, after));
    let mut diff = pb::FileDiff { path: path.to_owned(), ..pb::FileDiff::default() };
    let keys: std::collections::BTreeSet<&str> =
        before.entries.keys().chain(after.entries.keys()).map(String::as_str).collect();
    for key in keys {
        let (old, new) = (before.entries.get(key), after.entries.get(key));
        if old == new {
            continue;
        }
        match (old, new) {
            (None, _) => diff.added += 1,
            (_, None) => diff.removed += 1,
            _ => diff.changed += 1,
        }
        if diff.shown.len() < limit {
            diff.shown.push(pb::EntryDiff {
                key: key.to_owned(),
                before: old.cloned(),
                after: new.cloned(),
            });
        }
    }
    lines(&before.lines, &after.lines, limit, &mut diff);
    if path == PASSWORDS {
        for entry in &mut diff.shown {
            for value in [&mut entry.before, &mut entry.after].into_iter().flatten() {
                "(not shown)".clone_into(value);
            }
        }
    }
    diff
}

/// Whose values are nobody's business: hashes of passwords.
const PASSWORDS: &str = "users/passwd";

/// Lines that only one side has, as often as it has them more often.
fn lines(before: &[String], after: &[String], limit: usize, diff: &mut pb::FileDiff) {
    let mut count: BTreeMap<&str, i64> = BTreeMap::new();
    before.iter().for_each(|line| *count.entry(line).or_default() -= 1);
    after.iter().for_each(|line| *count.entry(line).or_default() += 1);
    // In the order of the text: what went, then what came.
    for (lines, sign) in [(before, -1), (after, 1)] {
        for line in lines {
            let Some(left) = count.get_mut(line.as_str()).filter(|left| **left * sign > 0) else {
                continue;
            };
            *left -= sign;
            if sign > 0 {
                diff.added += 1
            } else {
                diff.removed += 1
            }
            if diff.shown.len() < limit {
                let text = Some(line.clone());
                let (before, after) = if sign > 0 { (None, text) } else { (text, None) };
                diff.shown.push(pb::EntryDiff { key: String::new(), before, after });
            }
        }
    }
}

/// One of two contents.
#[derive(Default)]
struct Side {
    entries: BTreeMap<String, String>,
    lines: Vec<String>,
}

impl Side {
    /// What is no table, or has errors, is compared line by line.
    fn of(path: &str, content: Option<&[u8]>) -> Self {
        let Some(content) = content else { return Self::default() };
        if path != POLICY
            && let Ok(parsed) = Parsed::of(path, content)
        {
            let tables = Tables::from_parsed([parsed]);
            if let Some(name) = tables.names().next() {
                let entries = tables.entries(name);
                return Self {
                    entries: entries.map(|(k, v, _)| (k.to_owned(), v.to_owned())).collect(),
                    lines: tables.lines(name).map(<[String]>::to_vec).unwrap_or_default(),
                };
            }
        }
        let text = String::from_utf8_lossy(content);
        Self { lines: text.lines().map(str::to_owned).collect(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(diff: &pb::FileDiff) -> Vec<(&str, Option<&str>, Option<&str>)> {
        let entry = |e| {
            let e: &pb::EntryDiff = e;
            (e.key.as_str(), e.before.as_deref(), e.after.as_deref())
        };
        diff.shown.iter().map(entry).collect()
    }

    #[test]
    fn a_directory_that_is_read_late_does_not_replace_a_version() {
        let made = || {
            let files =
                BTreeMap::from([(POLICY.to_owned(), b"qualify_domain \"a.example\"".to_vec())]);
            Configuration::from_files(&files).unwrap()
        };
        let (own, version) = (made(), made());
        let live = Live::default();
        live.run_own(own.clone());
        let watch = live.watch().unwrap();
        assert!(Arc::ptr_eq(&watch.borrow(), &own));
        live.run_version(version.clone());
        live.run_own(own);
        assert!(Arc::ptr_eq(&watch.borrow(), &version));
    }

    #[test]
    fn tables_are_compared_by_entry() {
        let (a, b) = (b"x one\ny two\nz three\n", b"# new\nz three\ny 2\nw four\n");
        let found = diff("tables/t", Some(a), Some(b), 10);
        assert_eq!((found.added, found.removed, found.changed), (1, 1, 1));
        assert_eq!(
            shown(&found),
            [("w", None, Some("four")), ("x", Some("one"), None), ("y", Some("two"), Some("2"))]
        );
        assert_eq!(diff("tables/t", Some(a), Some(b), 1).shown.len(), 1);
        let hidden = diff("users/passwd", Some(a), None, 1);
        assert_eq!(shown(&hidden), [("x", Some("(not shown)"), None)]);
    }

    #[test]
    fn lists_and_policies_are_compared_by_line() {
        let found = diff("lists/p/members", Some(b"a@x\nb@x\n"), Some(b"b@x\nc@x\n"), 10);
        assert_eq!(shown(&found), [("", Some("a@x"), None), ("", None, Some("c@x"))]);
        let found = diff(POLICY, Some(b"accept\ndeny\n"), Some(b"accept\naccept\n"), 10);
        assert_eq!((found.added, found.removed), (1, 1));
        let found = diff(POLICY, None, Some(b"accept\n"), 10);
        assert_eq!(shown(&found), [("", None, Some("accept"))]);
    }
}
