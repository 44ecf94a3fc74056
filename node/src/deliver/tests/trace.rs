//! What operators who watch see of a session with a next hop.

use futures::{FutureExt, StreamExt, stream::BoxStream};
use ppsw_proto::control::{TracePage, TraceRequest, trace_line::Way};

use super::{
    client::EHLO,
    dialogue::{BODY, Switch, destination, transmit, transmitter},
    server::{Script, Server},
};
use crate::{
    deliver::transaction::Mail,
    route::{Auth, ClientOptions, Protocol},
    trace::Tracer,
};

fn shown(pages: &mut BoxStream<'static, TracePage>) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(Some(page)) = pages.next().now_or_never() {
        for line in page.lines {
            let mark = match line.way() {
                Way::Note => "--",
                Way::Heard => "<-",
                Way::Said => "->",
            };
            assert!(!line.incoming && line.host == "host1" && line.peer == "127.0.0.1", "{line:?}");
            out.push(format!("{mark} {}", line.text));
        }
    }
    out
}

/// What is seen of two messages over one connection, by who watches one recipient.
async fn seen(script: Script, client: ClientOptions) -> Vec<String> {
    let protocol = if script.lmtp { Protocol::Lmtp } else { Protocol::Smtp };
    let server = Server::start(script).await;
    let tracer = Tracer::default();
    let recipient = TraceRequest { recipient: "b@y".into(), ..TraceRequest::default() };
    let mut pages = tracer.watch(&recipient).unwrap();
    let us = transmitter().watched(tracer);
    let mut to = destination(&[&server], protocol);
    to.client = client;
    let mail = Mail { sender: "s@x".into(), ..Mail::default() };
    for rcpts in [&["other@y"][..], &["a@y", "b@y"]] {
        transmit(&us, &to, &mail, rcpts, BODY, &Switch::default()).await;
    }
    assert_eq!(server.complete().len(), 2);
    shown(&mut pages)
}

#[tokio::test]
async fn only_the_message_that_fits_is_shown_and_not_its_content() {
    let lines = seen(Script::default(), ClientOptions::default()).await;
    let text = lines.join("\n");
    assert!(lines[0].starts_with("-- connects to 127.0.0.1:"), "{text}");
    let envelope = [
        "<- 220 here ESMTP",
        "-> EHLO us.example",
        "<- 250-here",
        "<- 250-PIPELINING",
        "<- 250-8BITMIME",
        "<- 250 SIZE 1000000",
        "-> MAIL FROM:<s@x> SIZE=0",
        "-> RCPT TO:<a@y>",
        "-> RCPT TO:<b@y>",
        "-> DATA",
        "<- 250 ok",
    ];
    assert_eq!(lines[1..12], envelope, "{text}");
    assert!(!text.contains("other@y") && !text.contains("Subject") && !text.contains("dot"));
    let end = ["<- 354 go on", "-> 26 octets of data", "-> .", "<- 250 2.0.0 taken"];
    assert_eq!(lines[lines.len() - 4..], end, "{text}");
}

#[tokio::test]
async fn lmtp_and_chunks_are_shown_and_secrets_are_not() {
    let lmtp = Script {
        lmtp: true,
        dot: vec![("a@y", "250 2.0.0 taken"), ("", "452 full")],
        ..Script::default()
    };
    let lines = seen(lmtp, ClientOptions::default()).await;
    assert!(lines.contains(&"-> LHLO us.example".to_owned()), "{lines:#?}");
    assert_eq!(lines[lines.len() - 2..], ["<- 250 2.0.0 taken", "<- 452 full"], "{lines:#?}");
    let client = ClientOptions {
        chunking: true,
        auth: Some(Auth::External { identity: "us".into() }),
        ..ClientOptions::default()
    };
    let lines = seen(Script { ehlo: EHLO, ..Script::default() }, client).await;
    let text = lines.join("\n");
    assert!(text.contains("-> AUTH EXTERNAL (secret)\n<- 235 ") && !text.contains("dXM"), "{text}");
    assert!(text.contains("-> BDAT 24 LAST\n-> 24 octets of data\n<- "), "{text}");
    assert!(!text.contains("Subject"), "{text}");
}
