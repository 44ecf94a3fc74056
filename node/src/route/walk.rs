//! The walk of an address through the routers.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{StreamExt, stream};
use ppsw_spool::queue::MessageId;
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, Semaphore};

use super::{
    About, Asked, Fate, Stop, Target, TriedRouter, Verified,
    address::{Address, View},
    ask::{Outcome, Product, UNROUTEABLE},
    hosts::Found,
    notes::Notes,
    router::{Action, Router},
};
use crate::{
    dns::Dns,
    limits,
    policy::{AddressPlace, Configuration},
};

/// What routing needs, and what the recipients of one message share.
pub(super) struct Walk<'a> {
    pub(super) configuration: &'a Configuration,
    pub(super) dns: &'a dyn Dns,
    about: &'a About<'a>,
    pub(super) verify: bool,
    /// Ends where an expansion is to be recorded.
    pub(super) expands: bool,
    /// Hosts by router, and by domain or route.
    hosts: Shared<(usize, String), Found>,
    /// Addresses for errors: whether they can be routed.
    errors: Shared<String, Result<(), String>>,
    /// Bounds what is asked of the DNS for one message.
    places: Semaphore,
}

/// Answers that are found once. Who comes while one is being found waits for it.
struct Shared<K, V>(Mutex<HashMap<K, Arc<OnceCell<V>>>>);

