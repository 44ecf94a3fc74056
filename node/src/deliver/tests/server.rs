//! A scripted SMTP and LMTP server.
#![allow(clippy::disallowed_methods, reason = "a test server on loopback")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::AbortHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::deliver::connect::Stream;

/// Where the server closes the connection instead of answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Greeting,
    Ehlo,
    Mail,
    Rcpt,
    Data,
    /// After some bytes of data.
    InData,
    /// After the final dot, without a reply.
    Dot,
}

/// What comes of STARTTLS.
#[derive(Clone)]
pub(crate) enum StartTls {
    Works(Arc<ServerConfig>),
    /// 454.
    Refused,
    /// 220, and then no handshake.
    Breaks,
    /// 220, and a reply to nothing before the handshake.
    Injects(Arc<ServerConfig>),
}

type Wire = BufReader<Box<dyn Stream>>;

type Hook = Arc<dyn Fn() + Send + Sync>;

/// What the server says.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) greeting: &'static str,
    pub(crate) ehlo: &'static str,
    pub(crate) helo: &'static str,
    pub(crate) mail: &'static str,
    /// Reply to RCPT: the first entry whose word the command contains, else 250.
    pub(crate) rcpt: Vec<(&'static str, &'static str)>,
    pub(crate) data: &'static str,
    /// Replies to the final dot; for LMTP by recipient, as `rcpt`.
    pub(crate) dot: Vec<(&'static str, &'static str)>,
    pub(crate) lmtp: bool,
    pub(crate) close: Option<At>,
    /// Called when DATA has been answered.
    pub(crate) in_data: Option<Hook>,
    /// Called when RCPT arrives.
    pub(crate) at_rcpt: Option<Hook>,
    /// The greeting comes when somebody says so.
    pub(crate) greets: Option<Arc<Notify>>,
    /// Offered, before a handshake.
    pub(crate) starttls: Option<StartTls>,
    pub(crate) auth: &'static str,
    /// Reply to a chunk that is not the last, or is the first and is not taken.
    pub(crate) chunk: &'static str,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            greeting: "220 here ESMTP",
            ehlo: "250-here\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 1000000",
            helo: "250 here",
            mail: "250 ok",
            rcpt: vec![],
            data: "354 go on",
            dot: vec![("", "250 2.0.0 taken")],
            lmtp: false,
            close: None,
            in_data: None,
            at_rcpt: None,
            greets: None,
            starttls: None,
            auth: "235 2.7.0 welcome",
            chunk: "250 2.0.0 go on",
        }
    }
}

/// A message as the server got it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) mail: String,
    pub(crate) rcpts: Vec<String>,
    /// With dots removed; `complete`: the final dot came.
    pub(crate) data: Vec<u8>,
    pub(crate) complete: bool,
    /// It came as chunks.
    pub(crate) chunks: bool,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) taken: Mutex<Vec<Taken>>,
    pub(crate) commands: Mutex<Vec<String>>,
    pub(crate) connections: AtomicUsize,
    /// Where they came from.
    pub(crate) peers: Mutex<Vec<IpAddr>>,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    task: AbortHandle,
}

impl Server {
    pub(crate) async fn start(script: Script) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script).await
    }

    pub(crate) async fn start_at(address: SocketAddr, script: Script) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let seeing = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                seeing.peers.lock().unwrap().push(peer.ip());
                seeing.connections.fetch_add(1, Ordering::SeqCst);
                let (script, seen) = (script.clone(), Arc::clone(&seeing));
                tokio::spawn(async move { talk(stream, &script, &seen).await });
            }
        });
        Self { address, seen, task: task.abort_handle() }
    }

    /// Messages that were taken whole.
    pub(crate) fn complete(&self) -> Vec<Taken> {
        let taken = self.seen.taken.lock().unwrap();
        taken.iter().filter(|taken| taken.complete && !taken.rcpts.is_empty()).cloned().collect()
    }

    pub(crate) fn commands(&self) -> Vec<String> {
        self.seen.commands.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn by_word(replies: &[(&'static str, &'static str)], text: &str) -> &'static str {
    replies.iter().find(|(word, _)| text.contains(word)).map_or("250 ok", |(_, reply)| reply)
}

