//! Taking over: who waits, who does not, and what a hand-over leaves in the log.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    fake::{NODE, World, world},
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

#[tokio::test]
async fn after_an_unplanned_takeover_due_messages_wait() {
    let world = world();
    let old = accept(&world, 1, 1_000_000);
    let future = accept(&world, 2, 2_010_000);
    assert_eq!(world.due(), [old], "a follower sees the queue as it is");
    world.fake.elect();
    let new = accept(&world, 3, 2_000_000);
    assert_eq!(world.due(), [new]);
    let end = UnixMs(2_000_000).plus(TAKEOVER_GRACE);
    assert_eq!(world.get(old).unwrap().not_before, end);
    assert_eq!(world.get(old).unwrap().recipients[0].next_due, UnixMs(1_000_000), "untouched");
    assert_eq!(world.get(new).unwrap().not_before, UnixMs(0));

    world.clock.0.store(2_015_000, Ordering::SeqCst);
    assert_eq!(world.due(), [new, future], "what was not due at the takeover does not wait");
    world.clock.0.store(end.0, Ordering::SeqCst);
    assert_eq!(world.due(), [old, new, future]);
}

#[tokio::test]
async fn the_grace_ends_for_a_message_that_is_changed_and_with_the_leadership() {
    let world = world();
    let (one, two) = (accept(&world, 1, 1_000_000), accept(&world, 2, 1_000_001));
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
async fn a_planned_takeover_has_no_delay() {
    let world = world();
    let old = accept(&world, 1, 1_000_000);
    world.fake.append(entry::handover(NODE));
    world.fake.elect();
    assert_eq!(world.due(), [old]);
    // Led again in a later term, without a hand-over in the one before: unplanned.
    world.fake.elect();
    assert_eq!(world.due(), []);
}

#[tokio::test]
async fn a_hand_over_to_another_or_long_ago_is_no_plan() {
    let world = world();
    accept(&world, 1, 1_000_000);
    world.fake.append(entry::handover(NODE + 1));
    world.fake.elect();
    assert_eq!(world.due(), []);
    world.fake.append(entry::handover(NODE));
    // Somebody else may have led, and delivered, in the next term.
    world.fake.term.fetch_add(1, Ordering::SeqCst);
    world.fake.elect();
    assert_eq!(world.due(), []);
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
    let due = world.replica.due(world.clock.now(), 3, &skip);
    assert_eq!(due.iter().map(|m| m.id).collect::<Vec<_>>(), [all[0], all[10], all[20]]);
    assert_eq!(world.replica.due(world.clock.now(), 100, &skip).len(), 5);
    assert_eq!(world.replica.due(UnixMs(999_999), 100, &|_| false).len(), 0);
}
