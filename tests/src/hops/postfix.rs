//! A Postfix with several personalities, each on an address of its own.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::{directory_of, maildir, open_directory, wait_for_listener};
use crate::{process::GroupGuard, stores::id_of};

const PROGRAMS: &str = "/usr/lib/postfix/sbin";
/// Without privileges that matter.
const OWNER: u32 = 65_534;

/// All but smtpd.
const SERVICES: &str = "\
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
";

/// An smtpd: where it listens, and what is other than usual. `{dir}` is where `certificate` and `key` are.
pub struct Service<'a> {
    pub address: SocketAddr,
    pub options: &'a [&'a str],
}

/// A running Postfix: it takes mail for `a` and `b` in all domains below `example.org`.
pub struct Postfix {
    dir: TempDir,
    _master: GroupGuard,
}

impl Postfix {
    pub fn start(services: &[Service<'_>]) -> Self {
        let program = Path::new(PROGRAMS).join("master");
        assert!(program.exists(), "{} is missing: tests/run installs postfix", program.display());
        let dir = open_directory("postfix");
        for (name, owner) in [
            ("etc", None),
            ("queue", None),
            ("data", Some(id_of("/etc/passwd", "postfix"))),
            ("mail", Some(OWNER)),
        ] {
            directory_of(&dir, name, owner);
        }
        let etc = dir.path().join("etc");
        make_certificate(&etc);
        std::fs::write(etc.join("main.cf"), configuration(dir.path())).unwrap();
        std::fs::write(etc.join("mailboxes"), "/^a@/ a/\n/^b@/ b/\n").unwrap();
        std::fs::write(etc.join("domains"), "/\\.example\\.org$/ here\n").unwrap();
        let mut master = String::new();
        for service in services {
            write!(master, "{} inet n - n - - smtpd", service.address).unwrap();
            for option in service.options {
                let option = option.replace("{dir}", &etc.display().to_string());
                write!(master, " -o {option}").unwrap();
            }
            master.push('\n');
        }
        std::fs::write(etc.join("master.cf"), master + SERVICES).unwrap();
        let log = dir.path().join("log");
        // It makes the queue's directories.
        let check = Command::new("/usr/sbin/postfix").arg("-c").arg(&etc).arg("check").output();
        assert!(check.as_ref().is_ok_and(|check| check.status.success()), "{check:?}");
        let mut command = Command::new(program);
        command.arg("-c").arg(&etc).arg("-d").env("MAIL_CONFIG", &etc);
        let master = GroupGuard::spawn(&mut command, &log);
        for service in services {
            wait_for_listener(service.address, &log);
        }
        Self { dir, _master: master }
    }

    /// What a mailbox has got, with CRLF line ends.
    pub fn mail(&self, user: &str) -> Vec<Vec<u8>> {
        maildir(&self.dir.path().join("mail").join(user))
    }

    /// What it says of it all.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("mail.log")).unwrap_or_default()
    }
}

/// Makes `certificate` and `key` that nobody should believe: out of date, for another name, signed by nobody.
pub fn make_certificate(dir: &Path) {
    let mut params = CertificateParams::new(vec!["mail.elsewhere.example".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2001, 1, 1);
    params.not_after = date_time_ymd(2002, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let write = |name: &str, text: String| {
        let path: PathBuf = dir.join(name);
        std::fs::write(path, text).unwrap();
    };
    write("certificate", certificate.pem());
    write("key", key.serialize_pem());
}

fn configuration(dir: &Path) -> String {
    let here = dir.display();
    format!(
        "compatibility_level = 3.6\n\
         queue_directory = {here}/queue\n\
         data_directory = {here}/data\n\
         daemon_directory = {PROGRAMS}\n\
         maillog_file = {here}/mail.log\n\
         maillog_file_prefixes = {here}\n\
         myhostname = mx.example.org\n\
         mydestination =\n\
         alias_maps =\n\
         alias_database =\n\
         inet_protocols = ipv4\n\
         mynetworks = 127.0.0.2/32\n\
         disable_dns_lookups = yes\n\
         smtpd_peername_lookup = no\n\
         smtpd_client_connection_count_limit = 0\n\
         smtpd_error_sleep_time = 0\n\
         smtpd_tls_security_level = none\n\
         smtpd_tls_received_header = yes\n\
         smtpd_relay_restrictions = reject_unauth_destination\n\
         local_header_rewrite_clients =\n\
         virtual_mailbox_domains = regexp:{here}/etc/domains\n\
         virtual_mailbox_base = {here}/mail\n\
         virtual_mailbox_maps = regexp:{here}/etc/mailboxes\n\
         virtual_uid_maps = static:{OWNER}\n\
         virtual_gid_maps = static:{OWNER}\n\
         virtual_minimum_uid = 1\n"
    )
}
