//! `route` and `session`: what a node would do, and why.

use std::{
    io::{self, BufRead},
    process::ExitCode,
};

use futures::{StreamExt, stream};
use ppsw_proto::control::{
    AskedCondition, ExplainedStage, RouteReply, RouteRequest, RouteTarget, SessionInput,
    SessionOpen, SessionStep, TriedRule, route_target::Fate, session_input::Input,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{Failure, address::Admin, args::Session};

/// Lines of standard input that are read ahead.
const LINES_AHEAD: usize = 16;

pub(crate) async fn route(
    admin: &mut Admin,
    addresses: &[String],
    verify: bool,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    let (mut worst, mut all) = (0, Vec::new());
    for address in addresses {
        let request = RouteRequest { address: address.clone(), verify };
        let reply = admin.route(request).await?.into_inner();
        worst = reply.targets.iter().map(badness).max().unwrap_or(2).max(worst);
        if as_json {
            all.push(route_json(address, &reply));
        } else {
            print_route(address, &reply);
        }
    }
    if as_json {
        say!("{}", Value::from(all));
    }
    Ok(ExitCode::from(worst))
}

/// As an exit code.
fn badness(target: &RouteTarget) -> u8 {
    match target.fate {
        Some(Fate::Deliver(_)) => 0,
        Some(Fate::Defer(_)) => 1,
        Some(Fate::Fail(_)) | None => 2,
    }
}

fn print_route(address: &str, reply: &RouteReply) {
    say!("{address}");
    for stop in &reply.stops {
        say!("  {}", stop.address);
        for router in &stop.routers {
            say!("    {:>5}  {}: {}", router.line, router.name, router.outcome);
        }
    }
    for target in &reply.targets {
        let from = match target.errors_to.as_str() {
            "" => String::new(),
            from => format!(", errors to {from}"),
        };
        match &target.fate {
            Some(Fate::Deliver(to)) => {
                let (router, transport) = (&to.router, &to.transport);
                say!("  => {}: router {router}, transport {transport}{from}", target.address);
                for host in &to.hosts {
                    let addresses = host.addresses.join("] [");
                    say!("     {} [{addresses}]:{}", host.name, host.port);
                }
            }
            Some(Fate::Defer(why)) => say!("  == {}: {why}", target.address),
            Some(Fate::Fail(why)) => say!("  ** {}: {why}", target.address),
            None => {}
        }
    }
}

fn route_json(address: &str, reply: &RouteReply) -> Value {
    let stop = |stop: &ppsw_proto::control::RouteStop| {
        let routers = stop.routers.iter().map(|tried| {
            json!({
                "router": tried.name,
                "line": tried.line,
                "outcome": tried.outcome,
                "decides": tried.decides,
            })
        });
        json!({ "address": stop.address, "routers": Value::from_iter(routers) })
    };
    let target = |target: &RouteTarget| {
        let mut shown = json!({
            "address": target.address,
            "parents": target.parents,
            "errors_to": target.errors_to,
        });
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
    };
    json!({
        "address": address,
        "stops": Value::from_iter(reply.stops.iter().map(stop)),
        "targets": Value::from_iter(reply.targets.iter().map(target)),
    })
}

pub(crate) async fn session(
    admin: &mut Admin,
    asked: Session,
    as_json: bool,
) -> Result<(), Failure> {
    let open = SessionOpen {
        client: asked.client.to_string(),
        server: asked.server.to_string(),
        service: asked.service,
        user: asked.auth.unwrap_or_default(),
        tls: asked.tls,
        callouts: asked.callout,
        certificate: asked.certificate.unwrap_or_default(),
    };
    let first = stream::iter([SessionInput { input: Some(Input::Open(open)) }]);
    let lines = standard_input().map(|line| SessionInput { input: Some(Input::Line(line)) });
    let mut steps = admin.session(first.chain(lines)).await?.into_inner();
    let mut all = Vec::new();
    while let Some(step) = steps.message().await? {
        if as_json {
            all.push(step_json(&step));
        } else {
            print_step(&step);
        }
    }
    if as_json {
        say!("{}", Value::from(all));
    } else {
        say!("Nothing was accepted or sent.");
    }
    Ok(())
}

/// Lines of standard input, without their ends.
fn standard_input() -> ReceiverStream<String> {
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    // A thread of its own: it may wait for a person when everything else has ended.
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

fn print_step(step: &SessionStep) {
    if !step.command.is_empty() {
        say!("> {}", step.command);
    }
    for stage in &step.stages {
        print_stage(stage);
    }
    for line in &step.reply {
        say!("< {line}");
    }
}

fn print_stage(stage: &ExplainedStage) {
    let none = if stage.rules.is_empty() { ": no rules" } else { ":" };
    say!("    {} of acl {:?}{none}", stage.stage, stage.acl);
    print_rules(&stage.rules, 4);
    if stage.delay_ms > 0 {
        say!("    waits {} s", stage.delay_ms / 1000);
    }
}

fn print_rules(rules: &[TriedRule], indent: usize) {
    for rule in rules {
        let line = if rule.line == 0 { "-".to_owned() } else { rule.line.to_string() };
        say!("{:indent$}{line:>5}  {}", "", rule.text);
        print_conditions(&rule.conditions, indent + 9);
        for effect in &rule.effects {
            say!("{:indent$}         {effect}", "");
        }
        if !rule.verdict.is_empty() {
            say!("{:indent$}       => {}", "", rule.verdict);
        }
    }
}

fn print_conditions(conditions: &[AskedCondition], indent: usize) {
    for asked in conditions {
        print_conditions(&asked.conditions, indent + 2);
        print_rules(&asked.rules, indent + 2);
        let why = match asked.why.as_str() {
            "" => String::new(),
            why => format!(" ({})", why.replace('\n', " | ")),
        };
        say!("{:indent$}{}: {}{why}", "", asked.text, asked.answer);
    }
}

fn step_json(step: &SessionStep) -> Value {
    let stage = |stage: &ExplainedStage| {
        json!({
            "stage": stage.stage,
            "acl": stage.acl,
            "rules": rules_json(&stage.rules),
            "delay_ms": stage.delay_ms,
        })
    };
    json!({
        "command": step.command,
        "reply": step.reply,
        "stages": Value::from_iter(step.stages.iter().map(stage)),
        "closed": step.closed,
    })
}

fn rules_json(rules: &[TriedRule]) -> Value {
    Value::from_iter(rules.iter().map(|rule| {
        json!({
            "line": rule.line,
            "text": rule.text,
            "conditions": conditions_json(&rule.conditions),
            "effects": rule.effects,
            "verdict": rule.verdict,
        })
    }))
}

fn conditions_json(conditions: &[AskedCondition]) -> Value {
    Value::from_iter(conditions.iter().map(|asked| {
        json!({
            "text": asked.text,
            "answer": asked.answer,
            "why": asked.why,
            "conditions": conditions_json(&asked.conditions),
            "rules": rules_json(&asked.rules),
        })
    }))
}