/// One thing that the routers made of an address.
struct Part {
    /// A copy that this router made.
    copy: Option<usize>,
    errors_to: Option<Arc<str>>,
    product: Product,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        configuration: &'a Configuration,
        dns: &'a dyn Dns,
        about: &'a About<'a>,
    ) -> Self {
        Self {
            configuration,
            dns,
            about,
            verify: false,
            expands: false,
            hosts: Shared::default(),
            errors: Shared::default(),
            places: Semaphore::new(limits::ROUTE_CONCURRENT),
        }
    }

    pub(super) fn verifying(self, verify: bool) -> Self {
        Self { verify, ..self }
    }

    pub(super) fn expanding(self) -> Self {
        Self { expands: true, ..self }
    }

    pub(super) async fn route(&self, asked: &Asked<'_>) -> Vec<Target> {
        self.whole(asked, None).await
    }

    pub(super) async fn route_all(&self, recipients: &[Asked<'_>]) -> Vec<Vec<Target>> {
        stream::iter(0..recipients.len())
            .map(|index| async move { self.whole(&recipients[index], None).await })
            .buffered(limits::ROUTE_CONCURRENT)
            .collect()
            .await
    }

    pub(super) async fn explain(&self, address: &str) -> (Vec<Target>, Vec<Stop>) {
        let mut stops = Vec::new();
        // A message that arrives is rewritten before it is routed.
        let rewritten = self.configuration.rewrite(address, AddressPlace::EnvelopeRecipient);
        if let Some(rewriting) = &rewritten {
            let tried = TriedRouter {
                name: "rewrite".to_owned(),
                place: self.configuration.place_of_rewrite(rewriting.rule),
                outcome: format!("rewrites it to {}", rewriting.new),
                lookups: Vec::new(),
                decides: true,
            };
            let address = address.to_owned();
            stops.push(Stop { address, parent: None, routers: vec![tried] });
        }
        let address = rewritten.as_ref().map_or(address, |rewriting| &rewriting.new);
        let asked = Asked { address, ancestors: Vec::new() };
        let targets = self.whole(&asked, Some(&mut stops)).await;
        if let Some(first) = stops.get_mut(1).filter(|_| rewritten.is_some()) {
            first.parent = Some(0);
        }
        (targets, stops)
    }

    pub(super) async fn verify(&self, address: &str) -> Verified {
        let qualify = &self.configuration.options().qualify_domain;
        let Some(mut address) = Address::new(address, qualify) else {
            return Verified::No(format!("{address:?} is no address"));
        };
        for _ in 0..=limits::ROUTE_DEPTH_MAX {
            let parts = self.step(&address, None).await;
            // Copies are nobody's business but ours.
            let main = parts.into_iter().find(|part| part.copy.is_none());
            match main.map(|part| part.product) {
                Some(Product::Final(Fate::Deliver(to))) => {
                    return Verified::Yes(Some((address.text(), to)));
                }
                Some(Product::Final(Fate::Fail(why))) => return Verified::No(why),
                Some(Product::Final(Fate::Defer(why))) => return Verified::Later(why),
                Some(Product::Children(mut children)) => {
                    match (children.pop(), children.is_empty()) {
                        (Some(only), true) => address = only,
                        // Several: some may be bad, but that is not the business of this client (the paper, section 4).
                        _ => return Verified::Yes(None),
                    }
                }
                Some(Product::Final(Fate::Expand(_))) | None => return Verified::Yes(None),
            }
        }
        Verified::Later("redirected too often: probably a loop".to_owned())
    }

    /// Everything that a recipient leads to; notes the way if somebody wants to know it.
    async fn whole(&self, asked: &Asked<'_>, mut stops: Option<&mut Vec<Stop>>) -> Vec<Target> {
        let routing = &self.configuration.compiled.routing;
        let qualify = &self.configuration.options().qualify_domain;
        let Some(address) = Address::new(asked.address, qualify) else {
            let why = format!("{:?} is no address", asked.address);
            return vec![alone(asked.address, Fate::Fail(why))];
        };
        let address = address.expanded(&asked.ancestors, &routing.routers);
        let whole = |why: String| vec![alone(asked.address, Fate::Defer(why))];
        let mut targets = Targets::default();
        let mut seen: HashSet<(String, Vec<usize>)> = HashSet::new();
        let (mut level, explains) = (vec![address], stops.is_some());
        while !level.is_empty() {
            if level.iter().any(|address| address.depth() > limits::ROUTE_DEPTH_MAX) {
                let max = limits::ROUTE_DEPTH_MAX;
                return whole(format!("redirected more than {max} times: probably a loop"));
            }
            let steps: Vec<_> = stream::iter(level)
                .map(|address| async move {
                    // Closed by nobody.
                    let _place = self.places.acquire().await;
                    let mut tried = explains.then(Vec::new);
                    let parts = self.step(&address, tried.as_mut()).await;
                    (address, parts, tried)
                })
                .buffered(limits::ROUTE_CONCURRENT)
                .collect()
                .await;
            level = Vec::new();
            for (address, parts, tried) in steps {
                let mut stop = None;
                if let (Some(stops), Some(routers)) = (stops.as_mut(), tried) {
                    stop = Some(stops.len());
                    stops.push(Stop { address: address.text(), parent: address.stop, routers });
                }
                for Part { copy, errors_to, product } in parts {
                    match product {
                        Product::Final(fate) => {
                            let copy = copy.and_then(|index| routing.routers.get(index));
                            targets.add(Target {
                                address: address.text(),
                                copy: copy.map(|router| router.name.clone()),
                                parents: address.parents(),
                                errors_to: errors_to.map(|text| text.to_string()),
                                fate,
                            });
                        }
                        Product::Children(children) => {
                            for mut child in children {
                                child.errors_to.clone_from(&errors_to);
                                child.stop = stop;
                                if seen.insert((child.text(), child.skip.clone())) {
                                    level.push(child);
                                }
                            }
                        }
                    }
                }
                if level.len() + targets.list.len() > limits::ROUTE_CHILDREN_MAX {
                    let max = limits::ROUTE_CHILDREN_MAX;
                    return whole(format!("leads to more than {max} addresses; shorten its lists"));
                }
            }
        }
        targets.list
    }

    /// Asks the routers in their order.
    async fn step(&self, address: &Address, tried: Option<&mut Vec<TriedRouter>>) -> Vec<Part> {
        let routers = &self.configuration.compiled.routing.routers;
        let notes = Notes::default();
        let notes = tried.is_some().then_some(&notes);
        let mut tale = Tale { tried, notes };
        let (mut parts, mut taken) = (Vec::new(), Vec::new());
        let (mut index, mut last, mut said) = (0, None, None);
        while let Some(router) = routers.get(index) {
            let (this, mut next) = (index, index + 1);
            last = Some(router);
            let whole = self.unaltered(address, notes);
            match self.view(this, router, whole) {
                Err(why) => tale.tell(router, false, || format!("not asked: {why}")),
                Ok(view) => {
                    taken.push(this);
                    let outcome = self.ask(this, router, &view, &taken).await;
                    // A copy that cannot be made is no reason to hold up the real thing.
                    let unseen = router.unseen && next < routers.len();
                    let ends = !unseen;
                    let fate = match outcome {
                        Outcome::Take(product) => Ok(product),
                        Outcome::Fail(why) => Ok(Product::Final(Fate::Fail(why))),
                        Outcome::Defer(why) => Ok(Product::Final(Fate::Defer(why))),
                        Outcome::Decline { why, said: tells } => {
                            tale.tell(router, router.no_more, || format!("declines: {why}"));
                            said = tells.then(|| why.into_owned()).or(said);
                            Err(router.no_more)
                        }
                        Outcome::Pass(why) => {
                            tale.tell(router, false, || format!("passes: {why}"));
                            next = router.pass_router.unwrap_or(next);
                            Err(false)
                        }
                    };
                    match fate {
                        Ok(product) => {
                            let errors_to = self.errors_to(router, &view).await;
                            tale.tell(router, ends, || shown(&product, unseen));
                            let copy = unseen.then_some(this);
                            parts.push(Part { copy, errors_to, product });
                            if ends {
                                return parts;
                            }
                            said = None;
                        }
                        Err(no_more) => {
                            taken.pop();
                            if no_more {
                                break;
                            }
                        }
                    }
                }
            }
            index = next;
        }
        let why = said.or_else(|| {
            let text = last.and_then(|router| router.cannot_route.as_ref().map(|t| (router, t)))?;
            let whole = || self.unaltered(address, None);
            let view = whole().without(text.0.affix.as_ref()).unwrap_or_else(whole);
            text.1.fill(&view)
        });
        let why = why.unwrap_or_else(|| UNROUTEABLE.to_owned());
        let product = Product::Final(Fate::Fail(why));
        parts.push(Part { copy: None, errors_to: address.errors_to.clone(), product });
        parts
    }

    fn unaltered<'b>(&'b self, address: &'b Address, notes: Option<&'b Notes>) -> View<'b> {
        View::whole(self.configuration, self.about, address, notes)
    }

    /// The address for errors of what a router made: the router's, if that can be routed, or else what it was before.
    async fn errors_to(&self, router: &Router, view: &View<'_>) -> Option<Arc<str>> {
        let before = view.address.errors_to.clone();
        let Some(text) = router.errors_to.as_ref().and_then(|text| text.fill(view)) else {
            return before;
        };
        if text.is_empty() || self.verify {
            return Some(text.into());
        }
        // Errors come from nobody.
        let about = About { sender: "", ..*self.about };
        let verified = self.errors.get(text.clone(), async {
            let walk = Walk::new(self.configuration, self.dns, &about).verifying(true);
            match Box::pin(walk.verify(&text)).await {
                Verified::Yes(_) => Ok(()),
                Verified::No(why) | Verified::Later(why) => Err(why),
            }
        });
        match verified.await {
            Ok(()) => Some(text.into()),
            Err(why) => {
                if let Some(notes) = view.notes {
                    notes.add(format!("errors-to {text} is left out, it cannot be routed: {why}"));
                }
                before
            }
        }
    }

    /// What a search for hosts finds; with `same-domain-copy` once for all addresses of a message.
    pub(super) async fn shared(
        &self,
        index: usize,
        router: &Router,
        key: &str,
        search: impl Future<Output = Found> + Send,
    ) -> Found {
        let copies = match &router.action {
            Action::Manual { same_domain_copy, .. } => *same_domain_copy,
            Action::Dns(options) => options.same_domain_copy,
            _ => false,
        };
        if copies { self.hosts.get((index, key.to_owned()), search).await } else { search.await }
    }
}

