//! Next hops: real mail servers of all kinds on loopback addresses, which a cluster delivers to.

mod dovecot;
mod exim;
mod opensmtpd;
mod postfix;
mod tap;

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

pub use self::{
    dovecot::Dovecot,
    exim::Exim,
    opensmtpd::{OpenSmtpd, RESOLVER as OPENSMTPD_RESOLVER, package as opensmtpd_package},
    postfix::{Postfix, Service, make_certificate},
    tap::{Tap, Turn},
};
use crate::{
    cluster::{Cluster, PATIENCE},
    corpus::normalise,
    wait_for,
};

/// Who sends all messages of these tests.
pub const SENDER: &str = "sender@example.org";
/// Time for a server to start.
const START: Duration = Duration::from_secs(60);

/// An address of a next hop: `127.30.GROUP.NUMBER`.
pub fn address(group: u8, number: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from(Ipv4Addr::new(127, 30, group, number)), port)
}

/// Makes hosts the MX of domains below `example.org`, in the order of their preference.
pub fn lead(cluster: &Cluster, domains: &[(String, Vec<IpAddr>)]) {
    let mut lines = String::new();
    for (name, hosts) in domains {
        for (number, host) in hosts.iter().enumerate() {
            let mx = format!("mx{number}.{name}");
            writeln!(lines, "{name} MX {number}0 {mx}.example.org.\n{mx} A {host}").unwrap();
        }
    }
    add_to_zone(cluster, &lines, &domains.last().unwrap().0);
}

/// Adds lines to the zone `example.org`, and waits until the cluster's name server gives the MX of `name` there. It looks
/// at its files now and then; nodes must not learn before that there is no such domain.
pub fn add_to_zone(cluster: &Cluster, lines: &str, name: &str) {
    let path = cluster.dir().join("dns/example.org.zone");
    let zone = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, zone + lines).unwrap();
    let domain = format!("{name}.example.org");
    wait_for(&domain, PATIENCE, || has_mx(cluster.file.dns, &domain).then_some(()));
}

/// Asks a name server (RFC 1035 §4) whether a domain has MX records.
fn has_mx(server: SocketAddr, domain: &str) -> bool {
    let mut question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in domain.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(b"\x00\x00\x0f\x00\x01");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.send_to(&question, server).unwrap();
    let mut answer = [0; 512];
    // The number of answers.
    socket.recv(&mut answer).is_ok() && answer[6..8] != [0, 0]
}

/// Changes the cluster's policy: each text is there once, and becomes the other.
pub fn change_policy(cluster: &Cluster, changes: &[(&str, &str)]) {
    let path = cluster.dir().join("config/policy.kdl");
    let mut policy = std::fs::read_to_string(&path).unwrap();
    for (old, new) in changes {
        assert_eq!(policy.matches(old).count(), 1, "{old:?} in {policy}");
        policy = policy.replace(old, new);
    }
    std::fs::write(&path, policy).unwrap();
    cluster.apply_config();
}

/// A recipient that waits.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub address: String,
    pub attempts: u64,
    /// Why it was not delivered the last time; empty before the first attempt.
    pub last_error: String,
    /// When it is tried again, and when its message came.
    pub next_retry: String,
    pub received: String,
}

/// All recipients in the queue that are not done.
pub fn queue(cluster: &Cluster) -> Vec<Waiting> {
    let list = cluster.ctl_json(&["queue", "list"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut waiting = Vec::new();
    for message in list.as_array().unwrap() {
        for recipient in message["recipients"].as_array().unwrap() {
            if ["delivered", "failed"].contains(&text(&recipient["state"]).as_str()) {
                continue;
            }
            waiting.push(Waiting {
                address: text(&recipient["address"]),
                attempts: recipient["attempts"].as_u64().unwrap(),
                last_error: text(&recipient["last_error"]),
                next_retry: text(&recipient["next_retry"]),
                received: text(&message["received"]),
            });
        }
    }
    waiting.sort_by(|one, other| one.address.cmp(&other.address));
    waiting
}

/// Waits until all that is in the queue has been tried, and these addresses are what is left. Gives them in order.
#[track_caller]
pub fn wait_for_queue(cluster: &Cluster, expected: &[String]) -> Vec<Waiting> {
    let mut expected = expected.to_vec();
    expected.sort();
    let start = Instant::now();
    loop {
        let waiting = queue(cluster);
        let addresses: Vec<&str> = waiting.iter().map(|one| one.address.as_str()).collect();
        let tried = waiting.iter().all(|one| one.attempts > 0 && !one.last_error.is_empty());
        if tried && addresses == expected {
            return waiting;
        }
        if start.elapsed() > PATIENCE {
            let missing = expected.iter().filter(|one| !addresses.contains(&one.as_str()));
            let strange = waiting.iter().filter(|one| !expected.contains(&one.address));
            let untried = waiting.iter().filter(|one| one.last_error.is_empty());
            let (missing, strange): (Vec<_>, Vec<_>) = (missing.collect(), strange.collect());
            let untried: Vec<_> = untried.collect();
            panic!("not there: {missing:?}, wait: {strange:#?}, were not tried: {untried:#?}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// `queue retry` of all messages; hosts that could not be reached are asked again.
pub fn retry(cluster: &Cluster) {
    let retried = cluster.ctl_json(&["queue", "retry", "--all"]);
    assert_eq!(retried["silent"].as_array().map(Vec::len), Some(0), "{retried}");
}

/// The mainlogs of all nodes.
pub fn mainlog(cluster: &Cluster) -> String {
    let nodes = cluster.file.nodes.iter();
    nodes
        .map(|node| std::fs::read_to_string(cluster.node_dir(node.id).join("log/mainlog")))
        .map(Result::unwrap)
        .collect()
}

/// Messages of a Maildir, with CRLF line ends.
fn maildir(dir: &Path) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(dir.join("new")).into_iter().flatten().flatten();
    files.filter_map(|file| std::fs::read(file.path()).ok()).map(|text| normalise(&text)).collect()
}

/// A directory that programs reach who give up root.
fn open_directory(name: &str) -> TempDir {
    let dir = tempfile::Builder::new().prefix(&format!("ppswitch-{name}-")).tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

/// A directory below that one, which belongs to a user.
fn directory_of(dir: &TempDir, name: &str, owner: Option<u32>) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::create_dir(&path).unwrap();
    std::os::unix::fs::chown(&path, owner, None).unwrap();
    path
}

/// Waits until somebody listens; tells what `log` has if nobody does.
fn wait_for_listener(address: SocketAddr, log: &Path) {
    let what = || format!("{address}: {}", std::fs::read_to_string(log).unwrap_or_default());
    let start = Instant::now();
    while !crate::stores::listens(address) {
        assert!(start.elapsed() < START, "nobody listens on {}", what());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits for a message in a mailbox that is looked at again and again.
pub fn wait_for_mail(what: &str, look: impl Fn() -> Option<Vec<u8>>) -> Vec<u8> {
    wait_for(what, PATIENCE, look)
}
