//! What each kind of entry does to a message.

use super::{
    fake::{World, world},
    *,
};
use crate::{
    group::{Checkpoint, Machine, Reply},
    queue::entry::{self, BodyBytes},
};
use bytes::Bytes;

fn refused(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(_))
}

fn accept(world: &World, n: u64, recipients: usize) -> MessageId {
    let body = BodyBytes::Inline(Bytes::from_static(b"hello"));
    let entry = entry::accept(id(n), &envelope(recipients), body);
    assert_eq!(world.fake.append(entry), Reply::Done);
    id(n)
}

#[tokio::test]
async fn recipients_leave_one_by_one_and_then_the_message() {
    let world = world();
    let id = accept(&world, 1, 2);
    let later = Verdict::Deferred { next_due: UnixMs(5_000_000) };
    world.fake.append(entry::outcome(&outcome(id, 0, later, false)));
    world.fake.append(entry::outcome(&outcome(id, 1, Verdict::Delivered, true)));
    let message = world.get(id).unwrap();
    let [deferred, done] = &message.recipients[..] else { panic!("two recipients") };
    assert_eq!((deferred.state, deferred.attempts), (RecipientState::Deferred, 1));
    assert_eq!(
        (deferred.next_due, deferred.last_error.as_str()),
        (UnixMs(5_000_000), "451 4.2.2 later")
    );
    assert_eq!((done.state, done.attempts), (RecipientState::Delivered, 1));
    assert_eq!(world.replica.machine.lock().index.next_due(), Some(UnixMs(5_000_000)));
    let again = world.fake.append(entry::outcome(&outcome(id, 1, Verdict::Delivered, true)));
    assert!(refused(&again), "recorded already");
    let nobody = world.fake.append(entry::outcome(&outcome(id, 2, Verdict::Delivered, true)));
    assert!(refused(&nobody), "no such recipient");
    world.fake.append(entry::outcome(&outcome(id, 0, Verdict::Failed, true)));
    assert_eq!(world.summary(), Summary::default());
    let gone = world.fake.append(entry::outcome(&outcome(id, 0, Verdict::Failed, true)));
    assert!(refused(&gone), "unknown message");
}

#[tokio::test]
async fn an_alias_is_done_address_by_address() {
    let world = world();
    let id = accept(&world, 1, 1);
    let result = |address: &str, verdict| Delivered {
        recipient: 0,
        address: address.into(),
        verdict,
        text: "x".repeat(3000),
    };
    let attempt = Outcome {
        results: vec![
            result("a@x", Verdict::Delivered),
            result("b@x", Verdict::Deferred { next_due: UnixMs(9_000_000) }),
            result("c@x", Verdict::Deferred { next_due: UnixMs(8_000_000) }),
        ],
        ..outcome(id, 0, Verdict::Delivered, false)
    };
    world.fake.append(entry::outcome(&attempt));
    let message = world.get(id).unwrap();
    let attempt = &message.recipients[0];
    assert_eq!(attempt.done.iter().collect::<Vec<_>>(), ["a@x"]);
    assert_eq!((attempt.attempts, attempt.next_due), (1, UnixMs(8_000_000)));
    assert_eq!(attempt.last_error.len(), 1024);
}

#[tokio::test]
async fn a_bounce_is_queued_with_the_failure_and_only_once() {
    let world = world();
    let (failed, bounce) = (accept(&world, 1, 2), id(2));
    let created = (bounce, envelope(1), Bytes::from_static(b"sorry"));
    let made = Outcome { creates: vec![created], ..outcome(failed, 0, Verdict::Failed, true) };
    world.fake.append(entry::outcome(&made));
    assert_eq!(world.body(bounce).await, b"Received: here\r\nsorry");
    world.fake.append(entry::outcome(&outcome(bounce, 0, Verdict::Delivered, true)));
    assert!(world.get(bounce).is_none());
    // The proposer did not hear of it and records once more, now with another recipient.
    let both = Outcome { finished: vec![0, 1], ..made };
    world.fake.append(entry::outcome(&both));
    assert!(world.get(bounce).is_none(), "its ghost");
    assert!(world.get(failed).is_none());
}

#[tokio::test]
async fn an_abort_comes_too_late_when_the_message_has_been_tried() {
    let world = world();
    let (tried, fresh) = (accept(&world, 1, 1), accept(&world, 2, 1));
    let later = Verdict::Deferred { next_due: UnixMs(5_000_000) };
    world.fake.append(entry::outcome(&outcome(tried, 0, later, false)));
    assert!(refused(&world.fake.append(entry::abort(tried, false))));
    assert!(refused(&world.fake.append(entry::abort(fresh, true))), "no upload");
    assert_eq!(world.summary().queued, 2);
    assert_eq!(world.fake.append(entry::abort(fresh, false)), Reply::Done);
    assert!(world.get(fresh).is_none() && world.get(tried).is_some());
    let late = BodyBytes::Inline(Bytes::new());
    assert!(refused(&world.fake.append(entry::accept(fresh, &envelope(1), late.clone()))));
    assert!(refused(&world.fake.append(entry::accept(tried, &envelope(1), late))));
    assert!(refused(&world.fake.append(entry::chunk(fresh, 0, Bytes::new()))));
}

