//! What `deploy/` and the pages that go with it promise: real balancers, routers and Prometheus read the files, names are
//! the names of a scrape, and the files do their work in front of a real cluster.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ppsw_tests::{
    client::{Client, tcp},
    cluster::{Cluster, PATIENCE, http_get, http_status},
    load::Load,
    process::{Guard, program},
    sink::{Filed, ID_FIELD},
    wait_for,
};
use regex::Regex;
use serde_json::Value;

/// The most that `systemd-analyze security` may give the service.
const EXPOSURE_MAX: f64 = 2.0;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a program in the root of the repository.
fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; tests/run installs it"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Runs a program that has to find nothing wrong.
fn good(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {}", said(&output));
    said(&output)
}

/// Names of metrics in a text; those of histograms without what their series end in.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let name = Regex::new(r"\bppsw_[a-z0-9_]+").unwrap();
    let base = |name: &str| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        base.filter(|base| base.ends_with("_seconds") || base.ends_with("_bytes"))
            .unwrap_or(name)
            .to_owned()
    };
    name.find_iter(text).map(|found| base(found.as_str())).collect()
}

/// One row of `docs/metrics.md`.
struct Documented {
    kind: String,
    appears: String,
    example: String,
}

fn documented() -> BTreeMap<String, Documented> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let name = cells[0].trim_matches('`').to_owned();
        assert_eq!(cells.len(), 6, "docs/metrics.md: {line}");
        let [_, kind, _, _, appears, example] = cells.as_slice() else { unreachable!() };
        let row = Documented {
            kind: (*kind).to_owned(),
            appears: (*appears).to_owned(),
            example: example.trim_matches('`').to_owned(),
        };
        (name, row)
    };
    // An empty cell has one blank between its bars.
    let page = text("docs/metrics.md").replace("| | ", "|  | ");
    page.lines().filter(|line| line.starts_with("| `ppsw_")).map(row).collect()
}

/// The alerts by their names, with the text of each.
fn alerts() -> BTreeMap<String, String> {
    let rules = text("deploy/prometheus/rules.yml");
    let blocks = rules.split("- alert: ").skip(1);
    blocks.map(|block| (block.lines().next().unwrap().to_owned(), block.to_owned())).collect()
}

