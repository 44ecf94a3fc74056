//! Notes of what was asked, for an [`Explanation`](super::super::Explanation). Nothing here changes a decision.

use std::net::IpAddr;

use super::{
    super::{
        Service, Verdict,
        condition::{Condition, Verify},
        explanation::{AskedCondition, Notes, TriedRule},
        list::{List, Subject},
        rule::{Control, Rule, Step, Test},
        template::bounded,
    },
    Evaluation, Truth, parts,
};

impl Evaluation<'_> {
    /// Begins the notes of what is inside the next rule or condition; gives those of what is around it.
    pub(super) fn begin_note(&mut self) -> Option<Notes> {
        self.notes.as_mut().map(std::mem::take)
    }

    pub(super) fn note_rule(
        &mut self,
        around: Option<Notes>,
        rule: &Rule,
        verdict: Option<&Verdict>,
    ) {
        let Some(mut around) = around else { return };
        let inner = self.notes.take().unwrap_or_default();
        around.rules.push(TriedRule {
            place: rule.place.clone(),
            conditions: inner.conditions,
            effects: inner.effects,
            verdict: verdict.map(Verdict::name),
        });
        self.notes = Some(around);
    }

    pub(super) fn note_condition(&mut self, around: Option<Notes>, test: &Test, truth: Truth) {
        let Some(mut around) = around else { return };
        let inner = self.notes.take().unwrap_or_default();
        let answer = match truth {
            Truth::Yes => "yes",
            Truth::No => "no",
            Truth::Later => "later",
        };
        around.conditions.push(AskedCondition {
            text: test.text.clone(),
            answer,
            why: bounded(&self.why(&test.condition)),
            conditions: inner.conditions,
            rules: inner.rules,
        });
        self.notes = Some(around);
    }

    pub(super) fn note_effect(&mut self, step: &Step) {
        if self.notes.is_none() {
            return;
        }
        let effect = match step {
            Step::Test(_) | Step::Endpass => return,
            Step::Set(name, value) => format!("set {name} to {:?}", value.fill_reply(self)),
            Step::Log(text) => format!("log {:?}", text.fill_reply(self)),
            Step::Delay(delay) => format!("delay {}", delay.fill_reply(self)),
            Step::Control(Control::EnforceSyncOff) => "control enforce-sync off".to_owned(),
            Step::Control(Control::PipeliningOff) => "control pipelining off".to_owned(),
            Step::Control(Control::Submission { .. }) => "control submission".to_owned(),
        };
        if let Some(notes) = &mut self.notes {
            notes.effects.push(effect);
        }
    }

    /// On what the answer to a condition rests.
    fn why(&self, condition: &Condition) -> String {
        let connection = &*self.connection;
        let client = connection.client.ip().to_canonical();
        let helo = connection.helo.as_deref().unwrap_or("");
        let reason = || self.reason.clone().unwrap_or_default().replace('\n', " | ");
        match condition {
            Condition::Hosts(list) => {
                let name = connection.client_name.as_deref();
                let server = Some(connection.server.ip());
                let shown = format!("{client} ({})", name.unwrap_or("no name"));
                self.place_in(list, Subject::Host(connection.client.ip(), name, server), &shown)
            }
            Condition::Senders(list) => {
                let sender = &self.transaction.sender;
                self.place_in(list, Subject::Address(sender), &format!("<{sender}>"))
            }
            Condition::SenderDomains(list) => {
                let domain = parts(&self.transaction.sender).1;
                self.place_in(list, Subject::Domain(domain), domain)
            }
            Condition::Domains(list) => {
                let domain = self.recipient().unwrap_or_default().1;
                self.place_in(list, Subject::Domain(domain), domain)
            }
            Condition::LocalParts(list) => {
                let local = self.recipient().unwrap_or_default().0;
                self.place_in(list, Subject::LocalPart(local), local)
            }
            Condition::HeloDomains(list) => self.place_in(list, Subject::Domain(helo), helo),
            Condition::Service(_) => match connection.service {
                Service::Smtp => "smtp".to_owned(),
                Service::Submission => "submission".to_owned(),
                Service::Submissions => "submissions".to_owned(),
            },
            Condition::Authenticated(_) => match &connection.authenticated {
                Some(user) => format!("the user is {user}"),
                None => "nobody authenticated".to_owned(),
            },
            Condition::Encrypted => connection.tls.clone().unwrap_or_else(|| "in clear".to_owned()),
            Condition::Certificate(list) => match connection.verified_certificate() {
                Some(own) => {
                    let holder = own.names.iter().find_map(|name| {
                        let decider = list.decider(Subject::Domain(name), &self.world())?;
                        Some(format!("{name}: {decider}"))
                    });
                    holder.unwrap_or_else(|| format!("{} match no item", own.names.join(" ")))
                }
                None => self.certificate_shown(),
            },
            Condition::Verify(Verify::Certificate, _) => self.certificate_shown(),
            Condition::QueueOver(_) => {
                format!("{} waited when it was first asked", connection.queue_length.unwrap_or(0))
            }
            Condition::LoadOver(_) => match self.around.facts.load() {
                Some(load) => format!("the load is {}.{:02}", load / 100, load % 100),
                None => "the load is not known".to_owned(),
            },
            Condition::SizeOver(_) => match self.transaction.size_declared {
                Some(size) => format!("{size} bytes are announced"),
                None => "no size is announced".to_owned(),
            },
            Condition::RecipientsOver(_) => {
                format!("{} were accepted", self.transaction.recipients_accepted)
            }
            Condition::Lookup(template) => match template.fill(self) {
                Some(text) => format!("found {text:?}"),
                None => "a table has no such entry".to_owned(),
            },
            Condition::HasLines(name) => {
                let name = name.fill(self).unwrap_or_default();
                let lines = self.configuration.tables.lines(&name).map_or(0, <[String]>::len);
                format!("{name} has {lines} lines")
            }
            Condition::Variable { name, .. } => match connection.variables.get(&**name) {
                Some(value) => format!("{name} is {value:?}"),
                None => format!("{name} is not set"),
            },
            Condition::ClientParameter(name) => self.parameter_shown(client, name),
            Condition::ServerParameter(name) => {
                self.parameter_shown(connection.server.ip().to_canonical(), name)
            }
            Condition::HeloIsAddress | Condition::HeloMatches(_) => format!("the name is {helo:?}"),
            Condition::HeloEquals(template) => {
                format!("the name is {helo:?}, not {:?}", template.fill(self).unwrap_or_default())
                    .replace(&format!(", not {helo:?}"), "")
            }
            Condition::Verify(Verify::Helo, _) => format!("the name is {helo:?}"),
            Condition::Verify(Verify::ReverseHost, _) => {
                connection.client_name.clone().unwrap_or_else(|| format!("{client} has no name"))
            }
            Condition::DnsLists(_) => match &self.listed {
                Some((zone, text)) if self.reason.is_some() => format!("listed at {zone}: {text}"),
                _ => "listed nowhere".to_owned(),
            },
            Condition::Verify(..) | Condition::Acl(_) | Condition::RateOver(..) => reason(),
            Condition::Any(_) | Condition::All(_) => String::new(),
        }
    }

    /// Whether and why a list holds something.
    fn place_in(&self, list: &List, subject: Subject<'_>, shown: &str) -> String {
        match list.decider(subject, &self.world()) {
            Some(item) => format!("{shown}: {item}"),
            None => format!("{shown} matches no item"),
        }
    }

    fn certificate_shown(&self) -> String {
        let connection = &*self.connection;
        let (client, name) = (connection.client.ip(), connection.client_name.as_deref());
        match &connection.certificate {
            Some(own) => match &own.refused {
                Some(why) => format!("{}: {why}", own.subject),
                None => own.subject.clone(),
            },
            None if connection.tls.is_none() => "in clear".to_owned(),
            None if self.configuration.asks_certificate(client, name) => {
                "none was shown".to_owned()
            }
            None => "not asked for: the client is not in tls_try_verify_hosts".to_owned(),
        }
    }

    fn parameter_shown(&self, address: IpAddr, name: &str) -> String {
        match self.configuration.personalities.parameter(address, name) {
            Some(value) => format!("{address} has {name}={value}"),
            None => format!("{address} has no {name}"),
        }
    }
}
