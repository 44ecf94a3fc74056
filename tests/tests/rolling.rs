//! A rolling restart of a cluster under load, and what ppswctl prints of itself.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use ppsw_tests::{
    cluster::{Cluster, PATIENCE},
    load::Load,
    process, wait_for,
};

#[test]
fn all_nodes_are_restarted_one_after_the_other_and_no_mail_is_lost() {
    let mut cluster = Cluster::start(5_300);
    let refused = |cluster: &Cluster, arguments: &[&str], expected: &str| {
        let (code, text) = cluster.ctl(&[&["rolling-restart"], arguments].concat());
        assert!(code == 1 && text.contains(expected), "{arguments:?}: {code} {text}");
    };
    refused(&cluster, &["--exec", "true", "--nodes", "7"], "no node \"7\"");
    refused(&cluster, &["--viewer", "--exec", "true"], "viewer");
    // What goes wrong stops it, and says how to go on.
    refused(
        &cluster,
        &["--exec", "exit 3", "--nodes", "2,3"],
        "the command failed: exit status: 3",
    );
    // Node 2 is drained still: an operator looks first.
    let (code, text) = cluster.ctl(&["rolling-restart", "--exec", "true", "--timeout", "2s"]);
    assert!(code == 4 && text.contains("node 2 is"), "{code} {text}");
    assert!(text.contains("stopped at node 1") && text.contains("--nodes 1,2,3"), "{text}");
    assert_eq!(cluster.ctl(&["undrain", "2"]).0, 0);

    let addresses: Vec<_> = (1..=3).map(|id| cluster.node(id).smart).collect();
    let load = Load::start(&addresses, 2, Duration::from_millis(20), &["a@example.org"]);
    let old: Vec<u32> = (1..=3).map(|id| cluster.node(id).pid).collect();
    let dir = cluster.dir().join("rolling");
    fs::create_dir(&dir).unwrap();
    // The command asks us for a restart, as a service manager is asked for it.
    let ask = format!(
        "cd {} && echo {{host}} {{name}} > want-{{id}} && while [ ! -e done-{{id}} ]; do sleep 0.05; done",
        dir.display()
    );
    let mut running = Command::new(process::program("ppswctl"))
        .arg("--cluster")
        .arg(cluster.dir().join("cluster.json"))
        .args(["rolling-restart", "--exec", &ask, "--timeout", "60s"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let mut order = Vec::new();
    while running.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(180), "{order:?}");
        for id in 1..=3 {
            let wanted = fs::read_to_string(dir.join(format!("want-{id}"))).unwrap_or_default();
            if wanted.ends_with('\n') && !order.contains(&id) {
                assert_eq!(wanted, format!("127.10.{id}.9 node-{id}\n"));
                order.push(id);
                cluster.kill(id);
                cluster.restart(id);
                fs::write(dir.join(format!("done-{id}")), "").unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = running.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("3 nodes restarted"), "{text}");
    assert_eq!(order, [1, 2, 3]);
    println!("{text}{:.1} s in all", begun.elapsed().as_secs_f64());
    for (id, old) in (1..).zip(old) {
        assert_ne!(cluster.node(id).pid, old);
        assert!(cluster.leaders().contains(&(id, id)), "{:?}", cluster.leaders());
    }
    let tally = load.stop();
    assert!(tally.taken.len() > 50, "{}", tally.taken.len());
    let mut maildir = cluster.maildir();
    wait_for("all mail that was taken", PATIENCE, || {
        let counts = maildir.counts();
        tally.taken.keys().all(|id| counts.contains_key(id)).then_some(())
    });
}

#[test]
fn pages_and_completions_are_what_their_readers_take() {
    let dir = tempfile::tempdir().unwrap();
    let ctl = |arguments: &[&str]| {
        let output = Command::new(process::program("ppswctl")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let pages = dir.path().join("man");
    ctl(&["man", pages.to_str().unwrap()]);
    let mut names = Vec::new();
    for entry in fs::read_dir(&pages).unwrap() {
        let path = entry.unwrap().path();
        let output = Command::new("groff")
            .args(["-man", "-Tascii", "-P-cbou", "-ww"])
            .arg(&path)
            .output()
            .unwrap();
        let warnings = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && warnings.is_empty(), "{path:?}: {warnings}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("NAME"), "{path:?}");
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    for name in ["ppswctl.1", "ppswctl-drain.1", "ppswctl-queue-redirect.1", "ppswctl-suspend.1"] {
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
    }
    let script = dir.path().join("ppswctl.bash");
    fs::write(&script, ctl(&["completions", "bash"])).unwrap();
    // As a shell asks when somebody presses the tabulator.
    let words = "COMP_WORDS=(ppswctl queue ho); COMP_CWORD=2; _ppswctl ppswctl ho queue; echo ${COMPREPLY[*]}";
    let output = Command::new("bash")
        .args(["-c", &format!(". {} && {words}", script.display())])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "hold", "{output:?}");
    for shell in ["zsh", "fish"] {
        assert!(ctl(&["completions", shell]).len() > 1_000, "{shell}");
    }
}
