//! The listening sockets of HTTP.

#![allow(clippy::disallowed_methods, reason = "this is the module that owns the sockets of HTTP")]

use std::{io, net::SocketAddr};

use tokio::net::TcpListener;

/// Listens on `address`; port 0 lets the kernel choose.
///
/// # Errors
/// The address is not ours or is in use; the text names it.
pub(super) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(error.kind(), format!("can't listen on {address} for HTTP: {error}"))
    })
}
