//! One router and one address.

use std::borrow::Cow;

use super::{
    Destination, Fate, Host, Program, Protocol, Tls,
    address::{Address, View},
    hosts::{Found, Manner, Search},
    notes::Lookups,
    redirect::{self, Item},
    router::{Action, Command, NotFound, OwnHost, Precondition, Router, To},
    walk::Walk,
};
use crate::{
    limits,
    policy::{
        self, AddressPlace,
        list::{List, Subject},
    },
};

/// Why an address that no router takes fails.
pub(super) const UNROUTEABLE: &str = "Unrouteable address";

/// What one router made of an address.
pub(super) enum Outcome {
    Take(Product),
    Fail(String),
    Defer(String),
    /// The next router is asked, unless there are to be no more.
    Decline {
        why: Cow<'static, str>,
        /// The sender is to hear why if nobody takes the address.
        said: bool,
    },
    /// The next router is asked, or the one for this case.
    Pass(String),
}

/// What became of an address.
pub(super) enum Product {
    Children(Vec<Address>),
    Final(Fate),
}

fn declines(why: &'static str) -> Outcome {
    Outcome::Decline { why: Cow::Borrowed(why), said: false }
}

impl Walk<'_> {
    /// The address as a router sees it, or why the router is not asked.
    pub(super) fn view<'b>(
        &self,
        index: usize,
        router: &'b Router,
        whole: View<'b>,
    ) -> Result<View<'b>, &'b str> {
        if whole.address.skip.contains(&index) {
            return Err(if router.repeat_use {
                "it took this address before"
            } else {
                "it took this address, or what that was made from, before"
            });
        }
        let view = whole.without(router.affix.as_ref());
        let view = view.ok_or("the local part lacks its prefix or suffix")?;
        if router.verify_only && !self.verify {
            return Err("only for verification");
        }
        if router.no_verify && self.verify {
            return Err("not for verification");
        }
        let failed = router.conditions.iter().find(|(test, _)| !self.holds(test, &view));
        failed.map_or(Ok(view), |(_, text)| Err(text))
    }

    fn holds(&self, condition: &Precondition, view: &View<'_>) -> bool {
        let tables = &self.configuration.tables;
        let world = self.configuration.world(view);
        match condition {
            Precondition::Domains(list) => {
                list.holds(Subject::Domain(&view.address.domain), &world)
            }
            Precondition::LocalParts(list) => list.holds(Subject::LocalPart(view.local), &world),
            Precondition::Senders(list) => list.holds(Subject::Address(view.about.sender), &world),
            Precondition::Personality { negated, names } => {
                names.iter().any(|name| name == view.about.personality) != *negated
            }
            Precondition::Fraction(of) => {
                view.about.id.is_some_and(|id| super::walk::sample(id, *of))
            }
            Precondition::Lookup { negated, text } => {
                text.fill(view).is_some_and(|text| policy::found(&text)) != *negated
            }
            Precondition::HasTable { negated, name } => {
                name.fill(view).is_some_and(|name| tables.has(&name)) != *negated
            }
            Precondition::HasLines { negated, name } => {
                name.fill(view).is_some_and(|name| tables.len(&name) > 0) != *negated
            }
            Precondition::FromParent(parent) => {
                let (parent, last) = (parent.fill(view), view.address.parent());
                matches!((parent, last), (Some(a), Some(b)) if a.eq_ignore_ascii_case(b))
            }
        }
    }

    /// Asks a router that applies; `taken`: the routers that have taken the address, it included.
    pub(super) async fn ask(
        &self,
        index: usize,
        router: &Router,
        view: &View<'_>,
        taken: &[usize],
    ) -> Outcome {
        match &router.action {
            Action::Fail { message } => {
                Outcome::Fail(message.fill(view).unwrap_or_else(|| UNROUTEABLE.to_owned()))
            }
            Action::Redirect { to, .. } => match self.redirection(to, view) {
                Some(data) => self.redirect(router, view, taken, &data),
                None => declines("a table has no such entry"),
            },
            Action::Manual { route, transport, randomize, not_found, ignore_hosts, .. } => {
                let Some(route) = route.fill(view).filter(|route| !route.trim().is_empty()) else {
                    return declines("a table has no such entry");
                };
                let manner = Manner { randomize: *randomize, not_found: *not_found };
                let search = self.search(view, *transport, ignore_hosts);
                let found = self.shared(index, router, &route, search.manual(&route, manner)).await;
                self.found(router, Some(*transport), view, taken, found)
            }
            Action::Dns(options) => {
                let search = self.search(view, options.transport, &options.ignore_hosts);
                let domain = &view.address.domain;
                let found =
                    self.shared(index, router, domain, search.by_dns(domain, options)).await;
                self.found(router, Some(options.transport), view, taken, found)
            }
            // Verification only: there is nothing to deliver to.
            Action::Accept { transport: None } => {
                self.found(router, None, view, taken, Found::Hosts(Vec::new()))
            }
            Action::Accept { transport: Some(transport) } => {
                let (none, index) = (List::default(), *transport);
                let transport = &self.configuration.compiled.routing.transports[index];
                let manner = Manner { randomize: true, not_found: NotFound::Defer };
                let found = match &transport.hosts {
                    Some(hosts) => self.search(view, index, &none).manual(hosts, manner).await,
                    None => Found::Hosts(Vec::new()),
                };
                self.found(router, Some(index), view, taken, found)
            }
        }
    }

    fn search<'b>(&'b self, view: &View<'b>, transport: usize, ignored: &'b List) -> Search<'b> {
        Search {
            configuration: self.configuration,
            lookups: Lookups { dns: self.dns, notes: view.notes },
            transport: &self.configuration.compiled.routing.transports[transport],
            ignore_hosts: ignored,
        }
    }

    /// The texts that hold the new addresses.
    fn redirection(&self, to: &To, view: &View<'_>) -> Option<Vec<Cow<'_, str>>> {
        match to {
            To::Text(template) => template.fill(view).map(|text| vec![Cow::Owned(text)]),
            To::Lines(name) => {
                let name = name.fill(view)?;
                let lines = self.configuration.tables.lines(&name);
                if let Some(notes) = view.notes {
                    let found = lines
                        .map_or_else(|| "no such table".into(), |l| format!("{} lines", l.len()));
                    notes.add(format!("{name}: {found}"));
                }
                lines.map(|lines| lines.iter().map(|line| Cow::Borrowed(line.as_str())).collect())
            }
        }
    }

    fn redirect(
        &self,
        router: &Router,
        view: &View<'_>,
        taken: &[usize],
        data: &[Cow<'_, str>],
    ) -> Outcome {
        let Action::Redirect { allow_fail, check_ancestor, .. } = router.action else {
            return declines("it is no redirection");
        };
        let (name, routers) = (&router.name, &self.configuration.compiled.routing.routers);
        let from = view.address.ancestor(taken);
        let mut children = Vec::new();
        for item in data.iter().flat_map(|text| redirect::items(text)) {
            let text = match item {
                Item::Address(text) => text,
                Item::Fail(text) if allow_fail => {
                    return Outcome::Fail(if text.is_empty() { UNROUTEABLE } else { text }.into());
                }
                Item::Fail(_) | Item::Forbidden(_) => {
                    return Outcome::Defer(format!("bad item in the data of router {name}"));
                }
            };
            let Some(child) = Address::new(text, &self.configuration.options().qualify_domain)
            else {
                return Outcome::Defer(format!("{text:?} in the data of router {name}"));
            };
            let child = self.rewritten(child);
            let child = if check_ancestor && view.address.has_ancestor(&child) {
                view.address.again(None)
            } else {
                child
            };
            children.push(child.child_of(&from, routers));
            if children.len() > limits::ROUTE_CHILDREN_MAX {
                let max = limits::ROUTE_CHILDREN_MAX;
                return Outcome::Defer(format!("more than {max} addresses in router {name}"));
            }
        }
        if children.is_empty() {
            return declines("the entry is empty");
        }
        Outcome::Take(if self.expands && router.expands_once() {
            Product::Final(Fate::Expand(children.iter().map(Address::text).collect()))
        } else {
            Product::Children(children)
        })
    }

    /// What a redirection makes is rewritten as a recipient is.
    fn rewritten(&self, address: Address) -> Address {
        let rewriting =
            self.configuration.rewrite(&address.text(), AddressPlace::EnvelopeRecipient);
        let qualify = &self.configuration.options().qualify_domain;
        rewriting.and_then(|rewriting| Address::new(&rewriting.new, qualify)).unwrap_or(address)
    }

    /// What follows from a search for hosts.
    fn found(
        &self,
        router: &Router,
        transport: Option<usize>,
        view: &View<'_>,
        taken: &[usize],
        found: Found,
    ) -> Outcome {
        match found {
            Found::Hosts(hosts) => match self.destination(router, transport, view, hosts) {
                Ok(to) => Outcome::Take(Product::Final(Fate::Deliver(Box::new(to)))),
                Err(why) => Outcome::Defer(why),
            },
            Found::Widened(domain) => {
                let routers = &self.configuration.compiled.routing.routers;
                let from = view.address.ancestor(taken);
                let child = view.address.again(Some(&domain)).child_of(&from, routers);
                Outcome::Take(Product::Children(vec![child]))
            }
            Found::Own(why) => match router.own_host {
                OwnHost::Defer => Outcome::Defer(why),
                OwnHost::Fail => Outcome::Fail(why),
                OwnHost::Pass => Outcome::Pass(why),
            },
            Found::None(why) => Outcome::Decline { why: why.into(), said: false },
            Found::Nowhere(why) => Outcome::Decline { why: why.into(), said: true },
            Found::Fail(why) => Outcome::Fail(why),
            Found::Defer(why) => Outcome::Defer(why),
            Found::Later(why) if router.pass_on_timeout => Outcome::Pass(why),
            Found::Later(why) => Outcome::Defer(why),
            Found::Pass(why) => Outcome::Pass(why),
        }
    }

    /// An error says what the transport's command lacks.
    fn destination(
        &self,
        router: &Router,
        transport: Option<usize>,
        view: &View<'_>,
        hosts: Vec<Host>,
    ) -> Result<Destination, String> {
        let transport =
            transport.and_then(|index| self.configuration.compiled.routing.transports.get(index));
        let program = match transport.and_then(|transport| transport.command.as_ref()) {
            Some(command) => Some(program(command, view).ok_or_else(|| {
                format!("a table has no entry for the command of router {}", router.name)
            })?),
            None => None,
        };
        Ok(Destination {
            router: router.name.clone(),
            transport: transport.map_or_else(String::new, |transport| transport.name.clone()),
            protocol: transport.map_or(Protocol::Smtp, |transport| transport.protocol),
            hosts,
            strip_nul: transport.is_some_and(|transport| transport.strip_nul),
            tls: transport.map_or_else(Tls::default, |transport| transport.tls),
            client: transport.map(|transport| transport.client.clone()).unwrap_or_default(),
            program,
        })
    }
}

/// The command for this address, with what its environment has of the address (Exim's names). `None` if a table has no
/// entry for it.
fn program(command: &Command, view: &View<'_>) -> Option<Program> {
    let address = view.address;
    let words = command.words.iter().map(|word| word.fill(view)).collect::<Option<Vec<_>>>()?;
    Some(Program {
        words,
        user: command.user.clone(),
        timeout: command.timeout,
        max_output: command.max_output,
        return_fail_output: command.return_fail_output,
        temp_errors: command.temp_errors.clone(),
        prefix: command.prefix.clone(),
        suffix: command.suffix.clone(),
        environment: vec![
            ("LOCAL_PART", view.local.to_owned()),
            ("LOCAL_PART_PREFIX", view.prefix.to_owned()),
            ("LOCAL_PART_SUFFIX", view.suffix.to_owned()),
            ("DOMAIN", address.domain.clone()),
            ("RECIPIENT", address.text()),
            ("QUALIFY_DOMAIN", view.configuration.options().qualify_domain.clone()),
        ],
    })
}
