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
use std::collections::BTreeSet;

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
    let whole = Expand { message: id, into: members, due: UnixMs(1_600_000), ..Expand::default() };
    world.fake.append(entry::expand(&whole));
    let message = world.get(id).unwrap();
    let open: Vec<_> = message.recipients.iter().map(Attempt::is_open).collect();
    assert_eq!(open, [false, true, true, true]);
    assert!(refused(&world.fake.append(entry::expand(&whole))), "once");
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
    let newer = SpoolEntry { version: 3, kind: abort };
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

/// An expansion of recipient `recipient` of `message`.
fn expansion(message: MessageId, recipient: u32, first: u32, into: &[&str]) -> Expand {
    let to = |a: &&str| Recipient { address: (*a).to_owned(), ..Recipient::default() };
    let from = Expansion {
        recipient,
        address: "l-outgoing@lists.example".to_owned(),
        parents: vec!["r0@example.org".to_owned()],
        errors_to: Some("l-request@lists.example".to_owned()),
    };
    let (into, due) = (into.iter().map(to).collect(), UnixMs(1_600_000));
    Expand { message, from, into, due, first, goes_on: false }
}

#[tokio::test]
async fn an_expansion_is_recorded_once_and_its_recipients_are_tried_each() {
    let world = world();
    world.fake.elect();
    let id = accept(&world, 1, 2);
    let expand = expansion(id, 0, 2, &["a@x", "b@x"]);
    let other = Expand { first: 3, ..expand.clone() };
    assert!(refused(&world.fake.append(entry::expand(&other))), "another message than was seen");
    world.fake.append(entry::expand(&expand));
    assert!(refused(&world.fake.append(entry::expand(&expand))), "once");
    assert!(refused(&world.fake.append(entry::expand(&Expand { first: 4, ..expand.clone() }))));
    let message = world.get(id).unwrap();
    let open: Vec<_> = message.recipients.iter().map(Attempt::is_open).collect();
    assert_eq!(open, [true; 4], "where it came from may lead elsewhere, too");
    assert_eq!(message.expansion_of(3), Some(&expand.from));
    assert_eq!(message.expansion_of(0), None);
    assert_eq!(message.ancestors(3), ["r0@example.org", "l-outgoing@lists.example"]);

    // Each has a fate of its own.
    let key = Expansion::key("l-outgoing@lists.example");
    let are_open =
        |addresses: &[(u32, &str)]| world.replica.machine.lock().index.are_open(id, addresses);
    assert!(are_open(&[(3, "b@x"), (1, "r1@example.org"), (3, "other")]));
    assert!(!are_open(&[(1, "r1@example.org"), (0, &key)]));
    assert!(!are_open(&[(4, "nobody")]));
    let mut some = outcome(id, 2, Verdict::Delivered, true);
    some.results[0].address = "a@x".to_owned();
    some.finished.push(0);
    world.fake.append(entry::outcome(&some));
    let message = world.get(id).unwrap();
    let open: Vec<_> = message.recipients.iter().map(Attempt::is_open).collect();
    assert_eq!(open, [false, true, false, true]);
    assert!(!are_open(&[(2, "a@x")]) && are_open(&[(3, "b@x")]));
    assert!(message.recipients[0].done.contains(&key), "another may lead there yet");
    assert!(message.recipients[2].done.is_empty());

    // One of them is a list, too.
    let mut deeper = expansion(id, 3, 4, &["c@x"]);
    deeper.from.parents = vec!["b@x".to_owned()];
    deeper.from.address = "m@x".to_owned();
    world.fake.append(entry::expand(&deeper));
    let message = world.get(id).unwrap();
    let chain = ["r0@example.org", "l-outgoing@lists.example", "b@x", "m@x"];
    assert_eq!(message.ancestors(4), chain);
}

#[tokio::test]
async fn an_expansion_too_long_for_an_entry_is_recorded_in_parts() {
    let world = world();
    world.fake.elect();
    let id = accept(&world, 1, 1);
    let members: Vec<String> =
        (0..50_000).map(|n| format!("member{n:05}@{}.example", "d".repeat(60))).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let parts = expansion(id, 0, 1, &members).split();
    assert_eq!(
        parts.iter().map(|part| part.first).collect::<Vec<_>>()[..2],
        [1, 1 + parts[0].into.len() as u32]
    );
    let goes_on: Vec<bool> = parts.iter().map(|part| part.goes_on).collect();
    assert!(goes_on.iter().rev().skip(1).all(|more| *more) && goes_on.last() == Some(&false));
    for part in &parts {
        let entry = entry::expand(part);
        assert!(entry.len() < crate::limits::ENTRY_BYTES_MAX, "{} bytes", entry.len());
        assert!(!refused(&world.fake.append(entry)));
    }
    let message = world.get(id).unwrap();
    assert_eq!((message.recipients.len(), message.expansions.len()), (50_001, 1));
    assert_eq!(message.recipients[50_000].recipient.address, members[49_999]);
    let addresses: Vec<(u32, &str)> = (1..101).map(|n| (n * 400, "x")).collect();
    assert!(world.replica.machine.lock().index.are_open(id, &addresses));
}

/// What a node may expand must fit into one entry again when it is carried.
#[test]
fn all_that_may_be_expanded_can_be_carried() {
    let bytes = crate::limits::EXPANDED_BYTES_MAX;
    let address = "m".repeat(30);
    let count = bytes / (address.len() + crate::limits::RECIPIENT_OVERHEAD);
    assert!(count >= 50_000, "{count}");
    let attempt = |state| Attempt {
        recipient: Recipient { address: address.clone(), ..Recipient::default() },
        state,
        attempts: 200,
        last_error: String::new(),
        next_due: UnixMs(1_795_464_000_000),
        done: BTreeSet::new(),
        expansion: Some(0),
    };
    let mut message = QueuedMessage {
        id: id(1),
        envelope: envelope(1000),
        state: MessageState::Queued,
        recipients: vec![attempt(RecipientState::Deferred); count],
        expansions: vec![expansion(id(1), 0, 1, &[]).from],
        body: Body::Inline { index: 0 },
        size: 0,
        warned: true,
        not_before: UnixMs(0),
    };
    message.envelope.recipients.truncate(1000);
    let body = BodyBytes::Inline(Bytes::from(vec![b'x'; crate::limits::INLINE_BODY_BYTES_MAX]));
    let entry = entry::carry(&message, entry::Tried::default(), 7, body);
    assert!(entry.len() <= crate::limits::ENTRY_BYTES_MAX, "{} bytes", entry.len());
}
