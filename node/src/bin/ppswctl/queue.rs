//! `queue summary|list|show|cat`.

use std::io::{self, Write as _};

use comfy_table::{Table, presets};
use ppsw_proto::control::{CatRequest, QueueFilter, QueueItem, QueueRequest, QueueSummary};
use serde_json::{Value, json};

use crate::{
    Failure,
    address::Admin,
    age::{Age, rfc3339, span},
    args::Filter,
    gaps::{Before, Gaps},
    status,
};

pub(crate) async fn summary(
    admin: &mut Admin,
    filter: Filter,
    as_json: bool,
) -> Result<(), Failure> {
    let (before, filter) = prepared(admin, filter).await?;
    let node = filter.node;
    let summary = admin.summarise(QueueRequest { filter: Some(filter) }).await?.into_inner();
    let gaps = before.gaps(admin, node, &summary.silent).await;
    gaps.warn();
    if as_json {
        say!("{}", summary_json(&summary, &gaps));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["domain", "recipients", "deferred", "oldest"]);
    let now = now_ms();
    for domain in &summary.domains {
        table.add_row([
            domain.domain.clone(),
            domain.recipients.to_string(),
            domain.deferred.to_string(),
            span(now.saturating_sub(domain.oldest_ms)),
        ]);
    }
    say!("{table}");
    say!(
        "{} messages, {} recipients, {} bytes",
        summary.messages,
        summary.recipients,
        summary.bytes
    );
    Ok(())
}

pub(crate) async fn list(admin: &mut Admin, filter: Filter, as_json: bool) -> Result<(), Failure> {
    let items = fetch(admin, filter).await?;
    if as_json {
        say!("{}", Value::from_iter(items.iter().map(item_json)));
        return Ok(());
    }
    let now = now_ms();
    for item in &items {
        say!(
            "{:>7} {:>9} {} <{}>{}",
            span(now.saturating_sub(item.received_ms)),
            item.size,
            item.id,
            item.sender,
            if item.state == "held" { " *** held ***" } else { "" }
        );
        for recipient in item.recipients.iter().filter(|r| r.state != "delivered") {
            say!("{:>18} {}", recipient.state, recipient.address);
        }
    }
    Ok(())
}

pub(crate) async fn show(admin: &mut Admin, id: &str, as_json: bool) -> Result<(), Failure> {
    let filter = Filter { ids: vec![id.to_owned()], ..Filter::default() };
    let items = fetch(admin, filter).await?;
    let Some(item) = items.first() else {
        return Err(Failure::Refused(format!("no message {id} in the queue")));
    };
    if as_json {
        say!("{}", item_json(item));
        return Ok(());
    }
    let text = |ms| rfc3339(ms).as_str().unwrap_or("-").to_owned();
    let origin = item.origin.clone().unwrap_or_default();
    say!("{}: {} on node {}, partition {}", item.id, item.state, item.node, item.partition);
    say!("  sender     <{}>", item.sender);
    say!("  size       {} bytes", item.size);
    say!(
        "  received   {} from {} [{}] by {}",
        text(item.received_ms),
        origin.helo,
        origin.client,
        origin.personality
    );
    say!("  next retry {}", text(item.next_retry_ms));
    say!("  expires    {}", text(item.expires_ms));
    for recipient in &item.recipients {
        say!("  {} {}, {} attempts", recipient.address, recipient.state, recipient.attempts);
        if !recipient.last_error.is_empty() {
            say!("      {}", recipient.last_error);
        }
    }
    Ok(())
}

/// Bytes as they are, also with `--json`: they are in no character set.
pub(crate) async fn cat(admin: &mut Admin, id: String) -> Result<(), Failure> {
    let mut chunks = admin.cat(CatRequest { id }).await?.into_inner();
    let mut out = io::stdout().lock();
    while let Some(chunk) = chunks.message().await? {
        if out.write_all(&chunk.content).is_err() {
            // Nobody reads any more.
            return Ok(());
        }
    }
    let _ = out.flush();
    Ok(())
}

async fn fetch(admin: &mut Admin, filter: Filter) -> Result<Vec<QueueItem>, Failure> {
    let (before, filter) = prepared(admin, filter).await?;
    let node = filter.node;
    let mut pages = admin.queue(QueueRequest { filter: Some(filter) }).await?.into_inner();
    let (mut items, mut silent) = (Vec::new(), Vec::new());
    while let Some(page) = pages.message().await? {
        silent.extend(page.silent);
        items.extend(page.items);
    }
    before.gaps(admin, node, &silent).await.warn();
    // Oldest first; an id sorts by time.
    items.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(items)
}

/// The filter as nodes understand it, with the number of a node instead of its name; and who leads what now.
pub(crate) async fn prepared(
    admin: &mut Admin,
    filter: Filter,
) -> Result<(Before, QueueFilter), Failure> {
    let status = status::ask(admin).await?;
    let node = match &filter.node {
        Some(given) => status::find_node(&status, given)?,
        None => 0,
    };
    let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let (older_than_ms, younger_than_ms) = match filter.age {
        Some(Age::Older(age)) => (ms(age), 0),
        Some(Age::Younger(age)) => (0, ms(age)),
        None => (0, 0),
    };
    let filter = QueueFilter {
        sender: filter.sender.unwrap_or_default(),
        recipient: filter.recipient.unwrap_or_default(),
        domain: filter.domain.unwrap_or_default(),
        state: filter.state.unwrap_or_default(),
        older_than_ms,
        younger_than_ms,
        node,
        ids: filter.ids,
    };
    Ok((Before::new(&status), filter))
}

fn item_json(item: &QueueItem) -> Value {
    let recipients = item.recipients.iter().map(|r| {
        json!({
            "address": r.address,
            "state": r.state,
            "attempts": r.attempts,
            "last_error": (!r.last_error.is_empty()).then_some(&r.last_error),
            "next_retry": rfc3339(r.next_due_ms),
        })
    });
    json!({
        "id": item.id,
        "sender": item.sender,
        "recipients": Value::from_iter(recipients),
        "received": rfc3339(item.received_ms),
        "next_retry": rfc3339(item.next_retry_ms),
        "expires": rfc3339(item.expires_ms),
        "size": item.size,
        "state": item.state,
        "node": item.node,
        "partition": item.partition,
    })
}

pub(crate) fn summary_json(summary: &QueueSummary, gaps: &Gaps) -> Value {
    let domains = summary.domains.iter().map(|d| {
        json!({
            "domain": d.domain,
            "recipients": d.recipients,
            "deferred": d.deferred,
            "oldest": rfc3339(d.oldest_ms),
        })
    });
    json!({
        "messages": summary.messages,
        "recipients": summary.recipients,
        "bytes": summary.bytes,
        "oldest": rfc3339(summary.oldest_ms),
        "domains": Value::from_iter(domains),
        "held": summary.held,
        "ages": summary.ages.iter().map(|age| json!({
            "from_seconds": age.from_ms / 1000,
            "messages": age.messages,
        })).collect::<Value>(),
        "silent": summary.silent,
        "missing_partitions": gaps.partitions,
    })
}

pub(crate) fn now_ms() -> u64 {
    use ppsw_spool::env::{Clock, SystemClock};
    SystemClock.now().0
}
