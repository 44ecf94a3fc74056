//! Rules that stand: `queue … --standing`, `queue rules|cancel`, `suspend` and `resume`.

use std::time::Duration;

use comfy_table::{Table, presets};
use ppsw_proto::control::{
    AddStandingRequest, CancelStandingRequest, ListStandingRequest, OperateRequest, QueueFilter,
    QueueVerb, Shed, StandingRule,
};
use serde_json::{Value, json};

use crate::{Failure, address::Admin, age::rfc3339};

pub(crate) async fn add(
    admin: &mut Admin,
    order: OperateRequest,
    lasts: Duration,
    as_json: bool,
) -> Result<(), Failure> {
    let order = Some(order);
    let request =
        AddStandingRequest { order, duration_ms: ms(lasts), ..AddStandingRequest::default() };
    let rule = admin.add_standing(request).await?.into_inner();
    shown(&[rule], as_json);
    Ok(())
}

pub(crate) async fn suspend(
    admin: &mut Admin,
    destination: String,
    lasts: Duration,
    reason: String,
    as_json: bool,
) -> Result<(), Failure> {
    let duration_ms = ms(lasts);
    let request =
        AddStandingRequest { destination, reason, duration_ms, ..AddStandingRequest::default() };
    let rule = admin.add_standing(request).await?.into_inner();
    shown(&[rule], as_json);
    Ok(())
}

pub(crate) async fn list(admin: &mut Admin, as_json: bool) -> Result<(), Failure> {
    let rules = admin.list_standing(ListStandingRequest {}).await?.into_inner().rules;
    shown(&rules, as_json);
    Ok(())
}

/// Sheds a share of a personality's sessions for a time, and says why.
pub(crate) async fn shed(
    admin: &mut Admin,
    personality: String,
    percent: u32,
    (lasts, reason): (Duration, String),
    as_json: bool,
) -> Result<(), Failure> {
    let shed = Some(Shed { personality, percent });
    let duration_ms = ms(lasts);
    let request = AddStandingRequest { shed, reason, duration_ms, ..AddStandingRequest::default() };
    let rule = admin.add_standing(request).await?.into_inner();
    shown(&[rule], as_json);
    Ok(())
}

pub(crate) async fn list_shed(admin: &mut Admin, as_json: bool) -> Result<(), Failure> {
    let mut rules = admin.list_standing(ListStandingRequest {}).await?.into_inner().rules;
    rules.retain(|rule| rule.shed.is_some());
    shown(&rules, as_json);
    Ok(())
}

pub(crate) async fn stop_shedding(
    admin: &mut Admin,
    personality: String,
    as_json: bool,
) -> Result<(), Failure> {
    let request = CancelStandingRequest { personality, ..CancelStandingRequest::default() };
    let rules = admin.cancel_standing(request).await?.into_inner().rules;
    shown(&rules, as_json);
    Ok(())
}

/// Ends rules, by number or by the destination that they suspend, and shows them.
pub(crate) async fn cancel(
    admin: &mut Admin,
    ids: Vec<u64>,
    destination: &str,
    as_json: bool,
) -> Result<(), Failure> {
    let destination = destination.to_owned();
    let request = CancelStandingRequest { ids, destination, ..CancelStandingRequest::default() };
    let rules = admin.cancel_standing(request).await?.into_inner().rules;
    shown(&rules, as_json);
    Ok(())
}

fn shown(rules: &[StandingRule], as_json: bool) {
    if as_json {
        say!("{}", Value::from_iter(rules.iter().map(rule_json)));
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["rule", "does", "with", "until", "by", "reason"]);
    for rule in rules {
        let until = rfc3339(rule.until_ms).as_str().unwrap_or("-").to_owned();
        let (id, with) = (rule.id.to_string(), with(rule));
        table.add_row([id, verb(rule), with, until, rule.by.clone(), rule.reason.clone()]);
    }
    say!("{table}");
}

fn rule_json(rule: &StandingRule) -> Value {
    let order = rule.order.as_ref();
    let filter = order.and_then(|order| order.filter.clone()).unwrap_or_default();
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "id": rule.id,
        "verb": verb(rule),
        "destination": given(&rule.destination),
        "personality": rule.shed.as_ref().map(|shed| &shed.personality),
        "percent": rule.shed.as_ref().map(|shed| shed.percent),
        "sender": given(&filter.sender),
        "recipient": given(&filter.recipient),
        "domain": given(&filter.domain),
        "to": order.and_then(|order| given(&order.to)),
        "since": rfc3339(rule.since_ms),
        "until": rfc3339(rule.until_ms),
        "by": rule.by,
        "reason": rule.reason,
    })
}

fn verb(rule: &StandingRule) -> String {
    let verb = match rule.order.as_ref().map(OperateRequest::verb) {
        None if rule.shed.is_some() => "shed",
        None => "suspend",
        Some(QueueVerb::Hold) => "hold",
        Some(QueueVerb::Bounce) => "bounce",
        Some(QueueVerb::Drop) => "drop",
        Some(QueueVerb::Redirect) => "redirect",
        Some(_) => "(unknown)",
    };
    verb.to_owned()
}

/// What a rule is about, as on a command line.
fn with(rule: &StandingRule) -> String {
    if let Some(shed) = &rule.shed {
        return format!("{} {}%", shed.personality, shed.percent);
    }
    let Some(order) = &rule.order else { return rule.destination.clone() };
    let QueueFilter { sender, recipient, domain, .. } = order.filter.clone().unwrap_or_default();
    let conditions = [
        ("--sender", sender),
        ("--recipient", recipient),
        ("--domain", domain),
        ("--to", order.to.clone()),
    ];
    let given = conditions.iter().filter(|(_, value)| !value.is_empty());
    let text: Vec<String> = given.map(|(name, value)| format!("{name} {value}")).collect();
    if text.is_empty() { "--all".to_owned() } else { text.join(" ") }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
