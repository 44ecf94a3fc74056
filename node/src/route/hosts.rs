//! From domains and routes to hosts with addresses.

use std::net::IpAddr;

use futures::{StreamExt, stream};

use super::{
    Host,
    notes::Lookups,
    router::{DnsLookup, NotFound, Transport},
};
use crate::{
    dns::{DnsError, Mx},
    limits,
    policy::{
        Configuration,
        list::{List, Subject, domain_literal},
    },
};

/// What a search for hosts came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Hosts(Vec<Host>),
    /// The domain, widened, is another one: route that.
    Widened(String),
    /// The best host is this machine.
    Own(String),
    /// There is no such host or domain.
    None(String),
    /// The same, and why is what the sender is to hear if nobody else takes the address.
    Nowhere(String),
    Fail(String),
    /// A host does not exist, and the router defers then.
    Defer(String),
    /// The DNS gave no answer.
    Later(String),
    Pass(String),
}

/// What a search needs.
pub(super) struct Search<'a> {
    pub(super) configuration: &'a Configuration,
    pub(super) lookups: Lookups<'a>,
    pub(super) transport: &'a Transport,
    /// Hosts to which no mail goes: their addresses count as if they were not there.
    pub(super) ignore_hosts: &'a List,
}

/// How a manual route is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub(super) randomize: bool,
    pub(super) not_found: NotFound,
}

/// One word of a route, looked up.
enum Piece {
    /// By preference, with addresses.
    Hosts(Vec<Host>),
    /// A host of ours begins the list.
    Own,
    NotThere(String),
    Later(String),
}

const OWN_ADDRESS: &str = "remote host address is the local host";
const OWN_MX: &str = "lowest numbered MX record points to local host";

