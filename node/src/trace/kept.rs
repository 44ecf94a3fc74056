//! What a session keeps while somebody watches, and who has seen what of it.

use std::{collections::VecDeque, sync::Arc};

use ppsw_proto::control as pb;

use super::{Watch, filter::Facts};
use crate::limits::TRACE_KEPT_LINES;

/// Lines of a session up to now: those before its first transaction, and those of the present one.
#[derive(Debug)]
pub(super) struct Kept {
    /// The time of watching that they are of.
    pub(super) watching: u64,
    lines: VecDeque<Line>,
    /// Lines before the first transaction; `None` until it begins.
    preamble: Option<usize>,
    /// Lines of the session so far.
    count: u64,
    pub(super) sender: Option<String>,
    seen: Vec<Seen>,
}

#[derive(Debug)]
struct Line {
    number: u64,
    line: pb::TraceLine,
    /// Lines before it that there was no room for.
    dropped: u64,
}

/// How far a watch is with this session.
#[derive(Debug)]
struct Seen {
    watch: u64,
    fits: bool,
    /// The next line that it has not got.
    next: u64,
}

impl Kept {
    pub(super) fn new(watching: u64) -> Self {
        Self {
            watching,
            lines: VecDeque::new(),
            preamble: None,
            count: 0,
            sender: None,
            seen: Vec::new(),
        }
    }

    /// A transaction begins: the lines of the one before are over, and it may fit other watches.
    pub(super) fn begin(&mut self, sender: &str, watches: &[Arc<Watch>]) {
        while self.preamble.is_none() && self.lines.len() > TRACE_KEPT_LINES / 2 {
            self.drop_line(0);
        }
        let preamble = *self.preamble.get_or_insert(self.lines.len());
        self.lines.truncate(preamble);
        self.sender = Some(sender.to_owned());
        for seen in &mut self.seen {
            let watch = watches.iter().find(|watch| watch.id == seen.watch);
            seen.fits &= watch.is_some_and(|watch| !watch.filter.is_of_transactions());
        }
    }

    pub(super) fn push(&mut self, line: pb::TraceLine) {
        if self.lines.len() == TRACE_KEPT_LINES {
            // MAIL and its reply say most of a long transaction; else the oldest goes.
            self.drop_line(self.preamble.map_or(0, |preamble| preamble + 2));
        }
        self.lines.push_back(Line { number: self.count, line, dropped: 0 });
        self.count += 1;
    }

    /// Drops a line; the one behind it says so.
    fn drop_line(&mut self, at: usize) {
        let gone = self.lines.remove(at).map_or(0, |gone| gone.dropped + 1);
        if let Some(next) = self.lines.get_mut(at) {
            next.dropped += gone;
        }
    }

    /// Gives the lines to those whom they are for and who have not got them.
    pub(super) fn show(&mut self, watches: &[Arc<Watch>], facts: &Facts<'_>) {
        self.seen.retain(|seen| watches.iter().any(|watch| watch.id == seen.watch));
        for watch in watches {
            let at = self.seen.iter().position(|seen| seen.watch == watch.id);
            let at = at.unwrap_or_else(|| {
                self.seen.push(Seen { watch: watch.id, fits: false, next: 0 });
                self.seen.len() - 1
            });
            let Some(seen) = self.seen.get_mut(at) else { continue };
            seen.fits |= watch.filter.fits(facts);
            if !seen.fits {
                continue;
            }
            for line in self.lines.iter().filter(|line| line.number >= seen.next) {
                watch.send(&line.line, line.dropped);
            }
            seen.next = self.count;
        }
    }
}
