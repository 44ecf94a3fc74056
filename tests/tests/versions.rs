//! Versions of policy and tables on a cluster: pushed, run everywhere, rolled back, and nodes that die meanwhile.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ppsw_tests::{client::Client, cluster::Cluster, process::program, wait_for};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const ALIASES: &str = "domains/botolph.cam.ac.uk/aliases";

/// A copy of the cluster's configuration that a test edits.
fn copy(cluster: &Cluster, name: &str) -> PathBuf {
    let to = cluster.dir().join(name);
    let done = Command::new("cp").arg("-a").arg(cluster.dir().join("config")).arg(&to).status();
    assert!(done.unwrap().success());
    to
}

fn append(dir: &Path, file: &str, line: &str) {
    let path = dir.join(file);
    let mut text = fs::read_to_string(&path).unwrap_or_default();
    writeln!(text, "{line}").unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Version and generation of each node.
fn running(cluster: &Cluster) -> Vec<(Option<u64>, Option<u64>)> {
    let status = cluster.ctl_json(&["tables", "status"]);
    let rows = status.as_array().unwrap();
    rows.iter().map(|row| (row["version"].as_u64(), row["generation"].as_u64())).collect()
}

fn push(cluster: &Cluster, dir: &Path, more: &[&str]) -> (i32, String) {
    let arguments = [&["tables", "push", dir.to_str().unwrap(), "--reason", "a test"], more];
    cluster.ctl(&arguments.concat())
}

/// A push to a given node, as a process of its own.
fn push_at(cluster: &Cluster, node: u64, dir: &Path) -> Child {
    Command::new(program("ppswctl"))
        .args(["--json", "--address", &cluster.node(node).control.to_string(), "--credentials"])
        .arg(cluster.dir().join("admin"))
        .args(["tables", "push"])
        .arg(dir)
        .args(["--reason", &format!("at node {node}")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a node says to a recipient.
fn answer(cluster: &Cluster, node: u64, recipient: &str) -> u16 {
    let mut client = Client::connect(cluster.node(node).mx).unwrap();
    client.ehlo().unwrap();
    client.command("MAIL FROM:<someone@example.org>").unwrap();
    let code = client.command(&format!("RCPT TO:<{recipient}>")).unwrap().code;
    client.quit();
    code
}

#[test]
fn a_push_runs_everywhere_and_can_be_rolled_back() {
    let cluster = Cluster::start(3_600);
    let ours = "doorkeepers@botolph.cam.ac.uk";
    assert_eq!(cluster.ctl_json(&["tables", "versions"])["active"], 1);
    let (code, text) = push(&cluster, &cluster.dir().join("config"), &["--json"]);
    let unchanged: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &unchanged["changed"]), (0, &Value::Bool(false)), "{text}");
    assert!((1..=3).all(|node| answer(&cluster, node, ours) == 550));

    let dir = copy(&cluster, "second");
    append(&dir, ALIASES, "doorkeepers: spqr3@hermes.cam.ac.uk");
    let (code, text) = push(&cluster, &dir, &["--json", "--author", "a doorkeeper"]);
    assert_eq!(code, 0, "{text}");
    let pushed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(pushed["nodes"], serde_json::json!([1, 2, 3]), "{text}");
    // The one file that changed, and the list of files.
    assert_eq!(pushed["sent"]["files"], 1, "{text}");
    assert_eq!(running(&cluster), [(Some(2), Some(2)); 3]);
    assert!((1..=3).all(|node| answer(&cluster, node, ours) == 250));
    let (code, text) = cluster.ctl(&["tables", "get", ALIASES, "DOORKEEPERS"]);
    assert_eq!((code, text.trim()), (0, "exact doorkeepers: spqr3@hermes.cam.ac.uk"));
    assert_eq!(cluster.ctl(&["tables", "get", ALIASES, "nobody"]).0, 1);
    let (code, text) = cluster.ctl(&["tables", "diff", "1", "2"]);
    assert_eq!(code, 0);
    assert!(
        text.contains("1 added, 0 removed, 0 changed") && text.contains("+ doorkeepers"),
        "{text}"
    );

    // What is wrong, or looks so, is refused with its place; everybody keeps what runs.
    let wrong = copy(&cluster, "wrong");
    let policy = fs::read_to_string(wrong.join("policy.kdl")).unwrap();
    fs::write(wrong.join("policy.kdl"), policy.replacen("require ", "requires ", 1)).unwrap();
    let (code, text) = push(&cluster, &wrong, &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("policy.kdl:") && text.contains("require"), "{text}");
    let short = copy(&cluster, "short");
    let aliases = fs::read_to_string(short.join("users/cam_aliases")).unwrap();
    let few: Vec<&str> = aliases.lines().take(5).collect();
    fs::write(short.join("users/cam_aliases"), few.join("\n") + "\n").unwrap();
    let (code, text) = push(&cluster, &short, &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("users/cam_aliases") && text.contains("--force"), "{text}");
    assert_eq!(running(&cluster), [(Some(2), Some(2)); 3]);
    let (code, text) = push(&cluster, &short, &["--force"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(running(&cluster), [(Some(3), Some(3)); 3]);

    let (code, text) = cluster.ctl(&["tables", "rollback", "1", "--reason", "too hasty"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(running(&cluster), [(Some(1), Some(4)); 3]);
    assert!((1..=3).all(|node| answer(&cluster, node, ours) == 550));
    assert_eq!(cluster.ctl(&["tables", "rollback", "17", "--reason", "no such"]).0, 1);
    let history = cluster.ctl_json(&["tables", "versions"])["history"].clone();
    assert_eq!(history[0]["kind"], "rollback");
    assert_eq!(history[0]["reason"], "too hasty");
    assert_eq!(history[2]["author"], "a doorkeeper");

    // A viewer looks, and does not touch.
    assert_eq!(cluster.ctl(&["--viewer", "tables", "status"]).0, 0);
    let rollback = ["--viewer", "tables", "rollback", "2", "--reason", "x"];
    let (code, text) = cluster.ctl(&rollback);
    assert!(code == 1 && text.contains("role"), "{code} {text}");
}

#[test]
fn users_tables_are_changed_alone() {
    let cluster = Cluster::start(3_600);
    let members = cluster.dir().join("members");
    fs::write(&members, "spqr3@hermes.cam.ac.uk\nspqr4@hermes.cam.ac.uk\nspqr6@hermes.cam.ac.uk\n")
        .unwrap();
    let set = ["lists", "set", "punting", "--members", members.to_str().unwrap()];
    let (code, text) = cluster.ctl(&set);
    assert_eq!(code, 0, "{text}");
    assert_eq!(running(&cluster), [(Some(1), Some(2)); 3]);
    let get = ["tables", "get", "lists/punting/members", "spqr6@hermes.cam.ac.uk"];
    assert_eq!(cluster.ctl(&get).0, 0);

    // A push leaves it as it is, and says so.
    let dir = copy(&cluster, "second");
    append(&dir, ALIASES, "doorkeepers: spqr3@hermes.cam.ac.uk");
    let (code, text) = push(&cluster, &dir, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("lists/punting/members stays"), "{text}");
    assert_eq!(cluster.ctl(&get).0, 0);

    // A list that loses most of its members is a mistake, as a rule.
    fs::write(&members, "spqr3@hermes.cam.ac.uk\n").unwrap();
    let (code, text) = cluster.ctl(&set);
    assert!(code == 1 && text.contains("--force"), "{code} {text}");

    assert_eq!(cluster.ctl(&["lists", "reset", "punting"]).0, 0);
    assert_eq!(cluster.ctl(&get).0, 1);
}

#[test]
fn of_two_pushes_at_a_time_one_wins() {
    let cluster = Cluster::start(3_600);
    let mut winners = 0;
    for round in 0..5 {
        let dirs = [1, 2].map(|node| {
            let dir = copy(&cluster, &format!("round-{round}-{node}"));
            append(&dir, ALIASES, &format!("doorkeepers-{node}: spqr{node}@hermes.cam.ac.uk"));
            append(&dir, ALIASES, &format!("round: spqr{}@hermes.cam.ac.uk", 1 + round));
            dir
        });
        let before = running(&cluster)[0].1.unwrap();
        let pushes = [push_at(&cluster, 1, &dirs[0]), push_at(&cluster, 2, &dirs[1])];
        let ended = pushes.map(|push| push.wait_with_output().unwrap());
        let text = |output: &std::process::Output| {
            String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
        };
        let won = ended.iter().filter(|output| output.status.success()).count();
        let after = running(&cluster);
        assert!(after.iter().all(|node| node == &after[0]), "{after:?}");
        // Both may have won, one after the other; never both for the same generation.
        assert_eq!(after[0].1.unwrap() - before, won as u64);
        for lost in ended.iter().filter(|output| !output.status.success()) {
            let text = text(lost);
            assert_eq!(lost.status.code(), Some(1), "{text}");
            assert!(text.contains("is active now") && text.contains("at node"), "{text}");
        }
        assert!(won >= 1, "{} {}", text(&ended[0]), text(&ended[1]));
        winners += won;
    }
    println!("of 10 pushes, two at a time, {winners} became active");
    assert!(winners < 10, "no two pushes met");
}

#[test]
fn nodes_that_die_in_a_push_leave_no_two_versions() {
    let mut cluster = Cluster::start(3_600);
    for round in 0..9_u64 {
        let dir = copy(&cluster, &format!("round-{round}"));
        append(&dir, ALIASES, &format!("round-{round}: spqr1@hermes.cam.ac.uk"));
        // Enough to take a moment.
        let many: String = (0..60_000).map(|n| format!("r{round}-{n}.example sink\n")).collect();
        fs::write(dir.join("tables/many"), many).unwrap();
        let control = wait_for("a control leader", PATIENCE, || {
            let leader = cluster.ctl_json(&["status"])["control"]["leader"].as_u64();
            leader.filter(|leader| *leader > 0)
        });
        let coordinator = 1 + control % 3;
        // The control leader, the node that was asked, and the third, in turn.
        let victim = [control, coordinator, 1 + coordinator % 3][(round % 3) as usize];
        let asked = push_at(&cluster, coordinator, &dir);
        thread::sleep(Duration::from_millis(40 * (1 + round / 3)));
        cluster.kill(victim);
        let ended = asked.wait_with_output().unwrap();
        cluster.restart(victim);
        cluster.wait_ready(victim);
        let after = wait_for("one version everywhere", PATIENCE, || {
            let after = running(&cluster);
            after.iter().all(|node| node == &after[0] && node.0.is_some()).then_some(after)
        });
        let key = format!("round-{round}");
        let taken = cluster.ctl(&["tables", "get", ALIASES, &key]).0 == 0;
        let outcome = if ended.status.success() { "done" } else { "not done" };
        println!(
            "round {round}: killed node {victim} (control leader {control}, asked {coordinator}): {outcome}, \
             active: {taken}, {:?}",
            after[0]
        );
        assert!(taken || !ended.status.success(), "said to be active, and is not");
        if !taken {
            let (code, text) = push(&cluster, &dir, &["--force"]);
            assert_eq!(code, 0, "{text}");
        }
        assert!(
            (1..=3)
                .all(|node| { answer(&cluster, node, &format!("{key}@botolph.cam.ac.uk")) == 250 })
        );
    }
}

/// Times of messages to one node, in ms, until told to stop.
fn clock_messages(
    address: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
) -> thread::JoinHandle<Vec<f64>> {
    thread::spawn(move || {
        let mut times = Vec::new();
        let mut client = Client::connect(address).unwrap();
        client.ehlo().unwrap();
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let content = b"Subject: clocked\r\n\r\nx\r\n";
            let reply = client.send("a@example.org", &["b@example.org"], content).unwrap();
            assert_eq!(reply.code, 250);
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
            thread::sleep(Duration::from_millis(5));
        }
        times
    })
}

fn clocked(cluster: &Cluster, work: impl FnOnce()) -> Vec<f64> {
    let stop = Arc::new(AtomicBool::new(false));
    let clocks: Vec<_> =
        (1..=3).map(|node| clock_messages(cluster.node(node).smart, Arc::clone(&stop))).collect();
    work();
    stop.store(true, Ordering::Relaxed);
    let mut times: Vec<f64> = clocks.into_iter().flat_map(|clock| clock.join().unwrap()).collect();
    times.sort_by(f64::total_cmp);
    times
}

fn figures(times: &[f64]) -> String {
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    format!(
        "n = {}, median {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    )
}

#[test]
fn a_million_entries_are_pushed_while_mail_flows() {
    let mut cluster = Cluster::start(3_600);
    let dir = copy(&cluster, "million");
    let many: String = (0..1_000_000)
        .map(|n| format!("user{n:07}: user{n:07}@store-{}.example\n", n % 10))
        .collect();
    fs::write(dir.join("tables/million"), &many).unwrap();
    let quiet = clocked(&cluster, || thread::sleep(Duration::from_secs(5)));
    println!("before: {}", figures(&quiet));
    let mut said = String::new();
    let mut took = Duration::ZERO;
    let busy = clocked(&cluster, || {
        let begun = Instant::now();
        let (code, text) = push(&cluster, &dir, &[]);
        took = begun.elapsed();
        assert_eq!(code, 0, "{text}");
        said = text;
    });
    println!("{said}while a million entries were pushed, in {took:?}: {}", figures(&busy));
    assert_eq!(running(&cluster), [(Some(2), Some(2)); 3]);
    let status = cluster.ctl_json(&["tables", "status"]);
    println!("memory: {} bytes for {} entries", status[0]["bytes"], status[0]["entries"]);

    // One domain more costs little: the other tables are shared.
    let members = cluster.dir().join("members");
    fs::write(&members, "spqr3@hermes.cam.ac.uk\nspqr4@hermes.cam.ac.uk\nspqr6@hermes.cam.ac.uk\n")
        .unwrap();
    let set = ["lists", "set", "punting", "--members", members.to_str().unwrap()];
    let begun = Instant::now();
    assert_eq!(cluster.ctl(&set).0, 0);
    println!("a list changed beside them in {:?}", begun.elapsed());

    // Who was away catches up before it is ready.
    cluster.kill(3);
    fs::write(&members, "spqr3@hermes.cam.ac.uk\nspqr4@hermes.cam.ac.uk\n").unwrap();
    assert_eq!(cluster.ctl(&[&set[..], &["--force"]].concat()).0, 0);
    cluster.restart(3);
    cluster.wait_ready(3);
    let rows = running(&cluster);
    assert!(rows.iter().all(|row| row == &rows[0]), "{rows:?}");
}