#[test]
fn balancers_and_routers_read_their_files() {
    // -dW: a warning is an error.
    for file in ["deploy/haproxy/haproxy.cfg", "deploy/container/haproxy.cfg"] {
        good("haproxy", &["-c", "-dW", "-f", file]);
    }
    good("bird", &["-p", "-c", "deploy/anycast/bird.conf"]);
    good("keepalived", &["-t", "-f", "deploy/ipvs/keepalived.conf"]);
    for script in [
        "deploy/anycast/ppsw-anycast",
        "deploy/systemd/ppswd-drain",
        "deploy/container/ppswd-entry",
        "deploy/debian/postinst",
        "deploy/debian/prerm",
        "deploy/debian/postrm",
    ] {
        good("sh", &["-n", script]);
    }
    let parse = "import sys, yaml\nfor f in sys.argv[1:]: list(yaml.safe_load_all(open(f)))";
    good(
        "/usr/bin/python3",
        &[
            "-c",
            parse,
            "deploy/container/compose.yaml",
            "deploy/container/prometheus.yml",
            "deploy/kubernetes/10-namespace.yaml",
            "deploy/kubernetes/20-settings.yaml",
            "deploy/kubernetes/30-nodes.yaml",
        ],
    );
}

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
    for path in sources {
        assert!(root().join(&path).exists(), "node/Cargo.toml: {path} does not exist");
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

#[test]
fn every_alert_is_tested_and_has_an_entry_in_the_runbook() {
    println!("{}", good("promtool", &["check", "rules", "deploy/prometheus/rules.yml"]));
    let files = ["deploy/prometheus/rules_test.yml", "deploy/prometheus/rules_slow_test.yml"];
    println!("{}", good("promtool", &["test", "rules", files[0], files[1]]));

    let alerts = alerts();
    let tests = files.map(text).concat();
    let runbook = text("docs/runbook.md");
    let entries: BTreeSet<&str> =
        runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    for (alert, block) in &alerts {
        assert!(entries.contains(alert.as_str()), "docs/runbook.md has no entry {alert}");
        let link = format!("/docs/runbook.md#{}\n", alert.to_lowercase());
        assert!(block.contains(&link), "{alert} has no runbook_url with {link}");
        let entry = runbook.split(&format!("### {alert}\n")).nth(1).unwrap();
        let entry = entry.split("\n#").next().unwrap();
        for part in ["**Means**", "**Look**", "**Do**", "**Over**"] {
            assert!(entry.contains(part), "{alert} has no {part} in the runbook");
        }
        let mine: Vec<&str> = tests
            .split("\n  - name: ")
            .filter(|test| test.starts_with(&format!("\"{alert}: ")))
            .collect();
        assert!(!mine.is_empty(), "{alert} is not tested");
        for test in mine {
            assert!(test.contains("exp_samples: []"), "{alert}: no silence is tested");
            assert!(test.contains("value: 1 }"), "{alert}: it never fires in its test");
        }
    }
    for entry in entries {
        assert!(alerts.contains_key(entry), "{entry} of docs/runbook.md is no alert");
    }
    // Links between entries.
    let link = Regex::new(r"\]\(#([a-z]+)\)").unwrap();
    for found in link.captures_iter(&runbook) {
        let known = alerts.keys().any(|alert| alert.to_lowercase() == found[1]);
        assert!(known, "docs/runbook.md: #{} leads nowhere", &found[1]);
    }
}

/// What a page shows as a command: verbs and options.
fn commands(page: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let code = Regex::new("`ppswctl ([^`]+)`").unwrap();
    let text = Regex::new("\"[^\"]*\"|'[^']*'").unwrap();
    let verb = Regex::new("^[a-z][a-z-]*$").unwrap();
    let command = |line: &str| {
        let line = text.replace_all(line, "X").into_owned();
        let words: Vec<&str> = line.split([' ', '=']).collect();
        let options = words.iter().filter(|word| word.starts_with("--")).map(|&o| o.to_owned());
        let verbs = words.iter().skip_while(|word| ["--json", "--viewer"].contains(word));
        let verbs = verbs.take_while(|word| verb.is_match(word)).take(2).map(|&v| v.to_owned());
        (verbs.collect(), options.collect())
    };
    code.captures_iter(page).map(|found| command(&found[1])).collect()
}

#[test]
fn commands_of_the_pages_exist() {
    let ppswctl = program("ppswctl").display().to_string();
    let mut helps: HashMap<Vec<String>, Option<String>> = HashMap::new();
    let mut help = |verbs: &[String]| {
        let known = helps.entry(verbs.to_vec()).or_insert_with(|| {
            let words: Vec<&str> = verbs.iter().map(String::as_str).chain(["--help"]).collect();
            let output = run(&ppswctl, &words);
            output.status.success().then(|| said(&output))
        });
        known.clone()
    };
    let mut checked = 0;
    for page in ["operations", "runbook", "security", "sizing", "queue", "tables", "metrics"] {
        for (verbs, options) in commands(&text(&format!("docs/{page}.md"))) {
            // The second word may be an argument.
            let known = help(&verbs).or_else(|| help(verbs.get(..1)?));
            let known = known.unwrap_or_else(|| panic!("docs/{page}.md: ppswctl {verbs:?}"));
            for option in &options {
                let there = known.contains(option.as_str());
                assert!(there, "docs/{page}.md: ppswctl {verbs:?} has no {option}");
            }
            checked += 1;
        }
    }
    println!("{checked} commands");
    assert!(checked > 80, "{checked} commands");
}

#[test]
fn rules_dashboard_and_page_name_what_there_is() {
    let documented = documented();
    let known: BTreeSet<String> = documented.keys().cloned().collect();
    let rules = metrics_in(&text("deploy/prometheus/rules.yml"));
    assert!(rules.is_subset(&known), "rules: {:?}", rules.difference(&known));

    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/ppswitch.json")).unwrap();
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let names = metrics_in(query);
            let others = ["up{", "ALERTS{"].iter().any(|other| query.contains(other));
            assert!(others || !names.is_empty(), "{query}");
            assert!(names.is_subset(&known), "{}: {query}", panel["title"]);
            queries += 1;
        }
    }
    assert!(queries > 30, "{queries} queries");

    for (name, row) in &documented {
        assert!(row.example.starts_with(name.as_str()), "example of {name}: {}", row.example);
        assert_eq!(row.kind == "counter", name.ends_with("_total"), "{name} is a {}", row.kind);
    }
}

