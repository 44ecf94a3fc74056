//! A simulated node: the real log, groups and queue of `spool`, on a simulated disk, clock and network, with
//! clients and a deliverer in place of the SMTP front end and deliverer.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ppsw_spool::{
    NodeId, PartitionId,
    env::{Clock, UnixMs, sim::SimDisk},
    group::{Groups, Timing},
    log::{Driver, Log, LogError, Options},
    queue::{MessageId, Spool},
};
use rand::Rng as _;
use tokio::time::sleep;

use super::{
    client, deliverer,
    ledger::Ledger,
    network::{self, Dialer, RAFT_PORT},
};

/// When the simulation begins, for wall clocks.
pub(crate) const EPOCH_MS: u64 = 1_700_000_000_000;

/// Small, so that segments are begun and recycled all the time.
const SEGMENT_BYTES: u64 = 512 * 1024;

/// Clients that each node has.
const CLIENTS: u32 = 3;

/// What an operator, or the control plane, asks a node to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    /// Hand a partition over in an orderly way.
    HandOver { partition: PartitionId, to: NodeId },
    /// Take a checkpoint of a partition, and drop the log before it.
    Checkpoint { partition: PartitionId },
    /// Write the oldest message of a partition again.
    Carry { partition: PartitionId },
}

/// What belongs to a node's machine: it outlives the process.
pub(crate) struct Machine {
    pub(crate) node: NodeId,
    /// The disk as the present process sees it.
    pub(crate) disk: SimDisk,
    /// Wall clock minus true time, in milliseconds.
    pub(crate) clock_off: Arc<AtomicI64>,
    /// Longest time that a write takes, in milliseconds.
    pub(crate) disk_latency: Arc<AtomicU64>,
    pub(crate) cache_bytes: usize,
    pub(crate) commands: VecDeque<Command>,
    /// The process, if one runs.
    pub(crate) life: Option<Life>,
    /// Why the process wants to end.
    pub(crate) failed: Option<Failure>,
}

/// Why a process ended by itself.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The log could not be opened.
    #[error("opening: {0}")]
    Opening(LogError),
    /// Log or group failed later.
    #[error("{0}")]
    Running(String),
}

/// A running process, as the invariants look at it.
#[derive(Clone)]
pub(crate) struct Life {
    pub(crate) spool: Spool,
    pub(crate) log: Log,
}

/// What all of a simulation shares.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) ledger: Ledger,
    pub(crate) placement: Arc<BTreeMap<PartitionId, Vec<NodeId>>>,
    /// No more faults: sinks take everything, clients stop.
    pub(crate) calm: Arc<AtomicBool>,
    machines: Arc<Mutex<BTreeMap<NodeId, Machine>>>,
}

impl World {
    pub(crate) fn new(
        ledger: Ledger,
        placement: BTreeMap<PartitionId, Vec<NodeId>>,
        machines: BTreeMap<NodeId, Machine>,
    ) -> Self {
        Self {
            ledger,
            placement: Arc::new(placement),
            calm: Arc::default(),
            machines: Arc::new(Mutex::new(machines)),
        }
    }

    pub(crate) fn machines(&self) -> MutexGuard<'_, BTreeMap<NodeId, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with a node's machine.
    pub(crate) fn machine<T>(
        &self,
        node: NodeId,
        does: impl FnOnce(&mut Machine) -> T,
    ) -> Option<T> {
        self.machines().get_mut(&node).map(does)
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }
}

/// One process of a node, as its tasks see it.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) world: World,
    pub(crate) node: NodeId,
    pub(crate) spool: Spool,
    pub(crate) clock: Arc<SimClock>,
    /// Messages that are being delivered by this process.
    in_flight: Arc<Mutex<BTreeSet<(PartitionId, MessageId)>>>,
}

impl Process {
    /// Messages in flight, of all partitions.
    pub(crate) fn in_flight(&self) -> MutexGuard<'_, BTreeSet<(PartitionId, MessageId)>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_flight_of(&self, partition: PartitionId) -> usize {
        self.in_flight().iter().filter(|(of, _)| *of == partition).count()
    }
}

/// Virtual time, with a wall clock that may be wrong.
pub(crate) struct SimClock {
    off: Arc<AtomicI64>,
}

impl Clock for SimClock {
    fn now(&self) -> UnixMs {
        let true_ms = u64::try_from(now().as_millis()).unwrap_or(u64::MAX);
        UnixMs((EPOCH_MS + true_ms).saturating_add_signed(self.off.load(Ordering::Relaxed)))
    }

