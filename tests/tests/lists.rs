//! Lists on a real cluster: the list program, expansions that survive a change of the list and of the leader, and what a long
//! list costs.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Duration};

use ppsw_tests::{
    client::Client,
    cluster::{Cluster, PATIENCE},
    hops,
    sink::{Filed, field},
    wait_for,
};

const SENDER: &str = "poster@example.org";

/// Sends a message with a body of so many lines to one recipient.
fn send(to: SocketAddr, recipient: &str, subject: &str, lines: usize) {
    let line = "A line of some seventy characters, as people write them in their mails.\r\n";
    let content = format!("Subject: {subject}\r\n\r\n{}", line.repeat(lines.max(1)));
    let mut client = Client::connect(to).unwrap();
    client.ehlo().unwrap();
    let reply = client.send(SENDER, &[recipient], content.as_bytes()).unwrap();
    assert_eq!(reply.code, 250, "{recipient}: {reply:?}");
}

/// The members of a list, and its one manager.
fn write_list(cluster: &Cluster, list: &str, members: &[String]) {
    let dir = cluster.dir().join("config/lists").join(list);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("members"), members.join("\n") + "\n").unwrap();
    fs::write(dir.join("managers"), "spqr5@hermes.cam.ac.uk\n").unwrap();
    cluster.apply_config();
}

fn filed(cluster: &Cluster, subject: &str) -> Vec<Filed> {
    let mut maildir = cluster.maildir();
    let about = |filed: &&Filed| field(&filed.content, "Subject").as_deref() == Some(subject);
    maildir.messages().filter(about).cloned().collect()
}

/// How often each recipient got it.
fn counts(cluster: &Cluster, subject: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for recipient in filed(cluster, subject).into_iter().flat_map(|filed| filed.recipients) {
        *counts.entry(recipient).or_default() += 1;
    }
    counts
}

#[test]
fn a_list_works_as_in_cambridge() {
    let mut cluster = Cluster::start(4600);

    // To the list, by its program, to its members; errors go to the list.
    send(cluster.node(1).mx, "punting@lists.cam.ac.uk", "hello", 3);
    let of_spqr = |n: u32| format!("spqr{n}@hermes.cam.ac.uk");
    let both = BTreeMap::from([(of_spqr(3), 1), (of_spqr(4), 1)]);
    wait_for("the members", PATIENCE, || (counts(&cluster, "hello") == both).then_some(()));
    for filed in filed(&cluster, "hello") {
        assert_eq!(filed.sender, "punting-request@lists.cam.ac.uk");
        let loops = field(&filed.content, "X-Loop");
        assert_eq!(loops.as_deref(), Some("punting@lists.cam.ac.uk"));
    }
    let log = || fs::read_to_string(cluster.node_dir(1).join("log/mainlog")).unwrap();
    wait_for("its log", PATIENCE, || (log().matches("Completed").count() == 2).then_some(()));
    let log = log();
    for expected in [
        "=> punting@lists.cam.ac.uk F=<poster@example.org> P=<poster@example.org> R=lists_process T=list_pipe",
        "=> spqr3@hermes.cam.ac.uk <punting-outgoing@lists.cam.ac.uk> F=<poster@example.org> P=<punting-request@lists.cam.ac.uk> R=hermes_lmtp",
    ] {
        assert!(log.contains(expected), "{expected}\n{log}");
    }

    // Past the program leads no way, from nowhere.
    for address in [cluster.node(1).mx, cluster.node(1).smart] {
        let mut client = Client::connect(address).unwrap();
        client.ehlo().unwrap();
        let outgoing = ["punting-outgoing@lists.cam.ac.uk"];
        let reply = client.send(SENDER, &outgoing, b"Subject: past\r\n\r\n.\r\n").unwrap();
        // The smarthost takes it from its clients, and it fails.
        assert!(reply.code == 550 || address == cluster.node(1).smart, "{reply:?}");
    }
    let bounced = "Mail delivery failed: returning message to sender";
    wait_for("a bounce", PATIENCE, || {
        (counts(&cluster, bounced).contains_key(SENDER)).then_some(())
    });
    assert_eq!(counts(&cluster, "past"), BTreeMap::new());

    // Its managers get what is for them.
    send(cluster.node(2).mx, "owner-punting@lists.cam.ac.uk", "to the owner", 1);
    let manager = BTreeMap::from([(of_spqr(5), 1)]);
    wait_for("the manager", PATIENCE, || {
        (counts(&cluster, "to the owner") == manager).then_some(())
    });

    // A list that has itself as a member: its program knows the message again, and its manager hears of it.
    write_list(&cluster, "round", &["round@lists.cam.ac.uk".into(), of_spqr(6)]);
    wait_for("the new list", PATIENCE, || {
        let (code, text) = cluster.ctl(&["route", "--verify", "round@lists.cam.ac.uk"]);
        (code == 0 && text.contains("lists_verify")).then_some(())
    });
    send(cluster.node(3).mx, "round@lists.cam.ac.uk", "around", 1);
    wait_for("a bounce of the loop", PATIENCE, || {
        let bounces = filed(&cluster, bounced);
        let text = |filed: &Filed| String::from_utf8_lossy(&filed.content).into_owned();
        bounces.iter().map(text).find(|text| text.contains("has been through the list round"))
    });
    let once = BTreeMap::from([(of_spqr(6), 1)]);
    assert_eq!(counts(&cluster, "around"), once);

    a_change_of_the_list_changes_nothing_that_waits(&mut cluster);
}

