//! Garbage on every port costs bounded memory, and others are served.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use ppsw_tests::{
    client::{Client, tcp},
    cluster::{Cluster, Node, http_status},
    process::resident_bytes,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A node may grow by so much under all of this together.
const GROWTH_MAX: u64 = 128 * 1024 * 1024;
/// How many connections are opened and left.
const CONNECTIONS: usize = 10_000;
/// Connections that are open at the same time, as far as the node lets them be.
const HELD: usize = 2_000;
/// An endless line: more than any buffer should hold.
const ENDLESS: usize = 64 * 1024 * 1024;

fn ports(node: &Node) -> [SocketAddr; 6] {
    [node.mx, node.smart, node.submission, node.submissions, node.control, node.http]
}

/// Bytes that repeat for every run (xorshift).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}

/// Sends as much as the other side takes, without waiting for long.
fn pour(address: SocketAddr, mut bytes: &[u8]) -> usize {
    let Ok(mut stream) = tcp(IpAddr::from([127, 200, 2, 2]), address) else { return 0 };
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let whole = bytes.len();
    while !bytes.is_empty() {
        match stream.write(&bytes[..bytes.len().min(64 * 1024)]) {
            Ok(0) | Err(_) => break,
            Ok(written) => bytes = &bytes[written..],
        }
    }
    let mut answer = [0; 512];
    let _ = stream.read(&mut answer);
    whole - bytes.len()
}

fn serves(node: &Node) {
    let mut client = Client::connect(node.smart).unwrap();
    client.ehlo().unwrap();
    let reply = client
        .send("a@example.org", &["b@example.org"], b"Subject: still here\r\n\r\nx\r\n")
        .unwrap();
    assert_eq!(reply.code, 250, "{reply:?}");
    client.quit();
    assert_eq!(http_status(node.http, "/livez"), Some(200));
}

/// One step of abuse; afterwards the node serves others, and its memory is looked at.
fn step(node: &Node, name: &str, before: u64, abuse: impl FnOnce()) {
    let start = Instant::now();
    abuse();
    serves(node);
    let now = resident_bytes(node.pid);
    println!("{name}: {:?}, {} MiB resident", start.elapsed(), now >> 20);
    assert!(
        now < before + GROWTH_MAX,
        "{name}: grew from {} to {} MiB, allowed are {} more",
        before >> 20,
        now >> 20,
        GROWTH_MAX >> 20
    );
}

#[test]
fn a_node_survives_garbage_with_bounded_memory() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let cluster = Cluster::start(3_100);
    let node = cluster.node(1).clone();
    serves(&node);
    let before = resident_bytes(node.pid);
    println!("before: {} MiB resident; it may grow by {} MiB", before >> 20, GROWTH_MAX >> 20);

    step(&node, "random bytes", before, || {
        let noise = noise(1024 * 1024);
        for address in ports(&node) {
            for part in noise.chunks(128 * 1024) {
                pour(address, part);
            }
        }
    });
    step(&node, "TLS on plain ports, plain text on TLS ports", before, || {
        // The start of a TLS 1.2 ClientHello that promises more than follows.
        let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise(200)].concat();
        for address in ports(&node) {
            pour(address, &hello);
            pour(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            pour(address, b"EHLO x\r\nMAIL FROM:<a@b>\r\n");
        }
    });
    step(&node, "endless lines", before, || {
        let line = vec![b'a'; ENDLESS];
        for address in ports(&node) {
            let taken = pour(address, &line);
            println!("  {address} read {taken} bytes of a line without end");
        }
        let mail = [&b"EHLO x\r\nMAIL FROM:<"[..], &line[..8 * 1024 * 1024]].concat();
        pour(node.smart, &mail);
    });
    step(&node, "slow bytes", before, || {
        let mut slow: Vec<TcpStream> = (0..50)
            .filter_map(|n| {
                tcp(IpAddr::from([127, 200, 3, u8::try_from(n / 5 + 1).unwrap()]), node.mx).ok()
            })
            .collect();
        for byte in b"EHLO slow.exam" {
            for stream in &mut slow {
                let _ = stream.write_all(&[*byte]);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        serves(&node);
    });
    step(&node, "connections that are opened and left", before, || {
        let mut held = std::collections::VecDeque::new();
        for number in 0..CONNECTIONS {
            // Sources of all kinds: most are over the limit for one host and are sent away.
            let [high, low] = u16::try_from(number % 5_000).unwrap().to_be_bytes();
            let source = if number % 2 == 0 {
                [127, 200, high, low.max(1)]
            } else {
                [127, 3, high, low.max(1)]
            };
            let address = [node.mx, node.smart, node.submission, node.submissions][number % 4];
            if let Ok(stream) = tcp(IpAddr::from(source), address) {
                held.push_back(stream);
            }
            if held.len() > HELD {
                held.pop_front();
            }
        }
        assert_eq!(http_status(node.http, "/livez"), Some(200));
        println!(
            "  {} still open on our side: {} MiB resident",
            held.len(),
            resident_bytes(node.pid) >> 20
        );
        drop(held);
        // The node notices that they are gone as soon as it reads from them.
        ppsw_tests::wait_for("a free place", Duration::from_secs(60), || {
            Client::connect(node.smart).ok()
        });
    });
    for other in 1..=3 {
        serves(cluster.node(other));
        assert_eq!(http_status(cluster.node(other).http, "/readyz"), Some(200));
    }
}
