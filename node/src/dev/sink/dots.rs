//! The end of DATA and the dots of transparency (RFC 5321 §4.5.2).
//!
//! Own code: the receiver of `smtp-proto` also ends at `CRLF . CR CR LF`, and the sink must not take a message for
//! shorter than its sender meant.

/// Where in a line the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Behind CRLF, or at the beginning.
    LineStart,
    /// Behind a dot that began its line; not yet given out.
    Dot,
    /// Behind such a dot and CR.
    DotCr,
    /// Behind a CR.
    Cr,
    /// Elsewhere.
    Text,
}

/// Takes the transparency off a stream that comes in pieces.
#[derive(Debug)]
pub(super) struct Unstuffer {
    at: At,
}

impl Unstuffer {
    pub(super) fn new() -> Self {
        Self { at: At::LineStart }
    }

    /// Reads `input` and appends content to `out`. `Some(n)`: the message ended, `n` bytes of `input` were its own.
    pub(super) fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        let mut at = self.at;
        for (index, &byte) in input.iter().enumerate() {
            at = match (at, byte) {
                (At::LineStart, b'.') => At::Dot,
                (At::Dot, b'\r') => At::DotCr,
                (At::DotCr, b'\n') => return Some(index + 1),
                (At::DotCr, _) => {
                    // A line of dot, CR and more: the dot was transparency, the CR is content.
                    out.extend_from_slice(&[b'\r', byte]);
                    if byte == b'\r' { At::Cr } else { At::Text }
                }
                (At::Cr, b'\n') => {
                    out.push(byte);
                    At::LineStart
                }
                (_, b'\r') => {
                    out.push(byte);
                    At::Cr
                }
                _ => {
                    out.push(byte);
                    At::Text
                }
            };
        }
        self.at = at;
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a client does: a dot in front of each line that begins with one.
    fn stuff(body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut start = true;
        for (index, &byte) in body.iter().enumerate() {
            if start && byte == b'.' {
                out.push(b'.');
            }
            out.push(byte);
            start = byte == b'\n' && index > 0 && body[index - 1] == b'\r';
        }
        out.extend_from_slice(b".\r\n");
        out
    }

    proptest! {
        #[test]
        fn gives_back_what_was_stuffed(
            pieces in proptest::collection::vec(
                prop::sample::select(vec![&b"."[..], b"\r\n", b"\r", b"\n", b"x", b"\0"]),
                0..40,
            ),
            cut in 1_usize..7,
        ) {
            let mut body = pieces.concat();
            body.extend_from_slice(b"\r\n");
            let mut sent = stuff(&body);
            let length = sent.len();
            sent.extend_from_slice(b"QUIT\r\n");
            let (mut unstuffer, mut out, mut taken) = (Unstuffer::new(), Vec::new(), 0);
            for piece in sent.chunks(cut) {
                if let Some(more) = unstuffer.feed(piece, &mut out) {
                    taken += more;
                    break;
                }
                taken += piece.len();
            }
            prop_assert_eq!(taken, length);
            prop_assert_eq!(out, body);
        }
    }
}
