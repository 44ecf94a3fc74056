//! Lists of domains, hosts, local parts and addresses: the first item that matches decides, as in Exim.

use std::{borrow::Cow, net::IpAddr};

use ipnet::IpNet;

use super::{
    personality::Personalities,
    template::{Facts, Field, Template},
};
use crate::tables::{Tables, folded};

/// What a list is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Domains,
    Hosts,
    LocalParts,
    Addresses,
}

/// A compiled list.
#[derive(Clone, Debug, Default)]
pub(crate) struct List {
    pub(crate) items: Vec<Item>,
}

/// One item; `negated` means that a match says no.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// As it stands in the policy.
    pub(crate) text: Box<str>,
    pub(crate) negated: bool,
    pub(crate) matcher: Matcher,
}

impl Item {
    /// `!` before the text negates it.
    pub(crate) fn new(text: &str, matcher: Matcher) -> Self {
        Self { text: text.into(), negated: text.starts_with('!'), matcher }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Matcher {
    Glob(Glob),
    /// Local part and domain of an address.
    Address(Glob, Glob),
    Net(IpNet),
    /// Index of a named list of the same kind.
    Named(usize),
    Table {
        name: Box<str>,
        partial: bool,
    },
    /// `@[]`: a literal of one of our addresses; for hosts, the machine itself.
    Own,
    Field(Template),
}

/// What is looked for in a list.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    Domain(&'a str),
    LocalPart(&'a str),
    Address(&'a str),
    /// A host, its name if known, and our address to which it talks.
    Host(IpAddr, Option<&'a str>, Option<IpAddr>),
}

/// What matching needs beside the list.
#[derive(Clone, Copy)]
pub(crate) struct World<'a> {
    pub(crate) lists: &'a [List],
    pub(crate) tables: &'a Tables,
    pub(crate) personalities: &'a Personalities,
    pub(crate) facts: &'a dyn Facts,
}

impl List {
    /// Whether the list holds the subject. If no item matches: yes if the last item is negated.
    pub(crate) fn holds(&self, subject: Subject<'_>, world: &World<'_>) -> bool {
        for item in &self.items {
            if item.matcher.matches(subject, world) {
                return !item.negated;
            }
        }
        self.items.last().is_some_and(|item| item.negated)
    }

    /// The item that decides, and those that decide in the lists that it names.
    pub(crate) fn decider(&self, subject: Subject<'_>, world: &World<'_>) -> Option<String> {
        let item = self.items.iter().find(|item| item.matcher.matches(subject, world))?;
        let inner = match &item.matcher {
            Matcher::Named(index) => {
                world.lists.get(*index).and_then(|list| list.decider(subject, world))
            }
            _ => None,
        };
        let text = if item.text.is_empty() { "\"\"" } else { &*item.text };
        Some(inner.map_or_else(|| text.to_owned(), |inner| format!("{text} → {inner}")))
    }

    /// Indexes of the named lists that this one names.
    pub(crate) fn named(&self) -> impl Iterator<Item = usize> {
        self.items.iter().filter_map(|item| match item.matcher {
            Matcher::Named(index) => Some(index),
            _ => None,
        })
    }
}

impl Matcher {
    fn matches(&self, subject: Subject<'_>, world: &World<'_>) -> bool {
        match self {
            Self::Glob(glob) => match subject {
                Subject::Domain(text) | Subject::LocalPart(text) | Subject::Address(text) => {
                    glob.matches(&folded(text))
                }
                Subject::Host(_, name, _) => {
                    glob.is_any() || name.is_some_and(|name| glob.matches(&folded(name)))
                }
            },
            Self::Address(local_glob, domain_glob) => match subject {
                Subject::Address(text) => text.rsplit_once('@').is_some_and(|(local, domain)| {
                    local_glob.matches(&folded(local)) && domain_glob.matches(&folded(domain))
                }),
                _ => false,
            },
            Self::Net(net) => match subject {
                Subject::Host(address, ..) => net.contains(&address.to_canonical()),
                _ => false,
            },
            // Compilation has refused lists that name themselves, so this ends.
            Self::Named(index) => {
                world.lists.get(*index).is_some_and(|list| list.holds(subject, world))
            }
            Self::Table { name, partial } => in_table(name, *partial, subject, world.tables),
            Self::Own => is_own(subject, world.personalities),
            Self::Field(template) => match subject {
                Subject::Domain(text) | Subject::LocalPart(text) | Subject::Address(text) => {
                    let filled = template.fill(world.facts);
                    filled.is_some_and(|filled| filled.eq_ignore_ascii_case(text))
                }
                Subject::Host(..) => false,
            },
        }
    }
}

fn in_table(name: &str, partial: bool, subject: Subject<'_>, tables: &Tables) -> bool {
    let domain = |domain: &str| {
        let found =
            if partial { tables.get_partial(name, domain) } else { tables.get(name, domain) };
        found.is_some()
    };
    match subject {
        Subject::Domain(text) => domain(text),
        Subject::LocalPart(text) => tables.get(name, text).is_some(),
        Subject::Address(text) => {
            tables.get(name, text).is_some()
                || text.rsplit_once('@').is_some_and(|(_, text)| domain(text))
        }
        Subject::Host(address, ..) => tables.get_net(name, address).is_some(),
    }
}

fn is_own(subject: Subject<'_>, personalities: &Personalities) -> bool {
    match subject {
        Subject::Domain(text) => {
            domain_literal(text).is_some_and(|address| personalities.is_own(address))
        }
        Subject::Host(client, _, server) => {
            server.is_some_and(|server| server.to_canonical() == client.to_canonical())
        }
        Subject::LocalPart(_) | Subject::Address(_) => false,
    }
}

/// The address of `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321 §4.1.3).
pub(crate) fn domain_literal(domain: &str) -> Option<IpAddr> {
    let inner = domain.strip_prefix('[')?.strip_suffix(']')?;
    match inner.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => inner[5..].parse().ok().map(IpAddr::V6),
        _ => inner.parse().ok().map(IpAddr::V4),
    }
}

/// A text in which `*` stands for anything. Lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glob {
    /// The texts between the stars.
    parts: Box<[Box<str>]>,
}

impl Glob {
    pub(crate) fn new(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        Self { parts: text.split('*').map(Into::into).collect() }
    }

