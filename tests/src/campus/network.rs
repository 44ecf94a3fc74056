//! A network namespace where every IPv4 address is at home: programs bind to the addresses that they have in real life.

use std::{
    ffi::OsStr,
    fs::File,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::{
    process::Signal,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{PATIENCE, read, wait_for};
use crate::process::signal;

/// Where namespaces have their names.
const NAMES: &str = "/run/netns";
/// Files that `ip netns exec` puts over those of `/etc`, in a folder per namespace.
const FILES: &str = "/etc/netns";
const PREFIX: &str = "ppsw-campus-";

/// A namespace. Dropping it ends what still runs in it.
pub struct Network {
    name: String,
}

impl Network {
    /// Makes a namespace whose programs ask `resolver`. `own`: addresses that programs look for on an interface before
    /// they bind to them.
    pub fn create(resolver: IpAddr, own: &[IpAddr]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        remove_leftovers();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        ip(&["netns", "add", &name]);
        let network = Self { name };
        ip(&["-n", &network.name, "link", "set", "lo", "up"]);
        // Every address is ours, so that packets never want to leave.
        ip(&["-n", &network.name, "route", "add", "local", "default", "dev", "lo"]);
        for address in own {
            ip(&["-n", &network.name, "address", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        let files = Path::new(FILES).join(&network.name);
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(files.join("resolv.conf"), format!("nameserver {resolver}\n")).unwrap();
        network
    }

    /// A command that runs in the namespace, under the process id that it begins with.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Calls `work` on a thread that is in the namespace, as are the threads that it starts.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entered = || {
            let namespace = File::open(Path::new(NAMES).join(&self.name)).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        let result = std::thread::scope(|scope| scope.spawn(entered).join());
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Waits until somebody listens. `log` is shown if nobody does.
    pub(super) fn wait_for_listener(&self, address: SocketAddr, log: &Path) {
        self.run(|| {
            wait_for(
                &format!("{address}; see {}:\n{}", log.display(), read(log)),
                PATIENCE,
                || TcpStream::connect(address).ok(),
            );
        });
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Namespaces of tests that were killed before they could clean up.
fn remove_leftovers() {
    for folder in [NAMES, FILES] {
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
            let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove(&name);
            }
        }
    }
}

fn remove(name: &str) {
    if let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() {
        let pids = String::from_utf8_lossy(&output.stdout).into_owned();
        for pid in pids.lines().filter_map(|pid| pid.trim().parse().ok()) {
            signal(pid, Signal::KILL);
        }
    }
    let _ = Command::new("ip").args(["netns", "delete", name]).output();
    let files: PathBuf = Path::new(FILES).join(name);
    let _ = std::fs::remove_file(files.join("resolv.conf"));
    let _ = std::fs::remove_dir(files);
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("ip: {error}; tests/run installs iproute2"));
    assert!(output.status.success(), "ip {arguments:?} (needs root): {output:?}");
}
