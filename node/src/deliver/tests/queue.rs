//! Whole attempts: from the queue to the outcome.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mail_parser::MessageParser;
use ppsw_spool::{
    env::UnixMs,
    group::ProposeError,
    queue::{Delivered, Envelope, Outcome, Recipient, RecipientState, Verdict},
};
use tokio::sync::Notify;

use super::{
    dialogue::destination,
    fake::{START, Setting, Table, deliver_to, target},
    server::{At, Script, Server},
};
use crate::route::{Fate, Protocol, Target};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

async fn good() -> Server {
    Server::start(Script::default()).await
}

fn table(routes: &[(&str, Vec<Target>)]) -> Table {
    let routes = routes.iter().map(|(a, targets)| ((*a).to_owned(), targets.clone())).collect();
    Table { routes, ..Table::default() }
}

#[tokio::test]
async fn a_message_is_delivered_to_all_its_destinations_in_one_outcome() {
    let (one, two) = (good().await, good().await);
    let (to_one, to_two) =
        (destination(&[&one], Protocol::Smtp), destination(&[&two], Protocol::Smtp));
    let setting = Setting::new(table(&[
        ("a@one", vec![deliver_to("a@one", &to_one)]),
        ("b@one", vec![deliver_to("b@one", &to_one)]),
        ("c@two", vec![deliver_to("c@two", &to_two)]),
    ]));
    let id = setting.put(1, "s@x", &["a@one", "b@one", "c@two"]);
    setting.until("delivered", || setting.queue.len() == 0).await;
    let outcomes = setting.outcomes();
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].finished, [0, 1, 2]);
    assert_eq!(one.complete()[0].rcpts.len(), 2);
    assert_eq!(two.complete()[0].rcpts, ["RCPT TO:<c@two>"]);
    setting.finish().await;
    assert_eq!(setting.deliverer.attempts_in_flight(1), 0);
    setting.until("logged", || setting.mainlog().contains("Completed")).await;
    let log = setting.mainlog();
    assert_eq!(log.matches(&format!("{id} => ")).count(), 2, "{log}");
    assert_eq!(log.matches(&format!("{id} -> b@one")).count(), 1, "{log}");
}

#[tokio::test]
async fn what_is_delivered_is_recorded_while_another_destination_stalls() {
    let greets = Arc::new(Notify::new());
    let script = Script { greets: Some(Arc::clone(&greets)), ..Script::default() };
    let (one, two) = (good().await, Server::start(script).await);
    let (to_one, to_two) =
        (destination(&[&one], Protocol::Smtp), destination(&[&two], Protocol::Smtp));
    let setting = Setting::new(table(&[
        ("a@one", vec![deliver_to("a@one", &to_one)]),
        ("b@two", vec![deliver_to("b@two", &to_two)]),
        ("c@both", vec![deliver_to("c@one", &to_one), deliver_to("c@two", &to_two)]),
    ]));
    let id = setting.put(1, "s@x", &["a@one", "b@two", "c@both"]);
    setting.until("recorded early", || setting.outcomes().len() == 1).await;
    let early = setting.outcomes().remove(0);
    assert!(early.goes_on && early.finished == [0], "{early:?}");
    assert_eq!(early.results.len(), 2);
    greets.notify_one();
    setting.until("delivered", || setting.queue.len() == 0).await;
    let last = setting.outcomes().remove(1);
    assert!(!last.goes_on && last.finished == [1, 2] && last.results.len() == 2, "{last:?}");
    assert_eq!((one.complete().len(), two.complete().len()), (1, 1));
    setting.finish().await;
    setting.until("logged", || setting.mainlog().contains("Completed")).await;
    let log = setting.mainlog();
    assert_eq!(log.matches(&format!("{id} => ")).count(), 2, "{log}");
    assert_eq!(log.matches(&format!("{id} -> ")).count(), 2, "{log}");
}

