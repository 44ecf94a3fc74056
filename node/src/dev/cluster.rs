//! The life of a `dev` cluster: made or resumed, started, watched, stopped.

use std::{io, io::IsTerminal, path::Path, time::Duration};

use futures::future::join_all;

use super::{
    DevArgs, DevError, accounts,
    children::{Child, Program, Role},
    configuration::dev_configuration,
    files,
    nameserver::NameServer,
    operator::{ClusterStatus, Operator},
    plan::{BASE_PORT_RANGE, NodeEntry, Plan},
    probe, screen,
};
use crate::limits::DEV_START_MAX;

/// How often a start is looked at.
const POLL: Duration = Duration::from_millis(200);
/// How often a running cluster is looked at, and the screen drawn.
const WATCH: Duration = Duration::from_secs(1);
/// Version of `dev.json`.
const PLAN_VERSION: u32 = 1;
/// Largest `dev.json` and process log that is read.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Lines of a process log that are shown when the process ended too early.
const TAIL_LINES: usize = 20;

/// A cluster, and the processes of it that run.
pub(super) struct Cluster {
    plan: Plan,
    program: Program,
    /// Nodes that have no identity yet.
    fresh: bool,
    nodes: Vec<Child>,
    sink: Option<Child>,
    names: Option<NameServer>,
}

impl Cluster {
    /// Reads the cluster in DIR, or makes its files. Starts nothing.
    pub(super) fn prepare(args: &DevArgs) -> Result<Self, DevError> {
        let dir = std::path::absolute(&args.dir).map_err(DevError::file("--dir"))?;
        let plan = if args.resume { resume(&dir)? } else { create(&dir, args)? };
        files::remove(&plan.path("cluster.json")).map_err(DevError::file("cluster.json"))?;
        let program = Program::current().map_err(DevError::file("this program's own file"))?;
        Ok(Self { plan, program, fresh: !args.resume, nodes: vec![], sink: None, names: None })
    }

    /// Starts everything and watches it. Ends only with an error.
    pub(super) async fn run(&mut self, args: &DevArgs) -> Result<(), DevError> {
        let dns = self.plan.path("dns");
        let names =
            NameServer::start(self.plan.dns(), &dns).await.map_err(DevError::file("DNS server"))?;
        self.names = Some(names);
        self.start_sink()?;
        if self.fresh {
            self.found().await?;
        } else {
            for node in 1..=self.plan.nodes {
                self.start_node(node)?;
            }
        }
        self.wait_until_ready().await?;
        if self.fresh {
            // From here on nodes run what was pushed, and DIR/config is where one edits it.
            let failed = |reason| DevError::Control { what: "push DIR/config", reason };
            let operator = Operator::connect(self.plan.control(1), &self.plan.path("admin")).await;
            operator.map_err(failed)?.push(&self.plan.path("config")).await.map_err(failed)?;
            self.wait_until_ready().await?;
        }
        self.publish()?;
        screen::ready(&self.plan, &self.entries());
        self.watch(args.restart).await
    }

    /// Stops all processes: the nodes first, so that what they still deliver arrives.
    pub(super) async fn stop(&mut self) {
        // It says that the cluster is ready, and its process ids may soon be somebody else's.
        let _ = files::remove(&self.plan.path("cluster.json"));
        for node in &self.nodes {
            node.terminate();
        }
        join_all(self.nodes.iter_mut().map(Child::gone)).await;
        if let Some(sink) = &mut self.sink {
            sink.terminate();
            sink.gone().await;
        }
        self.names = None;
    }

    /// The first start: node 1 makes the cluster, the others join it.
    async fn found(&mut self) -> Result<(), DevError> {
        let (admin, viewer) = (self.plan.path("admin"), self.plan.path("viewer"));
        ppsw_control::init(&self.data(1), self.plan.control(1), &admin, &viewer).await.map_err(
            |error| DevError::Control { what: "make a cluster", reason: error.to_string() },
        )?;
        self.start_node(1)?;
        if self.plan.nodes == 1 {
            return Ok(());
        }
        let token = self.token(&admin).await?;
        let peer = self.plan.control(1).to_string();
        for node in 2..=self.plan.nodes {
            let refused = |reason| DevError::Control { what: "let a node join", reason };
            let id = ppsw_control::join(&self.data(node), self.plan.control(node), &token, &peer)
                .await
                .map_err(|error| refused(error.to_string()))?;
            if id != u64::from(node) {
                return Err(refused(format!("node {node} was numbered {id}")));
            }
            self.start_node(node)?;
        }
        Ok(())
    }

