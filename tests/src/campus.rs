//! The University of Cambridge in a network namespace: `ppswd` with the files of `deploy/cambridge` as they are, at the
//! university's own addresses and the real ports, a real name server, and real Exim and Postfix for it to talk to.
//!
//! The world is that of the golden cases (`node/src/policy/golden/world.zone` and `answers.txt`). Needs root.

mod departments;
mod names;
mod network;
mod outside;
mod relay;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

pub use self::{
    departments::Departments,
    network::Network,
    outside::Outside,
    relay::{MACHINE, PASSWORD, PROXY},
};
use self::{names::NameServer, relay::Relay};
use crate::{
    process::{Guard, program},
    sink::Maildir,
    wait_for,
};

/// Time for a program to start.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the other side of a callout says, by address.
const ANSWERS: &str = include_str!("../../node/src/policy/golden/answers.txt");

/// What is other than usual.
#[derive(Default)]
pub struct Setup<'a> {
    /// More records for the root zone, a line each, with absolute names.
    pub records: &'a str,
    /// Lines at the beginning of `ppswd.toml`.
    pub node: &'a str,
    /// Changes the copy of `deploy/cambridge` before the node starts.
    pub change: Option<&'a dyn Fn(&Path)>,
}

/// All of it. Dropping it ends all processes; its directory is kept if the test failed.
pub struct Campus {
    relay: Relay,
    departments: Departments,
    outside: Outside,
    _stores: Vec<Guard>,
    _names: NameServer,
    /// Goes with whatever still runs in it.
    network: Network,
    /// The last to go: all write there.
    dir: Option<TempDir>,
}

impl Campus {
    /// Starts everything; waits until the node takes mail.
    pub fn start() -> Self {
        Self::start_with(&Setup::default())
    }

    /// The same with changes.
    pub fn start_with(setup: &Setup<'_>) -> Self {
        let holder = tempfile::Builder::new().prefix("ppswitch-campus-").tempdir().unwrap();
        let dir = holder.path();
        open_up(dir);
        let own = [
            names::ADDRESS,
            MACHINE,
            outside::ADDRESSES[0],
            outside::ADDRESSES[1],
            departments::ADDRESSES[0],
            departments::ADDRESSES[1],
            departments::ADDRESSES[2],
            departments::ADDRESSES[3],
        ];
        let network = Network::create(names::ADDRESS, &own);
        let names = NameServer::start(&network, &subdirectory(dir, "names"), setup.records);
        let outside = Outside::start(&network, &subdirectory(dir, "outside"));
        let departments = Departments::start(&network, &subdirectory(dir, "departments"));
        let stores = (1..=9).map(|number| store(&network, dir, number)).collect();
        let relay = Relay::start(&network, &subdirectory(dir, "relay"), setup);
        Self {
            relay,
            departments,
            outside,
            _stores: stores,
            _names: names,
            network,
            dir: Some(holder),
        }
    }

    /// Where all files are: `relay`, `outside`, `departments`, `names`, `store-N`.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// The namespace: clients run in it.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The machines of departments: an Exim.
    pub fn departments(&self) -> &Departments {
        &self.departments
    }

    /// The rest of the world: a Postfix.
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// What `cyrus-N` has got.
    pub fn store(&self, number: u8) -> Maildir {
        Maildir::new(&self.dir().join(format!("store-{number}/mail")))
    }

    /// `policy.kdl`, `tables` and so on, as the node runs them.
    pub fn config(&self) -> PathBuf {
        self.dir().join("relay/config")
    }

    /// What the node wrote to its mainlog.
    pub fn mainlog(&self) -> String {
        read(&self.dir().join("relay/log/mainlog"))
    }

    /// `ppswctl ARGUMENTS` of the administrator, in the namespace.
    pub fn ppswctl(&self, arguments: &[&str]) -> Command {
        self.relay.ppswctl(&self.network, arguments)
    }

    /// Runs `ppswctl` and gives its exit code and what it printed.
    pub fn ctl(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.ppswctl(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    /// Runs `ppswctl --json`, which must succeed.
    pub fn ctl_json(&self, arguments: &[&str]) -> Value {
        let (code, text) = self.ctl(&[&["--json"], arguments].concat());
        assert_eq!(code, 0, "ppswctl {arguments:?}: {text}");
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("ppswctl {arguments:?}: {error}: {text}"))
    }
}

impl Drop for Campus {
    fn drop(&mut self) {
        self.relay.stop();
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("kept for a look: {}", dir.keep().display());
        }
    }
}

/// A message store: takes everything that comes by LMTP.
fn store(network: &Network, dir: &Path, number: u8) -> Guard {
    let dir = subdirectory(dir, &format!("store-{number}"));
    let maildir = subdirectory(&dir, "mail");
    let address = IpAddr::from(Ipv4Addr::new(172, 28, 13, number));
    let mut command = network.command(program("ppswd"));
    command.args(["sink", "--lmtp", &SocketAddr::new(address, 2_003).to_string()]);
    // The sink's other half, which nobody asks for.
    command.args(["--smtp", &SocketAddr::new(address, 2_525).to_string(), "--maildir"]);
    let store = Guard::spawn(command.arg(&maildir), &dir.join("log"));
    network.wait_for_listener(SocketAddr::new(address, 2_003), &dir.join("log"));
    store
}

fn subdirectory(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Programs give up root and must still get there.
fn open_up(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// The messages of a Maildir, each as it lies there.
fn maildir(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir.join("new")).into_iter().flatten().flatten();
    files.map(|file| read(&file.path())).collect()
}

/// Gives a message to a program that sends it, as `sendmail` does.
fn submit(command: &mut Command, message: &str) {
    use std::{io::Write, process::Stdio};
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(message.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}
