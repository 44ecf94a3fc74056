//! Odd messages go through all three personalities into a real Cyrus and a real Postfix smtp-sink, and come out as
//! they went in.

#![allow(clippy::disallowed_methods, reason = "tests use the machine as it is")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

use ppsw_tests::{
    client::Client,
    cluster::Cluster,
    corpus::{self, Likeness, Specimen},
    stores::{Cyrus, PostfixSink},
    wait_for,
};

/// At least so many messages must come from packages.
const SHIPPED_MIN: usize = 40;
/// The largest message by mx and smart: the paper lets 100M in.
const HUGE: usize = 50 * 1024 * 1024;
/// The largest message by submit, which takes 25M.
const HUGE_SUBMITTED: usize = 20 * 1024 * 1024;
/// A foreigner with a reverse name.
const FOREIGNER: [u8; 4] = [127, 200, 1, 1];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    MxToCyrus,
    SmartToCyrus,
    SmartToPostfix,
    SubmitToCyrus,
    SubmitToPostfix,
}

impl Way {
    const ALL: [Self; 5] = [
        Self::MxToCyrus,
        Self::SmartToCyrus,
        Self::SmartToPostfix,
        Self::SubmitToCyrus,
        Self::SubmitToPostfix,
    ];

    fn to_cyrus(self) -> bool {
        matches!(self, Self::MxToCyrus | Self::SmartToCyrus | Self::SubmitToCyrus)
    }

    fn submits(self) -> bool {
        matches!(self, Self::SubmitToCyrus | Self::SubmitToPostfix)
    }

    fn recipient(self) -> &'static str {
        if self.to_cyrus() { "spqr2@hermes.cam.ac.uk" } else { "somebody@example.org" }
    }

    fn sender(self) -> &'static str {
        if self.submits() { "spqr1@hermes.cam.ac.uk" } else { "sender@example.org" }
    }

    fn connect(self, cluster: &Cluster, node: u64) -> Client {
        let node = cluster.node(node);
        let mut client = match self {
            Self::MxToCyrus => Client::connect_from(IpAddr::from(FOREIGNER), node.mx).unwrap(),
            Self::SmartToCyrus | Self::SmartToPostfix => Client::connect(node.smart).unwrap(),
            Self::SubmitToCyrus => Client::connect_tls(node.submissions).unwrap(),
            Self::SubmitToPostfix => Client::connect(node.submission).unwrap(),
        };
        client.ehlo().unwrap();
        if self == Self::SubmitToPostfix {
            client.start_tls().unwrap();
        }
        if self.submits() {
            client.auth_plain("spqr1", cluster.password("spqr1")).unwrap();
        }
        client
    }

    /// What has to arrive.
    fn expected(self, sent: &[u8]) -> Vec<u8> {
        if self.to_cyrus() { Cyrus::keeps(sent) } else { sent.to_vec() }
    }
}

#[test]
fn odd_messages_arrive_as_they_were_sent() {
    let shipped = corpus::shipped();
    assert!(
        shipped.len() >= SHIPPED_MIN,
        "only {} messages from packages: tests/run installs them",
        shipped.len()
    );
    let mut cluster = Cluster::start(2_600);
    cluster.kill_sink();
    let cyrus = Cyrus::start(cluster.file.sink.lmtp);
    let postfix = PostfixSink::start(cluster.file.sink.smtp);

    let mut sent = BTreeMap::new();
    for (number, way) in Way::ALL.into_iter().enumerate() {
        let generated = corpus::generated(if way.submits() { HUGE_SUBMITTED } else { HUGE });
        let specimens: Vec<&Specimen> = shipped.iter().chain(&generated).collect();
        send(way, &cluster, u64::try_from(number).unwrap() % 3 + 1, &specimens, &mut sent);
    }
    let missing = |stored: &HashMap<String, Vec<u8>>, cyrus: bool| {
        sent.iter()
            .filter(|(id, (way, ..))| way.to_cyrus() == cyrus && !stored.contains_key(*id))
            .count()
    };
    let (stored, dumped) = (
        wait_for("all mail in Cyrus", Duration::from_secs(180), || {
            Some(cyrus.messages()).filter(|stored| missing(stored, true) == 0)
        }),
        wait_for("all mail in smtp-sink", Duration::from_secs(180), || {
            // A dump grows while it is written: the last byte counts.
            let dumped = postfix.messages();
            let whole = |(id, (way, _, content)): (&String, &(Way, String, Vec<u8>))| {
                way.to_cyrus() || dumped.get(id).is_some_and(|dump| dump.len() >= content.len())
            };
            sent.iter().all(whole).then_some(dumped)
        }),
    );

    let mut faults = Vec::new();
    let mut separated = 0;
    for (id, (way, name, content)) in &sent {
        let arrived = if way.to_cyrus() { &stored[id] } else { &dumped[id] };
        match corpus::compare(&way.expected(content), arrived) {
            Ok(Likeness::Same) => {}
            Ok(Likeness::Separated) => separated += 1,
            Err(difference) => faults.push(format!("{way:?}, {name}: {difference}")),
        }
    }
    println!(
        "{} messages from packages and {} made here, {} deliveries compared, {separated} of them got the empty line \
         that their header lacked",
        shipped.len(),
        corpus::generated(1).len(),
        sent.len()
    );
    assert!(faults.is_empty(), "{} of {} differ:\n{}", faults.len(), sent.len(), faults.join("\n"));
}

/// Sends all specimens over one connection; keeps what was sent by id.
fn send(
    way: Way,
    cluster: &Cluster,
    node: u64,
    specimens: &[&Specimen],
    sent: &mut BTreeMap<String, (Way, String, Vec<u8>)>,
) {
    let mut client = way.connect(cluster, node);
    for (number, specimen) in specimens.iter().enumerate() {
        let id = format!("{way:?}-{number}");
        let mut content = corpus::with_id(specimen, &id);
        if way.submits() {
            // A submission service says itself who submitted (RFC 6409 §8.1): a `Sender` of the client goes.
            content = corpus::without_field(&content, "Sender");
        }
        let reply = client
            .send(way.sender(), &[way.recipient()], &content)
            .unwrap_or_else(|error| panic!("{way:?}, {}: {error:?}", specimen.name));
        assert_eq!(reply.code, 250, "{way:?}, {}: {reply:?}", specimen.name);
        sent.insert(id, (way, specimen.name.clone(), content));
    }
    client.quit();
}
