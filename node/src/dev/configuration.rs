//! The configuration of a `dev` cluster: the Cambridge example, with every remote route led to the sink.

use std::{fmt::Write as _, io, net::SocketAddr, path::Path};

use kdl::{KdlDocument, KdlEntry, KdlNode, KdlValue};

use crate::files;

/// Files of the example that a `dev` cluster runs as they are.
const KEPT: [(&str, &str); 14] = [
    ("tables/badtlds", include_str!("../../../deploy/cambridge/tables/badtlds")),
    ("tables/domainlist", include_str!("../../../deploy/cambridge/tables/domainlist")),
    ("tables/longshort", include_str!("../../../deploy/cambridge/tables/longshort")),
    ("tables/nocallout", include_str!("../../../deploy/cambridge/tables/nocallout")),
    ("tables/ppswnames", include_str!("../../../deploy/cambridge/tables/ppswnames")),
    ("tables/relay_domains", include_str!("../../../deploy/cambridge/tables/relay_domains")),
    (
        "domains/botolph.cam.ac.uk/aliases",
        include_str!("../../../deploy/cambridge/domains/botolph.cam.ac.uk/aliases"),
    ),
    (
        "domains/botolph.cam.ac.uk/managers",
        include_str!("../../../deploy/cambridge/domains/botolph.cam.ac.uk/managers"),
    ),
    (
        "domains/cam.ac.uk/aliases",
        include_str!("../../../deploy/cambridge/domains/cam.ac.uk/aliases"),
    ),
    (
        "domains/hermes.cam.ac.uk/aliases",
        include_str!("../../../deploy/cambridge/domains/hermes.cam.ac.uk/aliases"),
    ),
    (
        "domains/lists.cam.ac.uk/aliases",
        include_str!("../../../deploy/cambridge/domains/lists.cam.ac.uk/aliases"),
    ),
    (
        "domains/ppsw.cam.ac.uk/aliases",
        include_str!("../../../deploy/cambridge/domains/ppsw.cam.ac.uk/aliases"),
    ),
    ("lists/punting/members", include_str!("../../../deploy/cambridge/lists/punting/members")),
    ("lists/punting/managers", include_str!("../../../deploy/cambridge/lists/punting/managers")),
];
const POLICY: &str = include_str!("../../../deploy/cambridge/policy.kdl");
const BAD_NETS: &str = include_str!("../../../deploy/cambridge/tables/bad_nets");
const SPECIAL_ROUTES: &str = include_str!("../../../deploy/cambridge/tables/special_routes");

/// The DNS list that stands in for all of the paper's.
const DNS_LIST: &str = "bl.example";
/// Connections that a relay host may have; tests need more than the paper's 10.
const CONNECTIONS_PER_RELAY_HOST: i128 = 200;
/// Load averages of `dev`: never reached.
const LOAD_LIMITS: [&str; 3] = ["smtp_load_reserve", "queue_only_load", "deliver_queue_load_max"];
const LOAD_RESERVE: i128 = 10_000;

/// Writes `policy.kdl` and its tables below `dir/config`.
///
/// `sink` takes all remote mail, `lmtp` is every message store. Node N, from 1 to `nodes`, has the addresses
/// 127.10.N.1 (mx), 127.10.N.2 (smart) and 127.10.N.3 (submit). `accounts` are users and their crypt(3) hashes.
pub fn dev_configuration(
    dir: &Path,
    sink: SocketAddr,
    lmtp: SocketAddr,
    nodes: u16,
    accounts: &[(String, String)],
) -> io::Result<()> {
    let dir = dir.join("config");
    // Paths may have blanks; those that have quotes are nobody's.
    let program = format!("\"{}\" explode-list", std::env::current_exe()?.display());
    for (name, content) in content(sink, lmtp, nodes, accounts, &program)? {
        files::write(&dir.join(name), content.as_bytes())?;
    }
    Ok(())
}

