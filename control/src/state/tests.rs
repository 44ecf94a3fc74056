use proptest::prelude::*;

use super::*;

/// A founded state with nodes 1 to `nodes`.
pub(crate) fn cluster(nodes: u64) -> State {
    let mut state = State::default();
    let first = pb::Member { id: 1, name: "node-1".to_owned(), ..pb::Member::default() };
    let found = pb::Found { cluster: "c0ffee".to_owned(), first: Some(first) };
    assert_eq!(apply(&mut state, Change::Found(found)), Reply::Done);
    assert_eq!(apply(&mut state, create(7, 1000)), Reply::Done);
    for node in 2..=nodes {
        assert_eq!(admit(&mut state, 7, &[u8::try_from(node).unwrap()], 10), Ok(node));
        let started =
            pb::Announce { node, control: "127.0.0.1:1".to_owned(), ..Default::default() };
        assert_eq!(apply(&mut state, Change::Announce(started)), Reply::Done);
    }
    state
}

fn apply(state: &mut State, change: Change) -> Reply {
    state.apply(&encode_command(change))
}

fn create(token: u8, expires_ms: u64) -> Change {
    Change::CreateToken(pb::CreateToken {
        hash: vec![token; 32].into(),
        created_ms: 0,
        expires_ms,
        by: "admin".to_owned(),
    })
}

fn admit(state: &mut State, token: u8, key: &[u8], now_ms: u64) -> Result<u64, String> {
    let reply = apply(
        state,
        Change::Admit(pb::Admit {
            token_hash: vec![token; 32].into(),
            now_ms,
            key_hash: key.to_vec().into(),
            control: "127.0.0.1:1".to_owned(),
        }),
    );
    match reply {
        Reply::Value(bytes) => Ok(pb::Admitted::decode(bytes).unwrap().node),
        Reply::Refused(why) => Err(why),
        Reply::Done => panic!("an admission has a value"),
    }
}

fn drain(node: u64, force: bool) -> Change {
    Change::StartDrain(pb::StartDrain { node, by: "admin".to_owned(), at_ms: 5, force })
}

#[test]
fn node_numbers_are_given_once_per_key() {
    let mut state = cluster(1);
    assert_eq!(admit(&mut state, 7, b"a", 10), Ok(2));
    assert_eq!(admit(&mut state, 7, b"a", 11), Ok(2), "asked again after a lost answer");
    assert_eq!(admit(&mut state, 7, b"b", 12), Ok(3));
}

#[test]
fn a_token_must_be_known_and_fresh() {
    let mut state = cluster(1);
    assert!(admit(&mut state, 8, b"a", 10).is_err());
    assert!(admit(&mut state, 7, b"a", 1000).is_err(), "expired");
    let id = token::id(&[7; 32]);
    assert_eq!(
        apply(&mut state, Change::RevokeToken(pb::RevokeToken { id: id.clone() })),
        Reply::Done
    );
    assert!(admit(&mut state, 7, b"a", 10).is_err(), "revoked");
    assert!(matches!(
        apply(&mut state, Change::RevokeToken(pb::RevokeToken { id })),
        Reply::Refused(_)
    ));
}

#[test]
fn one_node_is_drained_at_a_time_unless_forced() {
    let mut state = cluster(3);
    assert_eq!(apply(&mut state, drain(2, false)), Reply::Done);
    assert_eq!(apply(&mut state, drain(2, false)), Reply::Done, "idempotent");
    assert!(matches!(apply(&mut state, drain(3, false)), Reply::Refused(_)));
    assert_eq!(apply(&mut state, drain(3, true)), Reply::Done);
    assert!(matches!(apply(&mut state, drain(9, true)), Reply::Refused(_)));
    let end = |node| Change::EndDrain(pb::EndDrain { node });
    assert_eq!(apply(&mut state, end(2)), Reply::Done);
    assert_eq!(apply(&mut state, end(2)), Reply::Done, "idempotent");
    assert!(!state.drained(2) && state.drained(3));
}

