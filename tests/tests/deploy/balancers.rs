//! HAProxy in front of a real cluster, and files that balancers and routers read.

use std::{
    collections::{BTreeMap, HashMap},
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ppsw_tests::{
    client::{Client, tcp},
    cluster::{Cluster, PATIENCE},
    load::Load,
    process::Guard,
    sink::{Filed, ID_FIELD},
    wait_for,
};

use super::{good, text};

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
