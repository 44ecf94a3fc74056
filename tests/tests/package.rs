//! The Debian package, from its making to its purge, in a Debian of its own: it installs, its service runs as the unit says and
//! passes a mail, its pages render, and what is left of it is what may not be lost.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#[path = "package/root.rs"]
mod root;
#[path = "package/unit.rs"]
mod unit;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use ppsw_tests::{
    cluster::PATIENCE,
    process::{self, Guard, program},
    wait_for,
};
use root::{Manager, Root, said};
use rustix::process::Signal;
use unit::Unit;

/// This machine of the packaged settings, one that sends, and one that takes.
const NODE: &str = "192.0.2.1";
const CLIENT: &str = "192.0.2.9";
const NEXT: &str = "192.0.2.53";

const POLICY: &str = r#"
acl "local" {
    rcpt {
        accept hosts="192.0.2.9"
        deny message="relaying is not permitted"
    }
}
transports {
    smtp "smtp" port=25
}
routers {
    manualroute "next" route="192.0.2.53" transport="smtp"
}
"#;

/// `tests/run` makes what is needed here beside everything else, and holds a lock meanwhile.
fn wait_for_tools() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/packaging.lock");
    if let Ok(lock) = fs::File::open(lock) {
        lock.lock().unwrap();
    }
}

