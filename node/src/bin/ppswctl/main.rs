//! `ppswctl`: what operators and scripts ask of a cluster.

/// Prints a line. If nobody reads any more (`| head`), the program ends quietly.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::write_line(format_args!($($text)*))
    };
}

mod address;
mod age;
mod args;
mod domains;
mod drain;
mod events;
mod explain;
mod gaps;
mod log;
mod node;
mod operate;
mod pages;
mod policy;
mod queue;
mod rolling;
mod route;
mod standing;
mod status;
mod tables;
mod token;
mod top;
mod trace;

use std::{
    error::Error as _,
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use ppsw_control::client;
use tonic::Code;

use crate::args::{
    Args, DomainsVerb, ListsVerb, NodeVerb, PlacementVerb, PolicyVerb, QueueVerb, ShedVerb,
    TablesVerb, TokenVerb, Verb,
};

/// Why a verb did not do what it was asked; each kind has its exit code.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The cluster refused, or it failed there.
    #[error("{0}")]
    Refused(String),
    /// The command line or a file that it names is wrong.
    #[error("{0}")]
    Usage(String),
    /// No node of the cluster answered, or not enough of them.
    #[error("{0}")]
    Silent(String),
    /// It is not done, and may still be.
    #[error("{0}")]
    TimedOut(String),
}

