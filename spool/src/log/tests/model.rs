//! What the log should hold: the simplest thing that can say so.

use std::collections::BTreeMap;

use super::super::*;

/// One change, of one record's size.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Append(Entry),
    Vote(Bytes),
    Checkpoint(Bytes),
    Truncate(Option<Position>),
    Purge(Position),
    Forget,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModelGroup {
    pub(super) vote: Option<Bytes>,
    pub(super) checkpoint: Option<Bytes>,
    pub(super) purged: Option<Position>,
    pub(super) entries: BTreeMap<u64, Entry>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) groups: BTreeMap<GroupId, ModelGroup>,
}

impl ModelGroup {
    /// The index that the next entry has.
    pub(super) fn next(&self) -> u64 {
        let last = self.entries.last_key_value().map(|(index, _)| *index);
        last.or_else(|| self.purged.map(|p| p.index)).map_or(0, |last| last + 1)
    }

    pub(super) fn last(&self) -> Option<Position> {
        self.entries.last_key_value().map(|(_, entry)| entry.position).or(self.purged)
    }
}

impl Model {
    pub(super) fn apply(&mut self, group: GroupId, change: &Change) {
        let state = self.groups.entry(group).or_default();
        match change {
            Change::Append(entry) => {
                state.entries.insert(entry.position.index, entry.clone());
            }
            Change::Vote(vote) => state.vote = Some(vote.clone()),
            Change::Checkpoint(checkpoint) => state.checkpoint = Some(checkpoint.clone()),
            Change::Truncate(last) => {
                state.entries.retain(|index, _| last.is_some_and(|last| *index <= last.index));
            }
            Change::Purge(upto) => {
                if state.purged.is_none_or(|purged| purged.index < upto.index) {
                    state.purged = Some(*upto);
                    state.entries.retain(|index, _| *index > upto.index);
                }
            }
            Change::Forget => *state = ModelGroup::default(),
        }
        if *state == ModelGroup::default() {
            self.groups.remove(&group);
        }
    }

    /// What a log holds, read in full.
    pub(super) fn of(log: &Log) -> Result<Self, LogError> {
        let mut model = Self::default();
        for id in log.groups() {
            let GroupState { vote, purged, first: _, last, checkpoint } = log.state(id);
            let mut group = ModelGroup { vote, checkpoint, purged, entries: BTreeMap::new() };
            let first = purged.map_or(0, |purged| purged.index + 1);
            let range = first..last.map_or(0, |last| last.index + 1);
            for entry in log.read(id, range, usize::MAX)? {
                group.entries.insert(entry.position.index, entry);
            }
            assert_eq!(group.last(), last);
            model.groups.insert(id, group);
        }
        Ok(model)
    }
}
