//! Counts replies by command and class. Both are closed sets, so their counters are looked up once and kept: a look-up by
//! labels costs more than putting together the reply.

use std::sync::{PoisonError, RwLock};

use metrics::Counter;

/// The counters that were needed until now: few, so that a look through all is the fastest.
#[derive(Default)]
pub(super) struct ReplyCounts(RwLock<Vec<(Labels, Counter)>>);

/// Command and class.
type Labels = (&'static str, &'static str);

impl std::fmt::Debug for ReplyCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyCounts").finish_non_exhaustive()
    }
}

impl ReplyCounts {
    pub(super) fn count(&self, command: &'static str, class: &'static str) {
        let labels = (command, class);
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, counter)) = known.iter().find(|(known, _)| *known == labels) {
            return counter.increment(1);
        }
        drop(known);
        let counter =
            metrics::counter!("ppsw_smtp_commands_total", "command" => command, "class" => class);
        counter.increment(1);
        // Two that come at once add it twice: the first is found.
        self.0.write().unwrap_or_else(PoisonError::into_inner).push((labels, counter));
    }
}
