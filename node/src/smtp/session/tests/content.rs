//! DATA and BDAT.

use ppsw_spool::queue::AcceptError;

use super::super::testing::{Bench, Client, decision};
use crate::policy::{Stage, Submission, Verdict};

/// Every sequence of `The-Login/SMTP-Smuggling-Tools` and some more that must not end a message.
const FALSE_ENDS: [&str; 16] = [
    "\n.\n",
    "\n.\r\n",
    "\r.\r",
    "\r.\r\n",
    "\r\n.\n",
    "\r\n.\r",
    "\n.\r",
    "\r.\n",
    "\r\n.\r\r\n",
    "\r\r\n.\r\r\n",
    "\n\n.\r\n",
    "\r\n\n.\r\n",
    "\r\n\0.\r\n",
    "\r\n.\0\r\n",
    "\n\0.\r\n",
    "\r\n..\r\n",
];

async fn smuggle(client: &mut Client, end: &str) -> String {
    client.begin().await;
    client
        .raw(format!(
            "Subject: outer\r\n\r\ntext{end}MAIL FROM:<evil@x.org>\r\nRCPT TO:<victim@y.org>\r\nDATA\r\n\
             Subject: inner\r\n\r\nevil\r\n.\r\n"
        ))
        .await;
    client.reply().await
}

#[tokio::test]
async fn nothing_can_be_smuggled_past_mx() {
    for end in FALSE_ENDS {
        let bench = Bench::new("mx");
        let mut client = bench.hello().await;
        let reply = smuggle(&mut client, end).await;
        let clean = !end.contains(['\0']) && end != "\r\n..\r\n";
        let clean = clean || end == "\n\0.\r\n";
        let expected = if clean { "550 5.6.11" } else { "250 2.0.0" };
        assert!(reply.starts_with(expected), "{end:?}: {reply}");
        client.ask("NOOP", "250 2.0.0 OK").await;
        assert_eq!(bench.accepted().len(), usize::from(!clean), "{end:?}");
    }
}

#[tokio::test]
async fn submission_takes_it_as_one_message() {
    for end in FALSE_ENDS {
        let bench = Bench::new("submit");
        let mut client = bench.hello().await;
        let reply = smuggle(&mut client, end).await;
        assert!(reply.starts_with("250 2.0.0 OK"), "{end:?}: {reply}");
        client.ask("NOOP", "250 2.0.0 OK").await;
        let accepted = bench.accepted();
        assert_eq!(accepted.len(), 1, "{end:?}");
        let body = &accepted[0].1;
        assert!(body.contains("MAIL FROM:<evil@x.org>") && body.ends_with("evil\r\n"), "{end:?}");
        assert!(!body.replace("\r\n", "").contains(['\r', '\n']), "{end:?}");
    }
}

#[tokio::test]
async fn too_much_is_read_to_its_end_and_refused() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    client.begin().await;
    client.raw("a: b\r\n\r\n").await;
    client.raw("0123456789\r\n".repeat(1000)).await;
    client.raw(".\r\n").await;
    client.expect("552 5.3.4").await;
    client.begin().await;
    client.raw("small: 1\r\n\r\n.\r\n").await;
    client.expect("250").await;
    assert_eq!(*bench.spool.aborted.lock().unwrap(), 1);
    client.begin().await;
    // Far too much: nobody reads that.
    let flood = tokio::spawn(async move {
        for _ in 0..20 {
            if tokio::io::AsyncWriteExt::write_all(&mut client.stream, &[b'x'; 100_000])
                .await
                .is_err()
            {
                break;
            }
        }
        client
    });
    let mut client = flood.await.unwrap();
    client.expect("552 5.3.4").await;
    client.expect_end().await;
    assert_eq!(bench.accepted().len(), 1);
}

