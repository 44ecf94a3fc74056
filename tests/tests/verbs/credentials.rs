//! Credentials that are none here, and nodes that are not there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ppsw_tests::process::program;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
};
use serde_json::Value;

use crate::stage::{Stage, assert_readable, said};

pub(crate) fn bad_ones_are_told(stage: &Stage) {
    let own = stage.cluster.dir().join("admin");
    let theirs = another_cluster(stage);
    let with = |name: &str, files: [(&str, Vec<u8>); 3]| {
        let dir = stage.path(name);
        fs::create_dir(&dir).unwrap();
        files.iter().for_each(|(file, text)| fs::write(dir.join(file), text).unwrap());
        dir
    };
    let read = |dir: &Path, name: &str| fs::read(dir.join(name)).unwrap();
    let garbage = b"nonsense".to_vec();
    let (old, old_key) = expired(stage);
    let mixed = [
        ("ca.pem", read(&own, "ca.pem")),
        ("cert.pem", read(&theirs, "cert.pem")),
        ("key.pem", read(&theirs, "key.pem")),
    ];
    let mismatched = [
        ("ca.pem", read(&own, "ca.pem")),
        ("cert.pem", read(&own, "cert.pem")),
        ("key.pem", read(&theirs, "key.pem")),
    ];
    let nonsense = [
        ("ca.pem", read(&own, "ca.pem")),
        ("cert.pem", garbage),
        ("key.pem", read(&own, "key.pem")),
    ];
    let late = [("ca.pem", read(&own, "ca.pem")), ("cert.pem", old), ("key.pem", old_key)];
    for (dir, code, expected) in [
        (theirs, 1, "is no node of the cluster of these credentials"),
        (with("mixed", mixed), 2, "cert.pem was not signed by the CA in ca.pem"),
        (with("mismatched", mismatched), 2, "key.pem is not the key of cert.pem"),
        (with("nonsense", nonsense), 2, "cert.pem: expected a certificate"),
        (with("expired", late), 2, "cert.pem has expired"),
        (stage.path("nowhere"), 2, "nowhere"),
    ] {
        for verb in [&["status"][..], &["drain", "1"]] {
            let credentials = ["--credentials", dir.to_str().unwrap()];
            let output = stage.run(&[&credentials, verb].concat());
            let text = said(&output);
            let clear = text.contains(expected) && text.contains("--credentials");
            assert!(output.status.code() == Some(code) && clear, "{dir:?}: {text}");
            assert_readable(&text);
        }
        // A script gets the same.
        let credentials = ["--json", "--credentials", dir.to_str().unwrap(), "status"];
        let error: Value = serde_json::from_slice(&stage.run(&credentials).stdout).unwrap();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["error"].as_str().unwrap().contains(expected), "{error}");
    }
    let status = stage.cluster.ctl_json(&["status"]);
    assert!(status["nodes"].as_array().unwrap().iter().all(|node| node["state"] == "up"));
    nobody_is_there(stage, &own);
}

fn nobody_is_there(stage: &Stage, credentials: &Path) {
    let plain = |arguments: &[&str]| -> Output {
        let mut ctl = Command::new(program("ppswctl"));
        ctl.env("HOME", stage.path("home")).args(arguments).output().unwrap()
    };
    let credentials = credentials.to_str().unwrap();
    let silent = plain(&["--address", "127.0.0.1:1", "--credentials", credentials, "status"]);
    let text = said(&silent);
    assert!(silent.status.code() == Some(3) && text.contains("no node answered"), "{text}");
    assert_readable(&text);
    for (arguments, expected) in [
        (&["status"][..], "which cluster?"),
        (&["--address", "127.0.0.1:1", "status"], "--address needs --credentials"),
        (&["--cluster", "/nowhere/cluster.json", "status"], "/nowhere/cluster.json"),
        (&["drian", "1"], "drain"),
    ] {
        let output = plain(arguments);
        let text = said(&output);
        assert!(
            output.status.code() == Some(2) && text.contains(expected),
            "{arguments:?}: {text}"
        );
    }
}

/// The administrator's credentials of a cluster that is not this one.
fn another_cluster(stage: &Stage) -> PathBuf {
    let dir = stage.path("another");
    fs::create_dir_all(dir.join("config")).unwrap();
    let config = dir.join("ppswd.toml");
    let text = "name = \"other.example\"\ndata = \"data\"\nlog = \"log\"\nconfig = \"config\"\n\
                certificates = \"certs\"\ncontrol = \"127.0.0.1:2590\"\nhttp = \"127.0.0.1:2580\"\n";
    fs::write(&config, text).unwrap();
    let admin = dir.join("admin");
    let output = Command::new(program("ppswd"))
        .args(["init", "--config"])
        .arg(&config)
        .arg("--admin")
        .arg(&admin)
        .arg("--viewer")
        .arg(dir.join("viewer"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    admin
}

/// A certificate of an administrator, signed by the cluster's own CA, whose time is over; and its key.
fn expired(stage: &Stage) -> (Vec<u8>, Vec<u8>) {
    let identity = stage.cluster.node_dir(1).join("data/identity");
    let read = |name: &str| fs::read_to_string(identity.join(name)).unwrap();
    let key = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), key).unwrap();
    let cluster = stage.cluster.ctl_json(&["status"])["cluster"].as_str().unwrap().to_owned();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "admin");
    subject.push(DnType::OrganizationalUnitName, cluster);
    subject.push(DnType::CommonName, "admin");
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (certificate.pem().into_bytes(), key.serialize_pem().into_bytes())
}
