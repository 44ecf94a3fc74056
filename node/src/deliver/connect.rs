//! Connections to the servers that mail goes to.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpSocket,
};

/// A byte stream to a server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens connections. Tests and simulations have their own.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Connects within `limit`, from an address of ours if it is given.
    ///
    /// # Errors
    /// What the network says; `TimedOut` after `limit`.
    async fn connect(
        &self,
        from: Option<IpAddr>,
        to: SocketAddr,
        limit: Duration,
    ) -> io::Result<Box<dyn Stream>>;
}

/// TCP, with the operating system's choice of our address, or one of ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector {
    from: Option<IpAddr>,
}

impl From<IpAddr> for TcpConnector {
    fn from(address: IpAddr) -> Self {
        Self { from: Some(address) }
    }
}

#[async_trait]
impl Connector for TcpConnector {
    #[allow(clippy::disallowed_methods, reason = "delivery opens its sockets here, and only here")]
    async fn connect(
        &self,
        from: Option<IpAddr>,
        to: SocketAddr,
        limit: Duration,
    ) -> io::Result<Box<dyn Stream>> {
        let connect = async {
            let Some(from) = from.or(self.from) else {
                return tokio::net::TcpStream::connect(to).await;
            };
            let socket = match to {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            socket.bind(SocketAddr::new(from, 0))?;
            socket.connect(to).await
        };
        let stream = tokio::time::timeout(limit, connect)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connection timed out"))??;
        // Commands are small and wait for their replies.
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}
