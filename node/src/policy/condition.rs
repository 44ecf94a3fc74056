//! Conditions of rules.

use kdl::KdlDocument;
use regex::Regex;

use super::{
    Service, Stage,
    compile::Compiler,
    dns_list::{self, DnsList},
    list::{Kind, List},
    rule::{Test, opposite, words},
    source::{Setting, flag, load, number, parse_duration, size, text},
    template::{Scope, Template, is_name},
};
use crate::{
    callout::{CalloutOptions, ReversePath},
    limits,
    rate::Rate,
};

/// What a rule asks.
#[derive(Debug)]
pub(crate) enum Condition {
    Hosts(List),
    Senders(List),
    SenderDomains(List),
    /// Domain of the recipient.
    Domains(List),
    LocalParts(List),
    Service(Vec<Service>),
    /// The authenticated user is in the list.
    Authenticated(List),
    Encrypted,
    /// A name of the client's verified certificate is in the list.
    Certificate(List),
    /// Index of an auxiliary ACL: it accepts.
    Acl(usize),
    /// And the callout that follows, if the address can be routed.
    Verify(Verify, Option<CalloutOptions>),
    DnsLists(Vec<DnsList>),
    /// More messages wait than this.
    QueueOver(u64),
    /// The load average of this machine, times 100, is more than this.
    LoadOver(u32),
    /// The text has come more often than this.
    RateOver(Rate, Template),
    /// The client announced a larger message, in bytes.
    SizeOver(u64),
    /// More recipients were accepted than this.
    RecipientsOver(u64),
    /// Every table of the text has its entry, and the text is not `0`, `no` or `false`.
    Lookup(Template),
    /// A list table of this name has a line.
    HasLines(Template),
    Variable {
        name: Box<str>,
        /// `None`: it is set, to anything but nothing.
        value: Option<Template>,
    },
    /// The client's entry in `addrparams` says yes to this.
    ClientParameter(Box<str>),
    ServerParameter(Box<str>),
    HeloIsAddress,
    HeloEquals(Template),
    HeloMatches(Regex),
    HeloDomains(List),
    Any(Vec<Test>),
    All(Vec<Test>),
}

impl Condition {
    /// Nobody needs to be asked, and nothing is counted.
    pub(crate) fn is_plain(&self) -> bool {
        !matches!(
            self,
            Self::Any(_)
                | Self::All(_)
                | Self::Acl(_)
                | Self::Verify(..)
                | Self::DnsLists(_)
                | Self::QueueOver(_)
                | Self::RateOver(..)
        )
    }
}

/// What `verify` makes sure of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verify {
    /// The sender can be routed; true for bounces.
    Sender,
    /// The recipient can be routed.
    Recipient,
    /// The name in HELO or EHLO belongs to the client.
    Helo,
    /// The client's address has a name that leads back to it.
    ReverseHost,
    /// The client has shown a certificate that a CA of ours has signed.
    Certificate,
}

/// Names of all conditions.
pub(super) const CONDITIONS: [&str; 29] = [
    "hosts",
    "senders",
    "sender-domains",
    "domains",
    "local-parts",
    "service",
    "authenticated",
    "encrypted",
    "certificate",
    "acl",
    "verify",
    "dnslists",
    "queue-over",
    "load-over",
    "rate-over",
    "size-over",
    "recipients-over",
    "lookup",
    "has-lines",
    "var",
    "client-param",
    "server-param",
    "helo-is-address",
    "helo-equals",
    "helo-matches",
    "helo-domains",
    "any",
    "all",
    "not",
];

/// Options of a callout, times as examples.
const CALLOUT_WORDS: [&str; 8] = [
    "use-sender",
    "use-postmaster",
    "defer-ok",
    "no-cache",
    "random",
    "4m",
    "connect=30s",
    "maxwait=4m",
];

const SERVICES: [(&str, Service); 3] = [
    ("smtp", Service::Smtp),
    ("submission", Service::Submission),
    ("submissions", Service::Submissions),
];

const VERIFY: [(&str, Verify); 5] = [
    ("sender", Verify::Sender),
    ("recipient", Verify::Recipient),
    ("helo", Verify::Helo),
    ("reverse-host", Verify::ReverseHost),
    ("certificate", Verify::Certificate),
];

