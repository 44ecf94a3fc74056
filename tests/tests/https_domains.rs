//! Managed domains whose aliases come from a web server: nginx with a good file, and servers that give everything else.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE},
    ledger::ARRIVAL,
    sink::{Filed, field},
    wait_for,
    web::{self, Authority},
};
use serde_json::Value;

const D: &str = "botolph.cam.ac.uk";
const HOST: &str = "www.botolph.cam.ac.uk";
const USER: &str = "ppsw";
const PASSWORD: &str = "Very-Secret-42";
/// Ports of the web servers, one for each certificate.
const NGINX: u16 = 8_443;
const GOOD: u16 = 8_444;
const EXPIRED: u16 = 8_445;
const WRONG_NAME: u16 = 8_446;
const SELF_SIGNED: u16 = 8_447;

/// Short times, so that a test of hanging servers is short: options like any other.
const SETTINGS: &str = "https_domains.period = \"10s\"\nhttps_domains.fetch_time = \"3s\"\n\
                        https_domains.connect_time = \"2s\"\nhttps_domains.size_max = \"64K\"";

struct World {
    cluster: Cluster,
    dir: tempfile::TempDir,
    _servers: [ppsw_tests::process::Guard; 2],
}

/// A file of so many aliases.
fn aliases(count: usize) -> String {
    let mut text = "# Saint Botolph's\r\npostmaster:spqr3@hermes.cam.ac.uk\n\
                    webmaster: spqr1@hermes.cam.ac.uk\nabuse:spqr3@hermes.cam.ac.uk,spqr1@hermes.cam.ac.uk\n"
        .to_owned();
    for n in 3..count {
        text.push_str(&format!("fellow{n}:spqr{}@hermes.cam.ac.uk\n", n % 9 + 1));
    }
    text
}

impl World {
    fn start() -> Self {
        let mut cluster = Cluster::start(4_700);
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let ca = Authority::new("ca of the test");
        ca.store(&at.join("ca.pem"));
        ca.issue(at, "good", HOST, 2100);
        ca.issue(at, "expired", HOST, 2021);
        ca.issue(at, "wrong-name", "www.peterhouse.cam.ac.uk", 2100);
        web::self_signed(at, "self-signed", HOST);
        std::fs::write(at.join("password"), format!("{PASSWORD}\n")).unwrap();
        let servers = [
            web::nginx(at, NGINX, "good", USER, PASSWORD),
            web::careless(
                at,
                &[
                    (GOOD, "good"),
                    (EXPIRED, "expired"),
                    (WRONG_NAME, "wrong-name"),
                    (SELF_SIGNED, "self-signed"),
                ],
            ),
        ];
        let zone = cluster.dir().join("dns/cam.ac.uk.zone");
        let text = std::fs::read_to_string(&zone).unwrap();
        std::fs::write(&zone, format!("{text}www.botolph A {}\n", web::ADDRESS)).unwrap();
        for node in 1..=3 {
            cluster.configure(node, SETTINGS);
            cluster.kill(node);
            cluster.restart(node);
            cluster.wait_ready(node);
        }
        Self { cluster, dir, _servers: servers }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.file(name), text).unwrap();
    }

    fn set(&self, port: u16, path: &str, password: &Path) -> (i32, String) {
        let url = format!("https://{HOST}:{port}/{path}");
        let (password, ca) = (password.display().to_string(), self.file("ca.pem"));
        let ca = ca.display().to_string();
        let arguments = ["--url", &url, "--user", USER, "--password-file", &password];
        let arguments = [&["domains", "set", D][..], &arguments, &["--ca-file", &ca]].concat();
        self.cluster.ctl(&arguments)
    }

    fn show(&self) -> Value {
        self.cluster.ctl_json(&["domains", "show", D])
    }

    /// Waits for what the control leader does by itself.
    fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, PATIENCE, || Some(self.show()).filter(&is))
    }

    fn fetch(&self, more: &[&str]) -> (i32, Value) {
        let (code, text) = self.cluster.ctl(&[&["--json", "domains", "fetch", D], more].concat());
        (code, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    }

    /// Writes the file of the good server and has it fetched, unless the clock was quicker: then it is live already.
    fn becomes_live(&self, text: &str) -> Value {
        let before = self.show()["https"]["last_change"].clone();
        self.write("www/aliases", text);
        let (code, answer) = self.fetch(&[]);
        let result = answer["result"].as_str().unwrap_or_default();
        assert!(code == 0 && ["changed", "not-modified"].contains(&result), "{answer}");
        let shown = self.show();
        assert_ne!(shown["https"]["last_change"], before, "{answer}");
        shown
    }

    /// Letters with this in their subject.
    fn letters(&self, subject: &str) -> Vec<Filed> {
        let mut maildir = self.cluster.maildir();
        let all = maildir.messages().filter(|filed| {
            field(&filed.content, "Subject").is_some_and(|text| text.contains(subject))
        });
        all.cloned().collect()
    }

    fn await_letter(&self, subject: &str, before: usize) -> Filed {
        wait_for(&format!("a letter with {subject:?}"), ARRIVAL, || {
            let mut letters = self.letters(subject);
            letters.sort_by_key(|filed| filed.filed);
            (letters.len() > before).then(|| letters.pop()).flatten()
        })
    }

    /// Where an alias leads, by each node.
    fn routes(&self, alias: &str, expected: &str) {
        for node in &self.cluster.file.nodes {
            let control = node.control.to_string();
            let credentials = self.cluster.dir().join("admin").display().to_string();
            wait_for(
                &format!("node {} to route {alias}", node.id),
                Duration::from_secs(20),
                || {
                    let output =
                        std::process::Command::new(ppsw_tests::process::program("ppswctl"))
                            .args(["--address", &control, "--credentials", &credentials, "route"])
                            .arg(format!("{alias}@{D}"))
                            .output()
                            .unwrap();
                    String::from_utf8_lossy(&output.stdout).contains(expected).then_some(())
                },
            );
        }
    }
}

