//! A Debian of its own, with a network of its own, in a directory. Needs root.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use ppsw_tests::{cluster::PATIENCE, process::Guard, wait_for};
use tempfile::TempDir;

/// What `tests/run` has made by debootstrap.
const DEBIAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debian-root");

/// It ends, with all that is mounted in it, when this is dropped.
pub(crate) struct Root {
    /// Keeps the namespaces.
    holder: Guard,
    dir: TempDir,
}

impl Root {
    /// A copy of a small Debian. Its only interface is the loopback, which has all `addresses`.
    pub(crate) fn new(addresses: &[&str]) -> Self {
        assert!(Path::new(DEBIAN).join("usr/bin/dpkg").exists(), "{DEBIAN}: tests/run makes it");
        let dir = tempfile::Builder::new().prefix("ppswitch-root-").tempdir().unwrap();
        let mut copy = Command::new("cp");
        assert!(
            copy.arg("-a").arg(format!("{DEBIAN}/.")).arg(dir.path()).status().unwrap().success()
        );
        let addresses: Vec<String> =
            addresses.iter().map(|address| format!("ip address add {address}/32 dev lo")).collect();
        let script = format!(
            "set -e; root={}; mount -t proc proc $root/proc; mount --rbind /dev $root/dev; \
             ip link set lo up; {}; touch $root/run/prepared; exec sleep infinity",
            dir.path().display(),
            addresses.join("; ")
        );
        let log = dir.path().join("holder.log");
        let holder = Guard::spawn(
            Command::new("unshare").args([
                "--mount",
                "--propagation",
                "private",
                "--net",
                "sh",
                "-c",
                &script,
            ]),
            &log,
        );
        let mut root = Self { holder, dir };
        let prepared = root.path("run/prepared");
        wait_for("the namespaces of the root", PATIENCE, || {
            let said = std::fs::read_to_string(&log).unwrap();
            assert!(root.holder.alive(), "the root cannot be made (as root?): {said}");
            prepared.exists().then_some(())
        });
        std::fs::remove_file(log).unwrap();
        root
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name.trim_start_matches('/'))
    }

    /// A program of this machine, in the root's network, that sees the root's mounts.
    pub(crate) fn outside(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--target", &self.holder.pid().to_string(), program]);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// A program of the root.
    pub(crate) fn inside<S: AsRef<str>>(&self, words: &[S]) -> Command {
        let dir = self.dir.path().display().to_string();
        let words = words.iter().map(AsRef::as_ref);
        let all: Vec<&str> = std::iter::once(dir.as_str()).chain(words).collect();
        let mut command = self.outside("chroot", &all);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        command
    }

    /// Runs a program of the root, which has to succeed.
    pub(crate) fn run(&self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let output = self.inside(&words).output().unwrap();
        assert!(output.status.success(), "{line}: {}", said(&output));
        said(&output)
    }

    /// All files and directories of the root, with who owns them and what they are; not what `dpkg` and its like write for
    /// themselves.
    pub(crate) fn files(&self) -> BTreeMap<String, String> {
        let theirs = [
            "/var/lib/dpkg",
            "/var/cache",
            "/var/log/dpkg.log",
            "/etc/ld.so.cache",
            "/proc",
            "/dev",
            "/run",
            "/tmp",
        ];
        let own = |path: &str| {
            theirs.iter().any(|theirs| path.starts_with(theirs))
                || path.starts_with("/etc/") && path.ends_with('-')
        };
        let mut find = Command::new("find");
        find.args([".", "-printf", "%P\\t%M %U %G\\n"]).current_dir(self.dir.path());
        let listed = find.output().unwrap();
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let lines = text.lines().filter_map(|line| line.split_once('\t'));
        let files = lines.map(|(path, what)| (format!("/{path}"), what.to_owned()));
        files.filter(|(path, _)| !own(path)).collect()
    }
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// What a service tells its manager (sd_notify(3)).
pub(crate) struct Manager {
    socket: std::os::unix::net::UnixDatagram,
    told: Vec<String>,
}

impl Manager {
    /// Listens at a path that everybody may write to.
    pub(crate) fn listen(path: &Path) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let socket = std::os::unix::net::UnixDatagram::bind(path).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, told: Vec::new() }
    }

    /// Whether it has been told this line.
    pub(crate) fn heard(&mut self, line: &str) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    self.told.extend(text.lines().map(str::to_owned));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("the notify socket: {error}"),
            }
        }
        self.told.iter().any(|told| told == line)
    }
}
