//! What rules remember, and what they hear at the beginning and at the end of a session.

use super::super::testing::{Bench, Client, decision};
use crate::policy::{Stage, Verdict};

/// The variable `acl_c_seen` is the connection's, `acl_m_seen` the message's; RCPT tells both.
const REMEMBERING: &str = r#"acl "local" {
    mail { accept senders="first@x.org" { set "acl_m_seen" "m"; set "acl_c_seen" "c"; }
           accept; }
    rcpt { deny message="<{var:acl_m_seen}{var:acl_c_seen}>"; }
    starttls { accept; }
}"#;

async fn told(client: &mut Client, sender: &str) -> String {
    client.ask(&format!("MAIL FROM:<{sender}@x.org>"), "250").await;
    let reply = client.ask("RCPT TO:<b@y.org>", "550").await;
    reply.trim_end().trim_start_matches("550 5.7.1 ").to_owned()
}

#[tokio::test]
async fn a_messages_variables_end_with_it() {
    for end in ["RSET", "EHLO c", "HELO c"] {
        let bench = Bench::configured(REMEMBERING);
        let mut client = bench.hello().await;
        assert_eq!(told(&mut client, "first").await, "<mc>", "{end}");
        client.ask(end, "250").await;
        assert_eq!(told(&mut client, "next").await, "<c>", "{end}");
    }
    // The end of the content is one, too.
    let taking = REMEMBERING.replace("rcpt { deny", "rcpt { accept senders=\"first@x.org\"; deny");
    let bench = Bench::configured(&taking);
    let mut client = bench.hello().await;
    client.ask("MAIL FROM:<first@x.org>", "250").await;
    client.ask("RCPT TO:<b@y.org>", "250").await;
    client.ask("DATA", "354").await;
    client.raw("a: b\r\n\r\n.\r\n").await;
    client.expect("250").await;
    assert_eq!(told(&mut client, "next").await, "<c>");
}

#[tokio::test]
async fn the_banner_may_have_more_lines() {
    let bench = Bench::configured(
        r#"acl "local" { connect { accept message="Welcome, {client}\nBe good" }; rcpt { deny } }"#,
    );
    let banner =
        bench.connect().expect("220-ppsw-1.example (localhost [127.10.1.1]:2525) ESMTP").await;
    assert!(banner.ends_with("220-Welcome, 127.200.1.1\r\n220 Be good\r\n"), "{banner}");
}

#[tokio::test]
async fn the_end_of_a_session_has_its_rules() {
    let heard = |stage| {
        Bench::with("mx", move |now, _, _| {
            let mut decision = decision(Verdict::Accept);
            if now == stage {
                decision.log.push(format!("{stage:?}"));
            }
            decision
        })
    };
    let quit = heard(Stage::Quit);
    let mut client = quit.hello().await;
    client.ask("QUIT", "221").await;
    client.task.await.unwrap();
    assert_eq!(quit.events(), ["note Quit"]);
    for (end, events) in [
        ("QUIT", vec![]),
        ("", vec!["note NotQuit", "lost connection closed by client false"]),
        ("GET / HTTP/1.1", vec!["protocol 500", "note NotQuit"]),
    ] {
        let bench = heard(Stage::NotQuit);
        let mut client = bench.hello().await;
        if !end.is_empty() {
            client.raw(format!("{end}\r\n")).await;
            client.reply().await;
        }
        drop(client.stream);
        client.task.await.unwrap();
        assert_eq!(bench.events(), events, "{end}");
    }
}
