//! Who listens where in a `dev` cluster, and the files that say so.
//!
//! Node N has the addresses `127.10.N.x`, services that belong to no node have `127.10.0.x`. Ports are given for
//! base port 2500 and move with it: `2525` is base port + 25.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Ports, as seen from the base port 2500.
const SMTP: u16 = 2525;
const LMTP: u16 = 2424;
const SUBMISSION: u16 = 2587;
const SUBMISSIONS: u16 = 2465;
const CONTROL: u16 = 2590;
const HTTP: u16 = 2580;
const DNS: u16 = 2553;
const AGENT: u16 = 2570;
const PROXY_MX: u16 = 3525;
const PROXY_SMART: u16 = 3526;
const PROXY_SUBMISSION: u16 = 3587;

/// Whence a balancer of a `dev` cluster connects.
const BALANCER: &str = "127.0.0.1/32";

/// The base port that the numbers above belong to.
pub(super) const BASE_PORT: u16 = 2500;
/// Base ports that keep every port between 1024 and 65535.
pub(super) const BASE_PORT_RANGE: std::ops::RangeInclusive<u16> = 1_100..=64_000;

/// A cluster as it is written to `DIR/dev.json`: what `--resume` must know again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Version of this file: 1.
    pub(super) version: u32,
    pub(super) nodes: u16,
    pub(super) base_port: u16,
    pub(super) accounts: Vec<Account>,
    #[serde(skip)]
    pub(super) dir: PathBuf,
}

/// A user who may submit mail.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) user: String,
    pub(super) password: String,
}

/// One node in `cluster.json`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeEntry {
    pub(super) id: u64,
    pub(super) pid: u32,
    pub(super) control: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) mx: SocketAddr,
    pub(super) smart: SocketAddr,
    pub(super) submission: SocketAddr,
    pub(super) submissions: SocketAddr,
    /// For programs of the node itself.
    #[serde(skip)]
    pub(super) local: SocketAddr,
    pub(super) proxy: Service,
    pub(super) agent: SocketAddr,
}

/// An address for each personality.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Service {
    mx: SocketAddr,
    smart: SocketAddr,
    submission: SocketAddr,
}

#[derive(Debug, Serialize)]
struct SinkEntry {
    smtp: SocketAddr,
    lmtp: SocketAddr,
    maildir: PathBuf,
    pid: u32,
}

#[derive(Debug, Serialize)]
struct ClusterFile<'a> {
    nodes: &'a [NodeEntry],
    service: Service,
    sink: SinkEntry,
    dns: SocketAddr,
    credentials: PathBuf,
    viewer: PathBuf,
    accounts: &'a [Account],
}

impl Plan {
    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.dir.join(below)
    }

    pub(super) fn node_dir(&self, node: u16) -> PathBuf {
        self.dir.join(format!("node-{node}"))
    }

    pub(super) fn control(&self, node: u16) -> SocketAddr {
        self.address(node, 9, CONTROL)
    }

    pub(super) fn http(&self, node: u16) -> SocketAddr {
        self.address(node, 9, HTTP)
    }

    pub(super) fn dns(&self) -> SocketAddr {
        self.address(0, 1, DNS)
    }

    pub(super) fn sink_smtp(&self) -> SocketAddr {
        self.address(0, 1, SMTP)
    }

    pub(super) fn sink_lmtp(&self) -> SocketAddr {
        self.address(0, 1, LMTP)
    }

    /// The row of a node in `cluster.json`.
    pub(super) fn entry(&self, node: u16, pid: u32) -> NodeEntry {
        NodeEntry {
            id: u64::from(node),
            pid,
            control: self.control(node),
            http: self.http(node),
            mx: self.address(node, 1, SMTP),
            smart: self.address(node, 2, SMTP),
            submission: self.address(node, 3, SUBMISSION),
            submissions: self.address(node, 3, SUBMISSIONS),
            local: self.address(node, 9, SMTP),
            proxy: Service {
                mx: self.address(node, 9, PROXY_MX),
                smart: self.address(node, 9, PROXY_SMART),
                submission: self.address(node, 9, PROXY_SUBMISSION),
            },
            agent: self.address(node, 9, AGENT),
        }
    }

    /// `cluster.json`, which says that the cluster is ready and how to reach it.
    pub(super) fn cluster_file(
        &self,
        nodes: &[NodeEntry],
        sink_pid: u32,
    ) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(&ClusterFile {
            nodes,
            service: Service {
                mx: self.address(0, 11, SMTP),
                smart: self.address(0, 12, SMTP),
                submission: self.address(0, 13, SUBMISSION),
            },
            sink: SinkEntry {
                smtp: self.sink_smtp(),
                lmtp: self.sink_lmtp(),
                maildir: self.path("sink"),
                pid: sink_pid,
            },
            dns: self.dns(),
            credentials: self.path("admin"),
            viewer: self.path("viewer"),
            accounts: &self.accounts,
        })
    }

    /// `ppswd.toml` of a node.
    pub(super) fn node_file(&self, node: u16) -> Result<String, toml::ser::Error> {
        let dir = self.node_dir(node);
        let entry = self.entry(node, 0);
        let listener = |service, address| Listener { service, address, proxy_from: Vec::new() };
        let proxied = |service, address| Listener { service, address, proxy_from: vec![BALANCER] };
        toml::to_string(&NodeFile {
            name: &format!("node-{node}"),
            data: &dir.join("data"),
            log: &dir.join("log"),
            config: &self.path("config"),
            certificates: &self.path("certs"),
            control: entry.control,
            http: entry.http,
            agent: entry.agent,
            dns: vec![self.dns()],
            local_smtp: entry.local,
            threads: self.threads(),
            // No balancer looks, unless a test has one.
            drain_notice: "0s",
            listener: vec![
                listener("smtp", entry.mx),
                listener("smtp", entry.smart),
                listener("submission", entry.submission),
                listener("submissions", entry.submissions),
                listener("smtp", entry.local),
                proxied("smtp", entry.proxy.mx),
                proxied("smtp", entry.proxy.smart),
                proxied("submission", entry.proxy.submission),
            ],
        })
    }

    /// The nodes share the processors: with as many threads for each as the machine has, they take them from each other.
    fn threads(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        (processors / usize::from(self.nodes.max(1))).max(1)
    }

    /// The zone files that a new cluster begins with: name of the zone and text.
    pub(super) fn zone_files(&self) -> Vec<(&'static str, String)> {
        let sink = self.sink_smtp().ip();
        let list = |last: u8| -> String {
            (1..=self.nodes)
                .map(|node| format!(" A {}\n", self.address(node, last, SMTP).ip()))
                .collect()
        };
        let head = "$TTL 5\n@ SOA ns.example.org. postmaster.example.org. 1 60 60 60 5\n@ NS ns.example.org.\n";
        vec![
            (
                "example.org",
                format!(
                    "; The outside world. All its mail goes to the sink.\n{head}@ MX 10 sink\nsink A {sink}\n\
                     ns A {sink}\n; A name without any record: below it is one, so that it exists.\n\
                     nothing.nomx TXT \"nomx.example.org exists and has no record\"\n"
                ),
            ),
            (
                "broken.example.org",
                "; This file can't be parsed, so every question about the zone is answered SERVFAIL.\n@ BROKEN\n"
                    .to_owned(),
            ),
            (
                "bl.example",
                format!(
                    "; A DNS list (RFC 5782): of addresses, and of domains.\n{head}\
                     66.66.200.127 A 127.0.0.2\n\
                     66.66.200.127 TXT \"127.200.66.66 is listed for testing\"\n\
                     2.0.0.127 A 127.0.0.2\n2.0.0.127 TXT \"the test entry\"\n"
                ),
            ),
            (
                "cam.ac.uk",
                format!(
                    "; The organisation. Servers of departments are all the sink.\n{head}\
                     @ MX 10 mx\nhermes MX 10 mx\nlists MX 10 mx\nbotolph MX 10 mx\nppsw MX 10 ppsw\n\
                     mx{}ppsw{}smtp.hermes{}*.csi A {sink}\n*.private A {sink}\n*.csi.private A {sink}\n",
                    list(1),
                    list(2),
                    list(3),
                ),
            ),
        ]
    }

    fn address(&self, node: u16, last: u8, port: u16) -> SocketAddr {
        let third = u8::try_from(node).unwrap_or(u8::MAX);
        let port = self.base_port.wrapping_add(port).wrapping_sub(BASE_PORT);
        SocketAddr::from((Ipv4Addr::new(127, 10, third, last), port))
    }
}

