//! From the blocks `routers` and `transports` of `policy.kdl` to [`Routing`].

mod client;
mod command;

use std::collections::HashMap;

use kdl::{KdlDocument, KdlNode};
use miette::SourceSpan;

use super::{
    ClientOptions, Protocol, Tls,
    router::{
        Action, Affix, DnsLookup, NotFound, OwnHost, Precondition, Prefix, Router, Routing, Suffix,
        To, Transport,
    },
};
use crate::policy::{
    Compiler,
    list::{Kind as ListKind, List},
    source::{Setting, flag, number, place, text},
    template::{Scope, Template},
};

/// The smallest sample that anybody takes.
const FRACTION_MAX: u64 = 1_000_000;

const KINDS: [&str; 5] = ["redirect", "manualroute", "dnslookup", "accept", "fail"];
const COMMON: [&str; 24] = [
    "domains",
    "local-parts",
    "senders",
    "personality",
    "fraction",
    "local-part-prefix",
    "local-part-suffix",
    "affix-optional",
    "verify-only",
    "no-verify",
    "no-more",
    "unseen",
    "repeat-use",
    "pass-router",
    "lookup",
    "has-table",
    "has-lines",
    "from-parent",
    "errors-to",
    "cannot-route-message",
    "transport",
    "message",
    "self",
    "pass-on-timeout",
];
const REDIRECT: [&str; 5] = ["to", "to-lines", "allow-fail", "check-ancestor", "one-time"];
const MANUAL: [&str; 5] =
    ["route", "randomize", "host-find-failed", "ignore-hosts", "same-domain-copy"];
const DNS: [&str; 4] = ["mx-domains", "widen", "ignore-hosts", "same-domain-copy"];
const TRANSPORT: [&str; 5] = ["port", "strip-nul", "hosts", "randomize", "tls"];

/// Every word of these blocks.
#[cfg(test)]
pub(crate) fn words() -> impl Iterator<Item = &'static str> {
    let options = COMMON
        .into_iter()
        .chain(REDIRECT)
        .chain(MANUAL)
        .chain(DNS)
        .chain(TRANSPORT)
        .chain(client::WORDS);
    KINDS.into_iter().chain(options).chain(command::WORDS)
}

/// Compiles the blocks `routers` and `transports`.
pub(crate) fn compile(
    routers: Option<&KdlNode>,
    transports: Option<&KdlNode>,
    compiler: &mut Compiler<'_>,
) -> Routing {
    let mut routing = Routing::default();
    let mut names = HashMap::new();
    for node in inner(transports) {
        if let Some(transport) = transport(node, compiler) {
            if names.insert(transport.name.clone(), routing.transports.len()).is_some() {
                let what = format!("transport {:?} is defined twice", transport.name);
                compiler.errors.at(node.name().span(), what);
            }
            routing.transports.push(transport);
        }
    }
    let mut passes = Vec::new();
    for node in inner(routers) {
        if let Some((router, pass)) = router(node, &names, &routing.transports, compiler) {
            passes.extend(pass.map(|pass| (routing.routers.len(), pass)));
            if routing.routers.iter().any(|known| known.name == router.name) {
                let what = format!("router {:?} is defined twice", router.name);
                compiler.errors.at(node.name().span(), what);
            }
            routing.routers.push(router);
        }
    }
    for (index, (name, span)) in passes {
        let below = routing.routers.iter().skip(index + 1);
        let found = below.clone().position(|router| router.name == name);
        if found.is_none() {
            let below: Vec<&str> = below.map(|router| router.name.as_str()).collect();
            compiler.errors.unknown(span, "router below this one", &name, below);
        }
        if let Some(router) = routing.routers.get_mut(index) {
            router.pass_router = found.map(|found| index + 1 + found);
        }
    }
    routing
}

fn inner(node: Option<&KdlNode>) -> &[KdlNode] {
    node.and_then(KdlNode::children).map_or(&[], KdlDocument::nodes)
}

