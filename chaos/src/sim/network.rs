//! gRPC between simulated nodes: the real service and the real client, on turmoil's TCP.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use ppsw_spool::{
    NodeId,
    group::{Dial, Lane},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{
    Channel, Endpoint, Uri,
    server::{Connected, Router},
};
use turmoil::net::{TcpListener, TcpStream};

/// As in ppswd: a connection is given up when it is silent so long.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// As in ppswd, so that the simulated requests have the sizes of real ones.
const WINDOW_BYTES: u32 = 8 << 20;
const FRAME_BYTES: u32 = 1 << 20;

/// Where nodes listen for each other.
pub(crate) const RAFT_PORT: u16 = 2590;

/// The simulated host of a node.
pub(crate) fn host(node: NodeId) -> String {
    format!("node{node}")
}

/// Connections of one node, on the simulated network.
#[derive(Default)]
pub(crate) struct Dialer {
    channels: Mutex<HashMap<(NodeId, Lane), Channel>>,
}

impl Dial for Dialer {
    fn channel(&self, node: NodeId, lane: Lane) -> Option<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || {
            let endpoint =
                Endpoint::from_shared(format!("http://{}:{RAFT_PORT}", host(node))).ok()?;
            Some(
                endpoint
                    .connect_timeout(CONNECT_PATIENCE)
                    .http2_keep_alive_interval(KEEP_ALIVE)
                    .keep_alive_timeout(KEEP_ALIVE)
                    .keep_alive_while_idle(true)
                    .initial_stream_window_size(WINDOW_BYTES)
                    .initial_connection_window_size(WINDOW_BYTES)
                    .max_frame_size(FRAME_BYTES)
                    .connect_with_connector_lazy(tower::service_fn(connect)),
            )
        };
        if let Some(channel) = channels.get(&(node, lane)) {
            return Some(channel.clone());
        }
        let channel = open()?;
        channels.insert((node, lane), channel.clone());
        Some(channel)
    }
}

async fn connect(uri: Uri) -> io::Result<TokioIo<TcpStream>> {
    let host = uri.host().unwrap_or_default().to_owned();
    let port = uri.port_u16().unwrap_or(RAFT_PORT);
    Ok(TokioIo::new(TcpStream::connect((host, port)).await?))
}

/// Listens on a port of the simulated host.
pub(crate) async fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)).await
}

/// Serves what other nodes ask, until the host crashes.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
) -> Result<(), tonic::transport::Error> {
    let (give, take) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if give.send(Ok::<_, io::Error>(Accepted(stream))).await.is_err() {
                return;
            }
        }
    });
    router.serve_with_incoming(tokio_stream::wrappers::ReceiverStream::new(take)).await
}

/// A connection as tonic wants it.
struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
