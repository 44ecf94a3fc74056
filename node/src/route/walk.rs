//! The walk of an address through the routers.

use std::{borrow::Cow, collections::HashSet, fmt};

use futures::{StreamExt, stream};

use super::{
    Destination, Fate, Host, Stop, Target, TriedRouter, Verified,
    address::{Address, View},
    hosts::{self, Found},
    redirect::{self, Item},
    router::{Action, NotFound, Precondition, Router, To},
};
use crate::{
    dns::Dns,
    limits,
    policy::{self, AddressPlace, Configuration, list::Subject},
};

/// Why an address that no router takes fails.
const UNROUTEABLE: &str = "Unrouteable address";

/// What the routers made of one address.
enum Step {
    Children(Vec<Address>),
    Final(Fate),
}

/// What one router made of an address.
enum Outcome {
    Step(Step),
    /// The next router is asked; why.
    Decline(Cow<'static, str>),
}

pub(super) async fn route(
    configuration: &Configuration,
    dns: &dyn Dns,
    recipient: &str,
) -> Vec<Target> {
    Walk { configuration, dns, verify: false }.whole(recipient, None).await
}

pub(super) async fn explain(
    configuration: &Configuration,
    dns: &dyn Dns,
    recipient: &str,
    verify: bool,
) -> (Vec<Target>, Vec<Stop>) {
    let mut stops = Vec::new();
    // A message that arrives is rewritten before it is routed.
    let rewritten = configuration.rewrite(recipient, AddressPlace::EnvelopeRecipient);
    if let Some(rewriting) = &rewritten {
        let tried = TriedRouter {
            name: "rewrite".to_owned(),
            place: configuration.place_of_rewrite(rewriting.rule),
            outcome: format!("rewrites it to {}", rewriting.new),
            decides: true,
        };
        stops.push(Stop { address: recipient.to_owned(), routers: vec![tried] });
    }
    let recipient = rewritten.as_ref().map_or(recipient, |rewriting| &rewriting.new);
    let targets = Walk { configuration, dns, verify }.whole(recipient, Some(&mut stops)).await;
    (targets, stops)
}

impl Walk<'_> {
    /// Everything that a recipient leads to; notes the way if somebody wants to know it.
    async fn whole(&self, recipient: &str, mut stops: Option<&mut Vec<Stop>>) -> Vec<Target> {
        let Some(address) = Address::new(recipient, &self.configuration.options().qualify_domain)
        else {
            let fate = Fate::Fail(format!("{recipient:?} is no address"));
            return vec![target(recipient.to_owned(), None, fate)];
        };
        let explains = stops.is_some();
        let whole = |why: String| vec![target(recipient.to_owned(), None, Fate::Defer(why))];
        let mut targets: Vec<Target> = Vec::new();
        let mut seen: HashSet<(String, Vec<usize>)> = HashSet::new();
        let mut level = vec![address];
        for _ in 0..=limits::ROUTE_DEPTH_MAX {
            if level.is_empty() {
                return targets;
            }
            let steps: Vec<_> = stream::iter(level)
                .map(|address| async move {
                    let mut tried = explains.then(Vec::new);
                    let step = self.step(&address, tried.as_mut()).await;
                    (address, step, tried)
                })
                .buffered(limits::ROUTE_CONCURRENT)
                .collect()
                .await;
            level = Vec::new();
            for (address, step, tried) in steps {
                if let (Some(stops), Some(routers)) = (stops.as_mut(), tried) {
                    stops.push(Stop { address: address.text(), routers });
                }
                match step {
                    Step::Final(fate) => targets.push(Target {
                        address: address.text(),
                        parents: address.parents,
                        errors_to: address.errors_to,
                        fate,
                    }),
                    Step::Children(children) => {
                        let new = |child: &Address| seen.insert((child.text(), child.skip.clone()));
                        level.extend(children.into_iter().filter(new));
                    }
                }
                if level.len() + targets.len() > limits::ROUTE_CHILDREN_MAX {
                    let max = limits::ROUTE_CHILDREN_MAX;
                    return whole(format!("leads to more than {max} addresses; shorten its lists"));
                }
            }
        }
        whole(format!("redirected more than {} times: probably a loop", limits::ROUTE_DEPTH_MAX))
    }
}

