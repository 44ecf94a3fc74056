//! Bugs on purpose, to see that the chaos harness finds them. Only with the feature `deliberate-faults`; without it
//! every question is answered `false` at compile time, and nothing of this is in the program.

/// A bug that can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `ack-before-commit`: a message counts as accepted when its entry is proposed.
    AckBeforeCommit,
    /// `skip-sync`: the log writes without `fdatasync`.
    SkipSync,
    /// `one-voter-majority`: the leader counts an entry as replicated when it begins to send it.
    OneVoterMajority,
    /// `deliver-without-lease`: who was told that it leads delivers, lease or not.
    DeliverWithoutLease,
    /// `drop-outcome`: some outcomes are reported as recorded, and are not.
    DropOutcome,
    /// `truncate-early`: a checkpoint ends one entry too late, so that the log loses one that is needed.
    TruncateEarly,
}

/// Whether this bug was chosen by the environment variable `PPSW_FAULT`.
#[cfg(feature = "deliberate-faults")]
pub(crate) fn active(fault: Fault) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<Fault>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var("PPSW_FAULT").ok()?;
        let known = [
            ("ack-before-commit", Fault::AckBeforeCommit),
            ("skip-sync", Fault::SkipSync),
            ("one-voter-majority", Fault::OneVoterMajority),
            ("deliver-without-lease", Fault::DeliverWithoutLease),
            ("drop-outcome", Fault::DropOutcome),
            ("truncate-early", Fault::TruncateEarly),
        ];
        let found = known.into_iter().find(|(known, _)| *known == name).map(|(_, fault)| fault);
        match found {
            Some(fault) => tracing::error!(?fault, "this program has a bug on purpose"),
            None => tracing::error!(name, "no such fault: PPSW_FAULT is ignored"),
        }
        found
    });
    *chosen == Some(fault)
}

/// Never: this program has no bugs on purpose.
#[cfg(not(feature = "deliberate-faults"))]
pub(crate) const fn active(_: Fault) -> bool {
    false
}
