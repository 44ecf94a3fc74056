//! The status page in a real browser, over a real cluster: what it shows, that it fits on a phone, and that names from
//! outside stay text. Pictures are left in `target/status-page/`.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ppsw_tests::{
    browser::Browser,
    client::Client,
    cluster::{Cluster, PATIENCE, http_get},
    sink::ID_FIELD,
    wait_for,
};

/// Suspended by an operator who was given the name by somebody else.
const HOSTILE: &str = "<img src=x onerror=alert(1)>";

/// Screens, in CSS pixels.
const PHONE: (u32, u32) = (390, 844);
const DESK: (u32, u32) = (1200, 900);

fn pictures() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/status-page");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn done(cluster: &Cluster, arguments: &[&str]) {
    let (code, text) = cluster.ctl(arguments);
    assert_eq!(code, 0, "{arguments:?}: {text}");
}

/// Mail that stays in the queue: deliveries to its domains are suspended.
fn fill(cluster: &Cluster) {
    for destination in ["example.org", "hermes.cam.ac.uk", HOSTILE] {
        done(cluster, &["suspend", destination, "--for", "1h", "--reason", "test"]);
    }
    done(cluster, &["shed", "set", "mx", "25%", "--for", "30m", "--reason", "test"]);
    let recipients = ["somebody@example.org", "somebody@example.org", "spqr1@hermes.cam.ac.uk"];
    for (number, recipient) in recipients.into_iter().enumerate() {
        let mut client = Client::connect(cluster.node(1).smart).unwrap();
        client.ehlo().unwrap();
        let content = format!("{ID_FIELD}: page-{number}\r\n\r\nx\r\n");
        let reply = client.send("a@example.org", &[recipient], content.as_bytes()).unwrap();
        assert_eq!(reply.code, 250, "{reply:?}");
        client.quit();
    }
}

/// Texts of the elements of a selector, as the browser shows them.
fn texts(browser: &Browser, selector: &str) -> Vec<String> {
    let script = format!(
        "return Array.from(document.querySelectorAll({selector:?}), e => e.innerText.replace(/\\s+/g, ' ').trim())"
    );
    let texts = browser.eval(&script);
    texts.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// Loads the page until a condition holds.
fn open_until(browser: &Browser, url: &str, what: &str, met: impl Fn(&Browser) -> bool) {
    wait_for(what, PATIENCE, || {
        browser.open(url);
        met(browser).then_some(())
    });
}

/// A picture that is not blank: more than twice an empty page of the same size.
fn picture(browser: &Browser, name: &str, url: &str) {
    browser.open("about:blank");
    let blank = browser.picture().len();
    browser.open(url);
    let picture = browser.picture();
    std::fs::write(pictures().join(name), &picture).unwrap();
    println!("{name}: {} bytes, blank {blank}", picture.len());
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 2 * blank.max(4_000), "{name}");
}

#[test]
fn a_browser_shows_the_cluster_on_a_phone_and_on_a_desk() {
    let cluster = Cluster::start(3_900);
    fill(&cluster);
    done(&cluster, &["drain", "2"]);
    let url = format!("http://{}/", cluster.node(1).http);
    let browser = Browser::start();
    browser.resize(PHONE, true);
    open_until(&browser, &url, "the drain and the queue on the page", |browser| {
        let drained = texts(browser, "#node-2 .chip");
        drained == ["drained"] && texts(browser, "#messages") == ["3"]
    });

    let nodes = texts(&browser, "#nodes tbody tr");
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    assert!(nodes[1].contains("safe to stop") && nodes[1].contains("nothing"), "{nodes:?}");
    let ready = texts(&browser, "#node-1 .chip, #node-3 .chip");
    assert_eq!(ready, ["ready", "ready"]);
    let groups = texts(&browser, "#groups tbody tr");
    assert_eq!(groups.len(), 4, "{groups:?}");
    for (partition, leader) in cluster.leaders() {
        let row = texts(&browser, &format!("#group-{partition}")).concat();
        assert!(row.contains(&format!("partition {partition} node {leader} ")), "{row}");
    }
    let destinations = texts(&browser, "#destinations tbody td");
    assert_eq!(destinations[..2], ["example.org", "2"], "{destinations:?}");
    assert_eq!(destinations[4..6], ["hermes.cam.ac.uk", "1"], "{destinations:?}");
    let ages = texts(&browser, "#ages tbody tr");
    assert!(ages[0].starts_with("less than 10 min 3"), "{ages:?}");
    assert!(texts(&browser, "#verdict").concat().contains("node 2 is drained"));

    let rules = texts(&browser, "#rules li");
    assert!(rules.iter().any(|rule| rule.contains("25 % of the sessions of mx")), "{rules:?}");
    let hostile = format!("deliveries to {HOSTILE} ");
    assert!(rules.iter().any(|rule| rule.contains(&hostile)), "{rules:?}");
    assert_eq!(browser.eval("return document.querySelectorAll('img, script').length"), 0);
    let text = texts(&browser, "body").concat();
    let addresses = text.contains("somebody") || text.contains("spqr1") || text.contains('@');
    assert!(!addresses, "an address of a person is shown: {text}");

    let width = "return [document.documentElement.scrollWidth, window.innerWidth]";
    assert_eq!(browser.eval(width), serde_json::json!([PHONE.0, PHONE.0]), "wider than the phone");
    picture(&browser, "phone.png", &url);
    browser.prefer_dark(true);
    browser.open(&url);
    let paper = "return getComputedStyle(document.body).backgroundColor";
    let dark = browser.eval(paper);
    picture(&browser, "phone-dark.png", &url);
    browser.resize(DESK, false);
    picture(&browser, "desk-dark.png", &url);
    browser.prefer_dark(false);
    browser.open(&url);
    assert_ne!(browser.eval(paper), dark, "the style of the page, or its dark half, is not used");
    // A desk's browser takes some of it for the bar at its side.
    let wide = browser.eval(width)[0].as_u64().unwrap();
    assert!(wide <= DESK.0.into(), "{wide} is wider than the desk");
    picture(&browser, "desk.png", &url);
}

#[test]
fn a_node_that_hangs_is_silent_and_the_page_comes() {
    let cluster = Cluster::start(3_900);
    let address = cluster.node(1).http;
    let page = || {
        let start = Instant::now();
        let (status, body) = http_get(address, "/").expect("the page, within 5 s");
        assert_eq!(status, 200);
        (body, start.elapsed())
    };
    assert!(page().0.contains("all well"), "{}", page().0);
    cluster.stop_node(3);
    let slowest = wait_for("node 3 to be silent on the page", PATIENCE, || {
        let (body, took) = page();
        body.contains("node 3 is silent").then_some(took)
    });
    assert!(slowest < Duration::from_secs(4), "{slowest:?}");
    // All who ask meanwhile see the same view.
    let taken = |body: &str| body.split_once("saw it at ").unwrap().1[..23].to_owned();
    let start = Instant::now();
    let many: Vec<String> = (0..50).map(|_| taken(&page().0)).collect();
    let views = many.iter().collect::<std::collections::BTreeSet<_>>().len();
    let most = start.elapsed().as_secs() / 3 + 2;
    assert!(views as u64 <= most, "{views} views in {:?}", start.elapsed());
    cluster.continue_node(3);
    wait_for("node 3 on the page again", PATIENCE, || page().0.contains("all well").then_some(()));
}
