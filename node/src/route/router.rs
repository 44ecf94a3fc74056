//! Routers and transports as `policy.kdl` gives them.

use std::time::Duration;

use super::{ClientOptions, Protocol, Tls};
use crate::policy::{Place, list::List, template::Template};

/// Routers in the order of the text, and the transports that they name.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    pub(crate) routers: Vec<Router>,
    pub(crate) transports: Vec<Transport>,
}

/// One router.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) place: Place,
    pub(crate) name: String,
    /// And each as it stands in the policy.
    pub(crate) conditions: Vec<(Precondition, Box<str>)>,
    pub(crate) affix: Option<Affix>,
    /// Only when an address is verified.
    pub(crate) verify_only: bool,
    /// Not when an address is verified.
    pub(crate) no_verify: bool,
    /// If this router declines, no other is asked.
    pub(crate) no_more: bool,
    /// What it makes is a copy: the address goes on to the next router.
    pub(crate) unseen: bool,
    /// Also for what has become of an address that it took.
    pub(crate) repeat_use: bool,
    /// Who is asked after this router when it passes, instead of the next one.
    pub(crate) pass_router: Option<usize>,
    /// A DNS that gives no answer now makes it pass instead of deferring.
    pub(crate) pass_on_timeout: bool,
    /// What it does when the first host is this machine.
    pub(crate) own_host: OwnHost,
    /// Envelope sender for what this router makes.
    pub(crate) errors_to: Option<Template>,
    /// Text of the failure if this is the last router that was considered.
    pub(crate) cannot_route: Option<Template>,
    pub(crate) action: Action,
}

impl Router {
    /// It is a redirection that is recorded when it happens.
    pub(crate) fn expands_once(&self) -> bool {
        matches!(self.action, Action::Redirect { one_time: true, .. })
    }
}

/// What an address or its message must be for a router to be asked.
#[derive(Debug)]
pub(crate) enum Precondition {
    Domains(List),
    LocalParts(List),
    Senders(List),
    /// The personality by which the message came is one of these; or the opposite.
    Personality {
        negated: bool,
        names: Vec<String>,
    },
    /// One message of so many, always the same ones.
    Fraction(u64),
    /// Every table of the text has its entry, and it does not say no; or the opposite.
    Lookup {
        negated: bool,
        text: Template,
    },
    /// The list table exists; or the opposite.
    HasTable {
        negated: bool,
        name: Template,
    },
    /// The list table has lines; or the opposite.
    HasLines {
        negated: bool,
        name: Template,
    },
    /// The address came from this one by one redirection.
    FromParent(Template),
}

/// What a router takes off a local part. The first prefix that fits counts, and the first suffix.
#[derive(Debug)]
pub(crate) struct Affix {
    pub(crate) prefixes: Vec<Prefix>,
    pub(crate) suffixes: Vec<Suffix>,
    /// Addresses without it are taken too.
    pub(crate) optional: bool,
}

/// The beginning of a local part.
#[derive(Debug)]
pub(crate) enum Prefix {
    /// `owner-`
    Exact(String),
    /// `*-`: up to the last of this.
    UpTo(String),
}

/// The end of a local part.
#[derive(Debug)]
pub(crate) enum Suffix {
    /// `-request`
    Exact(String),
    /// `+*`: from the first of this on.
    From(String),
}

/// What a router does.
#[derive(Debug)]
pub(crate) enum Action {
    /// Replaces the address by others.
    Redirect {
        to: To,
        /// `:fail: text` is allowed among them.
        allow_fail: bool,
        /// An ancestor among them stands for the address itself.
        check_ancestor: bool,
        /// What they are is recorded when they are first found, and not looked up again.
        one_time: bool,
    },
    Manual {
        route: Template,
        transport: usize,
        /// Hosts are tried at random instead of in their order.
        randomize: bool,
        not_found: NotFound,
        /// Hosts to which no mail goes.
        ignore_hosts: List,
        same_domain_copy: bool,
    },
    Dns(DnsLookup),
    /// Delivers by the transport's own hosts, or its program. With `verify-only` there is no transport.
    Accept {
        transport: Option<usize>,
    },
    Fail {
        message: Template,
    },
}

/// Where a redirect router finds the new addresses.
#[derive(Debug)]
pub(crate) enum To {
    /// Separated by commas.
    Text(Template),
    /// A list table of this name.
    Lines(Template),
}

/// What becomes of an address if a host of its route does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotFound {
    Defer,
    Fail,
    Decline,
    Pass,
    /// The host is left out.
    Ignore,
}

/// What becomes of an address whose best host is this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnHost {
    Defer,
    Fail,
    Pass,
}

/// Options of `dnslookup`.
#[derive(Debug)]
pub(crate) struct DnsLookup {
    /// Domains that must have an MX record.
    pub(crate) mx_domains: List,
    /// Appended in turn to a domain that does not exist.
    pub(crate) widen: Vec<String>,
    /// Hosts to which no mail goes.
    pub(crate) ignore_hosts: List,
    pub(crate) same_domain_copy: bool,
    pub(crate) transport: usize,
}

/// How mail travels.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) strip_nul: bool,
    pub(crate) tls: Tls,
    pub(crate) client: ClientOptions,
    /// Hosts that do not come from MX records are tried at random.
    pub(crate) randomize: bool,
    /// For `accept` routers: like the route of a manual one.
    pub(crate) hosts: Option<String>,
    /// Of a `pipe`.
    pub(crate) command: Option<Command>,
}

/// The program of a `pipe` transport.
#[derive(Debug)]
pub(crate) struct Command {
    /// The program and its arguments; fields never make two of one.
    pub(crate) words: Vec<Template>,
    /// As whom it runs: `USER` or `UID:GID`.
    pub(crate) user: Option<String>,
    pub(crate) timeout: Duration,
    /// Bytes of output that are kept.
    pub(crate) max_output: u64,
    /// What it prints goes into the bounce if it fails.
    pub(crate) return_fail_output: bool,
    /// Exit codes that mean: try again.
    pub(crate) temp_errors: Vec<i32>,
    pub(crate) prefix: String,
    pub(crate) suffix: String,
}
