//! Commands: from a line to what it asks for (RFC 5321 §4.1).
//!
//! Our own on top of [`super::address`]: `smtp-proto` takes parameters of every extension whether advertised or not,
//! repeated ones too, and copies AUTH secrets.

use super::{
    address::{Path, PathError, is_domain, is_literal, parse_path},
    reply::{self, Reply},
};
use crate::limits::{DOMAIN_BYTES_MAX, ENVELOPE_ID_BYTES_MAX, ORIGINAL_RECIPIENT_BYTES_MAX};

/// A command line, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    Auth { mechanism: &'a str, initial: Option<&'a str> },
    Bdat { size: u64, last: bool },
    Data,
    Ehlo(&'a str),
    Helo(&'a str),
    Help,
    Mail { sender: Path, parameters: MailParameters },
    Noop,
    Quit,
    Rcpt { recipient: Path, parameters: RcptParameters },
    Rset,
    StartTls,
    Vrfy,
}

/// Parameters of MAIL. Whether one is allowed is the session's business.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MailParameters {
    /// RFC 1870.
    pub(super) size: Option<u64>,
    /// RFC 6152; true for 8BITMIME.
    pub(super) eight_bit: Option<bool>,
    /// RFC 6531.
    pub(super) smtputf8: bool,
    /// RFC 4954 §5, as given (xtext).
    pub(super) auth: Option<String>,
    /// RFC 3461 §4.3; true for HDRS.
    pub(super) return_headers_only: Option<bool>,
    /// RFC 3461 §4.4, as given (xtext).
    pub(super) envelope_id: Option<String>,
}

/// Parameters of RCPT.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RcptParameters {
    /// RFC 3461 §4.1, as given.
    pub(super) notify: Option<String>,
    /// RFC 3461 §4.2, as given.
    pub(super) original: Option<String>,
}

