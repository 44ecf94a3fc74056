//! Retries over hours, by a clock that the test moves: of messages, and of hosts that are down; and who comes first.
#![allow(clippy::disallowed_methods, reason = "a test server on loopback")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use ppsw_spool::{log::LogError, queue::Turn};
use tokio::task::unconstrained;

use super::{
    dialogue::{destination, transmitter},
    fake::{Setting, Table, deliver_to},
    server::{Script, Server},
};
use crate::{
    deliver::{
        lanes::Lanes,
        retry::RULE_OTHERS,
        seams::BodySource,
        transaction::{Mail, Rcpt},
        transmit::Transmission,
    },
    explode::NoFence,
    limits::{RETRIES_TAKEN_MAX, TRANSACTIONS_MAX, TRANSACTIONS_PER_HOST_MAX},
    route::{Destination, Host, Protocol},
};

const MINUTE: Duration = Duration::from_secs(60);

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

fn host(name: &str, address: SocketAddr) -> Host {
    Host {
        name: name.to_owned(),
        addresses: vec![address.ip()],
        port: address.port(),
        preference: 1,
        mx: true,
    }
}

fn at(address: SocketAddr) -> Destination {
    Destination { hosts: vec![host("host1", address)], ..destination(&[], Protocol::Smtp) }
}

fn table(routes: &[(&str, &Destination)]) -> Table {
    let mut table = Table::default();
    for (address, there) in routes {
        table.routes.insert((*address).to_owned(), vec![deliver_to(address, there)]);
    }
    table
}

/// Lines of the log with this text.
fn count(setting: &Setting, text: &str) -> usize {
    setting.mainlog().matches(text).count()
}

#[tokio::test]
async fn a_host_that_is_down_is_asked_by_the_rule_and_not_by_each_message() {
    let address = nobody().await;
    let there = at(address);
    let setting = Setting::new(table(&[("a@y", &there), ("b@y", &there)]));
    setting.put(1, "s@x", &["a@y"]);
    setting.until("tried", || count(&setting, "== a@y") == 1).await;
    assert_eq!(count(&setting, "Connection refused"), 1, "{}", setting.mainlog());
    setting.later(5 * MINUTE);
    setting.put(2, "s@x", &["b@y"]);
    setting.until("put off", || count(&setting, "== b@y") == 1).await;
    let log = setting.mainlog();
    assert!(log.contains("retry time not reached for host host1 [127.0.0.1]"), "{log}");
    // The clock goes on by itself, too.
    let left = ["in 10m", "in 9m "].map(|left| format!("connection refused, asked again {left}"));
    assert!(left.iter().any(|text| log.contains(text)), "{log}");
    assert_eq!(count(&setting, "Connection refused"), 1, "nobody asked: {log}");
    // It is there again: nobody knows before its time.
    let listener = std::net::TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    setting.later(9 * MINUTE);
    setting.put(3, "s@x", &["b@y"]);
    setting.until("put off", || count(&setting, "== b@y") == 2).await;
    assert!(listener.accept().is_err());
    drop(listener);
    let server = Server::start_at(address, Script::default()).await;
    setting.later(2 * MINUTE);
    setting.until("the first delivered", || count(&setting, "=> a@y") == 1).await;
    // Whoever asks is answered now, and the others come by their own times.
    setting.put(4, "s@x", &["b@y"]);
    setting.until("a new one delivered", || count(&setting, "=> b@y") == 1).await;
    setting.later(30 * MINUTE);
    setting.until("all delivered", || setting.queue.len() == 0).await;
    assert_eq!(server.complete().len(), 4);
    setting.finish().await;
}

#[tokio::test]
async fn another_host_of_the_destination_is_asked_in_place_of_one_that_is_down() {
    let server = Server::start(Script::default()).await;
    let dead = nobody().await;
    let mut hosts = vec![host("host1", dead), host("host2", server.address)];
    hosts[1].preference = 2;
    let there = Destination { hosts, ..destination(&[], Protocol::Smtp) };
    let setting = Setting::new(table(&[("a@y", &there)]));
    for number in 1..=5 {
        setting.put(number, "s@x", &["a@y"]);
        setting.until("delivered", || setting.queue.len() == 0).await;
    }
    assert_eq!(server.complete().len(), 5);
    setting.finish().await;
}

#[tokio::test]
async fn a_message_is_tried_by_its_rule_until_it_is_given_up() {
    let there = at(nobody().await);
    // A report of the failure goes nowhere: its sender has no route.
    let setting = Setting::new(table(&[("a@y", &there)]));
    let id = setting.put(1, "s@x", &["a@y"]);
    let mut ages = Vec::new();
    let (mut age, mut tries) = (Duration::ZERO, 0);
    // The rule of the tests: F,2h,15m; G,16h,30m,1.5; F,5d,8h.
    while setting.queue.message(id).is_some() {
        setting.until("tried", || setting.outcomes_of(id) > tries).await;
        tries = setting.outcomes_of(id);
        ages.push(age.as_secs() / 60);
        let Some(message) = setting.queue.message(id) else { break };
        let due = message.recipients[0].next_due;
        let wait = due.since(ppsw_spool::env::Clock::now(&*setting.clock));
        setting.later(wait);
        age += wait;
    }
    let hours: Vec<u64> = ages.iter().map(|age| age / 60).collect();
    assert_eq!(ages[..9], [0, 15, 30, 45, 60, 75, 90, 105, 120], "{ages:?}");
    // 30 minutes, and each time half as much again; then every 8 hours; the last when it is 5 days old.
    assert_eq!(ages[9..13], [150, 195, 262, 363], "{ages:?}");
    assert_eq!(hours[hours.len() - 3..], [106, 114, 120], "{ages:?}");
    // A moment after the outcome.
    setting.until("logged", || count(&setting, "retry timeout exceeded") > 0).await;
    setting.finish().await;
}

