//! What a node turns away by itself because it has too much to do: a part of the new sessions of strangers, the larger the further
//! a signal is beyond what the policy allows (`shed_…_over`).
//!
//! From the allowed value on the part grows, and from twice that value it is everything. Submission and smart host begin only there
//! and are all turned away from three times the value: people who write mail notice at once, other servers come again. Our own hosts
//! (`smtp_reserve_hosts`) always get in.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ppsw_proto::control as pb;

use crate::{
    limits::PRESSURE_AGE_MAX,
    policy::{NodeFacts, Options},
};

/// Name of the personality that strangers come to.
const STRANGERS: &str = "mx";

/// The signals, asked now and then.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    known: Mutex<Option<(Instant, Level)>>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Signals {
    pub(super) sessions: usize,
    /// Messages in the queues that this node leads.
    pub(super) queue: u64,
    /// Load average, times 100.
    pub(super) load: Option<u32>,
    /// How long entries have lately taken to be on the disks of a majority.
    pub(super) commit: Duration,
    /// Bytes that may be written before the disk counts as low.
    pub(super) room_bytes: Option<u64>,
}

/// How far the worst signal is beyond its value: 0 not at all, 1 by as much again, and so on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Level {
    beyond: f64,
    /// A label of metrics and logs; `none` at 0.
    signal: &'static str,
}

impl Level {
    const NONE: Self = Self { beyond: 0.0, signal: "none" };

    /// Of a hundred sessions of a personality, so many are turned away.
    pub(super) fn percent(self, personality: &str) -> u8 {
        let beyond = if personality == STRANGERS { self.beyond } else { self.beyond - 1.0 };
        // Between 0 and 100 by the clamp.
        (beyond.clamp(0.0, 1.0) * 100.0).round() as u8
    }
}

impl Level {
    pub(super) fn report(self) -> Option<pb::Shedding> {
        let percent = self.percent(STRANGERS).into();
        (self.beyond > 0.0).then(|| pb::Shedding { signal: self.signal.to_owned(), percent })
    }
}

impl Pressure {
    /// The level now, or a moment ago.
    pub(super) fn level(
        &self,
        now: Instant,
        options: &Options,
        facts: &dyn NodeFacts,
        sessions: usize,
    ) -> Level {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, level)) = *known
            && now.saturating_duration_since(since) < PRESSURE_AGE_MAX
        {
            return level;
        }
        let signals = Signals {
            sessions,
            // Nothing is asked that the policy does not look at.
            queue: options.shed_queue_over.map_or(0, |_| facts.queue_length()),
            load: options.shed_load_over.and_then(|_| facts.load()),
            commit: options.shed_commit_over.map_or(Duration::ZERO, |_| facts.commit_time()),
            room_bytes: options.shed_space_under.and_then(|_| facts.room_bytes()),
        };
        let level = level(&signals, options);
        let before = known.replace((now, level)).map_or(Level::NONE, |(_, level)| level);
        tell(before, level);
        level
    }
}

/// The worst of all signals that the policy looks at.
fn level(signals: &Signals, options: &Options) -> Level {
    let over = |value: f64, most: Option<f64>| {
        most.map_or(0.0, |most| value / most.max(f64::MIN_POSITIVE) - 1.0)
    };
    // Space runs out downwards: at half of what should be there it is beyond by as much again.
    let under = |room: u64, least: u64| least as f64 / (room as f64).max(1.0) - 1.0;
    let room = signals.room_bytes.zip(options.shed_space_under);
    let beyond = [
        (
            "connections",
            over(signals.sessions as f64, options.shed_connections_over.map(|n| n as f64)),
        ),
        ("queue", over(signals.queue as f64, options.shed_queue_over.map(|n| n as f64))),
        (
            "load",
            signals
                .load
                .map_or(0.0, |load| over(f64::from(load), options.shed_load_over.map(f64::from))),
        ),
        (
            "commit",
            over(signals.commit.as_secs_f64(), options.shed_commit_over.map(|t| t.as_secs_f64())),
        ),
        ("space", room.map_or(0.0, |(room, least)| under(room, least))),
    ];
    beyond.into_iter().fold(Level::NONE, |worst, (signal, beyond)| {
        if beyond > worst.beyond { Level { beyond, signal } } else { worst }
    })
}

/// Says when it begins and ends, and how much it is.
fn tell(before: Level, now: Level) {
    for personality in [STRANGERS, "smart", "submit"] {
        metrics::gauge!("ppsw_shed_ratio", "personality" => personality)
            .set(f64::from(now.percent(personality)) / 100.0);
    }
    match (before.beyond > 0.0, now.beyond > 0.0) {
        (false, true) => tracing::warn!(
            signal = now.signal,
            percent = now.percent(STRANGERS),
            "this node has too much to do: a part of the sessions of strangers is turned away"
        ),
        (true, false) => tracing::info!(signal = before.signal, "nothing is turned away any more"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::session::testing::options;

    fn pressed() -> Options {
        Options {
            shed_connections_over: Some(100),
            shed_queue_over: Some(1_000),
            shed_load_over: Some(400),
            shed_commit_over: Some(Duration::from_secs(2)),
            shed_space_under: Some(1_000),
            ..options()
        }
    }

    #[test]
    fn the_part_grows_with_the_worst_signal() {
        let of = |signals: Signals| {
            let level = level(&signals, &pressed());
            (level.signal, level.percent("mx"), level.percent("submit"))
        };
        let calm = Signals { room_bytes: Some(5_000), ..Signals::default() };
        assert_eq!(of(calm), ("none", 0, 0));
        assert_eq!(of(Signals { queue: 1_000, ..calm }), ("none", 0, 0));
        assert_eq!(of(Signals { queue: 1_250, ..calm }), ("queue", 25, 0));
        assert_eq!(of(Signals { queue: 1_250, sessions: 150, ..calm }), ("connections", 50, 0));
        assert_eq!(of(Signals { load: Some(800), ..calm }), ("load", 100, 0));
        let commit = Duration::from_secs(5);
        assert_eq!(of(Signals { commit, ..calm }), ("commit", 100, 50));
        assert_eq!(of(Signals { room_bytes: Some(800), ..calm }), ("space", 25, 0));
        assert_eq!(of(Signals { room_bytes: Some(0), ..calm }), ("space", 100, 100));
    }

    #[test]
    fn what_the_policy_does_not_name_is_not_looked_at() {
        let busy = Signals {
            sessions: 1_000_000,
            queue: 1_000_000,
            load: Some(1_000_000),
            commit: Duration::from_secs(60),
            room_bytes: Some(0),
        };
        assert_eq!(level(&busy, &options()), Level::NONE);
    }
}
