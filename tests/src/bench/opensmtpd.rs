//! OpenSMTPD under load. It syncs nothing before its 250, so that it is faster than it is safe.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Server, Syncs, listens, meter::family, no_files};
use crate::{
    hops::{OPENSMTPD_RESOLVER, opensmtpd_package},
    process::GroupGuard,
};

/// Puts its directories where it wants them, and starts it: `sh -c SCRIPT sh DIR PACKAGE QUEUE`. Its queue is on disk, as the
/// others' are.
const SCRIPT: &str = r#"
set -e
for dir in /usr/libexec /var/lib /run; do mount -t tmpfs -o mode=755 none $dir; done
mkdir -p /usr/libexec/opensmtpd /var/lib/opensmtpd/empty /var/spool/smtpd
mount --bind "$3" /var/spool/smtpd
mount --bind "$2/usr/libexec/opensmtpd" /usr/libexec/opensmtpd
mount --bind "$1/resolv.conf" /etc/resolv.conf
hold=$4
exec env $LOADED smtpd_here -d -f conf_here $hold
"#;

/// An OpenSMTPD that relays everything to one host. Each run has a queue of its own.
pub struct OpenSmtpd {
    dir: PathBuf,
    address: SocketAddr,
    sink: SocketAddr,
    syncs: Syncs,
    smtpd: Option<GroupGuard>,
    runs: usize,
}

impl OpenSmtpd {
    /// Below `dir`, which others may enter.
    pub fn new(dir: &Path, address: SocketAddr, sink: SocketAddr, syncs: &Syncs) -> Self {
        let dir = dir.join("opensmtpd");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("resolv.conf"), OPENSMTPD_RESOLVER).unwrap();
        Self { dir, address, sink, syncs: syncs.clone(), smtpd: None, runs: 0 }
    }

    fn queue(&self) -> PathBuf {
        self.dir.join(format!("queue-{}", self.runs))
    }
}

impl Server for OpenSmtpd {
    fn name(&self) -> String {
        "OpenSMTPD".to_owned()
    }

    fn begin(&mut self, hold: bool) {
        self.runs += 1;
        fs::create_dir(self.queue()).unwrap();
        fs::set_permissions(self.queue(), fs::Permissions::from_mode(0o711)).unwrap();
        let conf = self.dir.join("smtpd.conf");
        let text = format!(
            "smtp limit max-mails 1000000\n\
             listen on {} port {}\n\
             action \"out\" relay host smtp://{}\n\
             match from any for any action \"out\"\n",
            self.address.ip(),
            self.address.port(),
            self.sink,
        );
        fs::write(&conf, text).unwrap();
        fs::set_permissions(&conf, fs::Permissions::from_mode(0o600)).unwrap();
        let package = opensmtpd_package();
        let script = SCRIPT
            .replace("smtpd_here", &package.join("usr/sbin/smtpd").display().to_string())
            .replace("conf_here", &conf.display().to_string());
        let loaded: Vec<String> = self
            .syncs
            .environment()
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
        command.arg(&self.dir).arg(package).arg(self.queue()).arg(if hold { "-Pmta" } else { "" });
        command.env("LOADED", loaded.join(" "));
        self.smtpd = Some(GroupGuard::spawn(&mut command, &self.dir.join("smtpd.log")));
        listens(self.address);
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        vec![self.address]
    }

    fn is_empty(&self) -> bool {
        no_files(&["queue", "incoming"].map(|name| self.queue().join(name)))
    }

    fn logs(&self) -> Vec<PathBuf> {
        // What it says on its standard error.
        vec![self.dir.join("smtpd.log")]
    }

    fn processes(&self) -> Vec<u32> {
        self.smtpd.as_ref().map_or_else(Vec::new, |smtpd| family(smtpd.pid()))
    }

    fn end(&mut self) {
        self.smtpd = None;
    }
}
