//! Content on the wire: the end of DATA, dot-stuffing (RFC 5321 §4.5.2) and line ends.
//!
//! Our own, because `smtp-proto`'s reader also ends DATA at `CR LF . CR CR LF`. Two servers that don't agree where a
//! message ends let a sender smuggle a second one past the first of them, so here only `CR LF . CR LF` ends a message,
//! and a CR or LF alone is either refused (after the message has been read to its proper end) or made a CRLF
//! that can't take part in that sequence.

/// What is looked at as one by [`ContentReader::plain`].
const BLOCK_BYTES: usize = 64;

/// What is done about a CR or LF that stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnds {
    /// They are noticed; what follows them is not passed on.
    Refuse,
    /// They become CRLF.
    Normalise,
}

/// Where the reader stands in the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// At the beginning of the content, or after CRLF.
    LineStart,
    /// After a dot at `LineStart`, which is held back.
    Dot,
    /// After a dot at `LineStart` and a CR, both held back.
    DotCr,
    /// Inside a line, or after a line end that was no CRLF: a dot here is content.
    Inside,
    /// After a CR elsewhere, which is held back.
    Cr,
    /// After `CR LF . CR LF`.
    End,
}

/// Reads content piece by piece; how it is cut into pieces makes no difference.
#[derive(Clone, Debug)]
pub struct ContentReader {
    at: At,
    line_ends: LineEnds,
    /// DATA: dots are stuffed and end the content. BDAT: they are content (RFC 3030 §2).
    dots: bool,
    bare: bool,
}

impl ContentReader {
    /// For DATA.
    pub fn data(line_ends: LineEnds) -> Self {
        Self { at: At::LineStart, line_ends, dots: true, bare: false }
    }

    /// For the chunks of BDAT, all of one message.
    pub fn chunks(line_ends: LineEnds) -> Self {
        Self { dots: false, ..Self::data(line_ends) }
    }

    /// A CR or LF stood alone in what was read until now, and that is to be refused.
    pub fn is_refused(&self) -> bool {
        self.bare && self.line_ends == LineEnds::Refuse
    }

    /// The final dot has been read (DATA only).
    pub fn ended(&self) -> bool {
        self.at == At::End
    }

    /// Reads from `input` up to its end or the end of the content; appends what it means to `out`, which grows to at
    /// most twice the input. Returns how many bytes were read: the rest are commands.
    pub fn read(&mut self, input: &[u8], out: &mut Vec<u8>) -> usize {
        let mut next = 0;
        while next < input.len() && self.at != At::End {
            next += self.plain(&input[next..], out);
            if next == input.len() {
                break;
            }
            if self.at == At::Inside || (self.at == At::LineStart && !self.dots) {
                let rest = &input[next..];
                let run = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
                self.emit(&rest[..run], out);
                next += run;
                if run > 0 {
                    self.at = At::Inside;
                }
                if next == input.len() {
                    break;
                }
            }
            self.step(input[next], out);
            next += 1;
        }
        next
    }

