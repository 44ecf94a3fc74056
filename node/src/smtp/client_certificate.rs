//! Certificates of clients: asked for, never needed (Exim's `tls_try_verify_hosts`).
//!
//! A handshake does not fail for what a client shows: whoever is not believed is a client without a certificate. So
//! each handshake has a verifier of its own, which says yes to everything and remembers what it should have said.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::ring,
    pki_types::{CertificateDer, UnixTime},
    server::{
        VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::{
    objects::{oid_registry, oid2abbrev},
    prelude::{FromDer, GeneralName, X509Certificate},
    x509::{AttributeTypeAndValue, X509Name},
};

use crate::{
    limits::{CERTIFICATE_NAMES_MAX, CERTIFICATE_SUBJECT_BYTES_MAX, DOMAIN_BYTES_MAX},
    policy::ClientCertificate,
};

/// Whose signatures make a client believed.
pub(super) type Authorities = Arc<dyn ClientCertVerifier>;

/// The CAs of clients.
pub(super) fn authorities(roots: RootCertStore) -> Result<Authorities, VerifierBuilderError> {
    let provider = Arc::new(ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
}

/// The verifier of one handshake.
#[derive(Debug)]
pub(super) struct Asking {
    authorities: Authorities,
    shown: Mutex<Option<ClientCertificate>>,
}

impl Asking {
    pub(super) fn new(authorities: Authorities) -> Self {
        Self { authorities, shown: Mutex::new(None) }
    }

    /// What the client showed, after the handshake.
    pub(super) fn shown(&self) -> Option<ClientCertificate> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first reason against a certificate is kept.
    fn refuse(&self, why: &Error) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = shown.get_or_insert_default();
        shown.refused.get_or_insert_with(|| why.to_string());
    }

    fn signed(&self, signed: Result<HandshakeSignatureValid, Error>) -> HandshakeSignatureValid {
        signed.unwrap_or_else(|why| {
            self.refuse(&why);
            HandshakeSignatureValid::assertion()
        })
    }
}

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authorities.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let read = read(end_entity);
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
        if let Err(why) = self.authorities.verify_client_cert(end_entity, intermediates, now) {
            self.refuse(&why);
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(self.signed(self.authorities.verify_tls12_signature(message, cert, dss)))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(self.signed(self.authorities.verify_tls13_signature(message, cert, dss)))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// What a certificate says of its owner; whether that is true is another question.
fn read(der: &CertificateDer<'_>) -> ClientCertificate {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        let refused = Some("it cannot be read".to_owned());
        return ClientCertificate { refused, ..ClientCertificate::default() };
    };
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let mut names: Vec<String> = alternatives
        .iter()
        .flat_map(|found| &found.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => name_of_host(name),
            _ => None,
        })
        .take(CERTIFICATE_NAMES_MAX)
        .collect();
    if names.is_empty() {
        let common = certificate.subject().iter_common_name().filter_map(|cn| cn.as_str().ok());
        names.extend(common.filter_map(name_of_host).take(1));
    }
    ClientCertificate { subject: subject(certificate.subject()), names, refused: None }
}

fn name_of_host(name: &str) -> Option<String> {
    let good =
        (1..=DOMAIN_BYTES_MAX).contains(&name.len()) && name.bytes().all(|b| b > b' ' && b < 127);
    good.then(|| name.to_ascii_lowercase())
}

/// A distinguished name as RFC 4514 §2 writes it: the last part first.
fn subject(name: &X509Name<'_>) -> String {
    let parts: Vec<String> = name
        .iter_rdn()
        .map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+"))
        .collect();
    let mut text = parts.into_iter().rev().collect::<Vec<_>>().join(",");
    text.truncate(text.floor_char_boundary(CERTIFICATE_SUBJECT_BYTES_MAX));
    text
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let kind = attribute.attr_type();
    let kind = oid2abbrev(kind, oid_registry()).map_or_else(|_| kind.to_id_string(), str::to_owned);
    let Ok(value) = attribute.as_str() else {
        let hex: String = attribute.as_slice().iter().map(|byte| format!("{byte:02x}")).collect();
        return format!("{kind}=#{hex}");
    };
    let mut text = format!("{kind}=");
    let last = value.chars().count().saturating_sub(1);
    for (at, c) in value.chars().enumerate() {
        let special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
            || (c == ' ' && (at == 0 || at == last))
            || (c == '#' && at == 0);
        if special {
            text.push('\\');
        }
        text.push(if c.is_control() { '?' } else { c });
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn made(parts: &[(DnType, &str)], hosts: &[&str]) -> ClientCertificate {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        read(made.der())
    }

    #[test]
    fn a_certificate_is_read() {
        let parts = [
            (DnType::CountryName, "GB"),
            (DnType::OrganizationName, " A, B+C\n"),
            (DnType::CommonName, "relay.example"),
        ];
        let own = made(&parts, &["A.example", "b.example"]);
        assert_eq!(own.subject, "CN=relay.example,O=\\ A\\, B\\+C?,C=GB");
        assert_eq!(own.names, ["a.example", "b.example"]);
        assert_eq!(made(&parts, &[]).names, ["relay.example"]);
        let odd = made(&[(DnType::CommonName, "Relay of X")], &[]);
        assert_eq!((odd.subject.as_str(), odd.names.len()), ("CN=Relay of X", 0));
        let long = made(&[(DnType::CommonName, &"é".repeat(1_000))], &[]);
        assert!(long.subject.len() <= CERTIFICATE_SUBJECT_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn garbage_is_no_certificate(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(read(&CertificateDer::from(bytes)).refused.is_some());
        }

        #[test]
        fn a_damaged_certificate_does_no_harm(at in 0_usize..300, byte in any::<u8>()) {
            let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
            let mut der = made.cert.der().to_vec();
            let at = at % der.len();
            der[at] = byte;
            let own = read(&CertificateDer::from(der));
            prop_assert!(!own.subject.chars().any(char::is_control));
        }
    }
}
