//! The PROXY header of a balancer, versions 1 and 2 (haproxy.org, `proxy-protocol.txt`).
//!
//! Our own: libraries parse a buffer and so need bytes read ahead that belong to the session (or its TLS). Here
//! exactly the header is read.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits::PROXY_HEADER_BYTES_MAX;

/// Whom a balancer brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
}

/// The balancer misbehaved.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("expected a PROXY v1 or v2 header: {0}")]
    Malformed(&'static str),
    #[error("no PROXY header: {0}")]
    Io(#[from] io::Error),
}

/// First bytes of version 2 (§2.2), of which the first has been read.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Longest header of version 1, with CRLF (§2.1).
const V1_BYTES_MAX: usize = 107;

/// Reads the header. `None`: the balancer speaks for itself (health check), or doesn't know.
pub(super) async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<Addresses>, ProxyError> {
    match stream.read_u8().await? {
        b'P' => read_v1(stream).await,
        b'\r' => read_v2(stream).await,
        _ => Err(ProxyError::Malformed("unknown first byte")),
    }
}

async fn read_v1(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Addresses>, ProxyError> {
    let mut line = vec![b'P'];
    while line.last() != Some(&b'\n') {
        if line.len() == V1_BYTES_MAX {
            return Err(ProxyError::Malformed("version 1 line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    let text = str::from_utf8(&line).ok().and_then(|t| t.strip_suffix("\r\n"));
    let words: Vec<&str> = text.unwrap_or_default().split(' ').collect();
    let bad = ProxyError::Malformed("version 1 line");
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), client, server, client_port, server_port] => {
            let address = |ip: &str, port: &str| {
                let ip: IpAddr = ip.parse().ok()?;
                let right = ip.is_ipv4() == (*family == "TCP4");
                right.then_some(SocketAddr::new(ip, port.parse().ok()?))
            };
            match (address(client, client_port), address(server, server_port)) {
                (Some(client), Some(server)) => Ok(Some(Addresses { client, server })),
                _ => Err(bad),
            }
        }
        _ => Err(bad),
    }
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Addresses>, ProxyError> {
    let mut head = [0; 15];
    stream.read_exact(&mut head).await?;
    let [.., command, family, high, low] = head;
    if head[..11] != SIGNATURE[1..] {
        return Err(ProxyError::Malformed("version 2 signature"));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > PROXY_HEADER_BYTES_MAX {
        return Err(ProxyError::Malformed("version 2 header is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    match (command, family) {
        // LOCAL: the balancer itself.
        (0x20, _) => Ok(None),
        (0x21, 0x11) => v2_addresses::<4>(&body, |b| Ipv4Addr::from(b).into()),
        (0x21, 0x21) => v2_addresses::<16>(&body, |b| Ipv6Addr::from(b).into()),
        // UDP, UNIX, unspecified: no address that means anything here.
        (0x21, _) => Ok(None),
        _ => Err(ProxyError::Malformed("version 2 command")),
    }
}

fn v2_addresses<const N: usize>(
    body: &[u8],
    ip: impl Fn([u8; N]) -> IpAddr,
) -> Result<Option<Addresses>, ProxyError> {
    let short = ProxyError::Malformed("version 2 addresses are cut off");
    let parts = body.split_first_chunk::<N>().and_then(|(client, rest)| {
        let (server, rest) = rest.split_first_chunk::<N>()?;
        let ports = rest.first_chunk::<4>()?;
        Some((client, server, ports))
    });
    let Some((client, server, [a, b, c, d])) = parts else { return Err(short) };
    Ok(Some(Addresses {
        client: SocketAddr::new(ip(*client), u16::from_be_bytes([*a, *b])),
        server: SocketAddr::new(ip(*server), u16::from_be_bytes([*c, *d])),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> (Result<Option<Addresses>, ProxyError>, usize) {
        let mut input = bytes;
        let result = read_header(&mut input).await;
        (result, input.len())
    }

    fn addresses(client: &str, server: &str) -> Addresses {
        Addresses { client: client.parse().unwrap(), server: server.parse().unwrap() }
    }

    #[tokio::test]
    async fn version_1_is_read_to_its_end_and_no_further() {
        let (result, left) = read(b"PROXY TCP4 192.0.2.1 10.0.0.1 5000 25\r\nEHLO").await;
        assert_eq!(result.unwrap(), Some(addresses("192.0.2.1:5000", "10.0.0.1:25")));
        assert_eq!(left, 4);
        let (result, _) = read(b"PROXY TCP6 2001:db8::1 ::1 5000 25\r\n").await;
        assert_eq!(result.unwrap(), Some(addresses("[2001:db8::1]:5000", "[::1]:25")));
        assert_eq!(read(b"PROXY UNKNOWN\r\n").await.0.unwrap(), None);
    }

    #[tokio::test]
    async fn version_2_is_read_with_its_extensions() {
        let mut header = SIGNATURE.to_vec();
        header.extend([0x21, 0x11, 0, 15, 192, 0, 2, 1, 10, 0, 0, 1, 0x13, 0x88, 0, 25, 4, 0, 0]);
        header.extend(b"EHLO");
        let (result, left) = read(&header).await;
        assert_eq!(result.unwrap(), Some(addresses("192.0.2.1:5000", "10.0.0.1:25")));
        assert_eq!(left, 4);
        header[12] = 0x20;
        assert_eq!(read(&header).await.0.unwrap(), None);
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(200));
        let mut huge = SIGNATURE.to_vec();
        huge.extend([0x21, 0x11, 0xff, 0xff]);
        let mut short = SIGNATURE.to_vec();
        short.extend([0x21, 0x11, 0, 2, 1, 2]);
        for bad in [
            b"EHLO x\r\n".as_slice(),
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n",
            b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\0",
            long.as_bytes(),
            &huge,
            &short,
            b"PROXY TCP4",
        ] {
            assert!(read(bad).await.0.is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
