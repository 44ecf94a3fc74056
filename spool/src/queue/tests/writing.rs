//! The writer against a group that commits, stalls, or has moved.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    fake::{Mode, World, world},
    *,
};
use crate::{
    limits::{CHUNK_BESIDE_SHORT_BYTES, CHUNK_BYTES_MAX, CHUNKS_PER_PARTITION_KIB_MAX},
    queue::upkeep,
};

const SECOND: Duration = Duration::from_secs(1);

fn led() -> World {
    let world = world();
    world.fake.elect();
    world
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn a_small_message_is_one_entry() {
    let world = led();
    let mut writer = world.writer();
    writer.write(b"Subject: hello\r\n").await.unwrap();
    writer.write(b"\r\nhello\r\n").await.unwrap();
    let id = writer.accept(envelope(2), SECOND).await.unwrap();
    assert_eq!(world.fake.log.lock().unwrap().len(), 1);
    assert_eq!(world.body(id).await, b"Received: here\r\nSubject: hello\r\n\r\nhello\r\n");
    let message = world.get(id).unwrap();
    assert_eq!((message.size, message.recipients.len()), (41, 2));
    assert_eq!(message.body, Body::Inline { index: 0 });
}

#[tokio::test]
async fn an_empty_body_is_a_message_too() {
    let world = led();
    let id = world.writer().accept(envelope(1), SECOND).await.unwrap();
    assert_eq!(world.body(id).await, b"Received: here\r\n");
}

#[tokio::test]
async fn a_large_message_goes_in_chunks_of_which_few_are_in_flight() {
    let world = led();
    let bytes = content(CHUNK_BYTES_MAX * 9 + 1000);
    let mut writer = world.writer();
    for piece in bytes.chunks(60_000) {
        writer.write(piece).await.unwrap();
    }
    let id = writer.accept(envelope(1), SECOND * 9).await.unwrap();
    assert_eq!(world.fake.log.lock().unwrap().len(), 11, "ten chunks and the acceptance");
    assert!(world.fake.waiting_most.load(Ordering::SeqCst) <= 4);
    assert_eq!(world.body(id).await[16..], bytes[..]);
    assert_eq!(world.summary().uploads, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_group_holds_the_writer_at_four_chunks() {
    let world = led();
    world.fake.gate.forget_permits(10_000);
    let mut writer = world.writer();
    let four = content(CHUNK_BYTES_MAX * 4);
    writer.write(&four).await.unwrap();
    let fifth = tokio::time::timeout(SECOND, writer.write(&four[..CHUNK_BYTES_MAX])).await;
    assert!(fifth.is_err(), "waits");
    assert_eq!(world.fake.waiting_most.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn long_messages_share_the_places_of_their_partition() {
    let world = led();
    world.fake.gate.forget_permits(10_000);
    let (bytes, writers) = (content(CHUNK_BYTES_MAX * 3), 20);
    let write = |mut writer: MessageWriter| {
        let bytes = bytes.clone();
        async move {
            writer.write(&bytes).await.unwrap();
            writer.accept(envelope(1), 100 * SECOND).await
        }
    };
    let all = futures::future::join_all((0..writers).map(|_| write(world.writer())));
    let (all, ()) = tokio::join!(all, async {
        tokio::time::sleep(SECOND).await;
        let waiting = || world.fake.waiting_most.load(Ordering::SeqCst) as usize;
        let places = CHUNKS_PER_PARTITION_KIB_MAX * 1024 / CHUNK_BYTES_MAX;
        assert_eq!(waiting(), places);
        world.fake.gate.add_permits(1_000);
    });
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    let entries = world.fake.log.lock().unwrap().len();
    assert_eq!(entries, writers * 4, "three chunks and the acceptance of each");
}

#[tokio::test(start_paused = true)]
async fn beside_short_messages_long_ones_go_chunk_by_chunk() {
    let world = led();
    world.writer().accept(envelope(1), SECOND).await.unwrap();
    let bytes = content(CHUNK_BYTES_MAX * 3);
    let write = |mut writer: MessageWriter| {
        let bytes = bytes.clone();
        async move {
            writer.write(&bytes).await.unwrap();
            writer.accept(envelope(1), 100 * SECOND).await
        }
    };
    world.fake.gate.forget_permits(10_000);
    let all = futures::future::join_all((0..4).map(|_| write(world.writer())));
    let (all, ()) = tokio::join!(all, async {
        // Before the first of them is complete.
        for chunk in 1..=6 {
            tokio::time::sleep(SECOND).await;
            assert_eq!(world.fake.waiting_most.load(Ordering::SeqCst), 1, "chunk {chunk}");
            world.fake.gate.add_permits(1);
        }
        tokio::time::sleep(SECOND).await;
        // What is small needs no place.
        assert!(world.writer().accept(envelope(1), SECOND).await.is_err());
        assert_eq!(world.fake.waiting_most.load(Ordering::SeqCst), 2);
        world.fake.gate.add_permits(1_000);
    });
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    let later = CHUNK_BYTES_MAX * 2 / CHUNK_BESIDE_SHORT_BYTES;
    let chunks = world.fake.log.lock().unwrap().len() - 1 - all.len();
    assert_eq!(chunks, all.len() * (1 + later), "one of 256 KiB, the others of 64");
    for (id, _) in all.into_iter().zip(0..2) {
        assert_eq!(world.body(id.unwrap()).await[16..], bytes[..]);
    }
}

#[tokio::test(start_paused = true)]
async fn no_answer_in_time_means_no_majority_and_an_abort() {
    let world = led();
    world.fake.set(Mode::Mute);
    let mut writer = world.writer();
    writer.write(b"hello").await.unwrap();
    let id = writer.id();
    let error = writer.accept(envelope(1), SECOND).await.unwrap_err();
    assert!(matches!(error, AcceptError::NoMajority), "{error}");
    assert!(world.get(id).is_some(), "it was committed after all");
    assert_eq!(world.due(), [], "but nobody delivers it");
    world.fake.set(Mode::Commits);
    upkeep::settle(&world.replica).await.unwrap();
    assert!(world.get(id).is_none());
    assert!(world.replica.doomed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_is_not_committed_in_time_ends_the_message() {
    let world = led();
    world.fake.gate.forget_permits(10_000);
    let mut writer = world.writer();
    let error = writer.write(&content(CHUNK_BYTES_MAX * 5)).await.unwrap_err();
    assert!(matches!(error, AcceptError::NoMajority), "{error}");
    assert!(matches!(writer.write(b"more").await, Err(AcceptError::NoMajority)));
}

#[tokio::test]
async fn low_disks_end_a_message_before_it_is_taken() {
    let world = led();
    let mut long = world.writer();
    long.write(&content(CHUNK_BYTES_MAX * 3)).await.unwrap();
    let mut short = world.writer();
    short.write(b"small").await.unwrap();
    let entries = world.fake.log.lock().unwrap().len();
    world.fake.headroom.store(0, Ordering::SeqCst);
    let error = long.write(&content(CHUNK_BYTES_MAX * 2)).await.unwrap_err();
    assert!(matches!(error, AcceptError::NoSpace), "{error}");
    world.fake.headroom.store(1, Ordering::SeqCst);
    assert!(matches!(long.accept(envelope(1), SECOND).await, Err(AcceptError::NoSpace)));
    world.fake.headroom.store(0, Ordering::SeqCst);
    assert!(matches!(short.accept(envelope(1), SECOND).await, Err(AcceptError::NoSpace)));
    assert_eq!(world.fake.log.lock().unwrap().len(), entries, "nothing more was proposed");
    // What is there of the long one goes, although the disks are low.
    upkeep::settle(&world.replica).await.unwrap();
    assert_eq!(world.summary().uploads, 0);
}

#[tokio::test]
async fn a_dropped_writer_leaves_nothing() {
    let world = led();
    let mut writer = world.writer();
    writer.write(&content(CHUNK_BYTES_MAX * 6)).await.unwrap();
    assert!(world.summary().uploads == 1);
    drop(writer);
    upkeep::settle(&world.replica).await.unwrap();
    assert_eq!(world.summary().uploads, 0);
    let entries = world.fake.log.lock().unwrap().len();
    upkeep::settle(&world.replica).await.unwrap();
    assert_eq!(world.fake.log.lock().unwrap().len(), entries, "aborted once");
}

#[tokio::test]
async fn a_writer_of_nothing_aborts_nothing() {
    let world = led();
    let mut writer = world.writer();
    writer.write(b"small").await.unwrap();
    writer.abort().await;
    upkeep::settle(&world.replica).await.unwrap();
    assert!(world.fake.log.lock().unwrap().is_empty());
}

#[tokio::test]
async fn leadership_lost_means_moved_even_if_won_again() {
    let world = led();
    let mut writer = world.writer();
    writer.write(&content(CHUNK_BYTES_MAX * 5)).await.unwrap();
    world.fake.elect();
    assert!(matches!(writer.write(b"x").await, Err(AcceptError::Moved)));
    // The writer still lives, but its upload is of an earlier term.
    upkeep::settle(&world.replica).await.unwrap();
    assert_eq!(world.summary().uploads, 0);
    assert!(matches!(writer.accept(envelope(1), SECOND).await, Err(AcceptError::Moved)));

    let writer = world.writer();
    world.fake.set(Mode::Elsewhere);
    assert!(matches!(writer.accept(envelope(1), SECOND).await, Err(AcceptError::Moved)));
    assert_eq!(world.summary().queued, 0);
}

#[tokio::test]
async fn an_envelope_too_large_for_an_entry_is_refused() {
    let world = led();
    let mut huge = envelope(1);
    huge.prepend = vec![b'x'; 4 << 20].into();
    let error = world.writer().accept(huge, SECOND).await.unwrap_err();
    assert!(matches!(error, AcceptError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_carried_message_is_the_same_and_readers_follow_it() {
    let world = led();
    let mut writer = world.writer();
    let bytes = content(CHUNK_BYTES_MAX * 2 + 5);
    writer.write(&bytes).await.unwrap();
    let id = writer.accept(envelope(1), SECOND).await.unwrap();
    let later = Verdict::Deferred { next_due: UnixMs(2_500_000) };
    world.replica.record(outcome(id, 0, later, false), SECOND).await.unwrap();
    let before = world.get(id).unwrap();
    let mut reader = BodyReader::new(std::sync::Arc::clone(&world.replica), &before);
    reader.next().await.unwrap();

    let reply = std::sync::Arc::clone(&world.replica).carry(id, SECOND, None).await.unwrap();
    assert_eq!(reply, crate::group::Reply::Done);
    let after = world.get(id).unwrap();
    assert_ne!(after.body, before.body);
    let unmoved = QueuedMessage { body: before.body.clone(), ..QueuedMessage::clone(&after) };
    assert_eq!(unmoved, *before);
    assert_eq!(world.body(id).await[16..], bytes[..]);
    // What the log no longer has, the reader finds in the new place.
    world.fake.trim(4);
    let mut rest = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        rest.extend_from_slice(&piece);
    }
    assert_eq!(rest, bytes);
    let applied = world.fake.log.lock().unwrap().len() as u64 - 1;
    let mut state = world.replica.machine.lock();
    state.index.pass(applied + 5000, 0);
    assert_eq!(state.index.checkpoint(applied + 5000), Some(4), "the old copy may go");
}
