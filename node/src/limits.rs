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
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Buckets of histograms of sizes, bytes: from a bare bounce to the largest message that the paper lets in.
pub const HISTOGRAM_BYTES: &[f64] = &[
    1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 104_857_600.0,
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
