//! `ppswctl top` on a terminal and in a pipe.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{process::Command, time::Duration};

use ppsw_tests::{cluster::Cluster, load::Load, process::program, wait_for};
use serde_json::Value;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/terminal/run.py");

/// Runs `top` in a terminal until it has drawn the word `expected`, presses `keys`; what became of it.
fn on_terminal(cluster: &Cluster, expected: &str, keys: &str) -> Value {
    let file = cluster.dir().join("cluster.json");
    let output = Command::new("python3")
        .args([SCRIPT, expected, keys])
        .arg(program("ppswctl"))
        .arg("--cluster")
        .arg(file)
        .args(["--viewer", "top"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn top_shows_the_cluster_and_gives_the_terminal_back() {
    let cluster = Cluster::start(3_950);
    for keys in ["q", "\u{3}"] {
        let seen = on_terminal(&cluster, "node-3", keys);
        assert_eq!(seen["code"], 0, "{seen}");
        assert_eq!(seen["pressed"], true, "{seen}");
        assert_eq!(seen["changed"], true, "it did not take the terminal: {seen}");
        assert_eq!(seen["restored"], true, "{seen}");
        // The other screen was entered and left.
        let output = seen["output"].as_str().unwrap();
        let at = |code: &str| output.rfind(code).unwrap_or_else(|| panic!("{code:?}: {output:?}"));
        assert!(at("\u{1b}[?1049h") < at("\u{1b}[?1049l"), "{output:?}");
    }

    let addresses: Vec<_> = cluster.file.nodes.iter().map(|node| node.smart).collect();
    let load = Load::start(&addresses, 3, Duration::from_millis(30), &["one@example.org"]);
    wait_for("100 messages", Duration::from_secs(60), || (load.taken() > 100).then_some(()));
    let (code, text) = cluster.ctl(&["--json", "top", "--count", "2"]);
    load.stop();
    assert_eq!(code, 0, "{text}");
    let looks: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(looks.len(), 2, "{text}");
    for look in &looks {
        let nodes = look["nodes"].as_array().unwrap();
        assert_eq!(nodes.len(), 3, "{look}");
        for of in ["accepted", "delivered"] {
            let rate: f64 = nodes.iter().map(|n| n["per_second"][of].as_f64().unwrap()).sum();
            // Nine clients at 30 ms each make three hundred a second at most, and what was kept up comes on top for a moment.
            assert!(rate > 1.0 && rate < 600.0, "{of}: {rate} in {look}");
        }
        let partitions = look["partitions"].as_array().unwrap();
        assert!(partitions.iter().all(|partition| partition["leader"].is_u64()), "{look}");
    }
    let (code, text) = cluster.ctl(&["top"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("partition 2: led by node 2"), "{text}");
}
