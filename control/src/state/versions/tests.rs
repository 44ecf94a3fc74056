use proptest::prelude::*;

use super::{
    super::{encode_command, tests::cluster},
    *,
};
use ppsw_proto::control::command::Change;

fn credit(by: &str) -> pb::Credit {
    pb::Credit { by: by.to_owned(), reason: "because".to_owned(), at_ms: 1, ..Default::default() }
}

fn id(n: u64) -> Bytes {
    let mut id = vec![0; limits::COMMAND_ID_BYTES];
    id[..8].copy_from_slice(&n.to_le_bytes());
    id.into()
}

fn hash(n: u64) -> Bytes {
    BlobHash::of(&n.to_le_bytes()).to_bytes()
}

fn push(n: u64, expected: u64) -> Change {
    let content = pb::NewVersion { manifest: hash(n), ..Default::default() };
    Change::Activate(pb::Activate {
        id: id(n),
        expected,
        credit: Some(credit(&format!("admin-{n}"))),
        version: Some(Which::Push(content)),
    })
}

fn roll_back(n: u64, expected: u64, version: u64) -> Change {
    Change::Activate(pb::Activate {
        id: id(n),
        expected,
        credit: Some(credit("admin")),
        version: Some(Which::Rollback(version)),
    })
}

fn change(n: u64, expected: u64, path: &str, content: Option<u64>) -> Change {
    let sha256 = content.map(hash).unwrap_or_default();
    Change::ChangePaths(pb::ChangePaths {
        id: id(n),
        expected,
        credit: Some(credit("admin")),
        source: pb::Source::Edit.into(),
        paths: vec![pb::PathChange { path: path.to_owned(), sha256, ..Default::default() }],
    })
}

fn apply(state: &mut State, change: Change) -> Result<pb::Activated, String> {
    match state.apply(&encode_command(change)) {
        Reply::Value(value) => Ok(pb::Activated::decode(value).unwrap()),
        Reply::Refused(why) => Err(why),
        Reply::Done => panic!("an activation has a value"),
    }
}

const ALIASES: &str = "domains/d.example/aliases";

#[test]
fn of_two_pushes_one_wins_and_the_other_hears_whose() {
    let mut state = cluster(3);
    let first = apply(&mut state, push(1, 0)).unwrap();
    assert_eq!((first.generation, first.version), (1, 1));
    let before = state.clone();
    let why = apply(&mut state, push(2, 0)).unwrap_err();
    for part in
        ["generation 1 is active", "version 1 pushed by admin-1", "1970-01-01T00:00:00Z", "because"]
    {
        assert!(why.contains(part), "{part:?} in {why}");
    }
    assert_eq!(state, before);
    assert_eq!(apply(&mut state, push(1, 0)), Ok(first), "asked again after a lost answer");
    assert_eq!(state.versions.generation, 1);
    assert_eq!(apply(&mut state, push(2, 1)).unwrap().version, 2);
    assert_eq!(state.versions.manifest(2), BlobHash::from_bytes(&hash(2)));
}

#[test]
fn a_rollback_is_a_new_generation_of_an_old_version() {
    let mut state = cluster(1);
    apply(&mut state, push(1, 0)).unwrap();
    apply(&mut state, push(2, 1)).unwrap();
    assert!(apply(&mut state, roll_back(3, 2, 2)).unwrap_err().contains("active already"));
    assert!(apply(&mut state, roll_back(3, 2, 7)).unwrap_err().contains("not kept"));
    let done = apply(&mut state, roll_back(3, 2, 1)).unwrap();
    assert_eq!((done.generation, done.version), (3, 1));
    assert_eq!(state.versions.newest().unwrap().kind(), Kind::Rollback);
    let number = apply(&mut state, push(4, 3)).unwrap().version;
    assert_eq!(number, 3, "a number is not used twice");
}

#[test]
fn twenty_versions_are_kept_and_the_active_one() {
    let mut state = cluster(1);
    let kept = u64::try_from(limits::VERSIONS_KEPT).unwrap();
    for n in 1..=kept {
        apply(&mut state, push(n, n - 1)).unwrap();
    }
    apply(&mut state, roll_back(1_000, kept, 1)).unwrap();
    apply(&mut state, push(1_001, kept + 1)).unwrap();
    assert!(!state.versions.kept.contains_key(&1), "not active any more, and the oldest");
    assert_eq!(state.versions.kept.len(), limits::VERSIONS_KEPT);
    apply(&mut state, roll_back(1_002, kept + 2, 2)).unwrap();
    assert_eq!(state.versions.active, 2);
    for n in 0..200 {
        let generation = state.versions.generation;
        apply(&mut state, change(2_000 + n, generation, ALIASES, Some(n))).unwrap();
    }
    assert!(state.versions.kept.contains_key(&2));
    assert_eq!(state.versions.history.len(), limits::ACTIVATIONS_KEPT);
}

