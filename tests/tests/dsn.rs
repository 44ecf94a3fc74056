//! A client asks for a report of success (RFC 3461) and gets it.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE},
    report, wait_for,
};

#[test]
fn success_is_reported_to_who_asked() {
    let cluster = Cluster::start(3_500);
    let mut client = Client::connect(cluster.node(2).smart).unwrap();
    client.ehlo().unwrap();
    for (line, code) in [
        ("MAIL FROM:<asks@example.org> RET=HDRS ENVID=QQ314159", 250),
        ("RCPT TO:<spqr1@hermes.cam.ac.uk> NOTIFY=SUCCESS ORCPT=rfc822;first@example.org", 250),
        ("RCPT TO:<spqr2@hermes.cam.ac.uk> NOTIFY=NEVER", 250),
        ("RCPT TO:<spqr3@hermes.cam.ac.uk>", 250),
        ("DATA", 354),
        ("Subject: report\r\n\r\nsecret body\r\n.", 250),
    ] {
        let reply = client.command(line).unwrap();
        assert_eq!(reply.code, code, "{line}: {reply:?}");
    }
    client.quit();

    let mut maildir = cluster.maildir();
    let text = wait_for("the report", PATIENCE, || {
        let mut filed = maildir.messages();
        let report = filed.find(|filed| filed.recipients == ["asks@example.org"])?;
        Some(String::from_utf8(report.content.clone()).unwrap())
    });
    for expected in [
        "multipart/report",
        "Original-Envelope-Id: QQ314159",
        "Original-Recipient: rfc822; first@example.org",
        "Final-Recipient: rfc822; spqr1@hermes.cam.ac.uk",
        "Action: relayed",
        "Status: 2.",
        "text/rfc822-headers",
    ] {
        assert!(text.contains(expected), "{expected} is missing:\n{text}");
    }
    let read = report::read(text.as_bytes());
    assert_eq!((read.recipients.len(), read.original.as_str()), (1, "text/rfc822-headers"));
    for unexpected in ["spqr2", "spqr3", "secret body"] {
        assert!(!text.contains(unexpected), "{unexpected} is in it:\n{text}");
    }
}
