//! `ppswd run`: puts a node together, and takes it apart again in the right order.

use std::{
    future::Future,
    io::{self, IsTerminal},
    sync::Arc,
    time::Duration,
};

use ppsw_control::{Plane, PlaneError, PlaneOptions};
use ppsw_spool::{
    NodeId,
    env::{Clock as _, SystemClock, SystemDisk},
    group::Timing,
    log::SpaceLimits,
    queue::Spool,
};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use crate::{
    agent_check,
    callout::Caller,
    config::{NodeConfig, OnDamage},
    deliver::{Deliverer, Parts, Programs, connect::TcpConnector, seams::ConfiguredRouter},
    dns::Resolver,
    domains::{self, Domains},
    figures, files, http, limits,
    load::Load,
    maillog::MailLog,
    policy::{Configuration, NodeFacts, Surroundings},
    rate::Rates,
    service,
    smtp::{Activity, Certificates, FrontEnd, Listener, Policy, Rules},
};

mod hooks;
mod live;
mod stop;

use hooks::Hooks;
use live::Live;
pub use stop::Stop;

/// What callouts have learnt, below `data`.
const CALLOUTS_FILE: &str = "callouts";

/// Where messages are written for programs, below `data`.
const PROGRAMS_DIR: &str = "programs";

/// Why a program ended: a text for people.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a process needs before anything else: the crypto provider, and where its own messages go.
pub fn prepare_process() {
    // Fails only if another provider was installed before; there is none in the tree (deny.toml).
    let _ = rustls::crypto::ring::default_provider().install_default();
    let filter = tracing_subscriber::EnvFilter::try_from_env("PPSWD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,openraft=warn,h2=warn"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Standard error may lead to a file on a full disk: what it does not take is lost, and nothing else happens.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    // A second call (tests) keeps the first one's.
    let _ = lines.try_init();
}

/// Asks the kernel to end this process when its parent ends.
pub fn die_with_parent(wanted: bool) {
    if wanted {
        let set =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
        if let Err(error) = set {
            tracing::warn!(%error, "cannot follow the parent process");
        }
    }
}

/// Runs a future on a runtime of its own.
///
/// # Errors
/// The future's, or that there is no runtime.
pub fn blocking(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

/// Runs one node until it is told to stop (SIGTERM, SIGINT) or something fails that it cannot go on without.
///
/// # Errors
/// What could not be read, opened or bound; or why the node had to stop.
pub fn node(config: NodeConfig) -> Result<(), Failure> {
    let mut runtime = Builder::new_multi_thread();
    if let Some(threads) = config.threads {
        runtime.worker_threads(threads);
    }
    runtime.enable_all().build()?.block_on(serve_node(config))
}

/// See [`node`].
async fn serve_node(config: NodeConfig) -> Result<(), Failure> {
    // Two processes on one log would each destroy what the other has promised.
    let _lock = files::lock(&config.data).map_err(|e| Stop::of_lock(&config.data, &e))?;
    let metrics = http::install_metrics()?;
    figures::describe();
    let dns = Arc::new(match config.dns.as_slice() {
        [] => Resolver::system()?,
        servers => Resolver::new(servers)?,
    });
    let hooks = Arc::new(Hooks::default());
    let plane = start_or_rejoin(&config, &hooks).await?;
    plane.limit_space(SpaceLimits {
        bytes: config.check_spool_space,
        inodes: config.check_spool_inodes,
    });
    let spool = plane.spool();
    spool.set_log_floor(config.log_floor);
    let current = configured(&config, &plane, &hooks.live).await?;
    let (log, log_thread) = MailLog::open(&config.log, plane.node(), Arc::new(SystemClock))?;

    let router =
        ConfiguredRouter::new(current.clone(), dns.clone()).with_retry(config.retry.as_ref());
    let load = Arc::new(Load::of_machine());
    let deliverer = Deliverer::start(Parts {
        name: config.name.clone(),
        queues: Arc::new(spool.clone()),
        router: Arc::new(router),
        connector: Arc::new(TcpConnector::default()),
        forward: Arc::new(plane.clone()),
        clock: Arc::new(SystemClock),
        log: log.clone(),
        programs: Programs { dir: config.data.join(PROGRAMS_DIR), smtp: config.local_smtp },
        sources: config.sources(),
        load: Arc::clone(&load),
        orders: {
            let plane = plane.clone();
            Arc::new(move || plane.orders())
        },
        tracer: hooks.tracer.clone(),
    });
    let answers = config.data.join(CALLOUTS_FILE);
    let connector = Arc::new(TcpConnector::default());
    let callouts = Caller::open(connector, Arc::new(SystemClock), config.name.clone(), &answers)
        .watched(hooks.tracer.clone());
    let callouts = Arc::new(callouts);
    let certificates = Certificates::load(&config.certificates)?;
    warn_of_unknown_clients(&current.borrow(), &certificates);
    let front = Arc::new(FrontEnd {
        host_name: config.name.clone(),
        rules: Arc::new(CurrentRules(current.clone())),
        around: Surroundings {
            dns,
            facts: Arc::new(Facts(spool.clone(), plane.clone(), load)),
            callouts: callouts.clone(),
            rates: Rates::default(),
        },
        intake: Arc::new(spool),
        events: Arc::new(log.clone()),
        certificates,
        clock: Arc::new(SystemClock),
        activity: Activity::default(),
        tracer: hooks.tracer.clone(),
    });
    let domains = Domains::new(domains::Parts {
        plane: plane.clone(),
        configuration: current.clone(),
        dns: front.around.dns.clone(),
        clock: Arc::new(SystemClock),
        log: log.clone(),
        host_name: config.name.clone(),
        settings: config.https_domains,
    })?;
    hooks.attach(front.clone(), deliverer.clone(), domains.clone(), current);

    let mut tasks = JoinSet::new();
    for listener in &config.listener {
        let socket = Listener::open(listener.address, listener.service)?;
        let listener = match listener.proxy_from.as_slice() {
            [] => socket,
            balancers => socket.behind(balancers.to_vec()),
        };
        let front = front.clone();
        tasks.spawn(async move {
            listener.run(front).await;
            Ok(())
        });
    }
    tasks.spawn({
        let (callouts, answers) = (callouts.clone(), answers.clone());
        async move {
            callouts.upkeep(&answers).await;
            Ok(())
        }
    });
    tasks.spawn(async move {
        domains.run().await;
        Ok(())
    });
    let ready: http::Readiness = {
        let plane = plane.clone();
        Arc::new(move || plane.not_ready())
    };
    if let Some(address) = config.agent {
        let ready = ready.clone();
        tasks.spawn(async move { Ok(agent_check::serve(address, ready).await?) });
    }
    let views: http::Views = {
        let plane = plane.clone();
        Arc::new(move || {
            let plane = plane.clone();
            Box::pin(async move { plane.view().await })
        })
    };
    let router = http::router(metrics.clone(), ready, views);
    let address = config.http;
    tasks.spawn(async move { http::serve(address, router).await.map_err(Failure::from) });
    tasks.spawn(async move {
        http::upkeep(metrics).await;
        Ok(())
    });
    tracing::info!(node = plane.node(), name = config.name, "ready to serve");
    service::ready();

    let ended = tokio::select! {
        ended = serve(&config, &hooks.live, &front, &plane, &log, &mut tasks) => ended,
        () = service::watchdog() => Ok(()),
    };
    service::stopping();
    stop(&front, &deliverer, &plane).await;
    log.close().await;
    // The last lines; a disk that hangs must not keep the process.
    let _ = tokio::time::timeout(limits::STOP_PATIENCE, callouts.save(&answers)).await;
    let written = tokio::task::spawn_blocking(|| log_thread.join());
    let _ = tokio::time::timeout(limits::STOP_PATIENCE, written).await;
    drop(plane);
    match ended {
        Err(failure) if matches!(failure.downcast_ref(), Some(Stop::Damaged { .. })) => {
            let node = come_back(&config, failure.to_string()).await?;
            Err(format!("the log was damaged; this is node {node} from now on: start it again")
                .into())
        }
        other => other,
    }
}

/// Brings the node of a data directory back under a new number; gives that.
///
/// # Errors
/// If it runs, or the cluster does not let it in.
pub async fn rejoin(config: &NodeConfig) -> Result<NodeId, Failure> {
    let _lock = files::lock(&config.data)?;
    Ok(ppsw_control::rejoin(&config.data, config.control).await?)
}

fn load(config: &NodeConfig) -> Result<Arc<Configuration>, Failure> {
    Configuration::load(&config.config).map_err(|reports| {
        let all: Vec<String> = reports.iter().map(|report| format!("{report:?}")).collect();
        format!("{} errors in {}:\n{}", all.len(), config.config.display(), all.join("\n")).into()
    })
}

/// Starts the control plane; if the log is damaged or gone, once more under a new number, as the configuration says.
async fn start_or_rejoin(config: &NodeConfig, hooks: &Arc<Hooks>) -> Result<Plane, Failure> {
    // A rejoin that was cut off has given up the old number already.
    ppsw_control::finish_rejoin(&config.data)?;
    let start = || start_plane(config, hooks.clone());
    let started = match start().await {
        Err(error) if error.is_damage() => {
            let node = come_back(config, error.to_string()).await?;
            tracing::warn!(node, "rejoined; the old log is kept beside the new one");
            start().await
        }
        other => other,
    };
    started.map_err(|error| Stop::of_start(config, error))
}

/// Gives a node whose log cannot be used a new number, if the configuration lets it, and only once: a disk that damages
/// logs again and again needs somebody to look at it.
async fn come_back(config: &NodeConfig, why: String) -> Result<NodeId, Failure> {
    if config.on_damage == OnDamage::Stop {
        return Err(Stop::Damaged { why }.into());
    }
    if let Some(before) = ppsw_control::set_aside(&config.data)?.0.first() {
        let why = format!(
            "{why}\nThis is the second time: {} is from the first. Is the disk failing? Look at it, and remove that \
             directory when it is not needed any more",
            before.display()
        );
        return Err(Stop::Damaged { why }.into());
    }
    tracing::error!(why, "the log cannot be used: this node comes back under a new number");
    let back = ppsw_control::rejoin(&config.data, config.control).await;
    Ok(back.map_err(|error| Stop::Damaged {
        why: format!("{why}\nIt was not let in again: {error}"),
    })?)
}

async fn start_plane(config: &NodeConfig, hooks: Arc<Hooks>) -> Result<Plane, PlaneError> {
    let options = PlaneOptions {
        data: config.data.clone(),
        listen: config.control,
        http: Some(config.http),
        timing: Timing::default(),
        takeover_grace: config.takeover_grace,
        drain_notice: config.drain_notice,
        segment_bytes: config.segment_bytes,
        cache_bytes: config.cache_bytes,
    };
    let plane = Plane::start(options, Arc::new(SystemDisk), Arc::new(SystemClock), hooks).await?;
    match config.scrub_period() {
        Some(period) => plane.start_scrub(period)?,
        None => tracing::warn!(
            "scrub_period = \"0\": the log is not read through in the background; damage is found when the record \
             is needed, perhaps when no other node has a whole one any longer"
        ),
    }
    Ok(plane)
}

/// Waits for a reason to end; on SIGHUP reloads the configuration and the certificates, and opens the log files anew.
async fn serve(
    config: &NodeConfig,
    live: &Live,
    front: &FrontEnd,
    plane: &Plane,
    log: &MailLog,
    tasks: &mut JoinSet<Result<(), Failure>>,
) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => {
                log.reopen();
                reload(config, plane, live).await;
                let read = front.certificates.reload(&config.certificates);
                match &read {
                    Ok(()) => tracing::info!("certificates reloaded"),
                    Err(error) => tracing::error!(%error, "certificates not reloaded; the old ones stay"),
                }
                plane.certificates_read(read.map_err(|error| error.to_string()));
                if let Some(configuration) = live.running() {
                    warn_of_unknown_clients(&configuration, &front.certificates);
                }
            }
            why = plane.removed() => return Err(Stop::Removed(why).into()),
            why = plane.failed() => return Err(Stop::of_plane(config, plane, &why)),
            Some(ended) = tasks.join_next() => {
                ended.map_err(|e| format!("a part of the node has ended: {e}"))??;
            }
        }
    }
}

