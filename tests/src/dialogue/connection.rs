//! The client's end of a dialogue.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpSocket,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// Longest reply line that is read.
const LINE_BYTES_MAX: usize = 64 * 1024;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection with everything that was said over it.
pub struct Connection {
    stream: Box<dyn Stream>,
    input: Vec<u8>,
    transcript: String,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("transcript", &self.transcript).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects, from a given address if wanted. `tls`: TLS from the first byte; certificates are not checked.
    pub async fn open(to: SocketAddr, from: Option<IpAddr>, tls: bool) -> Result<Self, String> {
        let connect = async {
            let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if let Some(from) = from {
                socket.bind(SocketAddr::new(from, 0))?;
            }
            socket.connect(to).await
        };
        let stream = connect.await.map_err(|e: io::Error| e.to_string())?;
        let mut connection =
            Self { stream: Box::new(stream), input: Vec::new(), transcript: format!("!  {to}\n") };
        if tls {
            connection.start_tls().await?;
        }
        Ok(connection)
    }

    /// Begins TLS.
    pub async fn start_tls(&mut self) -> Result<(), String> {
        if !self.input.is_empty() {
            return Err("the server spoke before the handshake".into());
        }
        let name = ServerName::try_from("ppswitch.invalid").map_err(|e| e.to_string())?;
        let stream = std::mem::replace(&mut self.stream, Box::new(tokio::io::empty()));
        let connector = TlsConnector::from(Arc::new(trusting()?));
        let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
        self.stream = Box::new(stream);
        self.transcript.push_str("!  TLS\n");
        Ok(())
    }

    /// Sends bytes. That the server has closed already is no failure: what it said comes next.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let shown: String = bytes.iter().take(400).map(|b| b.escape_ascii().to_string()).collect();
        self.transcript.push_str(&format!("-> {shown}\n"));
        if self.stream.write_all(bytes).await.is_ok() {
            let _ = self.stream.flush().await;
        }
        Ok(())
    }

    /// The next line, which must end with CRLF.
    pub async fn line(&mut self, patience: Duration) -> Result<String, String> {
        let end = loop {
            if let Some(end) = self.input.iter().position(|b| *b == b'\n') {
                break end;
            }
            if self.input.len() > LINE_BYTES_MAX {
                return Err("the reply line is too long".into());
            }
            match timeout(patience, self.stream.read_buf(&mut self.input)).await {
                Ok(Ok(0)) => return Err("the server closed the connection".into()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err(format!("no reply within {patience:?}")),
            }
        };
        let bytes: Vec<u8> = self.input.drain(..=end).collect();
        let line = String::from_utf8_lossy(&bytes).into_owned();
        self.transcript.push_str(&format!("<- {}\n", line.trim_end()));
        line.strip_suffix("\r\n")
            .map(str::to_owned)
            .ok_or_else(|| "the line ends without CR".into())
    }

    /// Nothing more comes, and the connection is closed.
    pub async fn expect_closed(&mut self, patience: Duration) -> Result<(), String> {
        loop {
            if !self.input.is_empty() {
                return Err(format!("more came: {:?}", String::from_utf8_lossy(&self.input)));
            }
            match timeout(patience, self.stream.read_buf(&mut self.input)).await {
                Ok(Ok(0) | Err(_)) => return Ok(()),
                Ok(Ok(_)) => {}
                Err(_) => return Err(format!("still open after {patience:?}")),
            }
        }
    }

    /// Everything that was said.
    pub fn transcript(&self) -> String {
        self.transcript.clone()
    }
}

/// TLS without asking who signed: the clusters of tests sign for themselves.
fn trusting() -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    Ok(config)
}

#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