fn kind(value: &Value) -> &str {
    value["problem"]["kind"].as_str().unwrap_or("none")
}

#[test]
fn domains_are_fetched_and_managers_are_told_what_is_wrong() {
    let mut world = World::start();
    good_files_become_live(&world);
    what_is_wrong_is_told_and_changes_nothing(&world);
    nobody_else_changes_it(&world);
    the_next_leader_goes_on(&mut world);
    secrets_are_nowhere(&world);
}

fn good_files_become_live(world: &World) {
    let password = world.file("password");
    world.write("www/aliases", &aliases(100));
    let begun = Instant::now();
    let (code, text) = world.set(NGINX, "aliases", &password);
    assert_eq!(code, 0, "{text}");
    let shown = world.until("the first file", |shown| shown["https"]["last_success"].is_string());
    println!("live {:?} after set: {shown}", begun.elapsed());
    assert_eq!(shown["aliases"], 100, "{shown}");
    assert!(shown["https"]["live"]["etag"].as_str().unwrap().starts_with('"'), "{shown}");
    world.routes("fellow42", "=> spqr7@hermes.cam.ac.uk");

    // Mail goes by it.
    let mut client = Client::connect(world.cluster.node(2).smart).unwrap();
    client.ehlo().unwrap();
    let reply = client.send(
        "a@example.org",
        &["fellow42@botolph.cam.ac.uk"],
        b"Subject: by alias\r\n\r\nx\r\n",
    );
    assert_eq!(reply.unwrap().code, 250);
    let filed = world.await_letter("by alias", 0);
    assert_eq!(filed.recipients, ["spqr7@hermes.cam.ac.uk"]);

    let (code, answer) = world.fetch(&[]);
    assert_eq!((code, answer["result"].as_str()), (0, Some("not-modified")), "{answer}");
    let log = std::fs::read_to_string(world.file("access.log")).unwrap();
    assert!(log.contains("GET /aliases HTTP/1.1\" 304"), "{log}");
    // A blank more: nginx knows files by their second and their length.
    world.becomes_live(&aliases(100).replace("fellow42:spqr7", "fellow42: spqr8"));
    world.routes("fellow42", "=> spqr8@hermes.cam.ac.uk");

    // Duplicates, loops and dead ends are warnings.
    let more = "fellow5:spqr1@hermes.cam.ac.uk\nloop:pool@botolph.cam.ac.uk\npool:loop@botolph.cam.ac.uk\n\
                gone:spqr77@hermes.cam.ac.uk\n";
    assert_eq!(world.becomes_live(&(aliases(100) + more))["aliases"], 103);
    let check = world.cluster.ctl_json(&["domains", "check", D, "--mail"]);
    let warnings = check["warnings"].to_string();
    for expected in ["loop: loops (", "gone: mail for spqr77@", "fellow5 is in line"] {
        assert!(warnings.contains(expected), "{expected}: {check}");
    }
    let report = world.await_letter("report", 0);
    let text = String::from_utf8_lossy(&report.content).into_owned();
    assert!(text.contains("gone: mail for spqr77@hermes.cam.ac.uk"), "{text}");
    world.becomes_live(&aliases(100));
    assert!(
        world.cluster.ctl_json(&["domains", "check", D])["warnings"].as_array().unwrap().is_empty()
    );
}

