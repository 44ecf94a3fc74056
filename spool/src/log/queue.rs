//! The hand-over from callers to the writer thread.
//!
//! Callers are tasks of an async runtime, so an append must not wait for the disk: it adds to this queue under
//! a mutex that the writer holds only to take and to account, never over a system call. The bound is kept by
//! asking: callers await `Log::room` first. Who does not is stopped at the hard bound by a condition variable;
//! that is safe for a runtime, because the writer is a thread of its own and always gets on or fails.

use std::collections::VecDeque;

use super::{
    Done,
    cache::Ticket,
    record::{HEADER, Record},
};
use crate::limits::{
    LOG_FLUSH_BYTES_MAX, LOG_QUEUE_BYTES_HARD, LOG_QUEUE_BYTES_SOFT, LOG_QUEUE_RECORDS_HARD,
    LOG_QUEUE_RECORDS_SOFT, LOG_RECORD_OVERHEAD,
};

/// One record that waits, or just a question whether all before it is durable.
pub(super) struct Item {
    pub(super) record: Option<Record>,
    /// Of an entry.
    pub(super) ticket: Option<Ticket>,
    /// On the last record of a call.
    pub(super) done: Option<Done>,
}

impl Item {
    fn disk_bytes(&self) -> usize {
        self.record.as_ref().map_or(0, Record::bytes)
    }

    fn memory_bytes(&self) -> usize {
        LOG_RECORD_OVERHEAD + self.record.as_ref().map_or(0, |r| r.payload.len())
    }
}

/// What the writer gets.
pub(super) enum Taken {
    /// Records for one flush.
    Batch(Vec<Item>),
    /// The first record needs this many bytes, more than the segment has left.
    NoRoom(usize),
    /// Nothing waits.
    Empty,
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
}

impl Queue {
    pub(super) fn push(&mut self, item: Item) {
        self.bytes += item.memory_bytes();
        self.items.push_back(item);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// A caller that asks may append.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < LOG_QUEUE_BYTES_SOFT && self.items.len() < LOG_QUEUE_RECORDS_SOFT
    }

    /// A caller that did not ask must wait.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= LOG_QUEUE_BYTES_HARD || self.items.len() >= LOG_QUEUE_RECORDS_HARD
    }

    /// Takes everything that fits into `space` bytes of the segment and into one flush.
    pub(super) fn take(&mut self, space: Option<usize>) -> Taken {
        let Some(first) = self.items.front().map(Item::disk_bytes) else { return Taken::Empty };
        // Room for the release and the marker that the writer adds.
        let most = space.map_or(0, |space| space.min(LOG_FLUSH_BYTES_MAX - 4 * HEADER));
        if first > most || space.is_none() {
            return Taken::NoRoom(first);
        }
        let mut bytes = 0;
        let count = self
            .items
            .iter()
            .take_while(|item| {
                bytes += item.disk_bytes();
                bytes <= most
            })
            .count();
        let batch: Vec<Item> = self.items.drain(..count).collect();
        self.bytes -= batch.iter().map(Item::memory_bytes).sum::<usize>();
        Taken::Batch(batch)
    }

    /// Takes everything, after a failure.
    pub(super) fn drain(&mut self) -> Vec<Item> {
        self.bytes = 0;
        self.items.drain(..).collect()
    }
}
