//! The command line.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::age;

/// Operate a ppswitch cluster.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 no node answered; 4 timed out. `route` has its own.\n\
                  Times are 30s, 5m, 2h, 1d or seconds. NODE is a number or a name.\n\
                  Without --cluster or --address, ~/.config/ppswctl.toml is read: `address = [\"HOST:PORT\"]` and \
                  `credentials = \"DIR\"`."
)]
pub(crate) struct Args {
    /// The cluster.json of a development cluster.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "address")]
    pub(crate) cluster: Option<PathBuf>,
    /// Control address of a node; may be given several times.
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub(crate) address: Vec<String>,
    /// Directory with ca.pem, cert.pem and key.pem.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) credentials: Option<PathBuf>,
    /// Use the cluster file's viewer credentials, which can only look.
    #[arg(long, global = true)]
    pub(crate) viewer: bool,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Nodes, partitions, and who leads them.
    Status {
        /// Instead, how long the nodes' logs are, and why their oldest segments are kept.
        #[arg(long)]
        log: bool,
    },
    /// The cluster as it works: nodes, leaders, rates, queue; q ends it. In a pipe, or with --json, a snapshot.
    Top {
        /// End after so many looks, each a second after the one before. In a pipe it is 1.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        count: Option<u32>,
    },
    /// Members of the cluster.
    Node {
        #[command(subcommand)]
        verb: NodeVerb,
    },
    /// Where partitions are put.
    Placement {
        #[command(subcommand)]
        verb: PlacementVerb,
    },
    /// Take a node out of service: no new mail, its queue handed over; ends when it is safe to stop.
    Drain {
        node: String,
        /// Give up waiting after this time; the drain goes on.
        #[arg(long, value_parser = age::duration, default_value = "5m")]
        timeout: Duration,
        /// Also when another node is drained already.
        #[arg(long)]
        force: bool,
    },
    /// Take a drained node back into service; ends when it leads its queue again.
    Undrain {
        node: String,
        #[arg(long, value_parser = age::duration, default_value = "2m")]
        timeout: Duration,
    },
    /// Restart all nodes, one after the other: drains a node, runs a command, waits for it to come back, goes on if all is well.
    RollingRestart {
        /// Run by `sh` for each node; `{host}` is its control address without the port, `{name}` its name, `{id}` its number.
        #[arg(long, value_name = "COMMAND")]
        exec: String,
        /// Only these, in this order.
        #[arg(long, value_name = "NODE", value_delimiter = ',')]
        nodes: Vec<String>,
        /// For each step of each node: the drain, the command, the return.
        #[arg(long, value_parser = age::duration, default_value = "5m")]
        timeout: Duration,
    },
    /// What a machine needs to join.
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
    },
    /// Messages that wait, wherever they are.
    Queue {
        #[command(subcommand)]
        verb: QueueVerb,
    },
    /// Send nothing to a domain, or to hosts of a name; `*` is any characters. Mail for it waits, and does not expire.
    Suspend {
        destination: String,
        /// It ends after this time.
        #[arg(long = "for", value_name = "TIME", value_parser = age::duration, default_value = "1d")]
        lasts: Duration,
        /// Why; it is shown and logged.
        #[arg(long)]
        reason: String,
    },
    /// Turn a part of a personality's sessions away, on all nodes; not those of `relay_hosts`.
    Shed {
        #[command(subcommand)]
        verb: ShedVerb,
    },
    /// Send to a suspended destination again; what waits is due at once.
    Resume { destination: String },
    /// SMTP dialogue as it happens, of clients and to next hops, on all nodes; without contents of messages and passwords.
    #[command(
        after_help = "All that is given must fit. `*` in a pattern is any characters, `<>` is the null sender.\n\
                      `<-` the other end said it, `->` the node did, `--` something happened."
    )]
    Trace(Trace),
    /// What happens in the cluster, as it happens: nodes, leaders, drains, rules, versions.
    Events {
        /// Also what has happened in this time; 0: nothing. Without, the last 10 events.
        #[arg(long, value_name = "TIME", value_parser = age::duration)]
        since: Option<Duration>,
        /// Only what is about this node.
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        /// It ends after this time; 0: at once, after what has happened. At most 31d.
        #[arg(long = "for", value_name = "TIME", value_parser = age::duration, default_value = "1d")]
        lasts: Duration,
    },
    /// Managed mail domains, and those that are fetched from a web server.
    Domains {
        #[command(subcommand)]
        verb: DomainsVerb,
    },
    /// Where mail for addresses would go, and what each router said; sends nothing.
    #[command(
        after_help = "Exit codes: 0 deliverable, 1 deferred, 2 unroutable; the worst of all addresses."
    )]
    Route(Route),
    /// A made-up SMTP session, its commands on standard input: prints each rule that was tried, and why it matched.
    /// Nothing is accepted or sent; nothing is counted by a rate; delays are shown instead of waited.
    Session(Session),
    /// Versions of policy and tables.
    Tables {
        #[command(subcommand)]
        verb: TablesVerb,
    },
    /// Mailing lists whose tables can be changed alone.
    Lists {
        #[command(subcommand)]
        verb: ListsVerb,
    },
    /// Completions for a shell, on standard output.
    Completions { shell: clap_complete::Shell },
    /// Man pages, one for each verb, into a directory.
    Man { dir: PathBuf },
    /// The policy's files.
    Policy {
        #[command(subcommand)]
        verb: PolicyVerb,
    },
}

