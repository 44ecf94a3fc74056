//! Real peers from Debian: Cyrus, and Postfix' smtp-sink.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    client::Client,
    corpus::without_field,
    imap::Imap,
    process::{GroupGuard, Guard},
    sink::{ID_FIELD, field},
    wait_for,
};

const CYRUS: &str = "/usr/lib/cyrus/bin/master";
const IMAP_PORT: u16 = 1_143;
const SMTP_SINK: &str = "/usr/sbin/smtp-sink";
/// `spqr1` to `spqr9`.
const USERS: std::ops::RangeInclusive<u8> = 1..=9;
const PATIENCE: Duration = Duration::from_secs(60);

/// Exim, unpacked by `tests/run`: the package would put Postfix off the machine.
pub fn exim() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/exim/usr/sbin/exim4");
    assert!(path.exists(), "{} is missing: tests/run unpacks it", path.display());
    path
}

/// A private Cyrus that takes mail by LMTP for the users of `ppswd dev`.
pub struct Cyrus {
    dir: TempDir,
    imap: SocketAddr,
    _master: GroupGuard,
}

impl Cyrus {
    /// Starts a lmtpd on `address`, and an imapd for a look into the mailboxes.
    pub fn start(address: SocketAddr) -> Self {
        let imap = SocketAddr::new(address.ip(), IMAP_PORT);
        assert!(Path::new(CYRUS).exists(), "{CYRUS} is missing: tests/run installs cyrus-imapd");
        let dir = tempfile::Builder::new().prefix("ppswitch-cyrus-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let (user, group) = (id_of("/etc/passwd", "cyrus"), id_of("/etc/group", "mail"));
        // `stage.` is made here because two lmtpd that both find it missing race: the one that loses the mkdir(2) ends
        // with an assertion in append.c, and its message waits for a retry.
        for folder in ["conf", "conf/db", "mail", "mail/stage.", "sieve"] {
            let path = dir.path().join(folder);
            std::fs::create_dir(&path).unwrap();
            chown(&path, Some(user), Some(group)).unwrap();
        }
        let path = dir.path().display();
        let imapd = format!(
            "configdirectory: {path}/conf\ndefaultpartition: default\npartition-default: {path}/mail\n\
             sievedir: {path}/sieve\ncyrus_user: cyrus\ncyrus_group: mail\nadmins: cyrus\n\
             virtdomains: userid\ndefaultdomain: hermes.cam.ac.uk\nunixhierarchysep: yes\naltnamespace: yes\n\
             lmtp_downcase_rcpt: yes\nduplicatesuppression: no\nmunge8bit: no\nreject8bit: no\n\
             autocreate_post: yes\nautocreate_quota: 0\nservername: store.example.org\n\
             allowplaintext: yes\n"
        );
        std::fs::write(dir.path().join("imapd.conf"), imapd).unwrap();
        let services = format!(
            "START {{\n  recover cmd=\"ctl_cyrusdb -C {path}/imapd.conf -r\"\n}}\n\
             SERVICES {{\n  lmtp cmd=\"lmtpd -C {path}/imapd.conf -a\" listen=\"{address}\" prefork=1 maxchild=20\n  \
             imap cmd=\"imapd -C {path}/imapd.conf -N\" listen=\"{imap}\" prefork=0 maxchild=5\n}}\n\
             EVENTS {{\n}}\n"
        );
        std::fs::write(dir.path().join("cyrus.conf"), services).unwrap();
        let mut command = Command::new(CYRUS);
        command.arg("-C").arg(dir.path().join("imapd.conf"));
        command.arg("-M").arg(dir.path().join("cyrus.conf"));
        command.arg("-p").arg(dir.path().join("master.pid"));
        let mut master = GroupGuard::spawn(&mut command, &dir.path().join("master.log"));
        wait_for("Cyrus", PATIENCE, || {
            assert!(
                master.alive(),
                "Cyrus ended: {:?}",
                std::fs::read_to_string(dir.path().join("master.log"))
            );
            TcpStream::connect(address).ok()
        });
        make_mailboxes(address);
        Self { dir, imap, _master: master }
    }

    /// What Cyrus keeps of a message: it writes `Return-Path` itself (RFC 5321 §4.4) and drops one that is there, and
    /// it refuses NULs, so whoever delivers to it leaves them out.
    pub fn keeps(content: &[u8]) -> Vec<u8> {
        let mut kept = without_field(content, "Return-Path");
        kept.retain(|byte| *byte != 0);
        kept
    }

    /// Runs an administrator's IMAP command.
    pub fn administer(&self, command: &str) {
        Imap::login(self.imap, "cyrus").command(command);
    }

    /// All messages in a folder of a user; the inbox is `INBOX`.
    pub fn mail(&self, user: &str, folder: &str) -> Vec<Vec<u8>> {
        Imap::login(self.imap, user).messages(folder)
    }

    /// All stored messages that have a test id, by it.
    pub fn messages(&self) -> HashMap<String, Vec<u8>> {
        let mut messages = HashMap::new();
        let mut folders = vec![self.dir.path().join("mail")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if is_message(&path)
                    && let Ok(content) = std::fs::read(&path)
                    && let Some(id) = field(&content, ID_FIELD)
                {
                    messages.insert(id, content);
                }
            }
        }
        messages
    }
}

