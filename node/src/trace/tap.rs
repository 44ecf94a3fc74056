//! The end of a trace in a session.

use std::net::IpAddr;

use ppsw_proto::control::{self as pb, trace_line::Way};
use ppsw_spool::env::{Clock as _, SystemClock};

use super::{
    Tracer,
    filter::Facts,
    kept::Kept,
    line::{self, SECRET, Step},
};

/// Whether a client came to us, or we went to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

/// Names of the other end, as far as they are known.
pub(crate) type Names<'a> = [Option<&'a str>; 2];

/// A session's lines on their way to those who watch.
#[derive(Debug)]
pub(crate) struct Tap {
    tracer: Tracer,
    direction: Direction,
    peer: IpAddr,
    /// The session's number; 0: none yet.
    number: u64,
    /// A line of it was seen, watched or not.
    begun: bool,
    auth: bool,
    /// Octets of content that have not been told of.
    octets: u64,
    kept: Option<Box<Kept>>,
}

impl Tap {
    pub(crate) fn new(tracer: Tracer, direction: Direction, peer: IpAddr) -> Self {
        let peer = peer.to_canonical();
        Self {
            tracer,
            direction,
            peer,
            number: 0,
            begun: false,
            auth: false,
            octets: 0,
            kept: None,
        }
    }

    /// Whether somebody watches. To be asked before each line.
    pub(crate) fn is_on(&mut self) -> bool {
        if self.tracer.watching() != 0 {
            return true;
        }
        self.begun = true;
        if self.kept.is_some() {
            self.kept = None;
        }
        false
    }

    /// A command that the other end said.
    pub(crate) fn heard(&mut self, names: Names<'_>, command: &[u8]) {
        let text = line::command(command, &mut self.auth);
        self.record(names, Way::Heard, text);
    }

    /// The other end's part of an AUTH exchange.
    pub(crate) fn heard_secret(&mut self, names: Names<'_>) {
        self.record(names, Way::Heard, SECRET.to_owned());
    }

    /// Our commands, each with its line end.
    pub(crate) fn said(&mut self, names: Names<'_>, commands: &[u8]) {
        for command in lines(commands) {
            let text = line::command(command, &mut self.auth);
            self.record(names, Way::Said, text);
        }
    }

    /// Replies that we give, as they go over the wire.
    pub(crate) fn replied(&mut self, names: Names<'_>, replies: &[u8]) {
        for reply in lines(replies) {
            let text = line::printable(&String::from_utf8_lossy(reply));
            self.record(names, Way::Said, text);
        }
    }

    /// One reply of a server.
    pub(crate) fn answered(&mut self, names: Names<'_>, code: u16, texts: &[String]) {
        for (number, text) in texts.iter().enumerate() {
            let mark = if number + 1 < texts.len() { '-' } else { ' ' };
            let text = line::printable(&format!("{code}{mark}{text}"));
            self.record(names, Way::Heard, text);
        }
    }

    /// What happened besides.
    pub(crate) fn note(&mut self, names: Names<'_>, text: &str) {
        self.record(names, Way::Note, line::printable(text));
    }

    /// Octets of content went over the wire; nothing else is ever known of them here.
    pub(crate) fn count(&mut self, octets: usize) {
        self.octets += octets as u64;
    }

    /// Content has ended, or been cut off.
    pub(crate) fn end_of_content(&mut self, names: Names<'_>) {
        let octets = std::mem::take(&mut self.octets);
        if octets > 0 && self.is_on() {
            let way = match self.direction {
                Direction::In => Way::Heard,
                Direction::Out => Way::Said,
            };
            self.record(names, way, format!("{octets} octets of data"));
        }
    }

    fn record(&mut self, names: Names<'_>, way: Way, text: String) {
        let watching = self.tracer.watching();
        let fresh = self.kept.as_ref().is_none_or(|kept| kept.watching != watching);
        if self.number == 0 {
            self.number = self.tracer.number_session();
        }
        let line = |way: Way, text: String| pb::TraceLine {
            time_ms: SystemClock.now().0,
            session: self.number,
            incoming: self.direction == Direction::In,
            peer: self.peer.to_string(),
            host: names.into_iter().flatten().next().unwrap_or_default().to_owned(),
            way: way.into(),
            text,
            lost: 0,
        };
        let (begun, line) = (
            fresh.then(|| line(Way::Note, "the session began before the trace".to_owned())),
            line(way, text),
        );
        let kept = match &mut self.kept {
            Some(kept) if !fresh => kept,
            kept => kept.insert(Box::new(Kept::new(watching))),
        };
        if let Some(note) = begun.filter(|_| std::mem::replace(&mut self.begun, true)) {
            kept.push(note);
        }
        let watches = self.tracer.watches();
        let command = matches!(
            (self.direction, way),
            (Direction::In, Way::Heard) | (Direction::Out, Way::Said)
        );
        // Its address, after the line was cut: nobody has a longer one that is not refused.
        let text = line.text.clone();
        let step = if command { line::step(&text) } else { Step::Other };
        let recipient = match step {
            Step::Mail(sender) => {
                kept.begin(sender, &watches);
                None
            }
            Step::Rcpt(recipient) => Some(recipient),
            Step::Other => None,
        };
        kept.push(line);
        let sender = kept.sender.clone();
        let sender = sender.as_deref();
        let Self { direction, peer, .. } = *self;
        let facts = Facts { direction, peer, names, sender, recipient };
        if let Some(kept) = &mut self.kept {
            kept.show(&watches, &facts);
        }
    }
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = bytes.split(|byte| *byte == b'\n');
    text.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).filter(|line| !line.is_empty())
}
