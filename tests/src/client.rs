//! A blocking SMTP client that says exactly what a test tells it to.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
};
use socket2::{Domain, Socket, Type};

/// Longer than a node may take for the reply to the final dot (60 s).
const TIMEOUT: Duration = Duration::from_secs(90);

/// A reply, all lines of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    /// The texts of its lines, without codes, joined by newlines.
    pub text: String,
}

/// A certificate of the client, and its key.
pub type Own = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// Why a message was not answered with a reply to its final dot.
#[derive(Debug)]
pub struct SendError {
    /// The content was sent in full: the server may have the message.
    pub in_doubt: bool,
    pub source: io::Error,
}

/// One connection.
pub struct Client {
    stream: Stream,
    buffer: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// Between the two, during STARTTLS.
    None,
}

impl Client {
    /// Connects and reads the banner.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::connect_from(IpAddr::from([127, 0, 0, 1]), address)
    }

    /// Connects from a given address of ours: `127.200.x.x` is a foreigner. Reads the banner.
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> io::Result<Self> {
        Self::over(tcp(source, address)?)
    }

    /// Takes a connection on which nothing was heard yet. Reads the banner.
    pub fn over(stream: TcpStream) -> io::Result<Self> {
        let mut client = Self { stream: Stream::Plain(stream), buffer: Vec::new() };
        client.expect(220)?;
        Ok(client)
    }

    /// Connects with TLS from the start (port 465), reads the banner.
    pub fn connect_tls(address: SocketAddr) -> io::Result<Self> {
        let stream = tls(tcp(IpAddr::from([127, 0, 0, 1]), address)?, None)?;
        let mut client = Self { stream, buffer: Vec::new() };
        client.expect(220)?;
        Ok(client)
    }

    /// Changes to TLS by STARTTLS, and says EHLO again.
    pub fn start_tls(&mut self) -> io::Result<()> {
        self.start_tls_showing(None)
    }

    /// The same; who asks for a certificate gets this one.
    pub fn start_tls_showing(&mut self, own: Option<Own>) -> io::Result<()> {
        let reply = self.command("STARTTLS")?;
        want(&reply, 220)?;
        let Stream::Plain(plain) = std::mem::replace(&mut self.stream, Stream::None) else {
            return Err(io::Error::other("TLS twice"));
        };
        self.stream = tls(plain, own)?;
        self.ehlo().map(drop)
    }

    /// What the server showed.
    pub fn server_certificate(&self) -> Option<CertificateDer<'static>> {
        let Stream::Tls(stream) = &self.stream else { return None };
        stream.conn.peer_certificates()?.first().cloned()
    }

    pub fn ehlo(&mut self) -> io::Result<Reply> {
        let reply = self.command("EHLO client.example.org")?;
        want(&reply, 250)?;
        Ok(reply)
    }

    pub fn auth_plain(&mut self, user: &str, password: &str) -> io::Result<()> {
        let secret = STANDARD.encode(format!("\0{user}\0{password}"));
        let reply = self.command(&format!("AUTH PLAIN {secret}"))?;
        want(&reply, 235)
    }

    /// Says who the user is, as a host that is trusted to do so.
    pub fn auth_external(&mut self, user: &str) -> io::Result<()> {
        let reply = self.command(&format!("AUTH EXTERNAL {}", STANDARD.encode(user)))?;
        want(&reply, 235)
    }

    /// Sends a line and reads one reply.
    pub fn command(&mut self, line: &str) -> io::Result<Reply> {
        self.send_raw(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let writer: &mut dyn Write = match &mut self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream,
            Stream::None => return Err(io::ErrorKind::NotConnected.into()),
        };
        writer.write_all(bytes)?;
        writer.flush()
    }

    /// Sends one message; commands wait for their replies. Gives the first refusal, or the reply to the final dot.
    /// `content` has CRLF line ends, the last one included.
    pub fn send(
        &mut self,
        sender: &str,
        recipients: &[&str],
        content: &[u8],
    ) -> Result<Reply, SendError> {
        let before = |source| SendError { in_doubt: false, source };
        let mut replies =
            vec![(self.command(&format!("MAIL FROM:<{sender}>")).map_err(before)?, 250)];
        for recipient in recipients {
            replies.push((self.command(&format!("RCPT TO:<{recipient}>")).map_err(before)?, 250));
        }
        if let Some((refusal, _)) =
            replies.into_iter().find(|(reply, wanted)| reply.code != *wanted)
        {
            self.command("RSET").map_err(before)?;
            return Ok(refusal);
        }
        let go_on = self.command("DATA").map_err(before)?;
        if go_on.code != 354 {
            return Ok(go_on);
        }
        let mut stuffed = stuff(content);
        stuffed.extend_from_slice(b".\r\n");
        self.send_raw(&stuffed).map_err(before)?;
        self.reply().map_err(|source| SendError { in_doubt: true, source })
    }

    /// Reads one reply.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut text = String::new();
        loop {
            let line = self.line()?;
            let bad =
                || io::Error::new(io::ErrorKind::InvalidData, format!("no reply line: {line:?}"));
            let code = line.get(..3).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
            text.push_str(line.get(4..).unwrap_or_default());
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(Reply { code, text });
            }
            text.push('\n');
        }
    }

    /// Everything until the server closes.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut all = std::mem::take(&mut self.buffer);
        match &mut self.stream {
            Stream::Plain(stream) => stream.read_to_end(&mut all)?,
            Stream::Tls(stream) => stream.read_to_end(&mut all)?,
            Stream::None => 0,
        };
        Ok(all)
    }

    /// QUIT, without waiting for more than its reply.
    pub fn quit(mut self) {
        let _ = self.command("QUIT");
    }

    fn expect(&mut self, code: u16) -> io::Result<()> {
        let reply = self.reply()?;
        want(&reply, code)
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let mut piece = [0; 4096];
            let length = match &mut self.stream {
                Stream::Plain(stream) => stream.read(&mut piece)?,
                Stream::Tls(stream) => stream.read(&mut piece)?,
                Stream::None => 0,
            };
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend_from_slice(&piece[..length]);
        }
    }
}

/// Puts a dot in front of each line that begins with one (RFC 5321 §4.5.2).
pub fn stuff(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + content.len() / 64 + 8);
    let mut line_start = true;
    for (index, &byte) in content.iter().enumerate() {
        if line_start && byte == b'.' {
            out.push(b'.');
        }
        out.push(byte);
        line_start = byte == b'\n' && index > 0 && content[index - 1] == b'\r';
    }
    out
}

/// A plain connection from a given address of ours.
pub fn tcp(source: IpAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&address.into(), Duration::from_secs(10))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn want(reply: &Reply, code: u16) -> io::Result<()> {
    if reply.code == code {
        return Ok(());
    }
    Err(io::Error::other(format!("expected {code}, got {} {}", reply.code, reply.text)))
}

fn tls(stream: TcpStream, own: Option<Own>) -> io::Result<Stream> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)));
    let config = match own {
        Some((certificate, key)) => {
            builder.with_client_auth_cert(vec![certificate], key).map_err(io::Error::other)?
        }
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from("smtp.hermes.cam.ac.uk").map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(Stream::Tls(Box::new(StreamOwned::new(connection, stream))))
}

/// Tests of mail flow take the certificate of `ppswd dev`, which nobody signed.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
