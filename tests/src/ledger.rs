//! What was promised against what arrived: the total-queue check for one load and one sink.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use crate::{
    load::{Load, Tally},
    sink::Maildir,
};

/// Time for everything that was taken to arrive: failover, and 30 s of grace for what may have been in flight.
pub const ARRIVAL: Duration = Duration::from_secs(180);

/// What is filed so short before a fault may not have been recorded as delivered.
const RECORDING: Duration = Duration::from_millis(500);

/// Does something bad to the cluster. Gives an upper bound of what was in flight at that moment.
pub fn harm(load: &Load, maildir: &mut Maildir, harm: impl FnOnce()) -> HashSet<String> {
    let filed: HashSet<String> = maildir.counts().into_keys().collect();
    std::thread::sleep(RECORDING);
    harm();
    load.tally().sent().difference(&filed).cloned().collect()
}

/// Everything that was answered 250 is at the sink, within [`ARRIVAL`]. Gives how often each id came that came more
/// than once.
pub fn all_arrived(tally: &Tally, maildir: &mut Maildir) -> BTreeMap<String, usize> {
    let start = Instant::now();
    loop {
        let counts = maildir.counts();
        let missing: Vec<&String> =
            tally.taken.keys().filter(|id| !counts.contains_key(*id)).collect();
        if missing.is_empty() {
            return counts.into_iter().filter(|(_, count)| *count > 1).collect();
        }
        assert!(
            start.elapsed() < ARRIVAL,
            "{} of {} did not arrive: {missing:?}",
            missing.len(),
            tally.taken.len()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Duplicates come from what was in flight, and from nothing else.
pub fn check_duplicates(duplicates: &BTreeMap<String, usize>, in_flight: &HashSet<String>) {
    let strange: Vec<_> = duplicates.keys().filter(|id| !in_flight.contains(*id)).collect();
    assert!(strange.is_empty(), "duplicates of messages that were not in flight: {strange:?}");
}
