//! Postfix under load, as Debian configures it but for what a load of one client would run into.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Server, Syncs, listens, meter::family, no_files};
use crate::{hops::make_certificate, process::Guard, stores::id_of};

const PROGRAMS: &str = "/usr/lib/postfix/sbin";

/// All but smtpd, as in Debian's master.cf, without chroot.
const SERVICES: &str = "\
postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
";

/// A Postfix that relays everything to one host. Each run has a queue of its own.
pub struct Postfix {
    dir: PathBuf,
    address: SocketAddr,
    sink: SocketAddr,
    syncs: Syncs,
    master: Option<Guard>,
    runs: usize,
}

impl Postfix {
    /// Below `dir`, which others may enter.
    pub fn new(dir: &Path, address: SocketAddr, sink: SocketAddr, syncs: &Syncs) -> Self {
        let dir = dir.join("postfix");
        fs::create_dir(&dir).unwrap();
        Self { dir, address, sink, syncs: syncs.clone(), master: None, runs: 0 }
    }

    fn queue(&self) -> PathBuf {
        self.dir.join(format!("queue-{}", self.runs))
    }

    fn configure(&self, hold: bool) {
        let (etc, data) = (self.dir.join("etc"), self.dir.join("data"));
        for dir in [&etc, &data, &self.queue()] {
            fs::create_dir_all(dir).unwrap();
        }
        make_certificate(&etc);
        chown(&data, Some(id_of("/etc/passwd", "postfix")), None).unwrap();
        let environment: Vec<String> = self
            .syncs
            .environment()
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let hold = if hold { "check_client_access static:hold, " } else { "" };
        let here = self.dir.display();
        let configuration = format!(
            "compatibility_level = 3.6\n\
             queue_directory = {}\n\
             data_directory = {}\n\
             daemon_directory = {PROGRAMS}\n\
             maillog_file = {here}/mail.log\n\
             maillog_file_prefixes = {here}\n\
             import_environment = MAIL_CONFIG MAIL_LOGTAG {}\n\
             myhostname = peer.example.org\n\
             mydestination = localhost\n\
             inet_protocols = ipv4\n\
             mynetworks = 127.0.0.0/8\n\
             smtpd_relay_restrictions = permit_mynetworks, reject\n\
             smtpd_recipient_restrictions = {hold}permit_mynetworks, reject\n\
             smtpd_peername_lookup = no\n\
             smtpd_client_connection_count_limit = 0\n\
             smtpd_tls_security_level = may\n\
             smtpd_tls_cert_file = {here}/etc/certificate\n\
             smtpd_tls_key_file = {here}/etc/key\n\
             smtp_tls_security_level = none\n\
             disable_dns_lookups = yes\n\
             relayhost = [{}]:{}\n\
             message_size_limit = 104857600\n\
             mailbox_size_limit = 0\n\
             alias_maps =\n\
             alias_database =\n\
             local_recipient_maps =\n\
             in_flow_delay = 0\n",
            self.queue().display(),
            data.display(),
            environment.join(" "),
            self.sink.ip(),
            self.sink.port(),
        );
        fs::write(etc.join("main.cf"), configuration).unwrap();
        let smtpd = format!("{} inet n - n - - smtpd\n", self.address);
        fs::write(etc.join("master.cf"), smtpd + SERVICES).unwrap();
    }
}

impl Server for Postfix {
    fn name(&self) -> String {
        let version = Command::new("/usr/sbin/postconf").args(["-dh", "mail_version"]).output();
        format!("Postfix {}", String::from_utf8_lossy(&version.unwrap().stdout).trim())
    }

    fn begin(&mut self, hold: bool) {
        // What a run has left is not deleted before the end: that takes longer than the run.
        self.runs += 1;
        self.configure(hold);
        let etc = self.dir.join("etc");
        let check = Command::new("/usr/sbin/postfix").arg("-c").arg(&etc).arg("check").output();
        assert!(check.as_ref().is_ok_and(|check| check.status.success()), "{check:?}");
        let mut command = Command::new(Path::new(PROGRAMS).join("master"));
        command
            .arg("-c")
            .arg(&etc)
            .arg("-d")
            .env("MAIL_CONFIG", &etc)
            .envs(self.syncs.environment());
        self.master = Some(Guard::spawn(&mut command, &self.dir.join("master.log")));
        listens(self.address);
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        vec![self.address]
    }

    fn is_empty(&self) -> bool {
        no_files(
            &["incoming", "active", "deferred", "maildrop"].map(|name| self.queue().join(name)),
        )
    }

    fn logs(&self) -> Vec<PathBuf> {
        vec![self.dir.join("mail.log")]
    }

    fn processes(&self) -> Vec<u32> {
        self.master.as_ref().map_or_else(Vec::new, |master| family(master.pid()))
    }

    fn end(&mut self) {
        if let Some(mut master) = self.master.take() {
            // It ends its children.
            master.stop();
        }
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        self.end();
    }
}
