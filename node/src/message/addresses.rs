//! Addresses in header fields (RFC 5322 §3.4), found where they stand: one can be replaced, and everything around it
//! (names, comments, groups, folding, encoded words) stays as it is.
//!
//! Our own, because `mail-parser` decodes and normalises, and does not say where an address stood. What cannot be
//! read is left alone.

use std::ops::Range;

use super::fixups::fields;
use crate::limits::{HEADER_ADDRESSES_MAX, HEADER_LINE_BYTES_MAX};

/// A field that has addresses; `Resent-…` counts as the field itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressField {
    From,
    Sender,
    ReplyTo,
    To,
    Cc,
    Bcc,
}

/// What stands instead of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    pub address: String,
    /// And instead of the name and the comments with it.
    pub whole: bool,
}

const FIELDS: [(&str, AddressField); 6] = [
    ("from", AddressField::From),
    ("sender", AddressField::Sender),
    ("reply-to", AddressField::ReplyTo),
    ("to", AddressField::To),
    ("cc", AddressField::Cc),
    ("bcc", AddressField::Bcc),
];

/// Where lines are broken that have become too long (RFC 5322 §2.1.1).
const LINE_BYTES: usize = 78;

/// Asks for each address of a header block (fields only) what is to stand there instead. `None`: all stays.
pub fn replace_addresses(
    header: &[u8],
    mut replace: impl FnMut(AddressField, &str) -> Option<Replacement>,
) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut copied, mut left) = (0, HEADER_ADDRESSES_MAX);
    for range in fields(header) {
        let field = &header[range.clone()];
        let Some((kind, value)) = kind_of(field) else { continue };
        let Some(items) = items(&field[value..], left) else { continue };
        left -= items.len();
        let edits = items.iter().filter_map(|item| {
            let new = replace(kind, &item.address)?;
            Some((item, new))
        });
        let edits: Vec<_> = edits.collect();
        if edits.is_empty() {
            continue;
        }
        out.extend_from_slice(&header[copied..range.start + value]);
        let new = edited(&field[value..], &edits);
        out.extend(if has_long_line(&new, value) { folded(&new, value) } else { new });
        copied = range.end;
    }
    if copied == 0 {
        return None;
    }
    out.extend_from_slice(&header[copied..]);
    Some(out)
}

/// The kind of a field, and where its value begins.
fn kind_of(field: &[u8]) -> Option<(AddressField, usize)> {
    let colon = memchr::memchr(b':', field)?;
    let name = field[..colon].trim_ascii_end();
    let name = match name.split_at_checked(7) {
        Some((resent, rest)) if resent.eq_ignore_ascii_case(b"resent-") => rest,
        _ => name,
    };
    let known = FIELDS.iter().find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name));
    known.map(|(_, kind)| (*kind, colon + 1))
}

/// An address in a field's value.
#[derive(Debug)]
struct Item {
    /// With its name, brackets and comments.
    whole: Range<usize>,
    /// The address itself.
    bare: Range<usize>,
    /// The same without blanks and comments inside.
    address: String,
    /// Comments inside.
    comments: Vec<Range<usize>>,
}

fn edited(value: &[u8], edits: &[(&Item, Replacement)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 16 * edits.len());
    let mut copied = 0;
    for (item, new) in edits {
        let place = if new.whole { &item.whole } else { &item.bare };
        out.extend_from_slice(&value[copied..place.start]);
        out.extend_from_slice(new.address.as_bytes());
        if !new.whole {
            for comment in &item.comments {
                out.push(b' ');
                out.extend_from_slice(&value[comment.clone()]);
            }
        }
        copied = place.end;
    }
    out.extend_from_slice(&value[copied..]);
    out
}

/// `name`: bytes before the value in its first line.
fn has_long_line(value: &[u8], name: usize) -> bool {
    let mut before = name;
    value.split_inclusive(|b| *b == b'\n').any(|line| {
        let length = before + line.trim_ascii_end().len();
        before = 0;
        length > HEADER_LINE_BYTES_MAX
    })
}

/// The value with line breaks behind commas.
fn folded(value: &[u8], name: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + value.len() / 16);
    let (mut copied, mut column) = (0, name);
    let commas = commas(value);
    for (number, comma) in commas.iter().enumerate() {
        let piece = &value[copied..=*comma];
        out.extend_from_slice(piece);
        copied = comma + 1;
        column = match memchr::memrchr(b'\n', piece) {
            Some(at) => piece.len() - at - 1,
            None => column + piece.len(),
        };
        let next = commas.get(number + 1).map_or(value.len(), |next| next + 1);
        let next = value[copied..next].split(|b| *b == b'\n').next().unwrap_or_default();
        if !next.trim_ascii().is_empty() && column + next.trim_ascii_end().len() > LINE_BYTES {
            out.extend_from_slice(b"\r\n\t");
            column = 1;
        }
    }
    out.extend_from_slice(&value[copied..]);
    out
}

/// Where commas stand between addresses.
fn commas(value: &[u8]) -> Vec<usize> {
    let mut tokens = Tokens { text: value, at: 0 };
    let (mut found, mut in_brackets) = (Vec::new(), false);
    while let Some(Ok((token, range))) = tokens.next() {
        match token {
            Token::Special(b'<') => in_brackets = true,
            Token::Special(b'>') => in_brackets = false,
            Token::Special(b',') if !in_brackets => found.push(range.start),
            _ => {}
        }
    }
    found
}

