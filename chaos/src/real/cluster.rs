//! The nodes: their files, processes and what they say of themselves.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use super::{
    HarnessError,
    disk::{Disk, Shims, write},
    names,
    network::{self, Network},
    process::{self, Process},
    sink,
};

const SMTP: u16 = 2525;
const CONTROL: u16 = 2590;
const HTTP: u16 = 2580;
/// A start, on a machine that is busy with other things.
const START_MAX: Duration = Duration::from_secs(120);
/// Between two looks.
const POLL: Duration = Duration::from_millis(100);
/// What a supervisor like systemd waits before it starts a process again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// Lines of a process log that a report quotes.
const TAIL_LINES: usize = 6;

/// The programs under test.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) ppswd: PathBuf,
    pub(super) ppswctl: PathBuf,
}

/// A cluster in the network of the harness.
pub(super) struct Cluster {
    network: Network,
    programs: Programs,
    shims: Shims,
    dir: PathBuf,
    nodes: Vec<Node>,
}

/// One node, up or down.
pub(super) struct Node {
    pub(super) number: u16,
    pub(super) disk: Disk,
    dir: PathBuf,
    process: Option<Process>,
    /// When to start it again, if it is down and not retired.
    restart: Option<Instant>,
    /// It was damaged for good: nobody starts it again.
    retired: bool,
    /// Its end was asked for.
    ending: bool,
}

/// A process that ended without being asked.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) node: u16,
    pub(super) status: ExitStatus,
    /// The last lines of its log.
    pub(super) tail: String,
}

impl Cluster {
    /// Makes a cluster in `dir` and waits until all of it is ready.
    pub(super) fn create(
        network: Network,
        programs: &Programs,
        shims: &Shims,
        dir: &Path,
        size: u16,
    ) -> Result<Self, HarnessError> {
        let made = |path: PathBuf| {
            fs::create_dir_all(&path).map_err(|error| HarnessError::File { path, error })
        };
        made(dir.join("config/tables"))?;
        made(dir.join("certs"))?;
        write(&dir.join("config/policy.kdl"), sink::POLICY.as_bytes())?;
        write(&dir.join("config/tables/routes"), sink::routes().as_bytes())?;
        let mut nodes = Vec::new();
        let mut addresses = String::new();
        for number in 1..=size {
            let own = dir.join(format!("node-{number}"));
            made(own.join("log"))?;
            let disk = Disk::create(&own)?;
            write(&own.join("ppswd.toml"), configuration(number, dir).as_bytes())?;
            addresses +=
                &format!("{} name=node-{number} acl=relay\n", network::node(number, 0).ip());
            nodes.push(Node {
                number,
                disk,
                dir: own,
                process: None,
                restart: None,
                retired: false,
                ending: false,
            });
        }
        write(&dir.join("config/tables/addrparams"), addresses.as_bytes())?;
        let control: Vec<Value> = (1..=size)
            .map(|number| serde_json::json!({ "control": network::node(number, CONTROL) }))
            .collect();
        let file = serde_json::json!({
            "nodes": control, "credentials": dir.join("admin"), "viewer": dir.join("viewer"),
        });
        write(&dir.join("cluster.json"), file.to_string().as_bytes())?;
        let mut cluster = Self {
            network,
            programs: programs.clone(),
            shims: shims.clone(),
            dir: dir.to_owned(),
            nodes,
        };
        cluster.found()?;
        Ok(cluster)
    }

