//! What two states of the control group say of the time between them. Every node sees it.

use ppsw_proto::control::{self as pb, activation::Kind as How};

use super::Kind;
use crate::state::State;

/// The events between two states, the second of which is looked at now.
pub(super) fn between(
    before: &State,
    after: &State,
    before_ms: u64,
    now_ms: u64,
) -> Vec<pb::Event> {
    let mut events = members(before, after);
    events.extend(drains(before, after));
    events.extend(rules(before, after, before_ms, now_ms));
    events.extend(versions(before, after));
    for event in &mut events {
        event.everywhere = true;
    }
    events
}

fn members(before: &State, after: &State) -> Vec<pb::Event> {
    let mut events = Vec::new();
    for member in after.members.values().filter(|m| !before.members.contains_key(&m.id)) {
        let name = member.name.clone();
        events.push(pb::Event { name, ..Kind::NodeJoined.of(member.id) });
    }
    let told = |kind: Kind, removal: &pb::Removal| {
        let (by, reason) = (removal.by.clone(), removal.reason.clone());
        pb::Event { by, reason, ..kind.of(removal.node) }
    };
    let leaving = after.removals.values().filter(|r| !before.removals.contains_key(&r.node));
    events.extend(leaving.map(|removal| told(Kind::NodeLeaving, removal)));
    let left = after.removed.values().filter(|r| before.members.contains_key(&r.node));
    let left = left.filter(|removal| !after.members.contains_key(&removal.node));
    events.extend(left.map(|removal| told(Kind::NodeLeft, removal)));
    let away = after.away.keys().filter(|node| !before.away.contains_key(node));
    events.extend(away.map(|node| Kind::NodeAway.of(*node)));
    let returned = before
        .away
        .keys()
        .filter(|node| !after.away.contains_key(node) && after.members.contains_key(node));
    events.extend(returned.map(|node| Kind::NodeReturned.of(*node)));
    events
}

fn drains(before: &State, after: &State) -> Vec<pb::Event> {
    let begun = after.drains.values().filter(|d| !before.drains.contains_key(&d.node));
    let begun =
        begun.map(|drain| pb::Event { by: drain.by.clone(), ..Kind::DrainBegun.of(drain.node) });
    let ended = before
        .drains
        .keys()
        .filter(|node| !after.drains.contains_key(node) && after.members.contains_key(node));
    begun.chain(ended.map(|node| Kind::DrainEnded.of(*node))).collect()
}

fn rules(before: &State, after: &State, before_ms: u64, now_ms: u64) -> Vec<pb::Event> {
    let mut events = Vec::new();
    let stood = |id: &u64| before.standing.get(id).is_some_and(|rule| before_ms < rule.until_ms);
    for rule in after.standing.values().filter(|rule| !stood(&rule.id) && now_ms < rule.until_ms) {
        let (kind, event) = (kinds(rule).0, about(rule));
        events.push(pb::Event {
            event: kind.name().to_owned(),
            by: rule.by.clone(),
            reason: rule.reason.clone(),
            until_ms: Some(rule.until_ms),
            ..event
        });
    }
    for rule in before.standing.values().filter(|rule| stood(&rule.id)) {
        let expired = rule.until_ms <= now_ms;
        if expired || !after.standing.contains_key(&rule.id) {
            let text = if expired { "its time is over" } else { "by an operator" };
            let event = kinds(rule).1.name().to_owned();
            events.push(pb::Event { event, text: text.to_owned(), ..about(rule) });
        }
    }
    events
}

/// How it is called that a rule is set, and that it is cleared.
fn kinds(rule: &pb::StandingRule) -> (Kind, Kind) {
    if rule.shed.is_some() {
        (Kind::ShedSet, Kind::ShedCleared)
    } else if rule.order.is_some() {
        (Kind::RuleSet, Kind::RuleCleared)
    } else {
        (Kind::Suspended, Kind::Resumed)
    }
}

/// Which rule it is. Never whose mail it is about: `ppswctl queue rules` says that.
fn about(rule: &pb::StandingRule) -> pb::Event {
    let verb = rule.order.as_ref().map(|order| match order.verb() {
        pb::QueueVerb::Hold => "hold",
        pb::QueueVerb::Bounce => "bounce",
        pb::QueueVerb::Drop => "drop",
        pb::QueueVerb::Redirect => "redirect",
        _ => "other",
    });
    pb::Event {
        rule: Some(rule.id),
        verb: verb.unwrap_or_default().to_owned(),
        destination: rule.destination.clone(),
        personality: rule.shed.as_ref().map(|s| s.personality.clone()).unwrap_or_default(),
        percent: rule.shed.as_ref().map(|shed| shed.percent),
        ..pb::Event::default()
    }
}

