//! Questions of `dev` to the nodes: HTTP for readiness, the control plane for the rest.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::listen;

/// Time for one answer: the nodes are on this machine.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Most of an answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Status and body of `GET path`.
///
/// Own code: one request without redirects, encodings or TLS does not earn an HTTP client.
pub(super) async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = listen::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = timeout(ANSWER_MAX, exchange)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
    parse(&String::from_utf8_lossy(&answer?))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Why a node is not ready; empty: ready.
pub(super) async fn not_ready(address: SocketAddr) -> Vec<String> {
    match get(address, "/readyz").await {
        Ok((200, _)) => vec![],
        Ok((_, body)) => body.lines().map(str::to_owned).collect(),
        Err(error) => vec![format!("no answer from http://{address}/readyz: {error}")],
    }
}