#[test]
fn a_second_founding_and_a_foreign_voter_are_refused() {
    let mut state = cluster(2);
    let found = pb::Found { cluster: "dead".to_owned(), first: Some(pb::Member::default()) };
    assert!(matches!(apply(&mut state, Change::Found(found)), Reply::Refused(_)));
    let place = |voters: &[u64]| Change::Place(pb::Place { partition: 1, voters: voters.to_vec() });
    assert!(matches!(apply(&mut state, place(&[1, 5])), Reply::Refused(_)));
    assert!(matches!(apply(&mut state, place(&[2])), Reply::Refused(_)), "home is missing");
    assert_eq!(apply(&mut state, place(&[1, 2])), Reply::Done);
}

#[test]
fn commands_of_another_version_are_refused() {
    let mut state = cluster(1);
    let before = state.clone();
    let newer = pb::Command { version: 2, change: Some(drain(1, true)) }.encode_to_vec();
    assert!(matches!(state.apply(&newer.into()), Reply::Refused(_)));
    assert!(matches!(state.apply(&Bytes::from_static(b"\xff\xff")), Reply::Refused(_)));
    assert_eq!(state, before);
}

#[test]
fn a_member_is_found_by_number_and_name() {
    let state = cluster(2);
    assert_eq!(state.find("2").map(|m| m.id), Some(2));
    assert_eq!(state.find("Node-1").map(|m| m.id), Some(1));
    assert_eq!(state.find("node-3"), None);
}

fn removal(node: u64) -> Change {
    Change::StartRemoval(pb::StartRemoval { node, reason: "old".to_owned(), ..Default::default() })
}

fn finish(node: u64) -> Change {
    Change::FinishRemoval(pb::FinishRemoval { node, at_ms: 7 })
}

#[test]
fn a_node_leaves_when_nothing_is_placed_on_it_and_its_number_is_not_given_again() {
    let mut state = cluster(3);
    let placed = crate::placement::misplaced(&state);
    state.partitions = placed.into_iter().collect();
    assert!(matches!(apply(&mut state, finish(3)), Reply::Refused(_)), "not asked for");
    assert!(matches!(apply(&mut state, removal(9)), Reply::Refused(_)), "unknown");
    assert_eq!(apply(&mut state, removal(3)), Reply::Done);
    assert_eq!(apply(&mut state, removal(3)), Reply::Done, "idempotent");
    assert!(state.drained(3) && state.is_orphan(3) && !state.is_present(3));
    let end = Change::EndDrain(pb::EndDrain { node: 3 });
    assert!(matches!(apply(&mut state, end), Reply::Refused(_)), "cannot be undone");
    assert!(matches!(apply(&mut state, finish(3)), Reply::Refused(_)), "replicas are on it");
    for (partition, voters) in crate::placement::misplaced(&state) {
        assert_eq!(apply(&mut state, Change::Place(pb::Place { partition, voters })), Reply::Done);
    }
    assert_eq!(apply(&mut state, finish(3)), Reply::Done);
    assert!(state.has_left(3) && !state.is_retired(3) && state.removed[&3].reason == "old");
    assert_eq!(state.partitions[&3].len(), 2, "its queue stays");
    let retire = |partition| Change::RetirePartition(pb::RetirePartition { partition });
    assert!(matches!(apply(&mut state, retire(2)), Reply::Refused(_)), "it has its home");
    assert_eq!(apply(&mut state, retire(3)), Reply::Done);
    assert!(state.is_retired(3) && !state.is_retired(4));
    let again = Change::Place(pb::Place { partition: 3, voters: vec![1, 2] });
    assert!(matches!(apply(&mut state, again), Reply::Refused(_)), "it does not come back");
    assert_eq!(admit(&mut state, 7, b"new", 10), Ok(4));
    assert_eq!(apply(&mut state, removal(4)), Reply::Done);
    assert!(state.has_left(4), "one that never started is gone at once");
    assert_eq!(apply(&mut state, removal(2)), Reply::Done);
    assert!(matches!(apply(&mut state, removal(1)), Reply::Refused(_)), "the last one");
}

