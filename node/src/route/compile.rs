//! From the blocks `routers` and `transports` of `policy.kdl` to [`Routing`].

use std::collections::HashMap;

use kdl::{KdlDocument, KdlNode};

use super::{
    Protocol,
    router::{
        Action, Affix, DnsLookup, NotFound, Precondition, Router, Routing, Suffix, To, Transport,
    },
};
use crate::policy::{
    Compiler,
    list::{Kind as ListKind, List},
    source::{Setting, flag, number, place, text},
    template::{Scope, Template},
};

const KINDS: [&str; 5] = ["redirect", "manualroute", "dnslookup", "accept", "fail"];
const COMMON: [&str; 16] = [
    "domains",
    "local-parts",
    "local-part-prefix",
    "local-part-suffix",
    "affix-optional",
    "verify-only",
    "no-verify",
    "no-more",
    "lookup",
    "has-table",
    "has-lines",
    "from-parent",
    "errors-to",
    "cannot-route-message",
    "transport",
    "message",
];
const REDIRECT: [&str; 4] = ["to", "to-lines", "allow-fail", "check-ancestor"];
const MANUAL: [&str; 3] = ["route", "randomize", "host-find-failed"];
const DNS: [&str; 3] = ["mx-domains", "widen", "ignore-hosts"];
const TRANSPORT: [&str; 3] = ["port", "strip-nul", "hosts"];

/// Every word of these blocks.
#[cfg(test)]
pub(crate) fn words() -> impl Iterator<Item = &'static str> {
    let options = COMMON.into_iter().chain(REDIRECT).chain(MANUAL).chain(DNS).chain(TRANSPORT);
    KINDS.into_iter().chain(options)
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
    for node in inner(routers) {
        if let Some(router) = router(node, &names, &routing.transports, compiler) {
            if routing.routers.iter().any(|known| known.name == router.name) {
                let what = format!("router {:?} is defined twice", router.name);
                compiler.errors.at(node.name().span(), what);
            }
            routing.routers.push(router);
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
        other => {
            compiler.errors.unknown(node.name().span(), "transport", other, ["smtp", "lmtp"]);
            return None;
        }
    };
    let name = compiler.name(node)?.to_owned();
    let mut made = Transport { name, protocol, port, strip_nul: false, hosts: None };
    for setting in Setting::inner(node, &mut compiler.errors) {
        setting.only(&[], &mut compiler.errors);
        match setting.name {
            "port" => {
                let entry = setting.value("a port", &mut compiler.errors)?;
                let port = number(entry, u64::from(u16::MAX), &mut compiler.errors)?;
                made.port = u16::try_from(port).unwrap_or(made.port);
            }
            "strip-nul" => made.strip_nul = setting.flag(&mut compiler.errors),
            "hosts" => {
                made.hosts = setting.text("hosts", &mut compiler.errors).map(str::to_owned);
            }
            other => compiler.errors.unknown(setting.span, "option", other, TRANSPORT),
        }
    }
    Some(made)
}

/// What the lines of a router say, before its kind is known to agree.
#[derive(Default)]
struct Parts {
    to: Option<To>,
    allow_fail: bool,
    check_ancestor: bool,
    route: Option<Template>,
    randomize: bool,
    not_found: Option<NotFound>,
    mx_domains: List,
    widen: Vec<String>,
    ignore_hosts: List,
    transport: Option<usize>,
    message: Option<Template>,
    prefix: Option<String>,
    suffix: Option<Suffix>,
    affix_optional: bool,
}

fn router(
    node: &KdlNode,
    transports: &HashMap<String, usize>,
    all: &[Transport],
    compiler: &mut Compiler<'_>,
) -> Option<Router> {
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
    router.affix = match (parts.prefix.take(), parts.suffix.take()) {
        (None, None) => None,
        (prefix, suffix) => Some(Affix { prefix, suffix, optional: parts.affix_optional }),
    };
    let verify_only = router.verify_only;
    match action(kind, parts, verify_only, all) {
        Ok(action) => router.action = action,
        Err(missing) => compiler.errors.at(span, format!("{kind} needs {missing}")),
    }
    Some(router)
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
        },
        "manualroute" => Action::Manual {
            route: parts.route.ok_or("route=")?,
            transport: transport?,
            randomize: parts.randomize,
            not_found: parts.not_found.unwrap_or(NotFound::Defer),
        },
        "dnslookup" => Action::Dns(DnsLookup {
            mx_domains: parts.mx_domains,
            widen: parts.widen,
            ignore_hosts: parts.ignore_hosts,
            transport: transport?,
        }),
        "fail" => Action::Fail { message: parts.message.ok_or("message=")? },
        _ => {
            let with_hosts = |index: &usize| transports[*index].hosts.is_some();
            if !verify_only && !parts.transport.as_ref().is_some_and(with_hosts) {
                return Err("verify-only, or a transport that has hosts");
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
        "local-part-prefix" => {
            parts.prefix = affix_text(setting, compiler).map(str::to_ascii_lowercase);
        }
        "local-part-suffix" => {
            parts.suffix = affix_text(setting, compiler).map(|text| {
                let text = text.to_ascii_lowercase();
                match text.strip_suffix('*') {
                    Some(start) => Suffix::From(start.to_owned()),
                    None => Suffix::Exact(text),
                }
            });
        }
        "affix-optional" => parts.affix_optional = setting.flag(&mut compiler.errors),
        "verify-only" => router.verify_only = setting.flag(&mut compiler.errors),
        "no-verify" => router.no_verify = setting.flag(&mut compiler.errors),
        "no-more" => router.no_more = setting.flag(&mut compiler.errors),
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

fn affix_text<'a>(setting: &Setting<'a>, compiler: &mut Compiler<'_>) -> Option<&'a str> {
    let text = setting.text("a text like \"-request\" or \"+*\"", &mut compiler.errors)?;
    let inner = text.strip_suffix('*').unwrap_or(text);
    if inner.is_empty() || inner.contains('*') {
        compiler.errors.at(setting.span, "expected a text; a suffix may end in one \"*\"");
        return None;
    }
    Some(text)
}

fn precondition(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<Precondition> {
    let source = setting.text("a text", &mut compiler.errors)?;
    let (negated, source) = source.strip_prefix('!').map_or((false, source), |s| (true, s));
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
            const KNOWN: [(&str, NotFound); 3] = [
                ("defer", NotFound::Defer),
                ("fail", NotFound::Fail),
                ("decline", NotFound::Decline),
            ];
            let Some(word) = setting.text("defer, fail or decline", &mut compiler.errors) else {
                return;
            };
            parts.not_found = KNOWN.iter().find(|(name, _)| *name == word).map(|(_, n)| *n);
            if parts.not_found.is_none() {
                compiler.errors.unknown(setting.span, "way", word, KNOWN.map(|(name, _)| name));
            }
        }
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
