//! Delivery to a program of this machine, one address at a time: Exim's `pipe`.
//!
//! The program gets the whole message as a file on its standard input, never a part of one, whatever becomes of this
//! process. It is started when the attempt is in the log, while the lease holds: that is its final dot. From then on
//! nobody but the program knows what it has done, so it is waited for.

use std::{
    io::{self, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ppsw_spool::queue::QueuedMessage;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe::Receiver,
    process::{Child, Command},
    time::timeout,
};
use tracing::debug;

use super::{
    attempt::{Lease, Workshop},
    plan::Leg,
    reply::printable,
    retry::Cause,
    seams::{BodySource, Fence, QueueSource},
    transaction::Answer,
    transmit::Sent,
    user::User,
};
use crate::{
    files,
    limits::{PIPE_OUTPUT_PATIENCE, PIPE_RETURN_BYTES_MAX},
    route::Program,
};

/// Where programs that the program starts are looked for (Exim's default).
const PATH: &str = "/bin:/usr/bin";

/// Why a program was not run, or has no result.
enum Trouble {
    Fenced,
    /// The message cannot be read.
    Unread(String),
    /// Something else that is ours to mend.
    Later(String),
}

/// How a program ended.
struct Run {
    /// `None`: its time was over, and it was killed.
    status: Option<ExitStatus>,
    output: Vec<u8>,
}

impl Workshop {
    /// Runs a program for the one address of a leg.
    pub(super) async fn pipe(
        &self,
        source: &dyn QueueSource,
        message: &QueuedMessage,
        leg: &Leg,
        program: &Program,
        fence: &Lease<'_>,
    ) -> Vec<Sent> {
        let clock = &self.parts.clock;
        let begin = clock.instant();
        let (answer, output) = match self.run(source, message, leg, program, fence).await {
            Ok(run) => run.judged(&leg.destination.transport, program),
            Err(Trouble::Fenced) => (Answer::Fenced, String::new()),
            Err(Trouble::Unread(why)) => (Answer::Unread(why), String::new()),
            Err(Trouble::Later(why)) => {
                let text = format!("{}: {why}", leg.destination.transport);
                (Answer::Deferred { text, elsewhere: false, cause: Cause::Other }, String::new())
            }
        };
        let time = clock.instant().saturating_duration_since(begin);
        let sent = Sent {
            answer,
            host: None,
            mx: None,
            time,
            notifies: false,
            cipher: String::new(),
            output,
        };
        vec![sent; leg.addresses.len()]
    }

    async fn run(
        &self,
        source: &dyn QueueSource,
        message: &QueuedMessage,
        leg: &Leg,
        program: &Program,
        fence: &Lease<'_>,
    ) -> Result<Run, Trouble> {
        let mut command = self.command(message, leg, program)?;
        let mut body = source.body(message);
        let strips = leg.destination.strip_nul && message.envelope.nul_count > 0;
        let letter = tokio::select! {
            letter = letter(&self.parts.programs.dir, program, body.as_mut(), strips) => letter,
            () = fence.broken() => Err(Trouble::Fenced),
        };
        let letter = match letter {
            // The log has ended, so the lease has.
            Err(Trouble::Unread(_)) if !fence.holds() => Err(Trouble::Fenced),
            letter => letter,
        }?;
        let begun = tokio::select! {
            begun = fence.begun() => begun,
            () = fence.broken() => false,
        };
        if !begun || !fence.is_open() || !fence.holds() {
            return Err(Trouble::Fenced);
        }
        let cannot = |error: io::Error| {
            let name = program.words.first().map_or("", String::as_str);
            Trouble::Later(format!("{name} cannot be run: {error}"))
        };
        let (output, writer) = io::pipe().map_err(cannot)?;
        let errors = writer.try_clone().map_err(cannot)?;
        command.stdin(letter).stdout(writer).stderr(errors);
        let child = command.spawn().map_err(cannot)?;
        // With it go our ends of its output.
        drop(command);
        let output = Receiver::from_owned_fd(OwnedFd::from(output)).map_err(cannot)?;
        debug!(id = %message.id, transport = leg.destination.transport, "a program runs");
        wait(child, output, program).await.map_err(cannot)
    }

    /// The command with its environment, and nothing of ours.
    fn command(
        &self,
        message: &QueuedMessage,
        leg: &Leg,
        program: &Program,
    ) -> Result<Command, Trouble> {
        let user = User::of(program.user.as_deref()).map_err(Trouble::Later)?;
        let Some((name, arguments)) = program.words.split_first() else {
            return Err(Trouble::Later("no command".to_owned()));
        };
        let mut command = Command::new(name);
        command
            .args(arguments)
            .env_clear()
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .env("SENDER", &message.envelope.sender)
            .env("MESSAGE_ID", message.id.to_string())
            .env("HOST", &self.parts.name)
            .env("PATH", PATH)
            .env("SHELL", "/bin/sh")
            .env("USER", &user.name)
            .env("LOGNAME", &user.name)
            .env("HOME", &user.home)
            .current_dir("/")
            // Its own children are killed with it.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(smtp) = self.parts.programs.smtp {
            command.env("PPSW_SMTP", smtp.to_string());
        }
        if let Some((uid, gid)) = user.becomes {
            // The standard library drops the other groups with it.
            command.uid(uid).gid(gid);
        }
        debug!(id = %message.id, address = leg.addresses.first().map(|a| a.key.as_str()), "piping");
        Ok(command)
    }
}