impl Search<'_> {
    /// Hosts of a manual route: `host`, `host:port`, `[IPv6]:port`, `domain/mx`, separated by blanks or commas.
    pub(super) async fn manual(&self, route: &str, manner: Manner) -> Found {
        let words = route.split([' ', '\t', ',']).filter(|word| !word.is_empty());
        // `bydns` and `byname` say in Exim how to look up; here all is looked up in the DNS.
        let words = words.filter(|word| !matches!(*word, "bydns" | "byname"));
        let words: Vec<&str> = words.take(limits::MX_HOSTS_MAX).collect();
        let questions: Vec<_> = words.into_iter().map(|word| self.word(word)).collect();
        let pieces = stream::iter(questions).buffered(limits::MX_HOSTS_MAX);
        let pieces: Vec<Piece> = pieces.collect().await;
        let mut hosts: Vec<Host> = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Hosts(more) => {
                    // Groups of equal preference keep their order behind what is there.
                    let behind = hosts.last().map_or(0, |host| host.preference.saturating_add(1));
                    let known = |host: &Host| {
                        hosts.iter().any(|h| h.name == host.name && h.port == host.port)
                    };
                    let mut more: Vec<Host> = more.into_iter().filter(|h| !known(h)).collect();
                    rank(&mut more, behind);
                    hosts.extend(more);
                }
                Piece::Own if hosts.is_empty() => return Found::Own(OWN_ADDRESS.to_owned()),
                // As with MX records: who comes behind us would send it back.
                Piece::Own => break,
                Piece::NotThere(host) => {
                    let why = format!("lookup of host {host:?} failed");
                    match manner.not_found {
                        NotFound::Ignore => {}
                        NotFound::Defer => return Found::Defer(why),
                        NotFound::Fail => return Found::Fail(why),
                        NotFound::Decline => return Found::None(why),
                        NotFound::Pass => return Found::Pass(why),
                    }
                }
                Piece::Later(why) => return Found::Later(why),
            }
        }
        if hosts.is_empty() {
            return Found::Defer(format!("no host of the route {route:?} has an address"));
        }
        if manner.randomize || self.transport.randomize {
            hosts.iter_mut().for_each(|host| host.preference = 0);
        }
        Found::Hosts(hosts)
    }

    async fn word(&self, word: &str) -> Piece {
        let domain = word.strip_suffix("/mx").or_else(|| word.strip_suffix("/MX"));
        let (mut wanted, port, name) = match domain {
            Some(domain) => match self.lookups.mx(domain).await {
                Ok(found) => (found, self.transport.port, domain),
                Err(DnsError::Temporary(why)) => return Piece::Later(format!("{domain}: {why}")),
                Err(_) => return Piece::NotThere(word.to_owned()),
            },
            None => {
                let Some((host, port)) = host_port(word) else {
                    return Piece::Later(format!("{word:?} in a route is no host"));
                };
                let wanted = vec![Mx { preference: 0, host }];
                (wanted, port.unwrap_or(self.transport.port), word)
            }
        };
        wanted.retain(|mx| !mx.host.is_empty());
        wanted.sort_by_key(|mx| mx.preference);
        wanted.truncate(limits::MX_HOSTS_MAX);
        let resolved = self.resolve(wanted, port, domain.is_some()).await;
        match (resolved.hosts.is_empty(), resolved.own, resolved.later) {
            (true, Some(_), _) => Piece::Own,
            (true, None, Some(why)) => Piece::Later(why),
            (true, None, None) => Piece::NotThere(name.to_owned()),
            (false, ..) => Piece::Hosts(resolved.hosts),
        }
    }

    /// Hosts of a domain by its MX records, or its address records if it has none (RFC 5321 §5.1).
    pub(super) async fn by_dns(&self, domain: &str, options: &DnsLookup) -> Found {
        if domain.starts_with('[') {
            return self.literal(domain);
        }
        match self.domain(domain, options).await {
            Found::None(why) => {
                for suffix in &options.widen {
                    let wide = format!("{domain}.{suffix}");
                    match self.domain(&wide, options).await {
                        Found::Hosts(_) | Found::Own(_) => return Found::Widened(wide),
                        Found::None(_) => {}
                        found => return found,
                    }
                }
                Found::None(why)
            }
            found => found,
        }
    }

    fn literal(&self, domain: &str) -> Found {
        let allowed = self.configuration.options().allow_domain_literals;
        let Some(address) = domain_literal(domain).filter(|_| allowed) else {
            return Found::None("domain literals are not supported".to_owned());
        };
        if self.configuration.personalities.is_own(address) {
            return Found::Own(OWN_ADDRESS.to_owned());
        }
        if self.is_ignored(&address) {
            return Found::None(format!("no mail is sent to {domain}"));
        }
        Found::Hosts(vec![Host {
            name: domain.to_owned(),
            addresses: vec![address],
            port: self.transport.port,
            preference: 0,
            mx: false,
        }])
    }

    async fn domain(&self, domain: &str, options: &DnsLookup) -> Found {
        let (mut mx, has_mx) = match self.lookups.mx(domain).await {
            Ok(mx) => (mx, true),
            Err(DnsError::NoRecord) => {
                if self.configuration.holds(&options.mx_domains, Subject::Domain(domain)) {
                    return Found::None("the domain has no MX record".to_owned());
                }
                (vec![Mx { preference: 0, host: domain.to_owned() }], false)
            }
            Err(DnsError::NoName) => return Found::None("no such domain".to_owned()),
            Err(DnsError::Temporary(why)) => return Found::Later(format!("host lookup: {why}")),
        };
        mx.retain(|mx| !mx.host.is_empty());
        if mx.is_empty() {
            return Found::Nowhere(format!("{domain} does not accept mail (null MX)"));
        }
        mx.sort_by_key(|mx| mx.preference);
        mx.truncate(limits::MX_HOSTS_MAX);
        let resolved = self.resolve(mx, self.transport.port, has_mx).await;
        match (resolved.hosts.is_empty(), resolved.own, resolved.later) {
            (false, ..) => Found::Hosts(resolved.hosts),
            // The best host that there is.
            (true, Some(Own { first: true }), _) => {
                Found::Own(if has_mx { OWN_MX } else { OWN_ADDRESS }.to_owned())
            }
            (true, _, Some(why)) => Found::Later(why),
            (true, Some(_), None) => Found::Own(OWN_MX.to_owned()),
            (true, None, None) if has_mx => {
                Found::Nowhere("all relevant MX records point to non-existent hosts".to_owned())
            }
            (true, None, None) => Found::None("the host has no address".to_owned()),
        }
    }

    /// Addresses of hosts, asked for at once. Hosts without any are left out, and so are hosts of ours, with all of
    /// equal or worse preference: they would send it back.
    async fn resolve(&self, wanted: Vec<Mx>, port: u16, by_mx: bool) -> Resolved {
        let count = wanted.len().max(1);
        let questions = wanted.into_iter().map(|mx| async move {
            let found = match mx.host.parse::<IpAddr>() {
                Ok(address) => Ok(vec![address]),
                Err(_) => self.lookups.addresses(&mx.host).await,
            };
            (mx, found)
        });
        let answers: Vec<_> = stream::iter(questions).buffered(count).collect().await;
        let best = answers.iter().map(|(mx, _)| mx.preference).min().unwrap_or_default();
        let (mut hosts, mut later, mut own): (Vec<Host>, _, Option<u16>) = (Vec::new(), None, None);
        for (Mx { preference, host: name }, found) in answers {
            if self.is_local_name(&name) {
                own = Some(own.map_or(preference, |own| own.min(preference)));
                continue;
            }
            match found {
                Ok(mut addresses) => {
                    if addresses.iter().any(|a| self.configuration.personalities.is_own(*a)) {
                        own = Some(own.map_or(preference, |own| own.min(preference)));
                        continue;
                    }
                    addresses.retain(|address| !self.is_ignored(address));
                    addresses.truncate(limits::HOST_ADDRESSES_MAX);
                    let known = hosts.iter().any(|host| host.name == name);
                    if !known && !addresses.is_empty() {
                        let mx = by_mx;
                        hosts.push(Host { name, addresses, port, preference, mx });
                    }
                }
                Err(DnsError::Temporary(why)) => later = Some(format!("{name}: {why}")),
                Err(DnsError::NoName | DnsError::NoRecord) => {}
            }
        }
        if let Some(own) = own {
            hosts.retain(|host| host.preference < own);
        }
        Resolved { hosts, own: own.map(|own| Own { first: own == best }), later }
    }

    fn is_ignored(&self, address: &IpAddr) -> bool {
        self.configuration.holds(self.ignore_hosts, Subject::Host(*address, None, None))
    }

    fn is_local_name(&self, name: &str) -> bool {
        let names = &self.configuration.compiled.local_names;
        self.configuration.holds(names, Subject::Domain(name))
    }
}

