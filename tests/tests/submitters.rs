//! Programs that people submit mail with: msmtp, swaks and Python's smtplib, by STARTTLS and by TLS from the start, with
//! PLAIN and with LOGIN.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::BTreeSet,
    io::Write,
    net::SocketAddr,
    process::{Command, Stdio},
};

use ppsw_tests::{
    cluster::{Cluster, PATIENCE},
    wait_for,
};

const USER: &str = "spqr1";
const FROM: &str = "spqr1@hermes.cam.ac.uk";

/// One way to submit a message.
struct Way<'a> {
    server: SocketAddr,
    /// TLS from the start.
    implicit: bool,
    mechanism: &'static str,
    password: &'a str,
    to: String,
}

/// Runs a program with a text on its standard input; gives whether it ended well, and what it printed.
fn run(command: &mut Command, input: &str) -> (bool, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run installs it"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn msmtp(way: &Way<'_>) -> (bool, String) {
    let starttls = if way.implicit { "off" } else { "on" };
    let mut command = Command::new("/usr/bin/msmtp");
    command
        .args(["--file=/dev/null", "--tls=on", "--tls-certcheck=off"])
        .arg(format!("--tls-starttls={starttls}"))
        .arg(format!("--host={}", way.server.ip()))
        .arg(format!("--port={}", way.server.port()))
        .arg(format!("--auth={}", way.mechanism.to_ascii_lowercase()))
        .arg(format!("--user={USER}"))
        .arg(format!("--from={FROM}"))
        .arg(format!("--passwordeval=echo '{}'", way.password))
        .arg(&way.to);
    run(&mut command, "Subject: by msmtp\n\nhello\n")
}

fn swaks(way: &Way<'_>) -> (bool, String) {
    let tls = if way.implicit { "--tls-on-connect" } else { "--tls" };
    let mut command = Command::new("/usr/bin/swaks");
    command
        .args([tls, "--from", FROM, "--to", &way.to, "--auth", way.mechanism])
        .args(["--auth-user", USER, "--auth-password", way.password])
        .args(["--server", &way.server.ip().to_string()])
        .args(["--port", &way.server.port().to_string()]);
    run(&mut command, "")
}

fn smtplib(way: &Way<'_>) -> (bool, String) {
    const PROGRAM: &str = r#"
import smtplib, ssl, sys
host, port, implicit, mechanism, user, password, sender, to = sys.argv[1:]
tls = ssl.create_default_context()
tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
if implicit == "yes":
    server = smtplib.SMTP_SSL(host, int(port), context=tls)
else:
    server = smtplib.SMTP(host, int(port))
    server.starttls(context=tls)
server.ehlo()
server.user, server.password = user, password
server.auth(mechanism, server.auth_plain if mechanism == "PLAIN" else server.auth_login)
server.sendmail(sender, [to], "Subject: by smtplib\r\n\r\nhello\r\n")
server.quit()
"#;
    let mut command = Command::new("/usr/bin/python3");
    command
        .args(["-c", PROGRAM])
        .args([way.server.ip().to_string(), way.server.port().to_string()])
        .args([if way.implicit { "yes" } else { "no" }, way.mechanism])
        .args([USER, way.password, FROM, &way.to]);
    run(&mut command, "")
}

type Program = (&'static str, fn(&Way<'_>) -> (bool, String));

const PROGRAMS: [Program; 3] = [("msmtp", msmtp), ("swaks", swaks), ("smtplib", smtplib)];

#[test]
fn people_submit_with_their_usual_programs() {
    let cluster = Cluster::start(3_500);
    let node = cluster.node(1);
    let mut expected = BTreeSet::new();
    for (name, program) in PROGRAMS {
        for (server, implicit) in [(node.submission, false), (node.submissions, true)] {
            for mechanism in ["PLAIN", "LOGIN"] {
                let tls = if implicit { "tls" } else { "starttls" };
                let to = format!("{name}.{tls}.{mechanism}@example.org").to_ascii_lowercase();
                let password = cluster.password(USER);
                let way = Way { server, implicit, mechanism, password, to: to.clone() };
                let (sent, text) = program(&way);
                assert!(sent, "{name}, {tls}, {mechanism}:\n{text}");
                expected.insert(to);
                if mechanism == "LOGIN" {
                    continue;
                }
                let way = Way { password: "wrong", to: "nobody@example.org".to_owned(), ..way };
                let (sent, text) = program(&way);
                assert!(!sent && text.contains("535"), "{name}, {tls}, wrong password:\n{text}");
            }
        }
    }
    let mut maildir = cluster.maildir();
    wait_for("all messages", PATIENCE, || {
        let filed: BTreeSet<String> =
            maildir.messages().flat_map(|filed| filed.recipients.clone()).collect();
        expected.is_subset(&filed).then_some(())
    });
    println!("{} messages submitted: {expected:?}", expected.len());
    for filed in maildir.messages() {
        let text = String::from_utf8_lossy(&filed.content);
        let shown = text.to_ascii_lowercase();
        assert!(!filed.recipients.contains(&"nobody@example.org".to_owned()), "{text}");
        // Who submitted it, how, and what a submission adds.
        for wanted in ["esmtpsa", USER, "message-id:", "date:"] {
            assert!(shown.contains(wanted), "{wanted} is missing:\n{text}");
        }
    }
}