pub(super) async fn verify(
    configuration: &Configuration,
    dns: &dyn Dns,
    recipient: &str,
) -> Verified {
    let walk = Walk { configuration, dns, verify: true };
    let Some(mut address) = Address::new(recipient, &configuration.options().qualify_domain) else {
        return Verified::No(format!("{recipient:?} is no address"));
    };
    for _ in 0..=limits::ROUTE_DEPTH_MAX {
        match walk.step(&address, None).await {
            Step::Final(Fate::Deliver(to)) => return Verified::Yes(Some((address.text(), to))),
            Step::Final(Fate::Fail(why)) => return Verified::No(why),
            Step::Final(Fate::Defer(why)) => return Verified::Later(why),
            Step::Children(mut children) => match (children.pop(), children.is_empty()) {
                (Some(only), true) => address = only,
                // Several: some may be bad, but that is not the business of this client (the paper, section 4).
                _ => return Verified::Yes(None),
            },
        }
    }
    Verified::Later("redirected too often: probably a loop".to_owned())
}

fn target(address: String, errors_to: Option<String>, fate: Fate) -> Target {
    Target { address, parents: Vec::new(), errors_to, fate }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Children(children) => {
                let children: Vec<String> = children.iter().map(Address::text).collect();
                write!(f, "redirects to {}", children.join(", "))
            }
            Self::Final(Fate::Deliver(to)) if to.transport.is_empty() => f.write_str("takes it"),
            Self::Final(Fate::Deliver(to)) => write!(f, "takes it for transport {}", to.transport),
            Self::Final(Fate::Fail(why)) => write!(f, "fails it: {why}"),
            Self::Final(Fate::Defer(why)) => write!(f, "defers it: {why}"),
        }
    }
}

struct Walk<'a> {
    configuration: &'a Configuration,
    dns: &'a dyn Dns,
    verify: bool,
}

