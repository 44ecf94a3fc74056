//! One partition as this node carries it: what the deliverer and operators do with its queue.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::AbortHandle};
use tracing::info;

use super::{
    BodyReader, CarryError, MessageWriter, Pulse, Summary, carry, entry,
    index::Keeper,
    message::{Expand, MessageId, Outcome, QueuedMessage, Turn},
    replica::Replica,
    upkeep,
};
use crate::{
    NodeId, PartitionId,
    env::UnixMs,
    faults::{self, Fault},
    group::{ChangeError, Group, ProposeError, Reply},
    limits::{ENTRY_BYTES_MAX, LIST_PAGE_MESSAGES, OUTCOMES_PATIENCE},
};

/// One partition as this node carries it. Clones share it.
#[derive(Clone)]
pub struct Partition {
    replica: Arc<Replica>,
    group: Group,
    upkeep: AbortHandle,
    carrier: AbortHandle,
}

impl Partition {
    /// Starts the upkeep of a replica.
    pub(super) fn start(replica: Arc<Replica>, group: Group) -> Self {
        let upkeep = tokio::spawn(upkeep::run(Arc::downgrade(&replica))).abort_handle();
        let carrier = tokio::spawn(carry::run(Arc::downgrade(&replica))).abort_handle();
        Self { replica, group, upkeep, carrier }
    }

    /// Ends what `start` started.
    pub(super) fn retire(&self) {
        self.upkeep.abort();
        self.carrier.abort();
        self.replica.machine.retire();
    }

    /// Its number.
    pub fn id(&self) -> PartitionId {
        self.replica.machine.partition()
    }

    /// Its Raft group.
    pub fn group(&self) -> Group {
        self.group.clone()
    }

    /// Changes of queue and leadership.
    pub fn watch(&self) -> watch::Receiver<Pulse> {
        self.replica.machine.watch()
    }

    /// Number of messages, of any state.
    pub fn len(&self) -> usize {
        self.replica.machine.lock().index.len()
    }

    /// There is no message.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Figures of the queue.
    pub fn summary(&self) -> Summary {
        self.replica.machine.lock().index.summary()
    }

    /// A message that is in the queue.
    pub fn get(&self, id: MessageId) -> Option<Arc<QueuedMessage>> {
        self.replica.machine.lock().index.get(id)
    }

    /// Whether all of these addresses are still to be delivered to; each with the number of the recipient that led there.
    /// Cheap also for a message with very many recipients.
    pub fn are_open(&self, id: MessageId, addresses: &[(u32, &str)]) -> bool {
        self.replica.machine.lock().index.are_open(id, addresses)
    }

    /// All messages, oldest first, as each is when it is come to: those that come or go meanwhile may be among them
    /// or not. Takes a page at a time, so that neither memory nor delivery feel a long queue.
    pub fn messages(&self) -> impl Iterator<Item = Arc<QueuedMessage>> + Send + use<> {
        let replica = Arc::clone(&self.replica);
        let mut after = None;
        std::iter::from_fn(move || {
            let page = replica.machine.lock().index.page(after, LIST_PAGE_MESSAGES);
            after = page.last().map(|message| message.id);
            after.map(|_| page)
        })
        .flatten()
    }

    /// All of [`Self::messages`].
    pub fn list(&self) -> Vec<Arc<QueuedMessage>> {
        self.messages().collect()
    }

    /// Up to `limit` messages of a turn whose next attempt is due at `now`, earliest first, leaving out those for which
    /// `skip` is true (those in flight).
    pub fn due(
        &self,
        now: UnixMs,
        turn: Turn,
        limit: usize,
        skip: &dyn Fn(MessageId) -> bool,
    ) -> Vec<Arc<QueuedMessage>> {
        self.replica.due(now, turn, limit, skip)
    }

    /// When the next message becomes due.
    pub fn next_due(&self) -> Option<UnixMs> {
        self.replica.machine.lock().index.next_due()
    }

    /// This node may deliver from here now: it has the lease and is not handing over.
    pub fn may_deliver(&self) -> bool {
        self.replica.may_deliver()
    }

    /// Writes into the log that an attempt for this message is under way. To be awaited before its final dot: a
    /// successor then knows that it may have been delivered, and an abort comes too late. It may run beside the
    /// dialogue. False: nothing is to be sent, because the message has gone or been aborted, or no majority answers.
    pub async fn begin(&self, id: MessageId) -> bool {
        Arc::clone(&self.replica).begin(id).await
    }