/// Addresses, and the message that is for them.
#[derive(Debug, ClapArgs)]
pub(crate) struct Route {
    #[arg(required = true)]
    pub(crate) addresses: Vec<String>,
    /// As a verification asks the routers.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Sender of the message; `<>` for a bounce.
    #[arg(long, value_name = "ADDRESS", default_value = "<>")]
    pub(crate) from: String,
    /// The personality by which it came: mx, smart, submit or local.
    #[arg(long, value_name = "NAME", default_value = "mx")]
    pub(crate) personality: String,
    /// It comes from this machine: short for --personality local.
    #[arg(long, conflicts_with = "personality")]
    pub(crate) local: bool,
    /// Its id, for routers that take a fraction of all messages.
    #[arg(long, value_name = "ID", default_value = "")]
    pub(crate) id: String,
    /// Only the routers that decide.
    #[arg(long)]
    pub(crate) short: bool,
}

/// Which sessions.
#[derive(Debug, ClapArgs)]
pub(crate) struct Trace {
    /// Of clients with this address, or in this network.
    #[arg(long, value_name = "ADDRESS|NETWORK")]
    pub(crate) client: Option<String>,
    /// With messages of this sender.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) sender: Option<String>,
    /// With messages for this recipient.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) recipient: Option<String>,
    /// With a host of this name, or address: a client by its verified or HELO name, or a next hop.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) host: Option<String>,
    /// Of this node only.
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// Only sessions of clients.
    #[arg(long = "in")]
    pub(crate) incoming: bool,
    /// Only sessions with next hops.
    #[arg(long = "out")]
    pub(crate) outgoing: bool,
    /// It ends after this time; at most 4h.
    #[arg(long = "for", value_name = "TIME", value_parser = age::duration, default_value = "10m")]
    pub(crate) lasts: Duration,
    /// It ends after so many lines.
    #[arg(long, value_name = "LINES")]
    pub(crate) count: Option<u64>,
}