/// Makes the package of the programs under test.
fn build(dir: &Path) -> PathBuf {
    let programs = program("ppswd").parent().unwrap().to_owned();
    let package = dir.join("ppswitch.deb");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/debian/build");
    let output = Command::new(script)
        .args(["--profile", programs.file_name().unwrap().to_str().unwrap()])
        .args(["--fast", "--compress-system", "--output"])
        .arg(&package)
        .env("CARGO_TARGET_DIR", programs.parent().unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{} (tests/run installs cargo-deb)", said(&output));
    package
}

#[test]
fn the_package_installs_serves_and_leaves_only_the_queue() {
    let begun = Instant::now();
    let lap = |what: &str| println!("{what}: {:.1} s", begun.elapsed().as_secs_f64());
    wait_for_tools();
    let dir = tempfile::tempdir().unwrap();
    let package = build(dir.path());
    lap("made");
    let root = Root::new(&[NODE, CLIENT, NEXT]);
    let before = root.files();
    fs::copy(&package, root.path("tmp/ppswitch.deb")).unwrap();
    let told = root.run("dpkg --install /tmp/ppswitch.deb");
    assert!(told.contains("edit /etc/ppswd/ppswd.toml"), "{told}");
    lap("installed");
    pages_render(&root);
    make_a_cluster(&root);

    let unit = Unit::read(&root.path("usr/lib/systemd/system/ppswd.service"));
    let mut service = Service::start(&root, &unit);
    lap("started");
    a_mail_passes(&root);
    lap("a mail has passed");
    // An upgrade leaves the old program running, and settings as they are.
    let settings = fs::read(root.path("etc/ppswd/ppswd.toml")).unwrap();
    let told = root.run("dpkg --install /tmp/ppswitch.deb");
    assert!(!told.contains("edit /etc/ppswd/ppswd.toml"), "{told}");
    assert!(service.process.alive());
    assert_eq!(fs::read(root.path("etc/ppswd/ppswd.toml")).unwrap(), settings);
    service.stop(&root, &unit);
    lap("stopped");
    what_is_left(&root, &before);
    lap("purged");
}

/// All man pages of the package, by groff, without a warning.
fn pages_render(root: &Root) {
    let pages = root.run("dpkg --listfiles ppswitch");
    let pages: Vec<&str> = pages.lines().filter(|path| path.ends_with(".gz")).collect();
    let pages: Vec<&str> = pages.into_iter().filter(|path| path.contains("/man/man")).collect();
    for name in
        ["man1/ppswd.1.gz", "man1/ppswctl.1.gz", "man1/ppswctl-drain.1.gz", "man5/ppswd.toml.5.gz"]
    {
        assert!(pages.iter().any(|path| path.ends_with(name)), "{name}: {pages:?}");
    }
    for page in &pages {
        let line = format!("zcat {} | groff -man -Tascii -P-cbou -ww", root.path(page).display());
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && warnings.is_empty(), "{page}: {warnings}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("NAME"), "{page}");
    }
    println!("{} pages", pages.len());
    for shell in ["bash-completion/completions/ppswctl", "zsh/vendor-completions/_ppswctl"] {
        assert!(root.path(&format!("usr/share/{shell}")).exists(), "{shell}");
    }
}

/// As docs/operations.md says: fills the settings in, `ppswd init`, a credential for the drain at a stop.
fn make_a_cluster(root: &Root) {
    let path = root.path("etc/ppswd/ppswd.toml");
    let settings = fs::read_to_string(&path).unwrap();
    assert!(settings.contains(&format!("control = \"{NODE}:2590\"")), "{settings}");
    let listener = format!("\n[[listener]]\nservice = \"smtp\"\naddress = \"{NODE}:25\"\n");
    fs::write(&path, settings + &listener).unwrap();
    // Nobody answers there, at once: nothing of this test needs a name.
    fs::write(root.path("etc/resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
    root.run(
        "ppswd init --config /etc/ppswd/ppswd.toml --admin /root/ppsw-admin --viewer /root/ppsw-viewer",
    );
    root.run("chown -R ppswd: /var/lib/ppswd");
    root.run("install -d -o root -g ppswd -m 0750 /etc/ppswd/admin");
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        root.run(&format!(
            "install -o root -g ppswd -m 0640 /root/ppsw-admin/{file} /etc/ppswd/admin/{file}"
        ));
    }
}

/// The service, as the service manager would run it.
struct Service {
    process: Guard,
    manager: Manager,
    log: PathBuf,
}

impl Service {
    fn start(root: &Root, unit: &Unit) -> Self {
        assert_eq!(unit.get("Type"), "notify");
        for (path, mode) in unit.directories() {
            let (user, group) = (unit.get("User"), unit.get("Group"));
            root.run(&format!("install -d -m {mode} -o {user} -g {group} {path}"));
        }
        let manager = Manager::listen(&root.path("run/notify"));
        command(root, unit, "ExecStartPre");
        let log = root.path("run/ppswd.log");
        let words = [unit.wrapper("/run/notify"), unit.command("ExecStart").0].concat();
        let process = Guard::spawn(&mut root.inside(&words), &log);
        let mut service = Self { process, manager, log };
        for line in ["READY=1", "WATCHDOG=1"] {
            service.wait_told(line);
        }
        command(root, unit, "ExecStartPost");
        let status = fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_ne!(field("Uid:"), "0");
        // CAP_NET_BIND_SERVICE, and nothing else.
        assert_eq!((field("CapEff:"), field("CapBnd:")), (field("CapAmb:"), field("CapAmb:")));
        assert_eq!(
            (field("CapEff:").as_str(), field("Umask:").as_str()),
            ("0000000000000400", "0027")
        );
        service
    }

    /// Nothing between us and it stays a process of its own.
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn wait_told(&mut self, line: &str) {
        wait_for(&format!("{line} of the service"), PATIENCE, || {
            let log = || fs::read_to_string(&self.log).unwrap();
            assert!(self.manager.heard(line) || self.process.alive(), "it has ended: {}", log());
            self.manager.heard(line).then_some(())
        });
    }

    fn stop(mut self, root: &Root, unit: &Unit) {
        // Alone, it cannot be drained: that is told, and does not keep it from stopping.
        assert!(!unit.command("ExecStop").1);
        let told = command(root, unit, "ExecStop");
        assert!(told.contains("no other node can take partition 1"), "{told}");
        process::signal(self.pid(), Signal::TERM);
        self.wait_told("STOPPING=1");
        let status =
            wait_for("the end of the service", PATIENCE, || self.process.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{}", fs::read_to_string(&self.log).unwrap());
    }
}

/// Runs one of the unit's other commands, and gives what it said.
fn command(root: &Root, unit: &Unit, name: &str) -> String {
    let (words, must) = unit.command(name);
    let output = root.inside(&[unit.wrapper("/run/notify"), words].concat()).output().unwrap();
    assert!(output.status.success() || !must, "{name}: {}", said(&output));
    said(&output)
}

fn a_mail_passes(root: &Root) {
    fs::create_dir(root.path("root/policy")).unwrap();
    fs::write(root.path("root/policy/policy.kdl"), POLICY).unwrap();
    let ctl = format!("ppswctl --address {NODE}:2590 --credentials /root/ppsw-admin");
    let told = wait_for("a push", PATIENCE, || {
        let line = format!("{ctl} tables push /root/policy --reason first");
        let output = root.inside(&line.split(' ').collect::<Vec<_>>()).output().unwrap();
        output.status.success().then(|| said(&output))
    });
    assert!(told.contains("version 1 (generation 1) runs on nodes 1"), "{told}");

    // One file a message, with its envelope.
    let taken = tempfile::tempdir().unwrap();
    let template = taken.path().join("message").display().to_string();
    let sink = ["-u", "root", "-d", &format!("{template}."), &format!("{NEXT}:25"), "10"];
    let _sink = Guard::spawn(&mut root.outside("smtp-sink", &sink), &taken.path().join("log"));
    let swaks = [
        ["--server", NODE, "--local-interface", CLIENT, "--helo", "client.example"],
        ["--from", "a@example.org", "--to", "b@example.net", "--header", "Subject: packaged"],
    ];
    wait_for("a mail to be taken", PATIENCE, || {
        let output = root.outside("swaks", &swaks.concat()).stdin(Stdio::null()).output().unwrap();
        let text = said(&output);
        // The policy is there a moment after the push.
        assert!(output.status.success() || text.contains("550"), "{text}");
        text.contains("OK id=").then_some(())
    });
    wait_for("the mail at the next hop", PATIENCE, || {
        let files = fs::read_dir(taken.path()).unwrap().map(|entry| entry.unwrap().path());
        let texts: Vec<String> = files.map(|path| fs::read_to_string(path).unwrap()).collect();
        let whole =
            |text: &&String| text.contains("Subject: packaged") && text.contains("b@example.net");
        texts.iter().find(whole).map(drop)
    });
    let log = wait_for("the delivery's line", PATIENCE, || {
        let log = fs::read_to_string(root.path("var/log/ppswd/mainlog")).ok()?;
        log.contains("Completed").then_some(log)
    });
    assert!(log.contains(" <= a@example.org") && log.contains(" => b@example.net"), "{log}");
}

/// Removal, and purge: what may be the last copy of mail stays, and so does what somebody has put there.
fn what_is_left(root: &Root, before: &std::collections::BTreeMap<String, String>) {
    root.run("dpkg --remove ppswitch");
    for (path, there) in [
        ("usr/bin/ppswd", false),
        ("usr/lib/systemd/system/ppswd.service", false),
        ("usr/share/man/man1/ppswd.1.gz", false),
        ("etc/ppswd/ppswd.toml", true),
        ("var/log/ppswd/mainlog", true),
        ("var/lib/ppswd/log", true),
    ] {
        assert_eq!(root.path(path).exists(), there, "{path} after the removal");
    }
    let told = root.run("dpkg --purge ppswitch");
    assert!(told.contains("/var/lib/ppswd is kept"), "{told}");
    let after = root.files();
    let new = after.iter().filter(|(path, what)| before.get(*path) != Some(what));
    let new: Vec<&String> = new.map(|(path, _)| path).collect();
    let ours = |path: &&&String| {
        let own =
            ["/var/lib/ppswd", "/etc/ppswd/admin", "/root/", "/etc/resolv.conf", "/etc/.pwd.lock"];
        own.iter().any(|own| path.starts_with(own)) || path.as_str() == "/etc/ppswd"
    };
    let strange: Vec<&&String> = new.iter().filter(|path| !ours(path)).collect();
    assert!(strange.is_empty(), "left behind: {strange:?}");
    let gone: Vec<&String> = before.keys().filter(|path| !after.contains_key(*path)).collect();
    assert!(gone.is_empty(), "taken away: {gone:?}");
    for path in ["/var/lib/ppswd/log", "/etc/ppswd/admin/key.pem"] {
        assert!(new.iter().any(|new| *new == path), "{path}: {new:?}");
    }
    // Who owns the queue is still known.
    root.run("id ppswd");
}
