//! An address on its way through the routers.

use std::{borrow::Cow, sync::Arc};

use super::{
    About,
    notes::Notes,
    router::{Affix, Prefix, Router, Suffix},
};
use crate::{
    policy::{
        Configuration,
        template::{Facts, Field},
    },
    tables::Tables,
};

/// An address, where it came from, and which routers it is not to see.
#[derive(Clone, Debug)]
pub(super) struct Address {
    /// As given.
    pub(super) local: String,
    /// Lower case.
    pub(super) domain: String,
    /// The local part in lower case, without quotes that it does not need.
    folded: String,
    pub(super) from: Option<Arc<Ancestor>>,
    pub(super) errors_to: Option<Arc<str>>,
    /// Routers that are not asked again about this address.
    pub(super) skip: Vec<usize>,
    /// Where the explanation tells of the address that it was made from.
    pub(super) stop: Option<usize>,
}

/// An address from which others were made.
#[derive(Debug)]
pub(super) struct Ancestor {
    text: String,
    key: String,
    /// Routers that took it.
    routers: Vec<usize>,
    depth: usize,
    from: Option<Arc<Self>>,
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
        Some(Self::of(local, domain.strip_suffix('.').unwrap_or(domain)))
    }

    fn of(local: &str, domain: &str) -> Self {
        Self {
            local: local.to_owned(),
            domain: domain.to_ascii_lowercase(),
            folded: unquoted(local).to_ascii_lowercase(),
            from: None,
            errors_to: None,
            skip: Vec::new(),
            stop: None,
        }
    }

    /// This address, made from others by expansions that are recorded, oldest first.
    pub(super) fn expanded(mut self, ancestors: &[&str], routers: &[Router]) -> Self {
        // Which router it was is not recorded. Routers that expand once would do so again for the same address; those
        // that look at an address once have seen it.
        let taken = |router: &Router| router.expands_once() || !router.repeat_use;
        let taken: Vec<usize> = (0..routers.len()).filter(|i| taken(&routers[*i])).collect();
        for text in ancestors {
            let depth = self.depth() + 1;
            let (key, from) = (text.to_ascii_lowercase(), self.from.take());
            let text = (*text).to_owned();
            self.from = Some(Arc::new(Ancestor { text, key, routers: taken.clone(), depth, from }));
        }
        self.skip = self.seen_by(routers);
        self
    }

    pub(super) fn text(&self) -> String {
        [self.local.as_str(), "@", &self.domain].concat()
    }

    /// Equal for addresses that are the same for our tables.
    pub(super) fn key(&self) -> String {
        let mut key = self.text();
        key.make_ascii_lowercase();
        key
    }

    /// This address as one from which routers made others.
    pub(super) fn ancestor(&self, routers: &[usize]) -> Arc<Ancestor> {
        Arc::new(Ancestor {
            text: self.text(),
            key: self.key(),
            routers: routers.to_vec(),
            depth: self.depth() + 1,
            from: self.from.clone(),
        })
    }

    /// A new address that was made from `from`.
    pub(super) fn child_of(mut self, from: &Arc<Ancestor>, routers: &[Router]) -> Self {
        self.from = Some(Arc::clone(from));
        self.skip = self.seen_by(routers);
        self
    }

    /// The same in another domain, or just the same, without a past.
    pub(super) fn again(&self, domain: Option<&str>) -> Self {
        Self::of(&self.local, domain.unwrap_or(&self.domain))
    }

    /// Redirections that led here.
    pub(super) fn depth(&self) -> usize {
        self.from.as_ref().map_or(0, |from| from.depth)
    }

    /// Whether one of its ancestors is the same as `other`.
    pub(super) fn has_ancestor(&self, other: &Self) -> bool {
        let key = other.key();
        self.ancestors().any(|ancestor| ancestor.key == key)
    }

    /// The addresses between the recipient and this one, recipient first; empty if none changed it.
    pub(super) fn parents(&self) -> Vec<String> {
        let mut next = self.text();
        let mut parents = Vec::new();
        for ancestor in self.ancestors() {
            if ancestor.text != next {
                parents.push(ancestor.text.clone());
            }
            next.clone_from(&ancestor.text);
        }
        parents.reverse();
        parents
    }

    /// The last of [`Self::parents`].
    pub(super) fn parent(&self) -> Option<&str> {
        let text = self.text();
        let mut texts = self.ancestors().map(|ancestor| ancestor.text.as_str());
        texts.find(|ancestor| *ancestor != text)
    }

    /// Youngest first.
    fn ancestors(&self) -> impl Iterator<Item = &Ancestor> {
        std::iter::successors(self.from.as_deref(), |ancestor| ancestor.from.as_deref())
    }

    /// Routers that took an equal ancestor, or any ancestor if they look at an address and its offspring once.
    fn seen_by(&self, routers: &[Router]) -> Vec<usize> {
        let key = self.key();
        let mut seen = Vec::new();
        for ancestor in self.ancestors() {
            let taken = ancestor.routers.iter().copied();
            seen.extend(taken.filter(|index| {
                ancestor.key == key || routers.get(*index).is_some_and(|router| !router.repeat_use)
            }));
        }
        seen.sort_unstable();
        seen.dedup();
        seen
    }
}

