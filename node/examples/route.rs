//! What routing costs: typical addresses by the Cambridge routers, and a list of many members, with answers of the DNS at hand.
//!
//! `cargo run --release -p ppsw-node --example route -- [BLOCKS [ROUTES]]`

use std::{collections::BTreeMap, path::Path, time::Instant};

use ppsw_node::{
    dns::FixedDns,
    files,
    policy::Configuration,
    route::{About, Asked, Fate, route, route_recipients, verify},
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What is measured: kind and address.
const ADDRESSES: [(&str, &str); 7] = [
    ("a user in a message store", "spqr1@hermes.cam.ac.uk"),
    ("an alias, then a store", "spqr2@cam.ac.uk"),
    ("long form, alias, two stores", "fellows@botolphs-college.cambridge.ac.uk"),
    ("a special route", "someone@eng.cam.ac.uk"),
    ("a host by MX", "someone@example.org"),
    ("nobody", "nobody@botolph.cam.ac.uk"),
    ("a list", "punting@lists.cam.ac.uk"),
];

/// Members of the lists.
const MEMBERS: [usize; 3] = [1_000, 10_000, 50_000];

fn dns() -> Result<FixedDns, Failure> {
    let mut dns = FixedDns::default()
        .with_mx("example.org", 10, "mx.example.org")
        .with_address("mx.example.org", "203.0.113.1".parse()?)
        .with_address("mail.eng.private.cam.ac.uk", "172.20.1.1".parse()?);
    for n in 1..=9 {
        let name = format!("cyrus-{n}.csi.private.cam.ac.uk");
        dns = dns.with_address(&name, format!("172.28.13.{n}").parse()?);
    }
    // Members are in a thousand domains.
    for n in 0..1_000 {
        dns = dns.with_mx(&format!("d{n}.example.net"), 10, "mx.example.org");
    }
    Ok(dns)
}

/// Times of some blocks, in microseconds for each of `each`.
fn times(
    blocks: usize,
    each: usize,
    mut work: impl FnMut() -> Result<(), Failure>,
) -> Result<(f64, f64, f64), Failure> {
    let mut times = Vec::new();
    for _ in 0..blocks {
        let begun = now();
        work()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6 / each as f64);
    }
    times.sort_by(f64::total_cmp);
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    Ok((at(0), at(times.len() / 2), at(times.len().saturating_sub(1))))
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn now() -> Instant {
    Instant::now()
}

fn main() -> Result<(), Failure> {
    let mut numbers = std::env::args().skip(1);
    let mut number = |default: usize| numbers.next().map_or(Ok(default), |text| text.parse());
    let (blocks, routes) = (number(20)?, number(20_000)?);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cambridge");
    let tree = files::read_tree(&dir).map_err(|errors| format!("{errors:?}"))?;
    let configuration = Configuration::from_files(&tree).map_err(|errors| format!("{errors:?}"))?;
    let (dns, runtime) = (dns()?, tokio::runtime::Builder::new_current_thread().build()?);
    let about = About { id: None, sender: "someone@example.org", personality: "mx" };
    for (what, address) in ADDRESSES {
        let routed = times(blocks, routes, || {
            runtime.block_on(async {
                for _ in 0..routes {
                    route(&configuration, &dns, &about, address).await;
                }
            });
            Ok(())
        })?;
        let verified = times(blocks, routes, || {
            runtime.block_on(async {
                for _ in 0..routes {
                    verify(&configuration, &dns, &about, address).await;
                }
            });
            Ok(())
        })?;
        let per_second = 1e6 / routed.1;
        println!(
            "{what}: route min {:.2} µs, median {:.2} µs, max {:.2} µs ({per_second:.0}/s); verify median {:.2} µs; \
             {blocks} blocks of {routes}",
            routed.0, routed.1, routed.2, verified.1
        );
    }
    for members in MEMBERS {
        list(&tree, &dns, &runtime, members, blocks)?;
    }
    Ok(())
}

/// A list's expansion, and the routes of its members as a message's recipients.
fn list(
    tree: &BTreeMap<String, Vec<u8>>,
    dns: &FixedDns,
    runtime: &tokio::runtime::Runtime,
    members: usize,
    blocks: usize,
) -> Result<(), Failure> {
    let mut tree = tree.clone();
    let lines: String =
        (0..members).map(|n| format!("member{n}@d{}.example.net\n", n % 1_000)).collect();
    tree.insert("lists/large/members".to_owned(), lines.into_bytes());
    tree.insert("lists/large/managers".to_owned(), b"spqr1@hermes.cam.ac.uk\n".to_vec());
    let configuration = Configuration::from_files(&tree).map_err(|errors| format!("{errors:?}"))?;
    let about = About { id: None, sender: "someone@example.org", personality: "local" };
    let list = "large-outgoing@lists.cam.ac.uk";
    let mut into = Vec::new();
    let expanded = times(blocks, members, || {
        let asked = [Asked { address: list, ancestors: Vec::new() }];
        let targets = runtime.block_on(route_recipients(&configuration, dns, &about, &asked));
        match targets.into_iter().flatten().next().map(|target| target.fate) {
            Some(Fate::Expand(members)) => into = members,
            other => return Err(format!("expected an expansion, not {other:?}").into()),
        }
        Ok(())
    })?;
    let routed = times(blocks, members, || {
        let asked: Vec<Asked<'_>> =
            into.iter().map(|address| Asked { address, ancestors: vec![list] }).collect();
        let targets = runtime.block_on(route_recipients(&configuration, dns, &about, &asked));
        if targets.len() != members {
            return Err(format!("{} of {members} members routed", targets.len()).into());
        }
        Ok(())
    })?;
    println!(
        "{members} members: expansion median {:.2} µs each; routes min {:.2} µs, median {:.2} µs, max {:.2} µs each, {:.0} ms \
         in all; {blocks} blocks",
        expanded.1,
        routed.0,
        routed.1,
        routed.2,
        (expanded.1 + routed.1) * members as f64 / 1e3
    );
    Ok(())
}
