//! Rules: a verb, conditions, modifiers. Compiled here, run by `evaluate`.

use std::collections::BTreeMap;

use kdl::{KdlDocument, KdlNode};
use miette::SourceSpan;

use super::{
    Stage,
    compile::{Compiler, NameSpan, negation},
    condition::{self, CONDITIONS, Condition},
    diagnostic::{Errors, Place},
    source::{Setting, parse_duration, place, text},
    template::{Scope, Template, is_name},
};

/// One `acl`.
#[derive(Debug)]
pub(crate) struct Acl {
    pub(crate) name: String,
    pub(crate) body: Body,
    span: SourceSpan,
}

/// What an ACL consists of.
#[derive(Debug)]
pub(crate) enum Body {
    /// A personality: rules per stage.
    Stages(BTreeMap<Stage, Vec<Rule>>),
    /// An auxiliary ACL, called by the condition `acl`.
    Rules(Vec<Rule>),
}

/// What a rule does when its conditions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Accept,
    Deny,
    /// Refuses if the conditions do not hold.
    Require,
    Defer,
    /// Runs its modifiers and goes on.
    Warn,
    Discard,
    /// Refuses and closes the connection.
    Drop,
}

/// One rule.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) place: Place,
    pub(crate) verb: Verb,
    pub(crate) message: Option<Template>,
    /// Conditions and modifiers in the order of the text.
    pub(crate) steps: Vec<Step>,
}

/// A condition, or a modifier that takes effect when the conditions before it hold.
#[derive(Debug)]
pub(crate) enum Step {
    Test(Test),
    /// From here on a condition that does not hold refuses (`accept`, `discard`).
    Endpass,
    Set(Box<str>, Template),
    Log(Template),
    Delay(Template),
    Control(Control),
}

/// A condition, or its opposite.
#[derive(Debug)]
pub(crate) struct Test {
    /// As it stands in the policy.
    pub(crate) text: Box<str>,
    pub(crate) negated: bool,
    pub(crate) condition: Condition,
}

impl Test {
    pub(super) fn new(negated: bool, condition: Condition) -> Self {
        Self { text: Box::default(), negated, condition }
    }
}

/// What `control` switches.
#[derive(Debug)]
pub(crate) enum Control {
    Submission { sender_retain: bool, domain: Option<Template> },
    EnforceSyncOff,
    PipeliningOff,
}

impl Rule {
    /// No rule after it is ever tried.
    fn always_decides(&self) -> bool {
        let ends = !matches!(self.verb, Verb::Require | Verb::Warn);
        ends && !self.steps.iter().any(|step| matches!(step, Step::Test(_)))
    }
}

/// Verbs by name.
const VERBS: [(&str, Verb); 7] = [
    ("accept", Verb::Accept),
    ("deny", Verb::Deny),
    ("require", Verb::Require),
    ("defer", Verb::Defer),
    ("warn", Verb::Warn),
    ("discard", Verb::Discard),
    ("drop", Verb::Drop),
];

/// Stages by name.
pub(crate) const STAGES: [(&str, Stage); 10] = [
    ("connect", Stage::Connect),
    ("helo", Stage::Helo),
    ("starttls", Stage::Starttls),
    ("auth", Stage::Auth),
    ("mail", Stage::Mail),
    ("rcpt", Stage::Rcpt),
    ("predata", Stage::Predata),
    ("data", Stage::Data),
    ("quit", Stage::Quit),
    ("notquit", Stage::NotQuit),
];

const MODIFIERS: [&str; 6] = ["message", "delay", "set", "log", "control", "endpass"];

pub(super) fn compile_acl(node: &KdlNode, compiler: &mut Compiler<'_>) -> Acl {
    let setting = Setting::node(node);
    for (name, entry) in &setting.options {
        compiler.errors.unknown(entry.span(), "option", name, []);
    }
    let name = setting.values.first().and_then(|entry| entry.value().as_string());
    let children = setting.children.map_or(&[][..], KdlDocument::nodes);
    let is_stage = |node: &KdlNode| stage(node.name().value()).is_some();
    let body = if children.iter().any(is_stage) {
        Body::Stages(stages(children, compiler))
    } else {
        Body::Rules(rules(children, None, compiler))
    };
    let span = node.span_of_name();
    if children.is_empty() {
        compiler.errors.at(span, "an acl needs rules: { … }");
    }
    Acl { name: name.unwrap_or_default().to_owned(), body, span }
}

