//! What the metrics of the SMTP side mean (docs/metrics.md).

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub(crate) fn describe() {
    describe_counter!(
        "ppsw_smtp_connections_total",
        "Connections: accepted, or why they were turned away: draining, full, host_full, load, shed, bad_proxy"
    );
    describe_gauge!("ppsw_smtp_sessions", "Sessions that are open");
    describe_gauge!(
        "ppsw_shed_ratio",
        "Part of the new sessions of strangers that is turned away because there is too much to do"
    );
    describe_counter!("ppsw_smtp_commands_total", "Replies to SMTP commands, by command and class");
    describe_counter!("ppsw_smtp_rejects_total", "What the policy refused, for now or for good");
    describe_histogram!(
        "ppsw_smtp_message_seconds",
        Unit::Seconds,
        "From the end of a message to its reply: content rules and the commit"
    );
    describe_counter!("ppsw_smtp_auth_failures_total", "Wrong passwords");
    describe_counter!(
        "ppsw_smtp_auth_blocked_total",
        "AUTH commands that were not heard, of hosts that guess"
    );
    describe_counter!(
        "ppsw_smtp_accept_errors_total",
        "Connections that could not be accepted: no file descriptors, most likely"
    );
    describe_counter!(
        "ppsw_smtp_tls_handshakes_total",
        "TLS handshakes with clients, by result and version"
    );
    describe_counter!("ppsw_dns_questions_total", "Questions to the DNS, by type and result");
    describe_histogram!(
        "ppsw_dns_question_seconds",
        Unit::Seconds,
        "From a question to its answer; those that hickory's cache knew are among them"
    );
    describe_counter!(
        "ppsw_dns_cache_hits_total",
        "Hosts of domains, and addresses of hosts, that were known"
    );
    crate::http::describe_process();
    describe_counter!(
        "ppsw_callouts_total",
        "Answers to callouts, by result and whether they were known"
    );
    describe_counter!(
        "ppsw_rates_not_counted_total",
        "Questions of rate-over that passed uncounted, because too many others are counted"
    );
    describe_counter!(
        "ppsw_maillog_lost_total",
        "Events that did not fit into the mail log's queue"
    );
    describe_counter!("ppsw_maillog_errors_total", "Writes of the mail log that failed");
}