#[tokio::test]
async fn a_failure_is_bounced_and_the_bounce_delivered() {
    let server =
        Server::start(Script { rcpt: vec![("gone", "550 5.1.1 who?")], ..Script::default() }).await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[
        ("gone@y", vec![deliver_to("gone@y", &there)]),
        ("s@x", vec![deliver_to("s@x", &there)]),
    ]));
    setting.put(1, "s@x", &["gone@y", "nowhere@z"]);
    setting
        .until("bounce delivered", || setting.queue.len() == 0 && !server.complete().is_empty())
        .await;
    let taken = server.complete();
    assert_eq!(taken.len(), 1, "one bounce for both recipients");
    assert!(taken[0].mail.starts_with("MAIL FROM:<> "), "{}", taken[0].mail);
    assert_eq!(taken[0].rcpts, ["RCPT TO:<s@x>"]);
    let message = MessageParser::default().parse(&taken[0].data[..]).unwrap();
    let status = String::from_utf8_lossy(message.parts[2].contents()).into_owned();
    assert!(status.contains("Final-Recipient: rfc822; gone@y\r\nAction: failed\r\nStatus: 5.1.1"));
    assert!(status.contains("Final-Recipient: rfc822; nowhere@z"));
    assert_eq!(message.attachment(1).unwrap().message().unwrap().subject(), Some("hello"));
    setting.until("logged", || setting.mainlog().matches("Completed").count() == 2).await;
    let log = setting.mainlog();
    assert!(log.contains(" ** gone@y F=<s@x> P=<s@x> R=router T=transport H=host1 "), "{log}");
    assert!(log.contains(" <= <> R="), "{log}");
}

#[tokio::test]
async fn nobody_is_told_who_did_not_want_to_be() {
    let setting = Setting::new(table(&[]));
    let recipient = |notify: &str| Recipient {
        address: "nowhere@z".into(),
        notify: notify.into(),
        ..Recipient::default()
    };
    for (number, notify) in [(1, "NEVER"), (2, "SUCCESS,DELAY")] {
        let envelope = Envelope {
            sender: "s@x".into(),
            recipients: vec![recipient(notify)],
            received: UnixMs(START),
            ..Envelope::default()
        };
        setting.put_envelope(number, envelope);
    }
    setting.until("failed", || setting.queue.len() == 0).await;
    assert!(setting.outcomes().iter().all(|outcome| outcome.creates.is_empty()));
}

#[tokio::test]
async fn a_failed_bounce_is_tried_for_a_day_and_then_dropped() {
    let setting = Setting::new(table(&[]));
    let id = setting.put(1, "", &["nowhere@z"]);
    for round in 1..=3 {
        setting.until("put off", || setting.outcomes().len() == round).await;
        let bounce = &setting.queue.message(id).unwrap().recipients[0];
        assert_eq!(bounce.state, RecipientState::Deferred);
        // Kept for `auto_thaw`, and for no longer than a day in all.
        let wait = bounce.next_due.since(setting.clock_now());
        assert_eq!(wait, 8 * HOUR);
        setting.later(wait);
    }
    setting.until("dropped", || setting.queue.len() == 0).await;
    assert!(setting.outcomes().iter().all(|outcome| outcome.creates.is_empty()));
    setting.until("logged", || setting.mainlog().contains("error message ignored")).await;
}

#[tokio::test]
async fn a_late_message_is_warned_about_once_and_given_up_in_time() {
    let server = good().await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[
        ("late@y", vec![target("late@y", Fate::Defer("host lookup did not complete".into()))]),
        ("s@x", vec![deliver_to("s@x", &there)]),
    ]));
    let id = setting.put(1, "s@x", &["late@y"]);
    setting.until("first attempt", || setting.outcomes().len() == 1).await;
    let due = setting.queue.message(id).unwrap().recipients[0].next_due;
    assert_eq!(due, UnixMs(START).plus(15 * MINUTE));
    for (after, reports) in [(25 * HOUR, 1), (9 * HOUR, 1), (100 * HOUR, 2)] {
        let before = setting.outcomes().len();
        setting.later(after);
        setting.until("next attempt", || setting.outcomes().len() > before).await;
        setting.until("reported", || server.complete().len() == reports).await;
    }
    setting.until("given up", || setting.queue.len() == 0).await;
    let texts: Vec<String> = server
        .complete()
        .iter()
        .map(|taken| String::from_utf8_lossy(&taken.data).into_owned())
        .collect();
    assert!(texts[0].contains("Action: delayed"), "{}", texts[0]);
    assert!(texts[1].contains("retry timeout exceeded"), "{}", texts[1]);
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_not_given_up() {
    let server = good().await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[("a@y", vec![deliver_to("a@y", &there)])]));
    setting.queue.unreadable.store(true, Ordering::SeqCst);
    let id = setting.put(1, "", &["a@y"]);
    setting.until("tried", || setting.outcomes().len() == 1).await;
    setting.later(1000 * HOUR);
    setting.until("tried again", || setting.outcomes().len() == 2).await;
    let attempt = setting.queue.message(id).unwrap().recipients[0].clone();
    assert_eq!(attempt.state, RecipientState::Deferred);
    assert!(server.complete().is_empty());
    setting.queue.unreadable.store(false, Ordering::SeqCst);
    setting.later(16 * MINUTE);
    setting.until("delivered", || server.complete().len() == 1).await;
}