#[tokio::test]
async fn an_acceptance_needs_all_of_its_chunks() {
    let world = world();
    let chunk = |n, number| entry::chunk(id(n), number, Bytes::from_static(b"12345"));
    let accept =
        |n, count, bytes| entry::accept(id(n), &envelope(1), BodyBytes::Chunks { count, bytes });
    world.fake.append(chunk(1, 1));
    assert!(refused(&world.fake.append(accept(1, 2, 10))), "chunk 0 is missing");
    assert_eq!(world.summary().uploads, 0, "and nobody waits for it");
    world.fake.append(chunk(2, 0));
    assert!(refused(&world.fake.append(accept(2, 1, 6))), "a byte is missing");
    world.fake.append(chunk(3, 1));
    world.fake.append(chunk(3, 0));
    assert_eq!(world.fake.append(accept(3, 2, 10)), Reply::Done);
    assert_eq!(world.get(id(3)).unwrap().body, Body::Chunks { indexes: vec![5, 4] });
    let nobody = entry::accept(id(4), &envelope(0), BodyBytes::Inline(Bytes::new()));
    assert!(refused(&world.fake.append(nobody)));
}

#[tokio::test]
async fn operators_hold_release_redirect_and_expand() {
    let world = world();
    let id = accept(&world, 1, 1);
    assert!(refused(&world.fake.append(entry::hold(super::id(7)))));
    world.fake.append(entry::hold(id));
    assert_eq!(world.due(), []);
    assert_eq!((world.summary().held, world.summary().queued), (1, 0));
    world.fake.append(entry::release(id, None));
    assert_eq!(world.get(id).unwrap().recipients[0].next_due, UnixMs(1_000_000));
    world.fake.append(entry::release(id, Some(UnixMs(3_000_000))));
    assert_eq!(world.get(id).unwrap().recipients[0].next_due, UnixMs(3_000_000));

    world.fake.append(entry::edit(id, 0, "elsewhere@example.net", UnixMs(1_500_000)));
    let message = world.get(id).unwrap();
    assert_eq!(message.recipients[0].recipient.address, "elsewhere@example.net");
    assert_eq!(message.envelope.recipients[0].address, "r0@example.org", "as accepted");
    assert_eq!(world.due(), [id]);

    let members = envelope(3).recipients;
    world.fake.append(entry::expand(id, 0, &members, UnixMs(1_600_000)));
    let message = world.get(id).unwrap();
    let open: Vec<_> = message.recipients.iter().map(Attempt::is_open).collect();
    assert_eq!(open, [false, true, true, true]);
    assert!(refused(&world.fake.append(entry::expand(id, 0, &members, UnixMs(0)))), "once");
    assert!(refused(&world.fake.append(entry::edit(id, 9, "x", UnixMs(0)))));
}

#[tokio::test]
async fn what_nobody_knows_is_refused_and_changes_nothing() {
    use ppsw_proto::queue::{Abort, SpoolEntry, spool_entry::Kind};
    use prost::Message as _;
    let world = world();
    let id = accept(&world, 1, 1);
    let message = Some(ppsw_proto::queue::MessageId { second: 1_000, counter: 1, node: 1 });
    let abort = Some(Kind::Abort(Abort { message, upload_only: false }));
    let newer = SpoolEntry { version: 2, kind: abort };
    let unknown = SpoolEntry { version: 1, kind: None };
    for entry in [newer.encode_to_vec(), unknown.encode_to_vec(), vec![0xff; 9], vec![]] {
        assert!(refused(&world.fake.append(entry.into())));
    }
    assert!(world.get(id).is_some());
}

#[tokio::test]
async fn a_checkpoint_keeps_ids_unique() {
    let world = world();
    accept(&world, 77, 1);
    let checkpoint = world.replica.machine.checkpoint(crate::group::Position { term: 1, index: 0 });
    assert_eq!(checkpoint.upto, None, "the first entry is needed");
    let restarted = fake::world();
    restarted.replica.machine.restore(&Checkpoint { upto: Some(5), ..checkpoint });
    assert!(restarted.ids.next(UnixMs(0)).unwrap() > id(77));
}

#[tokio::test]
async fn an_outcome_too_long_for_an_entry_is_recorded_in_parts() {
    let world = world();
    world.fake.elect();
    let id = accept(&world, 1, 4001);
    let result = |recipient| Delivered {
        recipient,
        address: "x".repeat(300),
        verdict: Verdict::Failed,
        text: "y".repeat(1024),
    };
    let bounces = (2..42).map(|n| (super::id(n), envelope(1), Bytes::from(vec![b'z'; 60_000])));
    let long = Outcome {
        message: id,
        results: (0..4000).map(result).collect(),
        finished: (0..4000).collect(),
        creates: bounces.collect(),
        warned: false,
        goes_on: false,
    };
    let deadline = std::time::Duration::from_secs(1);
    world.replica.record(long.clone(), deadline).await.unwrap();
    let open = |message: &QueuedMessage| message.recipients.iter().filter(|r| r.is_open()).count();
    let message = world.get(id).unwrap();
    assert_eq!(open(&message), 1);
    assert_eq!(message.recipients[3999].state, RecipientState::Failed);
    assert_eq!(world.summary().queued, 41);
    let longest = world.fake.log.lock().unwrap().iter().map(Bytes::len).max();
    assert!(longest < Some(crate::limits::ENTRY_BYTES_MAX));
    world.replica.record(long, deadline).await.unwrap();
    assert_eq!(world.summary().queued, 41, "once more changes nothing");
}
