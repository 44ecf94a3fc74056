//! Makes the faults: a schedule that follows from the seed, and what it does to machines and network.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use ppsw_spool::{NodeId, PartitionId, env::sim::Trouble};
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};
use turmoil::Sim;

use super::{
    invariants::Invariants,
    network::host,
    node::{Command, Failure, World},
};
use crate::checker::Fault;

/// Between two faults, in milliseconds.
const BETWEEN: std::ops::Range<u64> = 300..3_500;

/// Between two things that an operator or the control plane asks for, in milliseconds.
const BETWEEN_COMMANDS: std::ops::Range<u64> = 200..1_500;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The machine's cache survives.
    Kill,
    /// What was not synced is lost or torn.
    PowerCut,
}

/// What is undone later.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Start(NodeId),
    Repair(NodeId, NodeId),
    RepairOneWay(NodeId, NodeId),
    Latency(NodeId, NodeId),
    Disk(NodeId),
    Space(NodeId),
    Clock(NodeId),
}

/// What ails one machine.
#[derive(Clone, Copy, Debug, Default)]
struct Ills {
    down: bool,
    /// The log may fail: an error, a stop or a full disk was ordered.
    disk: bool,
    full: bool,
    /// Errors come with a power cut.
    cut: bool,
}

/// The maker of faults.
pub(crate) struct Nemesis {
    rng: StdRng,
    nodes: Vec<NodeId>,
    ills: BTreeMap<NodeId, Ills>,
    /// Links with a fault.
    links: BTreeMap<(NodeId, NodeId), ()>,
    undo: Vec<(Duration, Undo)>,
    next: Duration,
    next_command: Duration,
}

impl Nemesis {
    /// The first fault comes at `begin`.
    pub(crate) fn new(rng: StdRng, nodes: Vec<NodeId>, begin: Duration) -> Self {
        let ills = nodes.iter().map(|node| (*node, Ills::default())).collect();
        let (links, undo) = (BTreeMap::new(), Vec::new());
        Self { rng, nodes, ills, links, undo, next: begin, next_command: begin }
    }

    /// Lets what is due now happen. `calm`: nothing new.
    pub(crate) fn step(
        &mut self,
        at: Duration,
        sim: &mut Sim<'_>,
        world: &World,
        invariants: &mut Invariants,
        calm: bool,
    ) {
        self.bury(at, sim, world, invariants);
        let (due, later) = self.undo.iter().copied().partition(|(when, _)| *when <= at);
        self.undo = later;
        let due: Vec<(Duration, Undo)> = due;
        for (_, undo) in due {
            self.undo(at, undo, sim, world);
        }
        if calm {
            return;
        }
        if self.next <= at {
            self.strike(at, sim, world, invariants);
            self.next = at + self.span(BETWEEN);
        }
        if self.next_command <= at {
            self.command(world);
            self.next_command = at + self.span(BETWEEN_COMMANDS);
        }
    }