#[tokio::test]
async fn trouble_of_the_spool_is_temporary() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    for (error, code) in [
        (AcceptError::NoMajority, "451 4.3.0"),
        (AcceptError::NoSpace, "452 4.3.1"),
        (AcceptError::Moved, "451 4.3.0"),
    ] {
        *bench.spool.accept_error.lock().unwrap() = Some(error);
        client.begin().await;
        client.raw("a: b\r\n\r\n.\r\n").await;
        client.expect(code).await;
    }
    *bench.spool.begin_error.lock().unwrap() = Some(AcceptError::NoPartition);
    client.ask("MAIL FROM:<a@x.org>", "250").await;
    client.ask("RCPT TO:<b@y.org>", "250").await;
    client.ask("DATA", "451 4.3.0").await;
    client.ask("NOOP", "250").await;
}

#[tokio::test]
async fn a_message_that_loops_is_refused() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    for (hops, code) in [(100, "250"), (101, "550 5.4.6")] {
        client.begin().await;
        client.raw("Received: x\r\n".repeat(hops)).await;
        client.raw("\r\nbody\r\n.\r\n").await;
        client.expect(code).await;
    }
    assert_eq!(bench.accepted()[0].0.received_count, 100);
}

#[tokio::test]
async fn submission_completes_headers() {
    let bench = Bench::with("smart", |stage, _, _| {
        let mut decision = decision(Verdict::Accept);
        if stage == Stage::Rcpt {
            decision.submission = Some(Submission { sender_retain: true, domain: None });
        }
        decision
    });
    let mut client = bench.hello().await;
    client.begin().await;
    client.raw("just text\r\nmore\0\u{e9}\r\n.\r\n").await;
    client.expect("250").await;
    let (envelope, body) = bench.accepted().remove(0);
    assert_eq!(body, "\r\njust text\r\nmore\0\u{e9}\r\n");
    let added = String::from_utf8_lossy(&envelope.prepend).into_owned();
    assert!(added.starts_with("Received: "));
    assert!(
        added.contains("\r\nDate: ")
            && added.contains("\r\nMessage-ID: <E000001-000002-03@ppsw-1.example>")
    );
    assert!(added.ends_with("\r\nFrom: a@x.org\r\n"), "{added}");
    assert_eq!((envelope.nul_count, envelope.eight_bit), (1, true));
}

#[tokio::test]
async fn long_content_reaches_the_spool_in_pieces() {
    let mut policy = super::super::testing::personality("mx");
    policy.size_limit = 10 << 20;
    let bench = Bench::of(super::super::testing::TestPolicy {
        personality: policy,
        options: super::super::testing::options(),
        rule: Box::new(|_, _, _| decision(Verdict::Accept)),
    });
    let mut client = bench.hello().await;
    client.begin().await;
    let long_line = "x".repeat(3 << 20);
    client.raw(format!("a: b\r\n\r\n{long_line}\r\n.\r\n")).await;
    client.expect("250").await;
    assert_eq!(bench.accepted()[0].1, format!("a: b\r\n\r\n{long_line}\r\n"));
    assert!(
        *bench.spool.longest_write.lock().unwrap() <= 2 * crate::limits::SESSION_READ_BYTES_MAX
    );
}

#[tokio::test]
async fn chunks_make_a_message() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    client
        .raw("MAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\nBDAT 10\r\na: b\r\n\r\n.\rBDAT 5 LAST\r\n\n.\r\nxNOOP\r\n")
        .await;
    for code in
        ["250 2.1.0", "250 2.1.5", "250 2.0.0 10 octets", "250 2.0.0 OK id=", "250 2.0.0 OK"]
    {
        client.expect(code).await;
    }
    assert_eq!(bench.accepted()[0].1, "a: b\r\n\r\n.\r\n.\r\nx\r\n");
}

