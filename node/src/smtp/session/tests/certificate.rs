//! Certificates of clients.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    version::{TLS12, TLS13},
};

use super::super::testing::{ASKED, Bench, Client, Shown, decision};
use crate::policy::Verdict;

type Ca = Issuer<'static, KeyPair>;

fn ca(name: &str) -> (Ca, CertificateDer<'static>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let own = params.self_signed(&key).unwrap();
    (Issuer::new(params, key), own.der().clone())
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn shown(params: &CertificateParams, ca: &Ca) -> Shown {
    let key = KeyPair::generate().unwrap();
    let made = params.signed_by(&key, ca).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (vec![made.der().clone()], key)
}

/// A front end that says in its refusal of MAIL what it knows of the certificate.
fn bench(client: &str, cas: Option<CertificateDer<'static>>) -> Bench {
    let mut bench = Bench::with("submit", |_, connection, transaction| {
        let mut decision = decision(Verdict::Accept);
        if !transaction.sender.is_empty() {
            decision.verdict = Verdict::Deny(match &connection.certificate {
                None => "none".to_owned(),
                Some(own) => format!(
                    "{} {} {}",
                    own.subject,
                    own.names.join("/"),
                    own.refused.as_deref().unwrap_or("believed")
                ),
            });
        }
        decision
    });
    bench.client = client.parse().unwrap();
    if let Some(ca) = cas {
        bench.front.certificates.trust_clients(vec![ca]).unwrap();
    }
    bench
}

async fn said_of(
    bench: &Bench,
    version: &'static rustls::SupportedProtocolVersion,
    shown: Option<Shown>,
) -> String {
    let mut client = bench.hello().await;
    client.ask("STARTTLS", "220").await;
    let mut client: Client = client.start_tls_showing(&[version], shown).await;
    client.ask("EHLO c", "250").await;
    client.ask("MAIL FROM:<a@x.org>", "550").await
}

#[tokio::test]
async fn who_is_asked_may_show_a_certificate_and_is_believed_if_we_know_its_ca() {
    let (ours, ca_file) = ca("ours");
    let (other, _) = ca("other");
    let bench = bench(ASKED, Some(ca_file));
    let good = params("relay.example");
    let mut server_only = good.clone();
    server_only.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut old = good.clone();
    old.not_after = rcgen::date_time_ymd(2020, 1, 1);
    old.not_before = rcgen::date_time_ymd(2019, 1, 1);
    // One certificate with the key of another.
    let stolen = (shown(&good, &ours).0, shown(&good, &ours).1);
    for version in [&TLS12, &TLS13] {
        for (shown, expected) in [
            (None, "none"),
            (Some(shown(&good, &ours)), "CN=relay.example relay.example believed"),
            (Some(shown(&good, &other)), "CN=relay.example relay.example invalid peer certificate"),
            (
                Some(shown(&old, &ours)),
                "relay.example invalid peer certificate: certificate expired",
            ),
            (Some(shown(&server_only, &ours)), "relay.example invalid peer certificate"),
            (
                Some((stolen.0.clone(), stolen.1.clone_key())),
                "relay.example invalid peer certificate: BadSignature",
            ),
            (
                Some((vec![CertificateDer::from(b"rubbish".to_vec())], stolen.1.clone_key())),
                "it cannot be read",
            ),
        ] {
            let said = said_of(&bench, version, shown).await;
            assert!(said.contains(expected), "{expected}: {said}");
        }
    }
}

#[tokio::test]
async fn others_are_not_asked() {
    let (ours, ca_file) = ca("ours");
    let own = || Some(shown(&params("relay.example"), &ours));
    let stranger = bench("127.200.1.1", Some(ca_file));
    assert!(said_of(&stranger, &TLS13, own()).await.contains("none"));
    let without_cas = bench(ASKED, None);
    assert!(said_of(&without_cas, &TLS13, own()).await.contains("none"));
}
