//! Sessions that send one message after the other, all of them on one thread: a thread for each took a quarter of what the fastest
//! servers could have done meanwhile.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::load::{ERRORS_MAX, MANY};

/// The longest reply, all its lines, that is understood.
const REPLY_BYTES_MAX: usize = 1_024;
/// Longer than any server here takes for a reply.
const REPLY_MAX: Duration = Duration::from_secs(90);

/// What all sessions send.
pub(super) struct Message {
    /// Commands in front of `DATA`, with their line ends.
    pub(super) envelope: Vec<String>,
    /// With the final dot.
    pub(super) content: Vec<u8>,
    /// Many on one connection.
    pub(super) many: bool,
}

/// Sends for a time; gives the times from each final dot to its reply.
pub(super) fn closed(
    addresses: &[SocketAddr],
    sessions: usize,
    time: Duration,
    message: Message,
) -> Vec<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (message, end) = (Arc::new(message), Instant::now() + time);
    runtime.block_on(async {
        let mut all = JoinSet::new();
        for number in 0..sessions {
            all.spawn(session(addresses[number % addresses.len()], end, Arc::clone(&message)));
        }
        all.join_all().await.concat()
    })
}

async fn session(address: SocketAddr, end: Instant, message: Arc<Message>) -> Vec<Duration> {
    let (mut latencies, mut errors) = (Vec::new(), 0);
    while Instant::now() < end {
        match connection(address, end, &message, &mut latencies).await {
            Ok(()) => errors = 0,
            Err(error) => {
                errors += 1;
                assert!(errors < ERRORS_MAX, "{address}: {error}");
            }
        }
    }
    latencies
}

async fn connection(
    address: SocketAddr,
    end: Instant,
    message: &Message,
    latencies: &mut Vec<Duration>,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    hear(&mut stream, 220).await?;
    say(&mut stream, b"EHLO client.example.org\r\n", 250).await?;
    for _ in 0..if message.many { MANY } else { 1 } {
        if Instant::now() >= end {
            break;
        }
        for command in &message.envelope {
            say(&mut stream, command.as_bytes(), 250).await?;
        }
        say(&mut stream, b"DATA\r\n", 354).await?;
        stream.write_all(&message.content).await?;
        let dot = Instant::now();
        hear(&mut stream, 250).await?;
        latencies.push(dot.elapsed());
    }
    say(&mut stream, b"QUIT\r\n", 221).await
}

async fn say(stream: &mut TcpStream, bytes: &[u8], code: u16) -> io::Result<()> {
    stream.write_all(bytes).await?;
    hear(stream, code).await
}

/// Reads one reply. Nothing is sent ahead, so what is there belongs to it.
async fn hear(stream: &mut TcpStream, code: u16) -> io::Result<()> {
    let (mut reply, mut length) = ([0; REPLY_BYTES_MAX], 0);
    while !is_whole(&reply[..length]) {
        let read = timeout(REPLY_MAX, stream.read(&mut reply[length..])).await??;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        length += read;
    }
    let reply = String::from_utf8_lossy(&reply[..length]);
    match reply.starts_with(&code.to_string()) {
        true => Ok(()),
        false => Err(io::Error::other(format!("expected {code}, got {reply}"))),
    }
}

/// Whether the last line has come, which has no hyphen behind its code (RFC 5321 §4.2.1).
fn is_whole(reply: &[u8]) -> bool {
    let Some(lines) = reply.strip_suffix(b"\r\n") else { return false };
    let last = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    lines.get(last + 3) != Some(&b'-')
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn a_reply_ends_with_a_line_without_a_hyphen() {
        for whole in ["250 ok\r\n", "250\r\n", "250-a\r\n250 b\r\n", "354 a-b\r\n"] {
            assert!(is_whole(whole.as_bytes()), "{whole:?}");
        }
        for part in ["", "250 ok", "250 ok\r", "250-a\r\n", "250-a\r\n250-b\r\n", "250-a\r\n25"] {
            assert!(!is_whole(part.as_bytes()), "{part:?}");
        }
    }
}