/// Compiles one condition. `stage` is that of the rule, `None` in an auxiliary ACL.
pub(super) fn compile(
    setting: &Setting<'_>,
    stage: Option<Stage>,
    depth: usize,
    compiler: &mut Compiler<'_>,
) -> Option<Test> {
    let mut test = test(setting, stage, depth, compiler)?;
    test.text = setting.place(&compiler.errors).text;
    Some(test)
}

fn test(
    setting: &Setting<'_>,
    stage: Option<Stage>,
    depth: usize,
    compiler: &mut Compiler<'_>,
) -> Option<Test> {
    if !CONDITIONS.contains(&setting.name) {
        compiler.errors.unknown(setting.span, "condition or modifier", setting.name, words());
        return None;
    }
    check_stage(setting, stage, compiler);
    match setting.name {
        "any" | "all" | "not" => return group(setting, stage, depth, compiler),
        "verify" => return verify(setting, stage, compiler),
        "rate-over" => return rate_over(setting, compiler),
        _ => setting.only(&[], &mut compiler.errors),
    }
    let plain = |condition| Some(Test::new(false, condition));
    let mut list = |kind| compiler.list_of(kind, setting);
    match setting.name {
        "hosts" => plain(Condition::Hosts(list(Kind::Hosts))),
        "senders" => plain(Condition::Senders(list(Kind::Addresses))),
        "sender-domains" => plain(Condition::SenderDomains(list(Kind::Domains))),
        "domains" => plain(Condition::Domains(list(Kind::Domains))),
        "local-parts" => plain(Condition::LocalParts(list(Kind::LocalParts))),
        "certificate" => plain(Condition::Certificate(list(Kind::Domains))),
        "helo-domains" => plain(Condition::HeloDomains(list(Kind::Domains))),
        "authenticated" => authenticated(setting, compiler),
        "encrypted" | "helo-is-address" => {
            let negated = !setting.flag(&mut compiler.errors);
            let condition = match setting.name {
                "encrypted" => Condition::Encrypted,
                _ => Condition::HeloIsAddress,
            };
            Some(Test::new(negated, condition))
        }
        "dnslists" => dns_list::compile(setting, compiler).and_then(plain),
        "var" => variable(setting, compiler),
        "size-over" => {
            let entry = setting.value("a size", &mut compiler.errors)?;
            size(entry, &mut compiler.errors).map(Condition::SizeOver).and_then(plain)
        }
        "load-over" => {
            let entry = setting.value("a load average", &mut compiler.errors)?;
            load(entry, &mut compiler.errors).map(Condition::LoadOver).and_then(plain)
        }
        "queue-over" | "recipients-over" => {
            let entry = setting.value("a number", &mut compiler.errors)?;
            let n = number(entry, u64::from(u32::MAX), &mut compiler.errors)?;
            plain(match setting.name {
                "queue-over" => Condition::QueueOver(n),
                _ => Condition::RecipientsOver(n),
            })
        }
        _ => with_text(setting, compiler),
    }
}