/// The list changes, and the leader dies, while a message to its members waits.
fn a_change_of_the_list_changes_nothing_that_waits(cluster: &mut Cluster) {
    for id in 1..=3 {
        cluster.kill(id);
        cluster.configure(id, "retry = \"F,5d,3s\"");
        cluster.restart(id);
        cluster.wait_ready(id);
    }
    let member = |name: &str| format!("{name}@example.org");
    write_list(cluster, "waiting", &[member("stays"), member("leaves")]);
    wait_for("the new list", PATIENCE, || {
        let (code, _) = cluster.ctl(&["route", "--verify", "waiting@lists.cam.ac.uk"]);
        (code == 0).then_some(())
    });
    cluster.kill_sink();
    // The node that gets it has its program hand the message back to itself, so it leads.
    send(cluster.node(2).smart, "waiting@lists.cam.ac.uk", "wait", 1);
    wait_for("the members to wait", PATIENCE, || {
        let list = cluster.ctl_json(&["queue", "list"]);
        let members = list.as_array()?.iter().filter_map(|message| {
            let recipients = message["recipients"].as_array()?;
            let tried = |name: &str| {
                let address = member(name);
                recipients.iter().any(|r| r["address"] == address.as_str() && r["attempts"] != 0)
            };
            (tried("stays") && tried("leaves")).then_some(())
        });
        members.into_iter().next()
    });
    write_list(cluster, "waiting", &[member("stays"), member("joins")]);
    cluster.kill(2);
    cluster.restart_sink();
    let expected = BTreeMap::from([(member("leaves"), 1), (member("stays"), 1)]);
    wait_for("the members as they were", PATIENCE, || {
        (counts(cluster, "wait") == expected).then_some(())
    });
    cluster.restart(2);
}

/// Members of a list that is long, and of one that is longer.
const SIZES: [usize; 2] = [1_000, 10_000];

