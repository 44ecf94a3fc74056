//! Network namespaces: one for the harness with a bridge in it, one per node.
//!
//! Neighbour entries are permanent. A direction is cut by giving the sender a wrong hardware address for the
//! receiver, so that packets vanish silently, as on a broken switch; no packet filter is needed in the kernel.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Output},
};

use super::HarnessError;

/// Node namespaces that are made: the largest cluster.
pub(super) const NODES_MAX: u16 = 5;
/// Where namespaces have their names.
const NAMES: &str = "/run/netns";
const PREFIX: &str = "ppsw-chaos-";
/// The address of nobody.
const NOWHERE: &str = "02:00:00:00:de:ad";

/// The namespaces of one harness, by the process id of its supervisor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network {
    pid: u32,
}

/// The address of the harness: clients and sinks.
pub(super) fn harness(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 99, 0, 254), port))
}

/// An address of a node.
pub(super) fn node(node: u16, port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 99, 0, u8::try_from(node).unwrap_or(u8::MAX)), port))
}

/// Whose address it is, if it is a node's.
pub(super) fn node_of(address: SocketAddr) -> Option<u16> {
    match address {
        SocketAddr::V4(v4) => {
            Some(u16::from(v4.ip().octets()[3])).filter(|node| *node <= NODES_MAX)
        }
        SocketAddr::V6(_) => None,
    }
}

impl Network {
    /// The names for this process id; makes nothing.
    pub(super) fn named(pid: u32) -> Self {
        Self { pid }
    }

    /// Makes the namespaces, their links and addresses.
    pub(super) fn create(self) -> Result<(), HarnessError> {
        remove_leftovers();
        let hub = self.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "set", "lo", "up"])?;
        ip(&["-n", &hub, "link", "add", "br0", "address", &hardware(254), "type", "bridge"])?;
        ip(&["-n", &hub, "address", "add", "10.99.0.254/24", "dev", "br0"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        for node in 1..=NODES_MAX {
            self.create_node(node)?;
        }
        for from in 1..=NODES_MAX {
            self.heal_all(from, NODES_MAX)?;
            self.neighbour(from, 254, &hardware(254))?;
            let address = format!("10.99.0.{from}");
            let lladdr = hardware(from);
            let entry =
                ["neigh", "replace", &address, "lladdr", &lladdr, "dev", "br0", "nud", "permanent"];
            ip(&[&["-n", &hub][..], &entry[..]].concat())?;
        }
        Ok(())
    }

    fn create_node(self, node: u16) -> Result<(), HarnessError> {
        let (hub, own) = (self.hub(), self.node(node));
        let port = format!("n{node}");
        ip(&["netns", "add", &own])?;
        ip(&["-n", &own, "link", "set", "lo", "up"])?;
        ip(&[
            "-n",
            &hub,
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "address",
            &hardware(node),
            "netns",
            &own,
        ])?;
        ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", &own, "address", "add", &format!("10.99.0.{node}/24"), "dev", "eth0"])?;
        ip(&["-n", &own, "link", "set", "eth0", "up"])?;
        Ok(())
    }

    /// Packets from one node to another vanish from now on.
    pub(super) fn cut(self, from: u16, to: u16) -> Result<(), HarnessError> {
        self.neighbour(from, to, NOWHERE)
    }

    /// Packets arrive again.
    pub(super) fn heal(self, from: u16, to: u16) -> Result<(), HarnessError> {
        self.neighbour(from, to, &hardware(to))
    }

    /// Packets of a node arrive everywhere.
    pub(super) fn heal_all(self, from: u16, nodes: u16) -> Result<(), HarnessError> {
        (1..=nodes).filter(|to| *to != from).try_for_each(|to| self.heal(from, to))
    }

    fn neighbour(self, from: u16, to: u16, lladdr: &str) -> Result<(), HarnessError> {
        let (own, address) = (self.node(from), format!("10.99.0.{to}"));
        ip(&[
            "-n",
            &own,
            "neigh",
            "replace",
            &address,
            "lladdr",
            lladdr,
            "dev",
            "eth0",
            "nud",
            "permanent",
        ])
    }

    /// A command that runs in the namespace of the harness.
    pub(super) fn in_hub(self) -> Command {
        exec(&self.hub())
    }

    /// A command that runs in the namespace of a node, under the same process id.
    pub(super) fn in_node(self, node: u16) -> Command {
        exec(&self.node(node))
    }

    /// Ends what still runs in the namespaces and removes them. Failures are nobody's concern: it may be half made.
    pub(super) fn remove(self) {
        for name in (1..=NODES_MAX).map(|node| self.node(node)).chain([self.hub()]) {
            remove(&name);
        }
    }

    fn hub(self) -> String {
        format!("{PREFIX}{}-hub", self.pid)
    }

    fn node(self, node: u16) -> String {
        format!("{PREFIX}{}-{node}", self.pid)
    }
}

fn exec(name: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name]);
    command
}

fn hardware(last: u16) -> String {
    format!("02:00:00:00:00:{last:02x}")
}

/// Namespaces of harnesses that were killed before they could clean up.
fn remove_leftovers() {
    let Ok(names) = std::fs::read_dir(NAMES) else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}

fn remove(name: &str) {
    if !Path::new(NAMES).join(name).exists() {
        return;
    }
    if let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() {
        let pids = String::from_utf8_lossy(&output.stdout).into_owned();
        for pid in pids.lines().filter_map(|pid| pid.trim().parse().ok()) {
            super::process::signal(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = ip(&["netns", "del", name]);
}

fn ip(arguments: &[&str]) -> Result<(), HarnessError> {
    let failed = |reason| HarnessError::Network { command: arguments.join(" "), reason };
    let Output { status, stderr, .. } = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(|error| failed(format!("{error}; is iproute2 installed?")))?;
    if status.success() {
        return Ok(());
    }
    Err(failed(format!("{status}: {}", String::from_utf8_lossy(&stderr).trim())))
}