    /// Records the outcome of an attempt. If this node no longer leads, `NotLeader` tells who does: forward it.
    ///
    /// An outcome that the queue refuses (its message is gone, or it is recorded already) is `Ok`: there is nothing
    /// left to be done about it. After a `Timeout`, record the same outcome again.
    ///
    /// # Errors
    /// As of a proposal.
    pub async fn record(&self, outcome: Outcome, deadline: Duration) -> Result<(), ProposeError> {
        self.replica.record(outcome, deadline).await
    }

    /// Holds a message: no attempts until it is released.
    ///
    /// # Errors
    /// As of a proposal. `Ok` is the queue's answer: `Refused` if there is no such message.
    pub async fn hold(&self, id: MessageId, deadline: Duration) -> Result<Reply, ProposeError> {
        self.replica.propose(entry::hold(id), deadline).await
    }

    /// Ends a hold; with `due`, makes all unfinished recipients due then (also of a message that was not held).
    ///
    /// # Errors
    /// As of `hold`.
    pub async fn release(
        &self,
        id: MessageId,
        due: Option<UnixMs>,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        self.replica.propose(entry::release(id, due), deadline).await
    }

    /// Redirects the unfinished recipient number `recipient` to `address`, due at `due`.
    ///
    /// # Errors
    /// As of `hold`.
    pub async fn redirect(
        &self,
        id: MessageId,
        recipient: u32,
        address: &str,
        due: UnixMs,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        let entry = entry::edit(id, recipient, address, due);
        self.replica.propose(entry, deadline).await
    }

    /// Records that an address became others, once and for all: in one entry, or in several if one cannot hold it.
    ///
    /// # Errors
    /// As of `hold`. What was recorded before an error or refusal stays; look at the message again.
    pub async fn expand(&self, expand: Expand, deadline: Duration) -> Result<Reply, ProposeError> {
        let mut reply = Reply::Done;
        for part in expand.split() {
            reply = self.replica.propose(entry::expand(&part), deadline).await?;
            if let Reply::Refused(_) = reply {
                break;
            }
        }
        Ok(reply)
    }

    /// Writes a message again at the head of the log, state intact, so that the log before it can be trimmed.
    ///
    /// # Errors
    /// `Read` if its body cannot be read, else as of `hold`; refused if the message changes meanwhile: try again.
    pub async fn carry(&self, id: MessageId, deadline: Duration) -> Result<Reply, CarryError> {
        Arc::clone(&self.replica).carry(id, deadline, None).await
    }

    /// The bytes of a message: added headers first, then the body as received.
    pub fn body(&self, message: &QueuedMessage) -> BodyReader {
        BodyReader::new(Arc::clone(&self.replica), message)
    }

    /// Stops new attempts (`may_deliver` is false from now on). The deliverer ends those in flight, then calls
    /// `hand_over`. `resume` undoes it, and so does the end of this leadership.
    pub fn quiesce(&self) {
        self.replica.quiesce();
    }

    /// Allows attempts again.
    pub fn resume(&self) {
        self.replica.resume();
    }

    /// Marks the hand-over in the log (so that the successor need not wait the takeover grace) and transfers. On
    /// failure, attempts are allowed again once the mark is taken back.
    ///
    /// # Errors
    /// Why the group has not changed hands.
    pub async fn hand_over(&self, to: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        self.replica.hand_over(to, deadline).await
    }

    /// Bytes of the log that its messages need, about.
    pub(super) fn live_bytes(&self) -> u64 {
        self.replica.machine.lock().index.live()
    }

    /// The last index that a new replica need not see.
    pub(super) fn start_index(&self) -> Option<u64> {
        let mut state = self.replica.machine.lock();
        let applied = state.index.applied().max(self.group.status().applied_index)?;
        state.index.checkpoint(applied)
    }

    /// The first index that a new replica must see, and for what.
    pub(super) fn keeper(&self) -> (u64, Keeper) {
        let mut state = self.replica.machine.lock();
        let applied = state.index.applied().max(self.group.status().applied_index);
        applied.map_or((0, Keeper::Nobody), |applied| state.index.keeper(applied))
    }

    /// Whether new messages may begin here when this node leads. A partition whose home is gone takes none, so that
    /// it gets empty.
    pub fn set_open(&self, open: bool) {
        self.replica.set_closed(!open);
    }

