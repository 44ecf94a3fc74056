//! Every limit of this crate, with its reason.

/// The longest piece of a message in one log entry (design §4: bounded delay of small mail behind large).
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// Chunks of one message that may be proposed and not yet committed (measured: more than 4 delays small mail).
pub const CHUNKS_IN_FLIGHT_MAX: usize = 4;

/// A message up to this size travels inside its `Accept` entry instead of as chunks.
pub const INLINE_BODY_BYTES_MAX: usize = 64 * 1024;

/// Smallest and largest segment of the log: two flushes must fit, and offsets are 32 bits.
pub const SEGMENT_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// See [`SEGMENT_BYTES_MIN`].
pub const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Longest payload of a log record: a chunk or an `Accept` with 1,000 recipients fit well.
pub const LOG_RECORD_BYTES_MAX: usize = 1024 * 1024;

/// Bytes that may wait for the log's writer; beyond, appending waits for the disk.
pub const LOG_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes that one flush takes at most, so that the first of many waiters does not wait for all of them.
pub const LOG_FLUSH_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Segment files that are kept for their next use (writing into written blocks is faster than into new ones).
pub const FREE_SEGMENTS_MAX: usize = 4;

const _: () = assert!(LOG_FLUSH_BYTES_MAX + LOG_RECORD_BYTES_MAX < SEGMENT_BYTES_MIN as usize);
const _: () = assert!(CHUNK_BYTES_MAX * 2 < LOG_RECORD_BYTES_MAX);