/// The files of the configuration: path and content.
fn content(
    sink: SocketAddr,
    lmtp: SocketAddr,
    nodes: u16,
    accounts: &[(String, String)],
    program: &str,
) -> io::Result<Vec<(&'static str, String)>> {
    let mut files: Vec<(&str, String)> =
        KEPT.iter().map(|(name, content)| (*name, (*content).to_owned())).collect();
    let users = |value: &dyn Fn(&str, &str) -> String| {
        let mut text = String::new();
        for (user, hash) in accounts {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{user} {}", value(user, hash));
        }
        text
    };
    files.push(("policy.kdl", policy(sink.port(), program)?));
    files.push(("tables/addrparams", addrparams(nodes)));
    files.push(("tables/bad_nets", without_loopback(BAD_NETS)));
    files.push(("tables/cudn_nets", "# Who may relay.\n127.0.0.0/9\n".to_owned()));
    files.push(("tables/special_routes", to_sink(SPECIAL_ROUTES, sink)));
    files.push(("users/cyrus", users(&|_, _| lmtp.to_string())));
    files.push(("users/cam_aliases", users(&|user, _| format!("{user}@hermes.cam.ac.uk"))));
    files.push(("users/passwd", users(&|_, hash| hash.to_owned())));
    files.push(("users/cancelled", "# Users whose accounts are cancelled.\n".to_owned()));
    Ok(files)
}

/// Server addresses of nodes, and those that a balancer would own.
fn addrparams(nodes: u16) -> String {
    const KINDS: [&str; 3] = [
        "name=mx.cam.ac.uk acl=mx",
        "name=ppsw.cam.ac.uk acl=smart",
        "name=smtp.hermes.cam.ac.uk acl=submit domain=hermes.cam.ac.uk msgsizelim=25M",
    ];
    let mut text = "# Parameters of our addresses.\n".to_owned();
    for (last, kind) in KINDS.iter().enumerate() {
        let _ = writeln!(text, "127.10.0.{} {kind}", last + 11);
        for node in 1..=nodes {
            let _ = writeln!(text, "127.10.{node}.{} {kind}", last + 1);
        }
    }
    text
}

fn without_loopback(nets: &str) -> String {
    nets.lines().filter(|line| !line.starts_with("127.")).map(|line| format!("{line}\n")).collect()
}

/// The same domains, all led to the sink.
fn to_sink(routes: &str, sink: SocketAddr) -> String {
    let domains = routes.lines().filter(|line| !line.starts_with('#'));
    let domains = domains.filter_map(|line| line.split_whitespace().next());
    domains.map(|domain| format!("{domain} {sink}\n")).collect()
}

/// The example's policy with another port, another DNS list, other limits and another list program.
fn policy(smtp_port: u16, program: &str) -> io::Result<String> {
    let mut document = KdlDocument::parse_v2(POLICY).map_err(io::Error::other)?;
    each_node(&mut document, &mut |node| {
        let (name, first) = (node.name().value().to_owned(), node.entry(0).is_some());
        if name == "smtp_accept_max_per_relay_host" && first {
            node.entries_mut().iter_mut().for_each(|entry| {
                replace(entry, KdlValue::Integer(CONNECTIONS_PER_RELAY_HOST));
            });
        }
        if LOAD_LIMITS.contains(&name.as_str()) && first {
            // All nodes, their clients and a compiler share this machine.
            node.entries_mut().iter_mut().for_each(|entry| {
                replace(entry, KdlValue::Integer(LOAD_RESERVE));
            });
        }
        if name == "pipe" && rustix::process::geteuid().is_root() {
            // Whoever starts a dev cluster as root wants it so: its program is this one.
            node.push(KdlEntry::new_prop("user", "root"));
        }
        for entry in node.entries_mut() {
            match (name.as_str(), entry.name().map(|name| name.value())) {
                ("smtp", Some("port")) => replace(entry, KdlValue::Integer(smtp_port.into())),
                ("pipe", Some("command")) => replace(entry, KdlValue::String(program.to_owned())),
                (_, Some("dnslists")) => {
                    let lists = entry.value().as_string().map(dns_lists).unwrap_or_default();
                    replace(entry, KdlValue::String(lists));
                }
                _ => {}
            }
        }
    });
    Ok(document.to_string())
}

