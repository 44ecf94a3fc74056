//! Which faults a round has: decided by seed and round alone, so that they come again.

use std::{fmt, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// Load before the first fault, so that there is mail in flight.
const LEAD_IN: Duration = Duration::from_secs(2);
/// Faults begin within this time, so that they overlap.
const SPREAD: Duration = Duration::from_secs(3);
/// Rounds with five nodes: every second block of this many rounds.
const BLOCK: u64 = 5;

/// A fault at one or all nodes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// kill -9, down for the length of the fault.
    Kill { node: u16 },
    /// kill -9 of all at once.
    KillAll,
    /// SIGSTOP, then SIGCONT.
    Stop { node: u16 },
    /// Cut off from all other nodes, in both directions.
    Isolate { node: u16 },
    /// What the node sends to other nodes vanishes.
    Mute { node: u16 },
    /// What other nodes send to this one vanishes.
    Deaf { node: u16 },
    /// Two nodes do not reach each other; everybody else reaches both.
    Pair { nodes: (u16, u16) },
    /// Links to the other nodes that lose packets in bursts.
    Lossy { node: u16 },
    /// No space left.
    FullDisk { node: u16 },
    /// Each sync takes so many milliseconds.
    SlowDisk { node: u16, delay_ms: u32 },
    /// The next sync, or write, fails.
    DiskError { node: u16, rule: &'static str },
    /// The wall clock goes wrong by so many seconds.
    Clock { node: u16, seconds: i64 },
    /// SIGTERM and a new start, one node after the other.
    Rolling,
    /// `ppswctl drain`, then `undrain`.
    Drain { node: u16 },
    /// A bit of an old segment is flipped while the node is down.
    BitFlip { node: u16 },
}

/// A fault with its time, counted from the beginning of the round's load.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Planned {
    pub(super) kind: Kind,
    pub(super) begin: Duration,
    pub(super) length: Duration,
}

/// The faults of a round.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) nodes: u16,
    pub(super) faults: Vec<Planned>,
}

/// One of the fifteen kinds each round in a shuffled order, so that all have their turn, and up to two more.
pub(super) fn plan(seed: u64, round: u64, long: bool) -> Plan {
    let mut order: Vec<u32> = (0..KINDS).collect();
    let cycle = (round - 1) / u64::from(KINDS);
    order.shuffle(&mut StdRng::seed_from_u64(seed ^ (cycle << 40)));
    let turn = usize::try_from((round - 1) % u64::from(KINDS)).unwrap_or_default();

    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(round));
    let nodes = if (round - 1) / BLOCK % 2 == 1 { 5 } else { 3 };
    let mut faults = vec![planned(order[turn], nodes, long, &mut rng)];
    for _ in 0..rng.random_range(0..=2) {
        let kind = rng.random_range(0..KINDS);
        let more = planned(kind, nodes, long, &mut rng);
        if faults.iter().all(|other| compatible(&other.kind, &more.kind)) {
            faults.push(more);
        }
    }
    faults.sort_by_key(|fault| fault.begin);
    Plan { nodes, faults }
}

const KINDS: u32 = 15;

fn planned(kind: u32, nodes: u16, long: bool, rng: &mut StdRng) -> Planned {
    let node = rng.random_range(1..=nodes);
    let other = (node + rng.random_range(1..nodes) - 1) % nodes + 1;
    let kind = match kind {
        0 => Kind::Kill { node },
        1 => Kind::KillAll,
        2 => Kind::Stop { node },
        3 => Kind::Isolate { node },
        4 => Kind::Mute { node },
        5 => Kind::Deaf { node },
        6 => Kind::Pair { nodes: (node, other) },
        7 => Kind::Lossy { node },
        8 => Kind::FullDisk { node },
        9 => Kind::SlowDisk { node, delay_ms: rng.random_range(50..=1_000) },
        10 => {
            let rules = ["syncs errno=EIO count=1", "pwrite,pwritev errno=EIO count=1"];
            Kind::DiskError { node, rule: rules[rng.random_range(0..rules.len())] }
        }
        11 => {
            // A message that was deferred while the clock was ahead waits as much longer: short steps, short rounds.
            let seconds = rng.random_range(3..=20);
            Kind::Clock { node, seconds: if rng.random_bool(0.5) { seconds } else { -seconds } }
        }
        12 => Kind::Rolling,
        13 => Kind::Drain { node },
        _ => Kind::BitFlip { node },
    };
    let longest = if long && matches!(kind, Kind::Stop { .. }) { 60_000 } else { 7_000 };
    Planned {
        kind,
        begin: LEAD_IN + SPREAD.mul_f64(rng.random_range(0.0..1.0)),
        length: Duration::from_millis(rng.random_range(1_000..=longest)),
    }
}

