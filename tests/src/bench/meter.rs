//! What a load costs: CPU time, writes, syncs, memory.

use std::{fs, time::Duration};

use super::Syncs;
use crate::process::cpu_time;

/// What the kernel counts CPU time in.
const TICK_MS: u64 = 10;
/// `/sys/block/*/stat` counts these, whatever the device has.
const SECTOR_BYTES: u64 = 512;

/// A measurement that goes on.
pub struct Meter<'a> {
    syncs: &'a Syncs,
    sink: Option<u32>,
    before: Reading,
}

/// What something cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// CPU time of the machine, less that of the load and of the sink.
    pub cpu: Duration,
    /// What block devices wrote, journals and logs included.
    pub written_bytes: u64,
    pub syncs: u64,
    /// Memory of the server's processes at the end, what they share counted once.
    pub memory_bytes: u64,
}

#[derive(Clone, Copy)]
struct Reading {
    busy: Duration,
    load: Duration,
    sink: Duration,
    written_bytes: u64,
    syncs: u64,
}

impl<'a> Meter<'a> {
    /// What others have in their buffers is written first.
    pub fn begin(sink: Option<u32>, syncs: &'a Syncs) -> Self {
        rustix::fs::sync();
        Self { syncs, sink, before: Reading::take(sink, syncs) }
    }

    /// `processes`: whose memory counts.
    pub fn end(self, processes: &[u32]) -> Cost {
        // CPU time first: what follows costs some.
        let busy = Reading::take(self.sink, self.syncs);
        rustix::fs::sync();
        let after = Reading::take(self.sink, self.syncs);
        let of = |reading: Reading| reading.busy.saturating_sub(reading.load + reading.sink);
        Cost {
            cpu: of(busy).saturating_sub(of(self.before)),
            written_bytes: after.written_bytes - self.before.written_bytes,
            syncs: busy.syncs - self.before.syncs,
            memory_bytes: memory_of(processes),
        }
    }
}

impl Reading {
    fn take(sink: Option<u32>, syncs: &Syncs) -> Self {
        Self {
            busy: busy(),
            load: own_time(),
            sink: sink.map(cpu_time).unwrap_or_default(),
            written_bytes: written_bytes(),
            syncs: syncs.count(),
        }
    }
}

/// Time that the CPUs of the machine have worked (proc_stat(5)): user, nice, system, interrupts.
fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .map(|n| n.parse().unwrap())
        .collect();
    Duration::from_millis((fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) * TICK_MS)
}

/// CPU time of this process and of those that it has started and waited for: the load.
fn own_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Fields 14 to 17 of proc_pid_stat(5); the first two are gone.
    let ticks: u64 = fields[11..15].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * TICK_MS)
}

/// What all disks of the machine have written.
fn written_bytes() -> u64 {
    let disks = fs::read_dir("/sys/block").unwrap().flatten().filter(|disk| {
        let name = disk.file_name();
        let name = name.to_string_lossy();
        // Those that stand for files, memory or other disks would count twice.
        !["loop", "ram", "zram", "dm-", "md"].iter().any(|kind| name.starts_with(kind))
    });
    let sectors = disks.filter_map(|disk| {
        let stat = fs::read_to_string(disk.path().join("stat")).ok()?;
        stat.split_whitespace().nth(6)?.parse::<u64>().ok()
    });
    sectors.sum::<u64>() * SECTOR_BYTES
}

/// Memory of processes, what they share counted once.
pub(super) fn memory_of(processes: &[u32]) -> u64 {
    processes.iter().copied().filter_map(memory).sum()
}

/// The proportional share of a process (proc_pid_smaps(5)).
fn memory(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find(|line| line.starts_with("Pss:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// A process and all that it has started.
pub(super) fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut known = 0;
    while known < family.len() {
        let parent = family[known];
        known += 1;
        let path = format!("/proc/{parent}/task/{parent}/children");
        let children = fs::read_to_string(path).unwrap_or_default();
        family.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    family
}
