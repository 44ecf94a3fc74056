//! Writing one partition's checkpoint, round by round.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tracing::{debug, warn};

use super::{
    Place,
    file::{Owner, Writer},
};
use crate::{
    env::{Clock as _, SystemClock},
    group::Position,
    limits::{KEPT_GROWTH_MIN, KEPT_PIECE_MESSAGES, KEPT_PIECES_MAX},
    queue::machine::QueueMachine,
};

/// What the partition's group notes as of an entry.
pub(super) type Note = Box<dyn Fn(Position) -> Option<Bytes> + Send>;

/// One partition's checkpoint.
pub(super) struct Keeper {
    pub(super) machine: Arc<QueueMachine>,
    pub(super) note: Note,
    pub(super) place: Place,
    pub(super) owner: Owner,
    pub(super) writer: Option<Writer>,
    /// The last mark.
    pub(super) written: Option<Position>,
    /// The program ends: no gentle round goes on.
    pub(super) ending: Arc<AtomicBool>,
}

/// How fast a round may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Half of the time at most: mail goes on meanwhile.
    Gentle,
    /// The program ends.
    Hurried,
}

impl Keeper {
    /// Writes what has changed. Failure costs the next start time, nothing else.
    pub(super) fn round(&mut self, pace: Pace) {
        let partition = self.machine.partition();
        if self.is_ending(pace) {
            return;
        }
        if let Err(error) = self.try_round(pace) {
            warn!(partition, "the local checkpoint was not written: {error}");
            if let Some(writer) = self.writer.take() {
                // One that was begun is good up to its last mark.
                if !writer.is_begun() {
                    self.place.remove(writer.path());
                }
            }
            self.machine.lock().index.track();
        }
    }

    fn try_round(&mut self, pace: Pace) -> io::Result<()> {
        let (applied, all) = {
            let state = self.machine.lock();
            (state.index.position(), state.index.all_changed())
        };
        if applied.is_none() || (applied == self.written && !all) {
            return Ok(());
        }
        let grown = |w: &Writer| w.is_begun() && w.waste() > w.base() + KEPT_GROWTH_MIN;
        if all || self.writer.as_ref().is_none_or(grown) {
            self.write_all(pace)?;
        }
        self.write_changes(pace)?;
        self.mark()
    }

    /// Begins a file with all messages.
    fn write_all(&mut self, pace: Pace) -> io::Result<()> {
        if let Some(unfinished) = self.writer.take().filter(|writer| !writer.is_begun()) {
            self.place.remove(unfinished.path());
        }
        let path = self.place.next(self.owner.partition)?;
        let mut writer = Writer::create(&*self.place.disk, path, &self.owner)?;
        self.machine.lock().index.none_changed();
        let mut after = None;
        loop {
            if self.is_ending(pace) {
                self.place.remove(writer.path());
                return Ok(());
            }
            let begun = SystemClock.instant();
            let piece = self.machine.lock().index.piece(after);
            let Some((piece, last)) = piece else { break };
            let written = writer.piece(&piece);
            after = Some(last);
            if let Err(error) = written {
                self.place.remove(writer.path());
                return Err(error);
            }
            rest(pace, SystemClock.instant().saturating_duration_since(begun));
        }
        self.writer = Some(writer);
        Ok(())
    }

    /// Writes most of what has changed, so that little is left for the mark.
    fn write_changes(&mut self, pace: Pace) -> io::Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        for _ in 0..KEPT_PIECES_MAX {
            let begun = SystemClock.instant();
            let piece = {
                let mut state = self.machine.lock();
                if state.index.changed() <= KEPT_PIECE_MESSAGES {
                    return Ok(());
                }
                state.index.changed_piece()
            };
            writer.piece(&piece)?;
            rest(pace, SystemClock.instant().saturating_duration_since(begun));
        }
        Ok(())
    }

    /// Takes what is left and the rest of the index at one instant, and ends the round.
    fn mark(&mut self) -> io::Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let (rest, pieces) = {
            let mut state = self.machine.lock();
            // Restored, or changed too much, since the round began: the next one begins anew.
            if state.index.all_changed() {
                return Ok(());
            }
            let mut pieces = Vec::new();
            while state.index.changed() > 0 {
                pieces.push(state.index.changed_piece());
            }
            (state.index.rest(), pieces)
        };
        for piece in pieces {
            writer.piece(&piece)?;
        }
        let Some(mut rest) = rest else { return Ok(()) };
        let at = Position { term: rest.applied_term, index: rest.applied_index };
        // A checkpoint of the log has overtaken the round. What was written counts with the next mark.
        let Some(note) = (self.note)(at) else { return Ok(()) };
        rest.group = note;
        let begun = !writer.is_begun();
        writer.mark(&rest)?;
        self.written = Some(at);
        if begun {
            debug!(partition = self.owner.partition, index = at.index, "a local checkpoint began");
            self.place.remove_others(self.owner.partition, writer.path());
        }
        Ok(())
    }

    fn is_ending(&self, pace: Pace) -> bool {
        pace == Pace::Gentle && self.ending.load(Ordering::Acquire)
    }

    /// Removes all that was written.
    pub(super) fn forget(&mut self) {
        self.writer = None;
        self.place.remove_others(self.owner.partition, &PathBuf::new());
    }
}

fn rest(pace: Pace, worked: Duration) {
    if pace == Pace::Gentle {
        std::thread::sleep(worked);
    }
}
