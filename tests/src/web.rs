//! Web servers of managed domains: a real nginx that is good, and Python ones that are not; with certificates of all sorts.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::{process::Guard, wait_for};

/// Address of all web servers; nothing else of a cluster is there.
pub const ADDRESS: &str = "127.10.0.80";

const CARELESS: &str = include_str!("../web/careless.py");

/// An authority of the test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes its certificate.
    pub fn store(&self, path: &Path) {
        std::fs::write(path, &self.pem).unwrap();
    }

    /// Writes `NAME.pem` and `NAME.key` for a host, valid until the beginning of a year.
    pub fn issue(&self, dir: &Path, name: &str, host: &str, until: i32) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        write_pair(dir, name, &pem, &key.serialize_pem());
    }
}

/// Writes a certificate that its own key has signed.
pub fn self_signed(dir: &Path, name: &str, host: &str) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    write_pair(dir, name, &made.cert.pem(), &made.signing_key.serialize_pem());
}

fn write_pair(dir: &Path, name: &str, pem: &str, key: &str) {
    std::fs::write(dir.join(format!("{name}.pem")), pem).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), key).unwrap();
}

/// nginx, which gives `DIR/www` to who knows the password.
pub fn nginx(dir: &Path, port: u16, certificate: &str, user: &str, password: &str) -> Guard {
    let at = |name: &str| dir.join(name).display().to_string();
    std::fs::create_dir_all(dir.join("www")).unwrap();
    std::fs::create_dir_all(dir.join("nginx")).unwrap();
    std::fs::write(dir.join("htpasswd"), format!("{user}:{{PLAIN}}{password}\n")).unwrap();
    let own_user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};\n", at(&format!("nginx/{kind}"))))
        .concat();
    let text = format!(
        "{own_user}daemon off;\nmaster_process off;\npid {};\nerror_log stderr;\nevents {{}}\nhttp {{\n{temporary}\
         access_log {};\nserver {{\nlisten {ADDRESS}:{port} ssl;\nssl_certificate {};\nssl_certificate_key {};\n\
         root {};\nauth_basic \"ppswitch\";\nauth_basic_user_file {};\n}}\n}}\n",
        at("nginx/pid"),
        at("access.log"),
        at(&format!("{certificate}.pem")),
        at(&format!("{certificate}.key")),
        at("www"),
        at("htpasswd"),
    );
    let conf = dir.join("nginx.conf");
    std::fs::write(&conf, text).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-p").arg(dir).arg("-c").arg(&conf);
    let guard = Guard::spawn(&mut command, &dir.join("nginx.log"));
    wait_open(port);
    guard
}

/// Servers that are not good, each with its certificate and port. They give the files of `dir`.
pub fn careless(dir: &Path, servers: &[(u16, &str)]) -> Guard {
    let program: PathBuf = dir.join("careless.py");
    std::fs::write(&program, CARELESS).unwrap();
    let mut command = Command::new("/usr/bin/python3");
    command.current_dir(dir).arg(&program).arg(ADDRESS);
    for (port, certificate) in servers {
        command.arg(format!("{port}:{certificate}.pem:{certificate}.key"));
    }
    let guard = Guard::spawn(&mut command, &dir.join("careless.log"));
    servers.iter().for_each(|(port, _)| wait_open(*port));
    guard
}

fn wait_open(port: u16) {
    wait_for(&format!("a web server at {ADDRESS}:{port}"), Duration::from_secs(30), || {
        std::net::TcpStream::connect((ADDRESS, port)).ok()
    });
}
