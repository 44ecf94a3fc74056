//! A node that is told to read its policy and certificates again (SIGHUP).

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use ppsw_tests::{
    client::{Client, Own},
    process::{self, Guard, program},
    wait_for,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// One node, which is a cluster by itself.
struct Node {
    dir: TempDir,
    smtp: SocketAddr,
    process: Guard,
    /// Bytes of its log that were read.
    read: usize,
}

impl Node {
    fn start(policy: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("ppswitch-reload-").tempdir().unwrap();
        // Free ports of this moment.
        let sockets = [(); 3].map(|()| TcpListener::bind("127.11.7.1:0").unwrap());
        let [smtp, control, http] = sockets.map(|socket| socket.local_addr().unwrap());
        let config = format!(
            "name = \"node.example\"\ndata = \"data\"\nlog = \"log\"\nconfig = \"config\"\ncertificates = \"certs\"\n\
             control = \"{control}\"\nhttp = \"{http}\"\ndns = [\"127.11.7.1:9\"]\n\
             segment_bytes = 8388608\nlog_floor = 33554432\ncheck_spool_space = 0\n\
             [[listener]]\nservice = \"smtp\"\naddress = \"{smtp}\"\n"
        );
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("ppswd.toml"), config).unwrap();
        for folder in ["config", "certs"] {
            std::fs::create_dir(path(folder)).unwrap();
        }
        std::fs::write(path("config/policy.kdl"), policy).unwrap();
        let made = Command::new(program("ppswd"))
            .args(["init", "--config"])
            .arg(path("ppswd.toml"))
            .arg("--admin")
            .arg(path("admin"))
            .arg("--viewer")
            .arg(path("viewer"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let process = Guard::spawn(
            Command::new(program("ppswd")).args(["run", "--config"]).arg(path("ppswd.toml")),
            &path("process.log"),
        );
        let mut node = Self { dir, smtp, process, read: 0 };
        node.wait_log("ready to serve");
        // What was said during the start may be asked for, too.
        node.read = 0;
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// What is new in the log, as soon as `text` is in it; blanks and line breaks count as one blank.
    fn wait_log(&mut self, text: &str) -> String {
        let path = self.path("process.log");
        let (read, new) = wait_for(&format!("{text:?} in the log"), PATIENCE, || {
            let log = std::fs::read_to_string(&path).unwrap();
            let new = log[self.read..].split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(self.process.alive(), "the node has ended: {log}");
            new.contains(text).then_some((log.len(), new))
        });
        self.read = read;
        new
    }

    /// SIGHUP.
    fn reload(&self) {
        process::signal(self.process.pid(), Signal::HUP);
    }

    fn client(&self) -> Client {
        let mut client = Client::connect_from([127, 0, 0, 1].into(), self.smtp).unwrap();
        client.ehlo().unwrap();
        client
    }
}

/// What the policy says to a recipient.
fn said(client: &mut Client) -> String {
    client.command("RSET").unwrap();
    client.command("MAIL FROM:<>").unwrap();
    client.command("RCPT TO:<a@x.example>").unwrap().text
}

fn policy(text: &str) -> String {
    format!(
        "tls_try_verify_hosts \"127.0.0.1\"\nacl \"local\" {{ rcpt {{\n\
         deny verify=\"certificate\" message=\"{text} to {{tls_peer}}\"\n    deny message=\"{text}\"\n}} }}\n"
    )
}

#[test]
fn a_policy_with_errors_changes_nothing() {
    let mut node = Node::start(&policy("one"));
    let mut early = node.client();
    assert_eq!(said(&mut early), "5.7.1 one");

    let wrong = policy("two").replace("    deny message", "    dney mesage") + "domians \"x\"\n";
    node.write("config/policy.kdl", &wrong);
    node.reload();
    // Said after what became of the policy.
    let log = node.wait_log("certificates reloaded");
    println!("{log}");
    for expected in [
        "configuration not reloaded",
        "2 errors in",
        "policy.kdl:4:5: unknown verb \"dney\"",
        "did you mean \"deny\"?",
        "policy.kdl:6:1: unknown statement \"domians\"",
        "did you mean \"domains\"?",
    ] {
        assert!(log.contains(expected), "{expected} is missing in:\n{log}");
    }
    assert_eq!(said(&mut early), "5.7.1 one");
    assert_eq!(said(&mut node.client()), "5.7.1 one");

    // A table that cannot be read is an error like any other.
    node.write("config/policy.kdl", &policy("two"));
    std::fs::create_dir(node.path("config/tables")).unwrap();
    node.write("config/tables/twice", "a 1\na 2\n");
    node.reload();
    let log = node.wait_log("the old one stays");
    assert!(log.contains("tables/twice:2"), "{log}");
    assert_eq!(said(&mut early), "5.7.1 one");

    node.write("config/tables/twice", "a 1\n");
    node.reload();
    node.wait_log("configuration reloaded");
    // Between two commands of a session that was there before.
    assert_eq!(said(&mut early), "5.7.1 two");
    assert_eq!(said(&mut node.client()), "5.7.1 two");
    early.quit();
    node.process.stop();
}

/// A CA, and a certificate that it has signed.
fn ca_and_client() -> (String, Own) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(["relay.example".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "relay.example");
    let key = KeyPair::generate().unwrap();
    let own = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (ca.pem(), (own.der().clone(), key))
}

#[test]
fn certificates_that_cannot_be_used_change_nothing() {
    let mut node = Node::start(&policy("no"));
    node.wait_log("tls_try_verify_hosts has no effect");
    let server = |node: &Node| {
        let made = rcgen::generate_simple_self_signed(["node.example".to_owned()]).unwrap();
        node.write("certs/localhost.pem", &made.cert.pem());
        node.write("certs/localhost.key", &made.signing_key.serialize_pem());
        made.cert.der().clone()
    };
    /// What a client sees, and is told, that has this certificate.
    fn seen(node: &Node, own: &Own) -> (CertificateDer<'static>, String) {
        let mut client = node.client();
        client.start_tls_showing(Some((own.0.clone(), own.1.clone_key()))).unwrap();
        let certificate = client.server_certificate().unwrap();
        let said = said(&mut client);
        client.quit();
        (certificate, said)
    }
    let (ca, own) = ca_and_client();
    let first = server(&node);
    node.write("certs/clients.pem", &ca);
    node.reload();
    node.wait_log("certificates reloaded");
    let known = (first, "5.7.1 no to CN=relay.example".to_owned());
    assert_eq!(seen(&node, &own), known);

    // Half a certificate; then a file of CAs that has none.
    server(&node);
    node.write("certs/localhost.key", "rubbish");
    node.reload();
    let log = node.wait_log("certificates not reloaded; the old ones stay");
    assert!(log.contains("localhost.key"), "{log}");
    assert_eq!(seen(&node, &own), known);
    let second = server(&node);
    node.write("certs/clients.pem", "rubbish");
    node.reload();
    let log = node.wait_log("certificates not reloaded; the old ones stay");
    assert!(log.contains("clients.pem"), "{log}");
    assert_eq!(seen(&node, &own), known);

    // Good ones: another server, and another CA, whose clients are other ones.
    let (other_ca, other) = ca_and_client();
    node.write("certs/clients.pem", &other_ca);
    node.reload();
    node.wait_log("certificates reloaded");
    assert_eq!(seen(&node, &own), (second.clone(), "5.7.1 no".to_owned()));
    assert_eq!(seen(&node, &other), (second, "5.7.1 no to CN=relay.example".to_owned()));
    node.process.stop();
}
