//! Texts with fields: `{domain}`, `{table:users/cyrus:{local_part}}`. Parsed once, filled in per use.

use std::borrow::Cow;

use crate::{limits, tables::Tables};

/// A text with fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    pieces: Box<[Piece]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Field(Field),
    Variable(Box<str>),
    Parameter(Box<str>),
    /// What a wildcard of a rewriting rule stands for; 0: all of the address.
    Wildcard(usize),
    Table {
        table: Template,
        key: Template,
    },
}

macro_rules! fields {
    ($($(#[$doc:meta])* $variant:ident $name:literal $place:ident;)*) => {
        /// What a field stands for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Field { $($(#[$doc])* $variant),* }
        const FIELDS: &[(&str, Field, Place)] = &[$(($name, Field::$variant, Place::$place)),*];
    };
}

fields! {
    /// Domain of the address that is checked or routed.
    Domain "domain" Both;
    /// Its local part, without prefix and suffix that a router took off.
    LocalPart "local_part" Both;
    /// The prefix that a router took off.
    Prefix "prefix" Router;
    /// The suffix that a router took off.
    Suffix "suffix" Router;
    /// The whole address.
    Address "address" Both;
    QualifyDomain "qualify_domain" Both;
    Sender "sender" Message;
    SenderDomain "sender_domain" Message;
    SenderLocalPart "sender_local_part" Message;
    Helo "helo" Rule;
    /// IP address of the client.
    Client "client" Rule;
    ClientName "client_name" Rule;
    /// IP address of the server.
    Server "server" Rule;
    User "user" Rule;
    /// Subject of the client's verified certificate.
    TlsPeer "tls_peer" Rule;
    /// Name of the personality.
    Name "name" Rule;
    /// Why the last verification or auxiliary ACL failed.
    Reason "reason" Rule;
    /// The DNS list that matched.
    DnsList "dnslist" Rule;
    /// What the DNS list says.
    DnsText "text" Rule;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Rule,
    Router,
    /// Rules and routers: there is a message.
    Message,
    /// Wherever there is an address.
    Both,
}

/// Where a template stands; decides which fields it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Rule,
    Router,
    Rewrite,
}

/// Where fields get their values.
pub(crate) trait Facts {
    fn field(&self, field: Field) -> Cow<'_, str>;
    fn variable(&self, name: &str) -> Option<&str>;
    /// What a wildcard stands for.
    fn wildcard(&self, _number: usize) -> &str {
        ""
    }
    /// A parameter of the server's entry in `addrparams`.
    fn parameter(&self, name: &str) -> Option<&str>;
    fn tables(&self) -> &Tables;
    /// Hears of every look-up in a table.
    fn looked_up(&self, _table: &str, _key: &str, _found: Option<&str>) {}
}

/// What is wrong in a template.
#[derive(Debug)]
pub(crate) struct BadTemplate {
    pub(crate) what: String,
    /// A word that is unknown, and those that are known.
    pub(crate) unknown: Option<(String, Vec<&'static str>)>,
}

impl Template {
    pub(crate) fn parse(text: &str, scope: Scope) -> Result<Self, BadTemplate> {
        let mut parser = Parser { rest: text, scope };
        let template = parser.pieces(0, None)?;
        Ok(template)
    }

    /// The text, if it has no fields.
    pub(crate) fn literal(&self) -> Option<&str> {
        match &*self.pieces {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The filled-in text; `None` if a table has no such entry, or a parameter is missing.
    pub(crate) fn fill(&self, facts: &dyn Facts) -> Option<String> {
        let mut out = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Field(field) => out.push_str(&facts.field(*field)),
                Piece::Variable(name) => out.push_str(facts.variable(name).unwrap_or("")),
                Piece::Parameter(name) => out.push_str(facts.parameter(name)?),
                Piece::Wildcard(number) => out.push_str(facts.wildcard(*number)),
                Piece::Table { table, key } => {
                    let (table, key) = (table.fill(facts)?, key.fill(facts)?);
                    let found = facts.tables().get(&table, &key);
                    facts.looked_up(&table, &key, found);
                    out.push_str(found?);
                }
            }
        }
        Some(out)
    }

    /// The filled-in text for people: what is missing is left out, control characters are replaced, length bounded.
    pub(crate) fn fill_reply(&self, facts: &dyn Facts) -> String {
        let mut out = String::new();
        for piece in &self.pieces {
            let single = Self { pieces: Box::new([piece.clone()]) };
            match piece {
                Piece::Text(text) => out.push_str(text),
                // Reasons may have several lines of our own.
                Piece::Field(Field::Reason) => out.push_str(&facts.field(Field::Reason)),
                _ => out.push_str(&single.fill(facts).unwrap_or_default().replace('\n', " ")),
            }
        }
        bounded(out.trim_end())
    }

    /// The highest number of a wildcard in it.
    pub(crate) fn wildcards(&self) -> Option<usize> {
        let each = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Wildcard(number) => Some(*number),
            Piece::Table { table, key } => table.wildcards().max(key.wildcards()),
            _ => None,
        });
        each.max()
    }

    /// The names of tables that the template asks for and that do not depend on fields.
    pub(crate) fn table_names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for piece in &self.pieces {
            if let Piece::Table { table, key } = piece {
                names.extend(table.literal());
                names.extend(table.table_names());
                names.extend(key.table_names());
            }
        }
        names
    }
}