/// Postfix' smtp-sink, which writes each message to a file.
pub struct PostfixSink {
    dir: TempDir,
    process: Guard,
}

/// A message that smtp-sink was given, and how.
#[derive(Clone, Debug)]
pub struct Dumped {
    /// `SMTP`, `ESMTP` or `LMTP`.
    pub protocol: String,
    /// What stood behind `MAIL`.
    pub mail: String,
    /// With CRLF line ends, as it came.
    pub content: Vec<u8>,
}

impl PostfixSink {
    /// Starts an smtp-sink on `address`.
    pub fn start(address: SocketAddr) -> Self {
        Self::start_with(address, &[])
    }

    /// The same with more options (smtp-sink(1)).
    pub fn start_with(address: SocketAddr, options: &[&str]) -> Self {
        assert!(
            Path::new(SMTP_SINK).exists(),
            "{SMTP_SINK} is missing: tests/run installs postfix"
        );
        let dir = tempfile::Builder::new().prefix("ppswitch-postfix-").tempdir().unwrap();
        // smtp-sink gives up root; its files are made by nobody.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new(SMTP_SINK);
        command.args(["-v", "-u", "nobody", "-d"]).arg(dir.path().join("message."));
        command.args(options).arg(address.to_string()).arg("100");
        let mut process = Guard::spawn(&mut command, &log);
        // Asked by /proc, not by a connection: those that are counted are the client's.
        wait_for("smtp-sink", PATIENCE, || {
            assert!(process.alive(), "smtp-sink ended: {:?}", std::fs::read_to_string(&log));
            listens(address).then_some(())
        });
        Self { dir, process }
    }

    /// All messages that have a test id, by it; with CRLF line ends, as they came.
    pub fn messages(&self) -> HashMap<String, Vec<u8>> {
        let dumped = self.dumped().into_iter();
        dumped.filter_map(|one| Some((field(&one.content, ID_FIELD)?, one.content))).collect()
    }

    /// Everything that was written to files, the unfinished too.
    pub fn dumped(&self) -> Vec<Dumped> {
        let files = std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        let dumps = files.filter(|file| file.file_name() != "log");
        dumps
            .filter_map(|file| {
                let content = undump(&std::fs::read(file.path()).ok()?)?;
                let protocol = field(&content, "X-Client-Proto")?;
                Some(Dumped { protocol, mail: field(&content, "X-Mail-Args")?, content })
            })
            .collect()
    }

    /// The commands and connections, as smtp-sink tells them.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
    }
}

/// Whether somebody listens on an IPv4 address (proc_net_tcp(5)).
pub(crate) fn listens(address: SocketAddr) -> bool {
    let IpAddr::V4(ip) = address.ip() else { panic!("{address} is no IPv4 address") };
    let wanted = format!("{:08X}:{:04X}", u32::from_le_bytes(ip.octets()), address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1) == Some(&wanted.as_str()) && fields.get(3) == Some(&"0A")
    })
}

/// Cyrus makes a mailbox at the first RCPT for it, and fails if two sessions do so at once: hence one by one here.
fn make_mailboxes(address: SocketAddr) {
    let mut client = Client::connect(address).unwrap();
    for line in ["LHLO test", "MAIL FROM:<>"] {
        assert_eq!(client.command(line).unwrap().code, 250, "{line}");
    }
    for user in USERS {
        let reply = client.command(&format!("RCPT TO:<spqr{user}@hermes.cam.ac.uk>")).unwrap();
        assert_eq!(reply.code, 250, "{reply:?}");
    }
    client.quit();
}

/// smtp-sink drops the CR of each line end and adds an empty line at the end.
fn undump(dump: &[u8]) -> Option<Vec<u8>> {
    let dump = dump.strip_suffix(b"\n")?;
    let mut content = Vec::with_capacity(dump.len() + dump.len() / 32);
    for &byte in dump {
        if byte == b'\n' {
            content.push(b'\r');
        }
        content.push(byte);
    }
    Some(content)
}

/// Cyrus names messages `17.`.
fn is_message(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix('.')
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Numeric id of a name in `/etc/passwd` or `/etc/group`: the third field of both.
pub(crate) fn id_of(file: &str, name: &str) -> u32 {
    let text = std::fs::read_to_string(PathBuf::from(file)).unwrap();
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
        .unwrap_or_else(|| panic!("{name} is not in {file}: tests/run installs what makes it"))[2]
        .parse()
        .unwrap()
}
