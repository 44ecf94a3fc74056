//! From KDL to a [`Configuration`]: names are resolved here, so that nothing is looked up by name at run time.

use std::collections::HashMap;

use ipnet::IpNet;
use kdl::{KdlDocument, KdlEntry, KdlNode};
use miette::SourceSpan;

use super::{
    Options,
    diagnostic::{Errors, PolicyError},
    list::{Glob, Item, Kind, List, Matcher},
    options,
    retry::{self, RetryRules},
    rewrite::{self, Rewrites},
    rule::{self, Acl},
    source::{Setting, text},
    template::{Scope, Template},
};
use crate::{
    route::{self, router::Routing},
    tables::Tables,
};

/// All that `policy.kdl` says.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) options: Options,
    pub(crate) lists: Vec<List>,
    pub(crate) acls: Vec<Acl>,
    pub(crate) routing: Routing,
    pub(crate) rewrites: Rewrites,
    pub(crate) retry: RetryRules,
    pub(crate) local_names: List,
    pub(crate) reserve_hosts: List,
    pub(crate) certificate_hosts: List,
}

/// State of a compilation.
pub(crate) struct Compiler<'t> {
    pub(crate) errors: Errors,
    pub(crate) tables: &'t Tables,
    pub(crate) options: Options,
    pub(crate) local_names: List,
    pub(crate) reserve_hosts: List,
    pub(crate) certificate_hosts: List,
    pub(crate) acl_names: HashMap<String, usize>,
    list_names: HashMap<(Kind, String), usize>,
}

const LISTS: [(&str, Kind); 4] = [
    ("domains", Kind::Domains),
    ("hosts", Kind::Hosts),
    ("local-parts", Kind::LocalParts),
    ("addresses", Kind::Addresses),
];

/// ACL of an address without personality, if the policy has none: relays for this host only.
const LOCAL: &str = r#"
acl "local" {
    rcpt {
        require hosts="@[]" message="No SMTP service for unauthorized users"
        require verify="sender"
        require verify="recipient"
        accept
    }
}
"#;

/// Compiles a policy. Every error at once, in the order of the text.
pub(super) fn compile(
    file: &str,
    source: &str,
    tables: &Tables,
) -> Result<Compiled, Vec<PolicyError>> {
    let mut errors = Errors::new(file, source);
    let document = match KdlDocument::parse_v2(source) {
        Ok(document) => document,
        Err(error) => {
            for diagnostic in &error.diagnostics {
                let what = diagnostic.message.as_deref().unwrap_or("this is no KDL");
                match diagnostic.help.as_deref() {
                    Some(help) => errors.help(diagnostic.span, what, help),
                    None => errors.at(diagnostic.span, what),
                }
            }
            return Err(errors.into_found());
        }
    };
    let mut compiler = Compiler::new(errors, tables);
    let compiled = compiler.document(&document);
    if compiler.errors.is_empty() { Ok(compiled) } else { Err(compiler.errors.into_found()) }
}

impl<'t> Compiler<'t> {
    fn new(errors: Errors, tables: &'t Tables) -> Self {
        Self {
            errors,
            tables,
            options: Options::default(),
            local_names: List::default(),
            reserve_hosts: List::default(),
            certificate_hosts: List::default(),
            acl_names: HashMap::new(),
            list_names: HashMap::new(),
        }
    }

