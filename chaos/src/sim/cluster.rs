//! One simulation: the nodes, their network, the faults of a seed, and what is checked meanwhile and at the end.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, UNIX_EPOCH},
};

use ppsw_spool::{
    NodeId, PartitionId,
    env::sim::{Lies, SimDisk},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use turmoil::{Builder, Sim};

use super::{
    Outcome,
    invariants::Invariants,
    ledger::Ledger,
    nemesis::Nemesis,
    network::host,
    node::{self, EPOCH_MS, Life, Machine, World},
};

/// Time passes in steps of this length.
const TICK: Duration = Duration::from_millis(2);

/// Longest way of a message through a healthy network.
pub(crate) const LATENCY_MAX: Duration = Duration::from_millis(8);

/// Before the first fault: leaders are elected.
const QUIET: Duration = Duration::from_secs(3);

/// After the last fault everything has to be delivered within this: twice the grace after a takeover, and the longest
/// time until a next attempt.
const DRAIN_MAX: Duration = Duration::from_secs(120);

/// Steps between two looks at who leads, and between two comparisons of logs.
const LOOK_STEPS: u64 = 2;
const COMPARE_STEPS: u64 = 20;

/// Runs one seed.
pub(crate) fn simulate(seed: u64) -> Outcome {
    let mut rng = StdRng::seed_from_u64(seed);
    let nodes: Vec<NodeId> = (1..=if rng.random_ratio(1, 5) { 5 } else { 3 }).collect();
    let faults_for = Duration::from_secs(rng.random_range(15..40));
    let world = world(&mut rng, &nodes);
    let mut sim = Builder::new()
        .epoch(UNIX_EPOCH + Duration::from_millis(EPOCH_MS))
        .simulation_duration(Duration::from_secs(3600))
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(LATENCY_MAX)
        .tcp_capacity(4096)
        .enable_random_order()
        .rng_seed(rng.random())
        .build();
    for node in &nodes {
        let (world, node) = (world.clone(), *node);
        sim.host(host(node), move || node::run(world.clone(), node));
    }
    let mut run = Run {
        nemesis: Nemesis::new(StdRng::seed_from_u64(rng.random()), nodes.clone(), QUIET),
        invariants: Invariants::default(),
        world,
        nodes,
        steps: 0,
    };
    let failed = run.run(&mut sim, faults_for).err();
    let ledger = run.world.ledger.clone();
    if let Some(error) = failed {
        ledger.violation(sim.elapsed(), &format!("the simulation failed: {error}"));
    }
    let (elections, forwarded) = ledger.figures();
    Outcome {
        seed,
        faults: ledger.faults(),
        verdict: ledger.verdict(),
        pause_ms: u64::try_from(ledger.pause().as_millis()).unwrap_or(u64::MAX),
        trace: format!("{:016x}", ledger.trace_hash()),
        simulated_ms: u64::try_from(sim.elapsed().as_millis()).unwrap_or(u64::MAX),
        elections,
        forwarded,
        committed: run.invariants.committed(),
    }
}

fn world(rng: &mut StdRng, nodes: &[NodeId]) -> World {
    let mut placement: BTreeMap<PartitionId, Vec<NodeId>> = BTreeMap::new();
    for (at, node) in nodes.iter().enumerate() {
        // The home node and the next two of the ring.
        let voters = nodes.iter().cycle().skip(at).take(3).copied().collect();
        placement.insert(u32::try_from(*node).unwrap_or_default(), voters);
    }
    let machines = nodes.iter().map(|node| {
        let machine = Machine {
            node: *node,
            disk: SimDisk::new(rng.random(), Lies::default()),
            clock_off: Arc::default(),
            disk_latency: Arc::default(),
            cache_bytes: if rng.random() { 64 * 1024 } else { 16 * 1024 * 1024 },
            commands: Default::default(),
            life: None,
            failed: None,
        };
        (*node, machine)
    });
    World::new(Ledger::default(), placement, machines.collect())
}

struct Run {
    nemesis: Nemesis,
    invariants: Invariants,
    world: World,
    nodes: Vec<NodeId>,
    steps: u64,
}

impl Run {
    fn run(&mut self, sim: &mut Sim<'_>, faults_for: Duration) -> turmoil::Result {
        let calm_from = QUIET + faults_for;
        while sim.elapsed() < calm_from {
            self.step(sim, false)?;
        }
        self.world.calm.store(true, Ordering::Relaxed);
        self.nemesis.heal(sim.elapsed(), sim, &self.world);
        let end = sim.elapsed() + DRAIN_MAX;
        let mut left = None;
        while sim.elapsed() < end {
            self.step(sim, true)?;
            if self.steps.is_multiple_of(250) {
                left = self.left();
                // Followers, too: their state is the leader's.
                if left == Some(0) && self.world.ledger.missing() == 0 {
                    break;
                }
            }
        }
        self.world.ledger.left(left);
        if left != Some(0) {
            self.describe(sim.elapsed());
        }
        Ok(())
    }

    /// What a queue that does not drain looks like.
    fn describe(&self, at: Duration) {
        let mut lines = Vec::new();
        for machine in self.world.machines().values() {
            let Some(life) = &machine.life else {
                lines.push(format!("not drained: node {} does not run", machine.node));
                continue;
            };
            for partition in life.spool.partitions() {
                if partition.is_empty() {
                    continue;
                }
                let status = partition.group().status();
                lines.push(format!(
                    "not drained: node {} has {} messages of partition {}; term {}, leader {:?}, last {:?}, \
                     applied {:?}, purged {:?}, matched {:?}; oldest {:?}",
                    machine.node,
                    partition.len(),
                    partition.id(),
                    status.term,
                    status.leader,
                    status.last_index,
                    status.applied_index,
                    status.purged_index,
                    status.matched,
                    partition.list().first().map(|message| (message.id, message.not_before, message.recipients.clone())),
                ));
            }
        }
        for line in lines {
            self.world.ledger.violation(at, &line);
        }
    }

    fn step(&mut self, sim: &mut Sim<'_>, calm: bool) -> turmoil::Result {
        sim.step()?;
        self.steps += 1;
        let at = sim.elapsed();
        if self.steps.is_multiple_of(LOOK_STEPS) {
            self.look(at);
        }
        self.nemesis.step(at, sim, &self.world, &mut self.invariants, calm);
        Ok(())
    }

    /// Checks the invariants.
    fn look(&mut self, at: Duration) {
        let lives: Vec<(NodeId, Life)> = self
            .world
            .machines()
            .values()
            .filter(|machine| machine.failed.is_none())
            .filter_map(|machine| Some((machine.node, machine.life.clone()?)))
            .collect();
        let compares = self.steps.is_multiple_of(COMPARE_STEPS);
        for (node, life) in &lives {
            self.invariants.look(at, *node, life, &self.world.ledger);
            if compares {
                self.invariants.compare(at, *node, life, &self.world.ledger);
            }
        }
    }

    /// Messages in any replica of any partition; `None` while a node is down.
    fn left(&self) -> Option<u64> {
        let machines = self.world.machines();
        let mut left = 0;
        for node in &self.nodes {
            let life = machines.get(node)?.life.as_ref()?;
            left += life.spool.partitions().iter().map(|p| p.len() as u64).sum::<u64>();
        }
        Some(left)
    }
}