/// The message as a file that nobody else sees, with the line ends of this machine, from its beginning.
async fn letter(
    dir: &Path,
    program: &Program,
    body: &mut dyn BodySource,
    strips: bool,
) -> Result<Stdio, Trouble> {
    let cannot =
        |error: io::Error| Trouble::Later(format!("the message cannot be written for it: {error}"));
    let mut file = tokio::fs::File::from_std(files::anonymous(dir).map_err(cannot)?);
    let mut lines = Lines { strips, held: false };
    file.write_all(program.prefix.as_bytes()).await.map_err(cannot)?;
    loop {
        let chunk = body.next().await.map_err(|error| Trouble::Unread(error.to_string()))?;
        let bytes = match &chunk {
            Some(chunk) => lines.of(chunk),
            None => lines.end(),
        };
        file.write_all(&bytes).await.map_err(cannot)?;
        if chunk.is_none() {
            break;
        }
    }
    file.write_all(program.suffix.as_bytes()).await.map_err(cannot)?;
    file.flush().await.map_err(cannot)?;
    let mut file = file.into_std().await;
    file.seek(SeekFrom::Start(0)).map_err(cannot)?;
    Ok(Stdio::from(file))
}

/// Makes LF of CRLF, and leaves NUL bytes out.
struct Lines {
    strips: bool,
    /// A CR that may be half of a line end.
    held: bool,
}

impl Lines {
    fn of(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(chunk.len() + 1);
        for byte in chunk.iter().copied().filter(|byte| !self.strips || *byte != 0) {
            if std::mem::take(&mut self.held) && byte != b'\n' {
                out.push(b'\r');
            }
            if byte == b'\r' {
                self.held = true;
            } else {
                out.push(byte);
            }
        }
        out
    }

    fn end(&mut self) -> Vec<u8> {
        if std::mem::take(&mut self.held) { vec![b'\r'] } else { Vec::new() }
    }
}

/// Waits for the end of a program, for as long as it may take; then it is killed, with all that it has started.
async fn wait(mut child: Child, output: Receiver, program: &Program) -> io::Result<Run> {
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    let kept: Arc<Mutex<Vec<u8>>> = Arc::default();
    let reading = read(output, Arc::clone(&kept), program.max_output);
    let mut reading = tokio::spawn(reading);
    let status = match timeout(program.timeout, child.wait()).await {
        Ok(status) => Some(status?),
        Err(_) => {
            if let Some(group) = group.and_then(rustix::process::Pid::from_raw) {
                // Not there any more: all the better.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            child.wait().await?;
            None
        }
    };
    // What it has started may go on and keep the pipe open: that is not waited for.
    if timeout(PIPE_OUTPUT_PATIENCE, &mut reading).await.is_err() {
        reading.abort();
    }
    let output = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Run { status, output })
}

