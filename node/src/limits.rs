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

// === deliver ===

/// Messages taken from the queue at once on a node: those that transmit and those that wait for a place in their
/// destination's queue. Bounds memory (a few KiB each) and what a crash may have had in flight.
pub const MESSAGES_TAKEN_MAX: usize = 2_000;

/// Transactions with other servers at once on a node: bounds sockets.
pub const TRANSACTIONS_MAX: usize = 200;

/// Transactions at once with one destination: enough to be fast, few enough to be polite.
pub const TRANSACTIONS_PER_DESTINATION_MAX: usize = 20;

/// Messages that wait for a place at one destination. More stay in the queue, so that a slow destination cannot
/// fill [`MESSAGES_TAKEN_MAX`].
pub const WAITING_PER_DESTINATION_MAX: usize = 100;

/// How long a message whose destination is full is left alone.
pub const DESTINATION_FULL_DELAY: Duration = Duration::from_secs(1);

/// Messages remembered as left alone: beyond, none is taken until some of the delays are over.
pub const POSTPONED_MAX: usize = 100_000;

/// Messages asked of a partition at once: the queue's lock is held for that long.
pub const DUE_BATCH: usize = 100;

/// The queue is looked at at least this often, whatever its watch says.
pub const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// Wake-ups closer together than this are one: a scan of the queue is not free, a message a millisecond is nothing.
pub const SCAN_COALESCE: Duration = Duration::from_millis(2);

/// How often a waiting attempt asks whether the partition may still deliver.
pub const FENCE_POLL: Duration = Duration::from_millis(200);

/// Recipients per transaction: RFC 5321 §4.5.3.1.8 lets every server take 100.
pub const RECIPIENTS_PER_TRANSACTION_MAX: usize = 100;

/// Addresses tried for one transaction (Exim's `hosts_max_try`).
pub const HOSTS_TRIED_MAX: usize = 5;

/// Time to connect; a live host answers in a few seconds, and there may be others to try.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for greeting, and for replies to EHLO, MAIL, RCPT (RFC 5321 §4.5.3.2.1-3).
pub const REMOTE_REPLY_TIMEOUT: Duration = Duration::from_secs(300);

/// Time for the reply to DATA (RFC 5321 §4.5.3.2.4).
pub const DATA_REPLY_TIMEOUT: Duration = Duration::from_secs(120);

/// Time for one write of data (RFC 5321 §4.5.3.2.5).
pub const DATA_WRITE_TIMEOUT: Duration = Duration::from_secs(180);

/// Time for the reply to the final dot (RFC 5321 §4.5.3.2.6: shorter makes duplicates).
pub const FINAL_REPLY_TIMEOUT: Duration = Duration::from_secs(600);

/// Destinations with a queue of their own; those without a transaction are forgotten first.
pub const DESTINATIONS_MAX: usize = 4_000;

/// Time for QUIT and for a last look at what a server said before it closed: nothing depends on it.
pub const QUIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest reply line taken; RFC 5321 §4.5.3.1.5 allows 512, some servers send more.
pub const REMOTE_REPLY_LINE_BYTES_MAX: usize = 4_096;

/// Lines of one reply (an EHLO reply has some 20).
pub const REMOTE_REPLY_LINES_MAX: usize = 128;

/// Text of a reply or a reason that is kept and logged (the queue keeps no more).
pub const REASON_BYTES_MAX: usize = 1_024;

/// Idle connections kept on a node for the next message to the same address.
pub const IDLE_CONNECTIONS_MAX: usize = 100;

/// How long an idle connection is kept: a burst reuses it, and the other side's slots are not held for nothing.
pub const IDLE_CONNECTION_TIME: Duration = Duration::from_secs(5);

/// Messages over one connection: some servers count, and a balancer behind it wants its turn.
pub const MESSAGES_PER_CONNECTION_MAX: u32 = 100;

/// A host that could not be reached is left alone for this long, so that not each message of a queue run waits for
/// it; short, so that a repaired host gets mail when an operator asks for it.
pub const HOST_DOWN_TIME: Duration = Duration::from_secs(10);

/// Hosts remembered as down: beyond, the oldest are forgotten, which costs a connection attempt.
pub const HOSTS_DOWN_MAX: usize = 10_000;

/// Time for a majority to record an outcome before it is proposed again.
pub const RECORD_DEADLINE: Duration = Duration::from_secs(10);

/// Pause between attempts to record or forward an outcome.
pub const RECORD_PAUSE: Duration = Duration::from_millis(200);

/// Attempts to bring an outcome to a partition's new leader: with the pause and the deadline, time for an election
/// and more. After that, a duplicate is possible, and counted.
pub const FORWARD_TRIES_MAX: u32 = 100;

/// Steps of one retry rule: nobody needs more, and a scan of it is per attempt.
pub const RETRY_STEPS_MAX: usize = 32;

/// Shortest and longest interval of a retry rule (Exim's `retry_interval_max` is 24h).
pub const RETRY_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// See [`RETRY_INTERVAL_MIN`].
pub const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Bytes of a bounce or warning: it travels inside an outcome's log entry, which has this place for it.
pub const BOUNCE_BYTES_MAX: usize = 64 * 1024;

/// Part of [`BOUNCE_BYTES_MAX`] for the original; the paper returns 10K.
pub const BOUNCE_RETURN_BYTES_MAX: usize = 24 * 1024;

/// Part of [`BOUNCE_BYTES_MAX`] for the failed recipients; with more of them there are several bounces.
pub const BOUNCE_RECIPIENTS_BYTES_MAX: usize = 32 * 1024;

// === maillog ===

/// Events that wait for the log's writer: a slow disk must not stop mail; what does not fit is counted.
pub const LOG_QUEUE_MAX: usize = 8_192;

/// Longest field of a log line (an address has at most 320 bytes, a reply 1 KiB, a list of recipients is cut).
pub const LOG_FIELD_BYTES_MAX: usize = 4_096;

/// How often the writer looks whether its files have been renamed.
pub const LOG_REOPEN_INTERVAL: Duration = Duration::from_secs(1);