/// One connection. `None`: it is over.
async fn talk(stream: TcpStream, script: &Script, seen: &Seen) -> Option<()> {
    let mut stream: Wire = BufReader::new(Box::new(stream));
    let mut offers = script.starttls.as_ref();
    if script.close == Some(At::Greeting) {
        return None;
    }
    if let Some(greets) = &script.greets {
        greets.notified().await;
    }
    say(&mut stream, script.greeting).await?;
    let mut taken = Taken::default();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        seen.commands.lock().unwrap().push(line.clone());
        let verb = line.split(' ').next().unwrap().to_uppercase();
        let (at, reply) = match verb.as_str() {
            "EHLO" | "LHLO" if offers.is_some() => (At::Ehlo, "250-here\r\n250 STARTTLS"),
            "EHLO" | "LHLO" => (At::Ehlo, script.ehlo),
            "STARTTLS" => {
                let config = match offers.take()? {
                    StartTls::Refused => {
                        say(&mut stream, "454 4.7.0 not now").await?;
                        continue;
                    }
                    StartTls::Breaks => {
                        say(&mut stream, "220 go on").await?;
                        return None;
                    }
                    StartTls::Works(config) => {
                        say(&mut stream, "220 go on").await?;
                        config
                    }
                    StartTls::Injects(config) => {
                        say(&mut stream, "220 go on\r\n250 done").await?;
                        config
                    }
                };
                let acceptor = TlsAcceptor::from(Arc::clone(config));
                stream = BufReader::new(Box::new(acceptor.accept(stream).await.ok()?));
                continue;
            }
            "HELO" => (At::Ehlo, script.helo),
            "MAIL" => {
                taken = Taken { mail: line.clone(), ..Taken::default() };
                (At::Mail, script.mail)
            }
            "RCPT" => {
                if let Some(hook) = &script.at_rcpt {
                    hook();
                }
                let reply = by_word(&script.rcpt, &line);
                if reply.starts_with('2') && script.mail.starts_with('2') {
                    taken.rcpts.push(line.clone());
                }
                (At::Rcpt, reply)
            }
            "DATA" => {
                if script.close == Some(At::Data) {
                    return None;
                }
                say(&mut stream, script.data).await?;
                if script.data.starts_with("354") {
                    data(&mut stream, script, seen, std::mem::take(&mut taken)).await?;
                }
                continue;
            }
            "AUTH" => {
                say(&mut stream, script.auth).await?;
                continue;
            }
            "BDAT" => {
                let mut words = line.split(' ').skip(1);
                let mut bytes = vec![0; words.next()?.parse().ok()?];
                stream.read_exact(&mut bytes).await.ok()?;
                taken.data.extend_from_slice(&bytes);
                let first = !std::mem::replace(&mut taken.chunks, true);
                if words.next() != Some("LAST") || (first && !script.chunk.starts_with('2')) {
                    say(&mut stream, script.chunk).await?;
                } else if script.chunk.starts_with('2') {
                    taken.complete = true;
                    answer_dot(&mut stream, script, seen, std::mem::take(&mut taken)).await?;
                } else {
                    say(&mut stream, "503 5.5.1 no transaction").await?;
                }
                continue;
            }
            "QUIT" => {
                say(&mut stream, "221 bye").await?;
                return None;
            }
            _ => {
                say(&mut stream, "250 ok").await?;
                continue;
            }
        };
        if script.close == Some(at) {
            return None;
        }
        say(&mut stream, reply).await?;
        if reply.starts_with("421") {
            return None;
        }
    }
}

async fn data(stream: &mut Wire, script: &Script, seen: &Seen, mut taken: Taken) -> Option<()> {
    if let Some(hook) = &script.in_data {
        hook();
    }
    if script.close == Some(At::InData) {
        let mut some = [0; 4];
        stream.read_exact(&mut some).await.ok()?;
        return None;
    }
    loop {
        let mut line = Vec::new();
        if stream.read_until(b'\n', &mut line).await.ok()? == 0 {
            seen.taken.lock().unwrap().push(taken);
            return None;
        }
        if line == b".\r\n" {
            break;
        }
        let line = line.strip_prefix(b".").unwrap_or(&line);
        taken.data.extend_from_slice(line);
    }
    taken.complete = true;
    answer_dot(stream, script, seen, taken).await
}

/// A whole message has come.
async fn answer_dot(stream: &mut Wire, script: &Script, seen: &Seen, taken: Taken) -> Option<()> {
    seen.taken.lock().unwrap().push(taken.clone());
    if script.close == Some(At::Dot) {
        return None;
    }
    if script.lmtp {
        for rcpt in &taken.rcpts {
            say(stream, by_word(&script.dot, rcpt)).await?;
        }
    } else {
        say(stream, by_word(&script.dot, "")).await?;
    }
    Some(())
}

async fn say(stream: &mut Wire, reply: &str) -> Option<()> {
    stream.get_mut().write_all(format!("{reply}\r\n").as_bytes()).await.ok()?;
    stream.get_mut().flush().await.ok()
}
