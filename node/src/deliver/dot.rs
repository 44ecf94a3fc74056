//! The body as it goes over the wire: CRLF line ends, leading dots doubled (RFC 5321 §4.5.2), one final CRLF.
//!
//! Own code: the client crates take a whole message in memory and add a line to bodies that end in CRLF.

/// Turns chunks of a message into the data of an SMTP transaction.
///
/// Line ends become CRLF whatever they were: a bare LF or CR on the wire is what smuggles messages past the next
/// hop (RFC 5321 §2.3.8).
#[derive(Debug)]
pub(crate) struct DotStuffer {
    /// The next byte begins a line.
    line_start: bool,
    /// A CR was seen whose successor is not yet known.
    cr: bool,
    strip_nul: bool,
    /// Leading dots are doubled.
    dots: bool,
}

impl DotStuffer {
    /// `strip_nul`: leave NUL bytes out.
    pub(crate) fn new(strip_nul: bool) -> Self {
        Self { line_start: true, cr: false, strip_nul, dots: true }
    }

    /// For `BDAT` (RFC 3030 §2): a dot is a dot.
    pub(crate) fn undotted(strip_nul: bool) -> Self {
        Self { dots: false, ..Self::new(strip_nul) }
    }

    /// Adds the wire form of the next chunk to `out`.
    pub(crate) fn encode(&mut self, mut chunk: &[u8], out: &mut Vec<u8>) {
        // Most chunks have CRLF and no dots at line beginnings: they stay as long as they are.
        out.reserve(chunk.len());
        while let Some(&first) = chunk.first() {
            if self.cr {
                self.cr = false;
                self.end_line(out);
                if first == b'\n' {
                    chunk = &chunk[1..];
                    continue;
                }
            }
            let length = memchr::memchr2(b'\r', b'\n', chunk).unwrap_or(chunk.len());
            let (text, rest) = chunk.split_at(length);
            self.text(text, out);
            match rest.split_first() {
                Some((b'\r', rest)) => {
                    self.cr = true;
                    chunk = rest;
                }
                Some((_, rest)) => {
                    self.end_line(out);
                    chunk = rest;
                }
                None => chunk = rest,
            }
        }
    }

    /// Ends the last line if it has no end. The final dot is the caller's business.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.cr) || !self.line_start {
            self.end_line(out);
        }
    }

    fn end_line(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\n");
        self.line_start = true;
    }

    fn text(&mut self, text: &[u8], out: &mut Vec<u8>) {
        if self.strip_nul {
            for piece in text.split(|b| *b == 0).filter(|piece| !piece.is_empty()) {
                self.plain(piece, out);
            }
        } else if !text.is_empty() {
            self.plain(text, out);
        }
    }

    fn plain(&mut self, text: &[u8], out: &mut Vec<u8>) {
        if self.dots && self.line_start && text.first() == Some(&b'.') {
            out.push(b'.');
        }
        self.line_start = false;
        out.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(chunks: &[&[u8]], strip_nul: bool) -> Vec<u8> {
        let mut stuffer = DotStuffer::new(strip_nul);
        let mut out = Vec::new();
        for chunk in chunks {
            stuffer.encode(chunk, &mut out);
        }
        stuffer.finish(&mut out);
        out
    }

    /// A receiver as RFC 5321 has it: lines by CRLF only, one leading dot removed.
    fn received(wire: &[u8]) -> Vec<Vec<u8>> {
        let text = wire.to_vec();
        let mut lines = Vec::new();
        let mut line = Vec::new();
        let mut bytes = text.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            if byte == b'\r' && bytes.peek() == Some(&b'\n') {
                bytes.next();
                let done = std::mem::take(&mut line);
                assert_ne!(done, b".", "a lone dot inside the data");
                lines.push(done.strip_prefix(b".").map(<[u8]>::to_vec).unwrap_or(done));
            } else {
                assert!(!matches!(byte, b'\r' | b'\n'), "bare CR or LF on the wire");
                line.push(byte);
            }
        }
        assert!(line.is_empty(), "the last line has no end");
        lines
    }

    /// The lines of a body, with any of CRLF, CR and LF as line end.
    fn lines(body: &[u8]) -> Vec<Vec<u8>> {
        let text: Vec<u8> = body.to_vec();
        let mut out = vec![Vec::new()];
        let mut index = 0;
        while let Some(byte) = text.get(index) {
            index += 1;
            if matches!(byte, b'\r' | b'\n') {
                if *byte == b'\r' && text.get(index) == Some(&b'\n') {
                    index += 1;
                }
                out.push(Vec::new());
            } else if let Some(last) = out.last_mut() {
                last.push(*byte);
            }
        }
        if out.last().is_some_and(Vec::is_empty) {
            out.pop();
        }
        out
    }

    #[test]
    fn bodies_keep_their_bytes() {
        assert_eq!(encoded(&[b"a\r\n.\r\n..b\r\n"], false), b"a\r\n..\r\n...b\r\n");
        assert_eq!(encoded(&[b"no end"], false), b"no end\r\n");
        assert_eq!(encoded(&[b"a\r", b"\n.b\r\n"], false), b"a\r\n..b\r\n");
        assert_eq!(encoded(&[b"a\n.\nb\r.\r"], false), b"a\r\n..\r\nb\r\n..\r\n");
        assert_eq!(encoded(&[b"\0.a\0b\r\n\0"], true), b"..ab\r\n");
        assert_eq!(encoded(&[], false), b"");
        let mut plain = Vec::new();
        let mut stuffer = DotStuffer::undotted(false);
        stuffer.encode(b"a\n.\r..b", &mut plain);
        stuffer.finish(&mut plain);
        assert_eq!(plain, b"a\r\n.\r\n..b\r\n");
    }

    proptest! {
        #[test]
        fn any_body_arrives(
            body in prop::collection::vec(prop::sample::select(b"a.\r\n\0\xff".to_vec()), 0..64),
            cut in 0_usize..64,
        ) {
            let cut = cut.min(body.len());
            let (head, tail) = body.split_at(cut);
            prop_assert_eq!(received(&encoded(&[head, tail], false)), lines(&body));
            let without: Vec<u8> = body.iter().copied().filter(|b| *b != 0).collect();
            // NUL between CR and LF: the line ends once for each, as it does for a reader that sees the NUL.
            if !body.windows(2).any(|w| w == b"\r\0") {
                prop_assert_eq!(received(&encoded(&[head, tail], true)), lines(&without));
            }
        }
    }
}
