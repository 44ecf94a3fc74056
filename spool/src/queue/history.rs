//! What a replica remembers of entries beyond the messages that live: enough that a replica which starts in the
//! middle of the log decides about every entry as one that has read all of it (docs/spool.md, "Where a replay may
//! begin").

use std::collections::{BTreeMap, HashMap, VecDeque};

use ppsw_proto::queue as pb;

use super::{
    entry::{read_id, write_id},
    message::MessageId,
};
use crate::limits::{HISTORY_ENTRIES, VOLUME_MARK_ENTRIES, VOLUME_MARKS_KEPT, VOLUME_MARKS_MAX};

/// The last entries by message, and the refusals that a replay must understand.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// Entries that the window is long.
    entries: u64,
    /// Entries of the window with the message that they were about (none: about all of them), oldest first.
    window: VecDeque<(u64, Option<MessageId>)>,
    touched: HashMap<MessageId, Touched>,
    /// Refusals that depended on earlier entries: the refused index, and that of the entry it depended on. A replay
    /// that saw the first without the second would not refuse.
    refusals: BTreeMap<u64, u64>,
    /// The `Settle` that reaches furthest.
    settled: Option<Settled>,
}

/// A `Settle`: its index, and up to where it has cut the window.
#[derive(Clone, Copy, Debug)]
struct Settled {
    at: u64,
    upto: u64,
}

/// Where the window has entries about a message.
#[derive(Clone, Copy, Debug)]
struct Touched {
    last: u64,
    /// Its last abort.
    ended: Option<u64>,
    /// When an outcome created it.
    made: Option<u64>,
}

impl Default for History {
    fn default() -> Self {
        Self::new(HISTORY_ENTRIES)
    }
}

impl History {
    /// A history of the last `entries` entries. The same on every replica.
    pub(super) fn new(entries: u64) -> Self {
        Self {
            entries,
            window: VecDeque::new(),
            touched: HashMap::new(),
            refusals: BTreeMap::new(),
            settled: None,
        }
    }

    #[cfg(test)]
    pub(super) fn set_entries(&mut self, entries: u64) {
        self.entries = entries;
    }

    /// How many entries it remembers.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Forgets what is too old to matter for the entry at `index`.
    pub(super) fn advance(&mut self, index: u64) {
        if let Some(last) = index.checked_sub(self.entries) {
            self.drop_to(last);
        }
    }

    /// The entry at `at` says that nothing up to `upto` matters for those behind it. It stands in the window itself, so
    /// that a replay sees it which sees an entry that it refuses.
    pub(super) fn settle(&mut self, at: u64, upto: u64) {
        self.touch_all(at);
        self.drop_to(upto);
        if self.settled.is_none_or(|settled| settled.upto < upto) {
            self.settled = Some(Settled { at, upto });
        }
    }

    /// Notes that the entry at `index` was about all messages.
    pub(super) fn touch_all(&mut self, index: u64) {
        self.window.push_back((index, None));
    }

    /// The last entry of the window about all messages, if it lies behind `made_at`.
    pub(super) fn last_of_all(&self, made_at: u64) -> Option<u64> {
        let since = self.window.iter().rev().take_while(|(index, _)| *index > made_at);
        since.filter(|(_, id)| id.is_none()).map(|(index, _)| *index).next()
    }

    /// The `Settle` behind which a record of the state after `made_at` may not come.
    pub(super) fn settled_behind(&self, made_at: u64) -> Option<u64> {
        self.settled.filter(|settled| made_at < settled.upto).map(|settled| settled.at)
    }

    fn drop_to(&mut self, last: u64) {
        while let Some(&(old, id)) = self.window.front() {
            if old > last {
                return;
            }
            self.window.pop_front();
            let Some(id) = id else { continue };
            if let Some(touched) = self.touched.get_mut(&id) {
                touched.ended = touched.ended.filter(|ended| *ended > old);
                touched.made = touched.made.filter(|made| *made > old);
                if touched.last <= old {
                    self.touched.remove(&id);
                }
            }
        }
    }