fn what_is_wrong_is_told_and_changes_nothing(world: &World) {
    let password = world.file("password");
    world.write("wrong", "something else");
    world.write("shrunk", &aliases(74));
    world.write("missing", &aliases(100).replace("abuse", "misuse"));
    world.write("unparsable", &aliases(100).replace("fellow50:", "fellow50 "));
    let before = world.show();
    for (port, path, password, expected, words) in [
        (EXPIRED, "file/good", &password, "certificate", "has expired"),
        (WRONG_NAME, "file/good", &password, "certificate", "is for another name"),
        (SELF_SIGNED, "file/good", &password, "certificate", "or by itself"),
        (NGINX, "aliases", &world.file("wrong"), "password", "401"),
        (NGINX, "no-such-file", &password, "status", "404 Not Found"),
        (GOOD, "status/500", &password, "status", "500 Internal Server Error"),
        (GOOD, "slow", &password, "timeout", "within 3 s"),
        (GOOD, "silent", &password, "timeout", "no answer within 3 s"),
        (GOOD, "endless", &password, "size", "more than 65536 bytes"),
        (GOOD, "truncated", &password, "truncated", "broke off after 34 bytes"),
        (GOOD, "chunks", &password, "truncated", "broke off after 11 bytes"),
        (GOOD, "redirect", &password, "redirection", "https://elsewhere.example.org/"),
        (GOOD, "file/shrunk", &password, "shrunk", "has 74 aliases"),
        (GOOD, "file/missing", &password, "incomplete", "missing: abuse"),
        (GOOD, "file/unparsable", &password, "unparsable", "line 52: expected alias:address"),
    ] {
        let subject = format!("({expected})");
        let letters = world.letters(&subject).len();
        let (code, text) = world.set(port, path, password);
        assert_eq!(code, 0, "{text}");
        let shown =
            world.until(&format!("{path} to fail"), |shown| kind(&shown["https"]) == expected);
        let said = shown["https"]["problem"]["text"].as_str().unwrap();
        assert!(said.contains(words), "{path}: {said}");
        let letter = world.await_letter(&subject, letters);
        assert_eq!(letter.recipients, ["spqr3@hermes.cam.ac.uk"], "the live copy's postmaster");
        let text = String::from_utf8_lossy(&letter.content).replace("\r\n", " ");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(words) && text.contains(D), "{path}: {text}");
        assert_eq!(field(&letter.content, "Auto-Submitted").unwrap(), "auto-generated");
        // By hand it is the same, without another letter.
        let (code, answer) = world.fetch(&[]);
        assert_eq!((code, kind(&answer)), (1, expected), "{answer}");
        assert_eq!(world.show()["aliases"], before["aliases"]);
        println!("{path}: {said}");
    }
    world.routes("fellow50", "=> spqr6@hermes.cam.ac.uk");
    // A quarter may go, and more by force.
    world.write("quarter", &aliases(75));
    world.set(GOOD, "file/quarter", &password);
    world.until("75 aliases", |shown| shown["aliases"] == 75 && kind(&shown["https"]) == "none");
    world.write("less", &aliases(20));
    world.set(GOOD, "file/less", &password);
    world.until("the refusal", |shown| kind(&shown["https"]) == "shrunk");
    let (code, answer) = world.fetch(&["--force"]);
    assert_eq!((code, answer["result"].as_str()), (0, Some("changed")), "{answer}");
    assert_eq!(world.show()["aliases"], 20);
}

