//! Running rules.

mod verify;
mod why;

use std::{borrow::Cow, net::IpAddr, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use super::{
    Configuration, Connection, Decision, Explanation, Personality, Stage, Submission, Surroundings,
    Transaction, Verdict,
    condition::Condition,
    explanation::Notes,
    list::{List, Subject, World},
    rule::{Body, Control, Rule, Step, Test, Verb},
    source::parse_duration,
    template::{Facts, Field, bounded},
};
use crate::{limits, tables::Tables};

/// What a client hears when neither rule nor verification has a text.
const PROHIBITED: &str = "Administrative prohibition";
const TRY_LATER: &str = "Temporary local problem, please try later";

/// Answer to a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Yes,
    No,
    /// Not known now: the command is deferred (`warn` goes on).
    Later,
}

impl Truth {
    fn of(truth: bool) -> Self {
        if truth { Self::Yes } else { Self::No }
    }

    fn opposite(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Later => Self::Later,
        }
    }
}

/// One run of the rules of a stage.
struct Evaluation<'a> {
    configuration: &'a Configuration,
    personality: &'a Personality,
    stage: Stage,
    connection: &'a mut Connection,
    transaction: &'a Transaction,
    around: &'a Surroundings,
    decision: Decision,
    /// Why the last verification, list or auxiliary ACL said no.
    reason: Option<String>,
    /// DNS list that matched, and its text.
    listed: Option<(String, String)>,
    depth: usize,
    /// Only if somebody wants to know why.
    notes: Option<Notes>,
}

pub(super) async fn run(
    configuration: &Configuration,
    stage: Stage,
    connection: &mut Connection,
    transaction: &Transaction,
    around: &Surroundings,
) -> Decision {
    let personality = configuration.personality(connection.server.ip());
    decide(configuration, &personality, stage, connection, transaction, around, None).await.0
}

pub(super) async fn explain(
    configuration: &Configuration,
    stage: Stage,
    connection: &mut Connection,
    transaction: &Transaction,
    around: &Surroundings,
) -> (Decision, Explanation) {
    let personality = configuration.personality(connection.server.ip());
    let notes = Some(Notes::default());
    let (decision, notes) =
        decide(configuration, &personality, stage, connection, transaction, around, notes).await;
    let rules = notes.map(|notes| notes.rules).unwrap_or_default();
    (decision, Explanation { stage, acl: personality.acl, rules })
}

async fn decide(
    configuration: &Configuration,
    personality: &Personality,
    stage: Stage,
    connection: &mut Connection,
    transaction: &Transaction,
    around: &Surroundings,
    notes: Option<Notes>,
) -> (Decision, Option<Notes>) {
    let rules = match configuration.acl(&personality.acl).map(|acl| &acl.body) {
        Some(Body::Stages(stages)) => stages.get(&stage),
        // Loading has refused such personalities, so nothing is accepted here.
        Some(Body::Rules(_)) | None => return (Decision::refused(), notes),
    };
    let Some(rules) = rules else {
        // A stage without rules accepts, save that recipients need a rule.
        let rcpt = stage == Stage::Rcpt;
        return (if rcpt { Decision::refused() } else { Decision::default() }, notes);
    };
    let mut evaluation = Evaluation {
        configuration,
        personality,
        stage,
        connection,
        transaction,
        around,
        decision: Decision::default(),
        reason: None,
        listed: None,
        depth: 0,
        notes,
    };
    let verdict = evaluation.rules(rules).await;
    let mut decision = evaluation.decision;
    decision.verdict = verdict;
    (decision, evaluation.notes)
}

impl Decision {
    fn refused() -> Self {
        Self { verdict: Verdict::Deny(PROHIBITED.to_owned()), ..Self::default() }
    }
}

impl Default for Decision {
    fn default() -> Self {
        Self {
            verdict: Verdict::Accept,
            delay: Duration::ZERO,
            submission: None,
            enforce_sync_off: false,
            pipelining_off: false,
            banner: None,
            log: Vec::new(),
        }
    }
}

