//! The rest of the world: a Postfix that is MX of some domains, where senders are called back and mail is delivered.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use super::{ANSWERS, Network, maildir, read, subdirectory, submit};
use crate::{process::Guard, stores::id_of};

const POSTFIX: &str = "/usr/sbin/postfix";
/// `mx.example.org`, `www.example.com`.
pub(super) const ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2))];

/// Without privileges that matter.
const OWNER: u32 = 65_534;

const SERVICES: &str = "\
smtp inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
";

/// A running Postfix.
pub struct Outside {
    dir: PathBuf,
    _postfix: Guard,
}

impl Outside {
    pub(super) fn start(network: &Network, dir: &Path) -> Self {
        assert!(Path::new(POSTFIX).exists(), "{POSTFIX} is missing: tests/run installs postfix");
        for folder in ["etc", "queue", "data", "mail"] {
            subdirectory(dir, folder);
        }
        chown(dir.join("data"), Some(id_of("/etc/passwd", "postfix")), None).unwrap();
        chown(dir.join("mail"), Some(OWNER), None).unwrap();
        let etc = dir.join("etc");
        std::fs::write(etc.join("main.cf"), configuration(dir)).unwrap();
        std::fs::write(etc.join("master.cf"), SERVICES).unwrap();
        std::fs::write(etc.join("answers"), ANSWERS).unwrap();
        std::fs::write(etc.join("mailboxes"), "/^/ all/\n").unwrap();
        let mut command = network.command(POSTFIX);
        let log = dir.join("log");
        let postfix = Guard::spawn(command.arg("-c").arg(&etc).arg("start-fg"), &log);
        for address in ADDRESSES {
            network.wait_for_listener(SocketAddr::new(address, 25), &log);
        }
        Self { dir: dir.to_owned(), _postfix: postfix }
    }

    /// Sends a message (lines end with LF) from this host.
    pub fn send(&self, network: &Network, from: &str, to: &str, message: &str) {
        let mut command = network.command("/usr/sbin/sendmail");
        command.arg("-C").arg(self.dir.join("etc")).args(["-f", from, to]);
        submit(&mut command, message);
    }

    /// What was delivered here, with `Delivered-To`.
    pub fn mail(&self) -> Vec<String> {
        maildir(&self.dir.join("mail/all"))
    }

    /// What Postfix says of it all.
    pub fn log(&self) -> String {
        read(&self.dir.join("log"))
    }
}

fn configuration(dir: &Path) -> String {
    let [mx, www] = ADDRESSES;
    let here = dir.display();
    format!(
        "compatibility_level = 3.6\n\
         queue_directory = {here}/queue\n\
         data_directory = {here}/data\n\
         maillog_file = /dev/stdout\n\
         myhostname = mx.example.org\n\
         mydestination =\n\
         alias_maps =\n\
         alias_database =\n\
         inet_interfaces = {mx}, {www}\n\
         inet_protocols = ipv4\n\
         mynetworks = 127.0.0.0/8\n\
         smtp_bind_address = {mx}\n\
         smtp_tls_security_level = may\n\
         smtpd_relay_restrictions = reject_unauth_destination\n\
         smtpd_recipient_restrictions = check_recipient_access texthash:{here}/etc/answers\n\
         virtual_mailbox_domains = example.org, forger.example, norfc.example, www.example.com, cambridge.org,\n  \
         r.cambridge.org\n\
         virtual_mailbox_base = {here}/mail\n\
         virtual_mailbox_maps = regexp:{here}/etc/mailboxes\n\
         virtual_uid_maps = static:{OWNER}\n\
         virtual_gid_maps = static:{OWNER}\n\
         virtual_minimum_uid = 1\n"
    )
}
