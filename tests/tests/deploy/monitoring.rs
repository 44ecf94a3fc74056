//! Alerts, dashboard, and the page of metrics: their names are the names of a scrape.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    process::{Command, Stdio},
};

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE, http_get},
    sink::ID_FIELD,
    wait_for,
};
use regex::Regex;
use serde_json::Value;

use super::{good, said, text};

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