/// Hosts with their addresses.
struct Resolved {
    hosts: Vec<Host>,
    /// One of ours was among them.
    own: Option<Own>,
    /// Why some that may have addresses later are left out.
    later: Option<String>,
}

struct Own {
    /// None is better.
    first: bool,
}

/// Gives preferences from `first` on in place of those of MX records.
fn rank(hosts: &mut [Host], first: u16) {
    let (mut before, mut rank) = (None, first);
    for host in hosts {
        if before.is_some_and(|before| before != host.preference) {
            rank = rank.saturating_add(1);
        }
        before = Some(host.preference);
        host.preference = rank;
    }
}

/// `host`, `host:port`, `192.0.2.1`, `2001:db8::1`, `[2001:db8::1]:port`.
fn host_port(word: &str) -> Option<(String, Option<u16>)> {
    if word.parse::<IpAddr>().is_ok() {
        return Some((word.to_owned(), None));
    }
    if let Some(rest) = word.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: IpAddr = address.parse().ok()?;
        let port = match port {
            "" => None,
            port => Some(port.strip_prefix(':')?.parse().ok()?),
        };
        return Some((address.to_string(), port));
    }
    let (host, port) = match word.split_once(':') {
        // Exim writes `host::port`, since `:` separates hosts there.
        Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or(port).parse().ok()?)),
        None => (word, None),
    };
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (!host.is_empty() && host.bytes().all(good)).then(|| (host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_a_route() {
        for (word, expected) in [
            ("Mail.example", Some(("mail.example", None))),
            ("mail.example:2525", Some(("mail.example", Some(2525)))),
            ("mail.example::2525", Some(("mail.example", Some(2525)))),
            ("127.10.0.1:2424", Some(("127.10.0.1", Some(2424)))),
            ("2001:db8::1", Some(("2001:db8::1", None))),
            ("[2001:db8::1]:26", Some(("2001:db8::1", Some(26)))),
            ("mail:x", None),
            ("a/b", None),
            ("[x]", None),
            (":25", None),
        ] {
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(host_port(word), expected, "{word}");
        }
    }
}
