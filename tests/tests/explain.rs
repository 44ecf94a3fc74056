//! `ppswctl session`, `route` and `policy check` on a cluster: what a node would do, and why.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    io::Write,
    process::{Command, Stdio},
};

use ppsw_tests::{cluster::Cluster, process::program};
use serde_json::Value;

/// Runs `ppswctl session` with commands on standard input.
fn session(cluster: &Cluster, arguments: &[&str], commands: &str) -> (i32, String) {
    let mut child = Command::new(program("ppswctl"))
        .arg("--cluster")
        .arg(cluster.dir().join("cluster.json"))
        .arg("session")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_node_says_what_it_would_do_and_why() {
    let cluster = Cluster::start(3_500);
    let before = cluster.figure(1, "ppsw_smtp_commands_total", "").unwrap_or(0.0);

    // A stranger who wants to relay, and then says what we take.
    let commands = "EHLO client.example\nMAIL FROM:<x@example.org>\nRCPT TO:<y@example.com>\n\
                    RCPT TO:<spqr1@hermes.cam.ac.uk>\nDATA\nSubject: x\n\nbody\n.\nQUIT\n";
    let ends = ["--client", "127.200.0.1", "--server", "127.10.1.1"];
    let (code, text) = session(&cluster, &ends, commands);
    println!("{text}");
    assert_eq!(code, 0, "{text}");
    for expected in [
        "< 220 ",
        "connect of acl \"mx\"",
        "require domains=\"+ours\" message=\"Relaying is not permitted\"",
        "domains=\"+ours\": no (example.com matches no item)",
        "=> deny",
        "< 550 5.7.1 Relaying is not permitted",
        "domains=\"+ours\": yes (hermes.cam.ac.uk: +ours → +local → table domainlist)",
        "=> accept",
        "< 354 ",
        "< 221 ",
        "Nothing was accepted or sent.",
    ] {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
    // Authenticated, for programs.
    let ends = ["--client", "127.200.0.1", "--server", "127.10.1.3", "--service", "submission"];
    let arguments = [&ends[..], &["--auth", "spqr1", "--json"]].concat();
    let commands = "EHLO x\nMAIL FROM:<spqr1@hermes.cam.ac.uk>\nRCPT TO:<y@example.org>\nQUIT\n";
    let (code, text) = session(&cluster, &arguments, commands);
    assert_eq!(code, 0, "{text}");
    let steps: Value = serde_json::from_str(&text).unwrap();
    let rcpt = &steps[3];
    assert_eq!(rcpt["command"], "RCPT TO:<y@example.org>");
    assert!(rcpt["reply"][0].as_str().unwrap().starts_with("250"), "{rcpt:#}");
    let rules = rcpt["stages"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.last().unwrap()["verdict"], "accept", "{rcpt:#}");

    // TLS begins without a handshake, and everything is asked for again; a message may come in chunks.
    let commands = "EHLO x\nAUTH PLAIN AGEAYg==\nSTARTTLS\nMAIL FROM:<a@example.org>\nEHLO x\nSTARTTLS\n\
                    MAIL FROM:<spqr1@hermes.cam.ac.uk>\nRCPT TO:<postmaster@cam.ac.uk>\nBDAT 14\nSubject: x\n\nBDAT 2 LAST\nhi\n\
                    BDAT 3\nabc\nQUIT\n";
    let (code, text) = session(&cluster, &ends, commands);
    println!("{text}");
    assert_eq!(code, 0, "{text}");
    for expected in [
        "> AUTH PLAIN AGEAYg==\n< 538 ",
        "> STARTTLS\n    starttls of acl \"submit\": no rules\n< 220 ",
        "> MAIL FROM:<a@example.org>\n< 503 ",
        "< 250-AUTH PLAIN LOGIN",
        "> STARTTLS\n< 503 ",
        "> BDAT 14\n> Subject: x\n    predata of acl \"submit\": no rules\n< 250 2.0.0 14 octets",
        "> BDAT 2 LAST\n> hi\n    data of acl \"submit\": no rules\n< 250 2.0.0 OK id=",
        "> BDAT 3\n> abc\n< 503 ",
        "< 221 ",
    ] {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
    let (code, text) = session(
        &cluster,
        &ends,
        "EHLO x\nMAIL FROM:<>\nRCPT TO:<postmaster@cam.ac.uk>\nBDAT 3\nabcd\n",
    );
    assert!(code != 0 && text.contains("the chunk ends inside this line"), "{text}");

    // A certificate that nobody has shown.
    let ends = ["--client", "127.0.0.1", "--server", "127.10.1.2", "--certificate", "a.example"];
    let (code, text) = session(&cluster, &ends, "QUIT\n");
    assert_eq!(code, 0, "{text}");

    // Nothing of it has left a trace.
    assert!(cluster.ctl_json(&["queue", "list"]).as_array().unwrap().is_empty());
    let after = cluster.figure(1, "ppsw_smtp_commands_total", "").unwrap_or(0.0);
    assert!((after - before).abs() < 0.5, "{before} {after}");

    // Routes, with an exit code for each kind of end.
    for (address, code, expected) in [
        ("fellows@botolph.cam.ac.uk", 0, "=> spqr2@hermes.cam.ac.uk"),
        ("x@broken.example.org", 1, "== x@broken.example.org"),
        ("nobody@cam.ac.uk", 2, "** nobody@cam.ac.uk"),
    ] {
        let (is, text) = cluster.ctl(&["route", address]);
        println!("{text}");
        assert_eq!(is, code, "{text}");
        assert!(text.contains(expected) && text.contains("not asked: "), "{text}");
    }
    let routes = cluster.ctl_json(&["route", "fellows@botolph.cam.ac.uk"]);
    assert_eq!(routes[0]["targets"][0]["result"], "deliver", "{routes:#}");
}

#[test]
fn every_error_of_a_policy_is_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let policy = r#"
domains "ours" { table "domainlst" }
acl "mx" { rcpt {
    requre verify="sender"
    deny helo-matches="(["
    accept
} }
acl "a" { deny acl="b"; accept }
acl "b" { deny acl="a"; accept }
"#;
    std::fs::create_dir(dir.path().join("tables")).unwrap();
    std::fs::write(dir.path().join("tables/domainlist"), "cam.ac.uk\n").unwrap();
    std::fs::write(dir.path().join("policy.kdl"), policy).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(program("ppswctl"))
            .args(["policy", "check"])
            .arg(dir.path())
            .args(arguments)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
    };
    let (code, text) = run(&[]);
    println!("{text}");
    assert_eq!(code, 1, "{text}");
    for expected in [
        "policy.kdl:2:24: unknown table \"domainlst\"",
        "did you mean \"domainlist\"?",
        "policy.kdl:4:5: unknown verb \"requre\"",
        "did you mean \"require\"?",
        "policy.kdl:5:10: no regular expression",
        "a bracket that stands for itself has a backslash before it",
        "policy.kdl:8:5: this acl calls itself",
        "take one of these calls out: a → b → a",
        "4 errors in",
    ] {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(expected), "{expected} is missing in:\n{text}");
    }
    let (code, text) = run(&["--json"]);
    assert_eq!(code, 1);
    let errors: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(errors[1]["line"], 4, "{errors:#}");
    assert_eq!(errors[1]["help"], "did you mean \"require\"?", "{errors:#}");

    std::fs::write(dir.path().join("policy.kdl"), "").unwrap();
    let (code, text) = run(&[]);
    assert!(code == 0 && text.contains("good"), "{text}");
}
