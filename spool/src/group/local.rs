//! What a group notes beside a state that its machine keeps on this node, and how it decides whether that state is of
//! its log.

use std::collections::BTreeMap;

use bytes::Bytes;
use ppsw_proto::raft as wire;
use prost::Message;

use super::{
    GroupId, Position,
    store::Store,
    types::{
        StoredMembership, log_id, log_id_to_wire, stored_membership_from_wire,
        stored_membership_to_wire,
    },
};

/// Version that is written, and the only one that is read.
const VERSION: u32 = 1;

/// A note that was read.
pub(crate) struct Local {
    /// The last entry that the machine's state contains.
    pub(crate) applied: Position,
    /// First applied index of each term since the replica's checkpoint.
    pub(crate) terms: BTreeMap<u64, u64>,
    /// Memberships by the index of their entry; the first may be that of the checkpoint.
    pub(crate) memberships: BTreeMap<u64, StoredMembership>,
}

impl Local {
    /// A note as of `at`, from what is known now. `None` if what was known as of `at` has been forgotten.
    pub(crate) fn write(
        group: GroupId,
        at: Position,
        terms: &BTreeMap<u64, u64>,
        memberships: &BTreeMap<u64, StoredMembership>,
    ) -> Option<Bytes> {
        let mut terms: Vec<wire::LogId> =
            terms.range(..=at.index).map(|(&index, &term)| wire::LogId { term, index }).collect();
        // The machine may be one entry ahead of what is known here.
        if terms.last().is_none_or(|last| last.term != at.term) {
            terms.push(wire::LogId { term: at.term, index: at.index });
        }
        let known: Vec<_> = memberships.range(..=at.index).collect();
        if known.is_empty() && !memberships.is_empty() {
            return None;
        }
        let memberships = known.into_iter().map(|(index, membership)| {
            let membership = Some(stored_membership_to_wire(membership));
            wire::LocalMembership { from: *index, membership }
        });
        let note = wire::LocalState {
            version: VERSION,
            group,
            applied: Some(log_id_to_wire(&log_id(at))),
            terms,
            memberships: memberships.collect(),
        };
        Some(note.encode_to_vec().into())
    }

    /// Reads a note and checks that the log holds the entry that it is of, so that all before it are the same, too
    /// (log matching), and that the log has all behind it. `begin`: end of the replica's checkpoint.
    ///
    /// # Errors
    /// Why the state may not be used.
    pub(crate) fn read(note: &Bytes, begin: Option<u64>, store: &Store) -> Result<Self, String> {
        let note = wire::LocalState::decode(note.clone()).map_err(|error| error.to_string())?;
        if note.version != VERSION {
            return Err(format!(
                "its note has format {}, this program reads format {VERSION}",
                note.version
            ));
        }
        if note.group != store.group() {
            return Err(format!("it is of group {}, not {}", note.group, store.group()));
        }
        let applied = note.applied.ok_or("it does not say what it contains")?;
        let applied = Position { term: applied.term, index: applied.index };
        if begin.is_some_and(|begin| applied.index < begin) {
            return Err(format!("it ends at entry {}, before the log's checkpoint", applied.index));
        }
        let found = store.log().position(store.group(), applied.index);
        if found != Some(applied) {
            return Err(format!("it ends at {applied:?}, the log has {found:?} there"));
        }
        let terms = note.terms.iter().map(|id| (id.index, id.term)).collect();
        let memberships = note.memberships.iter().map(|known| {
            let stored = known.membership.clone().unwrap_or_default();
            (known.from, stored_membership_from_wire(&stored))
        });
        Ok(Self { applied, terms, memberships: memberships.collect() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        env::SystemDisk,
        log::{Entry, Log, Options},
    };

    fn store(dir: &std::path::Path) -> Store {
        let options =
            Options { dir: dir.join("log"), segment_bytes: 1 << 20, cache_bytes: 1 << 20 };
        let log = Log::open(Arc::new(SystemDisk), options).unwrap();
        let entries = (0..10)
            .map(|index| Entry {
                position: Position { term: 1 + index / 5, index },
                payload: Bytes::from_static(b"x"),
            })
            .collect();
        log.append(7, entries, Box::new(|result| assert!(result.is_ok())));
        Store::new(log, 7)
    }

    fn membership(index: u64, voters: u64) -> StoredMembership {
        let membership = openraft::Membership::new_with_defaults(
            vec![(1..=voters).collect()],
            Vec::<u64>::new(),
        );
        StoredMembership::new(Some(log_id(Position { term: 1, index })), membership)
    }

    #[test]
    fn a_note_is_as_of_its_entry_and_only_for_the_log_that_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let terms = BTreeMap::from([(0, 1), (5, 2)]);
        let memberships = BTreeMap::from([(0, membership(0, 1)), (6, membership(6, 3))]);
        let at = |term, index| Position { term, index };
        let write = |at| Local::write(7, at, &terms, &memberships).unwrap();

        let note = Local::read(&write(at(2, 5)), Some(3), &store).ok().unwrap();
        assert_eq!((note.applied, note.terms.len()), (at(2, 5), 2));
        assert_eq!(note.memberships, BTreeMap::from([(0, membership(0, 1))]));
        let note = Local::read(&write(at(2, 6)), None, &store).ok().unwrap();
        assert_eq!(note.memberships, memberships);

        let refused = |note: &Bytes, begin| Local::read(note, begin, &store).err().unwrap();
        assert!(refused(&write(at(2, 5)), Some(6)).contains("before the log's checkpoint"));
        assert!(refused(&write(at(1, 5)), None).contains("the log has Some"), "another term");
        assert!(refused(&write(at(2, 10)), None).contains("the log has None"), "ahead of the log");
        let other = Local::write(8, at(2, 5), &terms, &memberships).unwrap();
        assert!(refused(&other, None).contains("of group 8"));
        let mut newer = wire::LocalState::decode(write(at(2, 5))).unwrap();
        newer.version = 2;
        assert!(refused(&newer.encode_to_vec().into(), None).contains("format 2"));
        assert!(Local::read(&Bytes::from_static(b"\xff\xff"), None, &store).is_err());

        let later = BTreeMap::from([(6, membership(6, 3))]);
        assert_eq!(Local::write(7, at(2, 5), &terms, &later), None, "forgotten");
    }

    #[test]
    fn the_machine_may_be_one_entry_ahead() {
        let terms = BTreeMap::from([(0, 1)]);
        let note = Local::write(7, Position { term: 2, index: 5 }, &terms, &BTreeMap::new());
        let note = wire::LocalState::decode(note.unwrap()).unwrap();
        assert_eq!(note.terms.last(), Some(&wire::LogId { term: 2, index: 5 }));
    }
}
