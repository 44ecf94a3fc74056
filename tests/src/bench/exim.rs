//! Exim under load.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Server, Syncs, listens, meter::family, no_files};
use crate::{
    process::GroupGuard,
    stores::{exim, id_of},
};

/// Compiled into it.
const USER: &str = "Debian-exim";

/// An Exim that relays everything to one host. Each run has a spool of its own.
pub struct Exim {
    dir: PathBuf,
    address: SocketAddr,
    sink: SocketAddr,
    syncs: Syncs,
    daemon: Option<GroupGuard>,
    runs: usize,
}

impl Exim {
    /// Below `dir`, which others may enter.
    pub fn new(dir: &Path, address: SocketAddr, sink: SocketAddr, syncs: &Syncs) -> Self {
        let dir = dir.join("exim");
        fs::create_dir(&dir).unwrap();
        Self { dir, address, sink, syncs: syncs.clone(), daemon: None, runs: 0 }
    }

    fn spool(&self) -> PathBuf {
        self.dir.join(format!("spool-{}", self.runs))
    }

    fn configure(&self, hold: bool) {
        let owner = Some(id_of("/etc/passwd", USER));
        fs::create_dir(self.spool()).unwrap();
        chown(self.spool(), owner, None).unwrap();
        let names: Vec<&str> = self.syncs.environment().iter().map(|(name, _)| *name).collect();
        let configuration = format!(
            "exim_path = {}\n\
             spool_directory = {spool}\n\
             log_file_path = {spool}/%slog\n\
             primary_hostname = peer.example.org\n\
             local_interfaces = {}\n\
             daemon_smtp_ports = {}\n\
             host_lookup =\n\
             rfc1413_query_timeout = 0s\n\
             tls_advertise_hosts =\n\
             keep_environment = {}\n\
             add_environment = PATH=/usr/bin:/bin\n\
             smtp_accept_max = 300\n\
             smtp_accept_max_per_connection = 0\n\
             smtp_accept_queue_per_connection = 0\n\
             smtp_connect_backlog = 200\n\
             queue_only = {hold}\n\
             split_spool_directory = true\n\
             deliver_drop_privilege = true\n\
             recipients_max = 1000\n\
             acl_smtp_rcpt = rcpt\n\
             acl_smtp_data = data\n\
             begin acl\n\
             rcpt:\n  accept hosts = 127.0.0.0/8\n\
             data:\n  accept\n\
             begin routers\n\
             all:\n  driver = manualroute\n  transport = out\n  route_list = * {}\n  self = send\n\
             begin transports\n\
             out:\n  driver = smtp\n  port = {}\n  allow_localhost = true\n  hosts_try_fastopen =\n\
             begin retry\n\
             * * F,2h,1m\n",
            exim().display(),
            self.address.ip(),
            self.address.port(),
            names.join(" : "),
            self.sink.ip(),
            self.sink.port(),
            spool = self.spool().display(),
        );
        fs::write(self.dir.join("exim.conf"), configuration).unwrap();
    }
}

impl Server for Exim {
    fn name(&self) -> String {
        let version = Command::new(exim()).args(["-C", "/dev/null", "-bV"]).output().unwrap();
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        format!("Exim {}", version.split_whitespace().nth(2).unwrap_or_default())
    }

    fn begin(&mut self, hold: bool) {
        self.runs += 1;
        self.configure(hold);
        let mut command = Command::new(exim());
        command.arg("-C").arg(self.dir.join("exim.conf")).arg("-bdf");
        if !hold {
            command.arg("-q1m");
        }
        command.envs(self.syncs.environment());
        self.daemon = Some(GroupGuard::spawn(&mut command, &self.dir.join("daemon.log")));
        listens(self.address);
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        vec![self.address]
    }

    fn is_empty(&self) -> bool {
        no_files(&[self.spool().join("input")])
    }

    fn logs(&self) -> Vec<PathBuf> {
        vec![self.spool().join("mainlog")]
    }

    fn processes(&self) -> Vec<u32> {
        self.daemon.as_ref().map_or_else(Vec::new, |daemon| family(daemon.pid()))
    }

    fn end(&mut self) {
        self.daemon = None;
    }
}
