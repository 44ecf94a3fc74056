//! Rewriting of addresses: Exim's rules, by its flags, in the order of the text.

use std::{borrow::Cow, fmt};

use kdl::{KdlDocument, KdlNode};
use miette::SourceSpan;
use regex::Regex;

use super::{
    Configuration,
    compile::Compiler,
    diagnostic::Place,
    list::{Kind, List, Subject},
    source::{Setting, place, text},
    template::{Facts, Field, Scope, Template},
};
use crate::{
    limits::{REWRITE_REPEATS_MAX, REWRITE_RULES_MAX},
    message::{AddressField, Replacement, replace_addresses},
    smtp::mailbox_fault,
    tables::Tables,
};

/// Where an address stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressPlace {
    EnvelopeSender,
    EnvelopeRecipient,
    Header(AddressField),
}

/// An address that is another now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewriting {
    pub place: AddressPlace,
    pub old: String,
    pub new: String,
    /// Number of the last rule that changed it, from 1.
    pub rule: usize,
    /// In a header, its name and comments go too.
    pub whole: bool,
}

/// The rules of a policy.
#[derive(Debug, Default)]
pub(crate) struct Rewrites {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    place: Place,
    pattern: Pattern,
    /// `None`: a match changes nothing.
    to: Option<Template>,
    flags: Flags,
}

#[derive(Debug)]
enum Pattern {
    Parts { local: Wild, domain: DomainPattern },
    Whole(Regex),
}

#[derive(Debug)]
enum DomainPattern {
    Wild(Wild),
    Listed(List),
}

/// A text in which `*` stands for anything, and is remembered. Lower case.
#[derive(Debug)]
struct Wild {
    parts: Box<[Box<str>]>,
}

#[derive(Debug, Default)]
struct Flags {
    /// One bit for each place.
    places: u8,
    quit: bool,
    repeat: bool,
    whole: bool,
}

/// Flags for places, and the bits that they set.
const PLACES: [(char, u8); 10] = [
    ('E', 0b11),
    ('F', 0b01),
    ('T', 0b10),
    ('h', 0b1111_1100),
    ('f', 1 << 2),
    ('s', 1 << 3),
    ('r', 1 << 4),
    ('t', 1 << 5),
    ('c', 1 << 6),
    ('b', 1 << 7),
];

impl AddressPlace {
    fn bit(self) -> u8 {
        match self {
            Self::EnvelopeSender => 1,
            Self::EnvelopeRecipient => 1 << 1,
            Self::Header(AddressField::From) => 1 << 2,
            Self::Header(AddressField::Sender) => 1 << 3,
            Self::Header(AddressField::ReplyTo) => 1 << 4,
            Self::Header(AddressField::To) => 1 << 5,
            Self::Header(AddressField::Cc) => 1 << 6,
            Self::Header(AddressField::Bcc) => 1 << 7,
        }
    }
}

/// As Exim's log names it.
impl fmt::Display for AddressPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EnvelopeSender => "env-from",
            Self::EnvelopeRecipient => "env-to",
            Self::Header(AddressField::From) => "from",
            Self::Header(AddressField::Sender) => "sender",
            Self::Header(AddressField::ReplyTo) => "reply-to",
            Self::Header(AddressField::To) => "to",
            Self::Header(AddressField::Cc) => "cc",
            Self::Header(AddressField::Bcc) => "bcc",
        })
    }
}

impl Configuration {
    /// What the rules make of an address; `None`: it stays.
    pub fn rewrite(&self, address: &str, place: AddressPlace) -> Option<Rewriting> {
        let rules = &self.compiled.rewrites.rules;
        let mut current = Cow::Borrowed(address);
        let (mut last, mut whole) = (None, false);
        for (number, rule) in rules.iter().enumerate() {
            if rule.flags.places & place.bit() == 0 {
                continue;
            }
            let mut matched = false;
            for _ in 0..if rule.flags.repeat { REWRITE_REPEATS_MAX } else { 1 } {
                let Some(new) = rule.apply(&current, self) else { break };
                matched = true;
                let Some(new) = new.filter(|new| is_good(new, address) && **new != *current) else {
                    break;
                };
                current = Cow::Owned(new);
                last = Some(number + 1);
                whole |= rule.flags.whole;
            }
            if matched && rule.flags.quit {
                break;
            }
        }
        let (rule, new) = (last?, current.into_owned());
        (new != address).then(|| Rewriting { place, old: address.to_owned(), new, rule, whole })
    }

    /// Whether any rule is for headers.
    pub fn rewrites_headers(&self) -> bool {
        self.compiled.rewrites.rules.iter().any(|rule| rule.flags.places & 0b1111_1100 != 0)
    }