    fn instant(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// True time since the simulation began; only on a simulated host.
pub(crate) fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// Sleeps for a random time, in milliseconds.
pub(crate) async fn pause(ms: std::ops::Range<u64>) {
    let ms = rand::rng().random_range(ms);
    sleep(Duration::from_millis(ms)).await;
}

/// Runs a node's process until the host crashes.
pub(crate) async fn run(world: World, node: NodeId) -> turmoil::Result {
    let failure = match live(&world, node).await {
        Ok(why) => Failure::Running(why),
        Err(error) => Failure::Opening(error),
    };
    world.machine(node, |machine| machine.failed = Some(failure));
    // Whoever makes the faults sees it, ends this process for good, and starts the next.
    std::future::pending().await
}

/// Returns why the process has to end.
async fn live(world: &World, node: NodeId) -> Result<String, LogError> {
    let given = world.machine(node, |machine| {
        let Machine { disk, clock_off, disk_latency, cache_bytes, .. } = machine;
        (disk.clone(), Arc::clone(clock_off), Arc::clone(disk_latency), *cache_bytes)
    });
    let Some((disk, off, latency, cache_bytes)) = given else {
        return Err(LogError::Misuse(format!("no machine {node}")));
    };
    let options = Options { dir: PathBuf::from("/log"), segment_bytes: SEGMENT_BYTES, cache_bytes };
    let (log, driver) = open(&disk, &options).await?;
    tokio::spawn(driver.run(move || {
        let most = latency.load(Ordering::Relaxed).max(2);
        Duration::from_micros(rand::rng().random_range(200..most * 1000))
    }));
    let clock = Arc::new(SimClock { off });
    let groups = Groups::new(
        node,
        log.clone(),
        clock.clone(),
        Arc::new(Dialer::default()),
        Timing::default(),
    );
    let spool = Spool::new(node, groups.clone(), clock.clone());
    serve(&groups).await?;
    let in_flight = Arc::default();
    let process = Process { world: world.clone(), node, spool: spool.clone(), clock, in_flight };
    for (partition, voters) in world.placement.iter() {
        if !voters.contains(&node) {
            continue;
        }
        let opened = spool.open(*partition).await?;
        if u64::from(*partition) == node {
            // Done once ever; refused at every later start.
            let _ = opened.group().initialise(voters).await;
        }
    }
    world.machine(node, |machine| {
        machine.life = Some(Life { spool: spool.clone(), log: log.clone() });
    });
    for _ in 0..CLIENTS {
        tokio::spawn(client::run(process.clone()));
    }
    tokio::spawn(deliverer::serve(process.clone()));
    tokio::spawn(deliverer::run(process.clone()));
    tokio::spawn(obey(process));
    Ok(groups.failed().await)
}

/// Opens the log; on a full disk, when there is space.
async fn open(disk: &SimDisk, options: &Options) -> Result<(Log, Driver), LogError> {
    loop {
        match Log::open_driven(Arc::new(disk.clone()), options.clone()) {
            Err(LogError::NoSpace(_)) => sleep(Duration::from_millis(500)).await,
            opened => return opened,
        }
    }
}

async fn serve(groups: &Groups) -> Result<(), LogError> {
    let listener = network::listen(RAFT_PORT)
        .await
        .map_err(|e| LogError::Misuse(format!("listening: {e}")))?;
    let router = tonic::transport::Server::builder()
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(8 << 20)
        .add_routes(groups.service());
    tokio::spawn(network::serve(listener, router));
    Ok(())
}

/// Does what is asked, one after the other.
async fn obey(process: Process) {
    loop {
        sleep(Duration::from_millis(20)).await;
        let next = process.world.machine(process.node, |machine| machine.commands.pop_front());
        let Some(Some(command)) = next else { continue };
        obey_one(&process, command).await;
    }
}

async fn obey_one(process: &Process, command: Command) {
    const DEADLINE: Duration = Duration::from_secs(5);
    let partition = match command {
        Command::HandOver { partition, .. }
        | Command::Checkpoint { partition }
        | Command::Carry { partition } => partition,
    };
    let Some(partition) = process.spool.get(partition) else { return };
    match command {
        Command::HandOver { to, .. } => {
            if !partition.group().leads() {
                return;
            }
            partition.quiesce();
            // Attempts in flight end first, so that the successor need not wait the grace.
            for _ in 0..100 {
                if process.in_flight_of(partition.id()) == 0 {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
            if process.in_flight_of(partition.id()) > 0 {
                partition.resume();
                return;
            }
            let moved = partition.hand_over(to, DEADLINE).await;
            process.world.ledger.trace(now(), &format!("hand-over: {}", moved.is_ok()));
        }
        Command::Checkpoint { .. } => {
            let _ = partition.group().checkpoint().await;
        }
        Command::Carry { .. } => {
            if let Some(oldest) = partition.list().first().map(|message| message.id) {
                let carried = partition.carry(oldest, DEADLINE).await;
                process.world.ledger.trace(now(), &format!("carry: {}", carried.is_ok()));
            }
        }
    }
}
