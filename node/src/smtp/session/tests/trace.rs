//! What operators who watch see of a session.

use futures::{FutureExt, StreamExt, stream::BoxStream};
use ppsw_proto::control::{TracePage, TraceRequest, trace_line::Way};

use super::super::testing::{Bench, Client};

/// Lines as `ppswctl trace` marks them.
fn shown(pages: &mut BoxStream<'static, TracePage>) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(Some(page)) = pages.next().now_or_never() {
        for line in page.lines {
            let mark = match line.way() {
                Way::Note => "--",
                Way::Heard => "<-",
                Way::Said => "->",
            };
            assert!(line.incoming && line.peer == "127.200.1.1" && line.session == 1, "{line:?}");
            out.push(format!("{mark} {}", line.text));
        }
    }
    out
}

fn find<'a>(lines: &'a [String], start: &str) -> &'a str {
    let found = lines.iter().find(|line| line.starts_with(start));
    found.unwrap_or_else(|| panic!("no {start}: {lines:#?}"))
}

async fn leave(mut client: Client) {
    client.ask("QUIT", "221").await;
    client.expect_end().await;
    client.task.await.unwrap();
}

#[tokio::test]
async fn a_submission_is_shown_without_password_and_content() {
    let bench = Bench::new("submit");
    let recipient = TraceRequest { recipient: "b@y.org".into(), ..TraceRequest::default() };
    let mut pages = bench.front.tracer.watch(&recipient).unwrap();
    let mut client = bench.connect();
    client.expect("220").await;
    client.ask("EHLO c", "250").await;
    client.ask("STARTTLS", "220 2.0.0").await;
    let mut client = client.start_tls().await;
    client.ask("EHLO c", "250").await;
    client.ask("AUTH LOGIN", "334").await;
    client.ask("c3BxcjE=", "334").await;
    client.ask("c2VjcmV0", "235").await;
    client.ask("AUTH PLAIN AHNwcXIxAHNlY3JldA==", "503").await;
    client.ask("MAIL FROM:<a@x.org>", "250").await;
    assert_eq!(shown(&mut pages), Vec::<String>::new(), "nothing fits yet");
    client.ask("RCPT TO:<b@y.org>", "250").await;
    client.ask("DATA", "354").await;
    client.raw("Subject: private\r\n\r\nbody text\r\n.\r\n").await;
    client.expect("250").await;
    leave(client).await;
    let lines = shown(&mut pages);
    let text = lines.join("\n");
    for secret in ["c3BxcjE=", "c2VjcmV0", "AHNwcXIxAHNlY3JldA==", "private", "body text"] {
        assert!(!text.contains(secret), "{secret} is shown:\n{text}");
    }
    assert!(lines[0].starts_with("-- connected to "), "{text}");
    find(&lines, "-> 220 ");
    find(&lines, "-- TLS: TLS1.3");
    find(&lines, "<- AUTH LOGIN");
    find(&lines, "-> 334 ");
    find(&lines, "<- (secret)");
    find(&lines, "<- AUTH PLAIN (secret)");
    find(&lines, "<- MAIL FROM:<a@x.org>");
    find(&lines, "<- 34 octets of data");
    find(&lines, "-> 250 2.0.0 OK id=");
    assert_eq!(lines.last().map(String::as_str), Some("-- closed"), "{text}");
}

#[tokio::test]
async fn chunks_and_what_is_cut_off_are_counted_only() {
    let bench = Bench::new("mx");
    let mut pages = bench.front.tracer.watch(&TraceRequest::default()).unwrap();
    let mut client = bench.hello().await;
    client.ask("MAIL FROM:<a@x.org>", "250").await;
    client.ask("RCPT TO:<b@y.org>", "250").await;
    for chunk in ["BDAT 7\r\nprivate", "BDAT 9 LAST\r\nA: hidden"] {
        client.raw(chunk).await;
        client.expect("250").await;
    }
    client.begin().await;
    client.raw("half of it").await;
    // What has arrived is read before the end is noticed.
    drop(client.stream);
    client.task.await.unwrap();
    let lines = shown(&mut pages);
    let text = lines.join("\n");
    assert!(!text.contains("private") && !text.contains("hidden") && !text.contains("half"));
    find(&lines, "<- BDAT 9 LAST");
    find(&lines, "<- 7 octets of data");
    find(&lines, "<- 9 octets of data");
    find(&lines, "<- 10 octets of data");
    find(&lines, "-- connection closed by client");
}
