//! openraft's view of a [`Machine`]: volatile, with checkpoints that only say where replay begins.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    entry::RaftEntry,
    storage::{EntryResponder, RaftStateMachine},
};
use ppsw_proto::raft as wire;
use prost::Message;
use tokio::sync::watch;

use super::{
    Checkpoint, Machine, Position, Reply,
    local::Local,
    store::Store,
    types::{self, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::{limits, log::LogError};

/// A machine with what openraft wants to know beside it. Clones share it.
#[derive(Clone)]
pub(crate) struct Adapter {
    machine: Arc<dyn Machine>,
    store: Store,
    state: Arc<Mutex<State>>,
    /// Held while a checkpoint is saved: one that is being built must not overwrite a later one that the leader
    /// sends meanwhile, because the entries between them may be purged already.
    saving: Arc<tokio::sync::Mutex<Saving>>,
    /// Counts the times that a checkpoint was asked for and the answer is saved (or there was nothing to save).
    taken: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    /// Memberships by the index of their entry: a checkpoint must carry the one as of its own end.
    memberships: BTreeMap<u64, StoredMembership>,
    /// First applied index of each term: a checkpoint must carry the right term of its end.
    terms: BTreeMap<u64, u64>,
    /// What has been saved last.
    saved: Option<Saved>,
}

/// Whether checkpoints may still be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saving {
    /// The group runs.
    Open,
    /// The group has stopped; its records may be forgotten at any moment.
    Closed,
}

#[derive(Clone)]
struct Saved {
    meta: SnapshotMeta,
    state: Bytes,
}

impl Saved {
    fn index(&self) -> Option<u64> {
        self.meta.last_log_id.as_ref().map(|id| id.index)
    }
}

impl From<Saved> for Snapshot {
    fn from(saved: Saved) -> Self {
        Self { meta: saved.meta, snapshot: saved.state }
    }
}

impl Adapter {
    /// A machine that begins where the log's checkpoint says, or later if this node has kept its state.
    ///
    /// # Errors
    /// `Version` if a newer program wrote the checkpoint, `Damaged` if it is not understood.
    pub(crate) fn new(machine: Arc<dyn Machine>, store: Store) -> Result<Self, LogError> {
        let adapter = Self {
            machine,
            store,
            state: Arc::default(),
            saving: Arc::new(tokio::sync::Mutex::new(Saving::Open)),
            taken: watch::Sender::new(0),
        };
        if let Some(bytes) = adapter.store.log().state(adapter.store.group()).checkpoint {
            let group = adapter.store.group();
            let damaged = |what: String| LogError::Damaged {
                file: "log".to_owned(),
                offset: 0,
                what: format!("checkpoint of group {group}: {what}"),
            };
            let stored =
                wire::StoredCheckpoint::decode(bytes).map_err(|e| damaged(e.to_string()))?;
            if stored.version > types::CHECKPOINT_VERSION {
                return Err(LogError::Version {
                    file: format!("the checkpoint of group {group}"),
                    found: stored.version,
                    supported: types::CHECKPOINT_VERSION,
                });
            }
            let (meta, state) =
                types::checkpoint_from_wire(stored).map_err(|e| damaged(e.to_string()))?;
            adapter.take_over(Saved { meta, state });
            if let Some(why) = adapter.machine.outdated() {
                return Err(LogError::Misuse(format!("the checkpoint of group {group}: {why}")));
            }
        }
        adapter.recall();
        Ok(adapter)
    }

    /// Changes whenever a checkpoint that was asked for has been dealt with.
    pub(crate) fn taken(&self) -> watch::Receiver<u64> {
        self.taken.subscribe()
    }

    /// Nothing is written any longer when this returns.
    pub(crate) async fn close(&self) {
        *self.saving.lock().await = Saving::Closed;
    }

    /// Takes the state that the machine has kept on this node, if it is of this group's log.
    fn recall(&self) {
        let mut known = None;
        let fits = &mut |note: &Bytes| {
            let begin = self.state().saved.as_ref().and_then(Saved::index);
            let checked = Local::read(note, begin, &self.store);
            if let Err(why) = &checked {
                let group = self.store.group();
                tracing::warn!(group, "the kept state is not used, the log is replayed: {why}");
            }
            known = checked.ok();
            known.is_some()
        };
        if !self.machine.recall(fits) {
            return;
        }
        if let Some(local) = known {
            let mut state = self.state();
            state.applied = Some(types::log_id(local.applied));
            if let Some((_, membership)) = local.memberships.last_key_value() {
                state.membership = membership.clone();
            }
            (state.terms, state.memberships) = (local.terms, local.memberships);
        }
    }

    /// See [`super::Group::note`].
    pub(crate) fn note(&self, at: Position) -> Option<Bytes> {
        let state = self.state();
        Local::write(self.store.group(), at, &state.terms, &state.memberships)
    }

    /// The end of the last saved checkpoint.
    pub(crate) fn saved_index(&self) -> Option<u64> {
        self.state().saved.as_ref().and_then(Saved::index)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a checkpoint the whole state.
    fn take_over(&self, saved: Saved) {
        let upto = saved.index();
        self.machine.restore(&Checkpoint { upto, state: saved.state.clone() });
        let mut state = self.state();
        state.applied = saved.meta.last_log_id;
        state.membership = saved.meta.last_membership.clone();
        state.memberships.clear();
        state.terms.clear();
        if let Some(id) = &saved.meta.last_log_id {
            let position = types::position(id);
            state.terms.insert(position.index, position.term);
            state.memberships.insert(position.index, saved.meta.last_membership.clone());
        }
        state.saved = Some(saved);
    }

    /// Applies an entry.
    ///
    /// # Errors
    /// If a newer program wrote it. It does not count as applied: the right program applies it after the next start.
    fn apply_one(&self, entry: &types::Entry) -> io::Result<Reply> {
        let id = entry.log_id();
        let position = types::position(&id);
        let reply = match &entry.payload {
            EntryPayload::Normal(proposal) => self.machine.apply(position, &proposal.payload()),
            EntryPayload::Blank | EntryPayload::Membership(_) => Reply::Done,
        };
        // Only what is refused can be of another version; asking is not free.
        if matches!(reply, Reply::Refused(_))
            && let Some(why) = self.machine.outdated()
        {
            let group = self.store.group();
            let text = format!("entry {} of group {group} was not applied: {why}", position.index);
            return Err(io::Error::other(text));
        }
        let mut state = self.state();
        if state.terms.values().next_back() != Some(&position.term) {
            state.terms.insert(position.index, position.term);
        }
        if let EntryPayload::Membership(membership) = &entry.payload {
            state.membership = StoredMembership::new(Some(id), membership.clone());
            let membership = state.membership.clone();
            state.memberships.insert(position.index, membership);
        }
        state.applied = Some(id);
        Ok(reply)
    }

    /// The checkpoint that the machine offers now; `None` if there is none beyond the last. Must not run beside
    /// `apply`: the machine's state would be newer than its end.
    fn offer(&self) -> Option<Saved> {
        let applied = self.state().applied?;
        let checkpoint = self.machine.checkpoint(types::position(&applied));
        let upto = checkpoint.upto?.min(applied.index);
        if checkpoint.state.len() > limits::CHECKPOINT_BYTES_MAX {
            // Going on without it costs disk space; trying to write it would cost the group.
            tracing::error!(
                group = self.store.group(),
                bytes = checkpoint.state.len(),
                limit = limits::CHECKPOINT_BYTES_MAX,
                "the checkpoint is too long; the log is not trimmed"
            );
            return None;
        }
        let state = self.state();
        if state.saved.as_ref().and_then(Saved::index).is_some_and(|index| index >= upto) {
            return None;
        }
        let (_, term) = state.terms.range(..=upto).next_back()?;
        let in_force = state.memberships.range(..=upto).next_back();
        let meta = SnapshotMeta {
            last_log_id: Some(types::log_id(Position { term: *term, index: upto })),
            last_membership: in_force.map(|(_, m)| m.clone()).unwrap_or_default(),
        };
        Some(Saved { meta, state: checkpoint.state })
    }

    /// Saves a checkpoint durably, unless a later one is there.
    async fn save(&self, new: Saved) -> io::Result<()> {
        let saving = self.saving.lock().await;
        if *saving == Saving::Closed {
            return Err(io::Error::other("the group has stopped"));
        }
        if self.state().saved.as_ref().is_some_and(|old| old.index() >= new.index()) {
            return Ok(());
        }
        let stored = types::checkpoint_to_wire(&new.meta, new.state.clone());
        self.store.save_checkpoint(&stored).await?;
        let mut state = self.state();
        if let Some(id) = &new.meta.last_log_id {
            let Position { term, index } = types::position(id);
            state.terms = state.terms.split_off(&index);
            state.terms.insert(index, term);
            state.memberships = state.memberships.split_off(&index);
            state.memberships.insert(index, new.meta.last_membership.clone());
        }
        state.saved = Some(new);
        Ok(())
    }
}

/// Saves what the machine offered at the moment it was asked, while entries are applied on.
pub(crate) struct Builder {
    adapter: Adapter,
    offered: Option<Saved>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        if let Some(offered) = self.offered.take() {
            self.adapter.save(offered).await?;
        }
        self.adapter.taken.send_modify(|count| *count += 1);
        // Nothing offered and nothing saved: a starting point before the first entry, which openraft ignores.
        let saved = self.adapter.state().saved.clone();
        Ok(saved.map_or_else(empty, Snapshot::from))
    }
}

fn empty() -> Snapshot {
    let meta = SnapshotMeta { last_log_id: None, last_membership: StoredMembership::default() };
    Snapshot { meta, snapshot: Bytes::new() }
}

impl RaftStateMachine<TypeConfig> for Adapter {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let reply = self.apply_one(&entry)?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    // Called in the task that applies, so the offer is of exactly what has been applied.
    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { adapter: self.clone(), offered: self.offer() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Bytes,
    ) -> Result<(), io::Error> {
        let new = Saved { meta: meta.clone(), state: snapshot };
        if self.state().saved.as_ref().is_some_and(|old| old.index() > new.index()) {
            return Ok(());
        }
        self.save(new.clone()).await?;
        self.take_over(new);
        self.machine.outdated().map_or(Ok(()), |why| Err(io::Error::other(why)))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.state().saved.clone().map(Snapshot::from))
    }
}
