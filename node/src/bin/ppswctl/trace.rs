//! `trace`: SMTP dialogue, line by line.

use std::time::Duration;

use ppsw_proto::control::{TraceLine, TracePage, TraceRequest, trace_line::Way};
use serde_json::{Value, json};

use crate::{
    Failure,
    address::Admin,
    age::{clock, moment},
    args::Trace,
    status,
};

pub(crate) async fn trace(admin: &mut Admin, asked: Trace, as_json: bool) -> Result<(), Failure> {
    if asked.lasts.is_zero() || asked.count == Some(0) {
        return Err(Failure::Usage("expected a --for and a --count of more than 0".to_owned()));
    }
    let node = match &asked.node {
        Some(given) => status::find_node(&status::ask(admin).await?, given)?,
        None => 0,
    };
    let mut left = asked.count;
    let mut pages = admin.trace(request(asked, node)).await?.into_inner();
    loop {
        let page = pages.message().await.map_err(|status| {
            Failure::Silent(format!("the node that was asked: {}", status.message()))
        })?;
        let Some(page) = page else {
            eprintln!("ppswctl: the trace has ended");
            return Ok(());
        };
        for line in &page.lines {
            tell_lost(page.node, line.lost, as_json);
            if as_json {
                say!("{}", line_json(page.node, line));
            } else {
                say!("{}", words(page.node, line));
            }
            left = left.map(|left| left - 1);
            if left == Some(0) {
                return Ok(());
            }
        }
        tell_lost(page.node, page.lost, as_json);
        tell_state(&page);
    }
}

fn request(asked: Trace, node: u64) -> TraceRequest {
    TraceRequest {
        client: asked.client.unwrap_or_default(),
        sender: asked.sender.unwrap_or_default(),
        recipient: asked.recipient.unwrap_or_default(),
        host: asked.host.unwrap_or_default(),
        node,
        incoming: asked.incoming,
        outgoing: asked.outgoing,
        for_ms: ms(asked.lasts),
    }
}

/// Whether a node is watched: on standard error, for it is no dialogue.
fn tell_state(page: &TracePage) {
    if !page.trouble.is_empty() {
        eprintln!("ppswctl: node {} is not watched: {}", page.node, page.trouble);
    } else if page.lines.is_empty() && page.lost == 0 {
        eprintln!("ppswctl: watching node {}", page.node);
    }
}

fn tell_lost(node: u64, lost: u64, as_json: bool) {
    if lost > 0 && as_json {
        say!("{}", json!({ "node": node, "lost": lost }));
    } else if lost > 0 {
        say!("node-{node}: {lost} lines were lost here");
    }
}

/// `14:02:31.123 node-1 in 17 192.0.2.1 <- MAIL FROM:<a@b>`
fn words(node: u64, line: &TraceLine) -> String {
    let direction = if line.incoming { "in" } else { "out" };
    let mark = match line.way() {
        Way::Note => "--",
        Way::Heard => "<-",
        Way::Said => "->",
    };
    let (time, TraceLine { session, peer, text, .. }) = (clock(line.time_ms), line);
    format!("{time} node-{node} {direction} {session} {peer} {mark} {text}")
}

fn line_json(node: u64, line: &TraceLine) -> Value {
    let way = match line.way() {
        Way::Note => "note",
        Way::Heard => "received",
        Way::Said => "sent",
    };
    json!({
        "time": moment(line.time_ms),
        "node": node,
        "direction": if line.incoming { "in" } else { "out" },
        "session": line.session,
        "peer": line.peer,
        "host": (!line.host.is_empty()).then_some(&line.host),
        "way": way,
        "text": line.text,
    })
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_where_who_and_what() {
        let line = TraceLine {
            time_ms: 1_764_424_951_123,
            session: 17,
            incoming: true,
            peer: "192.0.2.1".into(),
            way: Way::Heard.into(),
            text: "MAIL FROM:<a@b>".into(),
            ..TraceLine::default()
        };
        assert_eq!(words(1, &line), "14:02:31.123 node-1 in 17 192.0.2.1 <- MAIL FROM:<a@b>");
        let shown = line_json(1, &line);
        assert_eq!((&shown["direction"], &shown["way"]), (&"in".into(), &"received".into()));
        assert_eq!(shown["time"], "2025-11-29T14:02:31.123Z");
        assert!(shown["host"].is_null());
    }
}
