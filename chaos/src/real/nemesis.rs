//! Makes the faults of a round happen, and ends them.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;

use super::{
    HarnessError,
    cluster::{Cluster, Ended},
    disk,
    measure::Measure,
    network::Network,
    schedule::{Kind, Plan, Planned},
    sink::Shared,
};
use crate::checker::Fault;

/// How often the state of things is looked at.
const TICK: Duration = Duration::from_millis(20);
/// A tick that comes this much late means that the machine itself stood still, nodes included.
const STALL: Duration = Duration::from_millis(500);
/// Load after the last fault.
const LEAD_OUT: Duration = Duration::from_secs(2);
/// A bad link changes its mind after some time up to this.
const LOSSY_FLIP_MS: u64 = 250;
/// The operator's patience with one drain.
const DRAIN_MAX: &str = "20s";
/// Between two tries to end a drain.
const OPERATOR_PAUSE: Duration = Duration::from_millis(500);
/// How long a node that is stopped in order has for it before a rolling restart gives up.
const ROLLING_STEP_MAX: Duration = Duration::from_secs(60);

/// The faults of a round while they happen.
pub(super) struct Nemesis<'a> {
    cluster: &'a mut Cluster,
    network: Network,
    shared: &'a Arc<Shared>,
    measure: &'a mut Measure,
    round: u64,
    rng: StdRng,
    /// The round has one fault only.
    alone: bool,
    active: Vec<Active>,
    rolling: Option<Rolling>,
    /// `ppswctl drain` and `undrain`.
    operators: Vec<Operator>,
    outcome: Outcome,
}

/// One who drains a node, or ends that.
struct Operator {
    /// The node that is to be undrained; `None` for a drain.
    undrains: Option<u16>,
    child: Option<Child>,
    /// When to (re)try.
    again: Option<Instant>,
}

/// What happened besides what was planned.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Processes that ended of a fault that may end them, and other notes for the table.
    pub(super) notes: Vec<String>,
    pub(super) violations: Vec<String>,
    /// The cluster is not what it was: the next round needs another.
    pub(super) spoilt: bool,
}

struct Active {
    fault: Planned,
    /// In the time of histories.
    began: Duration,
    ends: Instant,
    /// Of a bad link: whether it is cut just now, and until when.
    flips: Option<(bool, Instant)>,
}

/// A rolling restart: who is next, and who is on the way.
struct Rolling {
    next: u16,
    waiting: Option<(u16, Instant)>,
}

impl<'a> Nemesis<'a> {
    pub(super) fn new(
        cluster: &'a mut Cluster,
        network: Network,
        shared: &'a Arc<Shared>,
        measure: &'a mut Measure,
        round: u64,
        seed: u64,
    ) -> Self {
        let rng = StdRng::seed_from_u64(seed ^ round.rotate_left(17));
        Self {
            cluster,
            network,
            shared,
            measure,
            round,
            rng,
            alone: false,
            active: vec![],
            rolling: None,
            operators: vec![],
            outcome: Outcome::default(),
        }
    }

    /// Makes it all happen; returns when every fault is over and the nodes are ready again.
    pub(super) fn run(mut self, plan: &Plan, ready_max: Duration) -> Result<Outcome, HarnessError> {
        self.alone = plan.faults.len() == 1;
        let begin = Instant::now();
        let mut waiting: Vec<Planned> = plan.faults.iter().rev().cloned().collect();
        let mut last = Instant::now();
        while !(waiting.is_empty() && self.active.is_empty() && self.rolling.is_none()) {
            while let Some(fault) = waiting.pop_if(|fault| begin.elapsed() >= fault.begin) {
                self.begin(fault)?;
            }
            self.tick(plan)?;
            let late = last.elapsed().saturating_sub(TICK);
            self.note_stall(late);
            last = Instant::now();
            std::thread::sleep(TICK);
        }
        self.recover(plan, ready_max)?;
        Ok(std::mem::take(&mut self.outcome))
    }

