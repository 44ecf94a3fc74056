//! How long failover and hand-over take, seen from outside.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    cluster::Node,
    sink::{Shared, Takeover},
};

/// Between two looks at who leads. A look takes some milliseconds itself.
const POLL: Duration = Duration::from_millis(5);
/// After this a failover is not one any more, it is an outage, which the pauses show.
const GIVE_UP: Duration = Duration::from_secs(30);

/// Samples of all rounds.
#[derive(Debug, Default)]
pub(super) struct Measure {
    samples: Arc<Mutex<Samples>>,
    watchers: Vec<JoinHandle<()>>,
    kills: Vec<(u16, Duration)>,
}

#[derive(Debug, Default)]
struct Samples {
    /// From kill -9 until another node leads the partition: it takes mail and outcomes from then on.
    leader: Vec<Duration>,
    /// From kill -9 until the first message of the partition is delivered by another node.
    delivery: Vec<Duration>,
    /// Without a leader in a planned hand-over.
    handover: Vec<Duration>,
    /// Clients of nodes without a fault, in rounds in which some other node was killed.
    elsewhere: Vec<Duration>,
}

impl Measure {
    /// A leader was killed just now: watches for the next one.
    pub(super) fn killed(&mut self, node: u16, size: u16, at: Duration) {
        self.kills.push((node, at));
        let (samples, begin) = (Arc::clone(&self.samples), Instant::now());
        self.watchers.push(std::thread::spawn(move || {
            while begin.elapsed() < GIVE_UP {
                if others(node, size).any(|other| leads(other, node)) {
                    lock(&samples).leader.push(begin.elapsed());
                    return;
                }
                std::thread::sleep(POLL);
            }
        }));
    }

    /// A drain begins: watches the hand-over of the node's partition.
    pub(super) fn drained(&mut self, node: u16, size: u16) {
        let samples = Arc::clone(&self.samples);
        self.watchers.push(std::thread::spawn(move || {
            let (begin, mut led) = (Instant::now(), None);
            while begin.elapsed() < GIVE_UP {
                // The time before the question: it led at least until then.
                let asked = Instant::now();
                if leads(node, node) {
                    led = Some(asked);
                } else if led.is_some() && others(node, size).any(|other| leads(other, node)) {
                    lock(&samples).handover.extend(led.map(|led| led.elapsed()));
                    return;
                }
                std::thread::sleep(POLL);
            }
        }));
    }

    /// The round is over. `alone`: its kills had no other fault beside them, so that their samples count.
    pub(super) fn round(&mut self, shared: &Shared, alone: bool, elsewhere: Option<Duration>) {
        for watcher in self.watchers.drain(..) {
            // Watchers do not panic; a sample less would be all that is missing.
            let _ = watcher.join();
        }
        let takeovers = shared.takeovers();
        let mut samples = lock(&self.samples);
        for (node, at) in self.kills.drain(..) {
            if alone {
                let first = |takeover: &&Takeover| takeover.accepted_by == node && takeover.at > at;
                samples.delivery.extend(takeovers.iter().find(first).map(|first| first.at - at));
                samples.elsewhere.extend(elsewhere);
            }
        }
    }

    /// What to print.
    pub(super) fn lines(&self) -> Vec<String> {
        let samples = lock(&self.samples);
        vec![
            line("kill -9 of a leader until another node leads its partition", &samples.leader),
            line(
                "kill -9 of a leader until the first delivery of its partition by another",
                &samples.delivery,
            ),
            line(
                "longest time without 250 for a client of another node, per kill -9",
                &samples.elsewhere,
            ),
            line("time without a leader at a planned hand-over (upper bound)", &samples.handover),
        ]
    }
}

fn lock(samples: &Mutex<Samples>) -> std::sync::MutexGuard<'_, Samples> {
    samples.lock().unwrap_or_else(PoisonError::into_inner)
}

fn others(node: u16, size: u16) -> impl Iterator<Item = u16> {
    (1..=size).filter(move |other| *other != node)
}

/// Whether a node says that it leads the home partition of another one.
fn leads(node: u16, partition: u16) -> bool {
    Node::metric(node, &format!("ppsw_raft_leading{{group=\"{partition}\"}}")) == Some(1.0)
}

fn line(what: &str, samples: &[Duration]) -> String {
    let mut sorted = samples.to_vec();
    sorted.sort();
    let Some((min, max)) = sorted.first().zip(sorted.last()) else {
        return format!("{what}: no sample");
    };
    let median = sorted[sorted.len() / 2];
    format!(
        "{what}: min {:.3} s, median {:.3} s, max {:.3} s, n = {}",
        min.as_secs_f64(),
        median.as_secs_f64(),
        max.as_secs_f64(),
        sorted.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_minimum_median_maximum_and_count() {
        let samples: Vec<_> = [3, 1, 2].into_iter().map(Duration::from_secs).collect();
        assert_eq!(line("x", &samples), "x: min 1.000 s, median 2.000 s, max 3.000 s, n = 3");
        assert_eq!(line("x", &[]), "x: no sample");
    }
}
