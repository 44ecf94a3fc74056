//! The live dialogue of SMTP sessions, in and out, for operators who watch (`ppswctl trace`).
//!
//! Each session has a [`Tap`]. While nobody watches, a line costs it one relaxed load and nothing else. While somebody does, it
//! keeps its last lines, because a sender or recipient is known only after some of them, and copies those of sessions that fit
//! to whoever watches. A watcher that is slow loses lines and is told; a session never waits for one.

mod filter;
mod kept;
mod line;
mod tap;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream, stream::BoxStream};
use ppsw_proto::control as pb;
use tokio::{sync::mpsc, time::sleep};

pub(crate) use tap::{Direction, Names, Tap};

use crate::limits::{
    TRACE_LINES_WAITING, TRACE_PAGE_LINES, TRACE_TIME, TRACE_TIME_MAX, TRACES_MAX,
};
use filter::Filter;

/// Who watches the sessions of a node. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// 0 while nobody watches. Otherwise a number that no earlier time of watching had: what a session kept then is stale.
    watching: AtomicU64,
    /// Sessions that were given a number.
    sessions: AtomicU64,
    board: Mutex<Board>,
}

#[derive(Debug, Default)]
struct Board {
    watches: Arc<Vec<Arc<Watch>>>,
    /// Numbers given to watches, and to times of watching.
    given: u64,
}

/// One operator's trace on this node.
#[derive(Debug)]
struct Watch {
    id: u64,
    filter: Filter,
    lines: mpsc::Sender<pb::TraceLine>,
    /// Lines that did not fit, since the last one that did.
    lost: AtomicU64,
}

impl Tracer {
    /// Begins a trace. It ends after its time, or when the stream is dropped.
    ///
    /// # Errors
    /// A text for the operator.
    pub fn watch(
        &self,
        request: &pb::TraceRequest,
    ) -> Result<BoxStream<'static, pb::TracePage>, String> {
        let filter = Filter::new(request)?;
        let time = time(request.for_ms)?;
        let (lines, waiting) = mpsc::channel(TRACE_LINES_WAITING);
        let watch = {
            let mut board = self.board();
            if board.watches.len() >= TRACES_MAX {
                return Err(format!(
                    "{TRACES_MAX} traces run on this node already, more would cost too much: wait for the end of one"
                ));
            }
            board.given += 1;
            let watch = Arc::new(Watch { id: board.given, filter, lines, lost: AtomicU64::new(0) });
            Arc::make_mut(&mut board.watches).push(Arc::clone(&watch));
            if board.watches.len() == 1 {
                self.0.watching.store(board.given, Ordering::Relaxed);
            }
            watch
        };
        let seat = Seat { tracer: self.clone(), watch };
        let pages = stream::unfold((waiting, seat), |(mut waiting, seat)| async move {
            let mut lines = Vec::new();
            // The sender lives in the seat, so there is always more to wait for.
            waiting.recv_many(&mut lines, TRACE_PAGE_LINES).await;
            // What was lost with the last lines has nothing behind it that could say so.
            let quiet = waiting.is_empty();
            let lost = if quiet { seat.watch.lost.swap(0, Ordering::Relaxed) } else { 0 };
            let page = pb::TracePage { lines, lost, ..pb::TracePage::default() };
            Some((page, (waiting, seat)))
        });
        Ok(pages.take_until(sleep(time)).boxed())
    }

    /// The present time of watching; 0: nobody does.
    fn watching(&self) -> u64 {
        self.0.watching.load(Ordering::Relaxed)
    }

    fn watches(&self) -> Arc<Vec<Arc<Watch>>> {
        Arc::clone(&self.board().watches)
    }

    fn number_session(&self) -> u64 {
        self.0.sessions.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.0.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a trace runs.
fn time(asked_ms: u64) -> Result<Duration, String> {
    let asked = Duration::from_millis(asked_ms);
    if asked.is_zero() {
        return Ok(TRACE_TIME);
    }
    if asked > TRACE_TIME_MAX {
        return Err(format!(
            "expected --for at most {}, so that a forgotten trace ends",
            humantime::format_duration(TRACE_TIME_MAX)
        ));
    }
    Ok(asked)
}

/// A place of a trace; free again when dropped.
#[derive(Debug)]
struct Seat {
    tracer: Tracer,
    watch: Arc<Watch>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut board = self.tracer.board();
        Arc::make_mut(&mut board.watches).retain(|watch| watch.id != self.watch.id);
        if board.watches.is_empty() {
            self.tracer.0.watching.store(0, Ordering::Relaxed);
        }
    }
}

impl Watch {
    /// Hands a line over, or counts it as lost. Never waits.
    fn send(&self, line: &pb::TraceLine, more_lost: u64) {
        let lost = self.lost.swap(0, Ordering::Relaxed) + more_lost;
        if self.lines.try_send(pb::TraceLine { lost, ..line.clone() }).is_err() {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }
}
