//! Which version of policy and tables is active, what is laid over it, and how it came to be so
//! (docs/decisions/022-versions.md).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use ppsw_proto::control::{self as pb, activate::Version as Which, activation::Kind};
use ppsw_spool::group::Reply;
use prost::Message;

use super::{State, check_text};
use crate::{
    limits,
    versions::{BlobHash, Content, is_users_path},
};

/// The control group's part of a version: names of contents, never contents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Versions {
    /// Counts the changes of what is active; 0: nothing was pushed yet.
    pub generation: u64,
    /// The active version's number.
    pub active: u64,
    /// The newest number that was given.
    last: u64,
    /// By number.
    pub kept: BTreeMap<u64, pb::Version>,
    /// Laid over whatever version is active, by path.
    pub changes: BTreeMap<String, pb::ChangedPath>,
    /// The newest last.
    pub history: VecDeque<pb::Activation>,
}

impl Versions {
    /// Whether a version was ever pushed.
    #[must_use]
    pub const fn any(&self) -> bool {
        self.generation > 0
    }

    /// The names of all that is active; `None` before the first push.
    #[must_use]
    pub fn content(&self) -> Option<Content> {
        let changes = self.changes.values().filter_map(|change| {
            Some((change.path.clone(), BlobHash::from_bytes(&change.sha256)?))
        });
        Some(Content { manifest: self.manifest(self.active)?, changes: changes.collect() })
    }

    /// The name of a kept version's manifest.
    #[must_use]
    pub fn manifest(&self, version: u64) -> Option<BlobHash> {
        let content = self.kept.get(&version)?.content.as_ref()?;
        BlobHash::from_bytes(&content.manifest)
    }

    /// What made the active generation.
    #[must_use]
    pub fn newest(&self) -> Option<&pb::Activation> {
        self.history.back()
    }

    /// As a checkpoint holds it.
    #[must_use]
    pub fn to_proto(&self) -> pb::Versions {
        pb::Versions {
            generation: self.generation,
            active: self.active,
            last: self.last,
            kept: self.kept.values().cloned().collect(),
            changes: self.changes.values().cloned().collect(),
            history: self.history.iter().cloned().collect(),
        }
    }

    /// The reverse of [`Versions::to_proto`].
    #[must_use]
    pub fn from_proto(versions: pb::Versions) -> Self {
        Self {
            generation: versions.generation,
            active: versions.active,
            last: versions.last,
            kept: versions.kept.into_iter().map(|version| (version.number, version)).collect(),
            changes: versions.changes.into_iter().map(|c| (c.path.clone(), c)).collect(),
            history: versions.history.into(),
        }
    }

    fn activate(&mut self, activate: pb::Activate) -> Result<pb::Activated, String> {
        if let Some(done) = self.done(&activate.id) {
            return Ok(done);
        }
        self.still(activate.expected)?;
        let credit = checked_credit(&activate.id, activate.credit)?;
        let (kind, version) = match activate.version {
            Some(Which::Push(content)) => {
                if BlobHash::from_bytes(&content.manifest).is_none() {
                    return Err("a version without a manifest".to_owned());
                }
                self.last += 1;
                let version = pb::Version {
                    number: self.last,
                    content: Some(content),
                    credit: Some(credit.clone()),
                };
                self.kept.insert(self.last, version);
                (Kind::Push, self.last)
            }
            Some(Which::Rollback(version)) => {
                if version == self.active {
                    return Err(format!("version {version} is active already"));
                }
                if !self.kept.contains_key(&version) {
                    return Err(not_kept(version));
                }
                (Kind::Rollback, version)
            }
            None => return Err("an activation of nothing".to_owned()),
        };
        self.active = version;
        self.forget_old_versions();
        Ok(self.record(pb::Activation {
            kind: kind.into(),
            credit: Some(credit),
            id: activate.id,
            ..pb::Activation::default()
        }))
    }

    fn change(&mut self, change: pb::ChangePaths) -> Result<pb::Activated, String> {
        if let Some(done) = self.done(&change.id) {
            return Ok(done);
        }
        if !self.any() {
            return Err(NOTHING_YET.to_owned());
        }
        self.still(change.expected)?;
        let source = change.source();
        let credit = checked_credit(&change.id, change.credit)?;
        let paths = change.paths;
        if paths.is_empty() || paths.len() > limits::CHANGE_PATHS_MAX {
            return Err(format!("expected 1 to {} paths", limits::CHANGE_PATHS_MAX));
        }
        if let Some(other) = paths.iter().find(|change| !is_users_path(&change.path)) {
            return Err(format!("{} cannot be changed without a push", other.path));
        }
        if paths.iter().any(|c| !c.sha256.is_empty() && BlobHash::from_bytes(&c.sha256).is_none()) {
            return Err("a change that does not name its content".to_owned());
        }
        let new = paths.iter().filter(|c| !self.changes.contains_key(&c.path)).count();
        if self.changes.len() + new > limits::CHANGED_PATHS_MAX {
            return Err(format!(
                "{} users' tables are changed already: make them part of a version, by a push and `reset`",
                self.changes.len()
            ));
        }
        let activation = pb::Activation {
            kind: Kind::Change.into(),
            paths: paths.iter().take(limits::ACTIVATION_PATHS).map(|c| c.path.clone()).collect(),
            // At most CHANGE_PATHS_MAX.
            changed: u32::try_from(paths.len()).unwrap_or(u32::MAX),
            source: source.into(),
            credit: Some(credit.clone()),
            id: change.id,
            ..pb::Activation::default()
        };
        for change in paths {
            if change.sha256.is_empty() {
                self.changes.remove(&change.path);
                continue;
            }
            let changed = pb::ChangedPath {
                path: change.path.clone(),
                sha256: change.sha256,
                bytes: change.bytes,
                entries: change.entries,
                source: source.into(),
                credit: Some(credit.clone()),
                generation: self.generation + 1,
            };
            self.changes.insert(change.path, changed);
        }
        Ok(self.record(activation))
    }