/// Reads to the end, and keeps the first `most` bytes.
async fn read(mut output: Receiver, kept: Arc<Mutex<Vec<u8>>>, most: u64) {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut piece = [0; 4096];
    while let Ok(length) = output.read(&mut piece).await {
        if length == 0 {
            break;
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = most.saturating_sub(kept.len()).min(length);
        kept.extend_from_slice(&piece[..room]);
    }
}

impl Run {
    /// What its end means, and the output that is to be returned.
    fn judged(&self, transport: &str, program: &Program) -> (Answer, String) {
        let name = program.words.first().map_or("", String::as_str);
        let output = String::from_utf8_lossy(&self.output).into_owned();
        let first = output.lines().map(str::trim).find(|line| !line.is_empty());
        let said = first.map_or_else(String::new, |line| format!(": {line}"));
        let later = |text: String| {
            (
                Answer::Deferred { text: printable(&text), elsewhere: false, cause: Cause::Other },
                String::new(),
            )
        };
        let Some(status) = self.status else {
            let time = Duration::from_secs(program.timeout.as_secs());
            let time = humantime::format_duration(time);
            return later(format!(
                "child process of {transport} transport timed out after {time} (command: {name}){said}"
            ));
        };
        let Some(code) = status.code() else {
            // Somebody stopped it, perhaps with this machine: it has not said what it makes of the message.
            let signal = status.signal().unwrap_or_default();
            return later(format!(
                "child process of {transport} transport was ended by signal {signal} (command: {name}){said}"
            ));
        };
        if code == 0 {
            return (Answer::Delivered(String::new()), String::new());
        }
        let text = format!(
            "child process of {transport} transport returned {code}{} (command: {name}){said}",
            meaning(code)
        );
        if program.temp_errors.contains(&code) {
            return later(text);
        }
        let returned =
            if program.return_fail_output { cut(&output).to_owned() } else { String::new() };
        (Answer::Failed(printable(&text)), returned)
    }
}

fn cut(output: &str) -> &str {
    let mut end = output.len().min(PIPE_RETURN_BYTES_MAX);
    while !output.is_char_boundary(end) {
        end -= 1;
    }
    &output[..end]
}

/// What `sysexits.h` says of a code.
fn meaning(code: i32) -> &'static str {
    match code {
        64 => " (could mean usage or syntax error)",
        65 => " (could mean error in input data)",
        66 => " (could mean cannot open input)",
        67 => " (could mean user unknown)",
        68 => " (could mean host unknown)",
        69 => " (could mean service or program unavailable)",
        70 => " (could mean internal software error)",
        71 => " (could mean internal operating system error)",
        72 => " (could mean system file missing)",
        73 => " (could mean cannot create output)",
        74 => " (could mean input or output error)",
        75 => " (could mean temporary error)",
        76 => " (could mean remote error in protocol)",
        77 => " (could mean permission denied)",
        78 => " (could mean configuration error)",
        126 => " (could mean unable to execute command)",
        127 => " (could mean command not found)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_become_those_of_this_machine() {
        for (chunks, expected) in [
            (vec![&b"a\r\nb\r\n"[..]], &b"a\nb\n"[..]),
            (vec![b"a\r", b"\nb\r", b"\r\n"], b"a\nb\r\n"),
            (vec![b"a\rb\r"], b"a\rb\r"),
            (vec![b"a\nb"], b"a\nb"),
            (vec![], b""),
        ] {
            let mut lines = Lines { strips: false, held: false };
            let mut out: Vec<u8> = chunks.iter().flat_map(|chunk| lines.of(chunk)).collect();
            out.extend(lines.end());
            assert_eq!(out, expected, "{chunks:?}");
        }
        let mut lines = Lines { strips: true, held: false };
        assert_eq!(lines.of(b"a\0\r\0\nb"), b"a\nb");
    }
}
