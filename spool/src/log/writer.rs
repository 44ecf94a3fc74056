//! The writer thread: takes everything that waits, writes it, syncs once, and wakes all who wait (group commit).

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{
    Done, Entry, GroupId, LogError, Options, Position, Usage,
    index::{Index, Place},
    record::{self, HEADER_BYTES, Header, Kind},
    segment::{self, SEGMENT_HEADER_BYTES, Segment},
};
use crate::{env::Disk, limits};

/// One record to be written.
#[derive(Clone, Debug)]
pub(super) struct Action {
    pub(super) kind: Kind,
    pub(super) group: GroupId,
    pub(super) position: Position,
    pub(super) payload: Bytes,
}

impl Action {
    pub(super) fn entry(group: GroupId, entry: &Entry) -> Self {
        let (position, payload) = (entry.position, entry.payload.clone());
        Self { kind: Kind::Entry, group, position, payload }
    }

    pub(super) fn state(kind: Kind, group: GroupId, payload: Bytes) -> Self {
        Self { kind, group, position: Position::default(), payload }
    }

    fn bytes(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }
}

/// Records that are durable together, and whom to tell.
pub(super) struct Op {
    pub(super) actions: Vec<Action>,
    pub(super) done: Done,
}

impl Op {
    fn bytes(&self) -> usize {
        self.actions.iter().map(Action::bytes).sum()
    }
}

/// What one round of the writer does.
struct Work {
    ops: Vec<Op>,
    /// Oldest generation that is needed when all of `ops` is durable (`Some(None)`: only the current one); `None`: not
    /// known this time.
    oldest: Option<Option<u64>>,
}

/// What callers and writer share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Something waits, or the log was closed.
    waiting: Condvar,
    /// Room in the queue.
    room: Condvar,
}

/// See [`Shared`].
pub(super) struct State {
    pub(super) index: Index,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) usage: Usage,
    queue: VecDeque<Op>,
    queue_bytes: usize,
    closed: bool,
    failed: Option<LogError>,
    on_failure: Vec<Box<dyn FnOnce(String) + Send>>,
}

impl Shared {
    pub(super) fn new(index: Index, segments: &[Segment]) -> Self {
        let segments = segments.iter().map(|s| (s.seal.generation, s.clone())).collect();
        Self {
            state: Mutex::new(State {
                index,
                segments,
                usage: Usage::default(),
                queue: VecDeque::new(),
                queue_bytes: 0,
                closed: false,
                failed: None,
                on_failure: Vec::new(),
            }),
            waiting: Condvar::new(),
            room: Condvar::new(),
        }
    }

    /// The state; a panic elsewhere leaves it consistent, as no code in between can fail.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the index and queues the records of the change, as one step in the order of all changes.
    pub(super) fn submit(&self, op: Op, change: impl FnOnce(&mut Index) -> Result<(), LogError>) {
        let mut state = self.state();
        while state.queue_bytes > limits::LOG_QUEUE_BYTES_MAX && state.failed.is_none() {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let refused = match &state.failed {
            Some(error) => Err(error.clone()),
            None => change(&mut state.index),
        };
        if let Err(error) = refused {
            drop(state);
            return (op.done)(Err(error));
        }
        state.queue_bytes += op.bytes();
        state.queue.push_back(op);
        drop(state);
        self.waiting.notify_one();
    }

    pub(super) fn close(&self) {
        self.state().closed = true;
        self.waiting.notify_all();
    }

    pub(super) fn on_failure(&self, then: Box<dyn FnOnce(String) + Send>) {
        let mut state = self.state();
        match &state.failed {
            None => state.on_failure.push(then),
            Some(error) => {
                let text = error.to_string();
                drop(state);
                then(text);
            }
        }
    }

    /// Ends the log: everybody who waits, and everybody who comes, is told.
    fn fail(&self, error: &LogError) {
        let mut state = self.state();
        state.failed = Some(error.clone());
        state.queue_bytes = 0;
        let (ops, callbacks) =
            (std::mem::take(&mut state.queue), std::mem::take(&mut state.on_failure));
        drop(state);
        self.room.notify_all();
        for op in ops {
            (op.done)(Err(error.clone()));
        }
        for callback in callbacks {
            callback(error.to_string());
        }
    }

    /// Waits for work; takes as much as one flush may hold. `None`: closed, and nothing waits.
    fn take(&self) -> Option<Work> {
        let mut state = self.state();
        while state.queue.is_empty() {
            if state.closed {
                return None;
            }
            state = self.waiting.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let (mut ops, mut bytes) = (Vec::new(), 0);
        while let Some(op) = state.queue.pop_front() {
            bytes += op.bytes();
            ops.push(op);
            if bytes >= limits::LOG_FLUSH_BYTES_MAX {
                break;
            }
        }
        state.queue_bytes -= bytes;
        // With nothing left behind, what the index no longer needs will not be needed by the disk either, once these
        // operations (and the purges among them) are durable.
        let oldest = state.queue.is_empty().then(|| state.index.oldest_generation());
        drop(state);
        self.room.notify_all();
        Some(Work { ops, oldest })
    }
}

/// What the groups' small state is at the writer's own place in the order of changes: written at the head of each
/// segment, so that older segments can go.
#[derive(Clone, Debug, Default)]
struct Head {
    vote: Option<Bytes>,
    checkpoint: Option<Bytes>,
    purged: Option<Position>,
}

/// The thread's own state.
pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    options: Options,
    shared: Arc<Shared>,
    /// Oldest first; the last one is written to.
    segments: VecDeque<Segment>,
    free: Vec<(u64, u64)>,
    heads: BTreeMap<GroupId, Head>,
    /// Number of the last flush.
    flush: u64,
    generation: u64,
    /// Where the next record goes.
    offset: u64,
    /// The directory has a new name that is not yet synced.
    new_segment: bool,
}

impl Writer {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        options: Options,
        shared: Arc<Shared>,
        segments: Vec<Segment>,
        free: Vec<(u64, u64)>,
        flush: u64,
        generation: u64,
    ) -> Self {
        let heads = shared
            .state()
            .index
            .groups
            .iter()
            .map(|(group, state)| {
                let (vote, checkpoint) = (state.vote.clone(), state.checkpoint.clone());
                (*group, Head { vote, checkpoint, purged: state.purged })
            })
            .collect();
        Self {
            disk,
            options,
            shared,
            segments: segments.into(),
            free,
            heads,
            flush,
            generation,
            offset: 0,
            new_segment: false,
        }
    }

