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

use super::{
    Checkpoint, Machine, Reply,
    store::Store,
    types::{self, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::log::LogError;

/// A machine with what openraft wants to know beside it. Clones share it.
#[derive(Clone)]
pub(crate) struct Adapter {
    machine: Arc<dyn Machine>,
    store: Store,
    state: Arc<Mutex<State>>,
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
    checkpoint: Option<(SnapshotMeta, Bytes)>,
}

impl Adapter {
    /// A machine that begins where the log's checkpoint says.
    ///
    /// # Errors
    /// `Damaged` if the checkpoint is not understood.
    pub(crate) fn new(machine: Arc<dyn Machine>, store: Store) -> Result<Self, LogError> {
        let adapter = Self { machine, store, state: Arc::default() };
        if let Some(bytes) = adapter.store.log().state(adapter.store.group()).checkpoint {
            let damaged = |what: String| LogError::Damaged {
                file: "log".to_owned(),
                offset: 0,
                what: format!("checkpoint of group {}: {what}", adapter.store.group()),
            };
            let stored =
                wire::StoredCheckpoint::decode(bytes).map_err(|e| damaged(e.to_string()))?;
            let (meta, state) =
                types::checkpoint_from_wire(stored).map_err(|e| damaged(e.to_string()))?;
            adapter.take_over(meta, state);
        }
        Ok(adapter)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a checkpoint the whole state.
    fn take_over(&self, meta: SnapshotMeta, bytes: Bytes) {
        let upto = meta.last_log_id.as_ref().map(|id| id.index);
        self.machine.restore(&Checkpoint { upto, state: bytes.clone() });
        let mut state = self.state();
        state.applied = meta.last_log_id.clone();
        state.membership = meta.last_membership.clone();
        state.memberships.clear();
        state.terms.clear();
        if let Some(id) = &meta.last_log_id {
            let position = types::position(id);
            state.terms.insert(position.index, position.term);
            state.memberships.insert(position.index, meta.last_membership.clone());
        }
        state.checkpoint = Some((meta, bytes));
    }

    fn apply_one(&self, entry: &types::Entry) -> Reply {
        let id = entry.log_id();
        let position = types::position(&id);
        let reply = match &entry.payload {
            EntryPayload::Normal(proposal) => self.machine.apply(position, &proposal.0),
            EntryPayload::Blank | EntryPayload::Membership(_) => Reply::Done,
        };
        let mut state = self.state();
        if state.terms.values().next_back() != Some(&position.term) {
            state.terms.insert(position.index, position.term);
        }
        if let EntryPayload::Membership(membership) = &entry.payload {
            state.membership = StoredMembership::new(Some(id.clone()), membership.clone());
            let membership = state.membership.clone();
            state.memberships.insert(position.index, membership);
        }
        state.applied = Some(id);
        reply
    }

    /// The checkpoint that the machine offers now; `None` if there is none beyond the last.
    fn offer(&self) -> Option<(SnapshotMeta, Bytes)> {
        let applied = self.state().applied.clone()?;
        let checkpoint = self.machine.checkpoint(types::position(&applied));
        let upto = checkpoint.upto?.min(applied.index);
        let state = self.state();
        let before = state.checkpoint.as_ref().and_then(|(m, _)| m.last_log_id.as_ref());
        if before.is_some_and(|id| id.index >= upto) {
            return None;
        }
        let (_, term) = state.terms.range(..=upto).next_back()?;
        let membership = state
            .memberships
            .range(..=upto)
            .next_back()
            .map(|(_, m)| m.clone())
            .unwrap_or_default();
        let last = types::log_id(super::Position { term: *term, index: upto });
        let meta = SnapshotMeta { last_log_id: Some(last), last_membership: membership };
        Some((meta, checkpoint.state))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Adapter {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        if let Some((meta, state)) = self.offer() {
            let stored = types::checkpoint_to_wire(&meta, state.clone());
            self.store.save_checkpoint(&stored).await?;
            let mut kept = self.state();
            if let Some(id) = &meta.last_log_id {
                let (index, term) = (id.index, types::position(id).term);
                kept.terms = kept.terms.split_off(&index);
                kept.terms.insert(index, term);
                kept.memberships = kept.memberships.split_off(&index);
                kept.memberships.insert(index, meta.last_membership.clone());
            }
            kept.checkpoint = Some((meta, state));
        }
        let (meta, snapshot) = self.state().checkpoint.clone().unwrap_or_else(|| {
            let meta =
                SnapshotMeta { last_log_id: None, last_membership: StoredMembership::default() };
            (meta, Bytes::new())
        });
        Ok(Snapshot { meta, snapshot })
    }
}

impl RaftStateMachine<TypeConfig> for Adapter {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.state();
        Ok((state.applied.clone(), state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let reply = self.apply_one(&entry);
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Bytes,
    ) -> Result<(), io::Error> {
        let stored = types::checkpoint_to_wire(meta, snapshot.clone());
        self.store.save_checkpoint(&stored).await?;
        self.take_over(meta.clone(), snapshot);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let checkpoint = self.state().checkpoint.clone();
        Ok(checkpoint.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}
