//! Carrying: what is old and alive is written again at the head of the log, so that the log before it can go
//! (docs/spool.md, "A log that does not grow for ever").

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use metrics::counter;
use tracing::{debug, info, warn};

use super::{
    BodyReader,
    entry::{self, BodyBytes, Tried},
    message::{Body, MessageId, QueuedMessage},
    replica::Replica,
};
use crate::{
    env::Clock,
    group::{ProposeError, Reply},
    limits::{
        AGE_MARK_PERIOD, CARRY_BYTES_PER_SECOND, CARRY_COMMIT_MAX, CARRY_IN_FLIGHT, CARRY_LOOK,
        CARRY_RETRY, CARRY_ROUND, ENTRY_BYTES_MAX, SETTLE_AGE, UPLOAD_PINS_MAX,
    },
    log::LogError,
};

/// Why a message was not carried.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CarryError {
    /// Its bytes cannot be read.
    #[error(transparent)]
    Read(#[from] LogError),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Gives up the beginning of the log when a node of the group asks for it, while this replica leads. Runs until the
/// replica is gone.
pub(super) async fn run(replica: Weak<Replica>) {
    let Some((mut wanted, pace)) = replica
        .upgrade()
        .map(|replica| (replica.raft.trim_wanted(), Pace::new(Arc::clone(&replica.clock))))
    else {
        return;
    };
    let mut ages = Ages::default();
    loop {
        let Some(replica) = replica.upgrade() else { return };
        ages.note(&replica);
        let upto = *wanted.borrow_and_update();
        if let Some(upto) = upto
            && let Err(error) = give_up(&replica, upto, &ages, &pace).await
        {
            info!(partition = replica.machine.partition(), upto, "carrying stops: {error}");
        }
        drop(replica);
        if let Ok(Err(_)) = tokio::time::timeout(CARRY_RETRY, wanted.changed()).await {
            return;
        }
    }
}

/// On the leader: makes the entries up to `upto` dispensable, as far as that is possible now.
async fn give_up(
    replica: &Arc<Replica>,
    upto: u64,
    ages: &Ages,
    pace: &Pace,
) -> Result<(), CarryError> {
    if !may_carry(replica) {
        return Ok(());
    }
    let (upto, pinned) = {
        let state = replica.machine.lock();
        let upto = state.index.reach(upto);
        (upto, state.index.pins_upto(upto))
    };
    let now = replica.clock.instant();
    if pinned {
        carry_upto(replica, upto, pace).await?;
        abort_uploads(replica, ages.before(now, UPLOAD_PINS_MAX).min(Some(upto))).await?;
    }
    // What is remembered of the last entries keeps them, and in an idle partition nothing makes them old.
    let remembered = replica.machine.lock().index.remembered();
    let settled = ages.before(now, SETTLE_AGE);
    if let (Some(oldest), Some(settled)) = (remembered, settled)
        && oldest <= upto.min(settled)
    {
        debug!(partition = replica.machine.partition(), settled, "settling");
        replica.raft.propose(entry::settle(settled), CARRY_COMMIT_MAX).await?;
    }
    Ok(())
}

fn may_carry(replica: &Replica) -> bool {
    // Not while it is being handed over either: its entries would only delay that.
    replica.may_deliver()
}

/// Carries the messages that have records up to `upto`, those with the oldest first.
async fn carry_upto(replica: &Arc<Replica>, upto: u64, pace: &Pace) -> Result<(), CarryError> {
    let (mut pinning, mut after) = (Vec::new(), None);
    loop {
        let (found, next) = replica.machine.lock().index.pinning(upto, after, CARRY_LOOK);
        pinning.extend(found);
        after = next;
        if after.is_none() || pinning.len() >= CARRY_ROUND {
            break;
        }
        tokio::task::yield_now().await;
    }
    if pinning.is_empty() {
        return Ok(());
    }
    pinning.sort_unstable();
    let partition = replica.machine.partition();
    info!(partition, upto, messages = pinning.len(), "carrying messages to the head of the log");
    stream::iter(pinning)
        .map(|(_, id)| carry_one(replica, id, upto, pace))
        .buffer_unordered(CARRY_IN_FLIGHT)
        .try_collect::<()>()
        .await
}

async fn carry_one(
    replica: &Arc<Replica>,
    id: MessageId,
    upto: u64,
    pace: &Pace,
) -> Result<(), CarryError> {
    // A round may take minutes.
    let pinned = replica.machine.lock().index.pin_of(id).is_some_and(|pin| pin <= upto);
    if !pinned || !may_carry(replica) {
        return Ok(());
    }
    match Arc::clone(replica).carry(id, CARRY_COMMIT_MAX, Some(pace)).await {
        Ok(Reply::Done | Reply::Value(_)) => Ok(()),
        Ok(Reply::Refused(why)) => {
            debug!(%id, "not carried, later perhaps: {why}");
            Ok(())
        }
        // The others can be carried all the same.
        Err(CarryError::Read(error)) => {
            warn!(%id, "not carried, so its part of the log stays: {error}");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Aborts uploads that began at or before `upto`; their clients get `451`.
async fn abort_uploads(replica: &Replica, upto: Option<u64>) -> Result<(), ProposeError> {
    let Some(upto) = upto else { return Ok(()) };
    let uploads = replica.machine.lock().index.uploads_upto(upto);
    for id in uploads {
        info!(%id, "aborted: it has been coming in for too long, and keeps the log");
        replica.raft.propose(entry::abort(id, true), CARRY_COMMIT_MAX).await?;
    }
    Ok(())
}

impl Replica {
    /// Writes a message again at the head of the log.
    pub(super) async fn carry(
        self: Arc<Self>,
        id: MessageId,
        deadline: Duration,
        pace: Option<&Pace>,
    ) -> Result<Reply, CarryError> {
        let Some(message) = self.machine.lock().index.get(id) else {
            return Ok(Reply::Refused(format!("{id} is not in the queue")));
        };
        let _upload = Upload::new(&self, id);
        let mut reader = BodyReader::new(Arc::clone(&self), &message);
        let prepend = reader.prepend().await?;
        let (mut count, mut bytes, mut whole) = (0, 0, Bytes::new());
        while let Some(piece) = reader.next().await? {
            bytes += piece.len() as u64;
            if let Some(pace) = pace {
                pace.spend(piece.len()).await;
            }
            if matches!(message.body, Body::Inline { .. }) {
                whole = piece;
            } else {
                let reply = self.propose(entry::chunk(id, count, piece), deadline).await?;
                if let Reply::Refused(_) = reply {
                    return Ok(reply);
                }
                count += 1;
            }
        }
        let body = match message.body {
            Body::Inline { .. } => BodyBytes::Inline(whole),
            Body::Chunks { .. } => BodyBytes::Chunks { count, bytes },
        };
        if bytes.saturating_add(prepend.len() as u64) != message.size {
            // What is written again must be the message, to the byte.
            let why = format!("{bytes} bytes of body where {} belong to {id}", message.size);
            return Err(LogError::Misuse(why).into());
        }
        let record = {
            let state = self.machine.lock();
            // Record and index belong together: nothing may be applied between.
            match (state.index.get(id), state.index.applied()) {
                (Some(message), Some(made_at)) => {
                    let mut message = QueuedMessage::clone(&message);
                    message.envelope.prepend = prepend;
                    record(message, state.index.tried(id), made_at, &body)
                }
                _ => return Ok(Reply::Refused(format!("{id} has left the queue"))),
            }
        };
        let reply = self.propose(record, deadline).await?;
        if reply == Reply::Done {
            counter!("ppsw_messages_carried_total").increment(1);
        }
        Ok(reply)
    }
}

/// The entry; without the peers' texts if they make it longer than an entry may be (thousands of recipients).
fn record(mut message: QueuedMessage, tried: Tried, made_at: u64, body: &BodyBytes) -> Bytes {
    let whole = entry::carry(&message, tried, made_at, body.clone());
    if whole.len() <= ENTRY_BYTES_MAX {
        return whole;
    }
    message.recipients.iter_mut().for_each(|attempt| attempt.last_error.clear());
    entry::carry(&message, tried, made_at, body.clone())
}

/// Chunks of a carry are being written.
struct Upload<'a> {
    replica: &'a Replica,
    id: MessageId,
}

impl<'a> Upload<'a> {
    fn new(replica: &'a Replica, id: MessageId) -> Self {
        replica.enter(id);
        Self { replica, id }
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        // Chunks without their carry are swept; the message itself must stay.
        self.replica.leave(self.id, false);
    }
}

/// Spends bytes at [`CARRY_BYTES_PER_SECOND`].
pub(super) struct Pace {
    clock: Arc<dyn Clock>,
    /// When what has been spent is paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    fn new(clock: Arc<dyn Clock>) -> Self {
        let paid = Mutex::new(clock.instant());
        Self { clock, paid }
    }

    /// Waits until `bytes` more may be written.
    async fn spend(&self, bytes: usize) {
        let now = self.clock.instant();
        let wait = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = (*paid).max(now);
            *paid = begin + Duration::from_secs_f64(bytes as f64 / CARRY_BYTES_PER_SECOND as f64);
            begin.saturating_duration_since(now)
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// How far had been applied at some moments of the past.
#[derive(Debug, Default)]
struct Ages(VecDeque<(Instant, u64)>);

impl Ages {
    fn note(&mut self, replica: &Replica) {
        let now = replica.clock.instant();
        let age = |at: Instant| now.saturating_duration_since(at);
        if self.0.back().is_some_and(|(at, _)| age(*at) < AGE_MARK_PERIOD) {
            return;
        }
        // The last mark that is old enough for every question is the only such one that is needed.
        while self.0.get(1).is_some_and(|(at, _)| age(*at) > UPLOAD_PINS_MAX.max(SETTLE_AGE)) {
            self.0.pop_front();
        }
        if let Some(applied) = replica.machine.lock().index.applied() {
            self.0.push_back((now, applied));
        }
    }

    /// The last index that was applied at least `age` ago.
    fn before(&self, now: Instant, age: Duration) -> Option<u64> {
        let old = |(at, _): &&(Instant, u64)| now.saturating_duration_since(*at) >= age;
        self.0.iter().rev().find(old).map(|(_, applied)| *applied)
    }
}