    /// What `set_open` said; a partition is open at first.
    pub fn is_open(&self) -> bool {
        !self.replica.is_closed()
    }

    /// This node leads, has the lease, and nothing is in the queue nor can get into it any more while this replica
    /// leads: the partition is closed to new messages, and none is being written.
    pub fn is_idle(&self) -> bool {
        let still = self.replica.is_still();
        let empty = {
            let state = self.replica.machine.lock();
            state.index.len() == 0 && state.index.uploads().is_empty()
        };
        still && empty && self.group.has_lease()
    }

    /// About how many bytes of entries lie behind `index`: what a replica that has it lacks.
    pub fn bytes_behind(&self, index: Option<u64>) -> u64 {
        self.replica.machine.lock().index.bytes_behind(index)
    }

    /// The term in which this node leads.
    pub(super) fn leading(&self) -> Option<u64> {
        self.replica.machine.leading()
    }

    /// This node leads, has not handed over, and takes new messages.
    pub(super) fn takes(&self) -> bool {
        self.leading().is_some() && !self.replica.machine.handed_over() && self.is_open()
    }

    #[cfg(test)]
    pub(super) fn machine(&self) -> &super::machine::QueueMachine {
        &self.replica.machine
    }

    pub(super) fn is_quiesced(&self) -> bool {
        self.replica.is_quiesced()
    }

    /// `None` if the partition takes no new messages.
    pub(super) fn writer(&self, id: MessageId, term: u64) -> Option<MessageWriter> {
        let admitted = self.replica.admit(id);
        admitted.then(|| MessageWriter::new(Arc::clone(&self.replica), id, term))
    }
}

impl Replica {
    pub(super) fn due(
        &self,
        now: UnixMs,
        turn: Turn,
        limit: usize,
        skip: &dyn Fn(MessageId) -> bool,
    ) -> Vec<Arc<QueuedMessage>> {
        let (mut found, mut after) = (Vec::new(), None);
        while found.len() < limit {
            // Not under the lock: `skip` is foreign code.
            let batch = self.machine.lock().index.due(now, turn, limit, after);
            let full = batch.len() == limit;
            after = batch.last().copied();
            let ids = batch.into_iter().map(|(_, id)| id);
            // Its client has been told `451`: not ours unless the abort comes too late.
            let ids: Vec<_> = ids.filter(|id| !self.is_doomed(*id) && !skip(*id)).collect();
            let state = self.machine.lock();
            let room = limit - found.len();
            found.extend(ids.into_iter().take(room).filter_map(|id| state.index.get(id)));
            if !full {
                break;
            }
        }
        found
    }

    pub(super) async fn record(
        &self,
        outcome: Outcome,
        deadline: Duration,
    ) -> Result<(), ProposeError> {
        let id = outcome.message;
        // One in eight: a relay that recorded none would be noticed by anybody.
        if faults::active(Fault::DropOutcome) && id.counter.is_multiple_of(8) {
            return Ok(());
        }
        let whole = entry::outcome(&outcome);
        let payloads = if whole.len() > ENTRY_BYTES_MAX {
            outcome.split().iter().map(entry::outcome).collect()
        } else {
            vec![whole]
        };
        for payload in payloads {
            match self.propose_within(payload, OUTCOMES_PATIENCE, deadline).await? {
                Reply::Refused(why) => info!(%id, "outcome not recorded: {why}"),
                Reply::Done | Reply::Value(_) => {}
            }
        }
        Ok(())
    }

    pub(super) async fn hand_over(
        &self,
        to: NodeId,
        deadline: Duration,
    ) -> Result<(), ChangeError> {
        // Also when the caller loses patience and drops this future.
        let undo = Undo { replica: self, armed: true };
        self.quiesce();
        let begun = self.clock.instant();
        if let Reply::Refused(why) = self.propose(entry::handover(to), deadline).await? {
            return Err(ChangeError::NotNow(why));
        }
        let waited = self.clock.instant().saturating_duration_since(begun);
        self.raft.transfer(to, deadline.saturating_sub(waited)).await?;
        // To itself: it leads on, and may deliver.
        if to != self.machine.node() {
            undo.disarm();
        }
        Ok(())
    }
}

/// Resumes unless the hand-over has happened.
struct Undo<'a> {
    replica: &'a Replica,
    armed: bool,
}

impl Undo<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.replica.resume();
        }
    }
}
