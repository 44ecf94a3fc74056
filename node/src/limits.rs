//! Every limit of this crate, with its reason.

use std::time::Duration;

/// Longest command line, with CRLF: RFC 5321 §4.5.3.1.4 asks for 512, extensions add to it (AUTH: 12288, RFC 4954 §4).
pub const COMMAND_LINE_BYTES_MAX: usize = 12_288;

/// Recipients of one message: RFC 5321 §4.5.3.1.8 asks for at least 100; a log entry must hold them all.
pub const RECIPIENTS_MAX: usize = 1_000;

/// Time for a client to send its next command (RFC 5321 §4.5.3.2.7).
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);

/// Time that a majority has to commit a message before the client hears `451 4.3.0` (design §3).
pub const COMMIT_DEADLINE: Duration = Duration::from_secs(60);

// ---- HTTP and `ppswd dev` ----

/// Buckets of histograms of times, seconds: from one sync of a fast disk to the longest command time-out.
pub const HISTOGRAM_SECONDS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0, 300.0,
];

/// Buckets of histograms of sizes, bytes: from a bare bounce to the largest message that the paper lets in.
pub const HISTOGRAM_BYTES: &[f64] = &[
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    104_857_600.0,
];

/// How often histogram samples are moved into their buckets: they wait in memory until then.
pub const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Memory for one message in the sink; what is longer goes to its file in pieces of this size.
pub const SINK_BUFFER_BYTES: usize = 64 * 1024;

/// Longest command line of the sink; more ends the connection.
pub const SINK_LINE_BYTES_MAX: usize = 16 * 1024;

/// Recipients of one transaction in the sink: more than any node sends at once.
pub const SINK_RECIPIENTS_MAX: usize = 10_000;

/// How long the sink waits for its client: longer than a node keeps an idle connection.
pub const SINK_IDLE_MAX: Duration = Duration::from_secs(600);

/// How often the DNS server of `dev` looks for changed zone files.
pub const ZONE_POLL: Duration = Duration::from_secs(1);

/// TTL of synthesised names: short, so that an edited zone file is seen soon.
pub const ZONE_TTL_SECONDS: u32 = 5;

/// Time for a DNS client of `dev` to send a question over TCP.
pub const ZONE_TCP_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest zone file that is read: a slip of the hand should not fill the memory.
pub const ZONE_FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Nodes of a `dev` cluster: node N has the addresses 127.10.N.x, and 127.10.0.x belongs to the services.
pub const DEV_NODES_MAX: u16 = 50;

/// Time for a `dev` cluster to become ready; the usual time is a few seconds.
pub const DEV_START_MAX: Duration = Duration::from_secs(120);

/// Time that a node of a stopping `dev` cluster has to end its transactions before it is killed.
pub const DEV_STOP_MAX: Duration = Duration::from_secs(10);
// Policy, tables, routing and DNS.

/// Levels of directories below a configuration's: `domains/DOMAIN/` is the deepest.
pub const CONFIGURATION_DEPTH_MAX: usize = 2;

/// Largest table file. A million entries of 64 bytes are 64 MB; beyond this it is the wrong file.
pub const TABLE_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Longest line of a table: an alias with some thousand recipients.
pub const TABLE_LINE_BYTES_MAX: usize = 128 * 1024;

/// Entries of one table: the largest that was asked for has a million; an index must stay below 2^32.
pub const TABLE_ENTRIES_MAX: usize = 8_000_000;

/// Longest table key: an address has at most 64 + 1 + 255 bytes (RFC 5321 §4.5.3.1), escapes added.
pub const TABLE_KEY_BYTES_MAX: usize = 512;

/// Errors of one kind of file that are reported at once; who has more reads no further anyway.
pub const CONFIGURATION_ERRORS_MAX: usize = 200;

/// Largest `policy.kdl`: the paper's whole configuration has 40 KiB.
pub const POLICY_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Nesting of `any`, `all`, `not` and of auxiliary ACLs: bounds the stack of an evaluation.
pub const POLICY_DEPTH_MAX: usize = 16;

/// Longest text that a template gives for a reply or a variable: 4 reply lines of 512 bytes (RFC 5321 §4.5.3.1.5).
pub const POLICY_TEXT_BYTES_MAX: usize = 2_048;

/// Longest delay that rules may add to one command: far below a client's own 5 minutes (RFC 5321 §4.5.3.2).
pub const POLICY_DELAY_MAX: Duration = Duration::from_secs(60);

/// Log lines of one evaluation.
pub const POLICY_LOG_LINES_MAX: usize = 32;

/// DNS lists of one condition: each is a question per connection.
pub const DNS_LISTS_MAX: usize = 16;

/// Redirections between a recipient and a final address: longer chains are loops in all but name.
pub const ROUTE_DEPTH_MAX: usize = 30;

/// Addresses that one recipient may lead to: the largest lists have some ten thousand members.
pub const ROUTE_CHILDREN_MAX: usize = 50_000;

/// Addresses of one recipient that are routed at the same time (each may wait for DNS).
pub const ROUTE_CONCURRENT: usize = 32;

/// MX hosts that are considered for a domain; large providers have five.
pub const MX_HOSTS_MAX: usize = 25;

/// Addresses that are kept of one host.
pub const HOST_ADDRESSES_MAX: usize = 16;

/// Questions to the DNS that are under way at once from one process.
pub const DNS_QUESTIONS_MAX: usize = 512;

/// Answers that the DNS cache keeps.
pub const DNS_CACHE_ANSWERS: u64 = 65_536;

/// Longest time that an answer is believed, whatever its TTL: operators expect changes within the hour.
pub const DNS_TTL_MAX: Duration = Duration::from_secs(3_600);

/// Time for one attempt with one server, and attempts: 3 × 3 s fit into a client's patience for RCPT.
pub const DNS_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// See [`DNS_ATTEMPT_TIMEOUT`].
pub const DNS_ATTEMPTS: usize = 2;

/// Time for one question with all its attempts; then it is answered "try again later".
pub const DNS_QUESTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest domain name (RFC 1035 §2.3.4).
pub const DOMAIN_BYTES_MAX: usize = 255;
