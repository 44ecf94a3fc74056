//! Addresses in MAIL and RCPT (RFC 5321 §4.1.2, RFC 6531 §3.3).
//!
//! Our own, because `smtp-proto` takes the quotes off a local part, makes one of `<postmaster>` and `<>`, and
//! lets controls and CRs through; a relay must hand on what it was given.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::limits::{DOMAIN_BYTES_MAX, LOCAL_PART_BYTES_MAX};

/// A path in angle brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// `<>`.
    Null,
    /// `<postmaster>`, the one address that needs no domain (RFC 5321 §4.5.1).
    Postmaster,
    /// `local-part@domain`, as given, without a source route.
    Mailbox(String),
}

/// What is wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PathError {
    #[error("address must be in angle brackets")]
    NoBrackets,
    #[error("address must contain a domain")]
    NoDomain,
    #[error("malformed source route")]
    SourceRoute,
    #[error("malformed local part")]
    LocalPart,
    #[error("local part is longer than 64 octets")]
    LocalPartTooLong,
    #[error("malformed domain")]
    Domain,
    #[error("domain is longer than 255 octets")]
    DomainTooLong,
    #[error("malformed address literal")]
    Literal,
}

/// Reads the path at the beginning of `text`. Returns it with what follows the closing bracket.
pub(super) fn parse_path(text: &str) -> Result<(Path, &str), PathError> {
    let text = text.strip_prefix('<').ok_or(PathError::NoBrackets)?;
    if let Some(rest) = text.strip_prefix('>') {
        return Ok((Path::Null, rest));
    }
    let text = skip_source_route(text)?;
    let (local, rest) = local_part(text)?;
    if local.len() > LOCAL_PART_BYTES_MAX {
        return Err(PathError::LocalPartTooLong);
    }
    if let Some(rest) = rest.strip_prefix('>') {
        let postmaster = local.eq_ignore_ascii_case("postmaster");
        return if postmaster { Ok((Path::Postmaster, rest)) } else { Err(PathError::NoDomain) };
    }
    let rest = rest.strip_prefix('@').ok_or(PathError::LocalPart)?;
    let (domain, rest) = domain(rest)?;
    let rest = rest.strip_prefix('>').ok_or(PathError::Domain)?;
    Ok((Path::Mailbox(format!("{local}@{domain}")), rest))
}

/// What is wrong with a text that should be `local-part@domain` and nothing else.
pub(crate) fn mailbox_fault(text: &str) -> Option<String> {
    match parse_path(&format!("<{text}>")) {
        Ok((Path::Mailbox(address), "")) if address == text => None,
        Ok(_) => Some("malformed address".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

/// `@a,@b:` before a mailbox is accepted and ignored (RFC 5321 §4.1.1.3, appendix C).
fn skip_source_route(text: &str) -> Result<&str, PathError> {
    let mut rest = text;
    while let Some(after) = rest.strip_prefix('@') {
        let (_, after) = domain(after).map_err(|_| PathError::SourceRoute)?;
        if let Some(mailbox) = after.strip_prefix(':') {
            return Ok(mailbox);
        }
        rest = after.strip_prefix(',').ok_or(PathError::SourceRoute)?;
        if !rest.starts_with('@') {
            return Err(PathError::SourceRoute);
        }
    }
    Ok(rest)
}

fn local_part(text: &str) -> Result<(&str, &str), PathError> {
    let end = if text.starts_with('"') {
        quoted_string(text).ok_or(PathError::LocalPart)?
    } else {
        // Dots in odd places (`a..b@docomo.ne.jp`) are real and harmless.
        text.find(|c: char| !(is_atext(c) || c == '.')).unwrap_or(text.len())
    };
    let (local, rest) = text.split_at(end);
    if local.is_empty() { Err(PathError::LocalPart) } else { Ok((local, rest)) }
}

/// Length of the quoted string at the start of `text`.
fn quoted_string(text: &str) -> Option<usize> {
    let mut characters = text.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some(at + 1),
            '\\' => {
                characters.next().filter(|(_, c)| matches!(c, ' '..='~'))?;
            }
            ' '..='~' => {}
            c if !c.is_ascii() && !c.is_control() => {}
            _ => return None,
        }
    }
    None
}

fn is_atext(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || "!#$%&'*+-/=?^_`{|}~".contains(c)
        || (!c.is_ascii() && !c.is_control())
}

fn domain(text: &str) -> Result<(&str, &str), PathError> {
    if text.starts_with('[') {
        let end = text.find(']').ok_or(PathError::Literal)? + 1;
        let (literal, rest) = text.split_at(end);
        return if is_literal(literal) { Ok((literal, rest)) } else { Err(PathError::Literal) };
    }
    let end = text.find(['>', ',', ':']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.len() > DOMAIN_BYTES_MAX {
        return Err(PathError::DomainTooLong);
    }
    if is_domain(name) { Ok((name, rest)) } else { Err(PathError::Domain) }
}

/// Labels of letters, digits, hyphens and underscores (they exist), or UTF-8.
pub(super) fn is_domain(name: &str) -> bool {
    !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.chars().all(|c| {
                    c.is_ascii_alphanumeric()
                        || c == '-'
                        || c == '_'
                        || (!c.is_ascii() && !c.is_control() && !c.is_whitespace())
                })
        })
}