    fn document(&mut self, document: &KdlDocument) -> Compiled {
        let local = KdlDocument::parse_v2(LOCAL).unwrap_or_default();
        let mut lists: Vec<(Kind, &KdlNode)> = Vec::new();
        let mut acls: Vec<&KdlNode> = Vec::new();
        let mut rest: Vec<&KdlNode> = Vec::new();
        for node in document.nodes() {
            let list = LISTS.iter().find(|(word, _)| *word == node.name().value());
            match (list, node.name().value()) {
                (Some((_, kind)), _) => lists.push((*kind, node)),
                (None, "acl") => acls.push(node),
                (None, _) => rest.push(node),
            }
        }
        // Names first: a list or an ACL may be used above its definition.
        for (index, (kind, node)) in lists.iter().enumerate() {
            if let Some(name) = self.name(node)
                && self.list_names.insert((*kind, name.to_owned()), index).is_some()
            {
                self.errors.at(node.span_of_name(), format!("list {name:?} is defined twice"));
            }
        }
        for (index, node) in acls.iter().enumerate() {
            if let Some(name) = self.name(node)
                && self.acl_names.insert(name.to_owned(), index).is_some()
            {
                self.errors.at(node.span_of_name(), format!("acl {name:?} is defined twice"));
            }
        }
        let has_local = self.acl_names.contains_key("local");
        if !has_local {
            self.acl_names.insert("local".to_owned(), acls.len());
        }
        let compiled_lists: Vec<List> =
            lists.iter().map(|(kind, node)| self.named_list(*kind, node)).collect();
        self.refuse_list_cycles(&lists, &compiled_lists);
        let (mut routers, mut transports, mut rewrites, mut retry) = (None, None, None, None);
        for node in rest {
            match node.name().value() {
                "routers" => self.once(&mut routers, node),
                "transports" => self.once(&mut transports, node),
                "rewrite" => self.once(&mut rewrites, node),
                "retry" => self.once(&mut retry, node),
                name if options::NAMES.contains(&name) => {
                    options::compile(&Setting::node(node), self);
                }
                name => {
                    let known = options::NAMES.into_iter().chain(LISTS.map(|(word, _)| word));
                    let known = known.chain(["acl", "retry", "rewrite", "routers", "transports"]);
                    self.errors.unknown(node.name().span(), "statement", name, known);
                }
            }
        }
        let mut acls: Vec<Acl> = acls.iter().map(|node| rule::compile_acl(node, self)).collect();
        let rewrites = rewrite::compile(rewrites, self);
        let retry = retry::compile(retry, self);
        let routing = route::compile::compile(routers, transports, self);
        if !has_local {
            // Last: what is built in has no place in the policy.
            self.errors.enter_built_in(LOCAL);
            acls.extend(local.nodes().iter().map(|node| rule::compile_acl(node, self)));
        }
        rule::refuse_cycles(&acls, &mut self.errors);
        Compiled {
            options: self.options.clone(),
            lists: compiled_lists,
            acls,
            routing,
            rewrites,
            retry,
            local_names: std::mem::take(&mut self.local_names),
            reserve_hosts: std::mem::take(&mut self.reserve_hosts),
            certificate_hosts: std::mem::take(&mut self.certificate_hosts),
        }
    }

