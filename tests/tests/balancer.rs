//! What a balancer sees of a node: PROXY headers that name client and server, and the agent check.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use ppsw_tests::{
    client::tcp,
    cluster::{Cluster, PATIENCE},
    wait_for,
};

const BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Says `bytes`, then reads until `enough` or the end.
fn talk(stream: &mut TcpStream, bytes: &[u8], enough: &str) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(bytes).unwrap();
    let (mut heard, mut piece) = (String::new(), [0; 512]);
    while !heard.contains(enough) {
        match stream.read(&mut piece).unwrap() {
            0 => break,
            length => heard.push_str(std::str::from_utf8(&piece[..length]).unwrap()),
        }
    }
    heard
}

/// A v2 header for TCP over IPv4 (the PROXY protocol, section 2.2).
fn version_2(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (client.ip(), server.ip()) else {
        panic!("IPv4 only")
    };
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header.extend(source.octets());
    header.extend(destination.octets());
    header.extend(client.port().to_be_bytes());
    header.extend(server.port().to_be_bytes());
    header
}

fn agent(address: SocketAddr) -> String {
    let mut answer = String::new();
    TcpStream::connect(address).unwrap().read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_balancer_brings_clients_and_follows_readiness() {
    let cluster = Cluster::start(3_400);
    let node = cluster.node(1).clone();
    let service = cluster.file.service.clone();

    // The destination selects the personality, not the listener; the client's address is the one of the header.
    let header = format!("PROXY TCP4 127.200.1.1 {} 4000 25\r\n", service.mx.ip());
    let mut stream = tcp(BALANCER, node.proxy.mx).unwrap();
    let banner = talk(&mut stream, header.as_bytes(), "\r\n");
    assert!(banner.contains("mx.cam.ac.uk"), "{banner}");
    talk(&mut stream, b"EHLO client.example.org\r\n", "250 HELP\r\n");
    let refused =
        talk(&mut stream, b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n", "\r\n55");
    assert!(refused.contains("Relaying is not permitted"), "{refused}");
    // A drain waits for transactions that are under way.
    drop(stream);

    let header = version_2("127.0.0.7:4001".parse().unwrap(), service.smart);
    let mut stream = tcp(BALANCER, node.proxy.mx).unwrap();
    let banner = talk(&mut stream, &header, "\r\n");
    assert!(banner.contains("ppsw.cam.ac.uk"), "{banner}");
    talk(&mut stream, b"EHLO client.example.org\r\n", "250 HELP\r\n");
    let group = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n";
    talk(&mut stream, group, "\r\n354 ");
    let taken = talk(&mut stream, b"X-Test-Id: through-a-balancer\r\n\r\nx\r\n.\r\n", "OK id=");
    assert!(taken.contains("250 2.0.0 OK id="), "{taken}");
    let mainlog = cluster.dir().join("node-1/log/mainlog");
    wait_for("the client's address in mainlog", PATIENCE, || {
        let log = std::fs::read_to_string(&mainlog).unwrap();
        log.lines().any(|line| line.contains("<= a@") && line.contains("[127.0.0.7]")).then_some(())
    });

    // Only the balancer, and only with a header.
    let mut stranger = tcp(IpAddr::from([127, 0, 0, 2]), node.proxy.mx).unwrap();
    assert!(talk(&mut stranger, b"", "\r\n").starts_with("421 "));
    let mut plain = tcp(BALANCER, node.proxy.mx).unwrap();
    assert!(talk(&mut plain, b"EHLO client.example.org\r\n", "\r\n").starts_with("421 "));

    assert!(agent(node.agent).starts_with("up ready "), "{}", agent(node.agent));
    let (code, text) = cluster.ctl(&["drain", "1"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(agent(node.agent), "drain\n");
    let (code, text) = cluster.ctl(&["undrain", "1"]);
    assert_eq!(code, 0, "{text}");
    wait_for("node 1 to be up for balancers", PATIENCE, || {
        agent(node.agent).starts_with("up ready ").then_some(())
    });
}
