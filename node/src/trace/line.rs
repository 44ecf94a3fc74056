//! Lines as they are shown: no secrets, no control characters, of bounded length.

use crate::{limits::TRACE_LINE_BYTES_MAX, maillog::clean};

/// Stands for what nobody but the two ends should see.
pub(super) const SECRET: &str = "(secret)";

/// Names of mechanisms that are shown: anything else behind `AUTH` may be a password.
const MECHANISMS: [&str; 12] = [
    "PLAIN",
    "LOGIN",
    "EXTERNAL",
    "ANONYMOUS",
    "CRAM-MD5",
    "DIGEST-MD5",
    "NTLM",
    "GSSAPI",
    "XOAUTH2",
    "OAUTHBEARER",
    "SCRAM-SHA-1",
    "SCRAM-SHA-256",
];

/// Verbs of lines that are shown although a password may have been said at the wrong time.
const VERBS: [&str; 19] = [
    "BDAT", "DATA", "EHLO", "ETRN", "EXPN", "HELO", "HELP", "LHLO", "MAIL", "NOOP", "QUIT", "RCPT",
    "RSET", "STARTTLS", "TURN", "VRFY", "XCLIENT", "XFORWARD", ".",
];

/// What a line means for what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// A transaction begins.
    Mail(&'a str),
    Rcpt(&'a str),
    Other,
}

/// A command of either end. `auth`: AUTH was said in this session, so a line that is no command may be its response.
pub(super) fn command(line: &[u8], auth: &mut bool) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim();
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    let verb = words.next().unwrap_or_default();
    if text.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("AUTH")) {
        *auth = true;
        let given = words.next();
        let known = given.filter(|word| MECHANISMS.iter().any(|m| m.eq_ignore_ascii_case(word)));
        let secret = words.next().is_some() || given.is_some() != known.is_some();
        let shown = ["AUTH"].into_iter().chain(known).chain(secret.then_some(SECRET));
        return shown.collect::<Vec<_>>().join(" ");
    }
    if *auth && !VERBS.iter().any(|known| known.eq_ignore_ascii_case(verb)) {
        return SECRET.to_owned();
    }
    printable(text)
}

/// Text of bounded length without control characters.
pub(super) fn printable(text: &str) -> String {
    let mut text = clean(text).into_owned();
    if text.len() > TRACE_LINE_BYTES_MAX {
        let end = (0..=TRACE_LINE_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str(" ...");
    }
    text
}

/// Finds MAIL and RCPT.
pub(super) fn step(line: &str) -> Step<'_> {
    let after = |verb: &str| {
        let head = line.get(..verb.len())?;
        head.eq_ignore_ascii_case(verb).then(|| path(line.get(verb.len()..).unwrap_or_default()))
    };
    match (after("MAIL FROM:"), after("RCPT TO:")) {
        (Some(sender), _) => Step::Mail(sender),
        (_, Some(recipient)) => Step::Rcpt(recipient),
        _ => Step::Other,
    }
}

/// The address of a path; without its source route (RFC 5321 §4.1.1.3).
fn path(text: &str) -> &str {
    let text = text.trim_start();
    let Some(inner) = text.strip_prefix('<') else {
        return text.split(' ').next().unwrap_or_default();
    };
    let quoted = inner.starts_with('"');
    let end = if quoted { inner.rfind('>') } else { inner.find('>') };
    let inner = end.map_or(inner, |end| &inner[..end]);
    match inner.split_once(':') {
        Some((route, address)) if route.starts_with('@') => address,
        _ => inner,
    }
}
