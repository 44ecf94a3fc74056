//! A cluster of real processes, started by `ppswd dev`.

use std::{
    collections::HashMap,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    process::{self, Guard, program},
    sink::Maildir,
    wait_for,
};

/// Time for a cluster to start, or for a node to be ready again.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// `cluster.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct ClusterFile {
    pub nodes: Vec<Node>,
    pub service: Services,
    pub sink: Sink,
    pub dns: SocketAddr,
    pub accounts: Vec<Account>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    pub id: u64,
    pub pid: u32,
    pub control: SocketAddr,
    pub http: SocketAddr,
    pub mx: SocketAddr,
    pub smart: SocketAddr,
    pub submission: SocketAddr,
    pub submissions: SocketAddr,
    pub proxy: Services,
    pub agent: SocketAddr,
}

/// An address for each personality.
#[derive(Clone, Debug, Deserialize)]
pub struct Services {
    pub mx: SocketAddr,
    pub smart: SocketAddr,
    pub submission: SocketAddr,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Sink {
    pub smtp: SocketAddr,
    pub lmtp: SocketAddr,
    pub maildir: PathBuf,
    pub pid: u32,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Account {
    pub user: String,
    pub password: String,
}

/// A running cluster. Dropping it stops everything; its directory is kept if the test failed.
pub struct Cluster {
    pub file: ClusterFile,
    dir: Option<TempDir>,
    dev: Guard,
    /// Nodes and sinks that were started again by the test.
    again: Vec<Guard>,
    /// Directories of nodes whose number is another.
    places: HashMap<u64, u64>,
    /// Clusters share loopback addresses: one at a time on a machine.
    _lock: File,
}

impl Cluster {
    /// Starts three nodes; waits until all are ready.
    pub fn start(base_port: u16) -> Self {
        Self::start_with(base_port, &[])
    }

    /// The same with more arguments for `ppswd dev`.
    pub fn start_with(base_port: u16, arguments: &[&str]) -> Self {
        Self::start_under(base_port, arguments, &[])
    }

    /// The same with more in the environment of all its processes.
    pub fn start_under(
        base_port: u16,
        arguments: &[&str],
        environment: &[(&'static str, String)],
    ) -> Self {
        let lock = File::create(std::env::temp_dir().join("ppswitch-test-cluster.lock")).unwrap();
        lock.lock().unwrap();
        let dir = tempfile::Builder::new().prefix("ppswitch-test-").tempdir().unwrap();
        let base_port = base_port.to_string();
        let arguments = [&["--base-port", &base_port], arguments].concat();
        let (dev, file) = dev(&dir, &arguments, environment);
        Self { file, dir: Some(dir), dev, again: Vec::new(), places: HashMap::new(), _lock: lock }
    }

    /// Stops everything as Ctrl-C does, and starts the cluster again with `--resume`.
    pub fn resume(&mut self) {
        process::signal(self.dev.pid(), Signal::INT);
        self.dev.0.wait().unwrap();
        assert!(!self.dir().join("cluster.json").exists(), "cluster.json is left behind");
        (self.dev, self.file) = dev(self.dir.as_ref().unwrap(), &["--resume"], &[]);
    }

    /// Reads `cluster.json` again.
    pub fn look_again(&mut self) {
        self.file = read(&self.dir().join("cluster.json"));
    }

    /// `DIR` of `ppswd dev`.
    pub fn dir(&self) -> PathBuf {
        self.dir.as_ref().unwrap().path().join("cluster")
    }

    /// A node by its number, from 1.
    pub fn node(&self, id: u64) -> &Node {
        self.file.nodes.iter().find(|node| node.id == id).unwrap()
    }

    pub fn password(&self, user: &str) -> &str {
        &self.file.accounts.iter().find(|account| account.user == user).unwrap().password
    }

    pub fn maildir(&self) -> Maildir {
        Maildir::new(&self.file.sink.maildir)
    }

    /// kill -9 of a node; returns when the process is gone.
    pub fn kill(&mut self, id: u64) {
        self.end(self.node(id).pid, Signal::KILL);
    }

    /// Starts a node of the cluster again, as an operator would. Doesn't wait.
    pub fn restart(&mut self, id: u64) {
        self.restart_with(id, &[]);
    }

    /// The same, with more in its environment.
    pub fn restart_with(&mut self, id: u64, environment: &[(&'static str, PathBuf)]) {
        let config = self.node_dir(id).join("ppswd.toml");
        let guard = Guard::spawn(
            Command::new(program("ppswd"))
                .arg("run")
                .arg("--config")
                .arg(config)
                .envs(environment.iter().cloned()),
            &self.process_log(id),
        );
        let pid = guard.pid();
        self.again.push(guard);
        self.file.nodes.iter_mut().find(|node| node.id == id).unwrap().pid = pid;
    }

    /// Makes the next machine a node, as an operator would: a token, `ppswd join`, `ppswd run`. Doesn't wait until it
    /// is ready. `place` is its directory's and addresses' number.
    pub fn join(&mut self, place: u64) -> u64 {
        let dir = self.dir();
        let first = std::fs::read_to_string(dir.join("node-1/ppswd.toml")).unwrap();
        let here = |text: &str| {
            text.replace("127.10.1.", &format!("127.10.{place}."))
                .replace("node-1", &format!("node-{place}"))
        };
        let home = dir.join(format!("node-{place}"));
        std::fs::create_dir_all(home.join("log")).unwrap();
        let config = home.join("ppswd.toml");
        std::fs::write(&config, here(&first)).unwrap();
        // Its addresses have the personalities that those of node 1 have.
        let params = dir.join("config/tables/addrparams");
        let lines = std::fs::read_to_string(&params).unwrap();
        let new: Vec<String> =
            lines.lines().filter(|line| line.starts_with("127.10.1.")).map(here).collect();
        if !lines.contains(&new[0]) {
            std::fs::write(&params, format!("{lines}{}\n", new.join("\n"))).unwrap();
            self.apply_config();
        }
        let token = self.ctl_json(&["token", "create"])["token"].as_str().unwrap().to_owned();
        let peer = self.file.nodes[0].control.to_string();
        let output = Command::new(program("ppswd"))
            .args(["join", "--config"])
            .arg(&config)
            .args(["--token", &token, "--peer", &peer])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{text}");
        let id = text.trim().rsplit(' ').next().unwrap().parse().unwrap();
        let at = |text: SocketAddr| here(&text.to_string()).parse().unwrap();
        let model = self.file.nodes[0].clone();
        let node = Node {
            id,
            pid: 0,
            control: at(model.control),
            http: at(model.http),
            mx: at(model.mx),
            smart: at(model.smart),
            submission: at(model.submission),
            submissions: at(model.submissions),
            proxy: Services {
                mx: at(model.proxy.mx),
                smart: at(model.proxy.smart),
                submission: at(model.proxy.submission),
            },
            agent: at(model.agent),
        };
        self.places.insert(id, place);
        self.file.nodes.push(node);
        self.restart(id);
        id
    }

    /// The directory of a node.
    pub fn node_dir(&self, id: u64) -> PathBuf {
        let place = self.places.get(&id).copied().unwrap_or(id);
        self.dir().join(format!("node-{place}"))
    }

    /// A node has a new number.
    pub fn renumber(&mut self, old: u64, new: u64) {
        let place = self.places.get(&old).copied().unwrap_or(old);
        self.places.insert(new, place);
        self.file.nodes.iter_mut().find(|node| node.id == old).unwrap().id = new;
    }

    /// Where a node's standard error goes.
    pub fn process_log(&self, id: u64) -> PathBuf {
        self.node_dir(id).join("log/process.log")
    }

    /// Puts lines in front of a node's configuration; they hold when it is started again.
    pub fn configure(&self, id: u64, lines: &str) {
        let path = self.node_dir(id).join("ppswd.toml");
        let old = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{lines}\n{old}")).unwrap();
    }

    /// Waits for the end of a node that the test has started, and gives its exit code; `None` after a signal.
    pub fn wait_end(&mut self, id: u64) -> Option<i32> {
        let pid = self.node(id).pid;
        let guard = self.again.iter_mut().find(|guard| guard.pid() == pid).unwrap();
        let status =
            wait_for(&format!("node {id} to end"), PATIENCE, || guard.0.try_wait().unwrap());
        self.again.retain(|guard| guard.pid() != pid);
        status.code()
    }

    /// Waits until `/readyz` of a node says 200.
    pub fn wait_ready(&self, id: u64) {
        let address = self.node(id).http;
        wait_for(&format!("node {id} to be ready"), PATIENCE, || {
            (http_status(address, "/readyz") == Some(200)).then_some(())
        });
    }

    /// SIGSTOP: the node does nothing any more, and nobody is told.
    pub fn stop_node(&self, id: u64) {
        process::signal(self.node(id).pid, Signal::STOP);
    }

    /// SIGCONT.
    pub fn continue_node(&self, id: u64) {
        process::signal(self.node(id).pid, Signal::CONT);
    }

    /// A figure of a node: the sum over all labels that contain `label`. `None`: no answer.
    pub fn figure(&self, id: u64, name: &str, label: &str) -> Option<f64> {
        let (_, text) = http_get(self.node(id).http, "/metrics")?;
        let lines = text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        });
        Some(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }

    /// kill -9 of the sink: its two addresses are free then.
    pub fn kill_sink(&mut self) {
        self.end(self.file.sink.pid, Signal::KILL);
    }

    /// Starts a sink on the addresses of the first one, with the same Maildir.
    pub fn restart_sink(&mut self) {
        let sink = self.file.sink.clone();
        let guard = Guard::spawn(
            Command::new(program("ppswd"))
                .args([
                    "sink",
                    "--smtp",
                    &sink.smtp.to_string(),
                    "--lmtp",
                    &sink.lmtp.to_string(),
                    "--maildir",
                ])
                .arg(&sink.maildir),
            &self.dir().join("sink.log"),
        );
        self.file.sink.pid = guard.pid();
        self.again.push(guard);
        wait_for("the sink", PATIENCE, || std::net::TcpStream::connect(sink.smtp).ok());
    }

    /// Makes the nodes run what is in `DIR/config` now.
    pub fn apply_config(&self) {
        let dir = self.dir().join("config").display().to_string();
        // Again, if a leader is being elected; pushing the same twice is harmless.
        wait_for("a push", PATIENCE, || {
            let (code, text) = self.ctl(&["tables", "push", &dir, "--reason", "test", "--force"]);
            if code != 0 {
                println!("push: {text}");
            }
            (code == 0).then_some(())
        });
    }

    /// Runs `ppswctl` and gives its exit code and what it printed.
    pub fn ctl(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run_ctl(arguments);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    /// Runs `ppswctl --json`, which must succeed. What it says on standard error does not count.
    pub fn ctl_json(&self, arguments: &[&str]) -> Value {
        let output = self.run_ctl(&[&["--json"], arguments].concat());
        assert!(output.status.success(), "ppswctl {arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("ppswctl {arguments:?}: {error}: {output:?}"))
    }

    fn run_ctl(&self, arguments: &[&str]) -> Output {
        let cluster = self.dir().join("cluster.json");
        let mut command = Command::new(program("ppswctl"));
        command.arg("--cluster").arg(cluster).args(arguments).output().unwrap()
    }

    /// The node that leads each partition, by `status`; 0 for none.
    pub fn leaders(&self) -> Vec<(u64, u64)> {
        let status = self.ctl_json(&["status"]);
        let partitions = status["partitions"].as_array().unwrap();
        partitions
            .iter()
            .map(|partition| {
                (partition["id"].as_u64().unwrap(), partition["leader"].as_u64().unwrap_or(0))
            })
            .collect()
    }

    fn end(&mut self, pid: u32, signal: Signal) {
        process::signal(pid, signal);
        // Who started it must wait for it: one of ours, or `ppswd dev`.
        self.again.retain_mut(|guard| {
            guard.pid() != pid || {
                guard.0.wait().ok();
                false
            }
        });
        wait_for("the end of a killed process", PATIENCE, || (!process::exists(pid)).then_some(()));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.dev.stop();
        self.again.clear();
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("kept for a look: {}", dir.keep().display());
        }
    }
}

/// Starts `ppswd dev` on `cluster` below `dir`; waits until it is ready.
fn dev(
    dir: &TempDir,
    arguments: &[&str],
    environment: &[(&'static str, String)],
) -> (Guard, ClusterFile) {
    let (cluster, log) = (dir.path().join("cluster"), dir.path().join("dev.log"));
    let mut command = Command::new(program("ppswd"));
    command.arg("dev").args(arguments).arg("--dir").arg(&cluster);
    let mut dev = Guard::spawn(command.envs(environment.iter().cloned()), &log);
    let path = cluster.join("cluster.json");
    wait_for("cluster.json", PATIENCE, || {
        let log = || std::fs::read_to_string(&log).unwrap_or_default();
        assert!(dev.alive(), "ppswd dev ended:\n{}", log());
        path.exists().then_some(())
    });
    (dev, read(&path))
}

fn read(path: &Path) -> ClusterFile {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Status of `GET path`; `None`: no answer.
pub fn http_status(address: SocketAddr, path: &str) -> Option<u16> {
    http_get(address, path).map(|(status, _)| status)
}

/// Status and body of `GET path`; `None`: no answer.
pub fn http_get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.get(9..12)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}
