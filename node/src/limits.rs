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