    /// A header block (fields only) with its addresses rewritten, and what was; `None`: nothing.
    pub fn rewrite_header(&self, header: &[u8]) -> Option<(Vec<u8>, Vec<Rewriting>)> {
        let mut done = Vec::new();
        let new = replace_addresses(header, |field, address| {
            let rewriting = self.rewrite(address, AddressPlace::Header(field))?;
            let replacement =
                Replacement { address: rewriting.new.clone(), whole: rewriting.whole };
            done.push(rewriting);
            Some(replacement)
        })?;
        Some((new, done))
    }

    /// Where rule `number`, from 1, stands.
    pub(crate) fn place_of_rewrite(&self, number: usize) -> Place {
        let rule = number.checked_sub(1).and_then(|at| self.compiled.rewrites.rules.get(at));
        rule.map(|rule| rule.place.clone()).unwrap_or_default()
    }
}

/// An address may stand where `old` stood: it is one, and needs no SMTPUTF8 that was not needed.
fn is_good(new: &str, old: &str) -> bool {
    mailbox_fault(new).is_none() && (new.is_ascii() || !old.is_ascii())
}

impl Rule {
    /// `None`: the pattern does not match. `Some(None)`: it does, and nothing changes.
    fn apply(&self, address: &str, configuration: &Configuration) -> Option<Option<String>> {
        let (local, domain) = address.rsplit_once('@')?;
        let mut found = Match { configuration, address, local, domain, wild: Vec::new() };
        match &self.pattern {
            Pattern::Parts { local: local_pattern, domain: domain_pattern } => {
                // Most addresses end here, and nothing was allocated.
                let good = match domain_pattern {
                    DomainPattern::Wild(wild) => wild.matches(domain, None),
                    DomainPattern::Listed(list) => {
                        list.holds(Subject::Domain(domain), &configuration.world(&found))
                    }
                };
                if !good || !local_pattern.matches(local, None) {
                    return None;
                }
                local_pattern.matches(local, Some(&mut found.wild));
                if let DomainPattern::Wild(wild) = domain_pattern {
                    wild.matches(domain, Some(&mut found.wild));
                }
            }
            Pattern::Whole(regex) => {
                let groups = regex.captures(address)?;
                let texts = groups.iter().skip(1).map(|group| group.map_or("", |g| g.as_str()));
                found.wild.extend(texts);
            }
        }
        Some(self.to.as_ref().and_then(|to| to.fill(&found)))
    }
}

impl Wild {
    fn new(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        Self { parts: text.split('*').map(Into::into).collect() }
    }

    fn stars(&self) -> usize {
        self.parts.len() - 1
    }

    /// Whether `text` matches; each star takes as little as it can. Adds what the stars stand for.
    fn matches<'t>(&self, text: &'t str, mut found: Option<&mut Vec<&'t str>>) -> bool {
        let [first, middle @ .., last] = &*self.parts else {
            return matches!(&*self.parts, [only] if text.eq_ignore_ascii_case(only));
        };
        let Some(rest) = without_start(text, first) else { return false };
        let end = rest.len().checked_sub(last.len()).and_then(|at| rest.split_at_checked(at));
        let Some((mut rest, _)) = end.filter(|(_, end)| end.eq_ignore_ascii_case(last)) else {
            return false;
        };
        for part in middle {
            let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            let mut starts = starts.filter_map(|at| Some((at, without_start(&rest[at..], part)?)));
            let Some((at, after)) = starts.next() else { return false };
            if let Some(found) = &mut found {
                found.push(&rest[..at]);
            }
            rest = after;
        }
        if let Some(found) = found {
            found.push(rest);
        }
        true
    }
}

fn without_start<'t>(text: &'t str, start: &str) -> Option<&'t str> {
    let (own, rest) = text.split_at_checked(start.len())?;
    own.eq_ignore_ascii_case(start).then_some(rest)
}

/// An address that matches a pattern.
struct Match<'a> {
    configuration: &'a Configuration,
    address: &'a str,
    local: &'a str,
    domain: &'a str,
    wild: Vec<&'a str>,
}