/// Things that make figures: mail that is taken, refused and sent, a wrong certificate.
fn use_it(cluster: &Cluster) {
    for node in &cluster.file.nodes {
        for recipient in ["b@example.org", "spqr1@hermes.cam.ac.uk"] {
            let mut client = Client::connect(node.smart).unwrap();
            client.ehlo().unwrap();
            let content = format!("{ID_FIELD}: figures\r\n\r\nx\r\n");
            let reply = client.send("a@example.org", &[recipient], content.as_bytes()).unwrap();
            assert_eq!(reply.code, 250, "{reply:?}");
            client.quit();
        }
        let mut stranger = Client::connect_from([127, 200, 1, 1].into(), node.mx).unwrap();
        stranger.ehlo().unwrap();
        let refused = stranger.send("a@example.org", &["b@example.org"], b"x\r\n").unwrap();
        assert_eq!(refused.code, 550, "{refused:?}");
    }
    let (code, text) = cluster.ctl(&["--viewer", "drain", "1"]);
    assert_eq!(code, 1, "{text}");
}

#[test]
fn a_scrape_is_what_the_page_says() {
    let cluster = Cluster::start(3_400);
    use_it(&cluster);
    let documented = documented();
    let kinds = Regex::new(r"(?m)^# TYPE (ppsw_\w+) (\w+)$").unwrap();
    let scrape = || -> Vec<String> {
        let nodes = cluster.file.nodes.iter();
        nodes.map(|node| http_get(node.http, "/metrics").unwrap().1).collect()
    };
    let always: BTreeSet<&String> = documented
        .iter()
        .filter(|(_, row)| ["always", "leader"].contains(&row.appears.as_str()))
        .map(|(name, _)| name)
        .collect();
    let scrapes = wait_for("all metrics that are always there", PATIENCE, || {
        let scrapes = scrape();
        let all = scrapes.concat();
        always.iter().all(|name| all.contains(&format!("# TYPE {name} "))).then_some(scrapes)
    });
    let mut seen = BTreeSet::new();
    for (node, scrape) in scrapes.iter().enumerate() {
        for found in kinds.captures_iter(scrape) {
            let row = documented.get(&found[1]);
            let row = row.unwrap_or_else(|| panic!("docs/metrics.md does not have {}", &found[1]));
            assert_eq!(row.kind, found[2], "{}", &found[1]);
            seen.insert(found[1].to_owned());
        }
        for name in documented.iter().filter(|(_, row)| row.appears == "always").map(|row| row.0) {
            let there = scrape.contains(&format!("# TYPE {name} "));
            assert!(there, "{name} should always be there, and is not at node {}", node + 1);
        }
        assert_eq!(
            metrics_in(scrape).difference(&documented.keys().cloned().collect()).next(),
            None
        );
    }
    println!("{} of {} documented metrics in the scrape", seen.len(), documented.len());
    for (name, row) in &documented {
        assert!(["always", "leader", "first"].contains(&row.appears.as_str()), "{name}");
    }
    // What these few messages must have brought about.
    for name in [
        "ppsw_smtp_connections_total",
        "ppsw_smtp_commands_total",
        "ppsw_smtp_rejects_total",
        "ppsw_messages_accepted_total",
        "ppsw_control_refused_requests_total",
    ] {
        assert!(seen.contains(name), "{name}");
    }

    for scrape in &scrapes {
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        promtool.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        assert!(output.status.success(), "promtool check metrics: {}", said(&output));
    }
}

