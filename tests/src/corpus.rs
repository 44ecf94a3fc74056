//! Odd messages: those that Debian's packages ship for testing, and some that are made here.

use std::path::{Path, PathBuf};

use crate::sink::{ID_FIELD, field};

/// A message with a name for the test's output. CRLF line ends, the last one included; no CR or LF alone.
#[derive(Clone, Debug)]
pub struct Specimen {
    pub name: String,
    pub content: Vec<u8>,
}

/// Folders with messages: CPython's test data, dkimpy's, and what `tests/run` unpacked of SpamAssassin.
fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3."))
        })
        .map(|path| path.join("test/test_email/data"))
        .collect();
    folders.push(PathBuf::from("/usr/lib/python3/dist-packages/dkim/tests/data"));
    folders.push(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target/corpus/usr/share/doc/spamassassin/examples"),
    );
    folders
}

/// Messages from the folders, with normalised line ends, by name.
pub fn shipped() -> Vec<Specimen> {
    let mut specimens = Vec::new();
    for folder in folders() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let wanted = name.starts_with("msg_")
                || name.starts_with("sample-")
                || name.ends_with(".message")
                || name.ends_with(".eml");
            if wanted && let Ok(bytes) = std::fs::read(&path) {
                specimens.push(Specimen { name, content: normalise(&bytes) });
            }
        }
    }
    specimens.sort_by(|one, other| one.name.cmp(&other.name));
    specimens
}

/// Messages that are made to be difficult. `huge` bytes is the size of the largest.
pub fn generated(huge: usize) -> Vec<Specimen> {
    let specimen = |name: &str, body: Vec<u8>| Specimen {
        name: name.to_owned(),
        content: [&b"From: a@example.org\r\nTo: b@example.org\r\n\r\n"[..], &body].concat(),
    };
    let bytes: Vec<u8> = (0_u8..=255).filter(|byte| !matches!(byte, 0 | b'\r' | b'\n')).collect();
    let long_line = [&[b'x'; 998][..], b"\r\n"].concat();
    let varied: Vec<u8> = (0_u32..)
        .map(|n| b'!' + u8::try_from(n.wrapping_mul(2_654_435_761) >> 26).unwrap())
        .take(76)
        .collect();
    vec![
        Specimen { name: "nothing but a line end".to_owned(), content: b"\r\n".to_vec() },
        Specimen { name: "one byte".to_owned(), content: b"\r\nx\r\n".to_vec() },
        specimen("empty body", vec![]),
        specimen("lines of 998", long_line.repeat(50)),
        specimen("every byte", [&bytes[..], b"\r\n"].concat().repeat(20)),
        specimen("eight bits", "Grüße aus Köln\r\n\u{1F600}\r\n".as_bytes().to_vec()),
        specimen("dots", b".\r\n..\r\n...\r\n.x\r\n. \r\nx.\r\n\r\n.\r\n".to_vec()),
        specimen("dot at the end", b"text\r\n.\r\n".to_vec()),
        specimen("empty lines", b"\r\n".repeat(500)),
        specimen("spaces at line ends", b"a \r\nb\t\r\n \r\n\t\r\n".to_vec()),
        specimen(
            "From at line start",
            b"From here\r\n>From there\r\nFrom a@b Mon Jan  1\r\n".to_vec(),
        ),
        specimen("commands", b"QUIT\r\nRSET\r\nDATA\r\nMAIL FROM:<x@y>\r\n".to_vec()),
        specimen("NULs", b"a\0b\r\n\0\r\n\0\0\0 end\r\n".to_vec()),
        Specimen {
            name: "long folded header".to_owned(),
            content: [
                &b"Subject: begin\r\n"[..],
                &b"\t folded line of a very long field\r\n".repeat(800),
                b"\r\nbody\r\n",
            ]
            .concat(),
        },
        Specimen {
            name: "many fields".to_owned(),
            content: [
                (0..1_000)
                    .map(|n| format!("X-Field-{n}: {n}\r\n"))
                    .collect::<String>()
                    .into_bytes(),
                b"\r\nbody\r\n".to_vec(),
            ]
            .concat(),
        },
        specimen("around one chunk", [&varied[..], b"\r\n"].concat().repeat(256 * 1024 / 78 + 1)),
        specimen("huge", [&varied[..], b"\r\n"].concat().repeat(huge / 78 + 1)),
    ]
}

/// The specimen as it is sent: with our id in front, and `Date` and `Message-ID` where it has none, so that no
/// store finds a reason to add its own.
pub fn with_id(specimen: &Specimen, id: &str) -> Vec<u8> {
    let mut head = format!("{ID_FIELD}: {id}\r\n");
    if field(&specimen.content, "Date").is_none() {
        head.push_str("Date: Mon, 23 Nov 2026 12:00:00 +0000\r\n");
    }
    if field(&specimen.content, "Message-ID").is_none() {
        head.push_str(&format!("Message-ID: <{id}@test.example.org>\r\n"));
    }
    [head.as_bytes(), &specimen.content].concat()
}

