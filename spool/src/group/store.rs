//! A group's log for openraft, on the node's log.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
};

use futures::{Stream, StreamExt, TryStreamExt, stream};
use openraft::{
    OptionalSend, RaftLogReader,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use ppsw_proto::raft as wire;
use prost::Message;
use tokio::sync::oneshot;

use super::types::{
    self, Entry, LogId, TypeConfig, Vote, encode_payload, vote_from_wire, vote_to_wire,
};
use crate::{
    limits,
    log::{self, Done, GroupId, Log, LogError},
};

/// One group's part of the log. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    log: Log,
    group: GroupId,
}

impl Store {
    pub(crate) fn new(log: Log, group: GroupId) -> Self {
        Self { log, group }
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    pub(crate) fn group(&self) -> GroupId {
        self.group
    }

    /// Reads without keeping other tasks of this thread waiting for the disk.
    pub(crate) async fn read(
        &self,
        start: u64,
        end: u64,
        bytes_max: usize,
    ) -> Result<Vec<log::Entry>, LogError> {
        if self.log.is_cached(self.group, start..end, bytes_max) || self.log.is_driven() {
            return self.log.read(self.group, start..end, bytes_max);
        }
        let (log, group) = (self.log.clone(), self.group);
        tokio::task::spawn_blocking(move || log.read(group, start..end, bytes_max))
            .await
            .unwrap_or_else(|e| Err(LogError::Disk(format!("reading was cancelled: {e}"))))
    }

    fn entries(read: Vec<log::Entry>) -> io::Result<Vec<Entry>> {
        read.iter()
            .map(|e| types::entry(e.position, &e.payload).map_err(io::Error::other))
            .collect()
    }

    fn vote(&self) -> io::Result<Option<Vote>> {
        let Some(bytes) = self.log.state(self.group).vote else { return Ok(None) };
        let vote = wire::Ballot::decode(bytes).map_err(io::Error::other)?;
        Ok(Some(vote_from_wire(&vote)))
    }

    /// Runs a write and waits until it is durable.
    async fn durable(&self, write: impl FnOnce(Done)) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        write(Box::new(move |result| {
            // Nobody waits any longer if the group was stopped.
            let _ = tell.send(result);
        }));
        match told.await {
            Ok(result) => result.map_err(io::Error::other),
            Err(_) => Err(io::Error::other("the log has stopped")),
        }
    }

    /// Hands a write to the log and does not wait for the disk: openraft's core would stand still for a sync that
    /// nothing depends on. The log keeps one order, so what is appended later becomes durable only together with
    /// this; a disk that fails later ends the process.
    fn queued(&self, write: impl FnOnce(Done)) -> io::Result<()> {
        let (tell, mut told) = oneshot::channel();
        write(Box::new(move |result| {
            // Most often nobody looks.
            let _ = tell.send(result);
        }));
        match told.try_recv() {
            Ok(Err(refused)) => Err(io::Error::other(refused)),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    /// Saves a checkpoint; it is durable when this returns.
    pub(crate) async fn save_checkpoint(
        &self,
        checkpoint: &wire::StoredCheckpoint,
    ) -> io::Result<()> {
        let bytes = checkpoint.encode_to_vec().into();
        self.durable(|done| self.log.save_checkpoint(self.group, bytes, done)).await
    }

    /// Whether this replica has ever voted or followed.
    pub(crate) fn has_vote(&self) -> bool {
        self.log.state(self.group).vote.is_some()
    }

    /// The part of a range that the log has now.
    fn present(&self, range: &impl RangeBounds<u64>) -> Range<u64> {
        let state = self.log.state(self.group);
        let Some(first) = state.first else { return 0..0 };
        let next = state.last.map_or(0, |p| p.index + 1);
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => first,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => next,
        };
        start.max(first)..end.min(next)
    }

    /// Why an entry is missing, if that is because the log has failed: what was given to it afterwards is nowhere.
    /// If it is committed elsewhere it would else be passed over.
    async fn failure_at(&self, index: u64) -> Option<io::Error> {
        match self.read(index, index.saturating_add(1), 1).await {
            Ok(_) | Err(LogError::Missing { .. }) => None,
            Err(error) => Some(io::Error::other(error)),
        }
    }

    /// Forgets the group.
    pub(crate) async fn forget(&self) -> io::Result<()> {
        self.durable(|done| self.log.forget(self.group, done)).await
    }
}

/// The first index that was asked for behind what is present.
fn first_missing(present: &Range<u64>, asked: &impl RangeBounds<u64>) -> Option<u64> {
    let start = match asked.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let behind = start.max(present.end);
    // Without an end, nothing more is asked for than there is.
    let ends = !matches!(asked.end_bound(), Bound::Unbounded);
    (ends && asked.contains(&behind)).then_some(behind)
}

impl RaftLogReader<TypeConfig> for Store {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let Range { start, end } = self.present(&range);
        if start >= end {
            return Ok(Vec::new());
        }
        let read = self.read(start, end, usize::MAX).await.map_err(io::Error::other)?;
        Self::entries(read)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.vote()
    }

    /// In pieces: after a start all of the log is applied, and it may be longer than memory.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let present = self.present(&range);
        let missing = first_missing(&present, &range);
        let failed = match missing {
            Some(index) => self.failure_at(index).await,
            None => None,
        };
        let store = self.clone();
        let pieces = stream::try_unfold(present, move |left: Range<u64>| {
            let store = store.clone();
            async move {
                if left.is_empty() {
                    return Ok(None);
                }
                let read = store.read(left.start, left.end, limits::APPEND_BYTES_MAX).await;
                let entries = Self::entries(read.map_err(io::Error::other)?)?;
                let next = left.start + entries.len() as u64;
                Ok::<_, io::Error>(Some((
                    stream::iter(entries.into_iter().map(Ok)),
                    next..left.end,
                )))
            }
        });
        Box::pin(pieces.try_flatten().chain(stream::iter(failed.map(Err))))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let read =
            self.read(start, end, limits::APPEND_BYTES_MAX).await.map_err(io::Error::other)?;
        Self::entries(read)
    }
}

impl RaftLogStorage<TypeConfig> for Store {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.log.state(self.group);
        Ok(LogState {
            last_purged_log_id: state.purged.map(types::log_id),
            last_log_id: state.last.map(types::log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let bytes = vote_to_wire(vote).encode_to_vec().into();
        self.durable(|done| self.log.save_vote(self.group, bytes, done)).await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries
            .into_iter()
            .map(|e| log::Entry {
                position: types::position(&e.log_id),
                payload: encode_payload(&e.payload),
            })
            .collect();
        let done: Done =
            Box::new(move |result| callback.io_completed(result.map_err(io::Error::other)));
        self.log.append(self.group, entries, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let last = last_log_id.as_ref().map(types::position);
        self.queued(|done| self.log.truncate_after(self.group, last, done))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.queued(|done| self.log.purge(self.group, types::position(&log_id), done))
    }
}
