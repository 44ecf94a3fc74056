//! ppswitch under load.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use rustix::process::Signal;

use super::{Content, DOMAIN, Load, Sender, Server, Syncs, meter::family};
use crate::{
    client::Client,
    cluster::{Cluster, Node, PATIENCE},
    hops, process, wait_for,
};

/// The destination of what fills the queue.
const FULL: &str = "full.example.org";
const BASE_PORT: u16 = 5_500;
/// What a node has written when its log, which has 1 GiB of files (`log_floor`), has been through them.
const AGED_BYTES: f64 = 1.5 * (1 << 30) as f64;
/// Messages of 64 KiB until their files can be used again: a quarter of that.
const AGED_AT_ONCE: usize = 4_000;
/// Time for a million messages to be looked at.
const FILLED: Duration = Duration::from_secs(900);
/// So long the nodes have hardly anything to do: all wait.
const SETTLED: Duration = Duration::from_secs(5);

/// A cluster, which runs as long as this is there: nodes that have nothing to do cost the others a hundredth of a core.
pub struct Nodes {
    cluster: Cluster,
    count: usize,
    delivers: bool,
    /// Recipients that had been delivered, and messages that had been taken, when the run began.
    before: (f64, f64),
}

impl Nodes {
    /// Starts a cluster whose sink's place is free.
    pub fn start(count: usize, syncs: &Syncs) -> Self {
        let environment = syncs.environment();
        let nodes = count.to_string();
        let mut cluster = Cluster::start_under(BASE_PORT, &["--nodes", &nodes], &environment);
        cluster.kill_sink();
        offer_tls(&cluster);
        Self { cluster, count, delivers: true, before: (0.0, 0.0) }
    }

    /// Puts so many messages of `bytes` into the queue, for a destination that nothing is sent to.
    pub fn fill(&mut self, messages: usize, bytes: usize) {
        hops::add_to_zone(&self.cluster, "full MX 10 sink.example.org.\n", "full");
        let domain = FULL;
        wait_for("the destination to be suspended", PATIENCE, || {
            let arguments = ["suspend", domain, "--for", "1d", "--reason", "measured"];
            (self.cluster.ctl(&arguments).0 == 0).then_some(())
        });
        let content = Content { bytes, recipients: 1, domain };
        let (sender, beside) = (Sender::Source, None);
        Load { sender, sessions: 60, messages, many: true, content, beside }.run(&self.addresses());
        // Each is looked at once, and waits then.
        let used = |nodes: &Self| -> Duration {
            nodes.processes().into_iter().map(process::cpu_time).sum()
        };
        wait_for("the messages to wait", FILLED, || {
            let before = used(self);
            std::thread::sleep(SETTLED);
            (used(self).saturating_sub(before) < SETTLED / 5).then_some(())
        });
    }

    /// Takes out of the queue what `fill` has put into it.
    pub fn clear(&self) {
        self.drop_all(FULL);
    }

    fn drop_all(&self, domain: &str) {
        wait_for("an empty queue", PATIENCE, || {
            let all = ["--domain", domain];
            self.cluster.ctl(&[&["queue", "drop", "--reason", "measured"], &all[..]].concat());
            let left = self.cluster.ctl_json(&[&["queue", "list"], &all[..]].concat());
            left.as_array()?.is_empty().then_some(())
        });
    }

    /// Loads the nodes until each has written all files that its log keeps, as one has that has run for a day: a sync into
    /// others costs more.
    pub fn age(&mut self) {
        self.begin(true);
        let content = Content { bytes: 64 << 10, recipients: 1, domain: DOMAIN };
        let (sender, beside, messages) = (Sender::Source, None, AGED_AT_ONCE);
        let written = |nodes: &Self, id| nodes.cluster.figure(id, "ppsw_log_bytes_total", "");
        while (1..=self.count as u64).any(|id| written(self, id).unwrap() < AGED_BYTES) {
            let load = Load { sender, sessions: 50, messages, many: true, content, beside };
            load.run(&self.addresses());
            // What is alive is kept, in a log that is longer then.
            self.end();
        }
    }

    /// Where it delivers to.
    pub fn sink(&self) -> SocketAddr {
        self.cluster.file.sink.smtp
    }

    fn sum(&self, name: &str, label: &str) -> f64 {
        (1..=self.count as u64).map(|id| self.cluster.figure(id, name, label).unwrap()).sum()
    }

    /// Recipients delivered, messages taken.
    fn figures(&self) -> (f64, f64) {
        let delivered = self.sum("ppsw_delivery_attempts_total", "result=\"delivered\"");
        (delivered, self.sum("ppsw_messages_accepted_total", ""))
    }

    fn let_go(&mut self, goes: bool) {
        if self.delivers == goes {
            return;
        }
        let path = self.cluster.dir().join("config/policy.kdl");
        let policy = std::fs::read_to_string(&path).unwrap();
        let (open, shut) = ("queue_only_load 10000", "queue_only_load 0");
        let (old, new) = if goes { (shut, open) } else { (open, shut) };
        assert_eq!(policy.matches(old).count(), 1, "{old} in the policy");
        std::fs::write(&path, policy.replace(old, new)).unwrap();
        self.cluster.apply_config();
        self.delivers = goes;
    }
}

/// The relay of a development cluster has no certificate; it gets that of submission.
fn offer_tls(cluster: &Cluster) {
    let certificates = cluster.dir().join("certs");
    for end in ["pem", "key"] {
        let of = |name: &str| certificates.join(format!("{name}.{end}"));
        std::fs::copy(of("smtp.hermes.cam.ac.uk"), of("ppsw.cam.ac.uk")).unwrap();
    }
    for node in &cluster.file.nodes {
        process::signal(node.pid, Signal::HUP);
        wait_for("TLS", PATIENCE, || {
            let mut client = Client::connect(node.smart).ok()?;
            client.ehlo().ok()?;
            client.start_tls().ok()
        });
    }
}

impl Server for Nodes {
    fn name(&self) -> String {
        match self.count {
            1 => "ppswitch, one node alone".to_owned(),
            count => format!("ppswitch, {count} nodes"),
        }
    }

    fn begin(&mut self, hold: bool) {
        self.let_go(!hold);
        self.before = self.figures();
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.cluster.file.nodes.iter().map(|node| node.smart).collect()
    }

    fn is_empty(&self) -> bool {
        let (delivered, taken) = self.figures();
        delivered - self.before.0 >= taken - self.before.1
    }

    fn logs(&self) -> Vec<PathBuf> {
        let of = |node: &Node| self.cluster.dir().join(format!("node-{}/log", node.id));
        let logs = self.cluster.file.nodes.iter().map(of);
        logs.flat_map(|log| [log.join("mainlog"), log.join("events.jsonl")]).collect()
    }

    fn processes(&self) -> Vec<u32> {
        self.cluster.file.nodes.iter().flat_map(|node| family(node.pid)).collect()
    }

    fn end(&mut self) {
        // What fills the queue stays.
        self.drop_all(DOMAIN);
    }
}