fn transport(node: &KdlNode, compiler: &mut Compiler<'_>) -> Option<Transport> {
    // No port is registered for LMTP on TCP; 24 ("private mail system") is what mail systems use.
    let (protocol, port) = match node.name().value() {
        "smtp" => (Protocol::Smtp, 25),
        "lmtp" => (Protocol::Lmtp, 24),
        "pipe" => (Protocol::Pipe, 0),
        other => {
            let known = ["smtp", "lmtp", "pipe"];
            compiler.errors.unknown(node.name().span(), "transport", other, known);
            return None;
        }
    };
    let name = compiler.name(node)?.to_owned();
    let mut made = Transport {
        name,
        protocol,
        port,
        strip_nul: false,
        tls: Tls::default(),
        client: ClientOptions::default(),
        randomize: false,
        hosts: None,
        command: None,
    };
    if protocol == Protocol::Pipe {
        made.command = Some(command::compile(node, compiler)?);
        return Some(made);
    }
    let mut said = client::Said::default();
    for setting in Setting::inner(node, &mut compiler.errors) {
        setting.only(&[], &mut compiler.errors);
        match setting.name {
            "port" => {
                let entry = setting.value("a port", &mut compiler.errors)?;
                let port = number(entry, u64::from(u16::MAX), &mut compiler.errors)?;
                made.port = u16::try_from(port).unwrap_or(made.port);
            }
            "strip-nul" => made.strip_nul = setting.flag(&mut compiler.errors),
            "randomize" => made.randomize = setting.flag(&mut compiler.errors),
            "tls" => {
                let text = setting.text("never, may, must or verify", &mut compiler.errors)?;
                match text {
                    "never" => made.tls = Tls::Never,
                    "may" => made.tls = Tls::May,
                    "must" => made.tls = Tls::Must,
                    "verify" => made.tls = Tls::Verify,
                    other => {
                        let known = ["never", "may", "must", "verify"];
                        compiler.errors.unknown(setting.span, "tls", other, known);
                    }
                }
            }
            "hosts" => {
                made.hosts = setting.text("hosts", &mut compiler.errors).map(str::to_owned);
            }
            name if client::WORDS.contains(&name) => said.set(&setting, compiler)?,
            other => {
                let known = TRANSPORT.into_iter().chain(client::WORDS);
                compiler.errors.unknown(setting.span, "option", other, known);
            }
        }
    }
    made.client = said.options(node, made.tls, compiler)?;
    Some(made)
}

/// What the lines of a router say, before its kind is known to agree.
#[derive(Default)]
struct Parts {
    to: Option<To>,
    allow_fail: bool,
    check_ancestor: bool,
    one_time: bool,
    same_domain_copy: bool,
    route: Option<Template>,
    randomize: bool,
    not_found: Option<NotFound>,
    mx_domains: List,
    widen: Vec<String>,
    ignore_hosts: List,
    transport: Option<usize>,
    message: Option<Template>,
    prefixes: Vec<Prefix>,
    suffixes: Vec<Suffix>,
    affix_optional: bool,
    /// By name: it may stand further down.
    pass_router: Option<(String, SourceSpan)>,
}

fn router(
    node: &KdlNode,
    transports: &HashMap<String, usize>,
    all: &[Transport],
    compiler: &mut Compiler<'_>,
) -> Option<(Router, Option<(String, SourceSpan)>)> {
    let (kind, span) = (node.name().value(), node.name().span());
    let own: &[&str] = match kind {
        "redirect" => &REDIRECT,
        "manualroute" => &MANUAL,
        "dnslookup" => &DNS,
        "accept" | "fail" => &[],
        other => {
            compiler.errors.unknown(span, "kind of router", other, KINDS);
            return None;
        }
    };
    let mut router = Router {
        place: place(node, &compiler.errors),
        name: compiler.name(node)?.to_owned(),
        conditions: Vec::new(),
        affix: None,
        verify_only: false,
        no_verify: false,
        no_more: false,
        unseen: false,
        repeat_use: true,
        pass_router: None,
        pass_on_timeout: false,
        own_host: OwnHost::Defer,
        errors_to: None,
        cannot_route: None,
        action: Action::Accept { transport: None },
    };
    let mut parts = Parts::default();
    for setting in Setting::inner(node, &mut compiler.errors) {
        setting.only(&[], &mut compiler.errors);
        if own.contains(&setting.name) {
            special(&setting, &mut parts, compiler);
        } else if COMMON.contains(&setting.name) {
            common(&setting, &mut router, &mut parts, transports, compiler);
        } else {
            let known = own.iter().copied().chain(COMMON);
            let kind = format!("option of {kind}");
            compiler.errors.unknown(setting.span, &kind, setting.name, known);
        }
    }
    let (prefixes, suffixes) =
        (std::mem::take(&mut parts.prefixes), std::mem::take(&mut parts.suffixes));
    if !prefixes.is_empty() || !suffixes.is_empty() {
        router.affix = Some(Affix { prefixes, suffixes, optional: parts.affix_optional });
    }
    if parts.one_time && router.unseen {
        // What is recorded ends the address, and a copy is to leave it alone.
        compiler.errors.at(span, "one-time and unseen exclude each other");
    }
    let pass_router = parts.pass_router.take();
    let verify_only = router.verify_only;
    match action(kind, parts, verify_only, all) {
        Ok(action) => router.action = action,
        Err(missing) => compiler.errors.at(span, format!("{kind} needs {missing}")),
    }
    Some((router, pass_router))
}

