//! What comes from other nodes and stands in entries and checkpoints, given anything. For the fuzz target `raft_wire`,
//! and with chosen bytes for the tests.

#![allow(unreachable_pub, reason = "the fuzz targets reach it through the feature `fuzzing`")]

use bytes::Bytes;
use ppsw_proto::raft as wire;
use prost::Message;

use super::{service, types};

/// Reads `data` as each of the forms that consensus knows; what is understood is written and read again.
///
/// # Panics
/// If it is not the same then: a form that loses something.
pub fn raft_wire(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(payload) = types::decode_payload(&bytes) {
        let again = types::decode_payload(&types::encode_payload(&payload));
        assert_eq!(again.as_ref(), Ok(&payload));
        let _ = types::proposal_of(&bytes);
    }
    if let Ok(request) = wire::AppendRequest::decode(bytes.clone()) {
        let _ = service::append_from_wire(&request);
    }
    if let Ok(stored) = wire::StoredCheckpoint::decode(bytes.clone())
        && let Ok((meta, state)) = types::checkpoint_from_wire(stored)
    {
        let again = types::checkpoint_from_wire(types::checkpoint_to_wire(&meta, state.clone()));
        assert_eq!(again, Ok((meta, state)));
    }
    if let Ok(ballot) = wire::Ballot::decode(bytes) {
        assert_eq!(types::vote_to_wire(&types::vote_from_wire(&ballot)), ballot);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 5000, failure_persistence: None, ..ProptestConfig::default()
        })]

        #[test]
        fn anything_is_understood_or_refused(data in prop::collection::vec(any::<u8>(), 0..200)) {
            raft_wire(&data);
        }

        #[test]
        fn what_looks_like_entries_is_understood_or_refused(
            first in prop_oneof![Just(0x10_u8), Just(0x11), Just(0x12), any::<u8>()],
            rest in prop::collection::vec(0..40_u8, 0..60),
        ) {
            raft_wire(&[&[first], &rest[..]].concat());
        }
    }
}
