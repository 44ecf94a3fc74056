//! One connection to the sink.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{dots::Unstuffer, maildir::Maildir};
use crate::limits::{SINK_BUFFER_BYTES, SINK_IDLE_MAX, SINK_LINE_BYTES_MAX, SINK_RECIPIENTS_MAX};

/// How late the answer for a `slow…` recipient is.
const SLOW: Duration = Duration::from_secs(3);

/// The two protocols differ in the greeting and in the replies to the final dot (RFC 2033 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Smtp,
    Lmtp,
}

/// What a recipient wants of the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Take,
    Defer,
    Fail,
    Quota,
    Slow,
}

/// What to do after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Command,
    Data,
    Quit,
}

pub(super) struct Session {
    protocol: Protocol,
    maildir: Arc<Maildir>,
    sender: Option<String>,
    recipients: Vec<(String, Wish)>,
    /// Bytes that were read and not used.
    input: Vec<u8>,
    /// Replies that were not sent: with pipelining they go out together (RFC 2920 §3.2).
    output: Vec<u8>,
}

impl Session {
    pub(super) fn new(protocol: Protocol, maildir: Arc<Maildir>) -> Self {
        Self {
            protocol,
            maildir,
            sender: None,
            recipients: Vec::new(),
            input: Vec::new(),
            output: Vec::new(),
        }
    }

    pub(super) async fn run(mut self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let name = match self.protocol {
            Protocol::Smtp => "ESMTP",
            Protocol::Lmtp => "LMTP",
        };
        self.reply(&format!("220 sink.example.org {name} ppswitch sink"));
        loop {
            let Some(line) = self.line(&mut stream).await? else { return Ok(()) };
            match self.command(&line) {
                Next::Command => {}
                Next::Data => self.data(&mut stream).await?,
                Next::Quit => {
                    stream.write_all(&self.output).await?;
                    return stream.shutdown().await;
                }
            }
        }
    }

