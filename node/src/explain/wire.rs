//! Explanations as `ppswctl` gets them.

use ppsw_proto::control::{self as pb, route_target};

use crate::{
    policy::{AskedCondition, Decision, Explanation, TriedRule},
    route::{Destination, Fate, Stop, Target},
};

pub(super) fn route(targets: Vec<Target>, stops: Vec<Stop>) -> pb::RouteReply {
    let stop = |stop: Stop| pb::RouteStop {
        address: stop.address,
        parent: stop.parent.and_then(|parent| u32::try_from(parent + 1).ok()).unwrap_or_default(),
        routers: stop
            .routers
            .into_iter()
            .map(|tried| pb::TriedRouter {
                name: tried.name,
                line: tried.place.line,
                outcome: tried.outcome,
                lookups: tried.lookups,
                decides: tried.decides,
            })
            .collect(),
    };
    let target = |target: Target| pb::RouteTarget {
        address: target.address,
        copy: target.copy.unwrap_or_default(),
        parents: target.parents,
        errors_to: target.errors_to,
        fate: Some(match target.fate {
            Fate::Deliver(to) => route_target::Fate::Deliver(destination(*to)),
            Fate::Fail(why) => route_target::Fate::Fail(why),
            Fate::Defer(why) => route_target::Fate::Defer(why),
            // What is asked for is the whole way.
            Fate::Expand(into) => route_target::Fate::Defer(into.join(", ")),
        }),
    };
    pb::RouteReply {
        stops: stops.into_iter().map(stop).collect(),
        targets: targets.into_iter().map(target).collect(),
    }
}

fn destination(to: Destination) -> pb::RouteDestination {
    let hosts = to.hosts.into_iter().map(|host| pb::RouteHost {
        name: host.name,
        addresses: host.addresses.iter().map(ToString::to_string).collect(),
        port: host.port.into(),
        preference: host.preference.into(),
    });
    let command = to.program.map_or_else(Vec::new, |program| program.words);
    let (router, transport) = (to.router, to.transport);
    pb::RouteDestination { router, transport, hosts: hosts.collect(), command }
}

pub(super) fn stage(explanation: Explanation, decision: &Decision) -> pb::ExplainedStage {
    pb::ExplainedStage {
        stage: explanation.stage.name().to_owned(),
        acl: explanation.acl,
        rules: explanation.rules.into_iter().map(rule).collect(),
        delay_ms: u64::try_from(decision.delay.as_millis()).unwrap_or(u64::MAX),
    }
}

fn rule(tried: TriedRule) -> pb::TriedRule {
    pb::TriedRule {
        line: tried.place.line,
        text: tried.place.text.into(),
        conditions: tried.conditions.into_iter().map(condition).collect(),
        effects: tried.effects,
        verdict: tried.verdict.unwrap_or_default().to_owned(),
    }
}

fn condition(asked: AskedCondition) -> pb::AskedCondition {
    pb::AskedCondition {
        text: asked.text.into(),
        answer: asked.answer.to_owned(),
        why: asked.why,
        conditions: asked.conditions.into_iter().map(condition).collect(),
        rules: asked.rules.into_iter().map(rule).collect(),
    }
}
