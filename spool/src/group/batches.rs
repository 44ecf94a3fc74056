//! Proposals that come while others are under way go together, and then share what each would cost on every node: a
//! message to openraft's core, a request to each follower, a flush of each log, the answers. A proposal that comes
//! alone goes at once, unless it has patience: then it waits that long for company (docs/decisions/034-batches.md).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use openraft::errors::{ClientWriteError, Fatal};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Reply,
    types::{Proposal, Raft, TypeConfig},
};
use crate::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, BATCH_HOLD_MAX};

/// Why a proposal has no reply.
#[derive(Debug)]
pub(super) enum Failed {
    /// openraft has given an answer to it.
    Write(ClientWriteError<TypeConfig>),
    /// The group has stopped.
    Stopped(String),
}

type Answer = Result<Reply, Failed>;

/// The way of a group's proposals to its core. Clones share it.
#[derive(Clone)]
pub(super) struct Batches {
    inner: Arc<Inner>,
}

struct Inner {
    raft: Raft,
    /// Where batches are followed that nobody waits for as a whole.
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Of those that wait.
    bytes: usize,
    /// One of those that wait has no patience, or none left.
    urgent: bool,
    /// When the first of those that wait has none left.
    due: Option<Instant>,
    /// The number of the batch that others wait for; `None`: the next proposal goes at once.
    under_way: Option<u64>,
    batches: u64,
}

/// How a proposal begins.
enum Entered {
    /// Nothing is under way: it goes at once.
    Alone(Proposal, Turn),
    /// It goes with the next batch, or begins it.
    Waits(oneshot::Receiver<Answer>),
}

struct Waiting {
    proposal: Proposal,
    tell: oneshot::Sender<Answer>,
}

impl Batches {
    /// To be called on the runtime of the group.
    pub(super) fn new(raft: Raft) -> Self {
        let state = Mutex::default();
        Self { inner: Arc::new(Inner { raft, runtime: Handle::current(), state }) }
    }

    /// Proposes an entry and waits until it is applied. With patience it goes that much later if no other goes sooner.
    /// Whoever gives up before it has gone to the core takes it back.
    pub(super) async fn propose(&self, proposal: Proposal, patience: Duration) -> Answer {
        match self.enter(proposal, patience) {
            Entered::Alone(proposal, turn) => self.alone(proposal, turn).await,
            Entered::Waits(told) => told
                .await
                .unwrap_or_else(|_| Err(Failed::Stopped("before it was proposed".to_owned()))),
        }
    }

    fn enter(&self, proposal: Proposal, patience: Duration) -> Entered {
        let mut state = self.state();
        if state.under_way.is_none() && state.waiting.is_empty() && patience.is_zero() {
            let turn = self.turn(&mut state);
            return Entered::Alone(proposal, turn);
        }
        let (tell, told) = oneshot::channel();
        state.bytes += proposal.bytes();
        state.waiting.push_back(Waiting { proposal, tell });
        let mut next = Vec::new();
        if patience.is_zero() {
            state.urgent = true;
        } else {
            let due = Instant::now() + patience;
            if state.due.is_none_or(|first| due < first) {
                state.due = Some(due);
                self.inner.runtime.spawn(end_patience(self.clone(), due));
            }
        }
        if state.under_way.is_none() && state.urgent {
            next.extend(self.take(&mut state));
        }
        // Bodies fill batches by themselves: they go on without waiting for each other.
        while state.bytes >= BATCH_BYTES_MAX {
            next.extend(self.take(&mut state));
        }
        drop(state);
        next.into_iter().for_each(|batch| self.send(batch));
        Entered::Waits(told)
    }

    /// Batches that have gone, those of one proposal included.
    #[cfg(test)]
    pub(super) fn count(&self) -> u64 {
        self.state().batches
    }

    async fn alone(&self, proposal: Proposal, turn: Turn) -> Answer {
        let mut written = std::pin::pin!(self.inner.raft.client_write(proposal));
        let answered = tokio::select! {
            biased;
            answered = &mut written => answered,
            () = sleep(BATCH_HOLD_MAX) => {
                drop(turn);
                written.await
            }
        };
        match answered {
            Ok(response) => Ok(response.data),
            Err(openraft::errors::RaftError::APIError(error)) => Err(Failed::Write(error)),
            Err(openraft::errors::RaftError::Fatal(error)) => Err(stopped(&error)),
        }
    }

