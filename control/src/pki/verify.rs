//! How a client that does not know yet which node answers checks it: an operator's program, and a joining machine.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature,
        verify_tls13_signature,
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{PkiError, Role, fingerprint_der, peer, server_name};

/// Accepts any node of the cluster that a CA stands for.
#[derive(Debug)]
pub struct AnyNode {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

/// Accepts any node of the cluster whose CA has this fingerprint; the peer sends the CA's certificate along.
#[derive(Debug)]
pub struct PinnedCa {
    /// Hexadecimal SHA-256 of the CA's certificate.
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl AnyNode {
    /// With the CA's certificate, PEM.
    ///
    /// # Errors
    /// If it is no certificate.
    pub fn new(ca: &str) -> Result<Self, PkiError> {
        let der = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|error| {
            PkiError::Unfit(format!("expected the CA's certificate in PEM form: {error}"))
        })?;
        Ok(Self { roots: roots(der)?, provider: Arc::new(ring::default_provider()) })
    }
}

impl PinnedCa {
    /// With the CA's fingerprint from a token.
    #[must_use]
    pub fn new(fingerprint: &str) -> Self {
        Self { fingerprint: fingerprint.to_owned(), provider: Arc::new(ring::default_provider()) }
    }
}

impl ServerCertVerifier for AnyNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_node(&self.roots, &self.provider, end_entity, intermediates, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, algorithms(&self.provider))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, algorithms(&self.provider))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms(&self.provider).supported_schemes()
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates
            .iter()
            .find(|der| fingerprint_der(der) == self.fingerprint)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let roots = roots(ca.clone().into_owned())
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        verify_node(&roots, &self.provider, end_entity, intermediates, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, algorithms(&self.provider))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, algorithms(&self.provider))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms(&self.provider).supported_schemes()
    }
}

const fn algorithms(provider: &CryptoProvider) -> &WebPkiSupportedAlgorithms {
    &provider.signature_verification_algorithms
}

pub(super) fn roots(ca: CertificateDer<'static>) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(ca)
        .map_err(|error| PkiError::Unfit(format!("the CA's certificate can't be used: {error}")))?;
    Ok(Arc::new(roots))
}

/// The whole check of a server certificate, against the name that the certificate itself has, which must be that
/// of the node that its subject says.
fn verify_node(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    ocsp_response: &[u8],
    now: UnixTime,
) -> Result<ServerCertVerified, Error> {
    let wrong_name = || Error::InvalidCertificate(CertificateError::NotValidForName);
    let subject = peer(end_entity).map_err(|_| wrong_name())?;
    let (Role::Node, Some(node)) = (subject.role, subject.node) else {
        return Err(wrong_name());
    };
    let name = server_name(node, &subject.cluster);
    if !has_dns_name(end_entity, &name) {
        return Err(wrong_name());
    }
    let name = ServerName::try_from(name).map_err(|_| wrong_name())?;
    WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(|error| Error::General(error.to_string()))?
        .verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
}

fn has_dns_name(der: &[u8], wanted: &str) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names
        .value
        .general_names
        .iter()
        .any(|name| matches!(name, GeneralName::DNSName(n) if *n == wanted))
}

#[cfg(test)]
mod tests {
    use ppsw_spool::env::UnixMs;

    use super::{
        super::{Authority, fingerprint, new_key, request},
        *,
    };

    const NOW: UnixMs = UnixMs(1_790_000_000_000);

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn check(
        verifier: &dyn ServerCertVerifier,
        leaf: &str,
        ca: &str,
    ) -> Result<ServerCertVerified, Error> {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(NOW.0));
        let name = ServerName::try_from("anything.invalid").unwrap();
        verifier.verify_server_cert(&der(leaf), &[der(ca)], &name, &[], now)
    }

    #[test]
    fn only_a_node_of_the_pinned_ca_is_accepted() {
        let (ours, _) = Authority::found("c0ffee", NOW).unwrap();
        let (other, _) = Authority::found("c0ffee", NOW).unwrap();
        let csr = request(&new_key().unwrap()).unwrap();
        let node = ours.sign_node(&csr, 2, NOW).unwrap();
        let stranger = other.sign_node(&csr, 2, NOW).unwrap();
        let pinned = PinnedCa::new(&fingerprint(ours.certificate()).unwrap());
        assert!(check(&pinned, &node, ours.certificate()).is_ok());
        assert!(check(&pinned, &stranger, other.certificate()).is_err(), "wrong CA");
        assert!(check(&pinned, &stranger, ours.certificate()).is_err(), "borrowed CA");
        let any = AnyNode::new(ours.certificate()).unwrap();
        assert!(check(&any, &node, ours.certificate()).is_ok());
        assert!(check(&any, &stranger, other.certificate()).is_err());
    }

    #[test]
    fn an_operator_cannot_pose_as_a_node() {
        let (ours, _) = Authority::found("c0ffee", NOW).unwrap();
        let admin = ours.operator(Role::Admin, NOW).unwrap().certificate;
        let any = AnyNode::new(ours.certificate()).unwrap();
        assert!(check(&any, &admin, ours.certificate()).is_err());
    }
}