/// A policy that relays for everybody is served, for it may be wanted where nobody else can connect; but loudly.
async fn cry_if_open(configuration: &Configuration) {
    for relay in configuration.open_relays().await {
        tracing::error!("{relay}");
    }
}

/// Clients are asked for certificates only if somebody can have signed them.
fn warn_of_unknown_clients(configuration: &Configuration, certificates: &Certificates) {
    if configuration.asks_certificates() && !certificates.know_clients() {
        tracing::warn!(
            "tls_try_verify_hosts has no effect: there is no clients.pem with CAs beside the certificates"
        );
    }
}

/// What to run: the version that the cluster has, or else the directory of this node's own configuration file.
async fn configured(
    config: &NodeConfig,
    plane: &Plane,
    live: &Live,
) -> Result<watch::Receiver<Arc<Configuration>>, Failure> {
    loop {
        let runs_version = tokio::select! {
            runs_version = plane.settled() => runs_version,
            why = plane.removed() => return Err(Stop::Removed(why).into()),
            why = plane.failed() => return Err(Stop::of_plane(config, plane, &why)),
            // Who has run no version, and hears nobody, is not ready, and takes no mail without a majority: it runs its own
            // directory until it hears of a version.
            () = tokio::time::sleep(limits::VERSION_PATIENCE) => {
                if plane.has_version() {
                    tracing::warn!("waits for the active version of policy and tables: {}", plane.not_ready().join("; "));
                    continue;
                }
                false
            }
        };
        match live.watch() {
            Some(current) if runs_version => return Ok(current),
            _ => break,
        }
    }
    let configuration = load(config)?;
    cry_if_open(&configuration).await;
    live.run_own(configuration);
    live.watch().ok_or_else(|| "there is no configuration to run".into())
}

