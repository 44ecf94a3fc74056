//! `session`: what a node would say to a client, and why.

use std::io::{self, BufRead};

use futures::{StreamExt, stream};
use ppsw_proto::control::{
    AskedCondition, ExplainedStage, SessionInput, SessionOpen, SessionStep, TriedRule,
    session_input::Input,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{Failure, address::Admin, args::Session};

/// Lines of standard input that are read ahead.
const LINES_AHEAD: usize = 16;

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
