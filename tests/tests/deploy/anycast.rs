//! BIRD announces the addresses of a node that is ready, in network namespaces.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use ppsw_tests::{
    cluster::{Cluster, PATIENCE, http_status},
    process::Guard,
    wait_for,
};

use super::{good, root, run, said, text};

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
