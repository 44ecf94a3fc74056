//! Sockets of `dev`: those of the sink and of the DNS server, and its questions to the nodes.

#![allow(clippy::disallowed_methods, reason = "this is the module that owns the sockets of dev")]

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Listens on `address`; `what` stands in the error.
pub(super) async fn tcp(address: SocketAddr, what: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| refused(address, what, &error))
}

/// Receives datagrams on `address`; `what` stands in the error.
pub(super) async fn udp(address: SocketAddr, what: &str) -> io::Result<UdpSocket> {
    UdpSocket::bind(address).await.map_err(|error| refused(address, what, &error))
}

/// Connects to `address`.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect(address).await
}

fn refused(address: SocketAddr, what: &str, error: &io::Error) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "; does another cluster run here?",
        _ => "",
    };
    io::Error::new(error.kind(), format!("can't listen on {address} for {what}: {error}{hint}"))
}