    /// Node 1 makes the cluster, the others join it.
    fn found(&mut self) -> Result<(), HarnessError> {
        let config = |number: u16| self.dir.join(format!("node-{number}/ppswd.toml"));
        let (admin, viewer) = (self.dir.join("admin"), self.dir.join("viewer"));
        process::run(
            Command::new(&self.programs.ppswd)
                .args(["init", "--config"])
                .arg(config(1))
                .arg("--admin")
                .arg(admin)
                .arg("--viewer")
                .arg(viewer),
        )?;
        self.start(1)?;
        let until = Instant::now() + START_MAX;
        let token = loop {
            match self.ctl(&["token", "create"]) {
                Ok(answer) => break answer["token"].as_str().unwrap_or_default().to_owned(),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => std::thread::sleep(POLL),
            }
        };
        for number in 2..=self.size() {
            process::run(
                self.network
                    .in_node(number)
                    .arg(&self.programs.ppswd)
                    .args(["join", "--config"])
                    .arg(self.dir.join(format!("node-{number}/ppswd.toml")))
                    .args(["--token", &token, "--peer"])
                    .arg(network::node(1, CONTROL).to_string()),
            )?;
            self.start(number)?;
        }
        self.wait_ready(START_MAX)
    }

    pub(super) fn size(&self) -> u16 {
        u16::try_from(self.nodes.len()).unwrap_or(u16::MAX)
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its number, which the schedule takes from 1 to the cluster's size.
    pub(super) fn node(&mut self, number: u16) -> &mut Node {
        let index = usize::from(number.saturating_sub(1)).min(self.nodes.len() - 1);
        &mut self.nodes[index]
    }

    /// kill -9, and a start after some time.
    pub(super) fn kill(&mut self, number: u16, down: Duration) {
        let node = self.node(number);
        if let Some(mut process) = node.process.take() {
            process.kill();
        }
        node.restart = Some(Instant::now() + down);
    }

    /// Kills them so that none outlives another for more than an instant.
    pub(super) fn kill_all(&mut self, down: Duration) {
        for node in &self.nodes {
            node.signal(Signal::KILL);
        }
        for number in 1..=self.size() {
            self.kill(number, down);
        }
    }

    /// SIGTERM, and a start when it has ended.
    pub(super) fn terminate(&mut self, number: u16) {
        let node = self.node(number);
        node.ending = true;
        node.signal(Signal::TERM);
    }

    /// The node is never started again.
    pub(super) fn retire(&mut self, number: u16) {
        self.kill(number, Duration::ZERO);
        self.node(number).retired = true;
    }

    /// Starts what should run and doesn't. Gives the processes that ended without being asked.
    pub(super) fn supervise(&mut self) -> Result<Vec<Ended>, HarnessError> {
        let mut ended = Vec::new();
        for number in 1..=self.size() {
            let node = self.node(number);
            if let Some(status) = node.process.as_mut().and_then(Process::ended) {
                node.process = None;
                node.restart = Some(Instant::now() + RESTART_PAUSE);
                if !std::mem::take(&mut node.ending) {
                    ended.push(Ended { node: number, status, tail: node.tail() });
                }
            }
            let due = node.restart.is_some_and(|at| at <= Instant::now());
            if node.process.is_none() && due && !node.retired {
                self.start(number)?;
            }
        }
        Ok(ended)
    }

    fn start(&mut self, number: u16) -> Result<(), HarnessError> {
        let shims = self.shims.clone();
        let environment = self.node(number).disk.environment(&shims);
        let mut command = self.network.in_node(number);
        command.arg("env").args(environment).arg(&self.programs.ppswd).args(["run", "--config"]);
        let node = self.node(number);
        command.arg(node.dir.join("ppswd.toml")).arg("--die-with-parent");
        node.process = Some(Process::start(&mut command, &node.dir.join("log/process.log"))?);
        node.restart = None;
        node.ending = false;
        Ok(())
    }

    /// Waits until every node that is not retired is ready, restarting those that end.
    pub(super) fn wait_ready(&mut self, patience: Duration) -> Result<(), HarnessError> {
        let until = Instant::now() + patience;
        loop {
            self.supervise()?;
            let missing: Vec<String> =
                self.nodes.iter().filter_map(|node| node.not_ready()).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(HarnessError::NotReady {
                    seconds: patience.as_secs(),
                    reasons: missing.join("; "),
                });
            }
            std::thread::sleep(POLL);
        }
    }