    fn recover(&mut self, plan: &Plan, ready_max: Duration) -> Result<(), HarnessError> {
        let until = Instant::now() + ready_max;
        loop {
            self.tick(plan)?;
            let missing: Vec<_> =
                self.cluster.nodes().iter().filter_map(|node| node.not_ready()).collect();
            if missing.is_empty() && self.operators.is_empty() {
                break;
            }
            if Instant::now() > until {
                self.outcome.spoilt = true;
                let text = format!("not ready {} s after the faults", ready_max.as_secs());
                self.outcome.violations.push(format!("{text}: {}", missing.join("; ")));
                break;
            }
            std::thread::sleep(TICK * 5);
        }
        let end = Instant::now() + LEAD_OUT;
        while Instant::now() < end {
            self.tick(plan)?;
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn tick(&mut self, plan: &Plan) -> Result<(), HarnessError> {
        let ended = self.cluster.supervise()?;
        for process in ended {
            self.note_end(process, plan);
        }
        self.flip_links()?;
        self.step_rolling()?;
        self.look_at_operators()?;
        let now = Instant::now();
        let (over, active) =
            std::mem::take(&mut self.active).into_iter().partition(|active| active.ends <= now);
        self.active = active;
        over.into_iter().try_for_each(|active| self.end(active))
    }

    fn begin(&mut self, fault: Planned) -> Result<(), HarnessError> {
        let began = self.shared.now();
        println!("  {:7.2} {fault}", began.as_secs_f64());
        let network = self.network;
        let mut flips = None;
        match &fault.kind {
            Kind::Kill { node } => {
                self.measure.killed(*node, self.cluster.size(), began);
                self.cluster.kill(*node, fault.length);
            }
            Kind::KillAll => self.cluster.kill_all(fault.length),
            Kind::Stop { node } => self.cluster.node(*node).signal(Signal::STOP),
            Kind::Isolate { .. } | Kind::Mute { .. } | Kind::Deaf { .. } | Kind::Pair { .. } => {
                for (from, to) in self.cuts(&fault.kind) {
                    network.cut(from, to)?;
                }
            }
            Kind::Lossy { .. } => flips = Some((false, Instant::now())),
            Kind::FullDisk { node } => self.cluster.node(*node).disk.fill()?,
            Kind::SlowDisk { node, delay_ms } => {
                let rule = disk::slow(Duration::from_millis(u64::from(*delay_ms)));
                self.cluster.node(*node).disk.rules(&[&rule])?;
            }
            Kind::DiskError { node, rule } => self.cluster.node(*node).disk.rules(&[rule])?,
            Kind::Clock { node, seconds } => self.cluster.node(*node).disk.set_clock(*seconds)?,
            Kind::Rolling => self.rolling = Some(Rolling { next: 1, waiting: None }),
            Kind::Drain { node } => {
                self.measure.drained(*node, self.cluster.size());
                let child =
                    Some(self.operate(&["drain", &node.to_string(), "--timeout", DRAIN_MAX])?);
                self.operators.push(Operator { undrains: None, child, again: None });
            }
            Kind::BitFlip { node } => self.flip_bit(*node, fault.length)?,
        }
        self.active.push(Active { began, ends: Instant::now() + fault.length, flips, fault });
        Ok(())
    }

    fn end(&mut self, active: Active) -> Result<(), HarnessError> {
        match &active.fault.kind {
            Kind::Stop { node } => self.cluster.node(*node).signal(Signal::CONT),
            Kind::Isolate { .. }
            | Kind::Mute { .. }
            | Kind::Deaf { .. }
            | Kind::Pair { .. }
            | Kind::Lossy { .. } => self.heal(&active)?,
            Kind::FullDisk { node } => self.cluster.node(*node).disk.free()?,
            Kind::SlowDisk { node, .. } | Kind::DiskError { node, .. } => {
                self.cluster.node(*node).disk.rules(&[])?;
            }
            Kind::Clock { node, .. } => self.cluster.node(*node).disk.set_clock(0)?,
            Kind::Drain { node } => {
                let again = Some(Instant::now());
                self.operators.push(Operator { undrains: Some(*node), child: None, again });
            }
            Kind::Kill { .. } | Kind::KillAll | Kind::Rolling | Kind::BitFlip { .. } => {}
        }
        let instant = matches!(active.fault.kind, Kind::Kill { .. } | Kind::KillAll);
        let end = if instant { active.began } else { self.shared.now() };
        let kind = &active.fault.kind;
        let (name, excuses_duplicates) = (kind.to_string(), kind.excuses_duplicates());
        self.record(Fault { name, begin: active.began, end, excuses_duplicates }, kind.nodes());
        Ok(())
    }

    /// Notes a fault at some nodes; none: at all.
    fn record(&self, fault: Fault, nodes: Vec<u16>) {
        self.shared.with(self.round, |history| {
            if self.alone && !nodes.is_empty() {
                history.fault_at(fault, nodes);
            } else {
                // Several faults together may take the majority of a group away whose leader has no fault.
                history.fault(fault);
            }
        });
    }

    /// Directions that a partition cuts.
    fn cuts(&self, kind: &Kind) -> Vec<(u16, u16)> {
        let others = |node: u16| (1..=self.cluster.size()).filter(move |other| *other != node);
        match kind {
            Kind::Mute { node } => others(*node).map(|other| (*node, other)).collect(),
            Kind::Deaf { node } => others(*node).map(|other| (other, *node)).collect(),
            Kind::Isolate { node } | Kind::Lossy { node } => {
                others(*node).flat_map(|other| [(*node, other), (other, *node)]).collect()
            }
            Kind::Pair { nodes: (a, b) } => vec![(*a, *b), (*b, *a)],
            _ => vec![],
        }
    }

    /// Ends a partition, where no other one goes on.
    fn heal(&self, over: &Active) -> Result<(), HarnessError> {
        let others: Vec<_> =
            self.active.iter().flat_map(|active| self.cuts(&active.fault.kind)).collect();
        for (from, to) in self.cuts(&over.fault.kind) {
            if !others.contains(&(from, to)) {
                self.network.heal(from, to)?;
            }
        }
        Ok(())
    }

    fn flip_links(&mut self) -> Result<(), HarnessError> {
        let now = Instant::now();
        for index in 0..self.active.len() {
            let Some((cut, until)) = self.active[index].flips.filter(|(_, until)| *until <= now)
            else {
                continue;
            };
            let next = until + Duration::from_millis(self.rng.random_range(20..LOSSY_FLIP_MS));
            self.active[index].flips = Some((!cut, next));
            for (from, to) in self.cuts(&self.active[index].fault.kind) {
                if cut {
                    self.network.heal(from, to)?;
                } else {
                    self.network.cut(from, to)?;
                }
            }
        }
        Ok(())
    }

    fn step_rolling(&mut self) -> Result<(), HarnessError> {
        let Some(rolling) = &mut self.rolling else { return Ok(()) };
        if let Some((node, until)) = rolling.waiting {
            let late = Instant::now() > until;
            let node = self.cluster.node(node);
            // It is ready while it stops, too: only the new process counts.
            if !late && (!node.restarted() || node.not_ready().is_some()) {
                return Ok(());
            }
            if late {
                self.outcome.notes.push(format!("node {} slow to restart", node.number));
            }
            rolling.waiting = None;
        }
        if rolling.next > self.cluster.size() {
            self.rolling = None;
            return Ok(());
        }
        let node = rolling.next;
        rolling.next += 1;
        rolling.waiting = Some((node, Instant::now() + ROLLING_STEP_MAX));
        if !self.cluster.node(node).retired() {
            self.cluster.terminate(node);
        }
        Ok(())
    }

    fn flip_bit(&mut self, node: u16, length: Duration) -> Result<(), HarnessError> {
        self.cluster.kill(node, length);
        let flipped = self.cluster.node(node).disk.flip_bit(&mut self.rng)?;
        self.outcome.spoilt |= flipped.is_some();
        self.outcome.notes.push(flipped.unwrap_or_else(|| "no old segment to flip".to_owned()));
        Ok(())
    }

    fn operate(&self, arguments: &[&str]) -> Result<Child, HarnessError> {
        let mut command: Command = self.cluster.ctl_command();
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(|error| HarnessError::Program {
            command: format!("{command:?}"),
            reason: error.to_string(),
        })
    }

    /// A drain that fails is not repeated: it is a fault, and may meet others. That it ends, is: with all nodes down,
    /// nobody takes it.
    fn look_at_operators(&mut self) -> Result<(), HarnessError> {
        let now = Instant::now();
        for mut operator in std::mem::take(&mut self.operators) {
            if let Some(node) = operator.undrains
                && operator.again.is_some_and(|again| again <= now)
            {
                operator.child = Some(self.operate(&["undrain", &node.to_string()])?);
                operator.again = None;
            }
            match operator.child.as_mut().map(Child::try_wait) {
                None | Some(Ok(None)) => self.operators.push(operator),
                Some(Ok(Some(status))) if !status.success() && operator.undrains.is_some() => {
                    let again = Some(now + OPERATOR_PAUSE);
                    self.operators.push(Operator { child: None, again, ..operator });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// A process ended without being asked: of its disk, or of a bug.
    fn note_end(&mut self, ended: Ended, plan: &Plan) {
        let now = self.shared.now();
        let name = format!("end of {}", ended.node);
        self.record(
            Fault { name, begin: now, end: now, excuses_duplicates: true },
            vec![ended.node],
        );
        let reason = plan
            .faults
            .iter()
            .map(|fault| &fault.kind)
            .find(|kind| kind.may_end_process() && kind.nodes().contains(&ended.node));
        let Some(reason) = reason else {
            let text = format!(
                "node {} ended by itself: {}\n    {}",
                ended.node, ended.status, ended.tail
            );
            self.outcome.violations.push(text);
            return;
        };
        self.outcome.notes.push(format!("{} ended", ended.node));
        if matches!(reason, Kind::BitFlip { .. }) {
            // It refuses its damaged log, as it must: the others go on without it.
            println!(
                "  node {} refuses: {}",
                ended.node,
                ended.tail.lines().last().unwrap_or_default().trim()
            );
            self.cluster.retire(ended.node);
        }
    }

    fn note_stall(&self, late: Duration) {
        if late > STALL {
            let now = self.shared.now();
            println!("  {:7.2} this machine stood still for {late:.1?}", now.as_secs_f64());
            let (name, begin) = ("stall".to_owned(), now.saturating_sub(late));
            self.record(Fault { name, begin, end: now, excuses_duplicates: true }, vec![]);
        }
    }
}

impl Drop for Nemesis<'_> {
    fn drop(&mut self) {
        for child in self.operators.iter_mut().filter_map(|operator| operator.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
