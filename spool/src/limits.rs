//! Every limit of this crate, with its reason.

/// The longest piece of a message in one log entry (design §4: bounded delay of small mail behind large).
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// Chunks of one message that may be proposed and not yet committed (measured: more than 4 delays small mail).
pub const CHUNKS_IN_FLIGHT_MAX: usize = 4;

/// A message up to this size travels inside its `Accept` entry instead of as chunks.
pub const INLINE_BODY_BYTES_MAX: usize = 64 * 1024;

// The node's log. What one record and one flush may be long is part of the format (docs/log-format.md).

/// Usual size of a log segment: big enough that rotation is rare (one in some 15000 messages of 4 KiB),
/// small enough that space comes back in small steps.
pub const LOG_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// The largest segment: it is read into memory as a whole when the log is opened.
pub const LOG_SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The longest payload of one log record. Entries stay near 1 MiB; the rest is room for checkpoints.
pub const LOG_RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The longest flush: bounds the time that a small record waits behind large ones, and what must be
/// overwritten behind a torn tail. Part of the format: it may shrink, but never grow in version 1.
pub const LOG_FLUSH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes that may wait for the log's writer before `Log::room` makes callers wait: some flushes' worth.
pub const LOG_QUEUE_BYTES_SOFT: usize = 64 * 1024 * 1024;

/// Bytes that may wait for the log's writer before an append blocks its thread. Reached only by callers
/// that do not ask `Log::room`; bounds memory when the disk stalls.
pub const LOG_QUEUE_BYTES_HARD: usize = 128 * 1024 * 1024;

/// Records that may wait before `Log::room` makes callers wait (an empty record costs memory too).
pub const LOG_QUEUE_RECORDS_SOFT: usize = 128 * 1024;

/// Records that may wait before an append blocks its thread.
pub const LOG_QUEUE_RECORDS_HARD: usize = 256 * 1024;

/// What an entry in memory costs besides its payload, for the bounds of queue and cache.
pub const LOG_RECORD_OVERHEAD: usize = 96;

/// Dead segments kept for reuse: rewriting blocks that exist is 1.6 times faster; more only hold space.
pub const LOG_FREE_SEGMENTS_MAX: usize = 4;

/// How long the log must be idle before the last flush is confirmed by an empty one (docs/log-format.md).
pub const LOG_CONFIRM_AFTER: std::time::Duration = std::time::Duration::from_secs(1);
