//! As much of an IMAP client (RFC 3501) as a look into a mailbox takes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A session.
pub struct Imap {
    stream: BufReader<TcpStream>,
}

impl Imap {
    /// Logs in where any password does.
    pub fn login(address: SocketAddr, user: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut imap = Self { stream: BufReader::new(stream) };
        let greeting = imap.line().0;
        assert!(greeting.starts_with("* OK"), "{greeting}");
        imap.command(&format!("LOGIN {user} any"));
        imap
    }

    /// Runs a command, which must succeed. Gives the literals of the answer.
    pub fn command(&mut self, command: &str) -> Vec<Vec<u8>> {
        let (end, literals) = self.run(command);
        assert!(end.starts_with("a OK"), "{command}: {end}");
        literals
    }

    /// All messages of a mailbox; none if it does not exist.
    pub fn messages(&mut self, mailbox: &str) -> Vec<Vec<u8>> {
        if !self.run(&format!("EXAMINE {mailbox}")).0.starts_with("a OK") {
            return Vec::new();
        }
        // Of an empty mailbox some servers say that it has no such messages.
        self.run("UID FETCH 1:* BODY.PEEK[]").1
    }

    fn run(&mut self, command: &str) -> (String, Vec<Vec<u8>>) {
        self.stream.get_mut().write_all(format!("a {command}\r\n").as_bytes()).unwrap();
        let mut literals = Vec::new();
        loop {
            let (line, found) = self.line();
            literals.extend(found);
            if line.starts_with("a ") {
                return (line, literals);
            }
        }
    }

    /// A line and the literal at its end.
    fn line(&mut self) -> (String, Option<Vec<u8>>) {
        let mut line = String::new();
        assert!(self.stream.read_line(&mut line).unwrap() > 0, "the server closes");
        let line = line.trim_end().to_owned();
        let length = line.strip_suffix('}').and_then(|line| line.rsplit_once('{'));
        let literal = length.map(|(_, length)| {
            let mut literal = vec![0; length.parse().unwrap()];
            self.stream.read_exact(&mut literal).unwrap();
            literal
        });
        (line, literal)
    }
}