/// Reads the node's own directory again, as long as the cluster has no version.
async fn reload(config: &NodeConfig, plane: &Plane, live: &Live) {
    if plane.runs_version() {
        tracing::info!(
            "this node runs a version of policy and tables that was pushed, not its directory: `ppswctl tables push`"
        );
        return;
    }
    match load(config) {
        Ok(configuration) => {
            cry_if_open(&configuration).await;
            live.run_own(configuration);
            tracing::info!("configuration reloaded");
        }
        Err(error) => tracing::error!(%error, "configuration not reloaded; the old one stays"),
    }
}

/// No new work, a moment for what runs, then the groups.
async fn stop(front: &FrontEnd, deliverer: &Deliverer, plane: &Plane) {
    front.activity.drain(true);
    let (sessions, attempts) = tokio::join!(
        front.activity.finish(limits::STOP_PATIENCE),
        deliverer.finish(limits::STOP_PATIENCE)
    );
    if !(sessions && attempts) {
        tracing::info!("stopping with sessions or attempts that have not ended");
    }
    plane.shutdown().await;
}

/// The configuration that is active now.
struct CurrentRules(watch::Receiver<Arc<Configuration>>);

impl Rules for CurrentRules {
    fn current(&self) -> Arc<dyn Policy> {
        self.0.borrow().clone()
    }
}

struct Facts(Spool, Plane, Arc<Load>);

impl NodeFacts for Facts {
    fn queue_length(&self) -> u64 {
        let led = self.0.partitions().into_iter().filter(|p| p.group().leads());
        led.map(|partition| partition.len() as u64).sum()
    }

    fn load(&self) -> Option<u32> {
        self.2.hundredths(SystemClock.instant())
    }

    fn commit_time(&self) -> Duration {
        let led = self.0.partitions().into_iter().map(|partition| partition.group());
        led.filter(|group| group.leads()).map(|group| group.commit_time()).max().unwrap_or_default()
    }

    fn room_bytes(&self) -> Option<u64> {
        Some(self.1.free_bytes())
    }

    fn shed_percent(&self, personality: &str) -> u8 {
        self.1.orders().shed_percent(personality, SystemClock.now())
    }
}

const _: () = assert!(limits::STOP_PATIENCE.as_secs() < Duration::from_secs(60).as_secs());
