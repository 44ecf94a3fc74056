//! The mail sink of `dev`: takes mail by SMTP and LMTP and files every transaction as one file of a Maildir.
//!
//! It stands in for the Internet and for the mail stores, so it is tolerant in commands and exact in content: what
//! came between `354` and the final dot is filed byte by byte, without the dots of transparency. In front of it
//! stand `X-Sink-Envelope: <sender>` and one `X-Sink-Recipient: <recipient>` per recipient.
//!
//! Local parts that begin so make it misbehave on purpose:
//!
//! | local part | answer |
//! | --- | --- |
//! | `defer…` | `451` to RCPT |
//! | `fail…` | `550` to RCPT |
//! | `quota…` | by LMTP `452` after the final dot, for this recipient only; by SMTP `452` to RCPT |
//! | `slow…` | the reply to the final dot comes three seconds late |

mod dots;
mod maildir;
mod session;

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use ppsw_spool::env::SystemClock;
use tokio::net::TcpListener;

use super::listen;
use crate::run::Failure;
use maildir::Maildir;
use session::{Protocol, Session};

/// Runs the sink until a listening socket fails. `maildir` is made with its `tmp`, `new` and `cur` if missing.
///
/// # Errors
/// An address can't be bound, or the Maildir can't be made.
pub async fn sink(smtp: SocketAddr, lmtp: SocketAddr, maildir: &Path) -> Result<(), Failure> {
    let maildir = Arc::new(Maildir::create(maildir, Arc::new(SystemClock))?);
    let smtp = listen::tcp(smtp, "the sink's SMTP").await?;
    let lmtp = listen::tcp(lmtp, "the sink's LMTP").await?;
    tokio::try_join!(
        accept(smtp, Protocol::Smtp, Arc::clone(&maildir)),
        accept(lmtp, Protocol::Lmtp, maildir)
    )?;
    Ok(())
}

async fn accept(
    listener: TcpListener,
    protocol: Protocol,
    maildir: Arc<Maildir>,
) -> io::Result<()> {
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The client was gone before we looked, or we are short of descriptors: neither ends the sink.
            Err(error) => {
                tracing::warn!(%error, "sink: accept failed");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                continue;
            }
        };
        let session = Session::new(protocol, Arc::clone(&maildir));
        tokio::spawn(async move {
            if let Err(error) = session.run(stream).await {
                tracing::debug!(%error, "sink: connection ended");
            }
        });
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test\'s own files")]
mod tests {
    use std::fs;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn start(protocol: Protocol, dir: &Path) -> SocketAddr {
        let maildir = Arc::new(Maildir::create(dir, Arc::new(SystemClock)).unwrap());
        let listener = listen::tcp("127.0.0.1:0".parse().unwrap(), "test").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, protocol, maildir));
        address
    }

    /// Sends everything at once (pipelining), ends with QUIT, gives all that came back.
    async fn talk(address: SocketAddr, input: &[u8]) -> String {
        let stream: TcpStream = listen::connect(address).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let input = [input, b"QUIT\r\n"].concat();
        let sender = tokio::spawn(async move { write.write_all(&input).await.map(|()| write) });
        let mut answer = String::new();
        read.read_to_string(&mut answer).await.unwrap();
        sender.await.unwrap().unwrap();
        answer
    }

    fn codes(answer: &str) -> Vec<&str> {
        answer
            .lines()
            .filter(|line| line.as_bytes().get(3) == Some(&b' '))
            .map(|line| &line[..3])
            .collect()
    }

    fn filed(dir: &Path) -> Vec<Vec<u8>> {
        let mut names: Vec<_> =
            fs::read_dir(dir.join("new")).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        names.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    #[tokio::test]
    async fn files_what_came_without_the_stuffed_dots() {
        let dir = tempfile::tempdir().unwrap();
        let address = start(Protocol::Smtp, dir.path()).await;
        let answer = talk(
            address,
            b"EHLO x\r\nMAIL FROM:<a@b> SIZE=3\r\nRCPT TO:<c@d>\r\nrcpt to: <e@f>\r\nDATA\r\n\
              ..dot\r\n\0nul \xff bare\rcr\n.\nlf\r\n.\r.\r\n.\r\n\
              MAIL FROM:<>\r\nRCPT TO:<g@h>\r\nDATA\r\n.\r\n",
        )
        .await;
        assert_eq!(
            codes(&answer),
            ["220", "250", "250", "250", "250", "354", "250", "250", "250", "354", "250", "221"],
            "{answer}"
        );
        let filed = filed(dir.path());
        assert_eq!(
            filed[0],
            b"X-Sink-Envelope: <a@b>\r\nX-Sink-Recipient: <c@d>\r\nX-Sink-Recipient: <e@f>\r\n\
              .dot\r\n\0nul \xff bare\rcr\n.\nlf\r\n\r.\r\n"
        );
        assert_eq!(filed[1], b"X-Sink-Envelope: <>\r\nX-Sink-Recipient: <g@h>\r\n");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn lmtp_answers_per_recipient() {
        let dir = tempfile::tempdir().unwrap();
        let address = start(Protocol::Lmtp, dir.path()).await;
        let answer = talk(
            address,
            b"LHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<quota1@d>\r\nRCPT TO:<fail@d>\r\n\
              RCPT TO:<defer@d>\r\nDATA\r\nx\r\n.\r\n",
        )
        .await;
        assert_eq!(
            codes(&answer),
            ["220", "250", "250", "250", "250", "550", "451", "354", "250", "452", "221"],
            "{answer}"
        );
        assert_eq!(
            filed(dir.path()),
            [b"X-Sink-Envelope: <a@b>\r\nX-Sink-Recipient: <c@d>\r\nx\r\n"]
        );
    }

    #[tokio::test]
    async fn long_messages_pass_through_a_small_buffer() {
        let dir = tempfile::tempdir().unwrap();
        let address = start(Protocol::Smtp, dir.path()).await;
        let line = [&[b'x'; 998][..], b"\r\n"].concat();
        let body = line.repeat(3_000);
        let input =
            [&b"HELO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"[..], &body, b".\r\n"]
                .concat();
        assert!(talk(address, &input).await.contains("\r\n250 2.0.0 filed"));
        let filed = filed(dir.path());
        assert!(filed[0].ends_with(&body) && filed.len() == 1);
    }

    #[tokio::test]
    async fn wrong_order_and_wrong_protocol_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let address = start(Protocol::Smtp, dir.path()).await;
        let answer = talk(
            address,
            b"LHLO x\r\nRCPT TO:<a@b>\r\nDATA\r\nFOO\r\nMAIL FROM:x\r\nNOOP\r\nRSET\r\n",
        )
        .await;
        assert_eq!(
            codes(&answer),
            ["220", "500", "503", "503", "500", "501", "250", "250", "221"],
            "{answer}"
        );
        assert!(filed(dir.path()).is_empty());
    }
}
