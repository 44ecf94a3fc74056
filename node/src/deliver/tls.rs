//! TLS towards other mail servers: encryption without knowing whom one talks to (RFC 7435), as nearly all mail servers have
//! it for each other. A certificate that anybody can make is better than none to read along. A transport may want more.

use std::{
    net::IpAddr,
    path::Path,
    sync::{Arc, LazyLock},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::connect::Stream;
use crate::{
    files,
    limits::{AUTHORITIES_BYTES_MAX, REMOTE_TLS_TIMEOUT},
    smtp::tls::description,
};

/// One for all connections, so that sessions are resumed.
static ANYBODY: LazyLock<Arc<ClientConfig>> = LazyLock::new(anybody);

/// Whose certificate will do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trust<'a> {
    Anybody,
    /// For the host's name, by an authority in this file (PEM), or by one of the web's.
    Authorities(Option<&'a Path>),
}

/// An encrypted stream, and its version and cipher as the log has them; or why there is none.
pub(super) async fn handshake(
    stream: Box<dyn Stream>,
    host: &str,
    address: IpAddr,
    trust: Trust<'_>,
) -> Result<(Box<dyn Stream>, String), String> {
    // A name that cannot stand in a handshake: the server is not told which of its names is meant.
    let name = ServerName::try_from(host.trim_end_matches('.').to_owned())
        .unwrap_or_else(|_| ServerName::IpAddress(address.into()));
    let config = match trust {
        Trust::Anybody => Arc::clone(&ANYBODY),
        Trust::Authorities(file) => authorities(file)?,
    };
    let connect = TlsConnector::from(config).connect(name, stream);
    let stream = match timeout(REMOTE_TLS_TIMEOUT, connect).await {
        Ok(connected) => connected.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no handshake within {REMOTE_TLS_TIMEOUT:?}")),
    };
    let (_, session) = stream.get_ref();
    let cipher = description(session);
    Ok((Box::new(stream), cipher))
}

/// Read anew for each connection: a file may change, and connections that need it are few.
fn authorities(file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match file {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            let error =
                |what: String| format!("cannot read authorities in {}: {what}", file.display());
            let pem = files::read(file, AUTHORITIES_BYTES_MAX).map_err(|e| error(e.to_string()))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|e| error(e.to_string()))?;
                roots.add(certificate).map_err(|e| error(e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(error("expected certificates in PEM".to_owned()));
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[allow(clippy::expect_used, reason = "the provider of this program has both versions of TLS")]
fn anybody() -> Arc<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Arc::new(config)
}

/// Believes every certificate, if the server has its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