/// What a router of this kind does; an error names what is missing.
fn action(
    kind: &str,
    parts: Parts,
    verify_only: bool,
    transports: &[Transport],
) -> Result<Action, &'static str> {
    let transport = parts.transport.ok_or("transport=");
    Ok(match kind {
        "redirect" => Action::Redirect {
            to: parts.to.ok_or("to= or to-lines=")?,
            allow_fail: parts.allow_fail,
            check_ancestor: parts.check_ancestor,
            one_time: parts.one_time,
        },
        "manualroute" => Action::Manual {
            route: parts.route.ok_or("route=")?,
            transport: transport?,
            randomize: parts.randomize,
            not_found: parts.not_found.unwrap_or(NotFound::Defer),
            ignore_hosts: parts.ignore_hosts,
            same_domain_copy: parts.same_domain_copy,
        },
        "dnslookup" => Action::Dns(DnsLookup {
            mx_domains: parts.mx_domains,
            widen: parts.widen,
            ignore_hosts: parts.ignore_hosts,
            same_domain_copy: parts.same_domain_copy,
            transport: transport?,
        }),
        "fail" => Action::Fail { message: parts.message.ok_or("message=")? },
        _ => {
            let takes = |index: &usize| {
                transports[*index].hosts.is_some() || transports[*index].command.is_some()
            };
            if !verify_only && !parts.transport.as_ref().is_some_and(takes) {
                return Err("verify-only, or a transport that has hosts or a command");
            }
            Action::Accept { transport: parts.transport }
        }
    })
}

/// Options that every router has.
fn common(
    setting: &Setting<'_>,
    router: &mut Router,
    parts: &mut Parts,
    transports: &HashMap<String, usize>,
    compiler: &mut Compiler<'_>,
) {
    let said = setting.place(&compiler.errors).text;
    match setting.name {
        "domains" => {
            let list = compiler.list_of(ListKind::Domains, setting);
            router.conditions.push((Precondition::Domains(list), said));
        }
        "local-parts" => {
            let list = compiler.list_of(ListKind::LocalParts, setting);
            router.conditions.push((Precondition::LocalParts(list), said));
        }
        "senders" => {
            let list = compiler.list_of(ListKind::Addresses, setting);
            router.conditions.push((Precondition::Senders(list), said));
        }
        "fraction" => {
            let entry = setting.value("a number", &mut compiler.errors);
            let of = entry.and_then(|entry| number(entry, FRACTION_MAX, &mut compiler.errors));
            match of {
                Some(0) => compiler.errors.at(setting.span, "expected a number from 1 on"),
                of => {
                    let test = of.map(|of| (Precondition::Fraction(of), said));
                    router.conditions.extend(test);
                }
            }
        }
        "local-part-prefix" => {
            for word in affixes(setting, compiler) {
                parts.prefixes.push(match word.strip_prefix('*') {
                    Some(end) => Prefix::UpTo(end.to_owned()),
                    None => Prefix::Exact(word),
                });
            }
        }
        "local-part-suffix" => {
            for word in affixes(setting, compiler) {
                parts.suffixes.push(match word.strip_suffix('*') {
                    Some(start) => Suffix::From(start.to_owned()),
                    None => Suffix::Exact(word),
                });
            }
        }
        "affix-optional" => parts.affix_optional = setting.flag(&mut compiler.errors),
        "verify-only" => router.verify_only = setting.flag(&mut compiler.errors),
        "no-verify" => router.no_verify = setting.flag(&mut compiler.errors),
        "no-more" => router.no_more = setting.flag(&mut compiler.errors),
        "unseen" => router.unseen = setting.flag(&mut compiler.errors),
        "repeat-use" => router.repeat_use = setting.flag(&mut compiler.errors),
        "pass-on-timeout" => router.pass_on_timeout = setting.flag(&mut compiler.errors),
        "pass-router" => {
            let name = setting.text("a router's name", &mut compiler.errors);
            parts.pass_router = name.map(|name| (name.to_owned(), setting.span));
        }
        "self" => {
            const KNOWN: [(&str, OwnHost); 3] =
                [("defer", OwnHost::Defer), ("fail", OwnHost::Fail), ("pass", OwnHost::Pass)];
            router.own_host = way(setting, KNOWN, compiler).unwrap_or(OwnHost::Defer);
        }
        "errors-to" => router.errors_to = template(setting, compiler),
        "cannot-route-message" => router.cannot_route = template(setting, compiler),
        "message" => parts.message = template(setting, compiler),
        "transport" => {
            let Some(name) = setting.text("a transport's name", &mut compiler.errors) else {
                return;
            };
            parts.transport = transports.get(name).copied();
            if parts.transport.is_none() {
                let known: Vec<&str> = transports.keys().map(String::as_str).collect();
                compiler.errors.unknown(setting.span, "transport", name, known);
            }
        }
        _ => router.conditions.extend(precondition(setting, compiler).map(|test| (test, said))),
    }
}

