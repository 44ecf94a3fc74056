//! Golden routes: where addresses lead by `deploy/cambridge`, line by line in `golden/cambridge.txt`.

#![allow(clippy::disallowed_methods, reason = "files of the repository")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
    sync::Arc,
};

use super::*;
use crate::dns::FixedDns;

const CASES: &str = include_str!("golden/cambridge.txt");
const WORLD: &str = include_str!("golden/world.txt");

/// Cases without fewer addresses than this are no longer what they were.
const ADDRESSES_MIN: usize = 200;

fn configuration() -> Arc<Configuration> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cambridge");
    Configuration::load(&dir).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// The DNS of `golden/world.txt`.
fn world() -> FixedDns {
    let mut dns = FixedDns::default();
    for line in WORLD.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        dns = match *line.split(' ').collect::<Vec<_>>() {
            ["MX", name, preference, "."] => dns.with_mx(name, preference.parse().unwrap(), ""),
            ["MX", name, preference, host] => dns.with_mx(name, preference.parse().unwrap(), host),
            ["A", name, address] => dns.with_address(name, address.parse().unwrap()),
            ["EMPTY", name] => dns.empty(name),
            ["BROKEN", name] => {
                dns.broken(name).broken(&format!("sub.{name}")).broken(&format!("mail.{name}"))
            }
            _ => panic!("expected a record: {line}"),
        };
    }
    dns
}

/// Address, sender and personality of a line.
fn case(line: &str) -> (&str, &str, &str) {
    let (mut sender, mut personality) = ("", "mx");
    let mut rest = line;
    while let Some((before, word)) = rest.rsplit_once(' ') {
        if let Some(from) = word.strip_prefix("from=") {
            sender = from;
        } else if let Some(by) = word.strip_prefix("by=") {
            personality = by;
        } else {
            break;
        }
        rest = before;
    }
    (rest, sender, personality)
}

fn shown(target: &Target) -> String {
    let from = target.errors_to.as_ref().map_or(String::new(), |from| format!(" F={from}"));
    let what = match &target.fate {
        Fate::Deliver(to) => {
            let hosts = to
                .hosts
                .iter()
                .map(|host| format!("{}:{}/{}", host.name, host.port, host.preference));
            let program = to.program.iter().map(|program| program.words.join(" "));
            let to_what = hosts.chain(program).collect::<Vec<_>>().join(" ");
            return format!("=> {} {} {to_what}{from}", target.address, to.router);
        }
        Fate::Fail(why) => format!("** {} {why}", target.address),
        Fate::Defer(why) => format!("== {} {why}", target.address),
        Fate::Expand(into) => format!("expands to {}", into.join(" ")),
    };
    format!("{what}{from}")
}

#[tokio::test]
async fn addresses_lead_where_they_should() {
    let (configuration, dns) = (configuration(), world());
    let (mut actual, mut addresses) = (String::new(), 0);
    // What each router did, at least once.
    let mut took: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
    for line in CASES.lines().filter(|line| !line.starts_with(' ')) {
        let _ = writeln!(actual, "{line}");
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        addresses += 1;
        let (address, sender, personality) = case(line);
        let about = About { id: None, sender, personality };
        let targets = route(&configuration, &dns, &about, address).await;
        for target in &targets {
            let _ = writeln!(actual, "    {}", shown(target));
        }
        let verified = match verify(&configuration, &dns, &about, address).await {
            Verified::Yes(Some((to, _))) => format!("yes, {to}"),
            Verified::Yes(None) => "yes, several".to_owned(),
            Verified::No(why) => format!("no, {why}"),
            Verified::Later(why) => format!("later, {why}"),
        };
        let _ = writeln!(actual, "    verified: {verified}");
        for verifies in [false, true] {
            let (_, stops) = explain(&configuration, &dns, &about, address, verifies).await;
            for tried in stops.into_iter().flat_map(|stop| stop.routers) {
                let taken = tried.decides && !tried.outcome.starts_with("declines");
                took.entry(tried.name).or_default().insert(taken);
            }
        }
    }
    assert!(addresses >= ADDRESSES_MIN, "{addresses} addresses");
    if std::env::var_os("PPSW_GOLDEN_WRITE").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/route/golden/cambridge.txt");
        std::fs::write(path, actual).unwrap();
        return;
    }
    for (number, (expected, actual)) in CASES.lines().zip(actual.lines()).enumerate() {
        assert_eq!(expected, actual, "cambridge.txt:{}", number + 1);
    }
    assert_eq!(CASES.lines().count(), actual.lines().count());
    let routers = &configuration.compiled.routing.routers;
    for (index, router) in routers.iter().enumerate() {
        let seen = took.get(&router.name).cloned().unwrap_or_default();
        assert!(seen.contains(&true), "router {} never took an address", router.name);
        // Whatever reaches the last one is its own.
        let passes = seen.contains(&false) || index + 1 == routers.len();
        assert!(passes, "router {} never left an address to others", router.name);
    }
}