fn versions(before: &State, after: &State) -> Vec<pb::Event> {
    let generation = before.versions.generation;
    let new = after.versions.history.iter().filter(|done| done.generation > generation);
    new.map(|done| {
        let credit = done.credit.clone().unwrap_or_default();
        let verb = match done.kind() {
            How::Push => "push",
            How::Rollback => "rollback",
            _ => "change",
        };
        pb::Event {
            verb: verb.to_owned(),
            by: credit.by,
            reason: credit.reason,
            version: Some(done.version),
            generation: Some(done.generation),
            ..Kind::VersionActivated.of(0)
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::{Versions, tests::cluster};

    fn names(before: &State, after: &State, now_ms: u64) -> Vec<(String, u64)> {
        let events = between(before, after, 0, now_ms);
        assert!(events.iter().all(|event| event.everywhere));
        events.into_iter().map(|event| (event.event, event.node)).collect()
    }

    fn named(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
        expected.iter().map(|(name, node)| ((*name).to_owned(), *node)).collect()
    }

    #[test]
    fn members_come_go_and_are_drained() {
        let (two, mut three) = (cluster(2), cluster(3));
        assert_eq!(names(&three, &three, 0), []);
        assert_eq!(names(&two, &three, 0), named(&[("node_joined", 3)]));
        let before = three.clone();
        three.drains.insert(2, pb::Drain { node: 2, since_ms: 1, by: "anna".into() });
        three.away.insert(1, pb::Away { node: 1, since_ms: 1 });
        three.removals.insert(3, pb::Removal { node: 3, ..pb::Removal::default() });
        assert_eq!(
            names(&before, &three, 0),
            named(&[("node_leaving", 3), ("node_away", 1), ("drain_begun", 2)])
        );
        assert_eq!(between(&before, &three, 0, 0)[2].by, "anna");
        let mut gone = before;
        gone.members.remove(&3);
        gone.removed.insert(3, pb::Removal { node: 3, ..pb::Removal::default() });
        assert_eq!(
            names(&three, &gone, 0),
            named(&[("node_left", 3), ("node_returned", 1), ("drain_ended", 2)])
        );
    }

    #[test]
    fn rules_are_set_cleared_and_expire_without_naming_addresses() {
        let none = cluster(1);
        let shed = pb::Shed { personality: "mx".into(), percent: 50 };
        let order = pb::OperateRequest {
            verb: pb::QueueVerb::Drop.into(),
            filter: Some(pb::QueueFilter { sender: "spy@x.example".into(), ..Default::default() }),
            ..pb::OperateRequest::default()
        };
        let rule = |id, until_ms| pb::StandingRule { id, until_ms, ..Default::default() };
        let rules = [
            pb::StandingRule { shed: Some(shed), ..rule(1, 100) },
            pb::StandingRule { order: Some(order), ..rule(2, 100) },
            pb::StandingRule { destination: "a.example".into(), ..rule(3, 20) },
        ];
        let mut some = none.clone();
        some.standing = Arc::new(rules.into_iter().map(|rule| (rule.id, rule)).collect());
        let set = named(&[("shed_set", 0), ("rule_set", 0), ("suspended", 0)]);
        assert_eq!(names(&none, &some, 10), set);
        let events = between(&none, &some, 0, 10);
        assert_eq!((events[0].percent, events[1].verb.as_str()), (Some(50), "drop"));
        assert!(!format!("{events:?}").contains("spy@"));
        assert_eq!(names(&some, &some, 10), []);
        assert_eq!(names(&some, &some, 20), named(&[("resumed", 0)]), "its time is over");
        assert_eq!(between(&some, &some, 20, 30), [], "and was at the last look");
        let cleared = named(&[("shed_cleared", 0), ("rule_cleared", 0), ("resumed", 0)]);
        assert_eq!(names(&some, &none, 10), cleared);
    }

    #[test]
    fn every_activation_counts_once() {
        let before = cluster(1);
        let activation = |generation, kind: How| pb::Activation {
            generation,
            kind: kind.into(),
            version: generation,
            ..pb::Activation::default()
        };
        let mut after = before.clone();
        let history = [activation(1, How::Push), activation(2, How::Rollback)].into();
        let mut versions = Versions::default();
        (versions.generation, versions.history) = (2, history);
        after.versions = Arc::new(versions);
        let events = between(&before, &after, 0, 0);
        let told: Vec<_> = events.iter().map(|e| (e.verb.as_str(), e.generation)).collect();
        assert_eq!(told, [("push", Some(1)), ("rollback", Some(2))]);
        assert_eq!(between(&after, &after, 0, 0), []);
    }
}
