//! `ppswd`: one program for a node, a development cluster and its helpers. See `ppswd --help`.

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use ppsw_node::{
    config::{self, NodeConfig},
    dev,
    explode::{self, EX_TEMPFAIL, Posting},
    files, pages,
    policy::Configuration,
    run,
};

/// Exit code of a command line that makes no sense.
const EXIT_USAGE: u8 = 2;

/// A node of a ppswitch cluster.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, 1 failed (the reason is on standard error), 2 usage, 65 the log is damaged or gone: \
                  do not start this node again before `ppswd rejoin`, 74 the disk has failed, \
                  77 this node was removed from the cluster."
)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a node that belongs to a cluster.
    Run {
        #[arg(long)]
        config: PathBuf,
        /// End when the process that started this one ends.
        #[arg(long, hide = true)]
        die_with_parent: bool,
    },
    /// Make this machine the first node of a new cluster.
    Init {
        #[arg(long)]
        config: PathBuf,
        /// Where to write the administrator's credentials.
        #[arg(long, default_value = "admin")]
        admin: PathBuf,
        /// Where to write credentials that can only look.
        #[arg(long, default_value = "viewer")]
        viewer: PathBuf,
    },
    /// Make this machine a node of a cluster that exists.
    Join {
        #[arg(long)]
        config: PathBuf,
        /// What `ppswctl token create` printed.
        #[arg(long)]
        token: String,
        /// Control address of any node of the cluster.
        #[arg(long)]
        peer: String,
    },
    /// Bring a node back whose log is damaged or gone: moves it aside and gets a new number.
    Rejoin {
        #[arg(long)]
        config: PathBuf,
    },
    /// Check a configuration file, the policy and the tables; every error is reported.
    Check {
        #[arg(long)]
        config: PathBuf,
    },
    /// Print a configuration file with everything that there is, what it means, and its default.
    Config,
    /// Write man pages into a directory: of this program, its verbs, and its configuration file.
    Man { dir: PathBuf },
    /// Start a whole cluster on loopback addresses, with a sink and a DNS server.
    Dev(dev::DevArgs),
    /// A list program that passes on: hands the message on standard input back to this machine's node, for the -outgoing address of its
    /// list. For a pipe transport, whose environment it reads; exits with codes of sysexits.h.
    ExplodeList {
        /// Where the node takes mail of this machine; else PPSW_SMTP.
        #[arg(long)]
        smtp: Option<SocketAddr>,
    },
    /// The mail sink of `ppswd dev`, a process of its own.
    #[command(hide = true)]
    Sink {
        #[arg(long)]
        smtp: SocketAddr,
        #[arg(long)]
        lmtp: SocketAddr,
        #[arg(long)]
        maildir: PathBuf,
        #[arg(long, hide = true)]
        die_with_parent: bool,
    },
}

/// With glibc's, a node takes a fifth less mail with the same processor (docs/decisions/033-allocator.md); with mimalloc it
/// wants twice the memory (docs/decisions/038-jemalloc.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A panic is a bug that no handler can mend: the process ends and the cluster goes on without it, in a build whose panics
/// unwind, too.
fn end_by_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

fn main() -> ExitCode {
    end_by_panic();
    let args = Args::parse();
    run::prepare_process();
    if let Verb::ExplodeList { smtp } = args.verb {
        return explode(smtp);
    }
    let done = match args.verb {
        Verb::Run { config, die_with_parent } => {
            run::die_with_parent(die_with_parent);
            read(&config).and_then(run::node)
        }
        Verb::Init { config, admin, viewer } => run::blocking(async {
            let config = read(&config)?;
            ppsw_control::init(&config.data, config.control, &admin, &viewer).await?;
            println!(
                "cluster made; this is node 1. Credentials: {} and {}",
                admin.display(),
                viewer.display()
            );
            Ok(())
        }),
        Verb::Join { config, token, peer } => run::blocking(async {
            let config = read(&config)?;
            let node = ppsw_control::join(&config.data, config.control, &token, &peer).await?;
            println!("joined; this is node {node}");
            Ok(())
        }),
        Verb::Rejoin { config } => run::blocking(async {
            let config = read(&config)?;
            let node = run::rejoin(&config).await?;
            println!("this is node {node} now; start it with `ppswd run`");
            Ok(())
        }),
        Verb::ExplodeList { .. } => Ok(()),
        Verb::Check { config } => check(&config),
        Verb::Config => config::annotated().map_err(Into::into).map(|text| {
            // Fails if nobody reads it to its end.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
        }),
        Verb::Man { dir } => man(&dir),
        Verb::Dev(args) => run::blocking(async { dev::dev(args).await }),
        Verb::Sink { smtp, lmtp, maildir, die_with_parent } => {
            run::die_with_parent(die_with_parent);
            run::blocking(async { dev::sink(smtp, lmtp, &maildir).await })
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not `eprintln`: it panics when standard error is a file on a full disk.
            let _ = writeln!(std::io::stderr(), "ppswd: {error}");
            let stop = error.downcast_ref::<run::Stop>();
            stop.map_or(ExitCode::FAILURE, |stop| ExitCode::from(stop.exit_code()))
        }
    }
}

/// Its output goes into a bounce, its code says what becomes of the message.
fn explode(smtp: Option<SocketAddr>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (runtime, posting) = match (runtime, Posting::from_environment()) {
        (Ok(runtime), Ok(posting)) => (runtime, posting),
        (Err(_), _) => return ExitCode::from(EX_TEMPFAIL),
        (_, Err(ended)) => return end(&ended),
    };
    let posting = Posting { smtp: smtp.or(posting.smtp), ..posting };
    let Ok(input) = explode::standard_input() else { return ExitCode::from(EX_TEMPFAIL) };
    let ended = runtime.block_on(posting.pass_on(input));
    // What waits for standard input is not waited for.
    runtime.shutdown_background();
    end(&ended)
}

fn end(ended: &explode::Ended) -> ExitCode {
    if !ended.text.is_empty() {
        let _ = writeln!(std::io::stdout(), "{}", ended.text);
    }
    ExitCode::from(ended.code)
}

fn read(path: &std::path::Path) -> Result<NodeConfig, run::Failure> {
    Ok(NodeConfig::read(path)?)
}

fn check(path: &std::path::Path) -> Result<(), run::Failure> {
    let config = read(path)?;
    let problems = futures::executor::block_on(Configuration::problems(&config.config));
    for problem in &problems {
        eprintln!("{}", problem.report);
    }
    if !problems.is_empty() {
        return Err(format!("{} errors in {}", problems.len(), config.config.display()).into());
    }
    println!("{}: good", path.display());
    Ok(())
}

fn man(dir: &std::path::Path) -> Result<(), run::Failure> {
    pages::man(Args::command(), "ppswd", dir)?;
    files::write(&dir.join("ppswd.toml.5"), &config::page()?)?;
    Ok(())
}

const _: () = assert!(EXIT_USAGE == 2, "clap's own code for a wrong command line");