    /// Begins the first segment of this run.
    pub(super) fn rotate_first(&mut self) -> Result<(), LogError> {
        self.write(&[]).map_err(|e| self.fault(&e))?;
        let oldest = self.shared.state().index.oldest_generation();
        self.tidy(oldest).map_err(|e| self.fault(&e))
    }

    pub(super) fn run(mut self) {
        while let Some(Work { ops, oldest }) = self.shared.take() {
            let actions: Vec<Action> =
                ops.iter().flat_map(|op| op.actions.iter().cloned()).collect();
            let flushed = self.flush_op_pieces(&actions);
            if let Err(error) = flushed {
                let error = self.fault(&error);
                tracing::error!(%error, "the log has failed; this node must stop");
                for op in ops {
                    (op.done)(Err(error.clone()));
                }
                return self.shared.fail(&error);
            }
            for op in ops {
                (op.done)(Ok(()));
            }
            let tidied = oldest.map_or(Ok(()), |oldest| self.tidy(oldest));
            if let Err(error) = tidied {
                let error = self.fault(&error);
                tracing::error!(%error, "the log has failed; this node must stop");
                return self.shared.fail(&error);
            }
        }
    }

    /// Writes actions in flushes that fit a segment. One call of `append` may carry more than that; its `done` is
    /// called when the last of its flushes is durable.
    fn flush_op_pieces(&mut self, actions: &[Action]) -> io::Result<()> {
        let mut rest = actions;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fit = rest
                .iter()
                .take_while(|action| {
                    let first = bytes == 0;
                    bytes += action.bytes();
                    first || bytes <= limits::LOG_FLUSH_BYTES_MAX
                })
                .count();
            self.write(&rest[..fit])?;
            rest = &rest[fit..];
        }
        Ok(())
    }

    /// One flush: records, Commit, sync.
    fn write(&mut self, actions: &[Action]) -> io::Result<()> {
        let body: usize = actions.iter().map(Action::bytes).sum();
        let mut head = Vec::new();
        let fits = self.segments.back().is_some_and(|segment| {
            self.offset != 0 && self.offset + (body + HEADER_BYTES) as u64 <= segment.bytes
        });
        if !fits {
            head = self.begin_segment(body)?;
        }
        let Some(segment) = self.segments.back().cloned() else {
            return Err(io::Error::other("no segment"));
        };
        let count = head.len() + actions.len();
        let mut offset = self.offset;
        let mut headers = Vec::with_capacity(count + 1);
        let mut places = Vec::with_capacity(actions.len());
        for action in head.iter().chain(actions) {
            headers.push(header_of(&segment, action));
            if action.kind == Kind::Entry {
                places.push((action.group, action.position, place_of(&segment, offset, action)));
            }
            offset += action.bytes() as u64;
        }
        let commit = Position { term: count as u64, index: self.flush + 1 };
        let kind = Kind::Commit;
        let commit = Header { kind, group: 0, position: commit, payload_bytes: 0 };
        headers.push(record::encode(segment.seal, commit, &[]));
        let mut pieces: Vec<&[u8]> = Vec::with_capacity(2 * count + 1);
        for (header, action) in headers.iter().zip(head.iter().chain(actions)) {
            pieces.push(header);
            if !action.payload.is_empty() {
                pieces.push(&action.payload);
            }
        }
        if let Some(commit) = headers.last() {
            pieces.push(commit);
        }
        segment.file.write_at(self.offset, &pieces)?;
        self.sync(&segment)?;
        self.flush += 1;
        let end = offset + HEADER_BYTES as u64;
        metrics::counter!("ppsw_log_records_total").increment(count as u64);
        metrics::counter!("ppsw_log_bytes_total").increment(end - self.offset);
        self.offset = end;
        self.note(actions, &places);
        Ok(())
    }

    /// File, and directory if the file is new in it.
    #[allow(
        clippy::disallowed_methods,
        reason = "measures the disk; nothing depends on the result"
    )]
    fn sync(&mut self, segment: &Segment) -> io::Result<()> {
        let began = std::time::Instant::now();
        segment.file.sync_data()?;
        if self.new_segment {
            self.disk.sync_dir(&self.options.dir)?;
            self.new_segment = false;
        }
        metrics::counter!("ppsw_log_syncs_total").increment(1);
        metrics::histogram!("ppsw_log_sync_seconds").record(began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Makes the next segment current; returns the records that it begins with.
    fn begin_segment(&mut self, body_bytes: usize) -> io::Result<Vec<Action>> {
        self.generation += 1;
        let mut head = Vec::new();
        for (group, state) in &self.heads {
            if let Some(position) = state.purged {
                let purge = Action::state(Kind::Purge, *group, Bytes::new());
                head.push(Action { position, ..purge });
            }
            for (kind, payload) in
                [(Kind::Vote, &state.vote), (Kind::Checkpoint, &state.checkpoint)]
            {
                if let Some(payload) = payload {
                    head.push(Action::state(kind, *group, payload.clone()));
                }
            }
        }
        let head_bytes: usize = head.iter().map(Action::bytes).sum();
        let needed = SEGMENT_HEADER_BYTES + (head_bytes + body_bytes + HEADER_BYTES) as u64;
        let bytes = self.options.segment_bytes.max(needed);
        let made =
            segment::begin(&*self.disk, &self.options.dir, self.generation, bytes, &mut self.free)?;
        self.segments.push_back(made.clone());
        self.shared.state().segments.insert(self.generation, made);
        self.offset = SEGMENT_HEADER_BYTES;
        self.new_segment = true;
        self.measure();
        Ok(head)
    }

    /// After a flush: the index learns places, the heads follow the order of changes.
    fn note(&mut self, actions: &[Action], places: &[(GroupId, Position, Place)]) {
        let mut state = self.shared.state();
        for (group, position, place) in places {
            state.index.written(*group, *position, *place);
        }
        state.index.evict(self.options.cache_bytes);
        state.index.compact();
        drop(state);
        for action in actions {
            let head = self.heads.entry(action.group).or_default();
            match action.kind {
                Kind::Vote => head.vote = Some(action.payload.clone()),
                Kind::Checkpoint => head.checkpoint = Some(action.payload.clone()),
                Kind::Purge => head.purged = Some(action.position).max(head.purged),
                Kind::Forget => {
                    self.heads.remove(&action.group);
                }
                Kind::Entry | Kind::Truncate | Kind::Commit => {}
            }
        }
    }

    /// Retires the segments before `oldest`, oldest first.
    fn tidy(&mut self, oldest: Option<u64>) -> io::Result<()> {
        let oldest = oldest.unwrap_or(self.generation);
        let before = self.segments.len();
        while self.segments.len() > 1
            && let Some(segment) = self.segments.pop_front_if(|s| s.seal.generation < oldest)
        {
            self.shared.state().segments.remove(&segment.seal.generation);
            let (disk, dir) = (&*self.disk, &self.options.dir);
            segment::retire(disk, dir, &segment, &mut self.free, limits::FREE_SEGMENTS_MAX)?;
        }
        if self.segments.len() != before || self.shared.state().usage.bytes == 0 {
            self.measure();
        }
        Ok(())
    }

    fn measure(&self) {
        let usage = Usage {
            segments: self.segments.len() as u64,
            bytes: self.segments.iter().map(|s| s.bytes).sum(),
            free_bytes: self.disk.free_bytes(&self.options.dir).unwrap_or(0),
        };
        metrics::gauge!("ppsw_log_segments").set(usage.segments as f64);
        self.shared.state().usage = usage;
    }

    fn fault(&self, error: &io::Error) -> LogError {
        LogError::Disk(format!("{}: {error}", self.options.dir.display()))
    }
}

fn header_of(segment: &Segment, action: &Action) -> [u8; HEADER_BYTES] {
    let header = Header {
        kind: action.kind,
        group: action.group,
        position: action.position,
        // `Log` refuses payloads near 4 GiB.
        payload_bytes: u32::try_from(action.payload.len()).unwrap_or(u32::MAX),
    };
    record::encode(segment.seal, header, &action.payload)
}

fn place_of(segment: &Segment, offset: u64, action: &Action) -> Place {
    Place {
        generation: segment.seal.generation,
        // Segments are below 4 GiB.
        offset: u32::try_from(offset).unwrap_or(u32::MAX),
        payload_bytes: u32::try_from(action.payload.len()).unwrap_or(u32::MAX),
    }
}
