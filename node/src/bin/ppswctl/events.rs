//! `events`: what happens in the cluster.

use std::time::Duration;

use ppsw_proto::control::{Event, EventsPage, EventsRequest};
use ppsw_spool::env::{Clock as _, SystemClock};
use serde_json::{Map, Value};
use tokio::time::{sleep, timeout};

use crate::{
    Failure,
    address::{self, Admin, Cluster},
    age::{clock, moment, rfc3339},
    status,
};

/// Events of the past that are shown if nobody says how many.
const LAST: u32 = 10;

/// Between two tries when the node that was asked has gone.
const RETRY: Duration = Duration::from_secs(1);

/// Tries then: longer than a node takes to be restarted.
const RETRIES: usize = 60;

pub(crate) struct Asked {
    pub(crate) since: Option<Duration>,
    pub(crate) node: Option<String>,
    pub(crate) lasts: Duration,
}

pub(crate) async fn events(cluster: &Cluster, asked: Asked, as_json: bool) -> Result<(), Failure> {
    let mut admin = address::connect(cluster).await?;
    let node = match &asked.node {
        Some(given) => status::find_node(&status::ask(&mut admin).await?, given)?,
        None => 0,
    };
    let now = SystemClock.now().0;
    let mut request = EventsRequest {
        since_ms: asked.since.map_or(0, |since| now.saturating_sub(ms(since)).max(1)),
        node,
        for_ms: ms(asked.lasts),
        last: LAST,
    };
    let watch = async {
        loop {
            watch(&mut admin, &mut request, as_json).await?;
            if asked.lasts.is_zero() {
                return Ok(());
            }
            // Another node goes on telling; what happened meanwhile comes first.
            admin = again(cluster).await?;
        }
    };
    if asked.lasts.is_zero() {
        return watch.await;
    }
    timeout(asked.lasts, watch).await.unwrap_or(Ok(()))
}

/// Shows events until the node that was asked goes away; notes what was shown last.
async fn watch(
    admin: &mut Admin,
    request: &mut EventsRequest,
    as_json: bool,
) -> Result<(), Failure> {
    let mut pages = admin.events(*request).await?.into_inner();
    while let Ok(Some(page)) = pages.message().await {
        let newest = page.events.iter().map(|event| event.time_ms + 1).max();
        request.since_ms = newest.unwrap_or(0).max(request.since_ms);
        show(&page, as_json);
    }
    // Without any event so far, none of before.
    request.last = 0;
    Ok(())
}

async fn again(cluster: &Cluster) -> Result<Admin, Failure> {
    eprintln!("ppswctl: the node that was asked does not answer any more: asking again");
    let mut result = Err(Failure::Silent("nobody was asked".to_owned()));
    for _ in 0..RETRIES {
        sleep(RETRY).await;
        result = address::connect(cluster).await;
        if result.is_ok() {
            break;
        }
    }
    result
}

fn show(page: &EventsPage, as_json: bool) {
    if page.lost > 0 && as_json {
        say!("{}", serde_json::json!({ "node": page.node, "lost": page.lost }));
    } else if page.lost > 0 {
        say!("node-{}: {} events were lost here", page.node, page.lost);
    }
    for event in &page.events {
        if as_json {
            say!("{}", event_json(event));
        } else {
            say!("{}", words(event));
        }
    }
    if !page.trouble.is_empty() {
        eprintln!("ppswctl: node {} is not heard: {}", page.node, page.trouble);
    }
}

/// The members that an event has besides time, node and name; those that are not known are left out.
fn members(event: &Event) -> Vec<(&'static str, Value)> {
    let text = |text: &String| (!text.is_empty()).then(|| Value::from(text.as_str()));
    let number = |number: Option<u64>| number.map(Value::from);
    let reasons = (!event.reasons.is_empty()).then(|| Value::from(event.reasons.clone()));
    let all = [
        ("name", text(&event.name)),
        ("partition", number(event.partition.map(u64::from))),
        ("term", number(event.term)),
        ("phase", text(&event.phase)),
        ("reasons", reasons),
        ("rule", number(event.rule)),
        ("personality", text(&event.personality)),
        ("percent", number(event.percent.map(u64::from))),
        ("destination", text(&event.destination)),
        ("verb", text(&event.verb)),
        ("version", number(event.version)),
        ("generation", number(event.generation)),
        ("by", text(&event.by)),
        ("reason", text(&event.reason)),
        ("until", event.until_ms.map(rfc3339)),
        ("text", text(&event.text)),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn event_json(event: &Event) -> Value {
    let mut object = Map::new();
    object.insert("time".to_owned(), moment(event.time_ms));
    object.insert("node".to_owned(), event.node.into());
    object.insert("event".to_owned(), event.event.as_str().into());
    object.extend(members(event).into_iter().map(|(name, value)| (name.to_owned(), value)));
    object.into()
}

/// `14:02:31.123 node-2 drain_begun by=anna`
fn words(event: &Event) -> String {
    let mut line = format!("{} node-{} {}", clock(event.time_ms), event.node, event.event);
    for (name, value) in members(event) {
        let value = match value {
            Value::String(text) if text.contains(' ') => format!("{text:?}"),
            Value::String(text) => text,
            other => other.to_string(),
        };
        line.push_str(&format!(" {name}={value}"));
    }
    line
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_show_what_they_have_and_no_more() {
        let event = Event {
            time_ms: 1_764_424_951_123,
            node: 2,
            event: "shed_set".into(),
            rule: Some(4),
            percent: Some(50),
            personality: "mx".into(),
            reason: "too much".into(),
            ..Event::default()
        };
        assert_eq!(
            words(&event),
            "14:02:31.123 node-2 shed_set rule=4 personality=mx percent=50 reason=\"too much\""
        );
        let shown = event_json(&event);
        assert_eq!((&shown["node"], &shown["percent"]), (&2.into(), &50.into()));
        assert!(shown.get("term").is_none());
        assert_eq!(shown["time"], "2025-11-29T14:02:31.123Z");
    }
}