    fn once<'a>(&mut self, slot: &mut Option<&'a KdlNode>, node: &'a KdlNode) {
        if slot.replace(node).is_some() {
            let what = format!("{:?} stands here twice; join the two", node.name().value());
            self.errors.at(node.name().span(), what);
        }
    }

    /// The name that follows the first word of a node.
    pub(crate) fn name<'a>(&mut self, node: &'a KdlNode) -> Option<&'a str> {
        let first = node.entries().iter().find(|entry| entry.name().is_none());
        let name = first.and_then(|entry| entry.value().as_string());
        if name.is_none() {
            let what = format!("{:?} needs a name: a text in quotes", node.name().value());
            self.errors.at(node.name().span(), what);
        }
        name
    }

    fn named_list(&mut self, kind: Kind, node: &KdlNode) -> List {
        let setting = Setting::node(node);
        for (name, entry) in &setting.options {
            self.errors.unknown(entry.span(), "option", name, []);
        }
        let mut items = Vec::new();
        for entry in setting.values.iter().skip(1) {
            self.words(kind, entry, &mut items);
        }
        for child in setting.children.into_iter().flat_map(KdlDocument::nodes) {
            let child = Setting::node(child);
            match child.name {
                "table" => items.extend(self.table_item(kind, &child)),
                "list" => {
                    child.only(&[], &mut self.errors);
                    for entry in &child.values {
                        let Some(word) = text(entry, "a list's name", &mut self.errors) else {
                            continue;
                        };
                        let (negated, name) = negation(word);
                        let matcher = self.reference(kind, name, entry.span());
                        let text = format!("{}+{name}", if negated { "!" } else { "" });
                        items.extend(matcher.map(|matcher| Item::new(&text, matcher)));
                    }
                }
                "item" => {
                    child.only(&[], &mut self.errors);
                    for entry in &child.values {
                        self.words(kind, entry, &mut items);
                    }
                }
                other => {
                    let known = ["table", "list", "item"];
                    self.errors.unknown(child.span, "kind of list item", other, known);
                }
            }
        }
        List { items }
    }

    fn table_item(&mut self, kind: Kind, child: &Setting<'_>) -> Option<Item> {
        child.only(&["partial"], &mut self.errors);
        let name = child.text("a table's name", &mut self.errors)?;
        let partial = child
            .option("partial")
            .is_some_and(|entry| super::source::flag(entry, &mut self.errors));
        let (negated, name) = negation(name);
        self.table(name, child.values.first().map_or(child.span, |entry| entry.span()))?;
        if kind == Kind::Hosts && !self.tables.is_nets(name) {
            let what = format!("table {name:?} has keys that are neither addresses nor networks");
            self.errors.at(child.span, what);
        }
        let text = format!("{}table {name}", if negated { "!" } else { "" });
        Some(Item::new(&text, Matcher::Table { name: name.into(), partial }))
    }

    /// Checks that a table exists.
    pub(crate) fn table(&mut self, name: &str, span: SourceSpan) -> Option<()> {
        if self.tables.has(name) {
            return Some(());
        }
        let known: Vec<&str> = self.tables.names().collect();
        self.errors.unknown(span, "table", name, known);
        None
    }

    /// The list that a condition's or option's values give.
    pub(crate) fn list_of(&mut self, kind: Kind, setting: &Setting<'_>) -> List {
        let mut items = Vec::new();
        if setting.values.is_empty() {
            self.errors.at(setting.span, format!("{:?} needs a list", setting.name));
        }
        for entry in &setting.values {
            self.words(kind, entry, &mut items);
        }
        List { items }
    }

    /// Items separated by blanks; an empty text is the empty item (`senders=""` is the sender of a bounce).
    pub(super) fn words(&mut self, kind: Kind, entry: &KdlEntry, items: &mut Vec<Item>) {
        let Some(all) = text(entry, "a list", &mut self.errors) else { return };
        if all.trim().is_empty() {
            items.push(Item::new("", Matcher::Glob(Glob::new(""))));
        }
        for word in all.split_whitespace() {
            let (_, plain) = negation(word);
            let matcher = match plain.strip_prefix('+') {
                Some(name) => self.reference(kind, name, entry.span()),
                None => self.literal(kind, plain, entry),
            };
            items.extend(matcher.map(|matcher| Item::new(word, matcher)));
        }
    }

    /// The item that stands for a named list.
    pub(super) fn named(&mut self, kind: Kind, name: &str, span: SourceSpan) -> Option<Item> {
        let matcher = self.reference(kind, name, span)?;
        Some(Item::new(&format!("+{name}"), matcher))
    }

    fn reference(&mut self, kind: Kind, name: &str, span: SourceSpan) -> Option<Matcher> {
        if let Some(index) = self.list_names.get(&(kind, name.to_owned())) {
            return Some(Matcher::Named(*index));
        }
        let known: Vec<&str> = self
            .list_names
            .keys()
            .filter(|(k, _)| *k == kind)
            .map(|(_, name)| name.as_str())
            .collect();
        let word = LISTS.iter().find(|(_, k)| *k == kind).map_or("list", |(word, _)| word);
        self.errors.unknown(span, &format!("list of {word}"), name, known);
        None
    }

    fn literal(&mut self, kind: Kind, word: &str, entry: &KdlEntry) -> Option<Matcher> {
        if word.contains('{') {
            return self.template(entry.span(), word, Scope::Rule).map(Matcher::Field);
        }
        match kind {
            Kind::Domains | Kind::Hosts if word == "@[]" => Some(Matcher::Own),
            Kind::Hosts => {
                let net = word.parse::<IpNet>().ok();
                let net = net.or_else(|| word.parse::<std::net::IpAddr>().ok().map(IpNet::from));
                if net.is_none() && word.contains('/') {
                    self.errors.at(entry.span(), format!("{word:?} is no network"));
                }
                Some(net.map_or_else(|| Matcher::Glob(Glob::new(word)), Matcher::Net))
            }
            Kind::Addresses => match word.rsplit_once('@') {
                Some((local, domain)) => {
                    Some(Matcher::Address(Glob::new(local), Glob::new(domain)))
                }
                None if word == "*" => Some(Matcher::Glob(Glob::new("*"))),
                None => Some(Matcher::Address(Glob::new("*"), Glob::new(word))),
            },
            Kind::Domains | Kind::LocalParts => Some(Matcher::Glob(Glob::new(word))),
        }
    }

    /// A template; its tables with fixed names must exist.
    pub(crate) fn template(
        &mut self,
        span: SourceSpan,
        source: &str,
        scope: Scope,
    ) -> Option<Template> {
        match Template::parse(source, scope) {
            Ok(template) => {
                for name in template.table_names() {
                    self.table(name, span)?;
                }
                Some(template)
            }
            Err(bad) => {
                match &bad.unknown {
                    Some((word, known)) => {
                        self.errors.unknown(span, "field", word, known.iter().copied());
                    }
                    None => self.errors.at(span, bad.what),
                }
                None
            }
        }
    }

    fn refuse_list_cycles(&mut self, nodes: &[(Kind, &KdlNode)], lists: &[List]) {
        for (start, (_, node)) in nodes.iter().enumerate() {
            let mut seen = vec![false; lists.len()];
            let mut waiting: Vec<usize> = lists[start].named().collect();
            while let Some(index) = waiting.pop() {
                if index == start {
                    self.errors.at(node.span_of_name(), "this list names itself");
                    break;
                }
                if !std::mem::replace(&mut seen[index], true) {
                    waiting.extend(lists[index].named());
                }
            }
        }
    }
}

/// `!x` is not x.
pub(crate) fn negation(word: &str) -> (bool, &str) {
    word.strip_prefix('!').map_or((false, word), |word| (true, word.trim_start()))
}

/// Where a definition is named in the text.
pub(crate) trait NameSpan {
    fn span_of_name(&self) -> SourceSpan;
}

impl NameSpan for KdlNode {
    fn span_of_name(&self) -> SourceSpan {
        let first = self.entries().iter().find(|entry| entry.name().is_none());
        first.map_or_else(|| self.name().span(), KdlEntry::span)
    }
}
