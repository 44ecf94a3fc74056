//! Clients that do not wait for replies.

use super::super::testing::{Bench, decision};
use crate::policy::{Stage, Verdict};

const TOO_EARLY: &str = "554 5.5.0 SMTP synchronization error";

#[tokio::test]
async fn commands_that_end_a_group_are_waited_for() {
    for (before, raw) in [
        ("", "EHLO a\r\nMAIL FROM:<a@x.org>\r\n"),
        ("NOOP", "NOOP\r\nRSET\r\n"),
        ("NOOP", "VRFY a\r\nRSET\r\n"),
        ("NOOP", "HELO a\r\nQ"),
    ] {
        let bench = Bench::new("mx");
        let mut client = bench.hello().await;
        if !before.is_empty() {
            client.ask(before, "250").await;
        }
        client.raw(raw).await;
        client.expect(TOO_EARLY).await;
        client.expect_end().await;
        assert!(bench.events().contains(&"protocol 554".to_owned()), "{raw}");
    }
}

#[tokio::test]
async fn content_comes_after_the_reply_to_data() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    client.raw("MAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\nDATA\r\na: b\r\n\r\n.\r\n").await;
    client.expect("250 2.1.0").await;
    client.expect("250 2.1.5").await;
    client.expect(TOO_EARLY).await;
    client.expect_end().await;
    assert!(bench.accepted().is_empty());
    assert_eq!(bench.front.activity.open_transactions(), 0);
}

#[tokio::test]
async fn a_group_and_what_follows_content_are_fine() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    client.raw("MAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\nDATA\r\n").await;
    for code in ["250 2.1.0", "250 2.1.5", "354"] {
        client.expect(code).await;
    }
    client.raw("a: b\r\n\r\n.\r\nMAIL FROM:<a@x.org>\r\nRSET\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\n").await;
    client.raw("BDAT 6 LAST\r\na: b\r\nNOOP\r\n").await;
    for code in ["250 2.0.0 OK", "250", "250", "250", "250", "250 2.0.0 OK id", "250 2.0.0 OK"] {
        client.expect(code).await;
    }
    client.raw("NOOP\r\n").await;
    client.expect("250").await;
    client.raw("QUIT\r\nQUIT\r\n").await;
    client.expect("221").await;
    assert_eq!(bench.accepted().len(), 2);
}

#[tokio::test]
async fn who_was_not_offered_pipelining_waits_for_every_reply() {
    let bench = Bench::new("mx");
    let mut client = bench.connect();
    client.expect("220").await;
    client.ask("HELO a", "250").await;
    client.raw("MAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\n").await;
    client.expect(TOO_EARLY).await;
    client.expect_end().await;

    let off = Bench::with("mx", |_, _, _| {
        let mut decision = decision(Verdict::Accept);
        decision.pipelining_off = true;
        decision
    });
    let mut client = off.hello().await;
    client.raw("RSET\r\nRSET\r\n").await;
    client.expect(TOO_EARLY).await;
}

#[tokio::test]
async fn rules_and_submission_forgive() {
    let forgiving = Bench::with("mx", |stage, _, _| {
        let mut decision = decision(Verdict::Accept);
        decision.enforce_sync_off = stage == Stage::Connect;
        decision
    });
    for bench in [forgiving, Bench::new("submit")] {
        let mut client = bench.hello().await;
        client.raw("NOOP\r\nHELO a\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\nDATA\r\na: b\r\n\r\n.\r\n").await;
        for code in ["250", "250", "250 2.1.0", "250 2.1.5", "354", "250"] {
            client.expect(code).await;
        }
        assert_eq!(bench.accepted().len(), 1);
    }
}
