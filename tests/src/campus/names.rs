//! The DNS: a Knot that is every server of the world.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use super::{Network, subdirectory};
use crate::process::Guard;

const KNOT: &str = "/usr/sbin/knotd";
/// The university's resolver.
pub(super) const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(131, 111, 8, 42));

/// The same as the golden cases see.
const WORLD: &str = include_str!("../../../node/src/policy/golden/world.zone");
/// A line that stands for a zone whose servers are broken.
const BROKEN: &str = "; SERVFAIL ";

/// The root, and what other hosts need to find their way: the cases know it from tables.
const AROUND: &str = "\
$TTL 60
. SOA ns.example. postmaster.example. 1 60 60 60 60
. NS ns.example.
ns.example. A 131.111.8.42
cam.ac.uk. MX 10 mx.cam.ac.uk.
hermes.cam.ac.uk. MX 10 mx.cam.ac.uk.
lists.cam.ac.uk. MX 10 mx.cam.ac.uk.
botolph.cam.ac.uk. MX 10 mx.cam.ac.uk.
ppsw.cam.ac.uk. MX 10 ppsw.cam.ac.uk.
ppsw.cam.ac.uk. A 131.111.8.130
smtp.hermes.cam.ac.uk. A 131.111.8.150
ppsw-1.csi.cam.ac.uk. A 131.111.8.99
1.113.0.203.in-addr.arpa. PTR mx.example.org.
; Nobody listens there.
dead.example.org. MX 10 gone.dead.example.org.
gone.dead.example.org. A 203.0.113.99
";

pub(super) struct NameServer {
    _knot: Guard,
}

impl NameServer {
    /// Starts it with the records of the golden cases and some more.
    pub(super) fn start(network: &Network, dir: &Path, more: &str) -> Self {
        assert!(Path::new(KNOT).exists(), "{KNOT} is missing: tests/run installs knot");
        std::fs::write(dir.join("root.zone"), format!("{AROUND}{WORLD}{more}")).unwrap();
        // A zone without its file is answered SERVFAIL. Knot starts with none of them if one is there twice.
        let lines = WORLD.lines().chain(more.lines());
        let broken: BTreeSet<&str> = lines.filter_map(|line| line.strip_prefix(BROKEN)).collect();
        let broken: String =
            broken.iter().map(|name| format!("  - domain: {name}\n    file: none\n")).collect();
        let here = dir.display();
        subdirectory(dir, "run");
        let conf = format!(
            "server:\n    rundir: {here}/run\n    listen: {ADDRESS}@53\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ndatabase:\n    storage: {here}/run\n    journal-db-max-size: 16M\nlog:\n  - target: stderr\n    \
             any: info\ntemplate:\n  - id: default\n    storage: {here}\n    journal-content: none\n    zonefile-sync: -1\n    \
             semantic-checks: off\nzone:\n  - domain: .\n    file: root.zone\n{broken}"
        );
        std::fs::write(dir.join("knot.conf"), conf).unwrap();
        let mut command = network.command(KNOT);
        let log = dir.join("log");
        let knot = Guard::spawn(command.arg("-c").arg(dir.join("knot.conf")), &log);
        network.wait_for_listener(SocketAddr::new(ADDRESS, 53), &log);
        Self { _knot: knot }
    }
}
