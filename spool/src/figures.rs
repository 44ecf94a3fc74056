//! What the metrics of the log and its groups mean (docs/metrics.md).

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub(crate) fn describe() {
    describe_gauge!("ppsw_raft_leading", "1 while this node leads the group");
    describe_gauge!("ppsw_raft_term", "Term of the group, as this node knows it");
    describe_counter!("ppsw_raft_leader_changes_total", "Leaders that this node has seen");
    describe_histogram!(
        "ppsw_raft_commit_seconds",
        Unit::Seconds,
        "From a proposal at this node to its commit: what a 250 waits for"
    );
    describe_counter!("ppsw_raft_batches_total", "Batches of proposals that went together");
    describe_counter!(
        "ppsw_raft_batched_total",
        "Proposals that went in batches; by batches, how many share one"
    );
    describe_histogram!("ppsw_log_sync_seconds", Unit::Seconds, "Time of a fdatasync of the log");
    describe_counter!("ppsw_log_syncs_total", "Syncs of the log");
    describe_counter!(
        "ppsw_log_records_total",
        "Records written to the log; by syncs, how many share one"
    );
    describe_counter!("ppsw_log_bytes_total", "Bytes written to the log");
    describe_gauge!("ppsw_log_segments", "Segments of this node's log");
    describe_counter!(
        "ppsw_log_full_waits_total",
        "Times that the log began to wait for space on a full disk"
    );
    describe_counter!(
        "ppsw_log_read_retries_total",
        "Reads that were wrong or failed, and were tried again"
    );
    describe_counter!(
        "ppsw_log_damaged_total",
        "The log was found damaged; the node ends seconds later"
    );
    describe_gauge!(
        "ppsw_log_scrub_completed_timestamp_seconds",
        Unit::Seconds,
        "When the log was last read through"
    );
    describe_counter!("ppsw_log_scrub_bytes_total", "Bytes that the scrub has read");
    describe_gauge!(
        "ppsw_disk_free_bytes",
        Unit::Bytes,
        "Bytes that are free on the disk of data, with segments that can be used again"
    );
    describe_gauge!(
        "ppsw_disk_free_inodes",
        "Files that can be made on the disk of data; absent where the file system does not count"
    );
}
