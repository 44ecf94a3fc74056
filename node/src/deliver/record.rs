//! Brings the outcome of an attempt into the log, wherever the partition is led by then.

use metrics::counter;
use ppsw_spool::{group::ProposeError, queue::Outcome};
use tracing::warn;

use super::seams::{Forward, QueueSource};
use crate::limits::{FORWARD_TRIES_MAX, RECORD_DEADLINE, RECORD_PAUSE};

/// Why an outcome is recorded nowhere, as far as this node knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unrecorded(pub(crate) String);

/// Records an outcome. While this node leads, it goes on until it is recorded, however long that takes: the queue
/// knows a repetition, and nothing else may be done with the message meanwhile. When another leads, it is told; for
/// a bounded time, since that one has a delivery of its own to make after the takeover grace.
pub(crate) async fn record(
    source: &dyn QueueSource,
    forward: &dyn Forward,
    outcome: Outcome,
) -> Result<(), Unrecorded> {
    let mut forwards = 0;
    loop {
        match source.record(outcome.clone(), RECORD_DEADLINE).await {
            Ok(()) => return Ok(()),
            Err(ProposeError::Timeout(after)) => {
                warn!(id = %outcome.message, "no majority recorded an outcome in {after:?}: trying on");
            }
            Err(ProposeError::NotLeader { .. }) => {
                let result = forward.forward(source.id(), outcome.clone(), RECORD_DEADLINE).await;
                let Err(why) = result else {
                    counter!("ppsw_outcomes_forwarded_total").increment(1);
                    return Ok(());
                };
                forwards += 1;
                if forwards == FORWARD_TRIES_MAX {
                    return Err(Unrecorded(why));
                }
            }
            Err(error) => return Err(Unrecorded(error.to_string())),
        }
        tokio::time::sleep(RECORD_PAUSE).await;
    }
}