    /// Notes that the entry at `index` was about `id`, refused or not.
    pub(super) fn touch(&mut self, index: u64, id: MessageId, ends: bool) {
        let touched = self.entry(index, id);
        if ends {
            touched.ended = Some(index);
        }
    }

    /// Notes that the entry at `index` created `id`.
    pub(super) fn made(&mut self, index: u64, id: MessageId) {
        self.entry(index, id).made = Some(index);
    }

    fn entry(&mut self, index: u64, id: MessageId) -> &mut Touched {
        self.window.push_back((index, Some(id)));
        let new = Touched { last: index, ended: None, made: None };
        let touched = self.touched.entry(id).or_insert(new);
        touched.last = index;
        touched
    }

    /// The last entry about `id` in the window.
    pub(super) fn last(&self, id: MessageId) -> Option<u64> {
        self.touched.get(&id).map(|touched| touched.last)
    }

    /// The last abort of `id` in the window.
    pub(super) fn ended(&self, id: MessageId) -> Option<u64> {
        self.touched.get(&id).and_then(|touched| touched.ended)
    }

    /// The entry of the window that created `id`.
    pub(super) fn created(&self, id: MessageId) -> Option<u64> {
        self.touched.get(&id).and_then(|touched| touched.made)
    }

    /// Notes that the entry at `index` was refused because of an entry at `because` (or between the two).
    pub(super) fn refused(&mut self, index: u64, because: u64) {
        let slot = self.refusals.entry(index).or_insert(because);
        *slot = because.min(*slot);
    }

    /// The highest index at most `upto` such that a replay that begins behind it decides as this replica did. `None`
    /// if that is before the first entry.
    pub(super) fn start(&self, upto: u64) -> Option<u64> {
        let mut start = match self.window.front() {
            Some(&(oldest, _)) => upto.min(oldest.checked_sub(1)?),
            None => upto,
        };
        // From the highest refusal down: moving below one cannot move into a higher one.
        for (&refused, &because) in self.refusals.iter().rev() {
            if because <= start && start < refused {
                start = because.checked_sub(1)?;
            }
        }
        Some(start)
    }

    /// The lowest start at or behind `upto` that no refusal forbids.
    pub(super) fn reach(&self, upto: u64) -> u64 {
        let mut reach = upto;
        // From the lowest refusal up: what is moved to one lies behind all before.
        for (&refused, &because) in &self.refusals {
            if because <= reach && reach < refused {
                reach = refused;
            }
        }
        reach
    }

    /// The oldest entry that is remembered.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.window.front().map(|(oldest, _)| *oldest)
    }

    /// Forgets refusals that no later start can fall into.
    pub(super) fn forget(&mut self, start: u64) {
        self.refusals = self.refusals.split_off(&start.saturating_add(1));
    }

    /// For a local checkpoint.
    pub(super) fn write(&self) -> pb::HistoryState {
        let window = self.window.iter();
        let touched = self.touched.iter().map(|(id, touched)| pb::Touched {
            message: Some(write_id(*id)),
            last: touched.last,
            ended: touched.ended,
            made: touched.made,
        });
        let refusals = self.refusals.iter();
        pb::HistoryState {
            settled: self.settled.map(|s| pb::SettledUpto { at: s.at, upto: s.upto }),
            window: window
                .map(|&(index, id)| pb::Touch { index, message: id.map(write_id) })
                .collect(),
            touched: touched.collect(),
            refusals: refusals
                .map(|(&index, &because)| pb::RefusedEntry { index, because })
                .collect(),
        }
    }

    /// From a local checkpoint.
    pub(super) fn read(state: pb::HistoryState) -> Result<Self, String> {
        let mut history = Self::default();
        for touch in state.window {
            let message = touch.message.map(|id| read_id(Some(id))).transpose()?;
            history.window.push_back((touch.index, message));
        }
        for pb::Touched { message, last, ended, made } in state.touched {
            history.touched.insert(read_id(message)?, Touched { last, ended, made });
        }
        history.settled = state.settled.map(|s| Settled { at: s.at, upto: s.upto });
        history.refusals = state.refusals.iter().map(|r| (r.index, r.because)).collect();
        Ok(history)
    }
}