/// Conditions of one text that may begin with `!`.
fn with_text(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<Test> {
    let whole = setting.text("a text", &mut compiler.errors)?;
    let (negated, word) =
        if setting.name == "helo-matches" { (false, whole) } else { opposite(whole) };
    let template = |compiler: &mut Compiler<'_>| compiler.template(setting.span, word, Scope::Rule);
    let condition = match setting.name {
        "service" => Condition::Service(services(setting, word, compiler)?),
        "acl" => match compiler.acl_names.get(word) {
            Some(index) => Condition::Acl(*index),
            None => {
                let known: Vec<&str> = compiler.acl_names.keys().map(String::as_str).collect();
                compiler.errors.unknown(setting.span, "acl", word, known);
                return None;
            }
        },
        "lookup" => Condition::Lookup(template(compiler)?),
        "has-lines" => Condition::HasLines(template(compiler)?),
        "helo-equals" => Condition::HeloEquals(template(compiler)?),
        "client-param" => Condition::ClientParameter(word.into()),
        "server-param" => Condition::ServerParameter(word.into()),
        _ => match Regex::new(word) {
            Ok(regex) => Condition::HeloMatches(regex),
            Err(e) => {
                let what = format!("no regular expression: {e}");
                let help = "a bracket that stands for itself has a backslash before it; \
                            https://docs.rs/regex/#syntax has all of the syntax";
                compiler.errors.help(setting.span, what, help);
                return None;
            }
        },
    };
    Some(Test::new(negated, condition))
}

/// Conditions on an address are asked when there is one.
fn check_stage(setting: &Setting<'_>, stage: Option<Stage>, compiler: &mut Compiler<'_>) {
    let Some(stage) = stage else { return };
    let value = setting.values.first().and_then(|entry| entry.value().as_string());
    let value = value.map(|value| opposite(value).1);
    let needs = match (setting.name, value) {
        ("domains" | "local-parts", _) | ("verify", Some("recipient")) => Stage::Rcpt,
        ("senders" | "sender-domains" | "size-over", _) | ("verify", Some("sender")) => Stage::Mail,
        ("recipients-over", _) => Stage::Rcpt,
        _ => return,
    };
    let known = match needs {
        Stage::Rcpt if setting.name == "recipients-over" => stage >= Stage::Rcpt,
        Stage::Rcpt => stage == Stage::Rcpt,
        _ => (Stage::Mail..=Stage::Data).contains(&stage),
    };
    if !known {
        let whose = if needs == Stage::Rcpt { "a recipient" } else { "a sender" };
        let what = format!("{:?} needs {whose}, which this stage does not have", setting.name);
        compiler.errors.at(setting.span, what);
    }
}

fn group(
    setting: &Setting<'_>,
    stage: Option<Stage>,
    depth: usize,
    compiler: &mut Compiler<'_>,
) -> Option<Test> {
    let children = setting.children.map_or(&[][..], KdlDocument::nodes);
    if children.is_empty() || !setting.values.is_empty() || !setting.options.is_empty() {
        compiler.errors.at(setting.span, format!("expected {} {{ conditions }}", setting.name));
        return None;
    }
    if depth >= limits::POLICY_DEPTH_MAX {
        compiler.errors.at(setting.span, "conditions are nested too deeply");
        return None;
    }
    let inner = |child| compile(&Setting::node(child), stage, depth + 1, compiler);
    let tests: Vec<Test> = children.iter().filter_map(inner).collect();
    Some(match setting.name {
        "any" => Test::new(false, Condition::Any(tests)),
        name => Test::new(name == "not", Condition::All(tests)),
    })
}

/// `rate-over="100/1h" per="{user}"`; per client, if nothing else is said.
fn rate_over(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<Test> {
    setting.only(&["per"], &mut compiler.errors);
    let text = setting.text("a rate like \"100/1h\"", &mut compiler.errors)?;
    let Some(rate) = Rate::parse(text, parse_duration) else {
        compiler.errors.at(setting.span, "expected a rate like \"100/1h\"");
        return None;
    };
    let (span, key) = match setting.option("per") {
        Some(entry) => {
            (entry.span(), self::text(entry, "a text like \"{sender}\"", &mut compiler.errors)?)
        }
        None => (setting.span, "{client}"),
    };
    let key = compiler.template(span, key, Scope::Rule)?;
    Some(Test::new(false, Condition::RateOver(rate, key)))
}

fn verify(
    setting: &Setting<'_>,
    stage: Option<Stage>,
    compiler: &mut Compiler<'_>,
) -> Option<Test> {
    setting.only(&["callout"], &mut compiler.errors);
    check_stage(setting, stage, compiler);
    let word = setting.text("what to verify", &mut compiler.errors)?;
    let (negated, word) = opposite(word);
    let Some((_, verify)) = VERIFY.iter().find(|(name, _)| *name == word) else {
        compiler.errors.unknown(setting.span, "verification", word, VERIFY.map(|(n, _)| n));
        return None;
    };
    let mut callout = None;
    if let Some(entry) = setting.option("callout") {
        if !matches!(verify, Verify::Sender | Verify::Recipient) {
            compiler.errors.at(entry.span(), "only a sender or a recipient has a callout");
        }
        let words = text(entry, "options of the callout", &mut compiler.errors)?;
        let mut options = CalloutOptions::default();
        for word in words.split_whitespace() {
            callout_word(word, &mut options, entry.span(), compiler);
        }
        if *verify == Verify::Sender && options.reverse_path == ReversePath::Sender {
            let what =
                "a sender is called back as <>: else both sides could ask each other for ever";
            compiler.errors.at(entry.span(), what);
        }
        callout = Some(options);
    }
    Some(Test::new(negated, Condition::Verify(*verify, callout)))
}

/// Sets an option of a callout.
fn callout_word(
    word: &str,
    options: &mut CalloutOptions,
    span: miette::SourceSpan,
    compiler: &mut Compiler<'_>,
) {
    let time = |text| parse_duration(text).filter(|time| !time.is_zero());
    match (word, word.split_once('=')) {
        ("use-sender", _) => options.reverse_path = ReversePath::Sender,
        ("use-postmaster", _) => options.reverse_path = ReversePath::Postmaster,
        ("defer-ok", _) => options.defer_ok = true,
        ("no-cache", _) => options.no_cache = true,
        ("random", _) => options.random = true,
        (_, Some(("connect", text))) if time(text).is_some() => options.connect = time(text),
        (_, Some(("maxwait", text))) if time(text).is_some() => options.maxwait = time(text),
        (text, None) if time(text).is_some() => options.time = time(text).unwrap_or(options.time),
        _ => compiler.errors.unknown(span, "option of a callout", word, CALLOUT_WORDS),
    }
}

fn authenticated(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<Test> {
    if let [entry] = setting.values.as_slice()
        && entry.value().is_bool()
    {
        let negated = !flag(entry, &mut compiler.errors);
        return Some(Test::new(negated, Condition::Authenticated(any_user())));
    }
    match setting.text("users, \"*\" for any", &mut compiler.errors)? {
        // As a list, `!*` would hold nobody, authenticated or not.
        "!*" => Some(Test::new(true, Condition::Authenticated(any_user()))),
        _ => {
            let list = compiler.list_of(Kind::LocalParts, setting);
            Some(Test::new(false, Condition::Authenticated(list)))
        }
    }
}

fn any_user() -> List {
    use super::list::{Glob, Item, Matcher};
    List { items: vec![Item::new("*", Matcher::Glob(Glob::new("*")))] }
}

fn services(
    setting: &Setting<'_>,
    words: &str,
    compiler: &mut Compiler<'_>,
) -> Option<Vec<Service>> {
    let mut found = Vec::new();
    for word in words.split_whitespace() {
        match SERVICES.iter().find(|(name, _)| *name == word) {
            Some((_, service)) => found.push(*service),
            None => {
                compiler.errors.unknown(setting.span, "service", word, SERVICES.map(|(n, _)| n));
                return None;
            }
        }
    }
    Some(found)
}

fn variable(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<Test> {
    let (name, value) = match setting.values.as_slice() {
        [name] => (name, None),
        [name, value] => (name, Some(value)),
        _ => {
            compiler.errors.at(setting.span, "expected var \"NAME\" or var \"NAME\" \"VALUE\"");
            return None;
        }
    };
    let (negated, name) = opposite(text(name, "a variable's name", &mut compiler.errors)?);
    if !is_name(name) {
        compiler.errors.at(setting.span, format!("{name:?} is no name of a variable"));
    }
    let value = match value {
        Some(entry) => {
            let value = text(entry, "a value", &mut compiler.errors)?;
            Some(compiler.template(entry.span(), value, Scope::Rule)?)
        }
        None => None,
    };
    Some(Test::new(negated, Condition::Variable { name: name.into(), value }))
}

/// What can be verified.
#[cfg(test)]
pub(super) fn verify_words() -> impl Iterator<Item = &'static str> {
    VERIFY.into_iter().map(|(word, _)| word)
}

/// Names of the options of callouts.
#[cfg(test)]
pub(super) fn callout_words() -> impl Iterator<Item = &'static str> {
    let name = |word: &'static str| word.split('=').next().unwrap_or(word);
    CALLOUT_WORDS.into_iter().map(name).filter(|word| parse_duration(word).is_none())
}

/// Indexes of the ACLs that a condition calls.
pub(super) fn calls(test: &Test, found: &mut Vec<usize>) {
    match &test.condition {
        Condition::Acl(index) => found.push(*index),
        Condition::Any(tests) | Condition::All(tests) => {
            for test in tests {
                calls(test, found);
            }
        }
        _ => {}
    }
}