#[tokio::test]
async fn chunks_have_their_order() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    client.raw("BDAT 6\r\nQUIT\r\nMAIL FROM:<a@x.org>\r\nBDAT 6 LAST\r\nQUIT\r\n").await;
    for code in ["503", "250", "503"] {
        client.expect(code).await;
    }
    client.raw("RCPT TO:<b@y.org>\r\nBDAT 2\r\nab").await;
    client.expect("250").await;
    client.expect("250").await;
    client.ask("DATA", "503").await;
    client.ask("RCPT TO:<c@y.org>", "503").await;
    client.ask("MAIL FROM:<c@y.org>", "503").await;
    client.ask("NOOP", "250").await;
    client.ask("RSET", "250").await;
    assert_eq!(*bench.spool.aborted.lock().unwrap(), 1);
    client.raw("BDAT 0 LAST\r\n").await;
    client.expect("503").await;
    client.ask("MAIL FROM:<a@x.org>", "250").await;
    client.ask("RCPT TO:<b@y.org>", "250").await;
    client.ask("BDAT 0 LAST", "250").await;
}

#[tokio::test]
async fn chunks_have_the_limits_of_data() {
    let bench = Bench::new("mx");
    let mut client = bench.hello().await;
    client.raw("MAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\nBDAT 8 LAST\r\na: b\r\n\nx").await;
    for code in ["250", "250", "550 5.6.11"] {
        client.expect(code).await;
    }
    client.raw("MAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\nBDAT 12000\r\n").await;
    client.raw("a: b\r\n".repeat(2000)).await;
    for code in ["250", "250", "552 5.3.4"] {
        client.expect(code).await;
    }
    client.raw("BDAT 6 LAST\r\na: b\r\n").await;
    client.expect("503").await;
    client.ask("BDAT 99999999999 LAST", "503").await;
    client.expect_end().await;
    assert!(bench.accepted().is_empty());
}

#[tokio::test]
async fn addresses_are_rewritten_in_envelope_and_header() {
    let bench = Bench::with("mx", |stage, _, transaction| {
        let mut decision = decision(Verdict::Accept);
        // The rules for addresses see what the client said, those for messages what has become of it.
        let expected =
            if stage == Stage::Data { "a@hermes.cam.ac.uk" } else { "a@green.hermes.cam.ac.uk" };
        if stage >= Stage::Mail && stage <= Stage::Data && transaction.sender != expected {
            decision.verdict = Verdict::Deny(transaction.sender.clone());
        }
        decision
    });
    let mut client = bench.hello().await;
    client.ask("MAIL FROM:<a@green.hermes.cam.ac.uk>", "250").await;
    client.ask("RCPT TO:<b@CAM>", "250").await;
    client.ask("RCPT TO:<c@green.hermes.cam.ac.uk>", "250").await;
    client.ask("DATA", "354").await;
    let text = "From: A\r\n <a@green.hermes.cam.ac.uk>\r\nTo: b@cam, c@x.org\r\nSubject: b@cam\r\n\r\nb@cam\r\n";
    // However it arrives.
    for piece in text.as_bytes().chunks(7) {
        client.raw(piece).await;
    }
    client.raw(".\r\n").await;
    client.expect("250").await;
    let (envelope, body) = bench.accepted().remove(0);
    assert_eq!(envelope.sender, "a@hermes.cam.ac.uk");
    let recipients: Vec<&str> = envelope.recipients.iter().map(|r| r.address.as_str()).collect();
    assert_eq!(recipients, ["b@cam.ac.uk", "c@green.hermes.cam.ac.uk"]);
    assert_eq!(
        body,
        "From: A\r\n <a@hermes.cam.ac.uk>\r\nTo: b@cam.ac.uk, c@x.org\r\nSubject: b@cam\r\n\r\nb@cam\r\n"
    );
    let prepend = String::from_utf8_lossy(&envelope.prepend).into_owned();
    assert!(prepend.contains("(return-path <a@hermes.cam.ac.uk>)"), "{prepend}");
    assert_eq!(
        bench.events(),
        [
            "a@green.hermes.cam.ac.uk from env-from is a@hermes.cam.ac.uk by rule 2",
            "b@CAM from env-to is b@cam.ac.uk by rule 1",
            "a@green.hermes.cam.ac.uk from from is a@hermes.cam.ac.uk by rule 2",
            "b@cam from to is b@cam.ac.uk by rule 1",
            "<= a@hermes.cam.ac.uk mx",
        ]
    );
}
