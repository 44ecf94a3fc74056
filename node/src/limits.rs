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

/// Longest name that is asked for (RFC 1035 §2.3.4).
pub const DNS_NAME_BYTES_MAX: usize = 255;