/// How many bytes the log holds up to an index, roughly: marks every few hundred entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Volume {
    marks: VecDeque<(u64, u64)>,
    total: u64,
}

impl Volume {
    /// Adds the entry at `index`.
    pub(super) fn add(&mut self, index: u64, bytes: u64) {
        let due = self
            .marks
            .back()
            .is_none_or(|(marked, _)| index.saturating_sub(*marked) >= VOLUME_MARK_ENTRIES);
        if due {
            if self.marks.len() >= VOLUME_MARKS_MAX {
                self.marks.remove(1);
            }
            self.marks.push_back((index, self.total));
        }
        self.total = self.total.saturating_add(bytes);
    }

    /// Bytes of the entries from behind `purged` to `upto`, to the precision of the marks.
    pub(super) fn between(&mut self, purged: Option<u64>, upto: u64) -> u64 {
        while self.marks.get(1).is_some_and(|(marked, _)| Some(*marked) <= purged) {
            self.marks.pop_front();
        }
        let first = self.marks.front().map_or(self.total, |(_, total)| *total);
        let behind = self.marks.partition_point(|(marked, _)| *marked <= upto);
        let last = self.marks.get(behind).map_or(self.total, |(_, total)| *total);
        last.saturating_sub(first)
    }

    /// For a local checkpoint: some of the marks, and the total.
    pub(super) fn write(&self) -> (Vec<pb::VolumeMark>, u64) {
        let step = self.marks.len().div_ceil(VOLUME_MARKS_KEPT).max(1);
        let some = self.marks.iter().step_by(step);
        (some.map(|&(index, bytes)| pb::VolumeMark { index, bytes }).collect(), self.total)
    }

    /// From a local checkpoint.
    pub(super) fn read(marks: &[pb::VolumeMark], total: u64) -> Self {
        Self { marks: marks.iter().map(|mark| (mark.index, mark.bytes)).collect(), total }
    }

    /// Bytes of all entries behind `index`, to the precision of the marks: rather too many than too few.
    pub(super) fn behind(&self, index: Option<u64>) -> u64 {
        let known = self.marks.partition_point(|(marked, _)| Some(*marked) <= index);
        let before = self.marks.get(known.saturating_sub(1)).map_or(0, |(_, total)| *total);
        self.total.saturating_sub(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MessageId = MessageId { second: 1, counter: 0, node: 1 };

    #[test]
    fn the_window_forgets_old_entries_but_not_new_ones_of_the_same_message() {
        let mut history = History::default();
        history.touch(10, ID, true);
        history.touch(20, ID, false);
        history.advance(10 + HISTORY_ENTRIES);
        assert_eq!((history.ended(ID), history.last(ID)), (None, Some(20)));
        assert_eq!(history.start(5000), Some(19));
        history.advance(20 + HISTORY_ENTRIES);
        assert_eq!((history.last(ID), history.start(5000)), (None, Some(5000)));
    }

    #[test]
    fn a_start_is_never_between_a_refusal_and_its_cause() {
        let mut history = History::default();
        history.refused(10, 5);
        history.refused(7, 3);
        assert_eq!(history.start(10), Some(10));
        assert_eq!(history.start(9), Some(2), "9 lies in 5..10, 4 then in 3..7");
        assert_eq!(history.start(2), Some(2));
        assert_eq!((history.reach(2), history.reach(4), history.reach(11)), (2, 10, 11));
        history.refused(8, 6);
        assert_eq!(history.reach(4), 10, "4 lies in 3..7, 7 in 6..8, 8 in 5..10");
        history.refused(4, 0);
        assert_eq!(history.start(9), None);
    }

    #[test]
    fn volume_counts_from_the_purge() {
        let mut volume = Volume::default();
        for index in 0..10_000 {
            volume.add(index, 100);
        }
        let bytes = volume.between(None, 9_999);
        assert_eq!(bytes, 1_000_000);
        assert_eq!(volume.behind(None), 1_000_000);
        assert!((100_000..=130_000).contains(&volume.behind(Some(9_000))));
        let bytes = volume.between(Some(5_000), 8_000);
        assert!((250_000..=350_000).contains(&bytes), "{bytes}");
    }
}