    /// Next command line without its end; `None` at the end of the stream.
    async fn line(&mut self, stream: &mut TcpStream) -> io::Result<Option<String>> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.input[searched..].iter().position(|&byte| byte == b'\n') {
                let mut line: Vec<u8> = self.input.drain(..=searched + end).collect();
                while matches!(line.last(), Some(b'\r' | b'\n')) {
                    line.pop();
                }
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            searched = self.input.len();
            if searched > SINK_LINE_BYTES_MAX {
                self.reply("500 5.5.2 line too long");
                stream.write_all(&self.output).await?;
                return Ok(None);
            }
            if self.fill(stream).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Sends what waits, then reads more.
    async fn fill(&mut self, stream: &mut TcpStream) -> io::Result<usize> {
        if !self.output.is_empty() {
            stream.write_all(&self.output).await?;
            self.output.clear();
        }
        self.input.reserve(SINK_BUFFER_BYTES / 4);
        match timeout(SINK_IDLE_MAX, stream.read_buf(&mut self.input)).await {
            Ok(read) => read,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn command(&mut self, line: &str) -> Next {
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        match (verb.to_ascii_uppercase().as_str(), self.protocol) {
            ("HELO", Protocol::Smtp) => self.reset("250 sink.example.org"),
            ("EHLO", Protocol::Smtp) | ("LHLO", Protocol::Lmtp) => self.reset(
                "250-sink.example.org\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-SIZE\r\n\
                 250 ENHANCEDSTATUSCODES",
            ),
            ("MAIL", _) => self.mail(argument),
            ("RCPT", _) => self.rcpt(argument),
            ("DATA", _) if self.sender.is_none() || self.recipients.is_empty() => {
                self.reply("503 5.5.1 MAIL and a good RCPT come before DATA");
            }
            ("DATA", _) => {
                self.reply("354 end with <CRLF>.<CRLF>");
                return Next::Data;
            }
            ("RSET", _) => self.reset("250 2.0.0 forgotten"),
            ("NOOP", _) => self.reply("250 2.0.0 ok"),
            ("VRFY", _) => self.reply("252 2.0.0 try it"),
            ("QUIT", _) => {
                self.reply("221 2.0.0 bye");
                return Next::Quit;
            }
            _ => self.reply("500 5.5.1 unknown command"),
        }
        Next::Command
    }

    fn mail(&mut self, argument: &str) {
        match path(argument, "FROM:") {
            Some(_) if self.sender.is_some() => self.reply("503 5.5.1 one MAIL at a time"),
            Some(sender) => {
                self.sender = Some(sender.to_owned());
                self.reply("250 2.1.0 ok");
            }
            None => self.reply("501 5.5.4 expected MAIL FROM:<address>"),
        }
    }

    fn rcpt(&mut self, argument: &str) {
        let Some(recipient) = path(argument, "TO:") else {
            return self.reply("501 5.5.4 expected RCPT TO:<address>");
        };
        if self.sender.is_none() {
            return self.reply("503 5.5.1 MAIL comes before RCPT");
        }
        if self.recipients.len() == SINK_RECIPIENTS_MAX {
            return self.reply("452 4.5.3 too many recipients");
        }
        match (wish(recipient), self.protocol) {
            (Wish::Defer, _) => self.reply("451 4.2.0 deferred on request"),
            (Wish::Fail, _) => self.reply("550 5.1.1 refused on request"),
            (Wish::Quota, Protocol::Smtp) => self.reply("452 4.2.2 over quota on request"),
            (wish, _) => {
                self.recipients.push((recipient.to_owned(), wish));
                self.reply("250 2.1.5 ok");
            }
        }
    }

    async fn data(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        let taken = self.recipients.iter().any(|(_, wish)| *wish != Wish::Quota);
        let mut draft = self.maildir.begin(self.head());
        let mut unstuffer = Unstuffer::new();
        loop {
            let end = unstuffer.feed(&self.input, &mut draft.buffer);
            match end {
                Some(used) => drop(self.input.drain(..used)),
                None => self.input.clear(),
            }
            if end.is_some() {
                break;
            }
            draft.spill()?;
            if self.fill(stream).await? == 0 {
                return Ok(());
            }
        }
        let filed = if taken { draft.finish() } else { Ok(()) };
        self.answer(filed).await;
        self.forget();
        Ok(())
    }

    /// Replies to the final dot: one, or one for each recipient.
    async fn answer(&mut self, filed: io::Result<()>) {
        if self.recipients.iter().any(|(_, wish)| *wish == Wish::Slow) {
            tokio::time::sleep(SLOW).await;
        }
        let result = match filed {
            Ok(()) => "250 2.0.0 filed".to_owned(),
            Err(error) => format!("452 4.3.1 not filed: {error}"),
        };
        match self.protocol {
            Protocol::Smtp => self.reply(&result),
            Protocol::Lmtp => {
                for (_, wish) in std::mem::take(&mut self.recipients) {
                    match wish {
                        Wish::Quota => self.reply("452 4.2.2 over quota on request"),
                        _ => self.reply(&result),
                    }
                }
            }
        }
    }

    /// The lines in front of the message.
    fn head(&self) -> Vec<u8> {
        let sender = self.sender.as_deref().unwrap_or_default();
        let mut head = format!("X-Sink-Envelope: <{sender}>\r\n");
        for (recipient, _) in self.recipients.iter().filter(|(_, wish)| *wish != Wish::Quota) {
            head.push_str(&format!("X-Sink-Recipient: <{recipient}>\r\n"));
        }
        head.into_bytes()
    }

    fn reset(&mut self, reply: &str) {
        self.forget();
        self.reply(reply);
    }

    fn forget(&mut self) {
        self.sender = None;
        self.recipients.clear();
    }

    fn reply(&mut self, text: &str) {
        self.output.extend_from_slice(text.as_bytes());
        self.output.extend_from_slice(b"\r\n");
    }
}

/// The address between angle brackets behind `keyword`; a quoted local part may hold brackets itself.
fn path<'a>(argument: &'a str, keyword: &str) -> Option<&'a str> {
    let argument = argument.trim_start();
    if !argument.get(..keyword.len())?.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let rest = argument[keyword.len()..].trim_start().strip_prefix('<')?;
    let (mut quoted, mut escaped) = (false, false);
    for (index, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '>' if !quoted => return Some(&rest[..index]),
            _ => {}
        }
    }
    None
}

fn wish(recipient: &str) -> Wish {
    let local = recipient.to_ascii_lowercase();
    [("defer", Wish::Defer), ("fail", Wish::Fail), ("quota", Wish::Quota), ("slow", Wish::Slow)]
        .into_iter()
        .find(|(prefix, _)| local.starts_with(prefix))
        .map_or(Wish::Take, |(_, wish)| wish)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(path("FROM:<>", "FROM:"), Some(""));
        assert_eq!(path("from: <a@b> SIZE=1", "FROM:"), Some("a@b"));
        assert_eq!(path(r#"TO:<"a>\"b"@c>"#, "TO:"), Some(r#""a>\"b"@c"#));
        assert_eq!(path("TO:a@b", "TO:"), None);
        assert_eq!(path("TO", "TO:"), None);
        assert_eq!(path("é", "TO:"), None);
    }
}
