//! A real Exim with the configuration of Cambridge's MUA service (`deploy/cambridge-mua`) submits by AUTH EXTERNAL.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ppsw_tests::{
    cluster::{Cluster, PATIENCE},
    stores::exim,
    wait_for,
};

/// Where the satellite is, as ppswitch sees it.
const SATELLITE: &str = "127.0.0.66";

/// The configuration with other addresses and directories.
fn configure(dir: &Path, submission: SocketAddr) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cambridge-mua/exim4.conf");
    let text = std::fs::read_to_string(source).unwrap();
    let (ip, port) = (submission.ip(), submission.port());
    let hosts =
        format!("hosts = {ip}\n  port = {port}\n  interface = {SATELLITE}\n  allow_localhost");
    let text = text.replace("hosts = smtp.hermes.cam.ac.uk\n", &format!("{hosts}\n"));
    let text =
        text.replace("hosts_try_auth = smtp.hermes.cam.ac.uk", &format!("hosts_try_auth = {ip}"));
    assert!(text.contains(&format!("hosts_try_auth = {ip}")) && text.contains("allow_localhost"));
    // No machine of ours has that user: the test speaks for it.
    let text = text.replace("trusted_users = prayer\n", "trusted_users = root\n");
    assert!(text.contains("trusted_users = root"));
    let spool = dir.join("spool");
    std::fs::create_dir(&spool).unwrap();
    let own = format!(
        "primary_hostname = satellite.example\nspool_directory = {}\nlog_file_path = {}/%slog\n",
        spool.display(),
        spool.display()
    );
    let path = dir.join("exim4.conf");
    std::fs::write(&path, own + &text).unwrap();
    let status = Command::new("chown").args(["-R", "Debian-exim"]).arg(&spool).status().unwrap();
    assert!(status.success());
    path
}

#[test]
fn the_mua_service_says_who_submits() {
    let cluster = Cluster::start(3_500);
    let config = cluster.dir().join("config/tables/addrparams");
    let mut table = std::fs::File::options().append(true).open(&config).unwrap();
    writeln!(table, "{SATELLITE} mua=yes").unwrap();
    cluster.apply_config();
    let dir = tempfile::tempdir().unwrap();
    // Exim gives its privileges up and must still get there.
    let status = Command::new("chmod").arg("755").arg(dir.path()).status().unwrap();
    assert!(status.success());
    let conf = configure(dir.path(), cluster.node(1).submission);

    // As the webmail server does it: ident `prayer`, the user in -f.
    for (user, to) in [("spqr1", "one@example.org"), ("spqr2", "two@example.org")] {
        let mut exim = Command::new(exim())
            .arg("-C")
            .arg(&conf)
            .args(["-odf", "-oMt", "prayer", "-f", &format!("{user}@hermes.cam.ac.uk"), to])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let text = format!("From: {user}@hermes.cam.ac.uk\nSubject: webmail\n\nhello\n");
        exim.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = exim.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let log = || std::fs::read_to_string(dir.path().join("spool/mainlog")).unwrap_or_default();
    let mut maildir = cluster.maildir();
    for (user, to) in [("spqr1", "one@example.org"), ("spqr2", "two@example.org")] {
        let filed = wait_for(&format!("mail of {user}; Exim says: {}", log()), PATIENCE, || {
            let filed = maildir.messages().find(|filed| filed.recipients == [to])?;
            Some(String::from_utf8_lossy(&filed.content).into_owned())
        });
        let mainlog = std::fs::read_to_string(cluster.dir().join("node-1/log/mainlog")).unwrap();
        let arrival = mainlog.lines().find(|line| line.contains(" <= ") && line.contains(user));
        let arrival = arrival.unwrap_or_else(|| panic!("no arrival of {user}:\n{mainlog}"));
        println!("{arrival}");
        assert!(arrival.contains(&format!("A=EXTERNAL:{user}")), "{arrival}\n{filed}");
        assert!(filed.contains(user) && filed.contains("with ESMTPSA"), "{filed}");
    }
    println!("{}", log());
}
