//! STARTTLS and AUTH.

use super::super::testing::{Bench, MUA, decision};
use crate::policy::{Service, Stage, Submission, Verdict};

#[tokio::test]
async fn a_user_submits_over_tls() {
    let bench = Bench::with("submit", |stage, connection, _| {
        let mut decision = decision(Verdict::Accept);
        match stage {
            Stage::Mail if connection.authenticated.is_none() => {
                decision.verdict = Verdict::Deny("who are you".into());
            }
            Stage::Rcpt => {
                decision.submission = Some(Submission {
                    sender_retain: false,
                    domain: Some("hermes.example".into()),
                });
            }
            _ => {}
        }
        decision
    });
    let mut client = bench.connect();
    client.expect("220").await;
    let hello = client.ask("EHLO c", "250").await;
    assert!(
        hello.contains("250-STARTTLS") && !hello.contains("AUTH") && !hello.contains("PIPELINING")
    );
    client.ask("STARTTLS", "220 2.0.0").await;
    let mut client = client.start_tls().await;
    client.ask("MAIL FROM:<a@x.org>", "503").await;
    let hello = client.ask("EHLO c", "250").await;
    assert!(!hello.contains("STARTTLS") && hello.contains("250-AUTH PLAIN LOGIN\r\n"));
    client.ask("STARTTLS", "503").await;
    client.ask("MAIL FROM:<a@x.org>", "550").await;
    client.ask("AUTH PLAIN AHNwcXIxAHNlY3JldA==", "235 2.7.0").await;
    client.ask("AUTH PLAIN AHNwcXIxAHNlY3JldA==", "503").await;
    assert!(!client.ask("EHLO c", "250").await.contains("AUTH"));
    client.ask("MAIL FROM:<a@x.org> AUTH=spqr1@hermes.example", "250").await;
    client.ask("RCPT TO:<b@y.org>", "250").await;
    client.ask("DATA", "354").await;
    client.raw("From: other@z.org\r\nSender: forged@z.org\r\n\r\nhi\r\n.\r\n").await;
    client.expect("250").await;
    let (envelope, body) = bench.accepted().remove(0);
    assert_eq!(body, "From: other@z.org\r\n\r\nhi\r\n");
    let prepend = String::from_utf8_lossy(&envelope.prepend).replace("\r\n\t", " ");
    assert!(prepend.contains("\r\nSender: spqr1@hermes.example\r\n"), "{prepend}");
    assert!(
        prepend.contains("with ESMTPSA (PLAIN:spqr1)") && prepend.contains("(TLS1.3:TLS_"),
        "{prepend}"
    );
    assert_eq!(envelope.origin.authenticated, "spqr1");
    assert_eq!(envelope.origin.auth_sender, "spqr1@hermes.example");
}

#[tokio::test]
async fn a_trusted_client_names_its_user() {
    let mut bench = Bench::new("submit");
    bench.client = MUA.parse().unwrap();
    let mut client = bench.connect();
    client.expect("220").await;
    let hello = client.ask("EHLO mua.example", "250").await;
    assert!(hello.contains("250-AUTH EXTERNAL\r\n"), "{hello}");
    // Passwords need TLS from this client, too.
    client.ask("AUTH PLAIN AHNwcXIxAHNlY3JldA==", "538").await;
    client.ask("AUTH EXTERNAL =", "501").await;
    client.ask("AUTH EXTERNAL c3BxcjE=", "235").await;
    client.ask("MAIL FROM:<spqr1@hermes.example> AUTH=spqr1@hermes.example", "250").await;
    client.ask("RCPT TO:<b@y.org>", "250").await;
    client.ask("DATA", "354").await;
    client.raw("From: spqr1@hermes.example\r\n\r\nhi\r\n.\r\n").await;
    client.expect("250").await;
    let (envelope, _) = bench.accepted().remove(0);
    assert_eq!(envelope.origin.authenticated, "spqr1");
    assert_eq!(envelope.origin.auth_sender, "spqr1@hermes.example");
    // What was said in clear is forgotten (RFC 3207 §4.2).
    client.ask("STARTTLS", "220").await;
    let mut client = client.start_tls().await;
    let hello = client.ask("EHLO c", "250").await;
    assert!(hello.contains("250-AUTH PLAIN LOGIN EXTERNAL\r\n"), "{hello}");
    let prepend = String::from_utf8_lossy(&envelope.prepend).replace("\r\n\t", " ");
    assert!(prepend.contains("with ESMTPA (EXTERNAL:spqr1)"), "{prepend}");

    bench.client = "127.200.1.2".parse().unwrap();
    let mut client = bench.hello().await;
    client.ask("AUTH EXTERNAL c3BxcjE=", "538").await;
    client.ask("MAIL FROM:<spqr1@hermes.example> AUTH=spqr1@hermes.example", "555").await;
    client.ask("STARTTLS", "220").await;
    let mut client = client.start_tls().await;
    let hello = client.ask("EHLO c", "250").await;
    assert!(hello.contains("250-AUTH PLAIN LOGIN\r\n"), "{hello}");
    client.ask("AUTH EXTERNAL c3BxcjE=", "504").await;
}

#[tokio::test]
async fn tls_from_the_start() {
    let mut bench = Bench::new("submit");
    bench.service = Service::Submissions;
    let mut client = bench.connect().start_tls().await;
    client.expect("220").await;
    client.ask("EHLO c", "250").await;
    client.ask("AUTH LOGIN", "334 VXNlcm5hbWU6").await;
    client.ask("c3BxcjE=", "334 UGFzc3dvcmQ6").await;
    client.ask("c2VjcmV0", "235").await;
}

#[tokio::test]
async fn what_follows_starttls_in_clear_is_never_obeyed() {
    let bench = Bench::new("submit");
    let mut client = bench.connect();
    client.expect("220").await;
    client.ask("EHLO c", "250").await;
    client.raw("STARTTLS\r\nMAIL FROM:<evil@x.org>\r\n").await;
    client.expect("554 5.5.0").await;
    client.expect_end().await;
}

#[tokio::test(start_paused = true)]
async fn guessing_is_slow_and_limited() {
    let bench = Bench::new("submit");
    let mut client = bench.hello().await;
    client.ask("STARTTLS", "220").await;
    let mut client = client.start_tls().await;
    client.ask("EHLO c", "250").await;
    client.ask("AUTH PLAIN", "334 ").await;
    client.ask("*", "501").await;
    client.ask("AUTH CRAM-MD5", "504 5.5.4").await;
    client.ask("AUTH PLAIN AHNwcXIxAHdyb25n", "535 5.7.8").await;
    client.ask("AUTH PLAIN AG5vYm9keQBzZWNyZXQ=", "535 5.7.8").await;
    client.ask("AUTH LOGIN c3BxcjE=", "334").await;
    client.ask("d3Jvbmc=", "421 4.7.0").await;
    client.expect_end().await;
    let events = bench.events();
    assert_eq!(
        events.iter().filter(|e| e.starts_with("auth ")).collect::<Vec<_>>(),
        ["auth PLAIN spqr1", "auth PLAIN nobody", "auth LOGIN spqr1"]
    );
}
