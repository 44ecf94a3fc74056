//! What of a queue keeps the log from being trimmed, and how much of the log it needs.

use std::ops::Bound;

use super::{Index, key::Key};
use crate::queue::message::MessageId;

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
        let keeper = if self.pins.first() == Some(first) {
            let upload = self.partials.iter().find(|(_, partial)| partial.pin == first);
            let pinned = |slot: &super::Slot| slot.head().is_some_and(|head| head.pin == first);
            let message = || self.messages.iter().find(|(_, slot)| pinned(slot));
            match upload {
                Some((id, _)) => Keeper::Upload(*id),
                None => message().map_or(Keeper::History, |(key, _)| Keeper::Message(key.id())),
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
        let from = after.and_then(Key::of).map_or(Bound::Unbounded, Bound::Excluded);
        let (mut found, mut last, mut seen) = (Vec::new(), None, 0);
        for (key, slot) in self.messages.range((from, Bound::Unbounded)).take(look) {
            (last, seen) = (Some(key.id()), seen + 1);
            if let Some(head) = slot.head().filter(|head| head.pin <= upto) {
                found.push((head.pin, key.id()));
            }
        }
        (found, last.filter(|_| seen == look))
    }

    /// The first index that a message needs.
    pub(in crate::queue) fn pin_of(&self, id: MessageId) -> Option<u64> {
        self.head(id).map(|head| head.pin)
    }

    /// Some record of a message or upload lies at or before `upto`.
    pub(in crate::queue) fn pins_upto(&self, upto: u64) -> bool {
        self.pins.first().is_some_and(|pin| pin <= upto)
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
