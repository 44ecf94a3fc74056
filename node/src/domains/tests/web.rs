//! A web server that says what a test wants it to say, byte for byte, and certificates of all sorts.

use std::{net::SocketAddr, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::net;

pub(super) const HOST: &str = "www.d.example";

/// What a server does when it has read a request.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// Says this and ends the connection as TLS wants it.
    Say(String),
    /// Says this, and the connection breaks.
    Break(String),
    /// Says this, and then the same bytes again and again.
    Endless(String),
    /// Says this, and nothing more.
    Hang(String),
}

/// A server on an address of its own.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// What it was asked.
    pub(super) asked: mpsc::UnboundedReceiver<String>,
    _tasks: JoinSet<()>,
}

pub(super) struct Authority {
    pub(super) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Chain and key, PEM.
pub(super) struct Certificate {
    pem: String,
    key: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for a name, valid until the beginning of a year.
    pub(super) fn issue(&self, name: &str, until: i32) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Certificate { pem, key: key.serialize_pem() }
    }
}

/// A certificate that its own key has signed.
pub(super) fn self_signed(name: &str) -> Certificate {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    Certificate { pem: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

impl Certificate {
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    fn acceptor(&self) -> TlsAcceptor {
        let chain = vec![CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Server {
    /// Answers each request by its first line.
    pub(super) fn start(
        certificate: &Certificate,
        answer: impl Fn(&str) -> Answer + Send + 'static,
    ) -> Self {
        let listener = net::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = certificate.acceptor();
        let (told, asked) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A client that does not like the certificate goes away.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).await.is_err() {
                        break;
                    }
                    request.push(byte[0]);
                }
                let request = String::from_utf8(request).unwrap();
                let answer = answer(request.lines().next().unwrap_or_default());
                let _ = told.send(request);
                // The client may have gone in between.
                match answer {
                    Answer::Say(text) => {
                        let _ = stream.write_all(text.as_bytes()).await;
                        let _ = stream.shutdown().await;
                    }
                    Answer::Break(text) => {
                        let _ = stream.write_all(text.as_bytes()).await;
                        let _ = stream.flush().await;
                    }
                    Answer::Endless(text) => {
                        while stream.write_all(text.as_bytes()).await.is_ok() {}
                    }
                    Answer::Hang(text) => {
                        let _ = stream.write_all(text.as_bytes()).await;
                        let _ = stream.flush().await;
                        // Until the client goes.
                        let _ = stream.read_u8().await;
                    }
                }
            }
        });
        Self { address, asked, _tasks: tasks }
    }
}
