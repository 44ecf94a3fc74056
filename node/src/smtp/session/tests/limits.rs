//! Limits, time-outs, drains, and clients that are none.

use std::time::Duration;

use super::super::testing::{Bench, decision};
use crate::{
    limits::{COMMAND_LINE_BYTES_MAX, COMMAND_TIMEOUT, DATA_BLOCK_TIMEOUT, RECIPIENTS_MAX},
    policy::{Stage, Verdict},
};

#[tokio::test]
async fn a_long_line_is_refused_and_the_next_one_obeyed() {
    let mut client = Bench::new("mx").hello().await;
    client.raw("x".repeat(5 * COMMAND_LINE_BYTES_MAX)).await;
    client.ask("", "500 5.5.2").await;
    client.ask("NOOP", "250").await;
}

#[tokio::test]
async fn errors_are_limited() {
    let mut client = Bench::new("mx").hello().await;
    for _ in 0..20 {
        client.ask("XYZZY", "500").await;
    }
    client.ask("XYZZY", "500").await;
    client.expect("421 4.7.0 Too many errors").await;
    client.expect_end().await;
}

#[tokio::test]
async fn idle_talk_is_limited() {
    let mut client = Bench::new("mx").hello().await;
    for _ in 0..99 {
        client.ask("NOOP", "250").await;
    }
    client.ask("NOOP", "421 4.7.0").await;
    client.expect_end().await;
}

#[tokio::test]
async fn recipients_are_limited() {
    let bench = Bench::with("mx", |stage, _, transaction| {
        let bad = transaction.recipient.as_deref().is_some_and(|r| r.starts_with("bad"));
        decision(if stage == Stage::Rcpt && bad {
            Verdict::Deny("no".into())
        } else {
            Verdict::Accept
        })
    });
    let mut client = bench.hello().await;
    client.ask("MAIL FROM:<a@x.org>", "250").await;
    for _ in 0..RECIPIENTS_MAX {
        client.ask("RCPT TO:<b@y.org>", "250").await;
    }
    client.ask("RCPT TO:<b@y.org>", "452 4.5.3").await;
    client.ask("DATA", "354").await;
    client.raw(".\r\n").await;
    client.expect("250").await;
    client.ask("MAIL FROM:<a@x.org>", "250").await;
    for _ in 0..200 {
        client.ask("RCPT TO:<bad@y.org>", "550").await;
    }
    client.ask("RCPT TO:<bad@y.org>", "550").await;
    client.expect("421 4.7.0").await;
    client.expect_end().await;
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_session() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    client.expect("421 4.4.2").await;
    client.expect_end().await;
    let mut client = bench.hello().await;
    client.begin().await;
    client.expect("421 4.4.2").await;
    client.expect_end().await;
    assert!(bench.events().contains(&"lost timed out true".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_line_must_be_whole_in_time() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    let pause = COMMAND_TIMEOUT / 4;
    for _ in 0..3 {
        client.raw("x").await;
        tokio::time::sleep(pause).await;
    }
    client.raw("x").await;
    client.expect("421 4.4.2").await;
    let mut client = bench.hello().await;
    client.begin().await;
    for _ in 0..10 {
        // Content may be slow, as long as it comes.
        tokio::time::sleep(DATA_BLOCK_TIMEOUT - Duration::from_secs(1)).await;
        client.raw("x: y\r\n").await;
    }
    client.raw("\r\n.\r\n").await;
    client.expect("250").await;
}

#[tokio::test]
async fn other_protocols_are_sent_away() {
    let bench = Bench::new("mx");
    let mut client = bench.connect();
    client.expect("220").await;
    client.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc").await;
    client.expect("500 5.5.1").await;
    client.expect_end().await;
    let mut client = bench.connect();
    client.expect("220").await;
    client.raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    client.expect("500 5.5.1").await;
    client.expect_end().await;
    let mut client = bench.connect();
    client.expect("220").await;
    client.raw(b"\x00\xff\xfe\r\n\x01\r\n").await;
    client.expect("500 5.5.2").await;
    client.expect("500 5.5.2").await;
}

#[tokio::test]
async fn a_lost_client_loses_its_transaction() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    client.begin().await;
    client.raw("half: a\r\n").await;
    drop(client.stream);
    client.task.await.unwrap();
    assert!(bench.accepted().is_empty());
    assert_eq!(bench.events(), ["lost connection closed by client true"]);
    assert_eq!(bench.front.activity.open_transactions(), 0);
}

#[tokio::test]
async fn a_drain_lets_transactions_end() {
    let bench = Bench::new("mx");
    let mut idle = bench.hello().await;
    let mut busy = bench.hello().await;
    busy.begin().await;
    bench.front.activity.drain(true);
    idle.expect("421 4.3.2").await;
    idle.expect_end().await;
    assert_eq!(bench.front.activity.open_transactions(), 1);
    busy.raw("a: b\r\n\r\n.\r\n").await;
    busy.expect("250 2.0.0").await;
    busy.expect("421 4.3.2").await;
    busy.expect_end().await;
    assert_eq!(bench.accepted().len(), 1);
}

#[tokio::test]
async fn delays_and_notes_of_rules_are_kept() {
    let bench = Bench::with("mx", |stage, _, _| {
        let mut decision = decision(Verdict::Accept);
        if stage == Stage::Helo {
            decision.delay = Duration::from_millis(50);
            decision.log.push("slow".into());
        }
        decision
    });
    let started = tokio::time::Instant::now();
    bench.hello().await;
    assert!(started.elapsed() >= Duration::from_millis(50));
    assert_eq!(bench.events(), ["note slow"]);
}