/// Who talks to whom.
#[derive(Debug, ClapArgs)]
pub(crate) struct Session {
    /// Address of the client.
    #[arg(long, value_name = "IP")]
    pub(crate) client: IpAddr,
    /// Our address that it connects to: selects the personality.
    #[arg(long, value_name = "IP")]
    pub(crate) server: IpAddr,
    /// The port that it connects to.
    #[arg(long, default_value = "smtp", value_parser = ["smtp", "submission", "submissions"])]
    pub(crate) service: String,
    /// It has authenticated as this user, over TLS.
    #[arg(long, value_name = "USER")]
    pub(crate) auth: Option<String>,
    /// It uses TLS.
    #[arg(long)]
    pub(crate) tls: bool,
    /// It has shown a certificate for this name, over TLS, that a CA of `clients.pem` has signed.
    #[arg(long, value_name = "NAME")]
    pub(crate) certificate: Option<String>,
    /// Make callouts. Without, every address counts as taken.
    #[arg(long)]
    pub(crate) callout: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Report every error of a policy and its tables, and whether it relays for everybody. Asks no cluster.
    Check { dir: PathBuf },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TablesVerb {
    /// Make the files of a directory a version, and run it on all nodes. Sends what changed; checks first.
    Push {
        /// Holds policy.kdl, and tables/, users/, domains/, lists/.
        dir: PathBuf,
        /// Why; it is kept for the records.
        #[arg(long)]
        reason: String,
        /// Who wants it, if the credential does not say so.
        #[arg(long, default_value = "")]
        author: String,
        /// Also if a table shrinks by more than a quarter, or the policy relays for everybody.
        #[arg(long)]
        force: bool,
    },
    /// Versions that are kept, and how it came to be what is active.
    Versions,
    /// What differs between two versions; `active` is what runs, with what was changed alone.
    Diff {
        a: String,
        b: String,
        /// Entries that are shown of each file.
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Run an older version again.
    Rollback {
        version: u64,
        /// Why; it is kept for the records.
        #[arg(long)]
        reason: String,
        /// Who wants it, if the credential does not say so.
        #[arg(long, default_value = "")]
        author: String,
    },
    /// Look a key up, as the node that answers runs its tables. Exit code 1: it is not there.
    Get {
        /// `special_routes`, `users/cyrus`, `domains/DOMAIN/aliases`, `lists/NAME/members`.
        table: String,
        key: String,
    },
    /// Which version each node runs.
    Status,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ListsVerb {
    /// Replace tables of a list, without a new version of the rest.
    Set {
        list: String,
        /// Who gets what is sent to the list: one address a line.
        #[arg(long, value_name = "FILE")]
        members: Option<PathBuf>,
        #[arg(long, value_name = "FILE")]
        moderators: Option<PathBuf>,
        #[arg(long, value_name = "FILE")]
        managers: Option<PathBuf>,
        /// Why; it is kept for the records.
        #[arg(long)]
        reason: Option<String>,
        /// Also if a table shrinks by more than a quarter.
        #[arg(long)]
        force: bool,
    },
    /// Give a list's tables back to the versions.
    Reset {
        list: String,
        /// Why; it is kept for the records.
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// All members, and those that have left.
    List,
    /// Take a node out of the cluster for good: its replicas move to others, its queue is delivered by them.
    Remove {
        node: String,
        /// Why; it is kept for the records.
        #[arg(long)]
        reason: String,
        /// The node does not answer, and never comes back.
        #[arg(long)]
        force: bool,
        /// Give up waiting after this time; the removal goes on.
        #[arg(long, value_parser = age::duration, default_value = "30m")]
        timeout: Duration,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlacementVerb {
    /// How many voters a partition has, and when a silent node is replaced.
    Show,
    /// Change it for the whole cluster.
    Set {
        /// 3 or 5.
        #[arg(long)]
        voters: Option<u32>,
        /// A node that is silent for so long loses its votes until it answers again.
        #[arg(long, value_parser = age::duration)]
        replace_after: Option<Duration>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Print a new token.
    Create {
        /// How long it can be used.
        #[arg(long, value_parser = age::duration, default_value = "1h")]
        expires: Duration,
    },
    /// Tokens that exist; never their secrets.
    List,
    /// Make a token useless.
    Revoke { id: String },
}

/// Files for a domain, or where its aliases are to be fetched from.
#[derive(Debug, ClapArgs)]
pub(crate) struct SetDomain {
    pub(crate) domain: String,
    /// Its aliases: a line `alias: address, address` each.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    pub(crate) aliases: Option<PathBuf>,
    /// Who looks after it: one address a line.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    pub(crate) managers: Option<PathBuf>,
    /// Why; it is kept for the records.
    #[arg(long, conflicts_with = "url")]
    pub(crate) reason: Option<String>,
    /// Also if a table shrinks by more than a quarter.
    #[arg(long, conflicts_with = "url")]
    pub(crate) force: bool,
    /// Where its aliases file is: https://...
    #[arg(long, requires_all = ["user", "password_file"])]
    pub(crate) url: Option<String>,
    /// For HTTP basic authentication.
    #[arg(long, requires = "url")]
    pub(crate) user: Option<String>,
    /// A file with the password in it.
    #[arg(long, value_name = "FILE", requires = "url")]
    pub(crate) password_file: Option<PathBuf>,
    /// Certificates of the authorities to trust instead of those of the web.
    #[arg(long, value_name = "PEM", requires = "url")]
    pub(crate) ca_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DomainsVerb {
    /// All managed domains.
    List,
    /// Everything about one.
    Show { domain: String },
    /// Replace a domain's tables, without a new version of the rest; or have its aliases fetched from a web server,
    /// hourly, from now on.
    Set(SetDomain),
    /// Give a domain's tables back to the versions.
    Reset {
        domain: String,
        /// Why; it is kept for the records.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Fetch a domain no more; what is live stays.
    Unset { domain: String },
    /// Fetch a domain now, and tell what came of it; exit 1 if the file cannot be fetched or used.
    Fetch {
        domain: String,
        /// Take a file that has shrunk by more than a quarter.
        #[arg(long)]
        force: bool,
    },
    /// The detailed check of any managed domain: what its aliases lead to.
    Check {
        domain: String,
        /// Send it to the domain's postmaster, too, if there is something to say.
        #[arg(long)]
        mail: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ShedVerb {
    /// Shed this share of a personality's sessions: `shed set mx 50%`.
    Set {
        personality: String,
        #[arg(value_parser = share)]
        percent: u32,
        /// It ends after this time.
        #[arg(long = "for", value_name = "TIME", value_parser = age::duration, default_value = "1h")]
        lasts: Duration,
        /// Why; it is shown and logged.
        #[arg(long)]
        reason: String,
    },
    /// What is shed.
    List,
    /// Shed nothing of a personality any more, or of any.
    Clear { personality: Option<String> },
}

/// `50%` or `50`.
fn share(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<u32>();
    let share = number.ok().filter(|share| (1..=100).contains(share));
    share.ok_or_else(|| "expected a share from 1% to 100%".to_owned())
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueVerb {
    /// Recipients by domain.
    Summary(Filter),
    /// One line per message.
    List(Filter),
    /// Everything about one message.
    Show { id: String },
    /// The content of one message, as it goes to other servers.
    Cat { id: String },
    /// Rules that stand: made by `hold`, `bounce`, `drop` and `redirect` with --standing, and by `suspend`.
    Rules,
    /// End rules that stand. What they have done stays done.
    Cancel {
        #[arg(required = true)]
        rules: Vec<u64>,
    },
    /// Let attempts begin at once. Messages on hold stay there.
    Retry(Chosen),
    /// Begin no attempts for these messages until they are released. One that runs goes on.
    Hold(Chosen),
    /// End a hold; attempts begin at once.
    Release(Chosen),
    /// Give recipients up, and tell the sender.
    Bounce(Chosen),
    /// Give recipients up, and tell nobody.
    Drop(Chosen),
    /// Make recipients another address. When they are due and expire stays as it was.
    Redirect {
        #[command(flatten)]
        chosen: Chosen,
        /// The new address.
        #[arg(long, value_name = "ADDRESS")]
        to: String,
    },
}

/// Messages that something is to be done with. With --recipient or --domain, `bounce`, `drop` and `redirect` are about those
/// recipients only.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct Chosen {
    #[command(flatten)]
    pub(crate) filter: Filter,
    /// Every message in the queue, if there is no condition.
    #[arg(long)]
    pub(crate) all: bool,
    /// Why; it is logged. Needed for `bounce`, `drop` and `redirect`.
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// Not with the messages that are there, but for this long with all that come to delivery: `hold`, `bounce`, `drop`, `redirect`.
    #[arg(long, value_name = "TIME", value_parser = age::duration)]
    pub(crate) standing: Option<Duration>,
}

/// Which messages. All conditions must hold.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct Filter {
    /// Message ids.
    pub(crate) ids: Vec<String>,
    /// Reverse-path; `<>` for bounces.
    #[arg(long)]
    pub(crate) sender: Option<String>,
    /// A forward-path.
    #[arg(long)]
    pub(crate) recipient: Option<String>,
    /// Domain of a recipient.
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// `new`, `deferred` or `held`.
    #[arg(long, value_parser = ["new", "deferred", "held"])]
    pub(crate) state: Option<String>,
    /// Older than this: `2h`; or younger: `-5m`.
    #[arg(long, allow_hyphen_values = true, value_parser = age::age)]
    pub(crate) age: Option<age::Age>,
    /// Of the partition led by this node.
    #[arg(long)]
    pub(crate) node: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_understood_before_and_after_the_verb() {
        use clap::CommandFactory;
        Args::command().debug_assert();
        for line in
            ["ppswctl --json queue list", "ppswctl queue list --json", "ppswctl queue --json list"]
        {
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            assert!(args.json, "{line}");
        }
    }
}