    /// The answer to a command that was asked for before.
    fn done(&self, id: &Bytes) -> Option<pb::Activated> {
        let before = self.history.iter().rev().find(|activation| activation.id == *id)?;
        Some(pb::Activated { generation: before.generation, version: before.version })
    }

    /// Refuses what was checked against something that is not active any more.
    pub(crate) fn still(&self, expected: u64) -> Result<(), String> {
        if expected == self.generation {
            return Ok(());
        }
        let newest = self.newest().map(|newest| format!(" ({})", told(newest))).unwrap_or_default();
        Err(format!(
            "this was made for generation {expected}, but generation {} is active now{newest}: look at what it \
             changed, and try again",
            self.generation
        ))
    }

    fn record(&mut self, activation: pb::Activation) -> pb::Activated {
        self.generation += 1;
        let done = pb::Activated { generation: self.generation, version: self.active };
        self.history.push_back(pb::Activation {
            generation: self.generation,
            version: self.active,
            ..activation
        });
        while self.history.len() > limits::ACTIVATIONS_KEPT {
            self.history.pop_front();
        }
        done
    }

    fn forget_old_versions(&mut self) {
        while self.kept.len() > limits::VERSIONS_KEPT {
            let Some(oldest) = self.kept.keys().copied().find(|number| *number != self.active)
            else {
                return;
            };
            self.kept.remove(&oldest);
        }
    }
}

impl State {
    pub(super) fn activate(&mut self, activate: pb::Activate) -> Reply {
        self.change_versions(|versions| versions.activate(activate))
    }

    pub(super) fn change_paths(&mut self, change: pb::ChangePaths) -> Reply {
        if let Err(why) = self.check_fetched(&change) {
            return Reply::Refused(why);
        }
        self.change_versions(|versions| versions.change(change))
    }

    fn change_versions(
        &mut self,
        change: impl FnOnce(&mut Versions) -> Result<pb::Activated, String>,
    ) -> Reply {
        // What is refused has changed nothing.
        match change(Arc::make_mut(&mut self.versions)) {
            Ok(done) => Reply::Value(done.encode_to_vec().into()),
            Err(why) => Reply::Refused(why),
        }
    }
}

/// Answer to whoever wants to change what is not there.
pub(crate) const NOTHING_YET: &str =
    "no version was pushed yet: begin with `ppswctl tables push DIR`";

pub(crate) fn not_kept(version: u64) -> String {
    format!("version {version} is not kept: `ppswctl tables versions` shows those that are")
}

/// An activation in words.
pub(crate) fn told(activation: &pb::Activation) -> String {
    let credit = activation.credit.clone().unwrap_or_default();
    let who = if credit.author.is_empty() {
        credit.by
    } else {
        format!("{} ({})", credit.author, credit.by)
    };
    let what = match activation.kind() {
        Kind::Push => format!("version {} pushed", activation.version),
        Kind::Rollback => format!("rolled back to version {}", activation.version),
        Kind::Change | Kind::Unspecified => {
            let first = activation.paths.first().map_or("", String::as_str);
            match activation.changed {
                0 | 1 => format!("{first} changed"),
                count => format!("{first} and {} more changed", count - 1),
            }
        }
    };
    let at =
        i64::try_from(credit.at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let at = at.map(|at| format!(" at {at:.0}")).unwrap_or_default();
    format!("{what} by {who}{at}: {}", credit.reason)
}

fn checked_credit(id: &Bytes, credit: Option<pb::Credit>) -> Result<pb::Credit, String> {
    let credit = credit.unwrap_or_default();
    check_credit(&credit)?;
    if id.len() != limits::COMMAND_ID_BYTES {
        return Err("an activation without its id".to_owned());
    }
    Ok(credit)
}

/// Who did it and why has to be said, in words that fit into one line.
pub(crate) fn check_credit(credit: &pb::Credit) -> Result<(), String> {
    check_text("name", &credit.by)?;
    check_text("author", &credit.author)?;
    if credit.reason.len() > limits::REASON_BYTES_MAX || credit.reason.chars().any(char::is_control)
    {
        return Err(format!(
            "expected a reason of at most {} bytes without control characters",
            limits::REASON_BYTES_MAX
        ));
    }
    if credit.reason.trim().is_empty() {
        return Err("expected a --reason, for the records".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
