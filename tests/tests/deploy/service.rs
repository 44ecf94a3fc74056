//! The unit, what drains at its stop, and the package.

use std::process::Command;

use ppsw_tests::{cluster::Cluster, process::program};
use regex::Regex;

use super::{good, root, run, said, text};

/// The most that `systemd-analyze security` may give the service.
const EXPOSURE_MAX: f64 = 2.0;

#[test]
fn the_packaged_settings_are_good() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::copy(root().join("deploy/debian/policy.kdl"), config.join("policy.kdl")).unwrap();
    let settings = text("deploy/debian/ppswd.toml")
        .replace("/etc/ppswd/config", &config.display().to_string());
    let path = dir.path().join("ppswd.toml");
    std::fs::write(&path, settings).unwrap();
    let ppswd = program("ppswd").display().to_string();
    good(&ppswd, &["check", "--config", &path.display().to_string()]);
    let told = good(&ppswd, &["config"]);
    assert_eq!(
        told,
        text("deploy/debian/ppswd.toml"),
        "deploy/debian/ppswd.toml is to be what `ppswd config` prints: write it again"
    );
}

#[test]
fn what_the_package_takes_is_there() {
    let manifest = text("node/Cargo.toml");
    let Some((_, package)) = manifest.split_once("[package.metadata.deb]") else {
        panic!("node/Cargo.toml has no [package.metadata.deb]")
    };
    let source = Regex::new(r#"(?m)^    \["\.\./([^"*]+)"#).unwrap();
    let sources: Vec<_> = source.captures_iter(package).map(|found| found[1].to_owned()).collect();
    assert!(sources.len() > 5, "{sources:?}");
    // Those below target/ are made by deploy/debian/build.
    for path in sources.iter().filter(|path| !path.starts_with("target/")) {
        assert!(root().join(path).exists(), "node/Cargo.toml: {path} does not exist");
    }
    // What the scripts and units call is where the package puts it.
    for (file, wanted) in [
        ("deploy/systemd/ppswd.service", "/usr/lib/ppswitch/ppswd-drain"),
        ("deploy/anycast/ppsw-anycast.service", "/usr/lib/ppswitch/ppsw-anycast"),
    ] {
        assert!(text(file).contains(wanted), "{file}: {wanted}");
        let name = wanted.rsplit('/').next().unwrap();
        assert!(package.contains(&format!("/{name}\", \"usr/lib/ppswitch/\"")), "{name}");
    }
}

#[test]
fn the_service_is_hardened_and_knows_the_exit_codes() {
    let answer = good(
        "systemd-analyze",
        &["security", "--offline=yes", "--no-pager", "deploy/systemd/ppswd.service"],
    );
    let level = Regex::new(r"exposure level for ppswd.service: ([0-9.]+)").unwrap();
    let level: f64 = level.captures(&answer).expect(&answer)[1].parse().unwrap();
    println!("exposure level {level}");
    assert!(level < EXPOSURE_MAX, "{answer}");

    let unit = text("deploy/systemd/ppswd.service");
    let never = unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus="));
    let help = said(&run(&program("ppswd").display().to_string(), &["--help"]));
    let codes = help.split_once("Exit codes:").unwrap().1;
    for code in never.unwrap().split(' ') {
        assert!(codes.contains(&format!(" {code} ")), "{code} is no exit code: {codes}");
    }
    for line in ["ExecStartPre=/usr/bin/ppswd check ", "ExecStart=/usr/bin/ppswd run "] {
        assert!(unit.contains(line), "{line}");
    }
}

/// Puts the programs under test in the way of a script.
fn with_programs(command: &mut Command) -> &mut Command {
    let dir = program("ppswctl").parent().unwrap().display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{dir}:{path}"))
}

#[test]
fn a_stop_drains_and_a_start_takes_back_what_a_stop_has_drained() {
    let mut cluster = Cluster::start(3_600);
    let credentials = cluster.dir().join("admin");
    let drain = |cluster: &Cluster, verb: &str| {
        let output =
            with_programs(Command::new("sh").arg(root().join("deploy/systemd/ppswd-drain")))
                .arg(verb)
                .env("PPSWD_CONFIG", cluster.node_dir(3).join("ppswd.toml"))
                .env("CREDENTIALS", &credentials)
                .output()
                .unwrap();
        (output.status.code().unwrap(), said(&output))
    };
    let state = |cluster: &Cluster| {
        let status = cluster.ctl_json(&["status"]);
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["id"] == 3).unwrap()["state"].as_str().unwrap().to_owned()
    };
    let mark = cluster.node_dir(3).join("data/drained-by-stop");

    let (code, text) = drain(&cluster, "stop");
    assert_eq!(code, 0, "{text}");
    assert_eq!(state(&cluster), "drained");
    assert!(mark.exists());
    cluster.kill(3);
    cluster.restart(3);
    let (code, text) = drain(&cluster, "start");
    assert_eq!(code, 0, "{text}");
    assert_eq!(state(&cluster), "up");
    assert!(!mark.exists());
    cluster.wait_ready(3);

    // An operator's own drain is neither begun nor ended by the service.
    assert_eq!(cluster.ctl(&["drain", "3"]).0, 0);
    for verb in ["stop", "start"] {
        let (code, text) = drain(&cluster, verb);
        assert_eq!(code, 0, "{text}");
        assert_eq!(state(&cluster), "drained");
    }
}