/// One stand-in for all lists by address, one for those by name.
fn dns_lists(lists: &str) -> String {
    match lists.split_once('/') {
        Some((_, subject)) => format!("{DNS_LIST}/{subject}"),
        None => DNS_LIST.to_owned(),
    }
}

fn each_node(document: &mut KdlDocument, change: &mut dyn FnMut(&mut KdlNode)) {
    for node in document.nodes_mut() {
        change(node);
        if let Some(children) = node.children_mut() {
            each_node(children, change);
        }
    }
}

fn replace(entry: &mut KdlEntry, value: KdlValue) {
    if let Some(format) = entry.format_mut() {
        // In quotes, as the rest of the file has its texts.
        format.value_repr = match &value {
            KdlValue::String(text) => format!("{text:?}"),
            value => value.to_string(),
        };
    }
    entry.set_value(value);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::policy::Configuration;

    /// The configuration of a cluster of three nodes.
    pub(crate) fn loaded() -> Arc<Configuration> {
        loaded_with(&[])
    }

    /// The same with other tables: path and content.
    pub(crate) fn loaded_with(tables: &[(&str, &str)]) -> Arc<Configuration> {
        let accounts: Vec<_> =
            (1..=9).map(|n| (format!("spqr{n}"), format!("$6$rounds=5000$x${n}"))).collect();
        let (sink, lmtp) = ("127.10.0.1:2525".parse(), "127.10.0.1:2424".parse());
        let program = "/usr/sbin/ppswd explode-list";
        let files = content(sink.unwrap(), lmtp.unwrap(), 3, &accounts, program).unwrap();
        let files = files.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes()));
        let mut files: BTreeMap<_, _> = files.collect();
        let other = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
        files.extend(tables.iter().map(other));
        Configuration::from_files(&files).unwrap_or_else(|errors| panic!("{errors:?}"))
    }

    #[test]
    fn it_loads_from_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let sink = "127.10.0.1:2525".parse().unwrap();
        dev_configuration(dir.path(), sink, sink, 3, &[]).unwrap();
        Configuration::load(&dir.path().join("config")).unwrap();
    }

    #[test]
    fn nothing_leads_out() {
        let text = policy(2525, "/usr/sbin/ppswd explode-list").unwrap();
        assert!(text.contains("command=\"/usr/sbin/ppswd explode-list\""), "{text}");
        assert!(text.contains("smtp \"smtp\" port=2525"), "{text}");
        assert!(text.contains("smtp_accept_max_per_relay_host 200"));
        let lists = text.lines().filter(|line| line.contains("dnslists="));
        assert!(lists.clone().count() >= 5);
        for line in lists {
            assert!(line.contains("dnslists=\"bl.example"), "{line}");
        }
        let configuration = loaded();
        let bad = |address: &str| {
            configuration.tables.get_net("bad_nets", address.parse().unwrap()).is_some()
        };
        assert!(!bad("127.10.0.1") && bad("10.0.0.1"));
        assert!(configuration.is_reserve_host("127.10.1.1".parse().unwrap()));
        assert!(!configuration.is_reserve_host("127.200.0.1".parse().unwrap()));
        assert_eq!(configuration.options().smtp_accept_max_per_relay_host, 200);
        assert_eq!(configuration.options().smtp_accept_max_per_host, 10);
        assert!(configuration.password_hash("SPQR3").unwrap().starts_with("$6$"));
        assert_eq!(configuration.password_hash("nobody"), None);
    }
}