#[tokio::test]
async fn an_alias_keeps_what_is_done_when_one_child_must_wait() {
    let server =
        Server::start(Script { rcpt: vec![("slow", "450 later")], ..Script::default() }).await;
    let there = destination(&[&server], Protocol::Smtp);
    let child = |address: &str| Target {
        parents: vec!["all@ours".into()],
        errors_to: Some("owner@ours".into()),
        ..deliver_to(address, &there)
    };
    let failing = Target {
        parents: vec!["all@ours".into()],
        errors_to: Some("owner@ours".into()),
        ..target("bad@y", Fate::Fail("5.1.1 no such user".into()))
    };
    let setting = Setting::new(table(&[
        ("all@ours", vec![child("quick@y"), child("slow@y"), failing]),
        ("owner@ours", vec![deliver_to("owner@ours", &there)]),
    ]));
    let id = setting.put(1, "s@x", &["all@ours"]);
    setting.until("first attempt", || server.complete().len() == 2).await;
    let message = setting.queue.message(id).unwrap();
    let done: Vec<_> = message.recipients[0].done.iter().map(String::as_str).collect();
    assert_eq!(done, ["bad@y", "quick@y"]);
    let first = setting.outcomes().into_iter().find(|outcome| outcome.message == id).unwrap();
    assert!(first.finished.is_empty());
    assert_eq!(first.creates[0].1.recipients[0].address, "owner@ours");
    setting.later(16 * MINUTE);
    let twice = || setting.outcomes().iter().filter(|outcome| outcome.message == id).count() == 2;
    setting.until("second attempt", twice).await;
    let quick = server.commands().iter().filter(|c| c.contains("quick@y")).count();
    assert_eq!(quick, 1, "a child that is done is not tried again");
    assert!(server.commands().iter().any(|c| c.starts_with("MAIL FROM:<owner@ours>")));
}

#[tokio::test]
async fn a_lost_lease_leaves_the_message_alone() {
    let server = Server::start(Script {
        at_rcpt: Some(Arc::new(|| std::thread::sleep(Duration::from_millis(300)))),
        ..Script::default()
    })
    .await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[("a@y", vec![deliver_to("a@y", &there)])]));
    let id = setting.put(1, "s@x", &["a@y"]);
    setting.until("in flight", || setting.deliverer.attempts_in_flight(1) == 1).await;
    setting.queue.leading.store(false, Ordering::SeqCst);
    setting.until("ended", || setting.deliverer.attempts_in_flight(1) == 0).await;
    assert!(setting.outcomes().is_empty() && server.complete().is_empty());
    assert_eq!(setting.queue.message(id).unwrap().recipients[0].attempts, 0);
    setting.queue.leading.store(true, Ordering::SeqCst);
    setting.until("delivered", || setting.queue.len() == 0).await;
    assert_eq!(server.complete().len(), 1);
}