#[test]
fn a_node_without_its_log_gets_a_new_number_once() {
    let mut state = cluster(3);
    let readmit = |state: &mut State, key: &'static [u8]| {
        let readmit = pb::Readmit {
            old: 2,
            now_ms: 5,
            key_hash: key.into(),
            control: "127.0.0.1:1".to_owned(),
        };
        match apply(state, Change::Readmit(readmit)) {
            Reply::Value(bytes) => Ok(pb::Admitted::decode(bytes).unwrap().node),
            other => Err(other),
        }
    };
    assert_eq!(readmit(&mut state, b"x"), Ok(4));
    assert_eq!(readmit(&mut state, b"x"), Ok(4), "asked again after a lost answer");
    assert!(state.removals[&2].forced && !state.members[&4].started);
    assert_eq!(apply(&mut state, finish(2)), Reply::Done);
    assert_eq!(readmit(&mut state, b"x"), Ok(4));
    assert!(readmit(&mut state, b"y").is_err(), "node 2 has left");
}

#[test]
fn settings_have_bounds() {
    let mut state = cluster(1);
    let mut set = |voters, replace_after_ms| {
        apply(&mut state, Change::Configure(pb::Configure { voters, replace_after_ms }))
    };
    assert!(matches!(set(1, 0), Reply::Refused(_)));
    assert!(matches!(set(4, 0), Reply::Refused(_)));
    assert!(matches!(set(0, 1), Reply::Refused(_)));
    assert_eq!(set(5, 0), Reply::Done);
    assert_eq!(set(0, 60_000), Reply::Done);
    assert_eq!((state.voters(), state.replace_after().as_secs()), (5, 60));
}

proptest! {
    /// Whatever the log holds, a checkpoint gives the same state back.
    #[test]
    fn a_checkpoint_holds_all(steps in proptest::collection::vec((0_u8..11, 1_u64..5, any::<bool>()), 0..40)) {
        let mut state = cluster(2);
        for (kind, node, flag) in steps {
            let key = [u8::try_from(node).unwrap(); 3];
            match kind {
                0 => { let _ = admit(&mut state, 7, &key, 20); }
                1 => { apply(&mut state, drain(node, flag)); }
                2 => { apply(&mut state, Change::EndDrain(pb::EndDrain { node })); }
                3 => { apply(&mut state, create(key[0], 50)); }
                4 => {
                    let place = pb::Place {
                        partition: u32::try_from(node).unwrap(),
                        voters: vec![1, node],
                    };
                    apply(&mut state, Change::Place(place));
                }
                5 => {
                    let mut leave = removal(node);
                    if let Change::StartRemoval(leave) = &mut leave { leave.forced = flag; }
                    apply(&mut state, leave);
                }
                6 => { apply(&mut state, Change::FinishRemoval(pb::FinishRemoval { node, at_ms: 9 })); }
                7 => { apply(&mut state, Change::SetAway(pb::SetAway { node, away: flag, at_ms: 3 })); }
                8 => { apply(&mut state, Change::Configure(pb::Configure { voters: 5, replace_after_ms: 0 })); }
                9 => {
                    let readmit = pb::Readmit { old: node, key_hash: key.to_vec().into(), ..Default::default() };
                    apply(&mut state, Change::Readmit(readmit));
                }
                _ => {
                    let announce = pb::Announce { node, control: "x".to_owned(), ..Default::default() };
                    apply(&mut state, Change::Announce(announce));
                }
            }
        }
        let bytes = state.to_proto().encode_to_vec();
        let again = State::from_proto(pb::ControlState::decode(&bytes[..]).unwrap()).unwrap();
        prop_assert_eq!(again, state);
    }
}