/// `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321 §4.1.3).
pub(super) fn is_literal(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) else {
        return false;
    };
    match inner.get(..5).filter(|tag| tag.eq_ignore_ascii_case("IPv6:")) {
        Some(_) => inner[5..].parse::<Ipv6Addr>().is_ok(),
        None => inner.parse::<Ipv4Addr>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(text: &str) -> Result<String, PathError> {
        match parse_path(text)? {
            (Path::Mailbox(address), "") => Ok(address),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn paths_are_read_as_they_are() {
        assert_eq!(parse_path("<> BODY=7BIT"), Ok((Path::Null, " BODY=7BIT")));
        assert_eq!(parse_path("<PostMaster>"), Ok((Path::Postmaster, "")));
        for good in [
            "Fred.o'Neil+x@Example.ORG",
            "\"a b\\\"@>\"@x.org",
            "a..b@docomo.ne.jp",
            "x@[192.0.2.1]",
            "x@[IPv6:2001:db8::1]",
            "δοκιμή@παράδειγμα.gr",
            "_x@host_name",
        ] {
            assert_eq!(mailbox(&format!("<{good}>")).as_deref(), Ok(good));
        }
        assert_eq!(mailbox("<@a.org,@b.org:joe@c.org>").as_deref(), Ok("joe@c.org"));
    }

    #[test]
    fn a_mailbox_is_an_address_and_nothing_else() {
        assert_eq!(mailbox_fault("a.b+c@x.org"), None);
        for bad in
            ["", "a", "postmaster", "@r.org:a@x.org", "a@x.org> <b@x.org", "a@x.org ", "<a@x.org>"]
        {
            assert!(mailbox_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let long_local = format!("<{}@x>", "a".repeat(65));
        let long_domain = format!("<a@{}x>", "abcdefgh.".repeat(30));
        for (text, error) in [
            ("fred@x.org", PathError::NoBrackets),
            ("<fred>", PathError::NoDomain),
            ("<@x.org>", PathError::SourceRoute),
            ("<@a,b:c@d>", PathError::SourceRoute),
            ("<a b@x>", PathError::LocalPart),
            ("<\"a@x>", PathError::LocalPart),
            ("<\"a\u{1}\"@x>", PathError::LocalPart),
            ("<a@>", PathError::Domain),
            ("<a@x..y>", PathError::Domain),
            ("<a@b@c>", PathError::Domain),
            ("<a@x", PathError::Domain),
            ("<a@[1.2.3]>", PathError::Literal),
            (&long_local, PathError::LocalPartTooLong),
            (&long_domain, PathError::DomainTooLong),
        ] {
            assert_eq!(parse_path(text).map(|_| ()), Err(error), "{text}");
        }
    }
}