/// Why a line is no command for us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CommandError {
    #[error("Unknown command")]
    Unknown,
    /// HTTP and the like: somebody makes a browser talk to us.
    #[error("This is an SMTP server")]
    OtherProtocol,
    #[error("Command contains control characters")]
    Control,
    #[error("Command is not UTF-8")]
    NotUtf8,
    #[error("{0} is not implemented here")]
    NotImplemented(&'static str),
    #[error("Syntax: {0}")]
    Syntax(&'static str),
    #[error("Invalid domain name or address literal after {0}")]
    HelloName(&'static str),
    #[error("{0}")]
    Sender(PathError),
    #[error("{0}")]
    Recipient(PathError),
    #[error("{0} parameter is not supported")]
    UnknownParameter(&'static str),
    #[error("Bad value of parameter {0}")]
    BadParameter(&'static str),
    #[error("Parameter {0} given twice")]
    RepeatedParameter(&'static str),
}

impl CommandError {
    /// The reply to it.
    pub(super) fn reply(&self) -> Reply {
        let text = self.to_string();
        match self {
            Self::Unknown => Reply::new(500, reply::BAD_COMMAND, text),
            Self::OtherProtocol => Reply::new(500, reply::BAD_COMMAND, text).closing(),
            Self::Control | Self::NotUtf8 => Reply::new(500, reply::SYNTAX, text),
            Self::NotImplemented(_) => Reply::new(502, reply::BAD_COMMAND, text),
            Self::Syntax(_) | Self::HelloName(_) => Reply::new(501, reply::SYNTAX, text),
            Self::Sender(_) => Reply::new(501, reply::BAD_SENDER, text),
            Self::Recipient(_) => Reply::new(501, reply::BAD_RECIPIENT, text),
            Self::UnknownParameter(_) => Reply::new(555, reply::BAD_PARAMETER, text),
            Self::BadParameter(_) | Self::RepeatedParameter(_) => {
                Reply::new(501, reply::BAD_PARAMETER, text)
            }
        }
    }
}

/// Verbs that have a label of their own in metrics.
pub(super) const VERBS: [&str; 16] = [
    "AUTH", "BDAT", "DATA", "EHLO", "EXPN", "HELO", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET",
    "STARTTLS", "VRFY", "ETRN", "TURN",
];

/// The verb of a line as a metric label: one of a closed set.
pub(super) fn verb(line: &[u8]) -> &'static str {
    let end = memchr::memchr2(b' ', b'\t', line).unwrap_or(line.len());
    VERBS
        .iter()
        .find(|v| v.as_bytes().eq_ignore_ascii_case(&line[..end]))
        .copied()
        .unwrap_or("other")
}

/// How many bytes follow a line, if it is a BDAT command.
pub(crate) fn chunk_size(line: &[u8]) -> Option<u64> {
    match parse(line) {
        Ok(Command::Bdat { size, .. }) => Some(size),
        _ => None,
    }
}

/// Understands a line (without its end).
pub(super) fn parse(line: &[u8]) -> Result<Command<'_>, CommandError> {
    if line.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
        return Err(CommandError::Control);
    }
    let line = str::from_utf8(line).map_err(|_| CommandError::NotUtf8)?;
    let line = line.trim_end_matches([' ', '\t']);
    let (name, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let rest = rest.trim_start_matches([' ', '\t']);
    let bare = |command, syntax| {
        if rest.is_empty() { Ok(command) } else { Err(CommandError::Syntax(syntax)) }
    };
    match name.to_ascii_uppercase().as_str() {
        "AUTH" => parse_auth(rest),
        "BDAT" => parse_bdat(rest),
        "DATA" => bare(Command::Data, "DATA"),
        "EHLO" => Ok(Command::Ehlo(hello_name(rest, "EHLO")?)),
        "HELO" => Ok(Command::Helo(hello_name(rest, "HELO")?)),
        "HELP" => Ok(Command::Help),
        "MAIL" => parse_mail(rest),
        "NOOP" => Ok(Command::Noop),
        "QUIT" => bare(Command::Quit, "QUIT"),
        "RCPT" => parse_rcpt(rest),
        "RSET" => bare(Command::Rset, "RSET"),
        "STARTTLS" => bare(Command::StartTls, "STARTTLS"),
        "VRFY" if rest.is_empty() => Err(CommandError::Syntax("VRFY user or address")),
        "VRFY" => Ok(Command::Vrfy),
        "EXPN" => Err(CommandError::NotImplemented("EXPN")),
        "ETRN" => Err(CommandError::NotImplemented("ETRN")),
        "TURN" => Err(CommandError::NotImplemented("TURN")),
        "GET" | "POST" | "PUT" | "HEAD" | "OPTIONS" | "CONNECT" | "DELETE" | "PATCH" => {
            Err(CommandError::OtherProtocol)
        }
        _ => Err(CommandError::Unknown),
    }
}

/// What a client may call itself: characters of host names and literals, the rest is for rules (the paper wants
/// to see `..` and the like). It goes into `Received`, so nothing that would need quoting there.
fn hello_name<'a>(text: &'a str, verb: &'static str) -> Result<&'a str, CommandError> {
    let literal = text.starts_with('[');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c) || !c.is_ascii();
    let good = (1..=DOMAIN_BYTES_MAX).contains(&text.len())
        && if literal {
            is_literal(text) || is_loose_literal(text)
        } else {
            text.chars().all(plain)
        };
    if text.is_empty() {
        return Err(CommandError::Syntax(if verb == "EHLO" {
            "EHLO hostname"
        } else {
            "HELO hostname"
        }));
    }
    // A name in UTF-8 must at least be one (RFC 6531 §3.7.1 asks for A-labels).
    if good && (text.is_ascii() || is_domain(text)) {
        Ok(text)
    } else {
        Err(CommandError::HelloName(verb))
    }
}

/// `[2001:db8::1]` without its tag is wrong and common.
fn is_loose_literal(text: &str) -> bool {
    text.strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .is_some_and(|t| t.parse::<std::net::IpAddr>().is_ok())
}

fn parse_auth(rest: &str) -> Result<Command<'_>, CommandError> {
    let mut words = rest.split_ascii_whitespace();
    let (mechanism, initial) = (words.next(), words.next());
    match (mechanism, words.next()) {
        (Some(mechanism), None) => Ok(Command::Auth { mechanism, initial }),
        _ => Err(CommandError::Syntax("AUTH mechanism [initial-response]")),
    }
}

fn parse_bdat(rest: &str) -> Result<Command<'_>, CommandError> {
    let syntax = CommandError::Syntax("BDAT chunk-size [LAST]");
    let (size, last) = rest.split_once(' ').unwrap_or((rest, ""));
    let last = match last.trim_start() {
        "" => false,
        last if last.eq_ignore_ascii_case("LAST") => true,
        _ => return Err(syntax),
    };
    match decimal(size) {
        Some(size) => Ok(Command::Bdat { size, last }),
        None => Err(syntax),
    }
}

/// Digits only; saturates, as every size limit is below.
fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Takes `FROM:` or `TO:` off; blanks after the colon are wrong and common.
fn after_keyword<'a>(rest: &'a str, keyword: &str) -> Option<&'a str> {
    let (word, path) = rest.split_at_checked(keyword.len())?;
    let path = word.eq_ignore_ascii_case(keyword).then_some(path)?;
    Some(path.trim_start().strip_prefix(':')?.trim_start())
}

/// Splits parameters into keyword (upper case) and value.
fn parameters(rest: &str) -> impl Iterator<Item = (String, Option<&str>)> {
    rest.split_ascii_whitespace().map(|word| match word.split_once('=') {
        Some((key, value)) => (key.to_ascii_uppercase(), Some(value)),
        None => (word.to_ascii_uppercase(), None),
    })
}