fn nobody_else_changes_it(world: &World) {
    let file = world.file("less").display().to_string();
    let (code, text) =
        world.cluster.ctl(&["domains", "set", D, "--aliases", &file, "--reason", "x"]);
    println!("set --aliases: {text}");
    assert!(code == 1 && text.contains("fetched"), "{text}");
    let config = world.cluster.dir().join("config");
    let path = config.join(format!("domains/{D}/aliases"));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}pushed: spqr1@hermes.cam.ac.uk\n")).unwrap();
    let config = config.display().to_string();
    let (code, text) = world.cluster.ctl(&["tables", "push", &config, "--reason", "test"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(world.show()["aliases"], 20, "a push leaves it as it is");
    // Who only looks, sees it and changes nothing.
    let (code, text) = world.cluster.ctl(&["--viewer", "domains", "show", D]);
    assert!(code == 0 && text.contains(HOST) && !text.contains(PASSWORD), "{text}");
    let (code, text) = world.cluster.ctl(&["--viewer", "domains", "unset", D]);
    assert!(code == 1 && text.contains("viewer"), "{text}");
    let (code, text) = world.cluster.ctl(&[
        "domains",
        "set",
        D,
        "--url",
        "http://x.example/",
        "--user",
        USER,
        "--password-file",
        &file,
    ]);
    assert!(code == 1 && text.contains("https://"), "{text}");
}

/// The leader of the control group dies: the next one fetches by the clock, and repeats no letter.
fn the_next_leader_goes_on(world: &mut World) {
    let letters = world.letters("(status)").len();
    world.set(GOOD, "status/503", &world.file("password"));
    world.until("the problem", |shown| kind(&shown["https"]) == "status");
    world.await_letter("(status)", letters);
    let leader = world.cluster.ctl_json(&["status"])["control"]["leader"].as_u64().unwrap();
    world.cluster.kill(leader);
    let at = |shown: &Value| shown["https"]["last_fetch"].as_str().unwrap_or_default().to_owned();
    for _ in 0..2 {
        let last = at(&world.show());
        world.until("a fetch by the clock", |shown| at(shown) > last);
    }
    assert_eq!(world.letters("(status)").len(), letters + 1);
    world.cluster.restart(leader);
    world.cluster.wait_ready(leader);
    let (code, text) = world.cluster.ctl(&["domains", "unset", D]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(world.show()["https"], Value::Null);
    assert_eq!(world.show()["aliases"], 20, "what was fetched last stays");
}

/// The password is in no file of the cluster: not in logs, not in the control group's log.
fn secrets_are_nowhere(world: &World) {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let header = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let mut files = 0;
    let mut dirs = vec![world.cluster.dir()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            for secret in [PASSWORD.as_bytes(), header.as_bytes()] {
                let found = bytes.windows(secret.len()).any(|window| window == secret);
                assert!(!found, "{} has the password in it", path.display());
            }
            files += 1;
        }
    }
    println!("{files} files have no password in them");
}
