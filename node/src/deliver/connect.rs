//! Connections to the servers that mail goes to.

use std::{io, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to a server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens connections. Tests and simulations have their own.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Connects within `limit`.
    ///
    /// # Errors
    /// What the network says; `TimedOut` after `limit`.
    async fn connect(&self, to: SocketAddr, limit: Duration) -> io::Result<Box<dyn Stream>>;
}

/// TCP, with the operating system's choice of our address.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

#[async_trait]
impl Connector for TcpConnector {
    #[allow(clippy::disallowed_methods, reason = "delivery opens its sockets here, and only here")]
    async fn connect(&self, to: SocketAddr, limit: Duration) -> io::Result<Box<dyn Stream>> {
        let stream = tokio::time::timeout(limit, tokio::net::TcpStream::connect(to))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connection timed out"))??;
        // Commands are small and wait for their replies.
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}
