//! What the metrics of the control plane mean (docs/metrics.md).

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub(crate) fn describe() {
    describe_gauge!("ppsw_drained", "1 while this node is drained, or is being drained");
    describe_gauge!("ppsw_led_partitions", "Partitions that this node leads");
    describe_gauge!(
        "ppsw_away_nodes",
        "Nodes that have lost their votes because they are silent; said by the leader of the control group"
    );
    describe_gauge!(
        "ppsw_leaving_nodes",
        "Nodes that are being removed; said by the leader of the control group"
    );
    describe_gauge!(
        "ppsw_raft_replica_lag_entries",
        "On the leader: entries of the group's log that another replica is not known to have"
    );
    describe_gauge!(
        "ppsw_raft_replica_lag_bytes",
        Unit::Bytes,
        "On the leader: bytes of the partition's log that another replica is not known to have, about"
    );
    describe_gauge!(
        "ppsw_queue_oldest_age_seconds",
        Unit::Seconds,
        "Age of the oldest message in the partitions that this node leads, by state (queued, held)"
    );
    describe_counter!(
        "ppsw_handover_attempts_in_flight_total",
        "Attempts that were still in flight when a partition was handed over: possible duplicates"
    );
    describe_counter!(
        "ppsw_forwarded_outcomes_total",
        "Outcomes of others that this node has had recorded, after a change of leader"
    );
    describe_counter!(
        "ppsw_control_refused_requests_total",
        "Requests with a wrong certificate or role, or without one"
    );
    describe_counter!(
        "ppsw_control_refused_joins_total",
        "Joins with an unknown, revoked or expired token"
    );
    describe_gauge!("ppsw_tables_version", "Version that this node runs; 0: its own directory");
    describe_gauge!(
        "ppsw_tables_generation",
        "Generation of the version that this node runs: counts every push, rollback and change"
    );
    describe_gauge!(
        "ppsw_tables_active_generation",
        "The generation that is active, as far as this node knows"
    );
    describe_gauge!(
        "ppsw_tables_activated_timestamp_seconds",
        Unit::Seconds,
        "Since when this node runs its version"
    );
    describe_gauge!(
        "ppsw_tables_behind",
        "1 while this node runs something else than what is active"
    );
    describe_gauge!("ppsw_tables_entries", "Entries of all tables");
    describe_gauge!("ppsw_tables_bytes", Unit::Bytes, "Memory of all tables");
    describe_histogram!(
        "ppsw_tables_prepare_seconds",
        Unit::Seconds,
        "Time to fetch and compile a version, until this node was ready to switch"
    );
    describe_counter!(
        "ppsw_tables_pushes_total",
        "Pushes of versions, by result, on the node that was asked"
    );
    describe_gauge!("ppsw_blobs", "Files of versions on this node's disk");
    describe_gauge!(
        "ppsw_blobs_bytes",
        Unit::Bytes,
        "Bytes of the files of versions on this node's disk"
    );
}
