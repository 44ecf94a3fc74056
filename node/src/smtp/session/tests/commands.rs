//! Commands, their order, and what the rules make of them.

use super::super::testing::{Bench, decision};
use crate::policy::{Stage, Verdict};

#[tokio::test]
async fn a_message_goes_through() {
    let bench = Bench::new("mx");
    let mut client = bench.connect();
    let banner = client.expect("220 ppsw-1.example (mx.example [127.10.1.1]:2525) ESMTP").await;
    assert_eq!(banner.lines().count(), 1);
    let hello = client.ask("EHLO client.example.net", "250-ppsw-1.example Hello").await;
    let offered = ["SIZE 10000", "8BITMIME", "PIPELINING", "CHUNKING", "SMTPUTF8", "DSN"];
    for keyword in offered.into_iter().chain(["ENHANCEDSTATUSCODES"]) {
        assert!(hello.contains(&format!("250-{keyword}\r\n")), "{keyword}");
    }
    for keyword in ["STARTTLS", "AUTH"] {
        assert!(!hello.contains(keyword), "{keyword}");
    }
    client.ask("MAIL FROM:<Joe@X.org> SIZE=100 BODY=8BITMIME", "250 2.1.0").await;
    assert_eq!(bench.front.activity.open_transactions(), 1);
    client.ask("RCPT TO:<postmaster>", "250 2.1.5").await;
    client.ask("DATA", "354 ").await;
    client.raw("Subject: hi\r\nMessage-ID: <1@x>\r\n\r\n..dot\r\n.\r\n").await;
    client.expect("250 2.0.0 OK id=000001-000002-03\r\n").await;
    assert_eq!(bench.front.activity.open_transactions(), 0);
    client.ask("QUIT", "221 2.0.0").await;
    client.expect_end().await;
    let accepted = bench.accepted();
    let (envelope, body) = &accepted[0];
    assert_eq!(body, "Subject: hi\r\nMessage-ID: <1@x>\r\n\r\n.dot\r\n");
    assert_eq!(envelope.sender, "Joe@X.org");
    assert_eq!(envelope.recipients[0].address, "postmaster@ppsw.example");
    assert_eq!(envelope.message_id_field, "<1@x>");
    assert_eq!(envelope.origin.client_name, "c1.example.net");
    assert_eq!(envelope.origin.protocol, "ESMTP");
    assert!(envelope.eight_bit);
    let received = String::from_utf8_lossy(&envelope.prepend).into_owned();
    assert!(
        received
            .starts_with("Received: from client.example.net (c1.example.net [127.200.1.1]:40000)")
    );
    assert!(received.contains("for <postmaster@ppsw.example>"), "{received}");
    assert_eq!(bench.events(), ["<= Joe@X.org mx"]);
}

#[tokio::test]
async fn commands_out_of_order_are_refused() {
    let bench = Bench::new("mx");
    let mut client = bench.connect();
    client.expect("220").await;
    client.ask("MAIL FROM:<a@x.org>", "503 5.5.1").await;
    client.ask("HELO c", "250 ").await;
    client.ask("RCPT TO:<b@y.org>", "503").await;
    client.ask("DATA", "503").await;
    client.ask("MAIL FROM:<a@x.org> SIZE=1", "555 5.5.4").await;
    client.ask("MAIL FROM:<a@x.org>", "250").await;
    client.ask("MAIL FROM:<a@x.org>", "503").await;
    client.ask("DATA", "503").await;
    client.ask("RSET", "250").await;
    client.ask("RCPT TO:<b@y.org>", "503").await;
    client.ask("MAIL FROM:<a@x.org>", "250").await;
    client.ask("EHLO c", "250").await;
    client.ask("RCPT TO:<b@y.org>", "503").await;
    client.ask("VRFY b", "252").await;
    client.ask("HELP", "214").await;
    client.ask("NOOP x", "250").await;
    client.ask("STARTTLS", "502").await;
    client.ask("AUTH PLAIN AGEAYg==", "538 5.7.11").await;
    client.ask("XYZZY", "500 5.5.1").await;
    client.ask("EXPN staff", "502").await;
}

#[tokio::test]
async fn extensions_that_are_not_offered_are_refused() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    client.ask("MAIL FROM:<a@x.org> AUTH=<>", "555 5.5.4").await;
    client.ask("MAIL FROM:<a@x.org> SIZE=10001", "552 5.3.4").await;
    client.ask("MAIL FROM:<é@x.org>", "553 5.6.7").await;
    client.ask("MAIL FROM:<é@x.org> SMTPUTF8", "250").await;
    client.ask("RCPT TO:<é@y.org>", "250").await;
    client.ask("RSET", "250").await;
    client.ask("MAIL FROM:<>", "250").await;
    client.ask("RCPT TO:<é@y.org>", "553 5.6.7").await;
    client.ask("RCPT TO:<@relay.org:b@y.org>", "250").await;
    client.ask("RCPT TO:<b@[127.0.0.1]>", "250").await;
    client.ask("RCPT TO:<b@y.org>", "250").await;
    client.ask("RCPT TO:<b@y.org>", "250").await;
    client.ask("DATA", "354").await;
    client.raw(".\r\n").await;
    client.expect("250").await;
    let (envelope, body) = bench.accepted().remove(0);
    assert_eq!(body, "");
    assert_eq!(envelope.sender, "");
    let addresses: Vec<_> = envelope.recipients.iter().map(|r| r.address.as_str()).collect();
    assert_eq!(addresses, ["b@y.org", "b@[127.0.0.1]", "b@y.org", "b@y.org"]);
    assert!(!String::from_utf8_lossy(&envelope.prepend).contains(" for <"));
}

