//! An address on its way through the routers.

use std::borrow::Cow;

use super::router::{Affix, Suffix};
use crate::{
    policy::{
        Configuration,
        template::{Facts, Field},
    },
    tables::Tables,
};

/// An address, where it came from, and which routers it has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// As given.
    pub(super) local: String,
    /// Lower case.
    pub(super) domain: String,
    /// Recipient first; without this address.
    pub(super) parents: Vec<String>,
    pub(super) errors_to: Option<String>,
    /// Routers that redirected an ancestor that is equal to this address: they are not asked again.
    pub(super) skip: Vec<usize>,
    /// Every redirection that led here: address and router.
    pub(super) history: Vec<(String, usize)>,
}

impl Address {
    /// The address of a recipient; a bare local part gets the domain `qualify`. `None` if it is no address.
    pub(super) fn new(text: &str, qualify: &str) -> Option<Self> {
        let (local, domain) = match text.rsplit_once('@') {
            Some((local, domain)) => (local, domain),
            None => (text, qualify),
        };
        if local.is_empty() || domain.is_empty() {
            return None;
        }
        Some(Self {
            local: local.to_owned(),
            domain: domain.strip_suffix('.').unwrap_or(domain).to_ascii_lowercase(),
            parents: Vec::new(),
            errors_to: None,
            skip: Vec::new(),
            history: Vec::new(),
        })
    }

    pub(super) fn text(&self) -> String {
        format!("{}@{}", self.local, self.domain)
    }

    /// Equal for addresses that are the same for our tables.
    pub(super) fn key(&self) -> String {
        self.text().to_ascii_lowercase()
    }

    /// A new address made from this one by router `router`.
    pub(super) fn child(&self, mut child: Self, router: usize) -> Self {
        child.history.clone_from(&self.history);
        child.history.push((self.key(), router));
        let key = child.key();
        child.skip = child.history.iter().filter(|(k, _)| *k == key).map(|(_, r)| *r).collect();
        child.parents.clone_from(&self.parents);
        if child.text() != self.text() {
            child.parents.push(self.text());
        }
        child.errors_to.clone_from(&self.errors_to);
        child
    }

    /// Whether this address or one of its ancestors is the same as `other`.
    pub(super) fn has_ancestor(&self, other: &Self) -> bool {
        let key = other.key();
        self.history.iter().any(|(known, _)| *known == key)
    }
}

/// What a router sees of an address: without the affix that it takes off.
pub(super) struct View<'a> {
    pub(super) configuration: &'a Configuration,
    pub(super) address: &'a Address,
    /// Folded, without quotes and affixes.
    pub(super) local: String,
    prefix: String,
    suffix: String,
}

impl<'a> View<'a> {
    /// `None` if the router wants an affix that the address lacks.
    pub(super) fn new(
        configuration: &'a Configuration,
        address: &'a Address,
        affix: Option<&Affix>,
    ) -> Option<Self> {
        let local = unquoted(&address.local).to_ascii_lowercase();
        let mut view = Self {
            configuration,
            address,
            local: local.clone(),
            prefix: String::new(),
            suffix: String::new(),
        };
        let Some(affix) = affix else { return Some(view) };
        let mut middle = local.as_str();
        if let Some(prefix) = &affix.prefix {
            match middle.strip_prefix(prefix.as_str()).filter(|rest| !rest.is_empty()) {
                Some(rest) => {
                    middle = rest;
                    view.prefix.clone_from(prefix);
                }
                None if affix.optional => {}
                None => return None,
            }
        }
        if let Some(suffix) = &affix.suffix {
            let at = match suffix {
                Suffix::Exact(end) => middle.strip_suffix(end.as_str()).map(str::len),
                Suffix::From(start) => middle.find(start.as_str()),
            };
            match at.filter(|at| *at > 0) {
                Some(at) => {
                    view.suffix = middle[at..].to_owned();
                    middle = &middle[..at];
                }
                None if affix.optional => {}
                None => return None,
            }
        }
        view.local = middle.to_owned();
        Some(view)
    }
}

impl Facts for View<'_> {
    fn field(&self, field: Field) -> Cow<'_, str> {
        match field {
            Field::Domain => Cow::Borrowed(&self.address.domain),
            Field::LocalPart => Cow::Borrowed(&self.local),
            Field::Prefix => Cow::Borrowed(&self.prefix),
            Field::Suffix => Cow::Borrowed(&self.suffix),
            Field::Address => Cow::Owned(self.address.text()),
            Field::QualifyDomain => (&*self.configuration.options().qualify_domain).into(),
            // Fields of rules; templates of routers cannot have them.
            _ => Cow::Borrowed(""),
        }
    }

    fn variable(&self, _: &str) -> Option<&str> {
        None
    }

    fn parameter(&self, _: &str) -> Option<&str> {
        None
    }

    fn tables(&self) -> &Tables {
        &self.configuration.tables
    }
}

/// A local part without the quotes that it would not need: `"postmaster"` is postmaster (RFC 5321 §4.1.2).
fn unquoted(local: &str) -> Cow<'_, str> {
    let Some(inner) = local.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Cow::Borrowed(local);
    };
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    Cow::Owned(out)
}