/// Every line end becomes CRLF, and the last line has one.
pub fn normalise(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 32);
    let mut previous = 0;
    for &byte in bytes {
        match byte {
            b'\n' if previous == b'\r' => {}
            b'\r' | b'\n' => out.extend_from_slice(b"\r\n"),
            _ => out.push(byte),
        }
        previous = byte;
    }
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Removes fields of that name, with their continuation lines, from a header.
pub fn without_field(content: &[u8], name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    let mut rest = content;
    let mut dropping = false;
    while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
        let (line, after) = rest.split_at(end + 1);
        if line == b"\r\n" {
            break;
        }
        if !matches!(line[0], b' ' | b'\t') {
            let prefix = line.get(..name.len()).unwrap_or_default();
            let behind = line.get(name.len()..).unwrap_or_default();
            dropping = prefix.eq_ignore_ascii_case(name.as_bytes())
                && behind.trim_ascii_start().starts_with(b":");
        }
        if !dropping {
            out.extend_from_slice(line);
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out
}

/// How what arrived compares with what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// Byte by byte the same, apart from fields in front.
    Same,
    /// The header ended without an empty line, and has one now; otherwise the same.
    Separated,
}

/// Compares. `Err`: where the two differ, and both sides there.
pub fn compare(sent: &[u8], arrived: &[u8]) -> Result<Likeness, String> {
    let start = sent.iter().position(|&byte| byte == b'\n').map_or(sent.len(), |end| end + 1);
    let marker = &sent[..start];
    let at = arrived
        .windows(marker.len())
        .position(|window| window == marker)
        .ok_or_else(|| format!("no line {:?} in what arrived", String::from_utf8_lossy(marker)))?;
    if at > 0 && arrived[at - 1] != b'\n' {
        return Err("the first line of the message is not at the start of a line".to_owned());
    }
    let arrived = &arrived[at..];
    if arrived == sent {
        return Ok(Likeness::Same);
    }
    let same = arrived.iter().zip(sent).take_while(|(one, other)| one == other).count();
    let line = sent[..same].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let header = &sent[..line];
    let first_empty = !header.windows(4).any(|window| window == b"\r\n\r\n");
    if line < sent.len()
        && first_empty
        && arrived[line..].strip_prefix(b"\r\n") == Some(&sent[line..])
    {
        return Ok(Likeness::Separated);
    }
    let show = |bytes: &[u8]| {
        let from = same.saturating_sub(40).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..bytes.len().min(same + 80)]).into_owned()
    };
    Err(format!(
        "differs at byte {same} (sent {}, arrived {}):\n  sent    {:?}\n  arrived {:?}",
        sent.len(),
        arrived.len(),
        show(sent),
        show(arrived)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_is_strict() {
        let sent = b"X-Test-Id: 1\r\nA: b\r\nno field\r\n";
        assert_eq!(compare(sent, &[&b"Received: x\r\n"[..], sent].concat()), Ok(Likeness::Same));
        let separated = b"R: x\r\nX-Test-Id: 1\r\nA: b\r\n\r\nno field\r\n";
        assert_eq!(compare(sent, separated), Ok(Likeness::Separated));
        assert!(compare(sent, b"X-Test-Id: 1\r\nA: b\r\nno  field\r\n").is_err());
        assert!(compare(sent, b"X-Test-Id: 1\r\nA: b\r\nno field\r\n\r\n").is_err());
        assert!(compare(sent, b"X-Test-Id: 2\r\nA: b\r\nno field\r\n").is_err());
        let body = b"X-Test-Id: 1\r\n\r\na\r\nb\r\n";
        assert!(compare(body, b"X-Test-Id: 1\r\n\r\na\r\n\r\nb\r\n").is_err());
    }

    #[test]
    fn line_ends_become_crlf() {
        assert_eq!(normalise(b"a\nb\r\nc\rd\r\r\n\n"), b"a\r\nb\r\nc\r\nd\r\n\r\n\r\n");
        assert_eq!(normalise(b""), b"\r\n");
    }

    #[test]
    fn a_field_goes_with_its_continuation() {
        let header =
            b"A: b\r\nSender: x,\r\n\ty\r\nsender : z\r\nSenders: k\r\n\r\nSender: body\r\n";
        assert_eq!(without_field(header, "Sender"), b"A: b\r\nSenders: k\r\n\r\nSender: body\r\n");
    }
}
