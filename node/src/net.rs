//! Sockets: the only module of this crate that opens one.
#![allow(clippy::disallowed_methods, reason = "this is the module that owns sockets")]

use std::{io, mem::MaybeUninit, net::SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::limits::LISTEN_BACKLOG;

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; {}", advice(source))]
pub struct BindError {
    pub address: SocketAddr,
    pub source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process has it: stop that one or choose another port",
        io::ErrorKind::AddrNotAvailable => {
            "no interface has this address: add it, or correct the configuration"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE (AmbientCapabilities= in the unit)"
        }
        _ => "correct the address in the configuration",
    }
}

/// Listens on `address`, also right after a predecessor's connections ended there (SO_REUSEADDR).
pub fn listen(address: SocketAddr) -> Result<TcpListener, BindError> {
    open(address).map_err(|source| BindError { address, source })
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Bytes wait in the socket. Does not wait, does not read.
pub fn has_input(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    SockRef::from(stream).peek(&mut byte).is_ok_and(|bytes| bytes > 0)
}

/// Says `text` if that is possible at once, and closes the connection.
pub fn turn_away(stream: TcpStream, text: &[u8]) {
    let socket = SockRef::from(&stream);
    // Who does not listen misses nothing that matters.
    let _ = socket.send(text);
    let _ = socket.shutdown(std::net::Shutdown::Write);
}
