//! An index as its tests look at it.

use std::collections::{BTreeMap, BTreeSet};

use super::Index;
use crate::{
    env::UnixMs,
    queue::{
        history::History,
        message::{Body, MessageId, QueuedMessage},
    },
};

/// Everything about a queue that replicas must agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::queue) struct View {
    messages: BTreeMap<MessageId, (QueuedMessage, bool)>,
    uploads: BTreeMap<MessageId, BTreeMap<u32, (u64, u64)>>,
    due: BTreeSet<(UnixMs, MessageId)>,
    begun: BTreeSet<MessageId>,
    bytes: u64,
    held: usize,
}

impl View {
    /// How many messages there are.
    pub(in crate::queue) fn len(&self) -> usize {
        self.messages.len()
    }

    /// All but where bytes lie.
    pub(in crate::queue) fn but_places(mut self) -> Self {
        self.uploads.clear();
        for (message, _) in self.messages.values_mut() {
            message.body = Body::Inline { index: 0 };
        }
        self
    }
}

impl Index {
    pub(in crate::queue) fn with_history(entries: u64) -> Self {
        Self { history: History::new(entries), ..Self::default() }
    }

    /// What was written of an index with a short history has one, too.
    pub(in crate::queue) fn set_history(&mut self, entries: u64) {
        self.history.set_entries(entries);
    }

    pub(in crate::queue) fn view(&self) -> View {
        let messages = self.messages.iter().map(|(key, slot)| {
            let (head, message) = slot.open(key.id()).unwrap();
            (key.id(), (message, head.tried.recorded))
        });
        View {
            messages: messages.collect(),
            uploads: self.partials.iter().map(|(id, part)| (*id, part.chunks.clone())).collect(),
            due: self.due.iter().map(|due| (due.due(), due.key().id())).collect(),
            begun: self.begun.iter().map(|key| key.id()).collect(),
            bytes: self.bytes,
            held: self.held,
        }
    }
}