    /// Ends all faults at once.
    pub(crate) fn heal(&mut self, at: Duration, sim: &mut Sim<'_>, world: &World) {
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.undo(at, undo, sim, world);
        }
        for node in self.nodes.clone() {
            // Trouble that was ordered and has not come yet.
            world.machine(node, |machine| {
                machine.disk.no_trouble();
                machine.disk.fill(false);
            });
        }
        // The processes have to be running, and nobody expects a failure any longer.
        for node in self.nodes.clone() {
            if let Some(ills) = self.ills.get_mut(&node)
                && !ills.down
            {
                let failed = world.machine(node, |machine| machine.failed.is_some());
                if failed != Some(true) {
                    *ills = Ills::default();
                }
            }
        }
    }

    fn span(&mut self, ms: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(ms))
    }

    fn node(&mut self) -> NodeId {
        self.nodes.choose(&mut self.rng).copied().unwrap_or(1)
    }

    /// Ends processes that want to end, and those of machines that have stopped.
    fn bury(
        &mut self,
        at: Duration,
        sim: &mut Sim<'_>,
        world: &World,
        invariants: &mut Invariants,
    ) {
        for node in self.nodes.clone() {
            let failed = world.machine(node, |machine| machine.failed.clone()).flatten();
            let Some(failure) = failed else { continue };
            let ills = self.ills.get(&node).copied().unwrap_or_default();
            let excused = match &failure {
                Failure::Opening(ppsw_spool::log::LogError::Disk(_)) | Failure::Running(_) => {
                    ills.disk
                }
                Failure::Opening(_) => false,
            };
            if excused {
                world.ledger.trace(at, &format!("node {node} ends: {failure}"));
            } else {
                world
                    .ledger
                    .violation(at, &format!("node {node} ended without a fault: {failure}"));
            }
            let end = if ills.cut { End::PowerCut } else { End::Kill };
            let name = if ills.full {
                "full-disk-end"
            } else if ills.cut {
                "torn-write"
            } else {
                "disk-error"
            };
            self.stop(at, node, end, name, sim, world, invariants);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "what a fault is made of")]
    fn stop(
        &mut self,
        at: Duration,
        node: NodeId,
        end: End,
        name: &str,
        sim: &mut Sim<'_>,
        world: &World,
        invariants: &mut Invariants,
    ) {
        world.ledger.fault(at, fault(format!("{name} {node}"), at, Duration::ZERO));
        world.machine(node, |machine| machine.disk.stop());
        sim.crash(host(node));
        invariants.restarted(node);
        world.machine(node, |machine| {
            if end == End::PowerCut {
                machine.disk.power_cut();
            }
            machine.disk = machine.disk.next_life();
            machine.life = None;
            machine.failed = None;
            machine.commands.clear();
        });
        let full = self.ills.get(&node).is_some_and(|ills| ills.full);
        self.ills.insert(node, Ills { down: true, disk: full, full, cut: false });
        let down = if self.rng.random_ratio(1, 4) { 3_000..9_000 } else { 100..2_500 };
        let back = at + self.span(down);
        self.undo.push((back, Undo::Start(node)));
    }

    fn strike(
        &mut self,
        at: Duration,
        sim: &mut Sim<'_>,
        world: &World,
        invariants: &mut Invariants,
    ) {
        let node = self.node();
        let ills = self.ills.get(&node).copied().unwrap_or_default();
        match self.rng.random_range(0..100) {
            0..12 if !ills.down => self.stop(at, node, End::Kill, "kill", sim, world, invariants),
            12..24 if !ills.down => {
                self.stop(at, node, End::PowerCut, "power-cut", sim, world, invariants);
            }
            24..32 => {
                for node in self.nodes.clone() {
                    if self.ills.get(&node).is_some_and(|ills| !ills.down) {
                        self.stop(at, node, End::PowerCut, "power-cut", sim, world, invariants);
                    }
                }
            }
            32..42 if !ills.down => self.disk_trouble(at, node, Trouble::Stop, world),
            42..50 if !ills.down => self.disk_trouble(at, node, Trouble::Error, world),
            50..72 => self.separate(at, node, sim, world),
            72..80 => self.slow_link(at, node, sim, world),
            80..86 => self.slow_disk(at, node, world),
            86..92 => self.full_disk(at, node, world),
            92..100 => self.wrong_clock(at, node, world),
            _ => {}
        }
    }

    fn disk_trouble(&mut self, at: Duration, node: NodeId, trouble: Trouble, world: &World) {
        let after = self.rng.random_range(1..120);
        let cut = matches!(trouble, Trouble::Stop) && self.rng.random_ratio(3, 4);
        world.machine(node, |machine| machine.disk.trouble(after, trouble));
        if let Some(ills) = self.ills.get_mut(&node) {
            (ills.disk, ills.cut) = (true, cut);
        }
        world.ledger.trace(at, &format!("{trouble:?} is ordered for node {node} after {after}"));
    }

    /// Partitions: one node from all, or from one; both ways or one way; messages lost, or held back.
    fn separate(&mut self, at: Duration, node: NodeId, sim: &Sim<'_>, world: &World) {
        let mut others: Vec<NodeId> =
            self.nodes.iter().copied().filter(|other| *other != node).collect();
        if self.rng.random_ratio(1, 4) {
            others = others.choose(&mut self.rng).copied().into_iter().collect();
        }
        let kind = self.rng.random_range(0..10);
        let lasts = self.span(400..9_000);
        let name = match kind {
            0..5 => "partition",
            5..7 => "one-way-out",
            7..9 => "one-way-in",
            _ => "held-messages",
        };
        let mut any = false;
        for other in others {
            let pair = (node.min(other), node.max(other));
            if self.links.insert(pair, ()).is_some() {
                continue;
            }
            any = true;
            let undo = match kind {
                0..5 => {
                    sim.partition(host(node), host(other));
                    Undo::Repair(node, other)
                }
                5..7 => {
                    sim.partition_oneway(host(node), host(other));
                    Undo::RepairOneWay(node, other)
                }
                7..9 => {
                    sim.partition_oneway(host(other), host(node));
                    Undo::RepairOneWay(other, node)
                }
                _ => {
                    sim.hold(host(node), host(other));
                    Undo::Repair(node, other)
                }
            };
            self.undo.push((at + lasts, undo));
        }
        if any {
            world.ledger.fault(at, fault(format!("{name} {node}"), at, lasts));
        }
    }

    fn slow_link(&mut self, at: Duration, node: NodeId, sim: &Sim<'_>, world: &World) {
        let other = self.node();
        if other == node {
            return;
        }
        let (delay, lasts) = (self.span(50..700), self.span(1_000..8_000));
        sim.set_link_max_message_latency(host(node), host(other), delay);
        self.undo.push((at + lasts, Undo::Latency(node, other)));
        world.ledger.fault(at, fault(format!("slow-link {node} {other}"), at, lasts));
    }

    fn slow_disk(&mut self, at: Duration, node: NodeId, world: &World) {
        let (delay, lasts) = (self.rng.random_range(50..1_500), self.span(1_000..8_000));
        world.machine(node, |machine| machine.disk_latency.store(delay, Ordering::Relaxed));
        self.undo.push((at + lasts, Undo::Disk(node)));
        world.ledger.fault(at, fault(format!("slow-disk {node}"), at, lasts));
    }

    fn full_disk(&mut self, at: Duration, node: NodeId, world: &World) {
        let lasts = self.span(1_000..6_000);
        world.machine(node, |machine| machine.disk.fill(true));
        if let Some(ills) = self.ills.get_mut(&node) {
            (ills.disk, ills.full) = (true, true);
        }
        self.undo.push((at + lasts, Undo::Space(node)));
        world.ledger.fault(at, fault(format!("full-disk {node}"), at, lasts));
    }

    fn wrong_clock(&mut self, at: Duration, node: NodeId, world: &World) {
        let off = self.rng.random_range(-20_000..20_000);
        let lasts = self.span(1_000..12_000);
        world.machine(node, |machine| machine.clock_off.store(off, Ordering::Relaxed));
        self.undo.push((at + lasts, Undo::Clock(node)));
        world.ledger.fault(at, fault(format!("clock-jump {node}"), at, lasts));
    }

    fn undo(&mut self, at: Duration, undo: Undo, sim: &mut Sim<'_>, world: &World) {
        world.ledger.trace(at, &format!("{undo:?}"));
        match undo {
            Undo::Start(node) => {
                if let Some(ills) = self.ills.get_mut(&node) {
                    ills.down = false;
                }
                sim.bounce(host(node));
            }
            Undo::Repair(a, b) => {
                sim.release(host(a), host(b));
                sim.repair(host(a), host(b));
                self.links.remove(&(a.min(b), a.max(b)));
            }
            Undo::RepairOneWay(from, to) => {
                sim.repair_oneway(host(from), host(to));
                self.links.remove(&(from.min(to), from.max(to)));
            }
            Undo::Latency(a, b) => {
                sim.set_link_max_message_latency(host(a), host(b), super::cluster::LATENCY_MAX);
            }
            Undo::Disk(node) => {
                world.machine(node, |machine| machine.disk_latency.store(0, Ordering::Relaxed));
            }
            Undo::Space(node) => {
                world.machine(node, |machine| machine.disk.fill(false));
                if let Some(ills) = self.ills.get_mut(&node) {
                    ills.full = false;
                }
            }
            Undo::Clock(node) => {
                world.machine(node, |machine| machine.clock_off.store(0, Ordering::Relaxed));
            }
        }
    }

    /// What operators and the control plane ask for while the faults go on.
    fn command(&mut self, world: &World) {
        let node = self.node();
        let carried: Vec<PartitionId> = world
            .placement
            .iter()
            .filter(|(_, voters)| voters.contains(&node))
            .map(|(partition, _)| *partition)
            .collect();
        let Some(partition) = carried.choose(&mut self.rng).copied() else { return };
        let voters = world.placement.get(&partition).cloned().unwrap_or_default();
        let to = voters.choose(&mut self.rng).copied().unwrap_or(node);
        let command = match self.rng.random_range(0..10) {
            0..2 => Command::HandOver {
                partition,
                to: if self.rng.random() { u64::from(partition) } else { to },
            },
            2..7 => Command::Checkpoint { partition },
            _ => Command::Carry { partition },
        };
        world.machine(node, |machine| machine.commands.push_back(command));
    }
}

fn fault(name: String, begin: Duration, lasts: Duration) -> Fault {
    Fault { name, begin, end: begin + lasts, excuses_duplicates: true }
}
