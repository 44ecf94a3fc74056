//! Raft's invariants (Ongaro and Ousterhout, "In search of an understandable consensus algorithm", figure 3), seen
//! from outside: by what the nodes say of themselves, and by what stands in their logs.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use ppsw_spool::{
    NodeId,
    group::{GroupId, GroupStatus},
    log::{Entry, Log, LogError, Position},
};

use super::{ledger::Ledger, node::Life};

/// Entries before the end of what is committed that a new leader is checked for: all that can be in doubt.
const COMPLETE_BACK: u64 = 2_000;

/// What is known of all groups so far.
#[derive(Default)]
pub(crate) struct Invariants {
    groups: BTreeMap<GroupId, Known>,
    seen: BTreeMap<(NodeId, GroupId), Seen>,
}

/// Of one group.
#[derive(Default)]
struct Known {
    /// Election safety: one leader per term.
    leaders: BTreeMap<u64, NodeId>,
    /// Log matching: what stands at a position, and the term of the entry before it.
    entries: HashMap<Position, (u64, Option<u64>)>,
    /// State machine safety: what was applied at an index by whoever did so first.
    applied: BTreeMap<u64, (u64, u64)>,
}

/// How far a replica has been looked at.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// The next index to be compared with what others applied.
    applied: u64,
    /// The last entry of its log that was compared.
    last: Option<Position>,
}

fn hash(entry: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    entry.payload.hash(&mut hasher);
    hasher.finish()
}

impl Invariants {
    /// A process of a node ends: the next one tells everything anew.
    pub(crate) fn restarted(&mut self, node: NodeId) {
        self.seen.retain(|(of, _), _| *of != node);
    }

    /// Who leads, as a node sees itself. Cheap: asked at each step.
    pub(crate) fn look(&mut self, at: Duration, node: NodeId, life: &Life, ledger: &Ledger) {
        for partition in life.spool.partitions() {
            let group = partition.group();
            if group.leader() != Some(node) {
                continue;
            }
            let GroupStatus { id, term, leader, .. } = group.status();
            let known = self.groups.entry(id).or_default();
            match known.leaders.get(&term) {
                Some(other) if *other != node => ledger.violation(
                    at,
                    &format!(
                        "election safety: nodes {other} and {node} lead group {id} in term {term}"
                    ),
                ),
                Some(_) => {}
                None if leader == Some(node) => {
                    known.leaders.insert(term, node);
                    ledger.leads(at, id, term, node);
                    if let Err(what) = known.complete(id, &life.log) {
                        ledger.violation(at, &format!("leader completeness: node {node}: {what}"));
                    }
                }
                None => {}
            }
        }
    }

    /// Compares logs and what was applied. `compares` what is new since the last time.
    pub(crate) fn compare(&mut self, at: Duration, node: NodeId, life: &Life, ledger: &Ledger) {
        for partition in life.spool.partitions() {
            let status = partition.group().status();
            let known = self.groups.entry(status.id).or_default();
            let seen = self.seen.entry((node, status.id)).or_default();
            for found in [
                known.match_logs(status.id, &life.log, seen),
                known.match_applied(&status, &life.log, seen),
            ] {
                match found {
                    // A disk with trouble, or an entry that was purged between two looks.
                    Ok(()) | Err(Wrong::Log(LogError::Disk(_) | LogError::Missing { .. })) => {}
                    Err(Wrong::Log(error)) => {
                        ledger.violation(at, &format!("the log of node {node}: {error}"));
                    }
                    Err(Wrong::Invariant(what)) => {
                        ledger.violation(at, &format!("{what} (node {node}, group {})", status.id));
                    }
                }
            }
        }
    }

    /// Entries that are known to be committed, over all groups.
    pub(crate) fn committed(&self) -> u64 {
        self.groups.values().map(|known| known.applied.len() as u64).sum()
    }
}

enum Wrong {
    Log(LogError),
    Invariant(String),
}

impl From<LogError> for Wrong {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl Known {
    /// What was committed is in the log of a new leader.
    fn complete(&self, group: GroupId, log: &Log) -> Result<(), String> {
        let Some((&end, _)) = self.applied.last_key_value() else { return Ok(()) };
        let state = log.state(group);
        let purged = state.purged.map_or(0, |purged| purged.index + 1);
        for (&index, &(term, _)) in
            self.applied.range(purged.max(end.saturating_sub(COMPLETE_BACK))..)
        {
            let found = match log.read(group, index..index + 1, 1) {
                Ok(entries) => entries.first().map(|entry| entry.position.term),
                Err(LogError::Disk(_)) => return Ok(()),
                Err(error) => {
                    return Err(format!("entry {index} of group {group} was committed: {error}"));
                }
            };
            if found != Some(term) {
                return Err(format!(
                    "entry {index} of group {group} was committed in term {term}, found {found:?}"
                ));
            }
        }
        Ok(())
    }

    /// Entries of one index and term are the same, and so is everything before them.
    fn match_logs(&mut self, group: GroupId, log: &Log, seen: &mut Seen) -> Result<(), Wrong> {
        let state = log.state(group);
        let (Some(first), Some(last)) = (state.first, state.last) else { return Ok(()) };
        let same = |old: Position| {
            old.index >= first
                && old.index <= last.index
                && log
                    .read(group, old.index..old.index + 1, 1)
                    .is_ok_and(|read| read.first().is_some_and(|entry| entry.position == old))
        };
        // An end that was cut off and written over: all of it is looked at again.
        let old = seen.last.filter(|old| same(*old));
        let (start, mut before) = match old {
            Some(old) => (old.index + 1, Some(old.term)),
            None => {
                (first, state.purged.filter(|purged| purged.index + 1 == first).map(|p| p.term))
            }
        };
        for index in start..last.index + 1 {
            let Some(entry) = log.read(group, index..index + 1, 1)?.pop() else { break };
            let new = (hash(&entry), before);
            let known = *self.entries.entry(entry.position).or_insert(new);
            let contradicts = known.1.is_some() && before.is_some() && known.1 != before;
            if known.0 != new.0 || contradicts {
                return Err(Wrong::Invariant(format!(
                    "log matching: entry {index} of term {} differs from another node's",
                    entry.position.term
                )));
            }
            before = Some(entry.position.term);
            seen.last = Some(entry.position);
        }
        Ok(())
    }

    /// Whoever applies an entry at an index applies the same.
    fn match_applied(
        &mut self,
        status: &GroupStatus,
        log: &Log,
        seen: &mut Seen,
    ) -> Result<(), Wrong> {
        let Some(applied) = status.applied_index else { return Ok(()) };
        let state = log.state(status.id);
        let start = seen.applied.max(state.first.unwrap_or(u64::MAX));
        for index in start..applied.saturating_add(1) {
            let Some(entry) = log.read(status.id, index..index + 1, 1)?.pop() else { break };
            let new = (entry.position.term, hash(&entry));
            let known = *self.applied.entry(index).or_insert(new);
            seen.applied = index + 1;
            if known != new {
                return Err(Wrong::Invariant(format!(
                    "state machine safety: entry {index} is applied with term {}, another node's has term {}",
                    new.0, known.0
                )));
            }
        }
        Ok(())
    }
}
