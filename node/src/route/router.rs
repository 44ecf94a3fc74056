//! Routers and transports as `policy.kdl` gives them.

use super::Protocol;
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
    /// Envelope sender for what this router makes.
    pub(crate) errors_to: Option<Template>,
    /// Text of the failure if no router takes the address after this one.
    pub(crate) cannot_route: Option<Template>,
    pub(crate) action: Action,
}

/// What an address must be for a router to be asked.
#[derive(Debug)]
pub(crate) enum Precondition {
    Domains(List),
    LocalParts(List),
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

/// What a router takes off a local part.
#[derive(Debug)]
pub(crate) struct Affix {
    pub(crate) prefix: Option<String>,
    pub(crate) suffix: Option<Suffix>,
    /// Addresses without it are taken too.
    pub(crate) optional: bool,
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
    },
    Manual {
        route: Template,
        transport: usize,
        /// Hosts are tried at random instead of in their order.
        randomize: bool,
        not_found: NotFound,
    },
    Dns(DnsLookup),
    /// Delivers by the transport's own hosts. With `verify-only` there is no transport.
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

/// What becomes of an address if no host of its route has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotFound {
    Defer,
    Fail,
    Decline,
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
    pub(crate) transport: usize,
}

/// How mail travels.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) strip_nul: bool,
    /// For `accept` routers: like the route of a manual one.
    pub(crate) hosts: Option<String>,
}
