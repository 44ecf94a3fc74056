//! The decoder of entries and the state machine behind it, given anything. For the fuzz target `queue_entry`, and with
//! chosen bytes for the tests.

#![allow(unreachable_pub, reason = "the fuzz targets reach it through the feature `fuzzing`")]

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::watch;

use super::{
    entry::{self, Part},
    ids::Ids,
    machine::QueueMachine,
    message::MessageId,
};
use crate::{
    env::SystemClock,
    group::{Leadership, Machine, Position},
};

/// Applies entries, each behind its length in two bytes, to a partition, on a replica that leads and on one that follows:
/// both must answer alike and hold the same. Takes a checkpoint and reads bodies on the way.
///
/// # Panics
/// If that is not so: then the state machine has a bug.
pub fn queue_entry(data: &[u8]) {
    let (elections, _) = watch::channel(0);
    let machine = || {
        let ids = Arc::new(Ids::new(1));
        QueueMachine::new(1, 1, Arc::new(SystemClock), ids, elections.clone())
    };
    let (leader, follower) = (machine(), machine());
    leader.leadership(Leadership::Leading { term: 1 });
    let mut rest = data;
    for index in 0.. {
        let Some((len, behind)) = rest.split_first_chunk() else { break };
        let (payload, behind) =
            behind.split_at(usize::from(u16::from_le_bytes(*len)).min(behind.len()));
        rest = behind;
        let payload = Bytes::copy_from_slice(payload);
        let at = Position { term: 1, index };
        assert_eq!(leader.apply(at, &payload), follower.apply(at, &payload));
        let known = leader.lock().index.page(None, 100).first().map(|message| message.id);
        let id = known.unwrap_or(MessageId { second: 0, counter: 0, node: 0 });
        let _ = entry::body_of(payload.clone(), id, Part::Whole);
        let _ = entry::body_of(payload.clone(), id, Part::Chunk(0));
        let _ = entry::read_checkpoint_state(&payload);
        let ids = |machine: &QueueMachine| {
            machine
                .lock()
                .index
                .page(None, 100)
                .iter()
                .map(|message| message.id)
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(&leader), ids(&follower));
        assert_eq!(leader.checkpoint(at), follower.checkpoint(at));
    }
    let checkpoint = leader.checkpoint(Position { term: 1, index: u64::from(u32::MAX) });
    follower.restore(&checkpoint);
}

/// One input of [`queue_entry`] that holds these entries.
#[must_use]
pub fn queue_entry_input(entries: &[Bytes]) -> Vec<u8> {
    let mut all = BytesMut::new();
    for payload in entries {
        let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        all.put_u16_le(len);
        all.put_slice(payload.get(..usize::from(len)).unwrap_or_default());
    }
    all.to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::queue::{
        entry::{BodyBytes, abort, accept, chunk, expand, handover, hold, outcome, release},
        message::{Delivered, Envelope, Expand, Expansion, Outcome, Recipient, Verdict},
    };

    const fn id(counter: u64) -> MessageId {
        MessageId { second: 1, counter, node: 1 }
    }

    /// Entries that fit each other now and then: few messages, few recipients.
    fn entries() -> impl Strategy<Value = Bytes> {
        let recipients =
            |count: usize| vec![Recipient { address: "a@x".into(), ..Recipient::default() }; count];
        let accepts = (0..4_u64, 0..3_usize, 0..5_u32).prop_map(move |(number, count, chunks)| {
            let envelope = Envelope { recipients: recipients(count), ..Envelope::default() };
            let body = match chunks {
                0 => BodyBytes::Inline(Bytes::from_static(b"body")),
                count => BodyBytes::Chunks { count, bytes: u64::from(count) * 4 },
            };
            accept(id(number), &envelope, body)
        });
        let outcomes = (0..4_u64, 0..4_u32, 0..3_u8, any::<bool>()).prop_map(
            |(number, recipient, verdict, finished)| {
                let verdict = match verdict {
                    0 => Verdict::Delivered,
                    1 => Verdict::Failed,
                    _ => Verdict::Deferred { next_due: crate::env::UnixMs(7) },
                };
                let result =
                    Delivered { recipient, address: "a@x".into(), verdict, text: "x".into() };
                outcome(&Outcome {
                    message: id(number),
                    results: vec![result],
                    finished: finished.then_some(recipient).into_iter().collect(),
                    creates: vec![(id(number + 10), Envelope::default(), Bytes::new())],
                    warned: false,
                    goes_on: false,
                })
            },
        );
        let due = crate::env::UnixMs(9);
        prop_oneof![
            4 => accepts,
            2 => (0..4_u64, 0..4_u32)
                .prop_map(|(n, c)| chunk(id(n), c, Bytes::from_static(b"data"))),
            2 => outcomes,
            1 => (0..4_u64, any::<bool>()).prop_map(|(n, upload)| abort(id(n), upload)),
            1 => (0..4_u64).prop_map(|n| hold(id(n))),
            1 => (0..4_u64).prop_map(move |n| release(id(n), Some(due))),
            2 => (0..4_u64, 0..3_u32, 0..3_usize, any::<bool>(), 0..4_u32).prop_map(
                move |(n, recipient, count, some, first)| {
                    let address = if some { "l@x".to_owned() } else { String::new() };
                    let from = Expansion { recipient, address, ..Expansion::default() };
                    let (message, into) = (id(n), recipients(count));
                    expand(&Expand { message, from, into, due, first, goes_on: false })
                }
            ),
            1 => (0..3_u64).prop_map(handover),
            1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Bytes::from),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 1000, failure_persistence: None, ..ProptestConfig::default()
        })]

        #[test]
        fn anything_is_applied_or_refused_alike(data in prop::collection::vec(any::<u8>(), 0..600)) {
            queue_entry(&data);
        }

        #[test]
        fn entries_with_flipped_bytes_are_applied_or_refused_alike(
            entries in prop::collection::vec(entries(), 0..20),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut input = queue_entry_input(&entries);
            for (at, byte) in flips {
                if !input.is_empty() {
                    let at = at.index(input.len());
                    input[at] ^= byte;
                }
            }
            queue_entry(&input);
        }
    }
}
