//! From domains and routes to hosts with addresses.

use std::net::IpAddr;

use futures::{StreamExt, stream};

use super::{
    Host,
    router::{DnsLookup, Transport},
};
use crate::{
    dns::{Dns, DnsError, Mx},
    limits,
    policy::{
        Configuration,
        list::{Subject, domain_literal},
    },
};

/// What a search for hosts came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Hosts(Vec<Host>),
    /// The domain, widened, is another one: route that.
    Widened(String),
    /// There is no such host or domain.
    None(String),
    /// The domain says that it takes no mail.
    Refused(String),
    Later(String),
}

/// Hosts of a manual route: `host`, `host:port`, `[IPv6]:port`, `domain/mx`, separated by blanks or commas.
pub(super) async fn manual(
    route: &str,
    transport: &Transport,
    randomize: bool,
    configuration: &Configuration,
    dns: &dyn Dns,
) -> Found {
    let words = route.split([' ', '\t', ',']).filter(|word| !word.is_empty());
    // `bydns` and `byname` say in Exim how to look up; here all is looked up in the DNS.
    let words = words.filter(|word| !matches!(*word, "bydns" | "byname"));
    let mut wanted: Vec<Mx> = Vec::new();
    let mut ports: Vec<u16> = Vec::new();
    let mut later = None;
    for (index, word) in words.take(limits::MX_HOSTS_MAX).enumerate() {
        // Bounded by MX_HOSTS_MAX.
        let preference = if randomize { 0 } else { index as u16 };
        if let Some(domain) = word.strip_suffix("/mx").or_else(|| word.strip_suffix("/MX")) {
            match dns.mx(domain).await {
                Ok(found) => {
                    let found = found.into_iter().filter(|mx| !mx.host.is_empty());
                    wanted.extend(found.map(|mx| Mx { preference, ..mx }));
                }
                Err(DnsError::Temporary(why)) => later = Some(format!("{domain}: {why}")),
                Err(_) => {}
            }
            ports.resize(wanted.len(), transport.port);
            continue;
        }
        let Some((host, port)) = host_port(word) else {
            return Found::Later(format!("{word:?} in a route is no host"));
        };
        wanted.push(Mx { preference, host });
        ports.push(port.unwrap_or(transport.port));
    }
    if wanted.iter().any(|mx| is_local_name(&mx.host, configuration)) {
        return Found::Later("remote host address is the local host".to_owned());
    }
    let (hosts, failed) = addresses(wanted, &ports, dns).await;
    if hosts.iter().flat_map(|host| &host.addresses).any(|a| configuration.personalities.is_own(*a))
    {
        return Found::Later("remote host address is the local host".to_owned());
    }
    match (hosts.is_empty(), later.or(failed)) {
        (false, _) => Found::Hosts(hosts),
        (true, Some(why)) => Found::Later(why),
        (true, None) => Found::None(format!("no host of the route {route:?} has an address")),
    }
}

/// Hosts of a domain by its MX records, or its address records if it has none (RFC 5321 §5.1).
pub(super) async fn by_dns(
    domain: &str,
    options: &DnsLookup,
    transport: &Transport,
    configuration: &Configuration,
    dns: &dyn Dns,
) -> Found {
    if domain.starts_with('[') {
        return literal(domain, options, transport, configuration);
    }
    let mut later = None;
    match one_domain(domain, options, transport, configuration, dns).await {
        Found::None(why) => {
            for suffix in &options.widen {
                let wide = format!("{domain}.{suffix}");
                match one_domain(&wide, options, transport, configuration, dns).await {
                    Found::Hosts(_) | Found::Refused(_) => return Found::Widened(wide),
                    Found::Later(why) => later = later.or(Some(why)),
                    Found::None(_) | Found::Widened(_) => {}
                }
            }
            later.map_or(Found::None(why), Found::Later)
        }
        found => found,
    }
}

fn literal(
    domain: &str,
    options: &DnsLookup,
    transport: &Transport,
    configuration: &Configuration,
) -> Found {
    let address = domain_literal(domain).filter(|_| configuration.options().allow_domain_literals);
    let Some(address) = address else {
        return Found::None("domain literals are not supported".to_owned());
    };
    if configuration.personalities.is_own(address) || ignored(&address, options, configuration) {
        return Found::None(format!("no mail is sent to {domain}"));
    }
    Found::Hosts(vec![Host {
        name: domain.to_owned(),
        addresses: vec![address],
        port: transport.port,
        preference: 0,
    }])
}

