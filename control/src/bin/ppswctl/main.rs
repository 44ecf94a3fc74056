//! `ppswctl`: what operators do with a cluster. It asks any node; the nodes ask each other.

mod drain;
mod node;
mod queue;
mod session;
mod show;
mod status;
mod target;
mod token;

use std::{process::ExitCode, time::Duration};

use clap::{Args as ArgGroup, Parser, Subcommand};

use session::{Failure, Session};
use target::TargetArgs;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused, or failed: the reason is on standard error
  2  usage: the command line or the configuration makes no sense
  3  no node answered
  4  timed out: what was asked for goes on, the same command again keeps waiting

NODE is a number or a name; times are `30s`, `5m` or seconds.
Without --cluster or --address, ~/.config/ppswctl.toml says where the cluster is:
  addresses = [\"192.0.2.1:2590\", \"192.0.2.2:2590\"]
  credentials = \"/etc/ppswitch/admin\"";

/// Operates a ppswitch cluster.
#[derive(Debug, Parser)]
#[command(name = "ppswctl", version, after_help = EXIT_CODES)]
struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show nodes, partitions and who leads them.
    Status,
    /// Empty a node for a stop: no new sessions, its partitions go to other nodes. Stays so until undrain.
    Drain {
        node: String,
        /// Stop waiting (not: drain) after this time.
        #[arg(long, value_parser = show::parse_duration, default_value = "5m")]
        timeout: Duration,
        /// Also if another node is drained, or nobody can take over.
        #[arg(long)]
        force: bool,
    },
    /// Bring a drained node back into service.
    Undrain {
        node: String,
        /// Stop waiting after this time.
        #[arg(long, value_parser = show::parse_duration, default_value = "1m")]
        timeout: Duration,
    },
    /// The members of the cluster.
    Node {
        #[command(subcommand)]
        verb: NodeVerb,
    },
    /// Tokens with which new machines join.
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
    },
    /// Messages that wait for delivery.
    Queue {
        #[command(subcommand)]
        verb: QueueVerb,
    },
}

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// Show the members.
    List,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Print a new token, one line. It is good for any number of machines until it expires.
    Create {
        /// How long it is good.
        #[arg(long, value_parser = show::parse_duration, default_value = "1h")]
        ttl: Duration,
    },
    /// Show the tokens' ids, never their secrets.
    List,
    /// End a token before its time.
    Revoke { id: String },
}

#[derive(Debug, Subcommand)]
enum QueueVerb {
    /// Count messages and recipients by domain.
    Summary(QueueFilter),
    /// Show the messages, one a line.
    List(QueueFilter),
    /// Show everything about messages.
    Show(QueueFilter),
}

/// Which messages are meant: those that fit all of it.
#[derive(Debug, ArgGroup)]
struct QueueFilter {
    /// Message ids.
    ids: Vec<String>,
    /// Sender's address; `*` stands for any characters, `<>` is the null sender.
    #[arg(long)]
    sender: Option<String>,
    /// Recipient's address; `*` stands for any characters.
    #[arg(long)]
    recipient: Option<String>,
    /// Recipient's domain; `*` stands for any characters.
    #[arg(long)]
    domain: Option<String>,
    /// `queued` or `held`, or of a recipient: `new`, `deferred`, `delivered`, `failed`.
    #[arg(long)]
    state: Option<String>,
    /// At least this old; with `<` before the time: at most.
    #[arg(long, value_parser = show::parse_age)]
    age: Option<show::Age>,
    /// Only what this node leads.
    #[arg(long)]
    node: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // The program waits for others most of the time: one thread is plenty.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(args)),
        Err(error) => Err(Failure::Refused(format!("cannot start: {error}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            show::warn(&failure.to_string());
            ExitCode::from(failure.code())
        }
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let target = args.target.resolve().map_err(Failure::Usage)?;
    let mut session = Session::new(target)?;
    let json = args.json;
    match args.verb {
        Verb::Status => status::run(&mut session, json).await,
        Verb::Drain { node, timeout, force } => {
            drain::drain(&mut session, json, &node, timeout, force).await
        }
        Verb::Undrain { node, timeout } => drain::undrain(&mut session, json, &node, timeout).await,
        Verb::Node { verb: NodeVerb::List } => node::list(&mut session, json).await,
        Verb::Token { verb } => match verb {
            TokenVerb::Create { ttl } => token::create(&mut session, json, ttl).await,
            TokenVerb::List => token::list(&mut session, json).await,
            TokenVerb::Revoke { id } => token::revoke(&mut session, json, id).await,
        },
        Verb::Queue { verb } => match verb {
            QueueVerb::Summary(filter) => queue::summary(&mut session, json, filter).await,
            QueueVerb::List(filter) => queue::list(&mut session, json, filter).await,
            QueueVerb::Show(filter) => queue::show(&mut session, json, filter).await,
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_and_after_the_verb() {
        for line in [
            "ppswctl --json --cluster c status",
            "ppswctl status --json --cluster c",
            "ppswctl --json queue list --cluster c --age 5m",
            "ppswctl queue list --json --cluster c 1vN3kq-000001-02",
        ] {
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            assert!(args.json, "{line}");
            assert!(args.target.cluster.is_some(), "{line}");
        }
        assert!(Args::try_parse_from(["ppswctl", "drain", "2", "--timeout", "soon"]).is_err());
    }
}
