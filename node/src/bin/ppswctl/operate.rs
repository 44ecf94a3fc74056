//! `queue retry|hold|release|bounce|drop|redirect`.

use std::process::ExitCode;

use ppsw_control::Verb;
use ppsw_proto::control::{OperateRequest, Operated};
use serde_json::{Value, json};

use crate::{
    Failure,
    address::Admin,
    args::{Chosen, QueueVerb},
    queue, standing,
};

/// One of these verbs, with what it is about.
pub(crate) struct Asked<'a> {
    verb: Verb,
    chosen: &'a Chosen,
}

impl<'a> Asked<'a> {
    /// `None`: the verb only looks.
    pub(crate) fn of(verb: &'a QueueVerb) -> Option<Self> {
        let (verb, chosen) = match verb {
            QueueVerb::Retry(chosen) => (Verb::Retry, chosen),
            QueueVerb::Hold(chosen) => (Verb::Hold, chosen),
            QueueVerb::Release(chosen) => (Verb::Release, chosen),
            QueueVerb::Bounce(chosen) => (Verb::Bounce, chosen),
            QueueVerb::Drop(chosen) => (Verb::Drop, chosen),
            QueueVerb::Redirect { chosen, to } => (Verb::Redirect { to: to.clone() }, chosen),
            QueueVerb::Summary(_)
            | QueueVerb::List(_)
            | QueueVerb::Show { .. }
            | QueueVerb::Cat { .. }
            | QueueVerb::Rules
            | QueueVerb::Cancel { .. } => return None,
        };
        Some(Self { verb, chosen })
    }
}

/// Does it, and says what became of each message. Exit code 1 if something was not done: refused, of a partition that nobody
/// leads who answers, or asked for by id and not there.
pub(crate) async fn operate(
    admin: &mut Admin,
    asked: &Asked<'_>,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    let (before, filter) = queue::prepared(admin, asked.chosen.filter.clone()).await?;
    let node = filter.node;
    let mut missing = filter.ids.clone();
    let (verb, to) = asked.verb.to_proto();
    let request = OperateRequest {
        filter: Some(filter),
        verb: verb.into(),
        reason: asked.chosen.reason.clone().unwrap_or_default(),
        to,
        by: String::new(),
        all: asked.chosen.all,
    };
    if let Some(lasts) = asked.chosen.standing {
        standing::add(admin, request, lasts, as_json).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let past = asked.verb.past();
    let mut pages = admin.operate(request).await?.into_inner();
    let (mut items, mut silent): (Vec<Operated>, Vec<u64>) = Default::default();
    let (mut done, mut refused) = (0_u64, 0_u64);
    while let Some(page) = pages.message().await? {
        silent.extend(page.silent);
        for item in page.items {
            missing.retain(|id| *id != item.id);
            if item.refused.is_empty() {
                done += 1
            } else {
                refused += 1
            }
            if as_json {
                items.push(item);
            } else {
                say!("{}", line(&item, past));
            }
        }
    }
    let gaps = before.gaps(admin, node, &silent).await;
    gaps.warn();
    if as_json {
        let messages = Value::from_iter(items.iter().map(item_json));
        say!(
            "{}",
            json!({
                "done": past,
                "messages": messages,
                "missing": missing,
                "silent": silent,
                "missing_partitions": gaps.partitions,
            })
        );
    } else {
        for id in &missing {
            say!("{id}: not in the queue");
        }
        say!("{done} messages {past}, {refused} refused");
    }
    let all_done = refused == 0 && gaps.is_empty() && missing.is_empty();
    Ok(if all_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn item_json(item: &Operated) -> Value {
    json!({
        "id": item.id,
        "node": item.node,
        "recipients": item.recipients,
        "refused": (!item.refused.is_empty()).then_some(&item.refused),
    })
}

fn line(item: &Operated, past: &str) -> String {
    match item.refused.as_str() {
        "" => {
            let s = if item.recipients == 1 { "" } else { "s" };
            format!("{}: {past}, {} recipient{s}", item.id, item.recipients)
        }
        why => format!("{}: not {past}: {why}", item.id),
    }
}
