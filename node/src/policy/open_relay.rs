//! Whether a policy relays for everybody: made-up strangers try to send to a made-up domain through each personality.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;

use super::{
    Configuration, Connection, LOOPBACK, NodeFacts, Service, Stage, Surroundings, Transaction,
    Verdict,
};
use crate::{
    callout::{Answer, Callouts, Question},
    dns::{Dns, DnsError, Mx},
    rate::Rates,
};

/// Strangers, of networks that exist on paper only (RFC 5737, RFC 3849), but one: those are in lists of bad networks.
const STRANGERS: [&str; 4] = ["192.0.2.77", "203.0.113.77", "2001:db8::77", "9.9.9.9"];

/// Forward-paths, in a domain that never is anybody's (RFC 2606), and ways to hide one.
const FORWARD_PATHS: [&str; 3] = [
    "victim@relay-test.example",
    "victim%relay-test.example@relay-test.example",
    "victim@[9.9.9.9]",
];

const SENDERS: [&str; 2] = ["stranger@sender-test.example", ""];

/// One way through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRelay {
    pub personality: String,
    pub server: IpAddr,
    pub client: IpAddr,
    pub sender: String,
    pub recipient: String,
}

impl fmt::Display for OpenRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { personality, server, client, sender, recipient } = self;
        write!(
            f,
            "OPEN RELAY: personality {personality:?} ({server}) takes mail from <{sender}> to <{recipient}> from any \
             client, such as {client}; its acl needs a rule like: deny hosts=\"!+relay\" authenticated=\"!*\""
        )
    }
}

impl Configuration {
    /// The first way through each personality that relays for strangers. Asks nobody.
    pub async fn open_relays(&self) -> Vec<OpenRelay> {
        let mut found = Vec::new();
        let known = self.personalities.acls();
        let local = (!known.contains_key("local")).then_some(("local", LOOPBACK));
        for (personality, server) in known.into_iter().chain(local) {
            found.extend(self.open_relay(personality, server).await);
        }
        found
    }

    async fn open_relay(&self, personality: &str, server: IpAddr) -> Option<OpenRelay> {
        for client in STRANGERS.iter().filter_map(|client| client.parse().ok()) {
            for service in [Service::Smtp, Service::Submission, Service::Submissions] {
                for (sender, recipient) in
                    SENDERS.iter().flat_map(|sender| FORWARD_PATHS.map(|to| (*sender, to)))
                {
                    if self.takes(client, server, service, sender, recipient).await {
                        return Some(OpenRelay {
                            personality: personality.to_owned(),
                            server,
                            client,
                            sender: sender.to_owned(),
                            recipient: recipient.to_owned(),
                        });
                    }
                }
            }
        }
        None
    }

    /// Whether the recipient would be accepted.
    async fn takes(
        &self,
        client: IpAddr,
        server: IpAddr,
        service: Service,
        sender: &str,
        recipient: &str,
    ) -> bool {
        let (client, server) = (SocketAddr::new(client, 40_000), SocketAddr::new(server, 25));
        let mut connection = Connection::new(client, server, service);
        connection.client_name = Some(NAME.to_owned());
        connection.helo = Some(NAME.to_owned());
        for stage in [Stage::Connect, Stage::Helo, Stage::Mail, Stage::Rcpt] {
            let transaction = Transaction {
                sender: if stage >= Stage::Mail { sender.to_owned() } else { String::new() },
                recipient: (stage == Stage::Rcpt).then(|| recipient.to_owned()),
                ..Transaction::default()
            };
            let around = everybody_is_good();
            let decision = self.check(stage, &mut connection, &transaction, &around).await;
            // What is thrown away is not relayed.
            if decision.verdict != Verdict::Accept {
                return false;
            }
        }
        true
    }
}

/// Name of the stranger.
const NAME: &str = "client.relay-test.example";

fn everybody_is_good() -> Surroundings {
    Surroundings {
        dns: Arc::new(Good),
        facts: Arc::new(Good),
        callouts: Arc::new(Good),
        rates: Rates::default(),
    }
}

/// A world that gives no reason to refuse: every name exists, nobody is listed, every address is taken.
struct Good;

#[async_trait]
impl Dns for Good {
    async fn mx(&self, _: &str) -> Result<Vec<Mx>, DnsError> {
        Ok(vec![Mx { preference: 10, host: NAME.to_owned() }])
    }

    async fn addresses(&self, _: &str) -> Result<Vec<IpAddr>, DnsError> {
        // Outside 127.0.0.0/8, where the answers of DNS lists lie.
        Ok(vec![IpAddr::V4(Ipv4Addr::new(9, 9, 9, 10))])
    }

    async fn names(&self, _: IpAddr) -> Result<Vec<String>, DnsError> {
        Ok(vec![NAME.to_owned()])
    }

    async fn texts(&self, _: &str) -> Result<Vec<String>, DnsError> {
        Err(DnsError::NoRecord)
    }
}

#[async_trait]
impl Callouts for Good {
    async fn ask(&self, _: Question<'_>) -> Answer {
        Answer::Yes
    }
}

impl NodeFacts for Good {
    fn queue_length(&self) -> u64 {
        0
    }

    fn load(&self) -> Option<u32> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use super::*;
    use crate::policy::POLICY;

    async fn open(policy: &str, addrparams: &str) -> Vec<String> {
        let files = BTreeMap::from([
            (POLICY.to_owned(), policy.as_bytes().to_vec()),
            ("tables/addrparams".to_owned(), addrparams.as_bytes().to_vec()),
        ]);
        let configuration = Configuration::from_files(&files).unwrap();
        configuration.open_relays().await.into_iter().map(|open| open.personality).collect()
    }

    const ONE: &str = "192.0.2.1 name=a.example acl=mx\n";
    const ROUTERS: &str = r#"
        routers { dnslookup "r" transport="smtp" }
        transports { smtp "smtp" }
    "#;

    #[tokio::test]
    async fn whoever_takes_everything_is_found() {
        for (rules, expected) in [
            ("accept", vec!["mx"]),
            (r#"require verify="recipient"; accept"#, vec!["mx"]),
            (r#"deny hosts="!0.0.0.0/0"; accept"#, vec!["mx"]),
            (r#"accept hosts="9.0.0.0/8""#, vec!["mx"]),
            (r#"accept senders="" "#, vec!["mx"]),
            (r#"accept service="submission""#, vec!["mx"]),
            (r#"accept service="submissions""#, vec!["mx"]),
            (r#"accept domains="relay-test.example""#, vec!["mx"]),
            (r#"accept domains="ours.example""#, vec![]),
            (r#"accept authenticated="*""#, vec![]),
            (r#"accept hosts="10.0.0.0/8""#, vec![]),
            ("discard", vec![]),
        ] {
            let policy = format!("acl \"mx\" {{ rcpt {{ {rules} }} }}\n{ROUTERS}");
            assert_eq!(open(&policy, ONE).await, expected, "{rules}");
        }
    }

    #[tokio::test]
    async fn the_example_and_the_default_are_closed() {
        assert_eq!(open("", "").await, Vec::<String>::new());
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cambridge");
        let configuration = Configuration::load(&dir).unwrap();
        assert_eq!(configuration.open_relays().await, []);
    }

    #[tokio::test]
    async fn a_default_that_is_open_is_found_without_an_address() {
        let policy = format!("acl \"local\" {{ rcpt {{ accept }} }}\n{ROUTERS}");
        assert_eq!(open(&policy, "").await, ["local"]);
    }
}