impl Failure {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::Silent(_) => 3,
            Self::TimedOut(_) => 4,
        }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            Code::Unavailable => Self::Silent(status.message().to_owned()),
            Code::DeadlineExceeded => Self::TimedOut(status.message().to_owned()),
            // Not the node's word, but what became of the connection to it.
            _ if status.source().is_some() => Self::Silent(format!(
                "the connection to the node broke ({}): it is not known whether this was done",
                client::deepest(&status)
            )),
            Code::Unauthenticated | Code::PermissionDenied => {
                Self::Refused(format!("{}; give credentials of the right role", status.message()))
            }
            _ => Self::Refused(status.message().to_owned()),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let json = args.json;
    // Fails only if another provider was installed before; there is none in the tree.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("ppswctl: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args)) {
        Ok(code) => code,
        Err(failure) => {
            if json {
                let code = failure.exit_code();
                say!("{}", serde_json::json!({ "error": failure.to_string(), "code": code }));
            }
            eprintln!("ppswctl: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn write_line(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

async fn run(args: Args) -> Result<ExitCode, Failure> {
    if let Verb::Policy { verb: PolicyVerb::Check { dir } } = &args.verb {
        return Ok(policy::check(dir, args.json).await);
    }
    if let Verb::Completions { shell } = &args.verb {
        pages::completions(*shell);
        return Ok(ExitCode::SUCCESS);
    }
    if let Verb::Man { dir } = &args.verb {
        return pages::man(dir, args.json).map(|()| ExitCode::SUCCESS);
    }
    if let Verb::Route(asked) = &args.verb {
        let mut admin = address::connect(&address::find(&args)?).await?;
        return route::route(&mut admin, asked, args.json).await;
    }
    if let Verb::Queue { verb } = &args.verb
        && let Some(asked) = operate::Asked::of(verb)
    {
        let mut admin = address::connect(&address::find(&args)?).await?;
        return operate::operate(&mut admin, &asked, args.json).await;
    }
    if let Verb::Tables { verb: TablesVerb::Get { table, key } } = &args.verb {
        let mut admin = address::connect(&address::find(&args)?).await?;
        return tables::get(&mut admin, table, key, args.json).await;
    }
    if let Verb::Domains { verb: DomainsVerb::Fetch { domain, force } } = &args.verb {
        let mut admin = address::connect(&address::find(&args)?).await?;
        return domains::fetch(&mut admin, domain, *force, args.json).await;
    }
    if let Verb::Top { count } = &args.verb {
        return top::top(&address::find(&args)?, *count, args.json)
            .await
            .map(|()| ExitCode::SUCCESS);
    }
    operate(args).await.map(|()| ExitCode::SUCCESS)
}

async fn operate(args: Args) -> Result<(), Failure> {
    let cluster = address::find(&args)?;
    let mut admin = address::connect(&cluster).await?;
    let json = args.json;
    match args.verb {
        Verb::Status { log: true } => log::log(&mut admin, json).await,
        Verb::Status { log: false } => status::status(&mut admin, json).await,
        Verb::Node { verb } => match verb {
            NodeVerb::List => status::nodes(&mut admin, json).await,
            NodeVerb::Remove { node, reason, force, timeout } => {
                let asked = node::Removal { given: node, reason, force };
                node::remove(&cluster, &asked, timeout, json).await
            }
        },
        Verb::Placement { verb } => match verb {
            PlacementVerb::Show => node::show_placement(&mut admin, json).await,
            PlacementVerb::Set { voters, replace_after } => {
                node::set_placement(&mut admin, voters, replace_after, json).await
            }
        },
        Verb::Drain { node, timeout, force } => {
            drain::drain(&cluster, &node, timeout, force, json).await
        }
        Verb::Undrain { node, timeout } => drain::undrain(&cluster, &node, timeout, json).await,
        Verb::RollingRestart { exec, nodes, timeout } => {
            let asked = rolling::Asked { exec, nodes, patience: timeout };
            rolling::restart(&cluster, &asked, json).await
        }
        Verb::Token { verb } => match verb {
            TokenVerb::Create { expires } => token::create(&mut admin, expires, json).await,
            TokenVerb::List => token::list(&mut admin, json).await,
            TokenVerb::Revoke { id } => token::revoke(&mut admin, &id, json).await,
        },
        Verb::Queue { verb } => match verb {
            QueueVerb::Summary(filter) => queue::summary(&mut admin, filter, json).await,
            QueueVerb::List(filter) => queue::list(&mut admin, filter, json).await,
            QueueVerb::Show { id } => queue::show(&mut admin, &id, json).await,
            QueueVerb::Cat { id } => queue::cat(&mut admin, id).await,
            QueueVerb::Rules => standing::list(&mut admin, json).await,
            QueueVerb::Cancel { rules } => standing::cancel(&mut admin, rules, "", json).await,
            // Done in `run`.
            _ => Ok(()),
        },
        Verb::Tables { verb } => match verb {
            TablesVerb::Push { dir, reason, author, force } => {
                let asked = tables::Asked { author, reason, force };
                tables::push(&mut admin, &dir, asked, json).await
            }
            TablesVerb::Versions => tables::versions(&mut admin, json).await,
            TablesVerb::Diff { a, b, limit } => tables::diff(&mut admin, &a, &b, limit, json).await,
            TablesVerb::Rollback { version, reason, author } => {
                let asked = tables::Asked { author, reason, force: false };
                tables::roll_back(&mut admin, version, asked, json).await
            }
            // Done in `run`.
            TablesVerb::Get { .. } => Ok(()),
            TablesVerb::Status => tables::status(&mut admin, json).await,
        },
        Verb::Lists { verb } => match verb {
            ListsVerb::Set { list, members, moderators, managers, reason, force } => {
                let files =
                    [("members", members), ("moderators", moderators), ("managers", managers)];
                tables::set(&mut admin, &format!("lists/{list}"), &files, reason, force, json).await
            }
            ListsVerb::Reset { list, reason } => {
                let names = ["members", "moderators", "managers"];
                tables::reset(&mut admin, &format!("lists/{list}"), &names, reason, json).await
            }
        },
        Verb::Suspend { destination, lasts, reason } => {
            standing::suspend(&mut admin, destination, lasts, reason, json).await
        }
        Verb::Shed { verb } => match verb {
            ShedVerb::Set { personality, percent, lasts, reason } => {
                standing::shed(&mut admin, personality, percent, (lasts, reason), json).await
            }
            ShedVerb::List => standing::list_shed(&mut admin, json).await,
            ShedVerb::Clear { personality } => {
                let personality = personality.unwrap_or_else(|| "*".to_owned());
                standing::stop_shedding(&mut admin, personality, json).await
            }
        },
        Verb::Resume { destination } => {
            standing::cancel(&mut admin, Vec::new(), &destination, json).await
        }
        Verb::Domains { verb } => operate_domains(&mut admin, verb, json).await,
        Verb::Trace(asked) => trace::trace(&mut admin, asked, json).await,
        Verb::Events { since, node, lasts } => {
            let asked = events::Asked { since, node, lasts };
            events::events(&cluster, asked, json).await
        }
        Verb::Session(session) => explain::session(&mut admin, session, json).await,
        // Done in `run`.
        Verb::Route { .. }
        | Verb::Top { .. }
        | Verb::Policy { .. }
        | Verb::Completions { .. }
        | Verb::Man { .. } => Ok(()),
    }
}

async fn operate_domains(
    admin: &mut address::Admin,
    verb: DomainsVerb,
    json: bool,
) -> Result<(), Failure> {
    match verb {
        DomainsVerb::List => domains::list(admin, json).await,
        DomainsVerb::Show { domain } => domains::show(admin, &domain, json).await,
        DomainsVerb::Set(set) => domains::set(admin, set, json).await,
        DomainsVerb::Reset { domain, reason } => {
            let names = ["aliases", "managers"];
            tables::reset(admin, &format!("domains/{domain}"), &names, reason, json).await
        }
        DomainsVerb::Unset { domain } => domains::unset(admin, &domain, json).await,
        DomainsVerb::Check { domain, mail } => domains::check(admin, &domain, mail, json).await,
        // Done in `run`.
        DomainsVerb::Fetch { .. } => Ok(()),
    }
}