#[test]
fn changes_lie_over_whatever_version_is_active() {
    let mut state = cluster(1);
    assert!(apply(&mut state, change(1, 0, ALIASES, Some(5))).unwrap_err().contains("tables push"));
    apply(&mut state, push(1, 0)).unwrap();
    apply(&mut state, change(2, 1, ALIASES, Some(5))).unwrap();
    assert!(apply(&mut state, change(3, 1, ALIASES, Some(6))).unwrap_err().contains("d.example"));
    apply(&mut state, push(4, 2)).unwrap();
    let content = state.versions.content().unwrap();
    assert_eq!(content.manifest.to_bytes(), hash(4));
    assert_eq!(content.changes[ALIASES].to_bytes(), hash(5));
    let changed = &state.versions.changes[ALIASES];
    assert_eq!((changed.generation, changed.source()), (2, pb::Source::Edit));
    apply(&mut state, change(5, 3, ALIASES, None)).unwrap();
    assert!(state.versions.content().unwrap().changes.is_empty());
}

#[test]
fn what_is_no_activation_is_refused() {
    let mut state = cluster(1);
    apply(&mut state, push(1, 0)).unwrap();
    let before = state.clone();
    for path in ["tables/domainlist", "policy.kdl", "domains/../aliases"] {
        assert!(apply(&mut state, change(2, 1, path, Some(1))).is_err(), "{path}");
    }
    let mut bad = Vec::new();
    for credit in [
        pb::Credit::default(),
        pb::Credit { reason: "x".repeat(limits::REASON_BYTES_MAX + 1), ..credit("a") },
        pb::Credit { reason: "two\nlines".to_owned(), ..credit("a") },
        pb::Credit { author: "x".repeat(256), ..credit("a") },
    ] {
        let Change::Activate(activate) = push(2, 1) else { unreachable!() };
        bad.push(pb::Activate { credit: Some(credit), ..activate });
    }
    let Change::Activate(activate) = push(2, 1) else { unreachable!() };
    bad.push(pb::Activate { id: Bytes::from_static(b"short"), ..activate.clone() });
    bad.push(pb::Activate { version: None, ..activate.clone() });
    let content = pb::NewVersion { manifest: Bytes::from_static(b"x"), ..Default::default() };
    bad.push(pb::Activate { version: Some(Which::Push(content)), ..activate });
    for activate in bad {
        assert!(apply(&mut state, Change::Activate(activate.clone())).is_err(), "{activate:?}");
    }
    assert_eq!(state, before, "what is refused has changed nothing");
}

#[test]
fn a_checkpoint_has_all_of_it() {
    let mut state = cluster(2);
    apply(&mut state, push(1, 0)).unwrap();
    apply(&mut state, push(2, 1)).unwrap();
    apply(&mut state, change(3, 2, ALIASES, Some(5))).unwrap();
    let again = State::from_proto(state.to_proto()).unwrap();
    assert_eq!(again, state);
    let mut again = again;
    assert_eq!(apply(&mut again, push(4, 3)).unwrap().version, 3, "numbers go on");
}

proptest! {
    /// However pushes, rollbacks and changes of several people interleave: of those that were made for one generation,
    /// exactly the first that is applied wins, and what is active follows from those that won alone.
    #[test]
    fn one_of_those_made_for_a_generation_wins(
        steps in proptest::collection::vec((0_u64..3, 0_u64..4, 0_u64..5), 1..60)
    ) {
        let mut state = cluster(1);
        apply(&mut state, push(9_999, 0)).unwrap();
        // What each of four people has seen last.
        let mut seen = [1_u64; 4];
        let mut winners = BTreeMap::new();
        for (n, (kind, person, what)) in steps.into_iter().enumerate() {
            let n = n as u64;
            let expected = seen[person as usize];
            let before = state.clone();
            let command = match kind {
                0 => push(n, expected),
                1 => roll_back(n, expected, what),
                _ => change(n, expected, ALIASES, (what > 0).then_some(what)),
            };
            match apply(&mut state, command.clone()) {
                Ok(done) => {
                    prop_assert_eq!(done.generation, before.versions.generation + 1);
                    prop_assert_eq!(expected, before.versions.generation);
                    prop_assert!(winners.insert(expected, n).is_none());
                    prop_assert_eq!(apply(&mut state, command), Ok(done), "idempotent");
                    prop_assert_eq!(state.versions.generation, done.generation);
                }
                Err(_) => prop_assert_eq!(&state, &before),
            }
            prop_assert!(state.versions.kept.contains_key(&state.versions.active));
            // Everybody looks now and then.
            if what % 2 == 0 {
                seen[person as usize] = state.versions.generation;
            }
        }
        prop_assert_eq!(state.versions.generation, winners.len() as u64 + 1);
    }
}
