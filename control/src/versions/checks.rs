//! What speaks against making something active. Pure.

use std::collections::BTreeMap;

use super::{BlobHash, Expected, NewContent, VersionError};
use crate::{limits, state::State};

/// Tables that lost more than a quarter of their entries, with the numbers.
pub(crate) fn shrunk(before: &[(String, u64)], after: &[(String, u64)]) -> Vec<String> {
    let after: BTreeMap<&str, u64> = after.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    let mut lines = Vec::new();
    for (table, old) in before {
        let new = after.get(table.as_str()).copied();
        let left = new.unwrap_or(0);
        let least = u128::from(*old) * u128::from(100 - limits::SHRINK_PERCENT_MAX);
        if u128::from(left) * 100 >= least {
            continue;
        }
        let percent = 100 - u128::from(left) * 100 / u128::from(*old);
        let gone = if new.is_none() { ": the table is gone" } else { "" };
        lines.push(format!(
            "{table} shrinks by {percent} %, from {old} entries to {left}{gone}; more than {} % needs --force",
            limits::SHRINK_PERCENT_MAX
        ));
    }
    lines.sort();
    lines
}

/// Whether what lies at the paths of a change is what it is to replace. `seen` is what lay there when it was tried first.
pub(crate) fn as_expected(
    files: &[NewContent],
    now: &BTreeMap<String, Option<BlobHash>>,
    seen: Option<&BTreeMap<String, Option<BlobHash>>>,
    state: &State,
) -> Result<(), VersionError> {
    for file in files {
        let here = now.get(&file.path).copied().flatten();
        let expected = match file.expected {
            Expected::Content(hash) => Some(hash),
            Expected::Nothing => None,
            Expected::Anything => match seen.and_then(|seen| seen.get(&file.path)) {
                Some(seen) => *seen,
                None => continue,
            },
        };
        if here != expected {
            let who = state.versions.changes.get(&file.path).and_then(|c| c.credit.as_ref());
            let who = who.map(|credit| format!(", by {}: {}", credit.by, credit.reason));
            return Err(VersionError::refused(format!(
                "{} was changed meanwhile{}: look at it, and try again",
                file.path,
                who.unwrap_or_default()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(of: &[(&str, u64)]) -> Vec<(String, u64)> {
        of.iter().map(|(name, entries)| ((*name).to_owned(), *entries)).collect()
    }

    #[test]
    fn a_quarter_may_go() {
        let before = counts(&[("a", 100), ("b", 4), ("c", 0), ("d", 1_000_000)]);
        let good = counts(&[("a", 75), ("b", 3), ("d", 750_000), ("new", 1)]);
        assert!(shrunk(&before, &good).is_empty());
        let lines = shrunk(&before, &counts(&[("a", 74), ("b", 2), ("d", 0)]));
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("a shrinks by 26 %, from 100 entries to 74;"), "{lines:?}");
        let lines = shrunk(&before, &counts(&[("a", 100), ("b", 4)]));
        assert!(lines[0].contains("from 1000000 entries to 0: the table is gone"), "{lines:?}");
    }

    #[test]
    fn a_change_of_what_was_not_seen_is_refused() {
        let hash = BlobHash::of(b"a");
        let path = "domains/d.example/aliases".to_owned();
        let file = |expected| [NewContent { path: path.clone(), content: None, expected }];
        let state = State::default();
        let has = BTreeMap::from([(path.clone(), Some(hash))]);
        let none = BTreeMap::from([(path.clone(), None)]);
        let check = |expected, now, seen| as_expected(&file(expected), now, seen, &state).is_ok();
        assert!(check(Expected::Anything, &has, None) && check(Expected::Anything, &none, None));
        assert!(check(Expected::Content(hash), &has, None));
        assert!(!check(Expected::Content(hash), &none, None));
        assert!(check(Expected::Nothing, &none, None) && !check(Expected::Nothing, &has, None));
        assert!(check(Expected::Anything, &has, Some(&has)));
        assert!(!check(Expected::Anything, &has, Some(&none)), "another one was quicker");
    }

    proptest! {
        #[test]
        fn exactly_what_lost_more_than_a_quarter_is_told(old in 0_u64..5_000, new in 0_u64..5_000) {
            let told = !shrunk(&counts(&[("t", old)]), &counts(&[("t", new)])).is_empty();
            prop_assert_eq!(told, 4 * new < 3 * old);
        }
    }
}
