//! What of a queue keeps the log from being trimmed, and how much of the log it needs.

use super::Index;
use crate::{
    limits::{ENTRY_OVERHEAD_BYTES, RECIPIENT_OVERHEAD_BYTES},
    queue::message::{Attempt, MessageId, QueuedMessage},
};

/// What the first entry that a replay needs is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::queue) enum Keeper {
    /// A message that lives.
    Message(MessageId),
    /// A message that is being received.
    Upload(MessageId),
    /// Entries that those which are still to come may be judged by.
    History,
    /// Nothing: all that has been applied may go.
    Nobody,
}

impl Index {
    /// About how many bytes of the log the messages and uploads need.
    pub(in crate::queue) fn live(&self) -> u64 {
        let lengths = |chunks: &std::collections::BTreeMap<u32, (u64, u64)>| {
            chunks.values().map(|(_, bytes)| bytes).sum::<u64>()
        };
        let uploads: u64 = self.partials.values().map(|partial| lengths(&partial.chunks)).sum();
        self.live.saturating_add(uploads)
    }

    /// The first index that a replay needs when everything up to `applied` is, and for what.
    pub(in crate::queue) fn keeper(&mut self, applied: u64) -> (u64, Keeper) {
        let first = self.checkpoint(applied).map_or(0, |start| start.saturating_add(1));
        let keeper = if self.pins.first_key_value().is_some_and(|(&pin, _)| pin == first) {
            let upload = self.partials.iter().find(|(_, partial)| partial.pin == first);
            let message = || self.messages.iter().find(|(_, slot)| slot.pin == first);
            match upload {
                Some((id, _)) => Keeper::Upload(*id),
                None => message().map_or(Keeper::History, |(id, _)| Keeper::Message(*id)),
            }
        } else if first <= applied {
            Keeper::History
        } else {
            Keeper::Nobody
        };
        (first, keeper)
    }

    /// Of `look` messages behind `after`, those with records up to `upto`, with their first index; and where to look
    /// on. In pieces, because there may be a million of them.
    pub(in crate::queue) fn pinning(
        &self,
        upto: u64,
        after: Option<MessageId>,
        look: usize,
    ) -> (Vec<(u64, MessageId)>, Option<MessageId>) {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let (mut found, mut last, mut seen) = (Vec::new(), None, 0);
        for (id, slot) in self.messages.range((from, std::ops::Bound::Unbounded)).take(look) {
            (last, seen) = (Some(*id), seen + 1);
            if slot.pin <= upto {
                found.push((slot.pin, *id));
            }
        }
        (found, last.filter(|_| seen == look))
    }

    /// The first index that a message needs.
    pub(in crate::queue) fn pin_of(&self, id: MessageId) -> Option<u64> {
        self.messages.get(&id).map(|slot| slot.pin)
    }

    /// Some record of a message or upload lies at or before `upto`.
    pub(in crate::queue) fn pins_upto(&self, upto: u64) -> bool {
        self.pins.first_key_value().is_some_and(|(&pin, _)| pin <= upto)
    }

    /// The lowest start at or behind `upto` that no refusal forbids.
    pub(in crate::queue) fn reach(&self, upto: u64) -> u64 {
        self.history.reach(upto)
    }

    /// The oldest entry that others may still be judged by.
    pub(in crate::queue) fn remembered(&self) -> Option<u64> {
        self.history.oldest()
    }

    /// Uploads that began at or before `upto`.
    pub(in crate::queue) fn uploads_upto(&self, upto: u64) -> Vec<MessageId> {
        let old = self.partials.iter().filter(|(_, partial)| partial.pin <= upto);
        old.map(|(id, _)| *id).collect()
    }
}

/// About how many bytes of the log a message needs: its bytes, and its record with the state of each recipient.
pub(super) fn weight(message: &QueuedMessage) -> u32 {
    let attempt = |attempt: &Attempt| {
        let to = &attempt.recipient;
        let texts = to.address.len() + to.notify.len() + to.original.len();
        let done: usize = attempt.done.iter().map(String::len).sum();
        texts + attempt.last_error.len() + done + RECIPIENT_OVERHEAD_BYTES
    };
    let recipients: usize = message.recipients.iter().map(attempt).sum();
    let bytes = message.size.saturating_add((recipients + ENTRY_OVERHEAD_BYTES) as u64);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