#[tokio::test]
async fn the_final_dot_waits_until_the_attempt_is_in_the_log() {
    let server = good().await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[("a@y", vec![deliver_to("a@y", &there)])]));
    setting.queue.marks.forget_permits(100_000);
    let one = setting.put(1, "s@x", &["a@y"]);
    // The dialogue runs meanwhile, up to there.
    setting.until("data", || server.commands().iter().any(|c| c == "DATA")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(server.complete().is_empty());
    setting.queue.marks.add_permits(1);
    setting.until("delivered", || setting.queue.len() == 0).await;
    assert_eq!(*setting.queue.begun.lock().unwrap(), [one], "once");
    assert_eq!(server.complete().len(), 1);

    // Refused: nothing is sent, nothing recorded.
    setting.queue.marks.close();
    setting.put(2, "s@x", &["a@y"]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    setting.queue.leading.store(false, Ordering::SeqCst);
    setting.until("ended", || setting.deliverer.attempts_in_flight(1) == 0).await;
    assert_eq!((server.complete().len(), setting.outcomes().len()), (1, 1));
}

#[tokio::test]
async fn what_a_former_leader_records_meanwhile_is_not_sent_again() {
    let server = good().await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[
        ("a@y", vec![deliver_to("a@y", &there)]),
        ("b@y", vec![deliver_to("b@y", &there)]),
    ]));
    setting.queue.marks.forget_permits(100_000);
    let id = setting.put(1, "s@x", &["a@y", "b@y"]);
    let in_data = |n| server.commands().iter().filter(|c| *c == "DATA").count() == n;
    setting.until("data", || in_data(1)).await;
    let delivered = Delivered {
        recipient: 0,
        address: "a@y".into(),
        verdict: Verdict::Delivered,
        text: String::new(),
    };
    setting.queue.apply(&Outcome {
        message: id,
        results: vec![delivered],
        finished: vec![0],
        creates: vec![],
        warned: false,
        goes_on: false,
    });
    setting.queue.marks.add_permits(2);
    setting.until("delivered", || setting.queue.len() == 0).await;
    let complete = server.complete();
    assert!(in_data(2) && complete.len() == 1, "{complete:?}");
    assert_eq!(complete[0].rcpts, ["RCPT TO:<b@y>"]);
}

#[tokio::test]
async fn an_outcome_is_recorded_before_anything_else_happens() {
    let server = good().await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[("a@y", vec![deliver_to("a@y", &there)])]));
    setting
        .queue
        .troubles
        .lock()
        .unwrap()
        .extend([1, 2, 3].map(|s| ProposeError::Timeout(Duration::from_secs(s))));
    setting.put(1, "s@x", &["a@y"]);
    setting.until("delivered", || setting.queue.len() == 0).await;
    assert_eq!((server.complete().len(), setting.outcomes().len()), (1, 1));

    *setting.forwarded.refusals.lock().unwrap() = 1;
    let moved = || ProposeError::NotLeader { leader: Some(2) };
    setting.queue.troubles.lock().unwrap().extend([moved(), moved()]);
    setting.put(2, "s@x", &["a@y"]);
    let forwarded = || setting.forwarded.outcomes.lock().unwrap().len() == 1;
    setting.until("forwarded", forwarded).await;
}

#[tokio::test]
async fn no_reply_to_the_dot_is_tried_again_later() {
    let server = Server::start(Script { close: Some(At::Dot), ..Script::default() }).await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[("a@y", vec![deliver_to("a@y", &there)])]));
    setting.put(1, "s@x", &["a@y"]);
    setting.until("tried", || setting.outcomes().len() == 1).await;
    let verdict = setting.outcomes()[0].results[0].verdict.clone();
    assert_eq!(verdict, Verdict::Deferred { next_due: UnixMs(START).plus(15 * MINUTE) });
}

#[tokio::test]
async fn a_stuck_destination_does_not_hold_up_others() {
    // Accepts connections and says nothing.
    let stuck = Server::start(Script { greeting: "220-wait", ..Script::default() }).await;
    let server = good().await;
    let to_stuck = destination(&[&stuck], Protocol::Smtp);
    let to_good = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[
        ("a@stuck", vec![deliver_to("a@stuck", &to_stuck)]),
        ("a@good", vec![deliver_to("a@good", &to_good)]),
    ]));
    for number in 0..300 {
        setting.put(number, "s@x", &["a@stuck"]);
    }
    for number in 300..400 {
        setting.put(number, "s@x", &["a@good"]);
    }
    setting.until("delivered", || server.complete().len() == 100).await;
    assert!(stuck.connections() <= 20);
    // Those that hang are given up.
    setting.finish().await;
    assert_eq!(setting.deliverer.attempts_in_flight(1), 0);
}

/// More messages than a destination has places for: each is delivered once, and soon.
#[tokio::test]
async fn a_burst_to_one_destination_is_delivered_once_each() {
    let server = good().await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[("a@y", vec![deliver_to("a@y", &there)])]));
    for number in 0..600 {
        setting.put(number, "s@x", &["a@y"]);
    }
    setting.until("delivered", || setting.queue.len() == 0).await;
    assert_eq!(server.complete().len(), 600);
    assert!(server.connections() <= 25, "{} connections", server.connections());
}