fn stage(word: &str) -> Option<Stage> {
    STAGES.iter().find(|(name, _)| *name == word).map(|(_, stage)| *stage)
}

fn stages(children: &[KdlNode], compiler: &mut Compiler<'_>) -> BTreeMap<Stage, Vec<Rule>> {
    let mut found = BTreeMap::new();
    for child in children {
        let (word, span) = (child.name().value(), child.name().span());
        let Some(stage) = stage(word) else {
            compiler.errors.unknown(span, "stage", word, STAGES.map(|(name, _)| name));
            continue;
        };
        let inner = child.children().map_or(&[][..], KdlDocument::nodes);
        if !child.entries().is_empty() {
            compiler.errors.at(span, format!("{word:?} takes only a block of rules"));
        }
        if found.insert(stage, rules(inner, Some(stage), compiler)).is_some() {
            compiler.errors.at(span, format!("stage {word:?} stands here twice; join the two"));
        }
    }
    found
}

fn rules(nodes: &[KdlNode], stage: Option<Stage>, compiler: &mut Compiler<'_>) -> Vec<Rule> {
    let mut found: Vec<Rule> = Vec::new();
    let (mut decided, mut said) = (false, false);
    for node in nodes {
        if decided && !said {
            let help = "remove it, or put `/-` before it";
            let what = "this rule is never tried: the one before it always decides";
            compiler.errors.help(node.name().span(), what, help);
            said = true;
        }
        let errors = compiler.errors.len();
        let Some(rule) = rule(node, stage, compiler) else { continue };
        // A condition that was not understood is one nevertheless.
        decided |= compiler.errors.len() == errors && rule.always_decides();
        found.push(rule);
    }
    found
}

fn rule(node: &KdlNode, stage: Option<Stage>, compiler: &mut Compiler<'_>) -> Option<Rule> {
    let (word, span) = (node.name().value(), node.name().span());
    let Some((_, verb)) = VERBS.iter().find(|(name, _)| *name == word) else {
        compiler.errors.unknown(span, "verb", word, VERBS.map(|(name, _)| name));
        return None;
    };
    for entry in node.entries().iter().filter(|entry| entry.name().is_none()) {
        compiler.errors.at(entry.span(), "expected name=value: a condition or a modifier");
    }
    let place = place(node, &compiler.errors);
    let mut rule = Rule { place, verb: *verb, message: None, steps: Vec::new() };
    for setting in Setting::inner(node, &mut compiler.errors) {
        if setting.name == "message" {
            setting.only(&[], &mut compiler.errors);
            let text = setting.text("a text", &mut compiler.errors);
            let parsed = text.and_then(|t| compiler.template(setting.span, t, Scope::Rule));
            if rule.message.is_some() {
                compiler.errors.at(setting.span, "a rule has one message");
            }
            rule.message = parsed;
        } else if MODIFIERS.contains(&setting.name) {
            rule.steps.extend(modifier(&setting, rule.verb, compiler));
        } else {
            let test = condition::compile(&setting, stage, 0, compiler);
            rule.steps.extend(test.map(Step::Test));
        }
    }
    Some(rule)
}

fn modifier(setting: &Setting<'_>, verb: Verb, compiler: &mut Compiler<'_>) -> Option<Step> {
    if setting.name != "control" {
        setting.only(&[], &mut compiler.errors);
    }
    match setting.name {
        "endpass" => {
            if !matches!(verb, Verb::Accept | Verb::Discard) {
                compiler.errors.at(setting.span, "endpass belongs to accept and discard");
            }
            setting.flag(&mut compiler.errors).then_some(Step::Endpass)
        }
        "set" => {
            let [name, value] = setting.values.as_slice() else {
                compiler.errors.at(setting.span, "expected a line: set \"NAME\" \"VALUE\"");
                return None;
            };
            let name = text(name, "a variable's name", &mut compiler.errors)?;
            if !is_name(name) {
                compiler.errors.at(setting.span, format!("{name:?} is no name of a variable"));
            }
            let value = text(value, "its value", &mut compiler.errors)?;
            let value = compiler.template(setting.span, value, Scope::Rule)?;
            Some(Step::Set(name.into(), value))
        }
        "log" => {
            let text = setting.text("a text", &mut compiler.errors)?;
            compiler.template(setting.span, text, Scope::Rule).map(Step::Log)
        }
        "delay" => {
            let text = setting.text("a time like \"5s\"", &mut compiler.errors)?;
            let delay = compiler.template(setting.span, text, Scope::Rule)?;
            if delay.literal().is_some_and(|text| parse_duration(text).is_none()) {
                compiler.errors.at(setting.span, "expected a time like \"5s\" or \"1m\"");
            }
            Some(Step::Delay(delay))
        }
        _ => control(setting, compiler).map(Step::Control),
    }
}

