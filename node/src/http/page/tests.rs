use ppsw_proto::control::{
    AgeSummary, DomainSummary, Drain, DrainProgress, GroupStatus, Member, NodeReport, NodeStatus,
    OperateRequest, QueueSummary, Shed, Shedding, StandingRule, StatusReply, TablesReport,
    drain_progress::Phase,
};
use ppsw_spool::env::UnixMs;

use super::*;
use crate::limits::{PAGE_DESTINATIONS_MAX, PAGE_NODES_MAX};

const NOW: u64 = 1_795_944_269_000;
const HOUR: u64 = 3_600_000;

fn node(id: u64, not_ready: &[&str]) -> NodeStatus {
    NodeStatus {
        member: Some(Member { id, name: format!("relay{id}"), ..Member::default() }),
        state: "up".to_owned(),
        report: Some(NodeReport {
            node: id,
            version: "0.1.0".to_owned(),
            not_ready: not_ready.iter().map(|reason| (*reason).to_owned()).collect(),
            started_ms: NOW - 2 * HOUR,
            tables: Some(TablesReport { version: 4, generation: 7, ..TablesReport::default() }),
            ..NodeReport::default()
        }),
        ..NodeStatus::default()
    }
}

fn group(id: u32, leader: u64) -> GroupStatus {
    GroupStatus { id, leader, voters: vec![1, 2, 3], term: 12, ..GroupStatus::default() }
}

fn domain(name: &str, recipients: u64) -> DomainSummary {
    DomainSummary { domain: name.to_owned(), recipients, deferred: 1, oldest_ms: NOW - 90 * 60_000 }
}

fn view() -> ClusterView {
    ClusterView {
        taken: UnixMs(NOW),
        status: StatusReply {
            cluster: "cam".to_owned(),
            asked: 2,
            nodes: vec![node(1, &[]), node(2, &[]), node(3, &[])],
            partitions: vec![group(1, 1), group(2, 2), group(3, 3)],
            control: Some(group(0, 1)),
            ..StatusReply::default()
        },
        queue: QueueSummary {
            messages: 1_131,
            ages: vec![
                AgeSummary { from_ms: 0, messages: 131 },
                AgeSummary { from_ms: HOUR, messages: 1_000 },
            ],
            ..QueueSummary::default()
        },
        standing: Vec::new(),
        version: 4,
        generation: 7,
    }
}

#[test]
fn a_cluster_without_trouble_says_so() {
    let page = render(&[], &view());
    assert!(page.contains(r#"class="verdict good"><strong>all well</strong></div>"#), "{page}");
    assert!(page.contains("node 2 (relay2)") && page.contains("2026-11-29 09:24:29 UTC"), "{page}");
    assert!(page.contains("partition 1; control group"), "{page}");
    assert!(page.contains("version 4, generation 7") && !page.contains("behind"), "{page}");
    assert!(page.contains("1\u{202f}131") && page.contains("2\u{a0}h\u{a0}00\u{a0}min"), "{page}");
    assert!(page.contains("less than 1 h") && page.contains("1 h and more"), "{page}");
    assert!(page.contains(r#"<rect width="131" "#), "{page}");
    assert!(page.contains("Node 2 takes new connections."), "{page}");
    // Nothing that its policy would not let it have.
    assert!(!page.contains("<script") && !page.contains("style=") && !page.contains("src="));
}

#[test]
fn what_is_wrong_comes_first_and_the_worst_before_the_rest() {
    let mut view = view();
    view.status.nodes[0].drain =
        Some(Drain { node: 1, since_ms: NOW - 60_000, by: "admin".to_owned() });
    view.status.nodes[0].state = "drained".to_owned();
    let report = view.status.nodes[0].report.as_mut().unwrap();
    report.drain = Some(DrainProgress { phase: Phase::Safe.into(), ..DrainProgress::default() });
    report.shedding = Some(Shedding { signal: "queue".to_owned(), percent: 40 });
    view.status.nodes[1].report.as_mut().unwrap().tables.as_mut().unwrap().generation = 6;
    view.status.nodes[2].state = "down".to_owned();
    view.status.nodes[2].report = None;
    view.queue.silent = vec![2, 3];
    view.status.partitions[2].leader = 0;
    view.standing = vec![
        StandingRule {
            shed: Some(Shed { personality: "mx".to_owned(), percent: 50 }),
            until_ms: NOW + HOUR,
            reason: "bo@secret.example asked".to_owned(),
            ..StandingRule::default()
        },
        StandingRule {
            destination: "slow.example".to_owned(),
            until_ms: NOW + HOUR,
            ..StandingRule::default()
        },
        StandingRule {
            order: Some(OperateRequest { to: "bo@secret.example".to_owned(), ..<_>::default() }),
            ..StandingRule::default()
        },
    ];
    let page = render(&["this node is drained".to_owned()], &view);
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is not in {page}"));
    assert!(at("partition 3 has no leader") < at("node 3 is silent"));
    assert!(at("node 3 is silent") < at("node 1 is drained"));
    assert!(at("node 1 is drained") < at("node 2 did not say its queue"));
    assert!(!page.contains("node 3 did not say"), "it is silent altogether");
    at(r#"verdict bad"><strong>trouble"#);
    at("asked to drain 1\u{a0}min ago");
    at("safe to stop");
    at("turns away 40 % of strangers' sessions (queue)");
    at("behind: 4 is active, generation 7");
    at("50 % of the sessions of <bdi>mx</bdi>");
    at("deliveries to <bdi>slow.example</bdi>");
    at("1 standing rule for messages");
    at("takes no new connections: this node is drained.");
    assert!(!page.contains("secret.example"), "no reason and no address is shown: {page}");
}

#[test]
fn names_from_outside_are_text_and_lists_are_bounded() {
    let mut view = view();
    view.queue.domains = vec![domain("<script>alert(1)</script>\u{202e}.example", 900)];
    for number in 0..30 {
        view.queue.domains.push(domain(&format!("d{number}.example"), 10));
    }
    view.queue.domains.push(domain("*", 5));
    for id in 4..100 {
        view.status.nodes.push(node(id, &["<b>"; 20]));
        view.status.partitions.push(group(u32::try_from(id).unwrap(), 1));
    }
    let page = render(&[], &view);
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;\\u{202e}.example"), "{page}");
    assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
    let rows = page.matches("<td class=\"name\">").count();
    assert_eq!(rows, PAGE_DESTINATIONS_MAX);
    // 31 domains, of which 20 are shown, and what was counted as `*`.
    assert!(page.contains("and 115 recipients in 11 more domains and those"), "{page}");
    assert_eq!(page.matches("<tr id=\"node-").count(), PAGE_NODES_MAX);
    assert!(page.contains("and 49 more") && page.contains("and 12 more"), "{page}");
    assert!(page.len() < 200_000, "{} bytes", page.len());
}