impl Walk<'_> {
    /// Asks the routers in their order.
    async fn step(&self, address: &Address, mut tried: Option<&mut Vec<TriedRouter>>) -> Step {
        let mut reason = UNROUTEABLE.to_owned();
        let mut note = |router: &Router, decides: bool, outcome: &dyn Fn() -> String| {
            if let Some(tried) = &mut tried {
                let (name, place) = (router.name.clone(), router.place.clone());
                tried.push(TriedRouter { name, place, outcome: outcome(), decides });
            }
        };
        for (index, router) in self.configuration.compiled.routing.routers.iter().enumerate() {
            let view = match self.view(index, router, address) {
                Ok(view) => view,
                Err(why) => {
                    note(router, false, &|| format!("not asked: {why}"));
                    continue;
                }
            };
            match self.ask(index, router, &view).await {
                Outcome::Step(step) => {
                    note(router, true, &|| step.to_string());
                    return step;
                }
                Outcome::Decline(why) => {
                    note(router, router.no_more, &|| format!("declines: {why}"));
                    let text = router.cannot_route.as_ref().and_then(|text| text.fill(&view));
                    if let Some(text) = text {
                        reason = text;
                    }
                    if router.no_more {
                        break;
                    }
                }
            }
        }
        Step::Final(Fate::Fail(reason))
    }

    /// The address as a router sees it, or why the router is not asked.
    fn view<'b>(
        &'b self,
        index: usize,
        router: &'b Router,
        address: &'b Address,
    ) -> Result<View<'b>, &'b str> {
        if router.verify_only && !self.verify {
            return Err("only for verification");
        }
        if router.no_verify && self.verify {
            return Err("not for verification");
        }
        if address.skip.contains(&index) {
            return Err("it made this address of the same one before");
        }
        let view = View::new(self.configuration, address, router.affix.as_ref());
        let view = view.ok_or("the local part lacks its prefix or suffix")?;
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
            Precondition::LocalParts(list) => list.holds(Subject::LocalPart(&view.local), &world),
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
                let parent = parent.fill(view);
                let last = view.address.parents.last();
                matches!((parent, last), (Some(a), Some(b)) if a.eq_ignore_ascii_case(b))
            }
        }
    }

    async fn ask(&self, index: usize, router: &Router, view: &View<'_>) -> Outcome {
        let final_ = |fate| Outcome::Step(Step::Final(fate));
        match &router.action {
            Action::Fail { message } => {
                final_(Fate::Fail(message.fill(view).unwrap_or_else(|| UNROUTEABLE.to_owned())))
            }
            Action::Redirect { to, allow_fail, check_ancestor } => {
                let data = self.redirection(to, view);
                match data {
                    Some(data) => {
                        self.redirect(index, router, view, &data, *allow_fail, *check_ancestor)
                    }
                    None => Outcome::Decline("a table has no such entry".into()),
                }
            }
            Action::Manual { route, transport, randomize, not_found } => {
                let Some(route) = route.fill(view).filter(|route| !route.trim().is_empty()) else {
                    return Outcome::Decline("a table has no such entry".into());
                };
                let found = self.manual(&route, *transport, *randomize).await;
                self.found(index, router, *transport, *not_found, view, found)
            }
            Action::Dns(options) => {
                let transport = &self.configuration.compiled.routing.transports[options.transport];
                let domain = &view.address.domain;
                let (configuration, dns) = (self.configuration, self.dns);
                let found = hosts::by_dns(domain, options, transport, configuration, dns).await;
                self.found(index, router, options.transport, NotFound::Decline, view, found)
            }
            Action::Accept { transport: None } => {
                // Verification only: there is nothing to deliver to.
                final_(Fate::Deliver(self.destination(router, None, Vec::new())))
            }
            Action::Accept { transport: Some(transport) } => {
                let hosts =
                    self.configuration.compiled.routing.transports[*transport].hosts.clone();
                let found = self.manual(&hosts.unwrap_or_default(), *transport, true).await;
                self.found(index, router, *transport, NotFound::Defer, view, found)
            }
        }
    }

    async fn manual(&self, route: &str, transport: usize, randomize: bool) -> Found {
        let transport = &self.configuration.compiled.routing.transports[transport];
        hosts::manual(route, transport, randomize, self.configuration, self.dns).await
    }

    /// The texts that hold the new addresses.
    fn redirection(&self, to: &To, view: &View<'_>) -> Option<Vec<String>> {
        match to {
            To::Text(template) => template.fill(view).map(|text| vec![text]),
            To::Lines(name) => {
                let name = name.fill(view)?;
                self.configuration.tables.lines(&name).map(<[String]>::to_vec)
            }
        }
    }

    fn redirect(
        &self,
        index: usize,
        router: &Router,
        view: &View<'_>,
        data: &[String],
        allow_fail: bool,
        check_ancestor: bool,
    ) -> Outcome {
        let final_ = |fate| Outcome::Step(Step::Final(fate));
        let errors_to = router.errors_to.as_ref().and_then(|address| address.fill(view));
        let mut children = Vec::new();
        for item in data.iter().flat_map(|text| redirect::items(text)) {
            let text = match item {
                Item::Address(text) => text,
                Item::Fail(text) if allow_fail => {
                    let text = if text.is_empty() { UNROUTEABLE } else { text };
                    return final_(Fate::Fail(text.to_owned()));
                }
                Item::Fail(_) | Item::Forbidden(_) => {
                    let name = &router.name;
                    return final_(Fate::Defer(format!("bad item in the data of router {name}")));
                }
            };
            let Some(child) = Address::new(text, &self.configuration.options().qualify_domain)
            else {
                let name = &router.name;
                return final_(Fate::Defer(format!("{text:?} in the data of router {name}")));
            };
            let rewritten =
                self.configuration.rewrite(&child.text(), AddressPlace::EnvelopeRecipient);
            let new = rewritten
                .and_then(|r| Address::new(&r.new, &self.configuration.options().qualify_domain));
            let child = new.unwrap_or(child);
            let child = if check_ancestor && view.address.has_ancestor(&child) {
                let mut own = view.address.clone();
                own.parents.clear();
                view.address.child(own, index)
            } else {
                view.address.child(child, index)
            };
            children.push(child);
        }
        if children.is_empty() {
            return Outcome::Decline("the entry is empty".into());
        }
        if let Some(errors_to) = errors_to {
            for child in &mut children {
                child.errors_to = Some(errors_to.clone());
            }
        }
        Outcome::Step(Step::Children(children))
    }

    /// What follows from a search for hosts.
    fn found(
        &self,
        index: usize,
        router: &Router,
        transport: usize,
        not_found: NotFound,
        view: &View<'_>,
        found: Found,
    ) -> Outcome {
        let fate = match found {
            Found::Hosts(hosts) => Fate::Deliver(self.destination(router, Some(transport), hosts)),
            Found::Widened(domain) => {
                let mut wide = view.address.clone();
                wide.domain = domain;
                let child = view.address.child(wide, index);
                return Outcome::Step(Step::Children(vec![child]));
            }
            Found::None(why) => match not_found {
                NotFound::Decline => return Outcome::Decline(why.into()),
                NotFound::Fail => Fate::Fail(why),
                NotFound::Defer => Fate::Defer(why),
            },
            Found::Refused(why) => Fate::Fail(why),
            Found::Later(why) => Fate::Defer(why),
        };
        Outcome::Step(Step::Final(fate))
    }

    fn destination(
        &self,
        router: &Router,
        transport: Option<usize>,
        hosts: Vec<Host>,
    ) -> Destination {
        let transport =
            transport.and_then(|index| self.configuration.compiled.routing.transports.get(index));
        Destination {
            router: router.name.clone(),
            transport: transport.map_or_else(String::new, |transport| transport.name.clone()),
            protocol: transport.map_or(super::Protocol::Smtp, |transport| transport.protocol),
            hosts,
            strip_nul: transport.is_some_and(|transport| transport.strip_nul),
        }
    }
}
