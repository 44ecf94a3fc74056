//! An Exim that takes mail for one domain.

use std::{net::SocketAddr, path::Path, process::Command};

use tempfile::TempDir;

use super::{directory_of, maildir, open_directory, wait_for_listener};
use crate::{
    process::GroupGuard,
    stores::{exim, id_of},
};

/// Compiled into it.
const USER: &str = "Debian-exim";

/// A running Exim: it takes mail for `a` and `b`.
pub struct Exim {
    dir: TempDir,
    _daemon: GroupGuard,
}

impl Exim {
    pub fn start(address: SocketAddr, domain: &str) -> Self {
        let dir = open_directory("exim");
        for name in ["spool", "mail"] {
            directory_of(&dir, name, Some(id_of("/etc/passwd", USER)));
        }
        let path = dir.path().join("exim.conf");
        std::fs::write(&path, configuration(dir.path(), address, domain)).unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new(exim());
        let daemon = GroupGuard::spawn(command.arg("-C").arg(&path).args(["-bdf", "-q1m"]), &log);
        wait_for_listener(address, &log);
        Self { dir, _daemon: daemon }
    }

    /// What a mailbox has got, with CRLF line ends.
    pub fn mail(&self, user: &str) -> Vec<Vec<u8>> {
        maildir(&self.dir.path().join("mail").join(user))
    }
}

fn configuration(dir: &Path, address: SocketAddr, domain: &str) -> String {
    let here = dir.display();
    format!(
        "primary_hostname = mx.{domain}\n\
         exim_path = {}\n\
         spool_directory = {here}/spool\n\
         log_file_path = {here}/spool/%slog\n\
         keep_environment =\n\
         local_interfaces = {}\n\
         daemon_smtp_ports = {}\n\
         host_lookup =\n\
         rfc1413_hosts =\n\
         tls_advertise_hosts =\n\
         deliver_drop_privilege\n\
         acl_smtp_rcpt = rcpt\n\
         begin acl\n\
         rcpt:\n  \
           require domains = {domain}\n  \
           require verify = recipient\n  \
           accept\n\
         begin routers\n\
         here:\n  \
           driver = accept\n  domains = {domain}\n  local_parts = a : b\n  transport = maildir\n\
         begin transports\n\
         maildir:\n  \
           driver = appendfile\n  directory = {here}/mail/$local_part_data\n  maildir_format\n  \
           user = {USER}\n  envelope_to_add\n  return_path_add\n",
        exim().display(),
        address.ip(),
        address.port(),
    )
}
