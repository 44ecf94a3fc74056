//! The relay itself: a cluster of one node, made as docs/operations.md says.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use super::{Network, PATIENCE, Setup, names, subdirectory};
use crate::{
    cluster::http_status,
    process::{Guard, program},
    wait_for,
};

/// The machine's own address, which has no entry in `addrparams`.
pub const MACHINE: IpAddr = IpAddr::V4(Ipv4Addr::new(131, 111, 8, 99));
/// Takes a PROXY header from 127.0.0.1.
pub const PROXY: SocketAddr = SocketAddr::new(MACHINE, 3_525);
const CONTROL: SocketAddr = SocketAddr::new(MACHINE, 2_590);
const HTTP: SocketAddr = SocketAddr::new(MACHINE, 2_580);

/// Password of `spqr1` to `spqr9`.
pub const PASSWORD: &str = "Ask-The-Postmaster-2005";
/// Its hash, by `openssl passwd -6`.
const HASH: &str = "$6$ppswcampus$UDYbGNAAbmb4BVBg509i7lYmPPdLnRwJjanoH7T/8lEW9FUPU3XBZtmRsIhw6f77ywo9/oT.m7AdWOo./fTKu0";

pub(super) struct Relay {
    dir: PathBuf,
    node: Guard,
}

impl Relay {
    pub(super) fn start(network: &Network, dir: &Path, setup: &Setup<'_>) -> Self {
        let config = dir.join("config");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cambridge"), &config);
        let users: String = (1..=9).map(|number| format!("spqr{number} {HASH}\n")).collect();
        std::fs::write(config.join("users/passwd"), users).unwrap();
        if let Some(change) = setup.change {
            change(&config);
        }
        certify(&subdirectory(dir, "certs"));
        subdirectory(dir, "log");
        let file = dir.join("ppswd.toml");
        std::fs::write(&file, format!("{}\n{}", setup.node, configuration(&config))).unwrap();
        let ppswd = |verb: &str| {
            let mut command = network.command(program("ppswd"));
            command.arg(verb).arg("--config").arg(&file);
            command
        };
        let mut init = ppswd("init");
        init.arg("--admin").arg(dir.join("admin")).arg("--viewer").arg(dir.join("viewer"));
        let output = init.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let log = dir.join("log/process.log");
        let mut node = Guard::spawn(&mut ppswd("run"), &log);
        network.run(|| {
            wait_for("the node to be ready", PATIENCE, || {
                let text = || std::fs::read_to_string(&log).unwrap_or_default();
                assert!(node.alive(), "ppswd run ended:\n{}", text());
                (http_status(HTTP, "/readyz") == Some(200)).then_some(())
            });
        });
        Self { dir: dir.to_owned(), node }
    }

    pub(super) fn ppswctl(&self, network: &Network, arguments: &[&str]) -> Command {
        let mut command = network.command(program("ppswctl"));
        command.args(["--address", &CONTROL.to_string(), "--credentials"]);
        command.arg(self.dir.join("admin")).args(arguments);
        command
    }

    pub(super) fn stop(&mut self) {
        self.node.stop();
    }
}

/// `ppswd.toml`: every address of `addrparams` that is a personality's, and the machine's own, on the ports of mail.
fn configuration(config: &Path) -> String {
    let dns = SocketAddr::new(names::ADDRESS, 53);
    let mut text = format!(
        "name = \"ppsw-1.csi.cam.ac.uk\"\ndata = \"data\"\nlog = \"log\"\nconfig = \"config\"\n\
         certificates = \"certs\"\ncontrol = \"{CONTROL}\"\nhttp = \"{HTTP}\"\ndns = [\"{dns}\"]\n"
    );
    let mut listen = |service: &str, address: SocketAddr| {
        let _ = writeln!(text, "[[listener]]\nservice = \"{service}\"\naddress = \"{address}\"");
    };
    let table = std::fs::read_to_string(config.join("tables/addrparams")).unwrap();
    let personalities = table.lines().filter(|line| line.contains(" acl="));
    let addresses =
        personalities.map(|line| line.split_whitespace().next().unwrap().parse().unwrap());
    for address in addresses.chain([MACHINE]) {
        listen("smtp", SocketAddr::new(address, 25));
        listen("submission", SocketAddr::new(address, 587));
        listen("submissions", SocketAddr::new(address, 465));
    }
    listen("smtp", PROXY);
    text.push_str("proxy_from = [\"127.0.0.1/32\"]\n");
    text
}

/// A certificate for each personality, signed by itself.
fn certify(dir: &Path) {
    for name in ["ppsw.cam.ac.uk", "mx.cam.ac.uk", "smtp.hermes.cam.ac.uk"] {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), made.cert.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