    /// The last BDAT chunk is over: a CR that is held back stands alone.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if self.at == At::Cr {
            self.bare_line_end(out);
        }
    }

    /// Passes on whole blocks that mean what they are: each CR and LF is of a CRLF, and no line begins with a dot. Almost
    /// all content is of such blocks.
    fn plain(&mut self, input: &[u8], out: &mut Vec<u8>) -> usize {
        let Some((first, behind)) = input.split_first() else { return 0 };
        let begins = match self.at {
            At::LineStart => *first != b'\n' && (*first != b'.' || !self.dots),
            At::Inside => *first != b'\n',
            At::Dot | At::DotCr | At::Cr | At::End => false,
        };
        if !begins {
            return 0;
        }
        let (blocks, followers) = (input.as_chunks().0, behind.as_chunks().0);
        let both = blocks.iter().zip(followers);
        let mut length =
            BLOCK_BYTES * both.take_while(|(block, next)| is_plain(block, next)).count();
        // A CR goes with its LF.
        if length > 0 && input[length - 1] == b'\r' {
            length -= 1;
        }
        let Some(last) = input[..length].last() else { return 0 };
        self.at = if *last == b'\n' { At::LineStart } else { At::Inside };
        self.emit(&input[..length], out);
        length
    }

    fn step(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.at = match (self.at, byte) {
            (At::DotCr, b'\n') => At::End,
            (At::Cr, b'\n') => {
                self.emit(b"\r\n", out);
                At::LineStart
            }
            // A lone dot whose line does not end with CRLF is content: nobody may take it for the end.
            (At::DotCr, _) => {
                self.emit(b".", out);
                self.bare_line_end(out);
                return self.step(byte, out);
            }
            (At::Cr, _) => {
                self.bare_line_end(out);
                return self.step(byte, out);
            }
            (At::Dot, b'\r') => At::DotCr,
            (At::Dot, b'\n') => {
                self.emit(b".", out);
                self.bare_line_end(out);
                At::Inside
            }
            // The stuffed dot is dropped (RFC 5321 §4.5.2).
            (At::Dot, _) => {
                self.emit(&[byte], out);
                At::Inside
            }
            (At::LineStart, b'.') if self.dots => At::Dot,
            (At::LineStart | At::Inside, b'\r') => At::Cr,
            (At::LineStart | At::Inside, b'\n') => {
                self.bare_line_end(out);
                At::Inside
            }
            (At::LineStart | At::Inside, _) => {
                self.emit(&[byte], out);
                At::Inside
            }
            (At::End, _) => At::End,
        };
    }

    /// A CR or LF alone: the line that it begins is none that a dot could end the content on.
    fn bare_line_end(&mut self, out: &mut Vec<u8>) {
        self.bare = true;
        self.emit(b"\r\n", out);
        self.at = At::Inside;
    }

    fn emit(&self, bytes: &[u8], out: &mut Vec<u8>) {
        if !self.is_refused() {
            out.extend_from_slice(bytes);
        }
    }
}

