//! A drain under load hands everything over; nothing is lost or late.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use ppsw_tests::{
    cluster::Cluster,
    load::Load,
    sink::{Filed, Maildir},
    wait_for,
};

/// The shortest retry interval of the paper's rules is 15 minutes; this is far below it and far above a handover.
const LATE: Duration = Duration::from_secs(20);

fn arrivals(maildir: &mut Maildir) -> HashMap<String, SystemTime> {
    maildir.messages().filter_map(|filed| Some((Filed::id(filed)?, filed.filed))).collect()
}

#[test]
fn a_drained_node_leads_nothing_and_no_message_waits() {
    let cluster = Cluster::start(3_000);
    let addresses: Vec<_> = cluster.file.nodes.iter().map(|node| node.smart).collect();
    let load = Load::start(
        &addresses,
        3,
        Duration::from_millis(30),
        &["one@example.org", "spqr1@hermes.cam.ac.uk"],
    );
    let taken = |count: usize| {
        wait_for(&format!("{count} messages"), Duration::from_secs(120), || {
            (load.taken() >= count).then_some(())
        });
    };
    taken(200);

    let start = Instant::now();
    let (code, text) = cluster.ctl(&["drain", "2"]);
    println!("ppswctl drain 2 took {:?}:\n{text}", start.elapsed());
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("safe to stop"), "{text}");
    let leaders = cluster.leaders();
    assert!(leaders.iter().all(|(_, leader)| *leader != 2 && *leader != 0), "{leaders:?}");
    assert_eq!(ppsw_tests::cluster::http_status(cluster.node(2).http, "/readyz"), Some(503));
    taken(load.taken() + 200);

    let (code, text) = cluster.ctl(&["undrain", "2"]);
    assert_eq!(code, 0, "{text}");
    wait_for("node 2 to lead its partition again", Duration::from_secs(60), || {
        cluster.leaders().contains(&(2, 2)).then_some(())
    });
    cluster.wait_ready(2);
    taken(load.taken() + 100);

    let tally = load.stop();
    let mut maildir = cluster.maildir();
    let arrived = wait_for("all mail that was taken", Duration::from_secs(60), || {
        Some(arrivals(&mut maildir))
            .filter(|arrived| tally.taken.keys().all(|id| arrived.contains_key(id)))
    });
    let delays = tally
        .taken
        .iter()
        .map(|(id, taken)| arrived[id].duration_since(*taken).unwrap_or_default());
    let longest = delays.max().unwrap();
    println!(
        "{} taken, {} in doubt, refused: {:?}; the slowest took {longest:?}",
        tally.taken.len(),
        tally.in_doubt.len(),
        tally.refused
    );
    assert!(longest < LATE, "a message took {longest:?}");
    let duplicates: Vec<_> = maildir.counts().into_iter().filter(|(_, count)| *count > 1).collect();
    assert!(duplicates.is_empty(), "a planned handover makes no duplicates: {duplicates:?}");
}
