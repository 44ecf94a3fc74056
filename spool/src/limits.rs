//! Every limit of this crate, with its reason.

/// The longest piece of a message in one log entry (design §4: bounded delay of small mail behind large).
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// Chunks of one message that may be proposed and not yet committed (measured: more than 4 delays small mail).
pub const CHUNKS_IN_FLIGHT_MAX: usize = 4;

/// A message up to this size travels inside its `Accept` entry instead of as chunks.
pub const INLINE_BODY_BYTES_MAX: usize = 64 * 1024;