/// The shipped configuration of HAProxy with the addresses of a dev cluster.
fn haproxy_for(cluster: &Cluster, dir: &Path) -> String {
    let service = &cluster.file.service;
    let mut config = text("deploy/haproxy/haproxy.cfg")
        .replace("192.0.2.10:25", &service.mx.to_string())
        .replace("192.0.2.11:25", &service.smart.to_string())
        .replace("192.0.2.12:587", &service.submission.to_string())
        .replace("check port 2580", &format!("check port {}", cluster.node(1).http.port()))
        .replace("agent-port 2570", &format!("agent-port {}", cluster.node(1).agent.port()))
        // Who may say a header in dev.
        .replace("send-proxy-v2\n", "send-proxy-v2 source 127.0.0.1\n")
        .replace("/run/haproxy/admin.sock", &dir.join("admin.sock").display().to_string())
        .replace("log /dev/log local0", "log stdout format raw local0");
    for node in &cluster.file.nodes {
        config = config
            .replace(&format!("10.0.0.{}:3525", node.id), &node.proxy.mx.to_string())
            .replace(&format!("10.0.0.{}:3587", node.id), &node.proxy.submission.to_string());
    }
    let mut lines: Vec<&str> = Vec::new();
    let mut kept = true;
    for line in config.lines() {
        if !line.starts_with([' ', '#']) && !line.is_empty() {
            // A dev cluster has no listener of this kind behind a balancer, and nobody asks for the page.
            kept =
                !["frontend submissions", "backend submissions", "frontend stats"].contains(&line);
        }
        if kept && !line.starts_with("    user ") && !line.starts_with("    group ") {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

/// The first line that a new connection hears; empty if it is refused or closed at once.
fn greeting(from: [u8; 4], to: SocketAddr) -> String {
    let Ok(mut stream) = tcp(IpAddr::from(from), to) else { return "refused".to_owned() };
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let (mut heard, mut piece) = (Vec::new(), [0; 512]);
    while !heard.contains(&b'\n') {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => heard.extend_from_slice(&piece[..length]),
            Err(error) => return error.to_string(),
        }
    }
    let _ = stream.write_all(b"QUIT\r\n");
    String::from_utf8_lossy(&heard).trim_end().chars().take(9).collect()
}

#[test]
fn haproxy_leads_mail_around_a_node_that_drains_and_restarts() {
    let mut cluster = Cluster::start(3_500);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("haproxy.cfg");
    std::fs::write(&config, haproxy_for(&cluster, dir.path())).unwrap();
    let log = dir.path().join("haproxy.log");
    let mut balancer =
        Guard::spawn(Command::new("haproxy").arg("-db").arg("-f").arg(&config), &log);
    let service = cluster.file.service.clone();
    wait_for("a greeting through HAProxy", PATIENCE, || {
        assert!(balancer.alive(), "{}", std::fs::read_to_string(&log).unwrap());
        greeting([127, 0, 0, 1], service.smart).starts_with("220 ").then_some(())
    });

    // The client's address is the true one, for rules and logs.
    let mut stranger = Client::connect_from([127, 200, 1, 1].into(), service.mx).unwrap();
    stranger.ehlo().unwrap();
    let refused = stranger.send("a@example.org", &["b@example.org"], b"x\r\n").unwrap();
    assert!(refused.text.contains("Relaying is not permitted"), "{refused:?}");
    let mut friend = Client::connect_from([127, 0, 0, 7].into(), service.smart).unwrap();
    friend.ehlo().unwrap();
    let content = format!("{ID_FIELD}: friend\r\n\r\nx\r\n");
    let taken = friend.send("a@example.org", &["b@example.org"], content.as_bytes()).unwrap();
    assert_eq!(taken.code, 250, "{taken:?}");
    friend.quit();
    wait_for("the client's address in mainlog", PATIENCE, || {
        (1..=3)
            .any(|id| {
                let log = std::fs::read_to_string(cluster.node_dir(id).join("log/mainlog"));
                log.is_ok_and(|log| {
                    log.lines().any(|l| l.contains("<= a@") && l.contains("[127.0.0.7]"))
                })
            })
            .then_some(())
    });

    for id in 1..=3 {
        let path = cluster.node_dir(id).join("ppswd.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("drain_notice = \"0s\"", "drain_notice = \"3s\""))
            .unwrap();
        cluster.kill(id);
        cluster.restart(id);
        cluster.wait_ready(id);
    }
    let load = Load::start(
        &[service.smart],
        4,
        Duration::from_millis(30),
        &["one@example.org", "spqr1@hermes.cam.ac.uk"],
    );
    let greetings: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let prober = std::thread::spawn({
        let (greetings, stop, smart) = (Arc::clone(&greetings), Arc::clone(&stop), service.smart);
        move || {
            while !stop.load(Ordering::Relaxed) {
                *greetings.lock().unwrap().entry(greeting([127, 0, 0, 1], smart)).or_default() += 1;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    });
    let more = |count: usize| {
        let wanted = load.taken() + count;
        wait_for(&format!("{wanted} messages"), PATIENCE, || {
            (load.taken() >= wanted).then_some(())
        });
    };
    more(50);
    for id in 1..=3 {
        let (code, text) = cluster.ctl(&["drain", &id.to_string()]);
        assert_eq!(code, 0, "{text}");
        // Nobody hears 421: the node has told the balancer that it goes before it turned anybody away.
        wait_for("the balancer to see the drain", PATIENCE, || {
            let name = format!("Server smtp/ppsw-{id} ");
            let log = std::fs::read_to_string(&log).unwrap();
            let last = log.lines().rfind(|line| line.contains(&name));
            let gone = ["enters drain state", "remains in forced drain mode", "DOWN"];
            last.is_some_and(|line| gone.iter().any(|words| line.contains(words))).then_some(())
        });
        more(50);
        cluster.kill(id);
        more(50);
        cluster.restart(id);
        wait_for("the node to take its place", PATIENCE, || {
            (cluster.ctl(&["undrain", &id.to_string()]).0 == 0).then_some(())
        });
        cluster.wait_ready(id);
        more(50);
    }
    stop.store(true, Ordering::Relaxed);
    prober.join().unwrap();
    let tally = load.stop();
    let greetings = greetings.lock().unwrap().clone();
    println!(
        "{} taken, {} in doubt, refused: {:?}; greetings: {greetings:?}",
        tally.taken.len(),
        tally.in_doubt.len(),
        tally.refused
    );
    assert!(greetings.keys().all(|heard| heard.starts_with("220 ")), "{greetings:?}");
    assert!(tally.refused.is_empty(), "{:?}", tally.refused);
    let mut maildir = cluster.maildir();
    let mut arrived = BTreeMap::new();
    wait_for("all mail that was taken", PATIENCE, || {
        arrived.extend(maildir.messages().filter_map(|filed| Some((Filed::id(filed)?, ()))));
        tally.taken.keys().all(|id| arrived.contains_key(id)).then_some(())
    });
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

/// Network namespaces of a test; they and what runs in them end with it.
struct Namespaces(Vec<&'static str>);

fn ip(arguments: &str) {
    good("ip", &arguments.split(' ').collect::<Vec<_>>());
}

fn inside(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]).current_dir(root());
    command
}

impl Namespaces {
    fn make(names: &[&'static str]) -> Self {
        let made = Self(names.to_vec());
        made.remove();
        for name in names {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        made
    }

    fn remove(&self) {
        for name in &self.0 {
            run("ip", &["netns", "del", name]);
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Answers HTTP on `address` as `/readyz` of a node does.
fn repeat_readiness(address: SocketAddr, node: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let answer = |stream: &mut TcpStream| -> std::io::Result<()> {
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                let mut request = [0; 1024];
                let _ = stream.read(&mut request)?;
                let code = http_status(node, "/readyz").unwrap_or(503);
                write!(
                    stream,
                    "HTTP/1.1 {code} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
            };
            let _ = answer(&mut stream);
        }
    });
}

#[test]
fn an_announcement_follows_readiness() {
    let cluster = Cluster::start(3_300);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let _namespaces = Namespaces::make(&["ppswdeploy-node", "ppswdeploy-router"]);

    // The node's machine and its router; and a way from there to the real node's /readyz.
    ip("-n ppswdeploy-node link add up0 type veth peer name down0 netns ppswdeploy-router");
    ip("-n ppswdeploy-node address add 10.0.0.1/24 dev up0");
    ip("-n ppswdeploy-router address add 10.0.0.251/24 dev down0");
    ip("-n ppswdeploy-node link set up0 up");
    ip("-n ppswdeploy-router link set down0 up");
    run("ip", &["link", "del", "ppswdeploy0"]);
    ip("link add ppswdeploy0 type veth peer name host0 netns ppswdeploy-node");
    ip("address add 10.231.7.1/30 dev ppswdeploy0");
    ip("link set ppswdeploy0 up");
    ip("-n ppswdeploy-node address add 10.231.7.2/30 dev host0");
    ip("-n ppswdeploy-node link set host0 up");
    // Some kernels have no dummy interfaces; any that is there will do.
    let dummy = ["-n", "ppswdeploy-node", "link", "add", "ppsw0", "type", "dummy"];
    if !run("ip", &dummy).status.success() {
        ip("-n ppswdeploy-node link add ppsw0 type veth peer name ppsw0x");
    }
    let readyz: SocketAddr = "10.231.7.1:2580".parse().unwrap();
    repeat_readiness(readyz, cluster.node(1).http);

    let router = "router id 10.0.0.251;\nprotocol device {}\nprotocol bfd { interface \"*\" { \
                  min rx interval 300 ms; min tx interval 300 ms; multiplier 3; }; }\n\
                  protocol bgp node { local as 65000; neighbor 10.0.0.1 as 65010; hold time 9; bfd on; \
                  connect delay time 1; ipv4 { import all; export none; }; ipv6 { import all; export none; }; }\n";
    std::fs::write(at("router.conf"), router).unwrap();
    let settings =
        text("deploy/anycast/anycast.conf").replace("10.0.0.1:2580", &readyz.to_string());
    std::fs::write(at("anycast.conf"), settings).unwrap();
    let bird = |namespace: &str, config: &Path, socket: &str, log: &str| {
        let mut command = inside(namespace, "bird");
        command.arg("-f").arg("-c").arg(config).arg("-s").arg(at(socket));
        Guard::spawn(&mut command, &at(log))
    };
    let shipped = root().join("deploy/anycast/bird.conf");
    let _node = bird("ppswdeploy-node", &shipped, "node.ctl", "node.log");
    let _router = bird("ppswdeploy-router", &at("router.conf"), "router.ctl", "router.log");
    let mut script = inside("ppswdeploy-node", "deploy/anycast/ppsw-anycast");
    let mut script = Guard::spawn(script.arg(at("anycast.conf")), &at("script.log"));

    let socket = at("router.ctl").display().to_string();
    let routes = || {
        let table = said(&run("birdc", &["-s", &socket, "show", "route"]));
        table.lines().filter(|line| line.starts_with("192.0.2.1")).count()
    };
    let wait_routes = |what: &str, count: usize| {
        wait_for(what, PATIENCE, || (routes() == count).then_some(()));
    };
    wait_routes("the addresses of a node that is ready", 3);
    assert_eq!(cluster.ctl(&["drain", "1"]).0, 0);
    wait_routes("no address of a drained node", 0);
    assert_eq!(cluster.ctl(&["undrain", "1"]).0, 0);
    wait_routes("the addresses of the node again", 3);
    cluster.stop_node(1);
    wait_routes("no address of a node that hangs", 0);
    cluster.continue_node(1);
    wait_routes("the addresses of a node that goes on", 3);
    script.stop();
    wait_routes("no address when the script has ended", 0);
    println!("{}", std::fs::read_to_string(at("script.log")).unwrap());
}