impl Facts for Match<'_> {
    fn field(&self, field: Field) -> Cow<'_, str> {
        Cow::Borrowed(match field {
            Field::Domain => self.domain,
            Field::LocalPart => self.local,
            Field::Address => self.address,
            Field::QualifyDomain => &self.configuration.options().qualify_domain,
            // Fields of rules and routers; templates of rewriting rules cannot have them.
            _ => "",
        })
    }

    fn wildcard(&self, number: usize) -> &str {
        match number.checked_sub(1) {
            None => self.address,
            Some(at) => self.wild.get(at).copied().unwrap_or_default(),
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

/// Compiles the block `rewrite`.
pub(super) fn compile(node: Option<&KdlNode>, compiler: &mut Compiler<'_>) -> Rewrites {
    let Some(node) = node else { return Rewrites::default() };
    let children = node.children().map_or(&[][..], KdlDocument::nodes);
    if children.is_empty() || !node.entries().is_empty() {
        let what = "expected rewrite { address \"PATTERN\" to=\"ADDRESS\" flags=\"…\" }";
        compiler.errors.at(node.name().span(), what);
    }
    if children.len() > REWRITE_RULES_MAX {
        let what = format!("expected at most {REWRITE_RULES_MAX} rewriting rules");
        compiler.errors.at(node.name().span(), what);
    }
    Rewrites { rules: children.iter().filter_map(|node| rule(node, compiler)).collect() }
}

/// The words of the block.
#[cfg(test)]
pub(super) const WORDS: [&str; 4] = ["rewrite", "address", "to", "flags"];

/// The flags.
#[cfg(test)]
pub(super) fn flag_letters() -> impl Iterator<Item = char> {
    PLACES.into_iter().map(|(letter, _)| letter).chain(['q', 'R', 'w'])
}

fn rule(node: &KdlNode, compiler: &mut Compiler<'_>) -> Option<Rule> {
    let setting = Setting::node(node);
    if setting.name != "address" {
        compiler.errors.unknown(setting.span, "kind of rewriting rule", setting.name, ["address"]);
        return None;
    }
    setting.only(&["to", "flags"], &mut compiler.errors);
    let entry = setting.value("a pattern like \"*@cam\"", &mut compiler.errors)?;
    let written = text(entry, "a pattern like \"*@cam\"", &mut compiler.errors)?;
    let pattern = pattern(written, entry.span(), compiler)?;
    let Some(to) = setting.option("to") else {
        compiler.errors.at(setting.span, "expected to=\"ADDRESS\": what stands instead");
        return None;
    };
    let to = match text(to, "an address", &mut compiler.errors)? {
        "*" => None,
        text => Some(replacement(text, to.span(), &pattern, compiler)?),
    };
    let flags = match setting.option("flags") {
        Some(entry) => {
            let letters = text(entry, "flags like \"hF\"", &mut compiler.errors)?;
            flags(letters, entry.span(), compiler)?
        }
        None => Flags::default(),
    };
    let everywhere = flags.places == 0;
    let flags = if everywhere { Flags { places: u8::MAX, ..flags } } else { flags };
    Some(Rule { place: place(node, &compiler.errors), pattern, to, flags })
}

fn pattern(text: &str, span: SourceSpan, compiler: &mut Compiler<'_>) -> Option<Pattern> {
    if text.starts_with('^') {
        return match Regex::new(&format!("(?i){text}")) {
            Ok(regex) => Some(Pattern::Whole(regex)),
            Err(error) => {
                compiler.errors.at(span, format!("no regular expression: {error}"));
                None
            }
        };
    }
    let Some((local, domain)) =
        text.rsplit_once('@').filter(|(local, domain)| !local.is_empty() && !domain.is_empty())
    else {
        let what = "expected an address with * for anything, like \"*@*.example\", or ^ and a regular expression";
        compiler.errors.at(span, what);
        return None;
    };
    let domain = match domain.strip_prefix('+') {
        Some(name) => {
            DomainPattern::Listed(List { items: vec![compiler.named(Kind::Domains, name, span)?] })
        }
        None => DomainPattern::Wild(Wild::new(domain)),
    };
    Some(Pattern::Parts { local: Wild::new(local), domain })
}

fn replacement(
    text: &str,
    span: SourceSpan,
    pattern: &Pattern,
    compiler: &mut Compiler<'_>,
) -> Option<Template> {
    let template = compiler.template(span, text, Scope::Rewrite)?;
    let known = match pattern {
        Pattern::Parts { local, domain: DomainPattern::Wild(domain) } => {
            local.stars() + domain.stars()
        }
        Pattern::Parts { local, domain: DomainPattern::Listed(_) } => local.stars(),
        Pattern::Whole(regex) => regex.captures_len() - 1,
    };
    if let Some(most) = template.wildcards().filter(|most| *most > known) {
        compiler.errors.at(span, format!("{{{most}}}: the pattern remembers only {known} texts"));
    }
    if template.literal().is_some_and(|text| mailbox_fault(text).is_some()) {
        compiler.errors.at(span, format!("{text:?} is no address; expected local-part@domain"));
    }
    Some(template)
}

fn flags(letters: &str, span: SourceSpan, compiler: &mut Compiler<'_>) -> Option<Flags> {
    let mut flags = Flags::default();
    for letter in letters.chars() {
        match letter {
            'q' => flags.quit = true,
            'R' => flags.repeat = true,
            'w' => flags.whole = true,
            letter => match PLACES.iter().find(|(known, _)| *known == letter) {
                Some((_, bits)) => flags.places |= bits,
                None => {
                    let what = format!(
                        "unknown flag {letter:?}; known are E F T (envelope), h f s r t c b (header), q R w"
                    );
                    compiler.errors.at(span, what);
                    return None;
                }
            },
        }
    }
    Some(flags)
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
