//! TLS with other servers: when it is used, and what happens when it fails.

use std::sync::Arc;

use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};

use super::{
    dialogue::destination,
    fake::{Setting, Table, deliver_to},
    server::{Script, Server, StartTls},
};
use crate::route::{Protocol, Tls};

/// A certificate that nobody has signed, for another name.
fn certificate() -> Arc<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["another.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key);
    Arc::new(config.unwrap())
}

async fn server(starttls: Option<StartTls>) -> Server {
    Server::start(Script { starttls, ..Script::default() }).await
}

/// Delivers to a server, and gives the log's lines of that.
async fn delivered(server: &Server, tls: Tls) -> String {
    let there = crate::route::Destination { tls, ..destination(&[server], Protocol::Smtp) };
    let mut table = Table::default();
    table.routes.insert("a@y".to_owned(), vec![deliver_to("a@y", &there)]);
    let setting = Setting::new(table);
    setting.put(1, "s@x", &["a@y"]);
    setting.until("tried", || setting.outcomes().len() == 1).await;
    setting.finish().await;
    setting.until("logged", || setting.mainlog().contains(" a@y ")).await;
    setting.mainlog()
}

#[tokio::test]
async fn what_is_offered_is_used_whatever_the_certificate() {
    for tls in [Tls::May, Tls::Must] {
        let server = server(Some(StartTls::Works(certificate()))).await;
        let log = delivered(&server, tls).await;
        assert!(log.contains(" => a@y ") && log.contains(" X=TLS1.3:TLS_AES_"), "{log}");
        assert_eq!((server.complete().len(), server.connections()), (1, 1));
        let commands = server.commands();
        let verbs: Vec<&str> = commands.iter().map(|line| &line[..4]).collect();
        // What was offered in plain counts no more: it is asked again.
        assert_eq!(verbs[..3], ["EHLO", "STAR", "EHLO"]);
        assert!(server.complete()[0].mail.contains("SIZE="), "{commands:?}");
    }
    let server = server(Some(StartTls::Works(certificate()))).await;
    let log = delivered(&server, Tls::Never).await;
    assert!(log.contains(" => a@y ") && !log.contains(" X="), "{log}");
}

#[tokio::test]
async fn without_tls_mail_goes_in_plain_or_waits() {
    let broken = || Some(StartTls::Breaks);
    let injects = || Some(StartTls::Injects(certificate()));
    for (offered, connections) in
        [(None, 1), (Some(StartTls::Refused), 1), (broken(), 2), (injects(), 2)]
    {
        let server = server(offered).await;
        let log = delivered(&server, Tls::May).await;
        assert!(log.contains(" => a@y ") && !log.contains(" X="), "{log}");
        assert_eq!((server.complete().len(), server.connections()), (1, connections));
    }
    for (offered, why) in [
        (None, "it is required here, and not offered there"),
        (Some(StartTls::Refused), "after STARTTLS: 454 4.7.0 not now"),
        (broken(), "TLS with remote mail server: "),
        (injects(), "something came in plain"),
    ] {
        let server = server(offered).await;
        let log = delivered(&server, Tls::Must).await;
        assert!(log.contains(" == a@y ") && log.contains(why), "{why}: {log}");
        assert!(server.complete().is_empty());
    }
}