/// Prefixes or suffixes, in lower case.
fn affixes(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Vec<String> {
    let text = setting.text("a text like \"-request\" or \"+*\"", &mut compiler.errors);
    let words = text.unwrap_or_default().split_whitespace().map(str::to_ascii_lowercase);
    let mut good = Vec::new();
    for word in words {
        let inner = if setting.name == "local-part-prefix" {
            word.strip_prefix('*')
        } else {
            word.strip_suffix('*')
        };
        let inner = inner.unwrap_or(&word);
        if inner.is_empty() || inner.contains('*') {
            let what = "expected a text; a prefix may begin, a suffix end with one \"*\"";
            compiler.errors.at(setting.span, what);
        } else {
            good.push(word);
        }
    }
    if text.is_some() && good.is_empty() {
        compiler.errors.at(setting.span, format!("{:?} needs a text", setting.name));
    }
    good
}

/// One of several words.
fn way<T: Copy, const N: usize>(
    setting: &Setting<'_>,
    known: [(&str, T); N],
    compiler: &mut Compiler<'_>,
) -> Option<T> {
    let expected = known.map(|(name, _)| name).join(", ");
    let word = setting.text(&expected, &mut compiler.errors)?;
    let found = known.iter().find(|(name, _)| *name == word).map(|(_, way)| *way);
    if found.is_none() {
        compiler.errors.unknown(setting.span, "way", word, known.map(|(name, _)| name));
    }
    found
}

fn precondition(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<Precondition> {
    let source = setting.text("a text", &mut compiler.errors)?;
    let (negated, source) = source.strip_prefix('!').map_or((false, source), |s| (true, s));
    if setting.name == "personality" {
        let names = source.split_whitespace().map(str::to_owned).collect();
        return Some(Precondition::Personality { negated, names });
    }
    let text = compiler.template(setting.span, source, Scope::Router)?;
    Some(match setting.name {
        "lookup" => Precondition::Lookup { negated, text },
        "has-table" => Precondition::HasTable { negated, name: text },
        "has-lines" => Precondition::HasLines { negated, name: text },
        _ => Precondition::FromParent(text),
    })
}

fn template(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<Template> {
    let source = setting.text("a text", &mut compiler.errors)?;
    compiler.template(setting.span, source, Scope::Router)
}

/// Options of one kind of router.
fn special(setting: &Setting<'_>, parts: &mut Parts, compiler: &mut Compiler<'_>) {
    match setting.name {
        "to" => parts.to = template(setting, compiler).map(To::Text),
        "to-lines" => parts.to = template(setting, compiler).map(To::Lines),
        "allow-fail" => parts.allow_fail = setting.flag(&mut compiler.errors),
        "check-ancestor" => parts.check_ancestor = setting.flag(&mut compiler.errors),
        "route" => parts.route = template(setting, compiler),
        "randomize" => {
            parts.randomize =
                setting.values.first().is_none_or(|entry| flag(entry, &mut compiler.errors));
        }
        "host-find-failed" => {
            const KNOWN: [(&str, NotFound); 5] = [
                ("defer", NotFound::Defer),
                ("fail", NotFound::Fail),
                ("decline", NotFound::Decline),
                ("pass", NotFound::Pass),
                ("ignore", NotFound::Ignore),
            ];
            parts.not_found = way(setting, KNOWN, compiler);
        }
        "one-time" => parts.one_time = setting.flag(&mut compiler.errors),
        "same-domain-copy" => parts.same_domain_copy = setting.flag(&mut compiler.errors),
        "mx-domains" => parts.mx_domains = compiler.list_of(ListKind::Domains, setting),
        "ignore-hosts" => parts.ignore_hosts = compiler.list_of(ListKind::Hosts, setting),
        _ => {
            for entry in &setting.values {
                if let Some(words) = text(entry, "domains", &mut compiler.errors) {
                    let words = words.split_whitespace().map(str::to_ascii_lowercase);
                    parts.widen.extend(words);
                }
            }
        }
    }
}