/// Whether no byte of a block needs a look; `next`: the bytes behind each. No branches, so that it is done for many bytes
/// at a time.
fn is_plain(block: &[u8; BLOCK_BYTES], next: &[u8; BLOCK_BYTES]) -> bool {
    let odd = block.iter().zip(next).fold(0, |odd, (byte, next)| {
        let bare = (*byte == b'\r') != (*next == b'\n');
        let dot = (*byte == b'\n') & (*next == b'.');
        odd | u8::from(bare | dot)
    });
    odd == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Content, whether it ended, whether it had bare line ends, and what was left.
    fn read(input: &[u8], pieces: &[usize], mode: LineEnds) -> (Vec<u8>, bool, bool, Vec<u8>) {
        let mut reader = ContentReader::data(mode);
        let mut out = Vec::new();
        let (mut used, mut pieces) = (0, pieces.iter().cycle());
        while used < input.len() && !reader.ended() {
            let step = pieces.next().copied().unwrap_or(1).max(1);
            let until = input.len().min(used + step);
            used += reader.read(&input[used..until], &mut out);
        }
        (out, reader.ended(), reader.bare, input[used..].to_vec())
    }

    /// The same by definition instead of by state: the first CRLF.CRLF (the content begins after a CRLF) ends it.
    fn end_by_definition(input: &[u8]) -> Option<usize> {
        let whole = [b"\r\n", input].concat();
        memchr::memmem::find(&whole, b"\r\n.\r\n").map(|at| at + 3)
    }

    #[test]
    fn dots_are_unstuffed_and_the_rest_is_left_for_commands() {
        let input = b"a\r\n..b\r\n.c\r\n...\r\n.\r\nQUIT\r\n";
        let (out, ended, bare, rest) = read(input, &[1000], LineEnds::Refuse);
        assert_eq!(
            (out.as_slice(), ended, bare),
            (b"a\r\n.b\r\nc\r\n..\r\n".as_slice(), true, false)
        );
        assert_eq!(rest, b"QUIT\r\n");
        assert_eq!(read(b".\r\nX", &[1], LineEnds::Refuse).0, b"");
    }

    #[test]
    fn no_other_sequence_ends_the_content() {
        for end in [
            "\n.\n",
            "\n.\r\n",
            "\r.\r",
            "\r.\r\n",
            "\r\n.\n",
            "\r\n.\r",
            "\n.\r",
            "\r.\n",
            "\r\n.\r\r\n",
            "\r\r\n.\r\r\n",
            "\n\n.\r\n",
            "\r\n\n.\r\n",
            "\r\n\x00.\r\n",
            "\r\n.\x00\r\n",
            "\r\n.\r\x00\n",
            "\r\n..\r\n",
        ] {
            let input = format!("x{end}MAIL FROM:<a@b>\r\n.\r\nRSET\r\n");
            for mode in [LineEnds::Refuse, LineEnds::Normalise] {
                for step in 1..input.len() {
                    let (out, ended, bare, rest) = read(input.as_bytes(), &[step], mode);
                    assert!(ended, "{end:?}");
                    assert_eq!(rest, b"RSET\r\n", "{end:?} {step}");
                    let clean =
                        end.starts_with("\r\n\0") || end.contains('\0') || end.contains("..");
                    assert_eq!(bare, !clean || end == "\r\n.\r\x00\n", "{end:?}");
                    if mode == LineEnds::Normalise {
                        assert!(memchr::memmem::find(&out, b"MAIL FROM").is_some(), "{end:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn bare_line_ends_become_crlf() {
        let (out, ..) = read(b"a\nb\rc\r\r\nd\n.\ne\r\n.\nf\r\n.\r\n", &[7], LineEnds::Normalise);
        assert_eq!(out, b"a\r\nb\r\nc\r\n\r\nd\r\n.\r\ne\r\n.\r\nf\r\n");
    }

    #[test]
    fn chunks_keep_dots_and_notice_line_ends_across_their_borders() {
        let mut reader = ContentReader::chunks(LineEnds::Normalise);
        let mut out = Vec::new();
        for piece in [b".\r".as_slice(), b"\n.\r\n", b"..x\r"] {
            assert_eq!(reader.read(piece, &mut out), piece.len());
        }
        assert!(!reader.bare);
        reader.finish(&mut out);
        assert!(reader.bare && !reader.ended());
        assert_eq!(out, b".\r\n.\r\n..x\r\n");
    }

    /// Bytes that matter, and stretches of one or more blocks without any.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let odd = proptest::sample::select(b"\r\n.ax\0".to_vec()).prop_map(|byte| vec![byte]);
        let line = (0_usize..80).prop_map(|length| [vec![b'x'; length], b"\r\n".to_vec()].concat());
        let long = (60_usize..200).prop_map(|length| vec![b'y'; length]);
        let piece = prop_oneof![6 => odd, 2 => line, 1 => long];
        proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            input in content(),
            pieces in proptest::collection::vec(prop_oneof![1_usize..9, 1_usize..400], 1..8),
            normalise in any::<bool>(),
        ) {
            let mode = if normalise { LineEnds::Normalise } else { LineEnds::Refuse };
            let whole = read(&input, &[100_000], mode);
            // Byte by byte, no block is passed on at once.
            prop_assert_eq!(&read(&input, &[1], mode), &whole);
            prop_assert_eq!(&read(&input, &pieces, mode), &whole);
            let (out, ended, bare, rest) = whole;
            match end_by_definition(&input) {
                Some(end) => {
                    prop_assert!(ended);
                    prop_assert_eq!(rest.as_slice(), &input[end..]);
                }
                None => prop_assert!(!ended && rest.is_empty()),
            }
            // What is passed on has no bare line end, whatever came in.
            if !bare || normalise {
                let mut again = ContentReader::chunks(LineEnds::Refuse);
                again.read(&out, &mut Vec::new());
                prop_assert!(!again.bare);
            }
        }
    }
}
