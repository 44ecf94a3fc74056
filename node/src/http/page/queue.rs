//! The queue and the rules of operators on the status page.

use maud::{Markup, html};
use ppsw_control::ClusterView;
use ppsw_proto::control::{DomainSummary, StandingRule};

use super::{nodes::more, words};
use crate::limits::{PAGE_DESTINATIONS_MAX, PAGE_RULES_MAX};

/// The figures of the whole queue.
pub(super) fn tiles(view: &ClusterView) -> Markup {
    let queue = &view.queue;
    html! {
        dl.tiles {
            div { dt { "messages" } dd #messages { (words::count(queue.messages)) } }
            div { dt { "recipients" } dd { (words::count(queue.recipients)) } }
            div { dt { "oldest" } dd { (age(queue.oldest_ms, view)) } }
            div { dt { "held" } dd { (words::count(queue.held)) } }
            div { dt { "size" } dd { (words::bytes(queue.bytes)) } }
        }
    }
}

pub(super) fn ages(view: &ClusterView) -> Markup {
    let ages = &view.queue.ages;
    let most = ages.iter().map(|age| age.messages).max().unwrap_or(0).max(1);
    let label = |place: usize| {
        let from = ages.get(place).map_or(0, |age| age.from_ms);
        match ages.get(place + 1) {
            Some(next) if from == 0 => format!("less than {}", words::round_span(next.from_ms)),
            Some(next) => {
                format!("{} to {}", words::round_span(from), words::round_span(next.from_ms))
            }
            None => format!("{} and more", words::round_span(from)),
        }
    };
    html! {
        table {
            thead { tr { th { "age" } th.n { "messages" } th {} } }
            tbody {
                @for (place, age) in ages.iter().enumerate() {
                    tr {
                        td { (label(place)) }
                        td.n { (words::count(age.messages)) }
                        td.wide { (bar(age.messages, most)) }
                    }
                }
            }
        }
    }
}

/// A bar as long as the part of the largest that this is. Its length is an attribute: the page's policy lets no element
/// have a style.
fn bar(part: u64, most: u64) -> Markup {
    let length = u128::from(part) * 1000 / u128::from(most.max(1));
    html! {
        svg.bar viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true" {
            rect width=(length) height="10" rx="2" {}
        }
    }
}

pub(super) fn destinations(view: &ClusterView) -> Markup {
    // What is beyond the places of a summary is counted under `*`; it is no destination.
    let (rest, domains): (Vec<&DomainSummary>, Vec<&DomainSummary>) =
        view.queue.domains.iter().partition(|domain| domain.domain == "*");
    let hidden = domains.iter().skip(PAGE_DESTINATIONS_MAX).chain(&rest);
    let hidden: u64 = hidden.map(|domain| domain.recipients).sum();
    html! {
        @if domains.is_empty() { p.soft { "Nothing waits." } } @else {
            div.box {
                table.lines {
                    thead { tr {
                        th { "domain" } th.n { "recipients" } th.n { "deferred" } th.n { "oldest" }
                    } }
                    tbody {
                        @for domain in domains.iter().take(PAGE_DESTINATIONS_MAX) {
                            tr {
                                td.name { bdi { (destination(&domain.domain)) } }
                                td.n data-label="recipients" { (words::count(domain.recipients)) }
                                td.n data-label="deferred" { (words::count(domain.deferred)) }
                                td.n data-label="oldest" { (age(domain.oldest_ms, view)) }
                            }
                        }
                    }
                }
            }
            @if domains.len() > PAGE_DESTINATIONS_MAX || !rest.is_empty() {
                p.note {
                    "and " (words::count(hidden)) " recipients in "
                    (domains.len().saturating_sub(PAGE_DESTINATIONS_MAX)) " more domains"
                    @if !rest.is_empty() { " and those that were not told apart" }
                }
            }
        }
    }
}

fn destination(domain: &str) -> String {
    if domain.is_empty() { "(no domain)".to_owned() } else { words::name(domain) }
}

pub(super) fn rules(view: &ClusterView) -> Markup {
    let (told, orders): (Vec<&StandingRule>, Vec<&StandingRule>) =
        view.standing.iter().partition(|rule| rule.shed.is_some() || !rule.destination.is_empty());
    html! {
        @if view.standing.is_empty() { p.soft { "None stands." } } @else {
            ul.plain {
                @for rule in told.iter().take(PAGE_RULES_MAX) { li { (told_rule(rule, view)) } }
                // Their filters may hold addresses.
                @if !orders.is_empty() {
                    li {
                        (words::counted(orders.len(), "standing rule", "standing rules"))
                        " for messages: " code { "ppswctl queue rules" }
                    }
                }
            }
            (more(told.len(), PAGE_RULES_MAX))
        }
    }
}

fn told_rule(rule: &StandingRule, view: &ClusterView) -> Markup {
    let left = words::span(rule.until_ms.saturating_sub(view.taken.0));
    html! {
        @match &rule.shed {
            Some(shed) => {
                span.chip.warn { "shed" } " " (shed.percent) " % of the sessions of "
                bdi { (words::name(&shed.personality)) }
            }
            None => {
                span.chip.warn { "suspended" } " deliveries to " bdi { (words::name(&rule.destination)) }
            }
        }
        span.note { " for another " (left) }
    }
}

fn age(since_ms: u64, view: &ClusterView) -> String {
    if since_ms == 0 {
        "–".to_owned()
    } else {
        words::span(view.taken.0.saturating_sub(since_ms))
    }
}
