//! Machines of departments: an Exim that takes mail for some domains, and sends the mail of its users through the smarthost.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use super::{ANSWERS, Network, maildir, read, subdirectory, submit};
use crate::{
    process::Guard,
    stores::{exim, id_of},
};

/// `mail.phy.cam.ac.uk`, `mail.eng.private.cam.ac.uk`, `mta0.cl.private.cam.ac.uk`, `mta1.cl.private.cam.ac.uk`.
pub(super) const ADDRESSES: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(131, 111, 16, 1)),
    IpAddr::V4(Ipv4Addr::new(172, 20, 1, 1)),
    IpAddr::V4(Ipv4Addr::new(172, 20, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(172, 20, 2, 2)),
];
/// Compiled into Exim.
const USER: &str = "Debian-exim";

/// A running Exim.
pub struct Departments {
    dir: PathBuf,
    _exim: Guard,
}

impl Departments {
    pub(super) fn start(network: &Network, dir: &Path) -> Self {
        for folder in ["spool", "mail"] {
            chown(subdirectory(dir, folder), Some(id_of("/etc/passwd", USER)), None).unwrap();
        }
        std::fs::write(dir.join("exim.conf"), configuration(dir)).unwrap();
        let mut answers = String::new();
        for line in ANSWERS.lines().filter(|line| !line.starts_with('#')) {
            let (address, text) = line.split_once(' ').unwrap();
            let text = text.trim_start();
            let kind = if text.starts_with('5') { "fail" } else { "defer" };
            let _ = writeln!(answers, "{address}: :{kind}: {text}");
        }
        std::fs::write(dir.join("answers"), answers).unwrap();
        let mut command = network.command(exim());
        let log = dir.join("log");
        command.arg("-C").arg(dir.join("exim.conf")).args(["-bdf", "-q10s"]);
        let exim = Guard::spawn(&mut command, &log);
        for address in ADDRESSES {
            network.wait_for_listener(SocketAddr::new(address, 25), &log);
        }
        Self { dir: dir.to_owned(), _exim: exim }
    }

    /// Sends a message (lines end with LF) of a user of such a machine.
    pub fn send(&self, network: &Network, from: &str, to: &str, message: &str) {
        let mut command = network.command(exim());
        command.arg("-C").arg(self.dir.join("exim.conf")).args(["-odf", "-f", from, to]);
        submit(&mut command, message);
    }

    /// What was delivered here, with `Envelope-to` and `Return-path`.
    pub fn mail(&self) -> Vec<String> {
        maildir(&self.dir.join("mail"))
    }

    /// What Exim says of it all.
    pub fn log(&self) -> String {
        read(&self.dir.join("spool/mainlog"))
    }
}

fn configuration(dir: &Path) -> String {
    let [mail, eng, mta0, mta1] = ADDRESSES;
    let (here, program) = (dir.display(), exim());
    let program = program.display();
    format!(
        "primary_hostname = mail.phy.cam.ac.uk\n\
         qualify_domain = phy.cam.ac.uk\n\
         exim_path = {program}\n\
         spool_directory = {here}/spool\n\
         log_file_path = {here}/spool/%slog\n\
         keep_environment =\n\
         local_interfaces = {mail} : {eng} : {mta0} : {mta1}\n\
         rfc1413_hosts =\n\
         tls_advertise_hosts =\n\
         deliver_drop_privilege\n\
         trusted_users = root\n\
         domainlist here = phy.cam.ac.uk : eng.cam.ac.uk : cl.cam.ac.uk\n\
         acl_smtp_rcpt = rcpt\n\
         begin acl\n\
         rcpt:\n  \
           require domains = +here\n  \
           require verify = recipient\n  \
           accept\n\
         begin routers\n\
         answers:\n  \
           driver = redirect\n  domains = +here\n  allow_fail\n  allow_defer\n  \
           data = ${{lookup{{$local_part@$domain}}lsearch{{{here}/answers}}}}\n\
         here:\n  \
           driver = accept\n  domains = +here\n  transport = maildir\n\
         university:\n  \
           driver = dnslookup\n  domains = cam.ac.uk : *.cam.ac.uk\n  transport = smtp\n  no_more\n\
         smarthost:\n  \
           driver = manualroute\n  route_list = * ppsw.cam.ac.uk\n  transport = smtp\n\
         begin transports\n\
         maildir:\n  \
           driver = appendfile\n  directory = {here}/mail\n  maildir_format\n  user = {USER}\n  \
           envelope_to_add\n  return_path_add\n\
         smtp:\n  \
           driver = smtp\n  interface = {mail}\n\
         begin retry\n\
         * * F,10m,5s\n"
    )
}