#[test]
fn a_long_list_costs_one_body() {
    let mut cluster = Cluster::start(4700);
    let list = |size: usize| format!("of{size}");
    for size in SIZES {
        let members: Vec<String> = (0..size).map(|n| format!("member{n}@example.org")).collect();
        write_list(&cluster, &list(size), &members);
    }
    wait_for("the lists", PATIENCE, || {
        let last = format!("{}@lists.cam.ac.uk", list(SIZES[1]));
        (cluster.ctl(&["route", "--verify", &last]).0 == 0).then_some(())
    });
    // One for all: what was read is not read again, which would take longer than the list.
    let mut maildir = cluster.maildir();
    for size in SIZES {
        let subject = format!("to {size}");
        send(cluster.node(1).smart, &format!("{}@lists.cam.ac.uk", list(size)), &subject, 1_000);
        wait_for("all members", Duration::from_secs(180), || {
            let about =
                |filed: &&Filed| field(&filed.content, "Subject").as_ref() == Some(&subject);
            let filed = maildir.messages().filter(about);
            (filed.map(|filed| filed.recipients.len()).sum::<usize>() == size).then_some(())
        });
        let counts = counts(&cluster, &subject);
        assert!(counts.len() == size && counts.values().all(|times| *times == 1), "{size}");
        wait_for("the end", PATIENCE, || {
            cluster.ctl_json(&["queue", "list"]).as_array()?.is_empty().then_some(())
        });
    }

    // Nobody takes it: what the log needs for it is one body, and its recipients.
    cluster.kill_sink();
    let live = || cluster.figure(1, "ppsw_log_live_bytes", "").unwrap();
    // The figure is taken now and then, and counts the lists above for a while.
    let before = wait_for("a log that has nothing to forget", PATIENCE, || {
        let before = live();
        std::thread::sleep(Duration::from_secs(5));
        (before == live()).then_some(before)
    });
    let (size, lines) = (SIZES[1], 14_000);
    send(cluster.node(1).smart, &format!("{}@lists.cam.ac.uk", list(size)), "nobody", lines);
    wait_for("the members to wait", PATIENCE, || {
        let list = cluster.ctl_json(&["queue", "list"]);
        let recipients =
            |message: &serde_json::Value| message["recipients"].as_array().map_or(0, Vec::len);
        let waiting: Vec<usize> = list.as_array()?.iter().map(recipients).collect();
        println!("{waiting:?}");
        (waiting == [size + 1]).then_some(())
    });
    let grown = wait_for("what the log needs for it", PATIENCE, || {
        Some(live() - before).filter(|grown| *grown > 900_000.0)
    });
    println!("1 MB to {size} members that wait: {grown} bytes of the log, which had {before}");
    assert!(grown < 4e6, "{grown}");
}

/// Members and domains of the list whose deliverer dies.
const MANY: (usize, usize) = (20_000, 500);

#[test]
fn a_list_over_many_domains_outlives_its_deliverer() {
    let mut cluster = Cluster::start(4800);
    hops::add_to_zone(&cluster, "*.many MX 10 sink.example.org.\n", "d0.many");
    let (size, domains) = MANY;
    let members: Vec<String> =
        (0..size).map(|n| format!("member{n}@d{}.many.example.org", n % domains)).collect();
    write_list(&cluster, "many", &members);
    wait_for("the list", PATIENCE, || {
        (cluster.ctl(&["route", "--verify", "many@lists.cam.ac.uk"]).0 == 0).then_some(())
    });
    let mut maildir = cluster.maildir();
    let mut arrived = || -> usize {
        let about = |filed: &&Filed| field(&filed.content, "Subject").as_deref() == Some("to many");
        maildir.messages().filter(about).map(|filed| filed.recipients.len()).sum()
    };
    // 300 KB: a copy for each member would be 6 GB.
    send(cluster.node(1).smart, "many@lists.cam.ac.uk", "to many", 4_200);
    // By its own count: to look through what has arrived takes longer than to serve all.
    let before = wait_for("the first members", PATIENCE, || {
        let served = cluster.figure(1, "ppsw_delivery_attempts_total", "result=\"delivered\"");
        served.filter(|served| *served > 500.0)
    });
    cluster.kill(1);
    let at_the_kill = arrived();
    assert!(at_the_kill < size, "all were served before the deliverer died");
    // The figure is taken now and then; the message waits for the end of the grace meanwhile.
    let live = wait_for("what the log needs", PATIENCE, || {
        cluster.figure(2, "ppsw_log_live_bytes", "").filter(|live| *live > 300_000.0)
    });
    assert!(live < 20e6, "{live} bytes of the log for one body and its members");
    wait_for("all members", Duration::from_secs(300), || {
        // Those that come twice make it more.
        (arrived() >= size && counts(&cluster, "to many").len() == size).then_some(())
    });
    wait_for("the end", PATIENCE, || {
        cluster.ctl_json(&["queue", "list"]).as_array()?.is_empty().then_some(())
    });
    let counts = counts(&cluster, "to many");
    let twice = counts.values().filter(|times| **times == 2).count();
    println!(
        "{before} to {at_the_kill} of {size} members had it when its deliverer died; in the end {twice} had it \
         twice, nobody more often; {live} bytes of the log"
    );
    assert!(counts.len() == size && counts.values().all(|times| *times <= 2));
    cluster.restart(1);
}