#[tokio::test]
async fn dsn_is_taken_where_it_is_offered() {
    let bench = Bench::new("mx");
    let mut client = bench.connect();
    client.expect("220").await;
    assert!(client.ask("EHLO c", "250").await.contains("250-DSN\r\n"));
    client.ask("MAIL FROM:<a@x.org> RET=HDRS ENVID=x+2By", "250").await;
    client.ask("RCPT TO:<b@y.org> NOTIFY=never ORCPT=rfc822;b@y.org", "250").await;
    client.ask("DATA", "354").await;
    client.raw(".\r\n").await;
    client.expect("250").await;
    let (envelope, _) = bench.accepted().remove(0);
    assert!(envelope.return_headers_only);
    assert_eq!(envelope.envelope_id, "x+2By");
    assert_eq!(envelope.recipients[0].notify, "NEVER");
    assert_eq!(envelope.recipients[0].original, "rfc822;b@y.org");
}

#[tokio::test]
async fn rules_decide_at_every_stage() {
    let bench = Bench::with("mx", |stage, connection, transaction| {
        let deny = |text: &str| decision(Verdict::Deny(text.into()));
        match stage {
            Stage::Helo if connection.helo.as_deref() == Some("bad") => deny("not you"),
            Stage::Mail if transaction.sender.starts_with("later") => {
                decision(Verdict::Defer("busy\nsee page".into()))
            }
            Stage::Rcpt => match transaction.recipient.as_deref() {
                Some("no@y.org") => deny(""),
                Some("hole@y.org") => decision(Verdict::Discard),
                Some("drop@y.org") => decision(Verdict::Drop("go away".into())),
                _ => decision(Verdict::Accept),
            },
            Stage::Predata if transaction.recipients_accepted > 2 => deny("too many"),
            Stage::Data if transaction.sender.is_empty() => deny("no bounces"),
            _ => decision(Verdict::Accept),
        }
    });
    let mut client = bench.connect();
    client.expect("220").await;
    client.ask("HELO bad", "550 5.7.1 not you").await;
    client.ask("MAIL FROM:<a@x.org>", "503").await;
    client.ask("EHLO good", "250").await;
    let reply = client.ask("MAIL FROM:<later@x.org>", "451-4.7.1 busy\r\n").await;
    assert!(reply.ends_with("451 4.7.1 see page\r\n"));
    client.ask("MAIL FROM:<>", "250").await;
    client.ask("RCPT TO:<no@y.org>", "550 5.7.1 Administrative prohibition").await;
    client.ask("DATA", "554 5.5.1 No valid recipients").await;
    client.ask("RCPT TO:<b@y.org>", "250").await;
    client.ask("DATA", "354").await;
    client.raw("x: y\r\n\r\n.\r\n").await;
    client.expect("550 5.7.1 no bounces").await;
    client.ask("MAIL FROM:<a@x.org>", "250").await;
    client.ask("RCPT TO:<hole@y.org>", "250").await;
    client.ask("DATA", "354").await;
    client.raw("x: y\r\n\r\n.\r\n").await;
    client.expect("250 2.0.0").await;
    client.ask("MAIL FROM:<a@x.org>", "250").await;
    for _ in 0..3 {
        client.ask("RCPT TO:<b@y.org>", "250").await;
    }
    client.ask("DATA", "550 5.7.1 too many").await;
    client.ask("MAIL FROM:<a@x.org>", "250").await;
    client.ask("RCPT TO:<drop@y.org>", "550 5.7.1 go away").await;
    client.expect_end().await;
    assert!(bench.accepted().is_empty());
    assert!(bench.events().contains(&"<= a@x.org mx discarded".to_owned()));
    assert!(bench.events().contains(&"rejected rcpt no@y.org 550".to_owned()));
    assert_eq!(bench.front.activity.open_transactions(), 0);
}

#[tokio::test]
async fn a_refused_connection_is_closed() {
    let bench = Bench::with("mx", |stage, _, _| match stage {
        Stage::Connect => decision(Verdict::Deny("listed".into())),
        _ => decision(Verdict::Accept),
    });
    let mut client = bench.connect();
    client.expect("554 5.7.1 listed").await;
    client.expect_end().await;
}

#[tokio::test]
async fn pipelined_commands_are_answered_in_order() {
    let bench = Bench::new("submit");
    let mut client = bench.connect();
    client
        .raw(
            "EHLO c\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\nRCPT TO:bad\r\nDATA\r\n\
             one: 1\r\n\r\n.\r\nMAIL FROM:<a@x.org>\r\nRSET\r\nQUIT\r\n",
        )
        .await;
    for code in [
        "220",
        "250-",
        "250 2.1.0",
        "250 2.1.5",
        "501",
        "354",
        "250 2.0.0",
        "250 2.1.0",
        "250 2.0.0",
        "221",
    ] {
        client.expect(code).await;
    }
    client.expect_end().await;
    assert_eq!(bench.accepted().len(), 1);
}

#[tokio::test]
async fn lines_with_bare_ends_are_refused_or_normalised() {
    let mut client = Bench::new("mx").hello().await;
    client.raw("NOOP\n").await;
    client.expect("550 5.6.11").await;
    client.raw("NOOP\rRSET\r\n").await;
    client.expect("550 5.6.11").await;
    client.ask("NOOP", "250").await;
    let bench = Bench::new("submit");
    let mut client = bench.connect();
    client.expect("220").await;
    client.raw("HELO c\nNOOP\rNOOP\r\n").await;
    for _ in 0..3 {
        client.expect("250").await;
    }
}
