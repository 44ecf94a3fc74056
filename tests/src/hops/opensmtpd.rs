//! An OpenSMTPD that takes mail for one domain. Debian does not let it be installed beside Postfix, and its paths are
//! compiled in: it runs in a mount namespace of its own, where they are those of this test.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::{directory_of, maildir, open_directory, wait_for_listener};
use crate::process::GroupGuard;

/// Without privileges that matter.
const OWNER: u32 = 65_534;

/// A name server that is not there.
pub const RESOLVER: &str = "nameserver 127.30.255.255\n";

/// Puts its directories where it wants them, and starts it: `sh -c SCRIPT sh DIR PACKAGE`. Its resolver asks nobody.
const SCRIPT: &str = r#"
set -e
for dir in /usr/libexec /var/spool /var/lib /run; do mount -t tmpfs -o mode=755 none $dir; done
mkdir -p /usr/libexec/opensmtpd /var/lib/opensmtpd/empty
mkdir -m 711 /var/spool/smtpd
mount --bind "$2/usr/libexec/opensmtpd" /usr/libexec/opensmtpd
mount --bind "$1/resolv.conf" /etc/resolv.conf
exec "$2/usr/sbin/smtpd" -d -T smtp -f "$1/smtpd.conf"
"#;

/// A running OpenSMTPD: it takes mail for `a` and `b`.
pub struct OpenSmtpd {
    dir: TempDir,
    _smtpd: GroupGuard,
}

impl OpenSmtpd {
    pub fn start(address: SocketAddr, domain: &str) -> Self {
        let package = package();
        let dir = open_directory("opensmtpd");
        directory_of(&dir, "mail", Some(OWNER));
        std::fs::write(dir.path().join("resolv.conf"), RESOLVER).unwrap();
        let path = dir.path().join("smtpd.conf");
        std::fs::write(&path, configuration(dir.path(), address, domain)).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"]);
        let smtpd = GroupGuard::spawn(command.arg(dir.path()).arg(package), &log);
        wait_for_listener(address, &log);
        Self { dir, _smtpd: smtpd }
    }

    /// What a mailbox has got, with CRLF line ends.
    pub fn mail(&self, user: &str) -> Vec<Vec<u8>> {
        maildir(&self.dir.path().join("mail").join(user))
    }

    /// What it says of it all, with the dialogues.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}

/// Where `tests/run` has unpacked it.
pub fn package() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/opensmtpd");
    let path = path.canonicalize().unwrap_or(path);
    assert!(
        path.join("usr/sbin/smtpd").exists(),
        "{} is missing: tests/run unpacks it",
        path.display()
    );
    path
}

fn configuration(dir: &Path, address: SocketAddr, domain: &str) -> String {
    let here = dir.display();
    format!(
        "table owner {{ \"keeper\" = \"{OWNER}:{OWNER}:{here}/mail\" }}\n\
         table known {{ \"a@{domain}\", \"b@{domain}\" }}\n\
         listen on {} port {} hostname mx.{domain}\n\
         action keep maildir \"{here}/mail/%{{rcpt.user}}\" virtual {{ \"@\" = keeper }} userbase <owner>\n\
         match from any for rcpt-to <known> action keep\n",
        address.ip(),
        address.port(),
    )
}