    /// A join token, as soon as node 1 can make one.
    async fn token(&mut self, admin: &Path) -> Result<String, DevError> {
        let mut last = String::new();
        for _ in 0..polls() {
            self.check_children()?;
            match Operator::connect(self.plan.control(1), admin).await {
                Ok(operator) => match operator.create_token().await {
                    Ok(token) => return Ok(token),
                    Err(reason) => last = reason,
                },
                Err(reason) => last = reason,
            }
            tokio::time::sleep(POLL).await;
        }
        Err(DevError::Control { what: "make a join token", reason: last })
    }

    async fn wait_until_ready(&mut self) -> Result<(), DevError> {
        let mut reasons = Vec::new();
        for _ in 0..polls() {
            self.check_children()?;
            reasons = self.missing().await;
            if reasons.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(DevError::NotReady { seconds: DEV_START_MAX.as_secs(), reasons: reasons.join("\n") })
    }

    /// What keeps the cluster from being ready.
    async fn missing(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        for node in 1..=self.plan.nodes {
            let of_node = probe::not_ready(self.plan.http(node)).await;
            reasons.extend(of_node.into_iter().map(|reason| format!("node {node}: {reason}")));
        }
        if !reasons.is_empty() {
            return reasons;
        }
        match self.status().await {
            Ok(status) => status.missing(self.plan.nodes),
            Err(reason) => vec![format!("status: {reason}")],
        }
    }

    async fn status(&self) -> Result<ClusterStatus, String> {
        let mut last = "no node runs".to_owned();
        for node in self.nodes.iter().filter(|node| node.alive()) {
            let Role::Node(number) = node.role else { continue };
            match Operator::connect(self.plan.control(number), &self.plan.path("viewer")).await {
                Ok(operator) => match operator.status().await {
                    Ok(status) => return Ok(status),
                    Err(reason) => last = reason,
                },
                Err(reason) => last = reason,
            }
        }
        Err(last)
    }

    /// Tells what happens, until an error of our own.
    async fn watch(&mut self, restart: bool) -> Result<(), DevError> {
        let terminal = io::stdout().is_terminal();
        loop {
            tokio::time::sleep(WATCH).await;
            for role in self.newly_ended() {
                if let (Role::Node(node), true) = (role, restart) {
                    self.start_node(node)?;
                    self.publish()?;
                    screen::line(&format!("node {node} started again"));
                }
            }
            if terminal {
                let status = self.status().await;
                screen::draw(&self.plan, &self.entries(), &status);
            }
        }
    }

    /// Notes which processes ended, and says so.
    fn newly_ended(&mut self) -> Vec<Role> {
        let mut ended = Vec::new();
        for child in self.nodes.iter_mut().chain(&mut self.sink) {
            if let Ok(Some(status)) = child.newly_ended() {
                screen::line(&format!(
                    "{} (process {}) ended: {status}",
                    name(child.role),
                    child.pid
                ));
                ended.push(child.role);
            }
        }
        ended
    }

    /// During the start no process may end.
    fn check_children(&mut self) -> Result<(), DevError> {
        let plan = &self.plan;
        for child in self.nodes.iter_mut().chain(&mut self.sink) {
            let status = child.newly_ended().map_err(DevError::file("state of a process"))?;
            if let Some(status) = status {
                let log = output(plan, child.role);
                let text = files::read_text(&log, FILE_BYTES_MAX).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
                return Err(DevError::ChildEnded {
                    what: name(child.role),
                    status: status.to_string(),
                    log,
                    tail,
                });
            }
        }
        Ok(())
    }

    fn start_node(&mut self, node: u16) -> Result<(), DevError> {
        let role = Role::Node(node);
        let config = self.plan.node_dir(node).join("ppswd.toml");
        let arguments = ["run".as_ref(), "--config".as_ref(), config.as_os_str()];
        let child = self
            .program
            .start(role, arguments, &output(&self.plan, role))
            .map_err(DevError::file(format!("start of node {node}")))?;
        self.nodes.retain(|other| other.role != role);
        self.nodes.push(child);
        Ok(())
    }

    fn start_sink(&mut self) -> Result<(), DevError> {
        let (smtp, lmtp) = (self.plan.sink_smtp().to_string(), self.plan.sink_lmtp().to_string());
        let maildir = self.plan.path("sink");
        let arguments = [
            "sink".as_ref(),
            "--smtp".as_ref(),
            smtp.as_ref(),
            "--lmtp".as_ref(),
            lmtp.as_ref(),
            "--maildir".as_ref(),
            maildir.as_os_str(),
        ];
        let child = self
            .program
            .start(Role::Sink, arguments, &output(&self.plan, Role::Sink))
            .map_err(DevError::file("start of the sink"))?;
        self.sink = Some(child);
        Ok(())
    }

    fn publish(&self) -> Result<(), DevError> {
        let sink = self.sink.as_ref().map_or(0, |sink| sink.pid);
        let json = self.plan.cluster_file(&self.entries(), sink).map_err(|error| {
            DevError::File { what: "cluster.json".to_owned(), source: error.into() }
        })?;
        files::write_atomically(&self.plan.path("cluster.json"), &json)
            .map_err(DevError::file("cluster.json"))
    }

    fn entries(&self) -> Vec<NodeEntry> {
        let mut entries: Vec<NodeEntry> = self
            .nodes
            .iter()
            .filter_map(|child| match child.role {
                Role::Node(node) => Some(self.plan.entry(node, child.pid)),
                Role::Sink => None,
            })
            .collect();
        entries.sort_by_key(|entry| entry.id);
        entries
    }

    fn data(&self, node: u16) -> std::path::PathBuf {
        self.plan.node_dir(node).join("data")
    }
}

fn polls() -> u128 {
    DEV_START_MAX.as_millis() / POLL.as_millis()
}

fn name(role: Role) -> String {
    match role {
        Role::Node(node) => format!("node {node}"),
        Role::Sink => "sink".to_owned(),
    }
}

fn output(plan: &Plan, role: Role) -> std::path::PathBuf {
    match role {
        Role::Node(node) => plan.node_dir(node).join("log/process.log"),
        Role::Sink => plan.path("sink.log"),
    }
}

fn resume(dir: &Path) -> Result<Plan, DevError> {
    let read = || -> io::Result<Plan> {
        let text = files::read_text(&dir.join("dev.json"), FILE_BYTES_MAX)?;
        let plan: Plan = serde_json::from_str(&text)?;
        if plan.version != PLAN_VERSION {
            return Err(io::Error::other(format!(
                "dev.json has version {}, not {PLAN_VERSION}",
                plan.version
            )));
        }
        Ok(Plan { dir: dir.to_owned(), ..plan })
    };
    read().map_err(|source| DevError::NothingToResume { dir: dir.to_owned(), source })
}

fn create(dir: &Path, args: &DevArgs) -> Result<Plan, DevError> {
    if !BASE_PORT_RANGE.contains(&args.base_port) {
        return Err(DevError::BasePort(args.base_port));
    }
    files::create_dir(dir).map_err(DevError::file(dir.display().to_string()))?;
    if !files::is_empty(dir).map_err(DevError::file(dir.display().to_string()))? {
        return Err(DevError::Occupied { dir: dir.to_owned() });
    }
    let plan = Plan {
        version: PLAN_VERSION,
        nodes: args.nodes,
        base_port: args.base_port,
        accounts: accounts::create(),
        dir: dir.to_owned(),
    };
    write_files(&plan).map_err(DevError::file(format!("files below {}", dir.display())))?;
    Ok(plan)
}

/// Everything that a new cluster has before its first process starts. `dev.json` comes last: it makes DIR resumable.
fn write_files(plan: &Plan) -> io::Result<()> {
    for folder in ["config", "dns", "certs", "sink"] {
        files::create_dir(&plan.path(folder))?;
    }
    let hashes = accounts::hashes(&plan.accounts)?;
    dev_configuration(&plan.dir, plan.sink_smtp(), plan.sink_lmtp(), plan.nodes, &hashes)?;
    for (zone, text) in plan.zone_files() {
        files::write_atomically(&plan.path("dns").join(format!("{zone}.zone")), text.as_bytes())?;
    }
    let (certificate, key) = accounts::certificate().map_err(io::Error::other)?;
    let certificates = plan.path("certs");
    let name = accounts::SUBMISSION_NAME;
    files::write_atomically(&certificates.join(format!("{name}.pem")), certificate.as_bytes())?;
    files::write_secret(&certificates.join(format!("{name}.key")), key.as_bytes())?;
    for node in 1..=plan.nodes {
        let dir = plan.node_dir(node);
        files::create_dir(&dir.join("data"))?;
        files::create_dir(&dir.join("log"))?;
        let text = plan.node_file(node).map_err(io::Error::other)?;
        files::write_atomically(&dir.join("ppswd.toml"), text.as_bytes())?;
    }
    files::write_secret(&plan.path("dev.json"), &serde_json::to_vec_pretty(plan)?)
}