    /// Messages in all queues, if every node that is not retired told its own.
    pub(super) fn queued(&self) -> Result<Option<u64>, HarnessError> {
        let summary = self.ctl(&["queue", "summary"])?;
        let retired = |id: &Value| {
            let retired = |node: &Node| node.retired && id == u64::from(node.number);
            self.nodes.iter().any(retired)
        };
        let silent = summary["silent"].as_array().cloned().unwrap_or_default();
        Ok(summary["messages"].as_u64().filter(|_| silent.iter().all(retired)))
    }

    /// What is in the queues, shortened, for a report.
    pub(super) fn queue_list(&self) -> String {
        let Ok(list) = self.ctl(&["queue", "list"]) else { return "no answer".to_owned() };
        let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let texts: Vec<String> = items.iter().take(3).map(Value::to_string).collect();
        texts.join(" ")
    }

    /// Runs `ppswctl --json` and reads its answer.
    pub(super) fn ctl(&self, arguments: &[&str]) -> Result<Value, HarnessError> {
        let text = process::run(self.ctl_command().args(arguments))?;
        serde_json::from_str(&text).map_err(|error| HarnessError::Program {
            command: format!("ppswctl {}", arguments.join(" ")),
            reason: format!("{error}: {text}"),
        })
    }

    /// `ppswctl --json --cluster …`
    pub(super) fn ctl_command(&self) -> Command {
        let mut command = Command::new(&self.programs.ppswctl);
        command.arg("--json").arg("--cluster").arg(self.dir.join("cluster.json"));
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.process = None;
            node.disk.unmount();
        }
    }
}

impl Node {
    pub(super) fn signal(&self, kind: Signal) {
        if let Some(process) = &self.process {
            process.signal(kind);
        }
    }

    /// Whether a process runs that was started after the last one was asked to end.
    pub(super) fn restarted(&self) -> bool {
        self.process.is_some() && !self.ending
    }

    pub(super) fn retired(&self) -> bool {
        self.retired
    }

    /// Why it is not ready, if it isn't and should be.
    pub(super) fn not_ready(&self) -> Option<String> {
        if self.retired {
            return None;
        }
        let reason = match self.get("/readyz") {
            Ok((200, _)) => return None,
            Ok((_, body)) => body.trim().replace('\n', ", "),
            Err(error) => error.to_string(),
        };
        Some(format!("node {}: {reason}", self.number))
    }

    /// A metric with exactly these labels.
    pub(super) fn metric(number: u16, name: &str) -> Option<f64> {
        let (_, text) = get(number, "/metrics").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line?.trim().parse().ok()
    }

    fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        get(self.number, path)
    }

    fn tail(&self) -> String {
        let text = fs::read(self.dir.join("log/process.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n    ")
    }
}

/// Where a node takes mail.
pub(super) fn smtp(number: u16) -> std::net::SocketAddr {
    network::node(number, SMTP)
}

/// Status and body of an HTTP request to a node.
fn get(number: u16, path: &str) -> std::io::Result<(u16, String)> {
    let address = network::node(number, HTTP);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.get(9..12).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

/// `ppswd.toml` of a node: small segments, so that there are old ones; short waits, so that rounds are short; little room
/// kept free, as its disk is small.
fn configuration(number: u16, dir: &Path) -> String {
    format!(
        "name = \"node-{number}\"\ndata = \"data\"\nlog = \"log\"\nconfig = \"{dir}/config\"\n\
         certificates = \"{dir}/certs\"\ncontrol = \"{}\"\nhttp = \"{}\"\ndns = [\"{names}\"]\n\
         segment_bytes = 8388608\nlog_floor = 134217728\n\
         check_spool_space = \"64M\"\ndrain_notice = \"0s\"\ntakeover_grace = \"3s\"\nretry = \"F,4h,2s\"\n\
         [[listener]]\nservice = \"smtp\"\naddress = \"{}\"\n",
        network::node(number, CONTROL),
        network::node(number, HTTP),
        network::node(number, SMTP),
        dir = dir.display(),
        names = network::harness(names::PORT),
    )
}