impl<K: std::hash::Hash + Eq, V: Clone> Shared<K, V> {
    async fn get(&self, key: K, find: impl Future<Output = V>) -> V {
        let cell = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(known.entry(key).or_default())
        };
        cell.get_or_init(|| find).await.clone()
    }
}

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

/// Whether a message is the one of `of` that is taken: always the same answer for the same message.
pub(super) fn sample(id: MessageId, of: u64) -> bool {
    let hash = Sha256::digest(id.to_string());
    let number = hash.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    number.checked_rem(of) == Some(0)
}

/// Targets in the order in which they were found, each once.
#[derive(Default)]
struct Targets {
    list: Vec<Target>,
    /// Where each is.
    keys: HashMap<String, usize>,
}

impl Targets {
    /// Two ways to one address make one delivery; one that leads there counts before one that does not.
    fn add(&mut self, target: Target) {
        let key = target.key();
        match self.keys.get(&key).and_then(|at| self.list.get_mut(*at)) {
            Some(known) => {
                if !matches!(known.fate, Fate::Deliver(_))
                    && matches!(target.fate, Fate::Deliver(_))
                {
                    *known = target;
                }
            }
            None => {
                self.keys.insert(key, self.list.len());
                self.list.push(target);
            }
        }
    }
}

fn alone(address: &str, fate: Fate) -> Target {
    let address = address.to_owned();
    Target { address, copy: None, parents: Vec::new(), errors_to: None, fate }
}

/// Tells of the routers that are asked, if somebody wants to know.
struct Tale<'a, 'n> {
    tried: Option<&'a mut Vec<TriedRouter>>,
    notes: Option<&'n Notes>,
}

impl Tale<'_, '_> {
    fn tell(&mut self, router: &Router, decides: bool, outcome: impl FnOnce() -> String) {
        if let Some(tried) = &mut self.tried {
            let (name, place) = (router.name.clone(), router.place.clone());
            let lookups = self.notes.map(Notes::take).unwrap_or_default();
            tried.push(TriedRouter { name, place, outcome: outcome(), lookups, decides });
        }
    }
}

/// For people.
fn shown(product: &Product, unseen: bool) -> String {
    let copy = if unseen { " a copy" } else { "" };
    match product {
        Product::Children(children) => {
            let some = children.iter().take(limits::ROUTE_SHOWN_MAX).map(Address::text);
            let more = children.len().saturating_sub(limits::ROUTE_SHOWN_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("redirects{copy} to {}{more}", some.collect::<Vec<_>>().join(", "))
        }
        Product::Final(fate) if unseen => format!("takes a copy: {fate}"),
        Product::Final(fate) => fate.to_string(),
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deliver(to) if to.transport.is_empty() => f.write_str("takes it"),
            Self::Deliver(to) => write!(f, "takes it for transport {}", to.transport),
            Self::Fail(why) => write!(f, "fails it: {why}"),
            Self::Defer(why) => write!(f, "defers it: {why}"),
            Self::Expand(into) => write!(f, "expands it to {} addresses", into.len()),
        }
    }
}
