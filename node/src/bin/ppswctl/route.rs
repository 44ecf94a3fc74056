//! `route`: where mail for an address would go, and what each router said.

use std::process::ExitCode;

use ppsw_proto::control::{
    RouteReply, RouteRequest, RouteStop, RouteTarget, TriedRouter, route_target::Fate,
};
use serde_json::{Value, json};

use crate::{Failure, address::Admin, args::Route};

pub(crate) async fn route(
    admin: &mut Admin,
    asked: &Route,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    let (mut worst, mut all) = (0, Vec::new());
    let personality = if asked.local { "local" } else { &asked.personality };
    for address in &asked.addresses {
        let request = RouteRequest {
            address: address.clone(),
            verify: asked.verify,
            sender: asked.from.trim_matches(['<', '>']).to_owned(),
            personality: personality.to_owned(),
            message: asked.id.clone(),
        };
        let reply = admin.route(request).await?.into_inner();
        worst = reply.targets.iter().map(badness).max().unwrap_or(2).max(worst);
        if as_json {
            all.push(in_json(address, &reply));
        } else {
            print(&reply, asked.short);
        }
    }
    if as_json {
        say!("{}", Value::from(all));
    }
    Ok(ExitCode::from(worst))
}

/// As an exit code. What becomes of a copy does not matter.
fn badness(target: &RouteTarget) -> u8 {
    match target.fate {
        _ if !target.copy.is_empty() => 0,
        Some(Fate::Deliver(_)) => 0,
        Some(Fate::Defer(_)) => 1,
        Some(Fate::Fail(_)) | None => 2,
    }
}

fn print(reply: &RouteReply, short: bool) {
    for number in children(reply, 0) {
        print_stop(reply, number, 0, short);
    }
    for target in &reply.targets {
        print_target(target);
    }
}

/// Numbers, from 0, of the stops that were made from stop `parent`, counted from 1.
fn children(reply: &RouteReply, parent: u32) -> impl Iterator<Item = usize> {
    let stops = reply.stops.iter().enumerate();
    stops.filter(move |(_, stop)| stop.parent == parent).map(|(number, _)| number)
}

/// An address, its routers, and below them what was made of it.
fn print_stop(reply: &RouteReply, number: usize, depth: usize, short: bool) {
    let Some(stop) = reply.stops.get(number) else { return };
    // A tree that is deeper than routing goes would be no answer of a node.
    if depth > 64 {
        return;
    }
    let indent = 2 * depth;
    say!("{:indent$}{}", "", stop.address);
    for router in stop.routers.iter().filter(|router| !short || router.decides) {
        say!("{:indent$} {:>4}  {}: {}", "", router.line, router.name, router.outcome);
        for lookup in &router.lookups {
            say!("{:indent$}         {lookup}", "");
        }
    }
    let number = u32::try_from(number + 1).unwrap_or(u32::MAX);
    for child in children(reply, number) {
        print_stop(reply, child, depth + 1, short);
    }
}

fn print_target(target: &RouteTarget) {
    let from = match target.errors_to.as_deref() {
        None => String::new(),
        Some(from) => format!(", errors to <{from}>"),
    };
    let copy = if target.copy.is_empty() { "" } else { " (a copy)" };
    match &target.fate {
        Some(Fate::Deliver(to)) => {
            let (router, transport) = (&to.router, &to.transport);
            say!("=> {}{copy}: router {router}, transport {transport}{from}", target.address);
            for host in &to.hosts {
                let addresses = host.addresses.join("] [");
                let (name, port, preference) = (&host.name, host.port, host.preference);
                say!("   host {name} [{addresses}]:{port} preference {preference}");
            }
            if !to.command.is_empty() {
                say!("   command {}", to.command.join(" "));
            }
        }
        Some(Fate::Defer(why)) => say!("== {}{copy}: {why}{from}", target.address),
        Some(Fate::Fail(why)) => say!("** {}{copy}: {why}{from}", target.address),
        None => {}
    }
    if !target.parents.is_empty() {
        say!("   by way of {}", target.parents.join(", "));
    }
}

fn in_json(address: &str, reply: &RouteReply) -> Value {
    let router = |tried: &TriedRouter| {
        json!({
            "router": tried.name,
            "line": tried.line,
            "outcome": tried.outcome,
            "lookups": tried.lookups,
            "decides": tried.decides,
        })
    };
    let stop = |stop: &RouteStop| {
        json!({
            "address": stop.address,
            "parent": stop.parent.checked_sub(1),
            "routers": Value::from_iter(stop.routers.iter().map(router)),
        })
    };
    json!({
        "address": address,
        "stops": Value::from_iter(reply.stops.iter().map(stop)),
        "targets": Value::from_iter(reply.targets.iter().map(target_json)),
    })
}

fn target_json(target: &RouteTarget) -> Value {
    let mut shown = json!({
        "address": target.address,
        "parents": target.parents,
        "errors_to": target.errors_to.as_deref().unwrap_or_default(),
        "discards_errors": target.errors_to.as_deref() == Some(""),
    });
    if !target.copy.is_empty() {
        shown["copy"] = target.copy.clone().into();
    }
    match &target.fate {
        Some(Fate::Deliver(to)) => {
            shown["result"] = "deliver".into();
            shown["router"] = to.router.clone().into();
            shown["transport"] = to.transport.clone().into();
            shown["hosts"] = Value::from_iter(to.hosts.iter().map(|host| {
                json!({
                    "name": host.name,
                    "addresses": host.addresses,
                    "port": host.port,
                    "preference": host.preference,
                })
            }));
            if !to.command.is_empty() {
                shown["command"] = to.command.clone().into();
            }
        }
        Some(Fate::Defer(why)) => {
            shown["result"] = "defer".into();
            shown["reason"] = why.clone().into();
        }
        Some(Fate::Fail(why)) => {
            shown["result"] = "fail".into();
            shown["reason"] = why.clone().into();
        }
        None => {}
    }
    shown
}
