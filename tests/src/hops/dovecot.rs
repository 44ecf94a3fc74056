//! A Dovecot that takes mail by LMTP.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
};

use rustix::process::Signal;
use tempfile::TempDir;

use super::{START, directory_of, maildir, open_directory, wait_for_listener};
use crate::{
    process::{Guard, signal},
    wait_for,
};

const PROGRAM: &str = "/usr/sbin/dovecot";
const ADMINISTRATOR: &str = "/usr/bin/doveadm";
/// Without privileges that matter.
const OWNER: u32 = 65_534;

/// A running Dovecot.
pub struct Dovecot {
    dir: TempDir,
    master: Guard,
}

impl Dovecot {
    /// Takes mail on one address, where a full mailbox is a matter of time (452), and on another address of the same
    /// port, where it is for good (552).
    pub fn start(address: SocketAddr, strict: IpAddr) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: tests/run installs it");
        let dir = open_directory("dovecot");
        directory_of(&dir, "run", None);
        directory_of(&dir, "mail", Some(OWNER));
        let path = dir.path().join("dovecot.conf");
        std::fs::write(&path, configuration(dir.path(), address, strict)).unwrap();
        std::fs::write(dir.path().join("users"), "").unwrap();
        let log = dir.path().join("log");
        let master = Guard::spawn(Command::new(PROGRAM).arg("-F").arg("-c").arg(&path), &log);
        for ip in [address.ip(), strict] {
            wait_for_listener(SocketAddr::new(ip, address.port()), &log);
        }
        Self { dir, master }
    }

    /// These users it has, with the size of their mailboxes in bytes; 0 is any.
    pub fn set_users(&self, users: &[(&str, u64)]) {
        let mut text = String::new();
        for (user, bytes) in users {
            let home = self.dir.path().join("mail").join(user);
            write!(text, "{user}:{{PLAIN}}any:{OWNER}:{OWNER}::{}::", home.display()).unwrap();
            writeln!(text, "userdb_quota_rule=*:bytes={bytes}").unwrap();
        }
        // Whole or not at all: it reads the file when it has changed.
        let new = self.dir.path().join("users.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.dir.path().join("users")).unwrap();
        // It looks at the file once a second at most.
        for (user, bytes) in users {
            let rule = format!("*:bytes={bytes}");
            wait_for(&format!("{rule} of {user}"), START, || {
                let mut command = Command::new(ADMINISTRATOR);
                command.arg("-c").arg(self.dir.path().join("dovecot.conf"));
                let output = command.args(["user", "-f", "quota_rule", user]).output().unwrap();
                (String::from_utf8_lossy(&output.stdout).trim() == rule).then_some(())
            });
        }
    }

    /// What a folder of a user has got, with CRLF line ends; the inbox is ``.
    pub fn mail(&self, user: &str, folder: &str) -> Vec<Vec<u8>> {
        let inbox = self.dir.path().join("mail").join(user).join("Maildir");
        maildir(&if folder.is_empty() { inbox } else { inbox.join(format!(".{folder}")) })
    }

    /// What it says of it all.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        // It ends its processes, which are not in its group.
        signal(self.master.pid(), Signal::TERM);
        let _ = self.master.0.wait();
    }
}

fn configuration(dir: &Path, address: SocketAddr, strict: IpAddr) -> String {
    let here = dir.display();
    format!(
        "protocols = lmtp\n\
         base_dir = {here}/run\n\
         state_dir = {here}/run\n\
         log_path = /dev/stderr\n\
         ssl = no\n\
         first_valid_uid = 1\n\
         mail_location = maildir:~/Maildir\n\
         auth_username_format = %Ln\n\
         recipient_delimiter = +\n\
         passdb {{\n  driver = passwd-file\n  args = {here}/users\n}}\n\
         userdb {{\n  driver = passwd-file\n  args = {here}/users\n}}\n\
         mail_plugins = quota\n\
         plugin {{\n  quota = maildir:User quota\n  quota_grace = 0\n}}\n\
         lmtp_save_to_detail_mailbox = yes\n\
         lda_mailbox_autocreate = yes\n\
         service lmtp {{\n  \
           inet_listener lmtp {{\n    address = {} {strict}\n    port = {}\n  }}\n\
         }}\n\
         quota_full_tempfail = yes\n\
         local {strict} {{\n  quota_full_tempfail = no\n}}\n",
        address.ip(),
        address.port(),
    )
}