impl Evaluation<'_> {
    /// The verdict of a list of rules; refused if none decides.
    fn rules<'b>(&'b mut self, rules: &'b [Rule]) -> BoxFuture<'b, Verdict> {
        async move {
            for rule in rules {
                let noted = self.begin_note();
                let verdict = self.rule(rule).await;
                self.note_rule(noted, rule, verdict.as_ref());
                if let Some(verdict) = verdict {
                    return verdict;
                }
            }
            Verdict::Deny(self.text(None, PROHIBITED))
        }
        .boxed()
    }

    /// The verdict of one rule; `None` goes on to the next.
    async fn rule(&mut self, rule: &Rule) -> Option<Verdict> {
        self.reason = None;
        let mut endpass = false;
        let mut truth = Truth::Yes;
        for step in &rule.steps {
            match step {
                Step::Test(test) => truth = self.test(test).await,
                Step::Endpass => endpass = true,
                step => self.modify(step),
            }
            if truth != Truth::Yes {
                break;
            }
        }
        match (rule.verb, truth) {
            (Verb::Warn, _) | (Verb::Require, Truth::Yes) => None,
            (_, Truth::Later) => Some(Verdict::Defer(self.text(None, TRY_LATER))),
            (Verb::Accept, Truth::Yes) => {
                if self.stage == Stage::Connect && self.depth == 0 {
                    self.decision.banner = rule.message.as_ref().map(|text| text.fill_reply(self));
                }
                Some(Verdict::Accept)
            }
            (Verb::Discard, Truth::Yes) => Some(Verdict::Discard),
            (Verb::Accept | Verb::Discard, Truth::No) if endpass => {
                Some(Verdict::Deny(self.text(Some(rule), PROHIBITED)))
            }
            (Verb::Deny, Truth::Yes) | (Verb::Require, Truth::No) => {
                Some(Verdict::Deny(self.text(Some(rule), PROHIBITED)))
            }
            (Verb::Drop, Truth::Yes) => Some(Verdict::Drop(self.text(Some(rule), PROHIBITED))),
            (Verb::Defer, Truth::Yes) => Some(Verdict::Defer(self.text(Some(rule), TRY_LATER))),
            (_, Truth::No) => None,
        }
    }

    /// What the client hears: the rule's message, else the reason, else `default`.
    fn text(&self, rule: Option<&Rule>, default: &str) -> String {
        match (rule.and_then(|rule| rule.message.as_ref()), &self.reason) {
            (Some(message), _) => message.fill_reply(self),
            (None, Some(reason)) => bounded(reason),
            (None, None) => default.to_owned(),
        }
    }

    fn modify(&mut self, step: &Step) {
        self.note_effect(step);
        match step {
            Step::Test(_) | Step::Endpass => {}
            Step::Set(name, value) => {
                let value = value.fill_reply(self);
                self.connection.variables.insert(name.to_string(), value);
            }
            Step::Log(text) => {
                let text = text.fill_reply(self);
                if self.decision.log.len() < limits::POLICY_LOG_LINES_MAX {
                    self.decision.log.push(text);
                }
            }
            Step::Delay(delay) => {
                let text = delay.fill_reply(self);
                let delay = parse_duration(&text).unwrap_or_default();
                let sum = self.decision.delay.saturating_add(delay);
                self.decision.delay = sum.min(limits::POLICY_DELAY_MAX);
            }
            Step::Control(Control::EnforceSyncOff) => self.decision.enforce_sync_off = true,
            Step::Control(Control::PipeliningOff) => self.decision.pipelining_off = true,
            Step::Control(Control::Submission { sender_retain, domain }) => {
                let qualify = || self.configuration.options().qualify_domain.clone();
                let domain = domain.as_ref().map(|domain| {
                    domain.fill(self).filter(|domain| !domain.is_empty()).unwrap_or_else(qualify)
                });
                let sender_retain = *sender_retain;
                self.decision.submission = Some(Submission { sender_retain, domain });
            }
        }
    }

    fn test<'b>(&'b mut self, test: &'b Test) -> BoxFuture<'b, Truth> {
        async move {
            let noted = self.begin_note();
            let truth = self.condition(&test.condition).await;
            let truth = if test.negated { truth.opposite() } else { truth };
            self.note_condition(noted, test, truth);
            truth
        }
        .boxed()
    }

    async fn condition(&mut self, condition: &Condition) -> Truth {
        match condition {
            Condition::Any(tests) => self.group(tests, Truth::Yes).await,
            Condition::All(tests) => self.group(tests, Truth::No).await,
            Condition::Acl(index) => self.acl(*index).await,
            Condition::Verify(verify, callout) => self.verify(*verify, callout.as_ref()).await,
            Condition::DnsLists(lists) => self.dns_lists(lists).await,
            Condition::QueueOver(n) => {
                let facts = &self.around.facts;
                let waiting =
                    self.connection.queue_length.get_or_insert_with(|| facts.queue_length());
                Truth::of(*waiting > *n)
            }
            Condition::RateOver(rate, key) => {
                // A key that is not known is not counted.
                let over = key.fill(self).is_some_and(|key| self.around.rates.is_over(*rate, &key));
                if over {
                    let seconds = rate.time.as_secs();
                    self.reason = Some(format!("More than {} in {seconds} s", rate.times));
                }
                Truth::of(over)
            }
            plain => Truth::of(self.plain(plain)),
        }
    }

    /// Tests up to the first whose answer is `decisive`.
    async fn group(&mut self, tests: &[Test], decisive: Truth) -> Truth {
        for test in tests {
            let truth = self.test(test).await;
            if truth == decisive || truth == Truth::Later {
                return truth;
            }
        }
        decisive.opposite()
    }

    /// Conditions that need no question to anybody.
    fn plain(&self, condition: &Condition) -> bool {
        let connection = &*self.connection;
        let helo = connection.helo.as_deref().unwrap_or("");
        match condition {
            Condition::Hosts(list) => {
                let name = connection.client_name.as_deref();
                let server = Some(connection.server.ip());
                self.holds(list, Subject::Host(connection.client.ip(), name, server))
            }
            Condition::Senders(list) => {
                self.holds(list, Subject::Address(&self.transaction.sender))
            }
            Condition::SenderDomains(list) => {
                self.holds(list, Subject::Domain(parts(&self.transaction.sender).1))
            }
            Condition::Domains(list) => self
                .recipient()
                .is_some_and(|(_, domain)| self.holds(list, Subject::Domain(domain))),
            Condition::LocalParts(list) => self
                .recipient()
                .is_some_and(|(local, _)| self.holds(list, Subject::LocalPart(local))),
            Condition::Service(services) => services.contains(&connection.service),
            Condition::Authenticated(list) => connection
                .authenticated
                .as_deref()
                .is_some_and(|user| self.holds(list, Subject::LocalPart(user))),
            Condition::Encrypted => connection.tls.is_some(),
            Condition::Certificate(list) => connection.verified_certificate().is_some_and(|own| {
                own.names.iter().any(|name| self.holds(list, Subject::Domain(name)))
            }),
            Condition::LoadOver(n) => self.around.facts.load().is_some_and(|load| load > *n),
            Condition::SizeOver(n) => self.transaction.size_declared.is_some_and(|size| size > *n),
            Condition::RecipientsOver(n) => self.transaction.recipients_accepted as u64 > *n,
            Condition::Lookup(template) => template.fill(self).is_some_and(|text| found(&text)),
            Condition::HasLines(name) => name.fill(self).is_some_and(|name| {
                self.configuration.tables.lines(&name).is_some_and(|lines| !lines.is_empty())
            }),
            Condition::Variable { name, value } => {
                let known = connection.variables.get(&**name).map_or("", String::as_str);
                match value {
                    Some(value) => value.fill_reply(self) == known,
                    None => !known.is_empty(),
                }
            }
            Condition::ClientParameter(name) => self.parameter_of(connection.client.ip(), name),
            Condition::ServerParameter(name) => self.parameter_of(connection.server.ip(), name),
            Condition::HeloIsAddress => helo.parse::<IpAddr>().is_ok(),
            Condition::HeloEquals(template) => template
                .fill(self)
                .is_some_and(|text| !text.is_empty() && text.eq_ignore_ascii_case(helo)),
            Condition::HeloMatches(regex) => regex.is_match(helo),
            Condition::HeloDomains(list) => self.holds(list, Subject::Domain(helo)),
            // Those that `condition` handles itself.
            Condition::Any(_)
            | Condition::All(_)
            | Condition::Acl(_)
            | Condition::Verify(..)
            | Condition::DnsLists(_)
            | Condition::QueueOver(_)
            | Condition::RateOver(..) => false,
        }
    }

    fn holds(&self, list: &List, subject: Subject<'_>) -> bool {
        list.holds(subject, &self.world())
    }

    fn world(&self) -> World<'_> {
        self.configuration.world(self)
    }

    fn parameter_of(&self, address: IpAddr, name: &str) -> bool {
        self.configuration.personalities.parameter(address, name).is_some_and(says_yes)
    }

    fn recipient(&self) -> Option<(&str, &str)> {
        let recipient = self.transaction.recipient.as_deref()?;
        match recipient.rsplit_once('@') {
            Some(parts) => Some(parts),
            // Only postmaster has no domain (RFC 5321 §4.1.1.3).
            None => Some((recipient, &self.configuration.options().qualify_domain)),
        }
    }

    async fn acl(&mut self, index: usize) -> Truth {
        let Some(acl) = self.configuration.compiled.acls.get(index) else { return Truth::Later };
        let Body::Rules(rules) = &acl.body else { return Truth::Later };
        if self.depth >= limits::POLICY_DEPTH_MAX {
            self.decision.log.push(format!("acl {:?}: calls are nested too deeply", acl.name));
            return Truth::Later;
        }
        self.depth += 1;
        let verdict = self.rules(rules).await;
        self.depth -= 1;
        match verdict {
            Verdict::Accept | Verdict::Discard => {
                self.reason = None;
                Truth::Yes
            }
            Verdict::Deny(text) | Verdict::Drop(text) => {
                self.reason = Some(text);
                Truth::No
            }
            Verdict::Defer(text) => {
                self.reason = Some(text);
                Truth::Later
            }
        }
    }
}

