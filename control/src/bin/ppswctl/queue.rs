//! `ppswctl queue`.

use ppsw_proto::control::{
    QueueFilter as WireFilter, QueueItem, QueueRequest, QueueSummary, admin_client::AdminClient,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::{
    QueueFilter,
    session::{Failure, Session},
    show::{self, Age},
};

pub(crate) async fn summary(
    session: &mut Session,
    json: bool,
    filter: QueueFilter,
) -> Result<(), Failure> {
    let request = request(session, filter).await?;
    let summary = session
        .call(|mut client: AdminClient<Channel>| {
            let request = request.clone();
            async move { client.summarise(request).await }
        })
        .await?;
    show::warn_of_silent(&summary.silent);
    if json {
        show::json(&summary_json(&summary));
    } else {
        print_summary(&summary);
    }
    Ok(())
}

pub(crate) async fn list(
    session: &mut Session,
    json: bool,
    filter: QueueFilter,
) -> Result<(), Failure> {
    let items = fetch(session, filter).await?;
    if json {
        show::json(&items.iter().map(item_json).collect());
        return Ok(());
    }
    let head = ["ID", "AGE", "SIZE", "STATE", "NEXT", "NODE", "SENDER", "RECIPIENTS"];
    let mut table = show::table(&head);
    for item in &items {
        table.add_row([
            item.id.clone(),
            show::ago(item.received_ms),
            show::size(item.size),
            item.state.clone(),
            show::until(item.next_retry_ms),
            item.node.to_string(),
            sender(item),
            recipients_in_short(item),
        ]);
    }
    if items.is_empty() {
        show::line("no messages");
    } else {
        show::print(&table);
    }
    Ok(())
}

pub(crate) async fn show(
    session: &mut Session,
    json: bool,
    filter: QueueFilter,
) -> Result<(), Failure> {
    let wanted = filter.ids.clone();
    let items = fetch(session, filter).await?;
    if json {
        show::json(&items.iter().map(item_json).collect());
    } else {
        items.iter().for_each(print_item);
    }
    let missing: Vec<_> =
        wanted.into_iter().filter(|id| !items.iter().any(|item| item.id == *id)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::Refused(format!(
        "not in the queue (delivered, bounced, or never here): {}",
        missing.join(", ")
    )))
}

async fn fetch(session: &mut Session, filter: QueueFilter) -> Result<Vec<QueueItem>, Failure> {
    let request = request(session, filter).await?;
    let mut pages = session
        .call(|mut client: AdminClient<Channel>| {
            let request = request.clone();
            async move { client.queue(request).await }
        })
        .await?;
    let mut items = Vec::new();
    loop {
        match pages.message().await {
            Ok(Some(page)) => {
                show::warn_of_silent(&page.silent);
                items.extend(page.items);
            }
            Ok(None) => break,
            Err(status) => {
                return Err(Failure::Refused(format!(
                    "the listing broke off ({}): ask again",
                    status.message()
                )));
            }
        }
    }
    items.sort_by(|a, b| a.received_ms.cmp(&b.received_ms).then_with(|| a.id.cmp(&b.id)));
    Ok(items)
}

async fn request(session: &mut Session, filter: QueueFilter) -> Result<QueueRequest, Failure> {
    let node = match &filter.node {
        Some(name) => session.find(name).await?.member.unwrap_or_default().id,
        None => 0,
    };
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (older_than_ms, younger_than_ms) = match filter.age {
        Some(Age::AtLeast(age)) => (ms(age), 0),
        Some(Age::AtMost(age)) => (0, ms(age)),
        None => (0, 0),
    };
    let filter = WireFilter {
        sender: filter.sender.unwrap_or_default(),
        recipient: filter.recipient.unwrap_or_default(),
        domain: filter.domain.unwrap_or_default(),
        state: filter.state.unwrap_or_default(),
        older_than_ms,
        younger_than_ms,
        node,
        ids: filter.ids,
    };
    Ok(QueueRequest { filter: Some(filter) })
}

fn item_json(item: &QueueItem) -> Value {
    let recipients: Vec<Value> = item
        .recipients
        .iter()
        .map(|recipient| {
            json!({
                "address": recipient.address,
                "state": recipient.state,
                "attempts": recipient.attempts,
                "last_error":
                    (!recipient.last_error.is_empty()).then_some(&recipient.last_error),
                "next_retry": show::time(recipient.next_due_ms),
            })
        })
        .collect();
    let origin = item.origin.clone().unwrap_or_default();
    json!({
        "id": item.id,
        "sender": item.sender,
        "recipients": recipients,
        "received": show::time(item.received_ms),
        "next_retry": show::time(item.next_retry_ms),
        "expires": show::time(item.expires_ms),
        "size": item.size,
        "state": item.state,
        "node": item.node,
        "partition": item.partition,
        "warned": item.warned,
        "client": origin.client,
        "protocol": origin.protocol,
        "personality": origin.personality,
        "authenticated": (!origin.authenticated.is_empty()).then_some(origin.authenticated),
    })
}

fn summary_json(summary: &QueueSummary) -> Value {
    let domains: Vec<Value> = summary
        .domains
        .iter()
        .map(|domain| {
            json!({
                "domain": domain.domain,
                "recipients": domain.recipients,
                "deferred": domain.deferred,
                "oldest": show::time(domain.oldest_ms),
            })
        })
        .collect();
    json!({
        "messages": summary.messages,
        "recipients": summary.recipients,
        "bytes": summary.bytes,
        "oldest": show::time(summary.oldest_ms),
        "domains": domains,
        "silent": summary.silent,
    })
}

fn print_summary(summary: &QueueSummary) {
    show::line(&format!(
        "{} for {}, {} bytes, oldest {}",
        show::count(summary.messages, "message"),
        show::count(summary.recipients, "recipient"),
        show::size(summary.bytes),
        show::ago(summary.oldest_ms)
    ));
    if summary.domains.is_empty() {
        return;
    }
    let mut table = show::table(&["DOMAIN", "RECIPIENTS", "DEFERRED", "OLDEST"]);
    for domain in &summary.domains {
        table.add_row([
            domain.domain.clone(),
            domain.recipients.to_string(),
            domain.deferred.to_string(),
            show::ago(domain.oldest_ms),
        ]);
    }
    show::print(&table);
}

fn print_item(item: &QueueItem) {
    let origin = item.origin.clone().unwrap_or_default();
    let stamp = |ms| show::time(ms).as_str().unwrap_or("-").to_owned();
    show::line(&item.id);
    show::line(&format!("  from       {}", sender(item)));
    show::line(&format!("  received   {} by {}", stamp(item.received_ms), origin.protocol));
    show::line(&format!("  client     {} {}", origin.client, origin.client_name));
    show::line(&format!("  size       {} bytes", item.size));
    show::line(&format!(
        "  state      {}, on node {}, partition {}",
        item.state, item.node, item.partition
    ));
    show::line(&format!("  next try   {}", stamp(item.next_retry_ms)));
    show::line(&format!("  expires    {}", stamp(item.expires_ms)));
    for recipient in &item.recipients {
        show::line(&format!(
            "  to         {} {}, {}",
            recipient.address,
            recipient.state,
            show::count(u64::from(recipient.attempts), "attempt")
        ));
        if !recipient.last_error.is_empty() {
            show::line(&format!(
                "             {}",
                recipient.last_error.replace(['\r', '\n'], " ")
            ));
        }
    }
}

fn sender(item: &QueueItem) -> String {
    format!("<{}>", item.sender)
}

/// The first address that still waits, and how many more.
fn recipients_in_short(item: &QueueItem) -> String {
    let waiting = item.recipients.iter().filter(|r| r.next_due_ms > 0);
    let more = waiting.clone().count().saturating_sub(1);
    let first = waiting.map(|r| r.address.as_str()).next().unwrap_or("-");
    if more == 0 { first.to_owned() } else { format!("{first} and {more} more") }
}