/// What a router sees of an address: without the affixes that it takes off.
pub(super) struct View<'a> {
    pub(super) configuration: &'a Configuration,
    pub(super) about: &'a About<'a>,
    pub(super) address: &'a Address,
    /// Folded, without quotes and affixes.
    pub(super) local: &'a str,
    pub(super) prefix: &'a str,
    pub(super) suffix: &'a str,
    /// Where look-ups are told of, if somebody wants to know.
    pub(super) notes: Option<&'a Notes>,
}

impl<'a> View<'a> {
    /// Without any affix taken off.
    pub(super) fn whole(
        configuration: &'a Configuration,
        about: &'a About<'a>,
        address: &'a Address,
        notes: Option<&'a Notes>,
    ) -> Self {
        let local = address.folded.as_str();
        View { configuration, about, address, local, prefix: "", suffix: "", notes }
    }

    /// `None` if the router wants an affix that the address lacks.
    pub(super) fn without(mut self, affix: Option<&Affix>) -> Option<Self> {
        let Some(affix) = affix else { return Some(self) };
        if !affix.prefixes.is_empty() {
            match affix.prefixes.iter().find_map(|prefix| prefix.length(self.local)) {
                Some(length) => (self.prefix, self.local) = self.local.split_at(length),
                None if affix.optional => {}
                None => return None,
            }
        }
        if !affix.suffixes.is_empty() {
            match affix.suffixes.iter().find_map(|suffix| suffix.start(self.local)) {
                Some(start) => (self.local, self.suffix) = self.local.split_at(start),
                None if affix.optional => {}
                None => return None,
            }
        }
        Some(self)
    }
}

impl Prefix {
    /// How long the prefix of this local part is. Something has to be left of it.
    fn length(&self, local: &str) -> Option<usize> {
        let length = match self {
            Self::Exact(start) => local.strip_prefix(start.as_str()).map(|_| start.len()),
            Self::UpTo(end) => local.rfind(end.as_str()).map(|at| at + end.len()),
        };
        length.filter(|length| *length < local.len())
    }
}

impl Suffix {
    /// Where the suffix of this local part begins. Something has to be left before it.
    fn start(&self, local: &str) -> Option<usize> {
        let start = match self {
            Self::Exact(end) => local.strip_suffix(end.as_str()).map(str::len),
            Self::From(start) => local.find(start.as_str()),
        };
        start.filter(|start| *start > 0)
    }
}

impl Facts for View<'_> {
    fn field(&self, field: Field) -> Cow<'_, str> {
        match field {
            Field::Domain => Cow::Borrowed(&self.address.domain),
            Field::LocalPart => Cow::Borrowed(self.local),
            Field::Prefix => Cow::Borrowed(self.prefix),
            Field::Suffix => Cow::Borrowed(self.suffix),
            Field::Address => Cow::Owned(self.address.text()),
            Field::QualifyDomain => (&*self.configuration.options().qualify_domain).into(),
            Field::Sender => Cow::Borrowed(self.about.sender),
            Field::SenderDomain => {
                let parts = self.about.sender.rsplit_once('@');
                Cow::Borrowed(parts.map_or("", |(_, domain)| domain))
            }
            Field::SenderLocalPart => {
                let parts = self.about.sender.rsplit_once('@');
                Cow::Borrowed(parts.map_or(self.about.sender, |(local, _)| local))
            }
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

    fn looked_up(&self, table: &str, key: &str, found: Option<&str>) {
        if let Some(notes) = self.notes {
            let found = found.map_or_else(|| "no entry".to_owned(), |value| format!("{value:?}"));
            notes.add(format!("{table}: {key}: {found}"));
        }
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