    /// Takes what waits, as much as one batch may have. `None`: nothing, or nobody waits for it any longer.
    fn take(&self, state: &mut State) -> Option<Batch> {
        while !state.waiting.is_empty() {
            let mut bytes = 0;
            let fits = |waiting: &&Waiting| {
                bytes += waiting.proposal.bytes();
                bytes <= BATCH_BYTES_MAX
            };
            let count = state.waiting.iter().take(BATCH_ENTRIES_MAX).take_while(fits).count();
            let taken: Vec<Waiting> = state.waiting.drain(..count.max(1)).collect();
            state.bytes -= taken.iter().map(|waiting| waiting.proposal.bytes()).sum::<usize>();
            // What is left did not fit: it goes next.
            state.urgent = !state.waiting.is_empty();
            state.due = None;
            let proposals: Vec<_> = taken.into_iter().filter(|w| !w.tell.is_closed()).collect();
            if !proposals.is_empty() {
                return Some(Batch { proposals, turn: self.turn(state) });
            }
        }
        None
    }

    /// Not under the lock: a runtime that has ended drops the batch at once, and that takes the lock.
    fn send(&self, batch: Batch) {
        self.inner.runtime.spawn(follow(self.inner.raft.clone(), batch));
    }

    /// A new batch is under way, for which others wait until its turn is dropped.
    fn turn(&self, state: &mut State) -> Turn {
        state.batches += 1;
        state.under_way = Some(state.batches);
        Turn { batches: self.clone(), number: state.batches }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of one batch: ends when it is answered, or was under way for so long that others need not wait for it.
struct Turn {
    batches: Batches,
    number: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.batches.state();
        if state.under_way == Some(self.number) {
            state.under_way = None;
            let next = state.urgent.then(|| self.batches.take(&mut state)).flatten();
            drop(state);
            next.into_iter().for_each(|batch| self.batches.send(batch));
        }
    }
}

/// Lets those go that have waited for company, unless they have gone.
async fn end_patience(batches: Batches, due: Instant) {
    sleep_until(due).await;
    let mut state = batches.state();
    if state.due.is_none_or(|first| first > due) {
        return;
    }
    state.urgent = true;
    // Else they go when that is answered.
    let next = if state.under_way.is_none() { batches.take(&mut state) } else { None };
    drop(state);
    next.into_iter().for_each(|batch| batches.send(batch));
}

/// Proposals that go together.
struct Batch {
    proposals: Vec<Waiting>,
    turn: Turn,
}

/// Proposes a batch and tells each who waits.
async fn follow(raft: Raft, Batch { proposals, turn }: Batch) {
    let (proposals, told): (Vec<_>, Vec<_>) =
        proposals.into_iter().map(|waiting| (waiting.proposal, waiting.tell)).unzip();
    metrics::counter!("ppsw_raft_batches_total").increment(1);
    metrics::counter!("ppsw_raft_batched_total").increment(told.len() as u64);
    let mut results = match raft.client_write_many(proposals).await {
        // When the group stops, it ends before all are answered.
        Ok(results) => results.fuse(),
        Err(error) => {
            for tell in told {
                // Nobody waits any longer: its deadline has passed. Below too.
                let _ = tell.send(Err(stopped(&error)));
            }
            return;
        }
    };
    let mut turn = Some(turn);
    let mut held = std::pin::pin!(sleep(BATCH_HOLD_MAX));
    let last = told.len() - 1;
    for (at, tell) in told.into_iter().enumerate() {
        let next = loop {
            tokio::select! {
                biased;
                next = results.next() => break next,
                () = &mut held, if turn.is_some() => drop(turn.take()),
            }
        };
        // Before those are told who will propose again at once: they belong to the next batch but one.
        if at == last {
            drop(turn.take());
        }
        let answer = match next {
            Some(Ok(Ok(written))) => Ok(written.response),
            Some(Ok(Err(error))) => Err(Failed::Write(error)),
            Some(Err(error)) => Err(stopped(&error)),
            None => Err(Failed::Stopped("while it was proposed".to_owned())),
        };
        let _ = tell.send(answer);
    }
}

fn stopped(error: &Fatal<TypeConfig>) -> Failed {
    Failed::Stopped(error.to_string())
}