/// The addresses of a value, at most so many; `None` if a comment, a quoted string or a literal has no end, or if
/// there are more.
fn items(value: &[u8], most: usize) -> Option<Vec<Item>> {
    let mut found = Vec::new();
    let mut mailbox = Mailbox::default();
    let mut tokens = Tokens { text: value, at: 0 };
    while let Some(token) = tokens.next() {
        let (token, range) = token.ok()?;
        let ends = match token {
            Token::Special(b',' | b';') => !mailbox.in_brackets,
            Token::Special(b':') if !mailbox.in_brackets => {
                // What came before was the name of a group.
                mailbox = Mailbox::default();
                continue;
            }
            _ => false,
        };
        if ends {
            found.extend(std::mem::take(&mut mailbox).item(value));
        } else {
            mailbox.push(token, range);
        }
        if found.len() > most {
            return None;
        }
    }
    found.extend(mailbox.item(value));
    (found.len() <= most).then_some(found)
}

/// What stands between two commas.
#[derive(Default)]
struct Mailbox {
    whole: Option<Range<usize>>,
    /// Words of the address: all of them, or those in the brackets.
    words: Vec<(Token, Range<usize>)>,
    comments: Vec<Range<usize>>,
    in_brackets: bool,
    /// Brackets were closed.
    closed: bool,
    broken: bool,
}

impl Mailbox {
    fn push(&mut self, token: Token, range: Range<usize>) {
        let whole = self.whole.get_or_insert_with(|| range.clone());
        whole.end = range.end;
        match token {
            Token::Comment => self.comments.push(range),
            Token::Special(b'<') => {
                self.broken |= self.in_brackets || self.closed;
                self.in_brackets = true;
                self.words.clear();
            }
            Token::Special(b'>') => {
                self.broken |= !self.in_brackets;
                (self.in_brackets, self.closed) = (false, true);
            }
            // The end of a source route (RFC 5322 §4.4).
            Token::Special(b':') => self.words.clear(),
            token => {
                self.broken |= self.closed;
                self.words.push((token, range));
            }
        }
    }

    /// The address, if this is one.
    fn item(self, value: &[u8]) -> Option<Item> {
        let at = self.words.iter().position(|(token, _)| *token == Token::Special(b'@'))?;
        let (local, domain) = (&self.words[..at], &self.words[at + 1..]);
        let one_literal = matches!(domain, [(Token::Literal, _)]);
        let good = !self.broken
            && !self.in_brackets
            && is_dotted(local, true)
            && (one_literal || is_dotted(domain, false));
        if !good {
            return None;
        }
        let bare = local.first()?.1.start..domain.last()?.1.end;
        let mut address = Vec::with_capacity(bare.len());
        for (_, range) in &self.words {
            address.extend_from_slice(&value[range.clone()]);
        }
        let mut comments = self.comments;
        comments.retain(|comment| bare.contains(&comment.start));
        Some(Item { whole: self.whole?, bare, address: String::from_utf8(address).ok()?, comments })
    }
}

/// Words with dots between them. Dots in other places are wrong and common (`a..b@docomo.ne.jp`).
fn is_dotted(words: &[(Token, Range<usize>)], quoted: bool) -> bool {
    let mut after_word = false;
    words.iter().all(|(token, _)| match token {
        Token::Atom => !std::mem::replace(&mut after_word, true),
        Token::Quoted => quoted && !std::mem::replace(&mut after_word, true),
        Token::Special(b'.') => {
            after_word = false;
            true
        }
        _ => false,
    }) && words.iter().any(|(token, _)| !matches!(token, Token::Special(_)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Atom,
    Quoted,
    /// `[…]`
    Literal,
    Comment,
    Special(u8),
}

/// The words of a value (RFC 5322 §3.2), without the blanks between them.
struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

/// Something has no end.
struct Endless;

impl Tokens<'_> {
    fn next(&mut self) -> Option<Result<(Token, Range<usize>), Endless>> {
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        while self.text.get(self.at).is_some_and(blank) {
            self.at += 1;
        }
        let start = self.at;
        let first = *self.text.get(start)?;
        self.at += 1;
        let token = match first {
            b'(' => self.up_to(b')', Some(b'(')).then_some(Token::Comment),
            b'"' => self.up_to(b'"', None).then_some(Token::Quoted),
            b'[' => self.up_to(b']', None).then_some(Token::Literal),
            b'<' | b'>' | b',' | b':' | b';' | b'@' | b'.' | b')' | b']' => {
                Some(Token::Special(first))
            }
            _ => {
                let ends = |byte: &u8| blank(byte) || b"()\"[]<>,:;@.".contains(byte);
                let rest = &self.text[self.at..];
                self.at += rest.iter().position(ends).unwrap_or(rest.len());
                Some(Token::Atom)
            }
        };
        Some(token.map(|token| (token, start..self.at)).ok_or(Endless))
    }

    /// Goes behind the byte that ends what has begun; false if there is none.
    fn up_to(&mut self, end: u8, nests: Option<u8>) -> bool {
        let mut depth = 1_usize;
        while let Some(byte) = self.text.get(self.at) {
            self.at += 1;
            if *byte == b'\\' {
                self.at += 1;
            } else if *byte == end {
                depth -= 1;
                if depth == 0 {
                    return true;
                }
            } else if Some(*byte) == nests {
                depth += 1;
            }
        }
        self.at = self.text.len();
        false
    }
}

#[cfg(test)]
#[path = "addresses_tests.rs"]
mod tests;
