//! Rules that stand: what is done with messages that come to delivery.

use std::{sync::Arc, time::Duration};

use ppsw_control::Orders;
use ppsw_proto::control::{OperateRequest, QueueFilter, QueueVerb, StandingRule};
use ppsw_spool::queue::{MessageState, RecipientState};

use super::{
    dialogue::destination,
    fake::{Setting, Table, deliver_to},
    server::{Script, Server},
};
use crate::{limits::SUSPENDED_RETRY, route::Protocol};

/// A deliverer that knows three addresses, all on one server.
fn setting(server: &Server) -> Setting {
    let there = destination(&[server], Protocol::Smtp);
    let mut table = Table::default();
    for address in ["a@y", "b@z", "c@new", "s@x"] {
        table.routes.insert(address.to_owned(), vec![deliver_to(address, &there)]);
    }
    Setting::new(table)
}

fn stand(setting: &Setting, rules: &[StandingRule]) {
    *setting.orders.lock().unwrap() = Arc::new(Orders::new(rules.iter().cloned()));
}

fn rule(id: u64) -> StandingRule {
    let (by, reason) = ("anna".to_owned(), "it floods".to_owned());
    StandingRule { id, by, reason, until_ms: u64::MAX, ..StandingRule::default() }
}

fn suspend(id: u64, destination: &str) -> StandingRule {
    StandingRule { destination: destination.to_owned(), ..rule(id) }
}

fn order(id: u64, verb: QueueVerb, domain: &str) -> StandingRule {
    let order = OperateRequest {
        filter: Some(QueueFilter { domain: domain.to_owned(), ..QueueFilter::default() }),
        verb: verb.into(),
        reason: "it floods".to_owned(),
        to: "c@new".to_owned(),
        by: "anna".to_owned(),
        all: false,
    };
    StandingRule { order: Some(order), ..rule(id) }
}

#[tokio::test]
async fn a_suspended_destination_waits_and_does_not_expire() {
    let server = Server::start(Script::default()).await;
    let setting = setting(&server);
    stand(&setting, &[suspend(3, "y")]);
    let id = setting.put(1, "s@x", &["a@y", "b@z"]);
    setting.until("the other delivered", || server.complete().len() == 1).await;
    setting.until("recorded", || setting.outcomes_of(id) == 1).await;
    assert_eq!(server.complete()[0].rcpts, ["RCPT TO:<b@z>"]);
    let text = "suspended by rule 3 of anna: it floods";
    setting.until("logged", || setting.mainlog().contains("== a@y")).await;
    assert!(setting.mainlog().contains(text), "{}", setting.mainlog());
    // For longer than any retry rule.
    for round in 2..=4 {
        setting.later(Duration::from_secs(3 * 86_400));
        setting.until("looked at", || setting.outcomes_of(id) == round).await;
    }
    let waiting = setting.queue.message(id).unwrap();
    let open = &waiting.recipients[0];
    assert_eq!(open.state, RecipientState::Deferred);
    assert_eq!(open.next_due.since(setting.clock_now()), SUSPENDED_RETRY);
    // It goes out soon after the end, and not when it would be due.
    stand(&setting, &[]);
    // Its sender has been told that it is late.
    setting.until("delivered", || setting.queue.len() == 0).await;
    let to: Vec<String> = server.complete()[1..].iter().flat_map(|m| m.rcpts.clone()).collect();
    assert_eq!(to, ["RCPT TO:<s@x>", "RCPT TO:<a@y>"]);
    setting.finish().await;
}

#[tokio::test]
async fn a_suspended_host_gets_nothing_whatever_the_domain() {
    let server = Server::start(Script::default()).await;
    let setting = setting(&server);
    stand(&setting, &[suspend(1, "host*")]);
    let ids = [setting.put(1, "s@x", &["a@y"]), setting.put(2, "s@x", &["b@z"])];
    setting.until("looked at", || ids.iter().all(|id| setting.outcomes_of(*id) == 1)).await;
    assert_eq!(server.connections(), 0);
    stand(&setting, &[]);
    setting.until("delivered", || setting.queue.len() == 0).await;
    setting.finish().await;
}

#[tokio::test]
async fn what_comes_to_delivery_is_held_dropped_returned_or_led_elsewhere() {
    let server = Server::start(Script::default()).await;
    let setting = setting(&server);
    stand(&setting, &[order(1, QueueVerb::Hold, "y")]);
    let held = setting.put(1, "s@x", &["a@y", "b@z"]);
    setting
        .until("held", || {
            setting.queue.message(held).is_some_and(|m| m.state == MessageState::Held)
        })
        .await;
    setting.until("logged", || setting.mainlog().contains("held by anna")).await;
    assert_eq!(server.connections(), 0);

    stand(&setting, &[order(2, QueueVerb::Redirect, "z")]);
    setting.put(2, "s@x", &["b@z"]);
    setting.until("led elsewhere", || server.complete().len() == 1).await;
    assert_eq!(server.complete()[0].rcpts, ["RCPT TO:<c@new>"]);

    stand(&setting, &[order(3, QueueVerb::Bounce, "y")]);
    setting.put(3, "s@x", &["a@y", "b@z"]);
    setting.until("returned, and the rest delivered", || server.complete().len() == 3).await;
    let to: Vec<String> = server.complete()[1..].iter().flat_map(|m| m.rcpts.clone()).collect();
    assert!(to.contains(&"RCPT TO:<s@x>".into()) && to.contains(&"RCPT TO:<b@z>".into()), "{to:?}");
    // A bounce is not returned to anybody.
    let bounce = setting.put(4, "", &["a@y"]);
    setting.until("gone", || setting.queue.message(bounce).is_none()).await;

    stand(&setting, &[order(4, QueueVerb::Drop, "y")]);
    let dropped = setting.put(5, "s@x", &["a@y"]);
    setting.until("gone", || setting.queue.message(dropped).is_none()).await;
    assert_eq!(server.complete().len(), 3);
    assert_eq!(setting.queue.len(), 1, "the held one");
    setting.finish().await;
}
