//! The condition `dnslists`: which lists are asked, for what, and which answers count.

use std::net::Ipv4Addr;

use super::{
    compile::Compiler,
    condition::Condition,
    source::{Setting, text},
    template::{Scope, Template},
};
use crate::limits;

/// One list of `dnslists`.
#[derive(Debug)]
pub(crate) struct DnsList {
    pub(crate) zone: Box<str>,
    /// What is looked up; the client's address if `None`.
    pub(crate) subject: Option<Template>,
    /// Answers that count.
    pub(crate) filter: Filter,
}

/// Which answers of a DNS list count. None outside 127.0.0.0/8 does, unless it is named.
#[derive(Debug)]
pub(crate) enum Filter {
    All,
    /// `=`
    Are(Vec<Ipv4Addr>),
    /// `!=`
    AreNot(Vec<Ipv4Addr>),
    /// `&`: all bits of one of them are set.
    Bits(Vec<Ipv4Addr>),
}

impl Filter {
    pub(crate) fn counts(&self, answer: Ipv4Addr) -> bool {
        match self {
            Self::All => answer.is_loopback(),
            Self::Are(named) => named.contains(&answer),
            Self::AreNot(named) => answer.is_loopback() && !named.contains(&answer),
            Self::Bits(masks) => {
                let has = |mask: &Ipv4Addr| *mask & answer == *mask;
                answer.is_loopback() && masks.iter().any(has)
            }
        }
    }
}

/// `zone`, `zone/{sender_domain}`, `zone=127.0.0.2,127.0.0.3`, `zone!=127.0.0.255`, `zone&0.0.0.4`.
pub(super) fn compile(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<Condition> {
    let mut found = Vec::new();
    for entry in &setting.values {
        let words = text(entry, "names of DNS lists", &mut compiler.errors)?;
        for word in words.split_whitespace() {
            let (head, subject) = match word.split_once('/') {
                Some((head, subject)) => (head, Some(subject)),
                None => (word, None),
            };
            let subject = match subject {
                Some(subject) => Some(compiler.template(entry.span(), subject, Scope::Rule)?),
                None => None,
            };
            let end = head.find(['=', '!', '&']).unwrap_or(head.len());
            let (zone, filter) = head.split_at(end);
            let filter = filter_of(filter, entry.span(), compiler);
            found.push(DnsList { zone: zone.into(), subject, filter });
        }
    }
    if found.is_empty() || found.len() > limits::DNS_LISTS_MAX {
        let max = limits::DNS_LISTS_MAX;
        compiler.errors.at(setting.span, format!("expected 1 to {max} DNS lists"));
    }
    Some(Condition::DnsLists(found))
}

type MakeFilter = fn(Vec<Ipv4Addr>) -> Filter;

fn filter_of(text: &str, span: miette::SourceSpan, compiler: &mut Compiler<'_>) -> Filter {
    const KINDS: [(&str, MakeFilter); 3] =
        [("!=", Filter::AreNot), ("=", Filter::Are), ("&", Filter::Bits)];
    if text.is_empty() {
        return Filter::All;
    }
    let known = KINDS.iter().find_map(|(sign, kind)| Some((text.strip_prefix(sign)?, kind)));
    let Some((addresses, kind)) = known else {
        compiler.errors.at(span, format!("{text:?}: expected =, != or &, and IPv4 addresses"));
        return Filter::All;
    };
    let mut named = Vec::new();
    for address in addresses.split(',') {
        match address.parse() {
            Ok(address) => named.push(address),
            Err(_) => compiler.errors.at(span, format!("{address:?} is no IPv4 address")),
        }
    }
    kind(named)
}
