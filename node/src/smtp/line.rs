//! Command lines: cut out of the input with bounded memory.
//!
//! Our own, because `smtp-proto` takes a bare LF for a line end and drops CRs inside a line, so what it executes
//! is not what a stricter hop in front of us saw.

use bytes::{Buf, BytesMut};

use crate::limits::COMMAND_LINE_BYTES_MAX;

/// What stands at the beginning of the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end.
    Whole(BytesMut),
    /// A line that a bare LF ended, or with a bare CR in it (`strict` only): not to be executed.
    BareLineEnd,
    /// A line longer than [`COMMAND_LINE_BYTES_MAX`]; all of it is gone from the input.
    TooLong,
    /// A TLS handshake where none is expected: nothing that we say would be understood.
    Tls,
}

/// First byte of a TLS handshake record (RFC 8446 §5.1); no command begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Cuts lines out of a buffer. Keeps no bytes itself.
#[derive(Debug, Default)]
pub(super) struct LineReader {
    /// Bytes at the start of the input that are known to hold no line end.
    scanned: usize,
    /// The line was too long: its bytes are dropped up to its end.
    skipping: bool,
}

impl LineReader {
    /// The next line, or `None` if its end has not arrived. `strict`: only CRLF ends a line properly; else bare CR
    /// and bare LF do too.
    pub(super) fn next(&mut self, input: &mut BytesMut, strict: bool) -> Option<Line> {
        if input.first() == Some(&TLS_HANDSHAKE) && !self.skipping {
            return Some(Line::Tls);
        }
        let Some(end) = self.find_end(input, strict) else {
            if input.len() > COMMAND_LINE_BYTES_MAX {
                self.skipping = true;
            }
            if self.skipping {
                // A CR at the end may be half of a line end.
                let keep = usize::from(input.last() == Some(&b'\r'));
                input.advance(input.len() - keep);
                self.scanned = 0;
            }
            return None;
        };
        self.scanned = 0;
        let mut line = input.split_to(end.after);
        if std::mem::take(&mut self.skipping) || line.len() > COMMAND_LINE_BYTES_MAX {
            return Some(Line::TooLong);
        }
        line.truncate(end.text);
        if strict && (end.bare || memchr::memchr(b'\r', &line).is_some()) {
            return Some(Line::BareLineEnd);
        }
        Some(Line::Whole(line))
    }

    fn find_end(&mut self, input: &BytesMut, strict: bool) -> Option<End> {
        let mut at = self.scanned.min(input.len());
        loop {
            let rest = input.get(at..)?;
            let found = if strict {
                memchr::memchr(b'\n', rest)
            } else {
                memchr::memchr2(b'\r', b'\n', rest)
            };
            let Some(found) = found.map(|n| at + n) else {
                self.scanned = input.len();
                return None;
            };
            if input[found] == b'\n' {
                let crlf = found > 0 && input[found - 1] == b'\r';
                let text = if crlf { found - 1 } else { found };
                return Some(End { text, after: found + 1, bare: !crlf });
            }
            match input.get(found + 1) {
                Some(b'\n') => at = found + 1,
                Some(_) => return Some(End { text: found, after: found + 1, bare: true }),
                None => {
                    self.scanned = found;
                    return None;
                }
            }
        }
    }
}

/// Where a line ends.
struct End {
    /// Length of its text.
    text: usize,
    /// Where the next line begins.
    after: usize,
    /// Not by CRLF.
    bare: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All lines of `input`, given in pieces of `step` bytes.
    fn lines(input: &[u8], step: usize, strict: bool) -> Vec<String> {
        let mut reader = LineReader::default();
        let mut buffer = BytesMut::new();
        let mut out = Vec::new();
        for piece in input.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(line) = reader.next(&mut buffer, strict) {
                out.push(match line {
                    Line::Whole(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    Line::BareLineEnd => "BARE".into(),
                    Line::TooLong => "LONG".into(),
                    Line::Tls => panic!(),
                });
            }
            assert!(buffer.len() <= COMMAND_LINE_BYTES_MAX + step);
        }
        out
    }

    #[test]
    fn strict_lines_end_with_crlf() {
        let input = b"NOOP\r\nRSET\nHELO a\rb\r\nQUIT\r\r\n\r\nNOOP\r\n";
        for step in 1..input.len() {
            assert_eq!(
                lines(input, step, true),
                ["NOOP", "BARE", "BARE", "BARE", "", "NOOP"],
                "{step}"
            );
        }
    }

    #[test]
    fn other_line_ends_are_normalised_if_asked() {
        let input = b"NOOP\r\nRSET\nHELO a\rQUIT\r\n";
        for step in 1..input.len() {
            assert_eq!(lines(input, step, false), ["NOOP", "RSET", "HELO a", "QUIT"], "{step}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_dropped_and_the_next_one_read() {
        let mut input = vec![b'x'; 3 * COMMAND_LINE_BYTES_MAX];
        input.extend_from_slice(b"\r\nNOOP\r\n");
        for step in [1000, 4096, 20_000, input.len()] {
            assert_eq!(lines(&input, step, true), ["LONG", "NOOP"], "{step}");
            assert_eq!(lines(&input, step, false), ["LONG", "NOOP"], "{step}");
        }
    }
}