async fn one_domain(
    domain: &str,
    options: &DnsLookup,
    transport: &Transport,
    configuration: &Configuration,
    dns: &dyn Dns,
) -> Found {
    let needs_mx = configuration.holds(&options.mx_domains, Subject::Domain(domain));
    let mx = match dns.mx(domain).await {
        Ok(mx) => mx,
        Err(DnsError::NoRecord) if needs_mx => {
            return Found::None("the domain has no MX record".to_owned());
        }
        Err(DnsError::NoRecord) => vec![Mx { preference: 0, host: domain.to_owned() }],
        Err(DnsError::NoName) => return Found::None("no such domain".to_owned()),
        Err(DnsError::Temporary(why)) => return Found::Later(format!("host lookup: {why}")),
    };
    if mx.iter().all(|mx| mx.host.is_empty()) {
        return Found::Refused(format!("{domain} does not accept mail (null MX)"));
    }
    let mut mx: Vec<Mx> = mx.into_iter().filter(|mx| !mx.host.is_empty()).collect();
    mx.sort_by_key(|mx| mx.preference);
    mx.truncate(limits::MX_HOSTS_MAX);
    let ports = vec![transport.port; mx.len()];
    let names: Vec<Mx> = mx.clone();
    let (mut hosts, failed) = addresses(mx, &ports, dns).await;
    // A host of ours: we are that MX, and those with equal or worse preference would send it back.
    let ours = names
        .iter()
        .filter(|mx| is_local_name(&mx.host, configuration))
        .map(|mx| mx.preference)
        .chain(hosts.iter().filter(|host| is_ours(host, configuration)).map(|h| h.preference))
        .min();
    if let Some(limit) = ours {
        if names.iter().all(|mx| mx.preference >= limit) {
            return Found::Later("lowest numbered MX record points to local host".to_owned());
        }
        hosts.retain(|host| host.preference < limit);
    }
    for host in &mut hosts {
        host.addresses.retain(|address| !ignored(address, options, configuration));
    }
    hosts.retain(|host| !host.addresses.is_empty());
    match (hosts.is_empty(), failed) {
        (false, _) => Found::Hosts(hosts),
        (true, Some(why)) => Found::Later(why),
        (true, None) if ours.is_some() => {
            Found::Later("no MX host before the local host has an address".to_owned())
        }
        (true, None) => {
            Found::None("all relevant MX records point to non-existent hosts".to_owned())
        }
    }
}

/// Addresses of hosts, asked for at once. Hosts without any are left out; the reason of the last that may have some
/// later.
async fn addresses(wanted: Vec<Mx>, ports: &[u16], dns: &dyn Dns) -> (Vec<Host>, Option<String>) {
    let count = wanted.len().max(1);
    let questions = wanted.into_iter().zip(ports.iter().copied()).map(|(mx, port)| async move {
        let found = match mx.host.parse::<IpAddr>() {
            Ok(address) => Ok(vec![address]),
            Err(_) => dns.addresses(&mx.host).await,
        };
        (mx, port, found)
    });
    let answers: Vec<_> = stream::iter(questions).buffered(count).collect().await;
    let mut hosts: Vec<Host> = Vec::new();
    let mut later = None;
    for (Mx { preference, host: name }, port, found) in answers {
        match found {
            Ok(mut addresses) => {
                addresses.truncate(limits::HOST_ADDRESSES_MAX);
                let known = hosts.iter().any(|host| host.name == name && host.port == port);
                if !known && !addresses.is_empty() {
                    hosts.push(Host { name, addresses, port, preference });
                }
            }
            Err(DnsError::Temporary(why)) => later = Some(format!("{name}: {why}")),
            Err(DnsError::NoName | DnsError::NoRecord) => {}
        }
    }
    (hosts, later)
}

fn ignored(address: &IpAddr, options: &DnsLookup, configuration: &Configuration) -> bool {
    configuration.holds(&options.ignore_hosts, Subject::Host(*address, None, None))
}

fn is_local_name(name: &str, configuration: &Configuration) -> bool {
    configuration.holds(&configuration.compiled.local_names, Subject::Domain(name))
}

fn is_ours(host: &Host, configuration: &Configuration) -> bool {
    host.addresses.iter().any(|address| configuration.personalities.is_own(*address))
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
