//! What a node says from time to time of the partitions that it leads: how far the other replicas are behind, how old the
//! oldest message is. Other nodes say 0, so that the largest value of all nodes is the cluster's.

use std::{collections::BTreeSet, sync::Arc};

use metrics::gauge;
use ppsw_spool::{
    NodeId,
    group::{Group, GroupStatus},
    queue::{MessageState, Partition},
};
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    limits,
    plane::{CONTROL, Shared},
};

/// Runs until the plane stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut told = BTreeSet::new();
    let stop = shared.stop.clone();
    loop {
        tell_lags(&shared, &mut told);
        let asked = Arc::clone(&shared);
        // Decodes messages.
        if spawn_blocking(move || tell_ages(&asked)).await.is_err() {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(limits::GAUGES_INTERVAL) => {}
        }
    }
}

/// `told` are the series that are not 0 for want of a leader here: group and node.
fn tell_lags(shared: &Shared, told: &mut BTreeSet<(u32, NodeId)>) {
    let mut now = BTreeSet::new();
    let mut tell = |group: &Group, partition: Option<&Partition>| {
        if !group.leads() {
            return;
        }
        let status = group.status();
        for (node, matched) in &status.matched {
            now.insert((status.id, *node));
            entries_gauge(status.id, *node).set(entries_behind(&status, *matched) as f64);
            if let Some(partition) = partition {
                bytes_gauge(status.id, *node).set(partition.bytes_behind(*matched) as f64);
            }
        }
    };
    tell(&shared.control, None);
    for partition in shared.spool.partitions() {
        tell(&partition.group(), Some(&partition));
    }
    for (group, node) in told.difference(&now) {
        entries_gauge(*group, *node).set(0.0);
        if *group != CONTROL {
            bytes_gauge(*group, *node).set(0.0);
        }
    }
    *told = now;
}

/// Entries that a replica is not known to have.
fn entries_behind(status: &GroupStatus, matched: Option<u64>) -> u64 {
    // The first entry has number 0.
    let end = |index: Option<u64>| index.map_or(0, |index| index.saturating_add(1));
    end(status.last_index).saturating_sub(end(matched))
}

fn entries_gauge(group: u32, node: NodeId) -> metrics::Gauge {
    gauge!("ppsw_raft_replica_lag_entries", "group" => group.to_string(), "node" => node.to_string())
}

fn bytes_gauge(group: u32, node: NodeId) -> metrics::Gauge {
    gauge!("ppsw_raft_replica_lag_bytes", "group" => group.to_string(), "node" => node.to_string())
}

fn tell_ages(shared: &Shared) {
    let now = shared.now().0;
    for partition in shared.spool.partitions() {
        let leads = partition.group().leads();
        let summary = partition.summary();
        for (state, label, count) in [
            (MessageState::Queued, "queued", summary.queued),
            (MessageState::Held, "held", summary.held),
        ] {
            let since = (leads && count > 0).then(|| oldest(&partition, state)).flatten();
            let age = since.map_or(0, |since| now.saturating_sub(since));
            gauge!("ppsw_queue_oldest_age_seconds", "state" => label, "partition" => partition.id().to_string())
                .set(age as f64 / 1000.0);
        }
    }
}

/// When the oldest message of a state was received. If none is among the oldest of all, what was looked at last: those of
/// this state are younger.
fn oldest(partition: &Partition, state: MessageState) -> Option<u64> {
    let mut last = None;
    for message in partition.messages().take(limits::OLDEST_SEARCH_MAX) {
        last = Some(message.envelope.received.0);
        if message.state == state {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_without_entries_lacks_all() {
        let status = GroupStatus { last_index: Some(9), ..GroupStatus::default() };
        assert_eq!(entries_behind(&status, Some(9)), 0);
        assert_eq!(entries_behind(&status, Some(4)), 5);
        assert_eq!(entries_behind(&status, None), 10);
        assert_eq!(entries_behind(&GroupStatus::default(), None), 0);
    }
}