impl Facts for Evaluation<'_> {
    fn field(&self, field: Field) -> Cow<'_, str> {
        let connection = &*self.connection;
        let owned = |address: IpAddr| Cow::Owned(address.to_canonical().to_string());
        let sender = parts(&self.transaction.sender);
        let recipient = self.recipient().unwrap_or(("", ""));
        match field {
            Field::Domain => Cow::Borrowed(recipient.1),
            Field::LocalPart => Cow::Borrowed(recipient.0),
            Field::Address => self.transaction.recipient.as_deref().unwrap_or("").into(),
            Field::Prefix | Field::Suffix => Cow::Borrowed(""),
            Field::QualifyDomain => (&*self.configuration.options().qualify_domain).into(),
            Field::Sender => Cow::Borrowed(&self.transaction.sender),
            Field::SenderDomain => Cow::Borrowed(sender.1),
            Field::SenderLocalPart => Cow::Borrowed(sender.0),
            Field::Helo => connection.helo.as_deref().unwrap_or("").into(),
            Field::Client => owned(connection.client.ip()),
            Field::ClientName => connection.client_name.as_deref().unwrap_or("").into(),
            Field::Server => owned(connection.server.ip()),
            Field::User => connection.authenticated.as_deref().unwrap_or("").into(),
            Field::TlsPeer => {
                connection.verified_certificate().map_or("", |own| &own.subject).into()
            }
            Field::Name => (&*self.personality.name).into(),
            Field::Reason => self.reason.as_deref().unwrap_or("").into(),
            Field::DnsList => self.listed.as_ref().map_or("", |(zone, _)| zone).into(),
            Field::DnsText => self.listed.as_ref().map_or("", |(_, text)| text).into(),
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.connection.variables.get(name).map(String::as_str)
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.configuration.personalities.parameter(self.connection.server.ip(), name)
    }

    fn tables(&self) -> &Tables {
        &self.configuration.tables
    }
}

/// Local part and domain; no domain if there is none.
fn parts(address: &str) -> (&str, &str) {
    address.rsplit_once('@').unwrap_or((address, ""))
}

/// What a look-up found counts, also if it has no value, unless it says no.
pub(crate) fn found(text: &str) -> bool {
    !matches!(text.trim(), "0" | "no" | "false")
}

pub(super) fn says_yes(text: &str) -> bool {
    found(text) && !text.trim().is_empty()
}