#[tokio::test]
async fn new_messages_come_before_those_that_have_been_tried() {
    // Nobody answers, so that whoever is taken stays in flight.
    let mut silent = Vec::new();
    for number in 1..=2 * TRANSACTIONS_MAX / TRANSACTIONS_PER_HOST_MAX {
        silent.push(tokio::net::TcpListener::bind(format!("127.2.0.{number}:0")).await.unwrap());
    }
    let dead = at(nobody().await);
    let server = Server::start(Script::default()).await;
    let well = destination(&[&server], Protocol::Smtp);
    // Tried messages each have a destination of their own: none waits for another.
    let old: Vec<String> = (0..RETRIES_TAKEN_MAX + 50).map(|n| format!("a{n}@y")).collect();
    let mut table = table(&[("new@y", &well)]);
    let moved = Arc::clone(&table.moved);
    for (number, address) in old.iter().enumerate() {
        let mut to_dead = dead.clone();
        to_dead.hosts[0].name = format!("dead{number}");
        let mut to_slow = at(silent[number % silent.len()].local_addr().unwrap());
        to_slow.hosts[0].name = format!("slow{number}");
        table.routes.insert(address.clone(), vec![deliver_to(address, &to_dead)]);
        table.moved_routes.insert(address.clone(), vec![deliver_to(address, &to_slow)]);
    }
    let setting = Setting::new(table);
    for (number, address) in (1..).zip(&old) {
        setting.put(number, "s@x", &[address]);
    }
    setting.until("all tried", || setting.outcomes().len() == old.len()).await;
    moved.store(true, Ordering::SeqCst);
    setting.later(15 * MINUTE);
    let taken = || setting.deliverer.attempts_in_flight(1);
    setting.until("taken again", || taken() == RETRIES_TAKEN_MAX).await;
    setting.put(100_000, "s@x", &["new@y"]);
    setting.until("delivered at once", || !server.complete().is_empty()).await;
    assert_eq!(taken(), RETRIES_TAKEN_MAX, "the others have to wait for each other");
}

#[tokio::test]
async fn a_busy_machine_delivers_less() {
    let load = Arc::new(AtomicUsize::new(0));
    let server = Server::start_at(
        nobody().await,
        Script { rcpt: vec![("later", "451 no")], ..Script::default() },
    )
    .await;
    let there = at(server.address);
    let mut table = table(&[("a@y", &there), ("later@y", &there)]);
    (table.options.queue_only_load, table.options.deliver_queue_load_max) =
        (Some(1_000), Some(500));
    let given = Arc::clone(&load);
    let average = move || Some(given.load(Ordering::SeqCst) as f64);
    let setting = Setting::with(table, Arc::new(average), Vec::new());
    let later = setting.put(1, "s@x", &["later@y"]);
    setting.until("tried", || setting.outcomes_of(later) == 1).await;
    // Above 5, nothing is tried again.
    load.store(6, Ordering::SeqCst);
    setting.later(15 * MINUTE);
    setting.put(2, "s@x", &["a@y"]);
    setting.until("delivered", || server.complete().len() == 1).await;
    assert_eq!(setting.outcomes_of(later), 1);
    // Above 10, nothing at all.
    load.store(11, Ordering::SeqCst);
    setting.later(MINUTE);
    setting.put(3, "s@x", &["a@y"]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((server.complete().len(), setting.outcomes_of(later)), (1, 1));
    load.store(5, Ordering::SeqCst);
    setting.later(MINUTE);
    setting
        .until("all again", || server.complete().len() == 2 && setting.outcomes_of(later) == 2)
        .await;
    setting.finish().await;
}

#[tokio::test]
async fn who_goes_on_to_a_full_host_holds_no_place_meanwhile() {
    let server = Server::start(Script::default()).await;
    let mut hosts = vec![host("host1", nobody().await), host("backup", server.address)];
    hosts[1].preference = 2;
    let there = Destination { hosts, ..destination(&[], Protocol::Smtp) };
    let (lanes, us) = (Lanes::new(), transmitter());
    let gate = lanes.gate(Turn::First);
    let mut full = Vec::new();
    for _ in 0..TRANSACTIONS_PER_HOST_MAX {
        full.push(gate.enter(server.address).await.unwrap());
    }
    let what = Transmission {
        destination: &there,
        gate,
        personality: "mx",
        retry: &|_| RULE_OTHERS.parse().unwrap(),
        mail: &Mail::default(),
        recipients: &[Rcpt { address: "a@y".into(), ..Rcpt::default() }],
        body: &|| Box::new(Empty),
        fence: &NoFence,
    };
    let mut sent = Box::pin(async { us.transmit(&what, us.hosts(&there, gate).await).await });
    let waits = tokio::time::timeout(Duration::from_millis(500), &mut sent).await;
    assert!(waits.is_err() && server.connections() == 0);
    let mut free = Vec::new();
    while let Some(place) = unconstrained(gate.node()).now_or_never() {
        free.push(place.unwrap());
    }
    assert_eq!(free.len(), TRANSACTIONS_MAX - TRANSACTIONS_PER_HOST_MAX);
    drop((full, free));
    let sent = sent.await;
    assert_eq!(sent[0].host.as_ref().unwrap().name, "backup", "{sent:?}");
    assert_eq!(server.connections(), 1);
}

/// A message without a byte.
struct Empty;

#[async_trait]
impl BodySource for Empty {
    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        Ok(None)
    }
}