    fn is_any(&self) -> bool {
        self.parts.len() > 1 && self.parts.iter().all(|part| part.is_empty())
    }

    /// `text` is in lower case.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = &*self.parts else {
            return matches!(&*self.parts, [only] if **only == *text);
        };
        let rest = text.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last));
        let Some(mut rest) = rest else { return false };
        for part in middle {
            let Some(at) = rest.find(&**part) else { return false };
            rest = &rest[at + part.len()..];
        }
        true
    }
}

/// Facts of nothing: where templates cannot occur.
pub(crate) struct NoFacts<'a>(pub(crate) &'a Tables);

impl Facts for NoFacts<'_> {
    fn field(&self, _: Field) -> Cow<'_, str> {
        Cow::Borrowed("")
    }
    fn variable(&self, _: &str) -> Option<&str> {
        None
    }
    fn parameter(&self, _: &str) -> Option<&str> {
        None
    }
    fn tables(&self) -> &Tables {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(items: &[&str], domain: &str) -> bool {
        let items = items.iter().map(|text| match text.strip_prefix('!') {
            Some(glob) => Item::new(text, Matcher::Glob(Glob::new(glob))),
            None => Item::new(text, Matcher::Glob(Glob::new(text))),
        });
        let list = List { items: items.collect() };
        let tables = Tables::default();
        let world = World {
            lists: &[],
            tables: &tables,
            personalities: &Personalities::default(),
            facts: &NoFacts(&tables),
        };
        list.holds(Subject::Domain(domain), &world)
    }

    #[test]
    fn the_first_match_decides_and_a_last_negation_turns_the_default() {
        assert!(holds(&["a.example", "*.b.example"], "X.b.example"));
        assert!(!holds(&["a.example", "*.b.example"], "b.example"));
        assert!(holds(&["!a.example"], "other"));
        assert!(!holds(&["!a.example"], "A.example"));
        assert!(!holds(&["!a.example", "*.example"], "other"));
        assert!(holds(&["!a.example", "*.example"], "b.example"));
        assert!(!holds(&[], "a"));
        assert!(holds(&[""], ""));
        assert!(!holds(&[""], "a"));
        assert!(holds(&["*"], "a"));
    }

    #[test]
    fn stars_may_be_anywhere() {
        for (glob, text, matches) in [
            ("*a*b*", "xxayybzz", true),
            ("*a*b*", "xxbyyazz", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("list-*", "list-x", true),
        ] {
            assert_eq!(Glob::new(glob).matches(text), matches, "{glob} {text}");
        }
    }

    #[test]
    fn literals() {
        assert_eq!(domain_literal("[192.0.2.1]"), "192.0.2.1".parse().ok());
        assert_eq!(domain_literal("[IPv6:2001:db8::1]"), "2001:db8::1".parse().ok());
        assert_eq!(domain_literal("192.0.2.1"), None);
        assert_eq!(domain_literal("[é€]"), None);
    }
}
