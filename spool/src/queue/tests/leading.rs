//! Taking over: who waits, who does not, and what a hand-over leaves in the log.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    fake::{Mode, NODE, World, world},
    *,
};
use crate::{
    env::Clock as _,
    group::{Leadership, Machine, Reply},
    limits::TAKEOVER_GRACE,
    queue::{
        entry::{self, BodyBytes},
        upkeep,
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn accept(world: &World, n: u64, received: u64) -> MessageId {
    let body = BodyBytes::Inline(bytes::Bytes::from_static(b"hello"));
    let envelope = Envelope { received: UnixMs(received), ..envelope(1) };
    assert_eq!(world.fake.append(entry::accept(id(n), &envelope, body)), Reply::Done);
    id(n)
}

fn begin(world: &World, ids: &[MessageId]) {
    assert_eq!(world.fake.append(entry::begin(ids)), Reply::Done);
}

fn abort(world: &World, id: MessageId) -> bool {
    world.fake.append(entry::abort(id, false)) == Reply::Done
}

#[tokio::test]
async fn after_an_unplanned_takeover_what_may_be_in_flight_waits() {
    let world = world();
    let all: Vec<_> = (1..=4).map(|n| accept(&world, n, 1_000_000 + n)).collect();
    let (tried, in_flight, deferred, untouched) = (all[0], all[1], all[2], all[3]);
    begin(&world, &all[..3]);
    let done = outcome(tried, 0, Verdict::Delivered, true);
    assert_eq!(world.fake.append(entry::outcome(&done)), Reply::Done);
    let later = Verdict::Deferred { next_due: UnixMs(2_010_000) };
    assert_eq!(world.fake.append(entry::outcome(&outcome(deferred, 0, later, false))), Reply::Done);
    assert_eq!(world.due(), [in_flight, untouched], "a follower sees the queue as it is");
    world.fake.elect();
    let new = accept(&world, 5, 2_000_000);
    assert_eq!(world.due(), [untouched, new]);
    let end = UnixMs(2_000_000).plus(TAKEOVER_GRACE);
    assert_eq!(world.get(in_flight).unwrap().not_before, end);
    assert_eq!(
        world.get(in_flight).unwrap().recipients[0].next_due,
        UnixMs(1_000_002),
        "untouched"
    );
    assert_eq!(world.get(new).unwrap().not_before, UnixMs(0));

    world.clock.0.store(2_015_000, Ordering::SeqCst);
    assert_eq!(world.due(), [untouched, new, deferred], "its outcome is known");
    world.clock.0.store(end.0, Ordering::SeqCst);
    assert_eq!(world.due(), [in_flight, untouched, new, deferred]);
}

#[tokio::test]
async fn the_grace_ends_for_a_message_that_is_changed_and_with_the_leadership() {
    let world = world();
    let (one, two) = (accept(&world, 1, 1_000_000), accept(&world, 2, 1_000_001));
    begin(&world, &[one, two]);
    world.fake.elect();
    assert_eq!(world.due(), []);
    let next = world.replica.machine.lock().index.next_due();
    assert_eq!(next, Some(UnixMs(2_000_000).plus(TAKEOVER_GRACE)));
    world.fake.append(entry::release(one, Some(UnixMs(1_500_000))));
    assert_eq!(world.due(), [one]);
    world.replica.machine.leadership(Leadership::Following { leader: None });
    assert_eq!(world.due(), [two, one]);
}

#[tokio::test]
async fn the_outcome_of_the_former_leader_ends_the_wait() {
    let world = world();
    let one = accept(&world, 1, 1_000_000);
    begin(&world, &[one]);
    world.fake.elect();
    let later = outcome(one, 0, Verdict::Deferred { next_due: UnixMs(2_000_000) }, false);
    world.replica.record(later.clone(), SECOND).await.unwrap();
    assert_eq!(world.due(), [one]);
    assert_eq!(world.get(one).unwrap().not_before, UnixMs(0));
    // Another of it, and one that comes when the message is done: nothing happens.
    let done = outcome(one, 0, Verdict::Delivered, true);
    world.replica.record(done.clone(), SECOND).await.unwrap();
    world.replica.record(done, SECOND).await.unwrap();
    world.replica.record(later, SECOND).await.unwrap();
    assert_eq!(world.summary().queued, 0);
}

#[tokio::test]
async fn an_early_outcome_leaves_the_mark_and_the_wait() {
    let world = world();
    let (message, body) = (id(1), BodyBytes::Inline(bytes::Bytes::from_static(b"hello")));
    world.fake.append(entry::accept(message, &envelope(2), body));
    begin(&world, &[message]);
    let early = |recipient| Outcome {
        goes_on: true,
        ..outcome(message, recipient, Verdict::Delivered, true)
    };
    world.replica.record(early(0), SECOND).await.unwrap();
    world.fake.elect();
    assert_eq!(world.due(), [], "the other recipient may be in flight");
    // One that the former leader sends: still something is to come.
    let later = outcome(message, 1, Verdict::Deferred { next_due: UnixMs(2_000_000) }, false);
    world.replica.record(Outcome { goes_on: true, ..later.clone() }, SECOND).await.unwrap();
    assert_eq!(world.due(), []);
    world.replica.record(later, SECOND).await.unwrap();
    assert_eq!(world.due(), [message]);
}

#[tokio::test]
async fn a_planned_takeover_has_no_delay() {
    let world = world();
    let old = accept(&world, 1, 1_000_000);
    begin(&world, &[old]);
    world.fake.append(entry::handover(NODE));
    // It was on its way when the attempts ended.
    begin(&world, &[old]);
    world.fake.elect();
    assert_eq!(world.due(), [old]);
    // Led again in a later term, without a hand-over in the one before: unplanned.
    world.fake.elect();
    assert_eq!(world.due(), []);
}

#[tokio::test]
async fn a_hand_over_to_another_or_long_ago_is_no_plan() {
    let world = world();
    let old = accept(&world, 1, 1_000_000);
    world.fake.append(entry::handover(NODE + 1));
    begin(&world, &[old]);
    world.fake.elect();
    assert_eq!(world.due(), []);
    world.fake.append(entry::handover(NODE));
    begin(&world, &[old]);
    // Somebody else may have led, and delivered, in the next term.
    world.fake.term.fetch_add(1, Ordering::SeqCst);
    world.fake.elect();
    assert_eq!(world.due(), []);
}

#[tokio::test]
async fn attempts_of_one_moment_are_marked_by_one_entry() {
    let world = world();
    world.fake.elect();
    let all: Vec<_> = (0..100).map(|n| accept(&world, n, 1_000_000 + n)).collect();
    let before = world.fake.log.lock().unwrap().len();
    let begin = |id: &MessageId| Arc::clone(&world.replica).begin(*id);
    let begun = futures::future::join_all(all.iter().map(begin)).await;
    assert!(begun.iter().all(|begun| *begun));
    let entries = world.fake.log.lock().unwrap().len() - before;
    assert!(entries < 10, "{entries} entries");
    // Once marked, always marked, until an outcome says how it went.
    assert!(begin(&all[0]).await);
    assert_eq!(world.fake.log.lock().unwrap().len() - before, entries);
    let later = Verdict::Deferred { next_due: UnixMs(1_000_000) };
    world.replica.record(outcome(all[0], 0, later, false), SECOND).await.unwrap();
    assert!(begin(&all[0]).await);
    assert_eq!(world.fake.log.lock().unwrap().len() - before, entries + 2);
}

#[tokio::test]
async fn an_attempt_that_is_not_in_the_log_is_not_made() {
    let world = world();
    world.fake.elect();
    let (one, two) = (accept(&world, 1, 1_000_000), accept(&world, 2, 1_000_000));
    world.fake.set(Mode::Elsewhere);
    assert!(!Arc::clone(&world.replica).begin(one).await);
    world.fake.set(Mode::Commits);
    assert!(Arc::clone(&world.replica).begin(one).await);
    // The log has one order: the abort was first, or it is too late.
    assert!(abort(&world, two));
    assert!(!Arc::clone(&world.replica).begin(two).await);
    assert!(!abort(&world, one));
    assert_eq!(world.due(), [one]);
}

#[tokio::test]
async fn an_abort_follows_the_leadership() {
    let world = world();
    let one = accept(&world, 1, 1_000_000);
    world.fake.elect();
    world.replica.enter(one);
    world.replica.leave(one, true);
    assert!(!Arc::clone(&world.replica).begin(one).await, "its client has got 451");
    world.replica.machine.leadership(Leadership::Following { leader: None });
    *world.fake.leader_known.lock().unwrap() = false;
    upkeep::settle(&world.replica).await.unwrap_err();
    assert!(world.replica.is_doomed(one), "not forgotten");
    world.replica.machine.leadership(Leadership::Following { leader: Some(2) });
    *world.fake.leader_known.lock().unwrap() = true;
    upkeep::settle(&world.replica).await.unwrap();
    assert_eq!((world.summary().queued, world.replica.is_doomed(one)), (0, false));
}

#[tokio::test]
async fn a_failed_hand_over_is_taken_back_in_the_log_before_deliveries_go_on() {
    let world = world();
    world.fake.elect();
    assert!(world.replica.may_deliver());
    world.replica.hand_over(9, SECOND).await.unwrap_err();
    assert!(!world.replica.is_quiesced(), "resumed");
    assert!(!world.replica.may_deliver(), "but the log still says that node 9 may deliver");
    upkeep::settle(&world.replica).await.unwrap();
    assert!(world.replica.may_deliver());
}

#[tokio::test]
async fn a_hand_over_to_itself_does_not_end_deliveries() {
    let world = world();
    world.fake.elect();
    world.replica.hand_over(NODE, SECOND).await.unwrap();
    assert!(world.replica.may_deliver());
}

#[tokio::test]
async fn quiescing_lasts_as_long_as_the_leadership() {
    let world = world();
    world.fake.elect();
    world.replica.quiesce();
    assert!(!world.replica.may_deliver());
    world.replica.resume();
    assert!(world.replica.may_deliver());
    world.replica.hand_over(2, SECOND).await.unwrap();
    assert!(!world.replica.may_deliver(), "node 2 leads");
    world.fake.elect();
    assert!(world.replica.may_deliver(), "its own leader again");
}

#[tokio::test]
async fn what_is_due_leaves_out_what_is_in_flight() {
    let world = world();
    world.fake.elect();
    let all: Vec<_> = (0..50).map(|n| accept(&world, n, 1_000_000 + n)).collect();
    let skip = |id: MessageId| !id.counter.is_multiple_of(10);
    let due = world.replica.due(world.clock.now(), Turn::First, 3, &skip);
    assert_eq!(due.iter().map(|m| m.id).collect::<Vec<_>>(), [all[0], all[10], all[20]]);
    assert_eq!(world.replica.due(world.clock.now(), Turn::First, 100, &skip).len(), 5);
    assert_eq!(world.replica.due(UnixMs(999_999), Turn::First, 100, &|_| false).len(), 0);
}