/// Whether two faults may come in one round. A replica that is lost for good, or a node on its way out, leaves the
/// others no further loss of the same kind; anything that only passes may come on top of anything.
fn compatible(a: &Kind, b: &Kind) -> bool {
    let planned = |kind: &Kind| matches!(kind, Kind::Rolling | Kind::Drain { .. });
    let same = std::mem::discriminant(a) == std::mem::discriminant(b);
    let flip = |kind: &Kind| matches!(kind, Kind::BitFlip { .. });
    let last = |kind: &Kind| matches!(kind, Kind::FullDisk { .. } | Kind::KillAll | Kind::Rolling);
    !(same && (flip(a) || planned(a)))
        && !(planned(a) && planned(b))
        && !(flip(a) && last(b) || flip(b) && last(a))
}

impl Kind {
    /// The nodes that it happens to; empty: all.
    pub(super) fn nodes(&self) -> Vec<u16> {
        match self {
            Self::KillAll | Self::Rolling => vec![],
            Self::Pair { nodes: (a, b) } => vec![*a, *b],
            Self::Kill { node }
            | Self::Stop { node }
            | Self::Isolate { node }
            | Self::Mute { node }
            | Self::Deaf { node }
            | Self::Lossy { node }
            | Self::FullDisk { node }
            | Self::SlowDisk { node, .. }
            | Self::DiskError { node, .. }
            | Self::Clock { node, .. }
            | Self::Drain { node }
            | Self::BitFlip { node } => vec![*node],
        }
    }

    /// Whether what is in flight may be delivered again. Not so if an operator plans it.
    pub(super) fn excuses_duplicates(&self) -> bool {
        !matches!(self, Self::Rolling | Self::Drain { .. })
    }

    /// Whether the process may end by it.
    pub(super) fn may_end_process(&self) -> bool {
        matches!(
            self,
            Self::FullDisk { .. }
                | Self::SlowDisk { .. }
                | Self::DiskError { .. }
                | Self::BitFlip { .. }
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { node } => write!(f, "kill {node}"),
            Self::KillAll => write!(f, "kill all"),
            Self::Stop { node } => write!(f, "stop {node}"),
            Self::Isolate { node } => write!(f, "isolate {node}"),
            Self::Mute { node } => write!(f, "mute {node}"),
            Self::Deaf { node } => write!(f, "deaf {node}"),
            Self::Pair { nodes: (a, b) } => write!(f, "cut {a}-{b}"),
            Self::Lossy { node } => write!(f, "lossy {node}"),
            Self::FullDisk { node } => write!(f, "full disk {node}"),
            Self::SlowDisk { node, delay_ms } => write!(f, "slow disk {node} ({delay_ms} ms)"),
            Self::DiskError { node, rule } => {
                let what = if rule.starts_with("syncs") { "sync" } else { "write" };
                write!(f, "EIO {node} ({what})")
            }
            Self::Clock { node, seconds } => write!(f, "clock {node} ({seconds:+} s)"),
            Self::Rolling => write!(f, "rolling restart"),
            Self::Drain { node } => write!(f, "drain {node}"),
            Self::BitFlip { node } => write!(f, "bit flip {node}"),
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:.1} s", self.kind, self.length.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_has_one_schedule_and_every_kind_has_its_turn() {
        let mut kinds = HashSet::new();
        for round in 1..=u64::from(KINDS) {
            let made = plan(7, round, false);
            assert_eq!(made, plan(7, round, false));
            assert!((1..=3).contains(&made.faults.len()), "{made:?}");
            for fault in &made.faults {
                assert!(fault.kind.nodes().iter().all(|node| (1..=made.nodes).contains(node)));
                kinds.insert(std::mem::discriminant(&fault.kind));
                if let Kind::Pair { nodes: (a, b) } = fault.kind {
                    assert_ne!(a, b);
                }
            }
        }
        assert_eq!(kinds.len(), KINDS as usize);
        assert_ne!(plan(7, 1, false), plan(8, 1, false));
    }
}