/// `text` at most [`limits::POLICY_TEXT_BYTES_MAX`] long, without control characters other than line ends.
pub(crate) fn bounded(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(limits::POLICY_TEXT_BYTES_MAX));
    for c in text.chars() {
        let c = if c.is_control() && c != '\n' { '?' } else { c };
        if out.len() + c.len_utf8() > limits::POLICY_TEXT_BYTES_MAX {
            break;
        }
        out.push(c);
    }
    out
}

struct Parser<'t> {
    rest: &'t str,
    scope: Scope,
}

impl Parser<'_> {
    /// Pieces up to `end` (consumed), or to the end of the text.
    fn pieces(&mut self, depth: usize, end: Option<char>) -> Result<Template, BadTemplate> {
        if depth > limits::POLICY_DEPTH_MAX {
            return Err(bad("fields are nested too deeply"));
        }
        let mut pieces = Vec::new();
        let mut text = String::new();
        loop {
            let Some(c) = self.rest.chars().next() else {
                if let Some(end) = end {
                    return Err(bad(format!("a field is not closed: expected {end:?}")));
                }
                break;
            };
            self.rest = &self.rest[c.len_utf8()..];
            if Some(c) == end {
                break;
            }
            let doubled = end.is_none() && self.rest.starts_with(c);
            match c {
                '{' | '}' if doubled => {
                    self.rest = &self.rest[1..];
                    text.push(c);
                }
                '{' => {
                    if !text.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut text).into_boxed_str()));
                    }
                    pieces.push(self.field(depth)?);
                }
                '}' => return Err(bad("a \"}\" closes nothing; a plain brace is written \"}}\"")),
                c => text.push(c),
            }
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.into_boxed_str()));
        }
        Ok(Template { pieces: pieces.into_boxed_slice() })
    }

    fn field(&mut self, depth: usize) -> Result<Piece, BadTemplate> {
        if let Some(rest) = self.rest.strip_prefix("table:") {
            self.rest = rest;
            let table = self.pieces(depth + 1, Some(':'))?;
            let key = self.pieces(depth + 1, Some('}'))?;
            return Ok(Piece::Table { table, key });
        }
        let Some((word, rest)) = self.rest.split_once('}') else {
            return Err(bad("a field is not closed: expected '}'"));
        };
        self.rest = rest;
        if self.scope == Scope::Rewrite
            && let [digit @ b'0'..=b'9'] = word.as_bytes()
        {
            return Ok(Piece::Wildcard(usize::from(digit - b'0')));
        }
        match word.split_once(':') {
            Some(("var", name)) if self.scope == Scope::Rule && is_name(name) => {
                Ok(Piece::Variable(name.into()))
            }
            Some(("param", name)) if self.scope == Scope::Rule && is_name(name) => {
                Ok(Piece::Parameter(name.into()))
            }
            _ => self.plain(word).map(Piece::Field),
        }
    }

    fn plain(&self, word: &str) -> Result<Field, BadTemplate> {
        let here = |place: Place| match self.scope {
            Scope::Rule => place != Place::Router,
            Scope::Router => place != Place::Rule,
            Scope::Rewrite => place == Place::Both,
        };
        let known = FIELDS.iter().filter(|(_, _, place)| here(*place));
        if let Some((_, field, _)) = known.clone().find(|(name, ..)| *name == word) {
            return Ok(*field);
        }
        let known = known.map(|(name, ..)| *name).chain(["table:NAME:KEY"]).collect();
        let what = format!("unknown field {word:?}");
        Err(BadTemplate { what, unknown: Some((word.to_owned(), known)) })
    }
}

/// Every field.
#[cfg(test)]
pub(super) fn fields() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(|(name, ..)| *name)
}

/// Names of variables and parameters.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

fn bad(what: impl Into<String>) -> BadTemplate {
    BadTemplate { what: what.into(), unknown: None }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Fixed(Tables);

    impl Facts for Fixed {
        fn field(&self, field: Field) -> Cow<'_, str> {
            format!("<{field:?}>").into()
        }
        fn variable(&self, _: &str) -> Option<&str> {
            None
        }
        fn parameter(&self, name: &str) -> Option<&str> {
            (name == "here").then_some("yes")
        }
        fn tables(&self) -> &Tables {
            &self.0
        }
    }

    #[test]
    fn fields_tables_and_braces() {
        let files = BTreeMap::from([("users/t".to_owned(), b"<localpart> v\n".to_vec())]);
        let facts = Fixed(Tables::from_files(&files).unwrap());
        let fill = |text| Template::parse(text, Scope::Rule).unwrap().fill(&facts);
        assert_eq!(fill("a {domain} b").as_deref(), Some("a <Domain> b"));
        assert_eq!(fill("{{x}} {param:here}").as_deref(), Some("{x} yes"));
        assert_eq!(fill("[{table:users/t:{local_part}}]").as_deref(), Some("[v]"));
        assert_eq!(fill("{table:users/t:{domain}}"), None);
        assert_eq!(fill("{param:absent}"), None);
        let reply = Template::parse("x {table:users/t:no} {reason}\n ", Scope::Rule).unwrap();
        assert_eq!(reply.fill_reply(&facts), "x  <Reason>");
    }

    #[test]
    fn mistakes_are_found() {
        for (text, what) in [
            ("{domian}", "unknown field"),
            ("{domain", "not closed"),
            ("a } b", "closes nothing"),
            ("{table:x}", "closes nothing"),
            ("{table:x:y", "not closed"),
            ("{helo}", "unknown field"),
        ] {
            let error = Template::parse(text, Scope::Router).unwrap_err();
            assert!(error.what.contains(what), "{text}: {error:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_parses_or_fails_cleanly(text in "[{}a:table]{0,40}") {
            let _ = Template::parse(&text, Scope::Rule);
        }
    }
}
