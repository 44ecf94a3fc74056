//! Real Exim and Postfix send through the university's `mx` and `smart` personalities, and get what they send each other.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use ppsw_tests::{
    campus::{Campus, PATIENCE},
    sink::{Filed, ID_FIELD},
    wait_for,
};

/// A message that is known by `id`.
fn message(id: &str) -> String {
    format!("From: somebody\nSubject: {id}\n{ID_FIELD}: {id}\n\nhello\n")
}

/// A message in a message store.
fn stored(campus: &Campus, store: u8, id: &str) -> Filed {
    let mut maildir = campus.store(store);
    wait_for(&format!("{id} in store {store}:\n{}", campus.mainlog()), PATIENCE, || {
        maildir.messages().find(|filed| filed.id().as_deref() == Some(id)).cloned()
    })
}

/// A message among those that a host has delivered.
fn delivered(id: &str, mail: impl Fn() -> Vec<String>, log: impl Fn() -> String) -> String {
    wait_for(&format!("{id}:\n{}", log()), PATIENCE, || {
        let known = format!("{ID_FIELD}: {id}\n");
        mail().into_iter().find(|message| message.contains(&known))
    })
}

/// The header without folding.
fn unfolded(message: &str) -> String {
    message.replace("\r\n", "\n").replace("\n\t", " ").replace("\n ", " ")
}

#[track_caller]
fn expect(text: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(text.contains(wanted), "{wanted:?} is missing:\n{text}");
    }
}

#[test]
fn postfix_and_exim_send_through_the_relay() {
    let campus = Campus::start();
    let outside = |to: &str, id: &str| {
        campus.outside().send(campus.network(), "s@example.org", to, &message(id))
    };
    let departments = |from: &str, to: &str, id: &str| {
        campus.departments().send(campus.network(), from, to, &message(id))
    };

    // Postfix finds the MX of a user, that of a department, and the smarthost, which is its own domain's MX.
    outside("spqr1@hermes.cam.ac.uk", "to-a-store");
    outside("r@eng.cam.ac.uk", "to-a-department");
    outside("webmaster@ppsw.cam.ac.uk", "to-the-smarthost");
    outside("nobody@ppsw.cam.ac.uk", "to-nobody");
    outside("full@phy.cam.ac.uk", "to-a-full-mailbox");
    // Exim sends out by the smarthost, and to its own university by MX.
    departments("u@phy.cam.ac.uk", "r@example.org", "out");
    departments("u@phy.cam.ac.uk", "spqr2@hermes.cam.ac.uk", "inside");
    departments("gone@phy.cam.ac.uk", "r@example.org", "of-nobody");

    let filed = stored(&campus, 1, "to-a-store");
    assert_eq!(
        (filed.sender.as_str(), &filed.recipients[..]),
        ("s@example.org", &["spqr1@hermes.cam.ac.uk".to_owned()][..])
    );
    let text = unfolded(&String::from_utf8_lossy(&filed.content));
    println!("{text}");
    expect(
        &text,
        &[
            "Received: from mx.example.org",
            "[203.0.113.1]",
            "(mx.cam.ac.uk [131.111.8.14",
            "with ESMTPS",
        ],
    );

    let filed = stored(&campus, 9, "to-the-smarthost");
    assert_eq!(filed.recipients, ["spqr9@hermes.cam.ac.uk"]);
    let text = unfolded(&String::from_utf8_lossy(&filed.content));
    expect(&text, &["Received: from mx.example.org", "(ppsw.cam.ac.uk [131.111.8.130]:25)"]);

    let filed = stored(&campus, 2, "inside");
    assert_eq!(filed.sender, "u@phy.cam.ac.uk");
    let text = unfolded(&String::from_utf8_lossy(&filed.content));
    expect(
        &text,
        &["Received: from mail.phy.cam.ac.uk", "[131.111.16.1]", "(mx.cam.ac.uk [131.111.8.14"],
    );

    let mail = || campus.departments().mail();
    let text = unfolded(&delivered("to-a-department", mail, || campus.departments().log()));
    expect(
        &text,
        &[
            "Envelope-to: r@eng.cam.ac.uk",
            "Return-path: <s@example.org>",
            "(mx.cam.ac.uk [131.111.8.14",
        ],
    );

    let mail = || campus.outside().mail();
    let text = unfolded(&delivered("out", mail, || campus.outside().log()));
    println!("{text}");
    expect(
        &text,
        &[
            "Delivered-To: r@example.org",
            "Return-Path: <u@phy.cam.ac.uk>",
            "(ppsw.cam.ac.uk [131.111.8.130]:25)",
        ],
    );

    // Who is refused hears why: Postfix by a bounce, Exim (whom the relay has just asked) in its log.
    let bounce = wait_for("a bounce", PATIENCE, || {
        mail()
            .into_iter()
            .find(|text| text.contains("nobody@ppsw.cam.ac.uk") && text.contains("Undelivered"))
    });
    expect(&unfolded(&bounce), &["is not a known user on this system", "Return-Path: <>"]);
    wait_for("a refusal", PATIENCE, || {
        let log = campus.departments().log();
        log.contains("Verification failed for <gone@phy.cam.ac.uk>").then_some(())
    });
    assert!(campus.departments().log().contains("rejected RCPT <gone@phy.cam.ac.uk>: 550 5.1.1"));

    // What a department does not take now waits.
    let waiting = wait_for("a message that waits", PATIENCE, || {
        let list = campus.ctl_json(&["queue", "list"]);
        let full = list.as_array()?.iter().find(|entry| {
            entry["recipients"][0]["address"] == "full@phy.cam.ac.uk"
                && entry["recipients"][0]["last_error"].as_str().is_some_and(|why| !why.is_empty())
        })?;
        Some(full.clone())
    });
    println!("{waiting:#}");
    expect(&waiting["recipients"][0]["last_error"].to_string(), &["452 4.2.2 mailbox full"]);
}