fn set<T>(slot: &mut Option<T>, value: Option<T>, name: &'static str) -> Result<(), CommandError> {
    if slot.is_some() {
        return Err(CommandError::RepeatedParameter(name));
    }
    *slot = Some(value.ok_or(CommandError::BadParameter(name))?);
    Ok(())
}

fn parse_mail(rest: &str) -> Result<Command<'_>, CommandError> {
    const SYNTAX: CommandError = CommandError::Syntax("MAIL FROM:<reverse-path> [parameters]");
    let path = after_keyword(rest, "FROM").ok_or(SYNTAX)?;
    let (sender, rest) = parse_path(path).map_err(CommandError::Sender)?;
    if sender == Path::Postmaster {
        return Err(CommandError::Sender(PathError::NoDomain));
    }
    if !(rest.is_empty() || rest.starts_with(' ')) {
        return Err(SYNTAX);
    }
    let mut found = MailParameters::default();
    for (key, value) in parameters(rest) {
        match key.as_str() {
            "SIZE" => set(&mut found.size, value.and_then(decimal), "SIZE")?,
            "BODY" => set(&mut found.eight_bit, value.and_then(body), "BODY")?,
            "SMTPUTF8" if value.is_none() => {
                if std::mem::replace(&mut found.smtputf8, true) {
                    return Err(CommandError::RepeatedParameter("SMTPUTF8"));
                }
            }
            "SMTPUTF8" => return Err(CommandError::BadParameter("SMTPUTF8")),
            "AUTH" => {
                let value = value.and_then(|v| xtext(v, DOMAIN_BYTES_MAX + 65));
                set(&mut found.auth, value, "AUTH")?;
            }
            "RET" => set(&mut found.return_headers_only, value.and_then(ret), "RET")?,
            "ENVID" => {
                let value = value.and_then(|v| xtext(v, ENVELOPE_ID_BYTES_MAX));
                set(&mut found.envelope_id, value, "ENVID")?;
            }
            _ => return Err(CommandError::UnknownParameter("MAIL")),
        }
    }
    Ok(Command::Mail { sender, parameters: found })
}

/// BINARYMIME is not advertised (RFC 3030 §3), so it is a value like any unknown one.
fn body(value: &str) -> Option<bool> {
    match value.to_ascii_uppercase().as_str() {
        "7BIT" => Some(false),
        "8BITMIME" => Some(true),
        _ => None,
    }
}

fn ret(value: &str) -> Option<bool> {
    match value.to_ascii_uppercase().as_str() {
        "FULL" => Some(false),
        "HDRS" => Some(true),
        _ => None,
    }
}

/// RFC 3461 §4: printable ASCII without `=`, `+` only before two upper-case hex digits.
fn xtext(value: &str, longest: usize) -> Option<String> {
    let bytes = value.as_bytes();
    let hex =
        |at: usize| bytes.get(at).is_some_and(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(b));
    let good = (1..=longest).contains(&bytes.len())
        && bytes.iter().enumerate().all(|(at, b)| match b {
            b'+' => hex(at + 1) && hex(at + 2),
            b'=' => false,
            b => b.is_ascii_graphic(),
        });
    good.then(|| value.to_owned())
}

fn parse_rcpt(rest: &str) -> Result<Command<'_>, CommandError> {
    const SYNTAX: CommandError = CommandError::Syntax("RCPT TO:<forward-path> [parameters]");
    let path = after_keyword(rest, "TO").ok_or(SYNTAX)?;
    let (recipient, rest) = parse_path(path).map_err(CommandError::Recipient)?;
    if recipient == Path::Null || !(rest.is_empty() || rest.starts_with(' ')) {
        return Err(SYNTAX);
    }
    let mut found = RcptParameters::default();
    for (key, value) in parameters(rest) {
        match key.as_str() {
            "NOTIFY" => set(&mut found.notify, value.and_then(notify), "NOTIFY")?,
            "ORCPT" => set(&mut found.original, value.and_then(original), "ORCPT")?,
            _ => return Err(CommandError::UnknownParameter("RCPT")),
        }
    }
    Ok(Command::Rcpt { recipient, parameters: found })
}

fn notify(value: &str) -> Option<String> {
    let value = value.to_ascii_uppercase();
    let mut words = value.split(',');
    let good = value == "NEVER" || words.all(|w| ["SUCCESS", "FAILURE", "DELAY"].contains(&w));
    good.then_some(value)
}

fn original(value: &str) -> Option<String> {
    let (kind, address) = value.split_once(';')?;
    let good = !kind.is_empty()
        && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && value.len() <= ORIGINAL_RECIPIENT_BYTES_MAX
        && xtext(address, ORIGINAL_RECIPIENT_BYTES_MAX).is_some();
    good.then(|| value.to_owned())
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
