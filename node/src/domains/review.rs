//! Whether a file that was fetched may become the live copy, and what its managers are told if not.

use ppsw_control::limits::PROBLEM_BYTES_MAX;
use ppsw_proto::control as pb;
use sha2::{Digest, Sha256};

use super::{
    aliases::{Aliases, LineError, REQUIRED, Size},
    fetch::FetchError,
};

/// What may be live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reviewed {
    /// The file as a table.
    pub(crate) table: String,
    pub(crate) size: Size,
    /// What the table does not show any more: lines of one alias that were put together.
    pub(crate) remarks: Vec<String>,
}

/// Looks at a file. `live` is what it would replace; with `may_shrink` it may be as small as it likes.
///
/// # Errors
/// Why it must not be live.
pub(crate) fn review(
    content: &[u8],
    live: Option<Size>,
    may_shrink: bool,
) -> Result<Reviewed, pb::Problem> {
    let aliases = Aliases::parse(content).map_err(|errors| unparsable(&errors))?;
    let missing = aliases.missing();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        let text = format!(
            "these aliases are missing: {missing}. A file must have {}",
            REQUIRED.join(", ")
        );
        return Err(problem("incomplete", &missing, text));
    }
    let size = aliases.size();
    if let Some(live) = live.filter(|live| !may_shrink && live.would_shrink_to(size)) {
        let text = format!(
            "the file has {} aliases with {} addresses; the live copy has {} with {}. A file that has shrunk by more \
             than 25 % may be the wrong one, or cut off. If it is meant, an administrator can have it taken \
             (ppswctl domains fetch --force)",
            size.aliases, size.addresses, live.aliases, live.addresses
        );
        return Err(problem("shrunk", "", text));
    }
    let remarks = aliases.duplicates.iter().map(ToString::to_string).collect();
    Ok(Reviewed { table: aliases.to_table(), size, remarks })
}

/// Why there is no file, as managers are told.
pub(crate) fn unfetched(error: &FetchError) -> pb::Problem {
    problem(error.kind(), &error.essence(), error.to_string())
}

/// A problem with what is the same about it when it comes again.
pub(crate) fn problem(kind: &str, essence: &str, text: String) -> pb::Problem {
    let fingerprint = Sha256::digest(format!("{kind}\0{essence}"));
    pb::Problem {
        kind: kind.to_owned(),
        text,
        fingerprint: fingerprint.to_vec().into(),
        since_ms: 0,
    }
}

fn unparsable(errors: &[LineError]) -> pb::Problem {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let essence = lines.join("\n");
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        // Room for the line that says how many there are.
        if text.len() + line.len() > PROBLEM_BYTES_MAX - 100 {
            text.push_str(&format!("and {} more lines", lines.len() - number));
            break;
        }
        text.push_str(line);
        text.push('\n');
    }
    problem("unparsable", &essence, text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "postmaster:a@x.example\nwebmaster:a@x.example\nabuse:a@x.example\n";

    fn kind(content: &str, live: Option<Size>) -> (String, String) {
        let problem = review(content.as_bytes(), live, false).unwrap_err();
        (problem.kind, problem.text)
    }

    #[test]
    fn a_good_file_becomes_a_table() {
        let text = format!("{GOOD}Abuse:b@x.example\n");
        let reviewed = review(text.as_bytes(), None, false).unwrap();
        assert_eq!(reviewed.size, Size { aliases: 3, addresses: 4 });
        assert!(reviewed.table.contains("abuse: a@x.example, b@x.example\n"));
        assert_eq!(reviewed.remarks.len(), 1);
    }

    #[test]
    fn what_is_wrong_has_its_kind() {
        let (is, text) = kind(&GOOD.replace("abuse", "x"), None);
        assert!(is == "incomplete" && text.contains("missing: abuse."), "{text}");
        let (is, text) = kind("", None);
        assert!(is == "incomplete" && text.contains("missing: postmaster, webmaster, abuse."));
        let (is, text) = kind(&format!("{GOOD}x\ny\n"), None);
        assert!(is == "unparsable", "{text}");
        assert!(text.contains("line 4: ") && text.contains("\nline 5: "), "{text}");
        let live = Size { aliases: 5, addresses: 5 };
        let (is, text) = kind(GOOD, Some(live));
        assert!(is == "shrunk" && text.contains("has 3 aliases") && text.contains("has 5 with"));
        assert!(review(GOOD.as_bytes(), Some(live), true).is_ok());
        assert!(review(GOOD.as_bytes(), Some(Size { aliases: 4, addresses: 4 }), false).is_ok());
    }

    #[test]
    fn the_same_problem_has_the_same_fingerprint() {
        let of = |error: FetchError| unfetched(&error).fingerprint;
        let status = |text: &str| of(FetchError::Status(text.to_owned()));
        assert_eq!(status("500 x"), status("500 x"));
        assert_ne!(status("500 x"), status("404 x"));
        let broken = |bytes| of(FetchError::BrokenOff { bytes, why: String::new() });
        assert_eq!(broken(1), broken(2));
        let lines = |text: &str| review(text.as_bytes(), None, false).unwrap_err().fingerprint;
        assert_ne!(lines("x"), lines("y"));
    }

    #[test]
    fn the_text_is_bounded() {
        let (_, text) = kind(&format!("{}\n", "é".repeat(200)).repeat(300), None);
        assert!(text.len() <= PROBLEM_BYTES_MAX, "{}", text.len());
        assert!(text.ends_with(" more lines"), "{text}");
    }
}
