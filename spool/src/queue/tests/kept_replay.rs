//! An index that was written down while entries were applied, and read back, goes on like the one that it was
//! written from.

use proptest::prelude::*;

use super::replay::{Full, LONG_WINDOW, WINDOW, apply, step};
use crate::queue::index::{Index, Kept};

/// What was written: pieces, and the rest of the index.
#[derive(Default)]
struct Written {
    pieces: Vec<Vec<u8>>,
}

impl Written {
    fn read(&self, index: &Index, window: u64) -> Index {
        let mut kept = Kept::default();
        for piece in &self.pieces {
            kept.enter(piece).unwrap();
        }
        let mut read = Index::read(kept, index.rest().unwrap()).unwrap();
        read.set_history(window);
        read
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_read_back_is_what_was_there(
        window in prop_oneof![Just(WINDOW), Just(LONG_WINDOW)],
        steps in prop::collection::vec(step(), 1..60),
        // When a round begins, and how many entries come before it ends.
        rounds in prop::collection::vec((0..60_usize, 0..10_usize), 1..4),
    ) {
        let mut full = Full::new(window);
        steps.into_iter().for_each(|step| full.step(step));
        let entries = full.log.len();
        let mut index = Index::with_history(window);
        index.track();
        let mut written = Written::default();
        let (mut begun, mut all) = (None, false);
        for at in 0..entries {
            apply(&mut index, at as u64, full.log[at].as_ref());
            prop_assert_eq!(index.checkpoint(at as u64), full.starts[at]);
            if let Some(round) = rounds.iter().find(|(begin, _)| *begin == at) {
                begun.get_or_insert(at + round.1);
                if !all {
                    index.none_changed();
                }
            }
            let Some(end) = begun else { continue };
            // Messages are taken one after the other while entries are applied.
            if !all {
                let mut after = None;
                while let Some((piece, last)) = index.piece(after) {
                    written.pieces.push(piece);
                    after = Some(last);
                }
                all = true;
            }
            if at < end || index.position().is_none() {
                continue;
            }
            while index.changed() > 0 {
                written.pieces.push(index.changed_piece());
            }
            begun = None;
            let mut read = written.read(&index, window);
            prop_assert_eq!(read.view(), index.view());
            prop_assert_eq!(read.position(), index.position());
            for later in at + 1..entries {
                apply(&mut read, later as u64, full.log[later].as_ref());
                prop_assert_eq!(&read.view(), &full.views[later], "written at {}", at);
                prop_assert_eq!(read.checkpoint(later as u64), full.starts[later]);
            }
        }
    }
}

#[test]
fn pieces_and_counts_that_do_not_fit_are_refused() {
    let mut full = Full::new(WINDOW);
    full.step(super::replay::Step::AcceptInline(1));
    let (piece, _) = full.index.piece(None).unwrap();
    let rest = full.index.rest().unwrap();
    let enter = |bytes: &[u8]| Kept::default().enter(bytes);
    assert!(enter(&piece).is_ok());
    for len in 1..piece.len() {
        assert!(enter(&piece[..len]).is_err(), "{len}");
    }
    assert!(Index::read(Kept::default(), rest.clone()).is_err(), "a message is missing");
    let mut kept = Kept::default();
    kept.enter(&piece).unwrap();
    let mut newer = rest;
    newer.version += 1;
    let why = Index::read(kept, newer).unwrap_err();
    assert!(why.contains("format 2"), "{why}");
}