fn control(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<Control> {
    const KNOWN: [&str; 3] = ["submission", "enforce-sync off", "pipelining off"];
    let word = setting.text("what to switch", &mut compiler.errors)?;
    if word != "submission" {
        setting.only(&[], &mut compiler.errors);
    }
    match word {
        "submission" => {
            setting.only(&["sender-retain", "domain"], &mut compiler.errors);
            let retain = setting.option("sender-retain");
            let sender_retain =
                retain.is_some_and(|entry| super::source::flag(entry, &mut compiler.errors));
            let domain = setting.option("domain");
            let domain = domain.and_then(|entry| {
                let domain = text(entry, "a domain", &mut compiler.errors)?;
                compiler.template(entry.span(), domain, Scope::Rule)
            });
            Some(Control::Submission { sender_retain, domain })
        }
        "enforce-sync off" => Some(Control::EnforceSyncOff),
        "pipelining off" => Some(Control::PipeliningOff),
        other => {
            compiler.errors.unknown(setting.span, "control", other, KNOWN);
            None
        }
    }
}

/// Refuses ACLs that call themselves, and calls of ACLs that have stages.
pub(super) fn refuse_cycles(acls: &[Acl], errors: &mut Errors) {
    let mut reported = vec![false; acls.len()];
    for (start, acl) in acls.iter().enumerate() {
        // Who called each, by a way from `start`.
        let mut callers: Vec<Option<usize>> = vec![None; acls.len()];
        let mut waiting: Vec<(usize, usize)> = calls(acl).into_iter().map(|i| (start, i)).collect();
        while let Some((caller, index)) = waiting.pop() {
            if index == start {
                if !reported[start] {
                    let cycle = way(caller, start, &callers);
                    let names = cycle.iter().chain([&start]).map(|i| acls[*i].name.as_str());
                    let names = names.collect::<Vec<_>>().join(" → ");
                    let help = format!("take one of these calls out: {names}");
                    errors.help(acl.span, "this acl calls itself", &help);
                    cycle.into_iter().for_each(|index| reported[index] = true);
                }
                break;
            }
            if let Some(called) = acls.get(index)
                && callers[index].is_none()
            {
                callers[index] = Some(caller);
                if matches!(called.body, Body::Stages(_)) {
                    let what =
                        format!("{:?} has stages; only an acl of rules is called", called.name);
                    errors.at(acl.span, what);
                }
                waiting.extend(calls(called).into_iter().map(|i| (index, i)));
            }
        }
    }
}

/// From `start` to `last`, by callers; each stands here once.
fn way(last: usize, start: usize, callers: &[Option<usize>]) -> Vec<usize> {
    let mut way = vec![last];
    let mut at = last;
    while at != start {
        let Some(caller) = callers[at] else { break };
        at = caller;
        way.push(at);
    }
    way.reverse();
    way
}

fn calls(acl: &Acl) -> Vec<usize> {
    let rules: Vec<&Rule> = match &acl.body {
        Body::Stages(stages) => stages.values().flatten().collect(),
        Body::Rules(rules) => rules.iter().collect(),
    };
    let tests = rules.iter().flat_map(|rule| &rule.steps).filter_map(|step| match step {
        Step::Test(test) => Some(test),
        _ => None,
    });
    let mut found = Vec::new();
    for test in tests {
        condition::calls(test, &mut found);
    }
    found
}

/// `"!x"` in a condition's value.
pub(super) fn opposite(word: &str) -> (bool, &str) {
    negation(word)
}

/// Names of the verbs.
#[cfg(test)]
pub(super) fn verbs() -> impl Iterator<Item = &'static str> {
    VERBS.into_iter().map(|(word, _)| word)
}

/// Every word that a rule may have, for suggestions.
pub(super) fn words() -> impl Iterator<Item = &'static str> {
    CONDITIONS.into_iter().chain(MODIFIERS)
}