#[derive(Serialize)]
struct NodeFile<'a> {
    name: &'a str,
    data: &'a Path,
    log: &'a Path,
    config: &'a Path,
    certificates: &'a Path,
    control: SocketAddr,
    http: SocketAddr,
    agent: SocketAddr,
    dns: Vec<SocketAddr>,
    local_smtp: SocketAddr,
    threads: usize,
    drain_notice: &'a str,
    listener: Vec<Listener>,
}

#[derive(Serialize)]
struct Listener {
    service: &'static str,
    address: SocketAddr,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    proxy_from: Vec<&'static str>,
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test\'s own files")]
mod tests {
    use super::*;

    fn plan(base_port: u16) -> Plan {
        let accounts = vec![Account { user: "spqr1".to_owned(), password: "secret".to_owned() }];
        Plan { version: 1, nodes: 3, base_port, accounts, dir: PathBuf::from("/d") }
    }

    #[test]
    fn cluster_file_has_the_agreed_form() {
        let plan = plan(2500);
        let nodes = [plan.entry(1, 4242)];
        let json: serde_json::Value =
            serde_json::from_slice(&plan.cluster_file(&nodes, 4250).unwrap()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "nodes": [{ "id": 1, "pid": 4242, "control": "127.10.1.9:2590", "http": "127.10.1.9:2580",
                    "mx": "127.10.1.1:2525", "smart": "127.10.1.2:2525",
                    "submission": "127.10.1.3:2587", "submissions": "127.10.1.3:2465",
                    "proxy": { "mx": "127.10.1.9:3525", "smart": "127.10.1.9:3526",
                        "submission": "127.10.1.9:3587" },
                    "agent": "127.10.1.9:2570" }],
                "service": { "mx": "127.10.0.11:2525", "smart": "127.10.0.12:2525",
                    "submission": "127.10.0.13:2587" },
                "sink": { "smtp": "127.10.0.1:2525", "lmtp": "127.10.0.1:2424", "maildir": "/d/sink", "pid": 4250 },
                "dns": "127.10.0.1:2553", "credentials": "/d/admin", "viewer": "/d/viewer",
                "accounts": [{ "user": "spqr1", "password": "secret" }]
            })
        );
    }

    #[test]
    fn ports_move_with_the_base_port() {
        let entry = plan(3500).entry(2, 0);
        assert_eq!(entry.submissions.to_string(), "127.10.2.3:3465");
        assert_eq!(plan(1_100).sink_lmtp().port(), 1_024);
        assert_eq!(plan(64_000).control(1).port(), 64_090);
    }

    #[test]
    fn zone_files_parse() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in plan(2500).zone_files() {
            std::fs::write(dir.path().join(format!("{name}.zone")), text).unwrap();
        }
        let (_, faults) = crate::dev::zones::Zones::load(dir.path()).unwrap();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains("broken.example.org.zone"), "{faults:?}");
    }
}
