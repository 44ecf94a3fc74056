//! Counts replies by command and class. Both are closed sets, so their counters are looked up once and kept: a look-up by
//! labels costs more than putting together the reply. Sessions share them without a lock.

use std::sync::OnceLock;

use metrics::Counter;

use super::{command::VERBS, reply::CLASSES};

/// Behind the verbs: `connect`, and everything else.
const COMMANDS: usize = VERBS.len() + 2;

/// A counter for each command and class, made when it is needed.
#[derive(Default)]
pub(super) struct ReplyCounts([[OnceLock<Counter>; CLASSES.len()]; COMMANDS]);

impl std::fmt::Debug for ReplyCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyCounts").finish_non_exhaustive()
    }
}

impl ReplyCounts {
    /// `command` is a verb, `connect` or `other`; `class` that of the reply.
    pub(super) fn count(&self, command: &'static str, class: &'static str) {
        let row = VERBS.iter().chain(&["connect"]).position(|known| *known == command);
        let column = CLASSES.iter().position(|known| *known == class);
        let counter = &self.0[row.unwrap_or(COMMANDS - 1)][column.unwrap_or(CLASSES.len() - 1)];
        let make = || metrics::counter!("ppsw_smtp_commands_total", "command" => command, "class" => class);
        counter.get_or_init(make).increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_and_class_has_a_counter_of_its_own() {
        let counts = ReplyCounts::default();
        let made = || counts.0.iter().flatten().filter(|counter| counter.get().is_some()).count();
        for command in VERBS.into_iter().chain(["connect", "other"]) {
            for class in CLASSES {
                let before = made();
                counts.count(command, class);
                counts.count(command, class);
                assert_eq!(made(), before + 1, "{command} {class}");
            }
        }
    }
}
