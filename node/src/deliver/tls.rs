//! TLS towards other mail servers: encryption without knowing whom one talks to (RFC 7435), as nearly all mail servers have
//! it for each other. A certificate that anybody can make is better than none to read along.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::connect::Stream;
use crate::{limits::REMOTE_TLS_TIMEOUT, smtp::tls::description};

/// One for all connections, so that sessions are resumed.
static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(config);

/// An encrypted stream, and its version and cipher as the log has them; or why there is none.
pub(super) async fn handshake(
    stream: Box<dyn Stream>,
    host: &str,
    address: IpAddr,
) -> Result<(Box<dyn Stream>, String), String> {
    // A name that cannot stand in a handshake: the server is not told which of its names is meant.
    let name = ServerName::try_from(host.trim_end_matches('.').to_owned())
        .unwrap_or_else(|_| ServerName::IpAddress(address.into()));
    let connect = TlsConnector::from(Arc::clone(&CONFIG)).connect(name, stream);
    let stream = match timeout(REMOTE_TLS_TIMEOUT, connect).await {
        Ok(connected) => connected.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no handshake within {REMOTE_TLS_TIMEOUT:?}")),
    };
    let (_, session) = stream.get_ref();
    let cipher = description(session);
    Ok((Box::new(stream), cipher))
}

#[allow(clippy::expect_used, reason = "the provider of this program has both versions of TLS")]
fn config() -> Arc<ClientConfig> {
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
