//! Every limit of this crate, with its reason.

use std::time::Duration;

/// The longest piece of a message in one log entry (design §4: bounded delay of small mail behind large).
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// Chunks of one message that may be proposed and not yet committed (measured: more than 4 delays small mail).
pub const CHUNKS_IN_FLIGHT_MAX: usize = 4;

/// KiB of chunks of all messages of a partition that may be proposed and not yet committed. With one chunk instead of eight, messages
/// of 1 MiB are slower (15 to 20 %); without a bound they were 4 % faster (docs/performance.md).
pub const CHUNKS_PER_PARTITION_KIB_MAX: usize = 8 * CHUNK_BYTES_MAX / 1024;

/// So much less while short messages come, which wait behind them in every queue: one first chunk of a message. With eight they
/// were four times as late, with two twice (docs/decisions/035-long-beside-short.md).
pub const CHUNKS_BESIDE_SHORT_DIVISOR: usize = 8;

/// A later chunk of a message while short messages come: it has all places for itself, and what is behind it waits for so much, not
/// for four times that. The first is longer, so that a message that just does not fit into its `Accept` is one chunk.
pub const CHUNK_BESIDE_SHORT_BYTES: usize = 64 * 1024;

/// So many chunks of a message may be that short (256 MiB): what comes behind them has to fit into `CHUNKS_PER_MESSAGE_MAX`.
pub const CHUNKS_BESIDE_SHORT_MAX: u32 = 4 * 1024;

/// The longest pause behind a chunk while short messages come.
pub const CHUNK_PAUSE_MAX: Duration = Duration::from_millis(20);

/// So long after a short message others are expected: for a pause in a load, and much longer than one takes beside long ones.
pub const SHORT_ABOUT: Duration = Duration::from_secs(10);

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

/// Dead segments that are kept for reuse however long the log is. Others stay while the log, with all but so many of them, is no
/// longer than it may be anyway: a sync into blocks that were written before changes nothing in the file system, which else writes
/// the file's inode (or its journal) too (docs/decisions/039-used-segments.md). What is too much then is removed one by one.
pub const LOG_FREE_SEGMENTS_MIN: usize = 4;

/// In so many steps a dead segment is removed, each of which makes the file shorter. Where a file system tells the disk what it no
/// longer needs, 64 MiB at once held up every sync for 10 to 37 ms, and 4 MiB for 3 (docs/decisions/035-long-beside-short.md).
pub const LOG_REMOVE_STEPS: u64 = 16;

/// The pause between two of them: two segments in a second, which is more than a log gets shorter by in the long run.
pub const LOG_REMOVE_PAUSE: Duration = Duration::from_millis(30);

/// The longest index file of a segment: half a million records, for segments of messages ten times as many as usual.
/// A segment with more records has none and is read whole when the log is opened. Bounds the writer's memory.
pub const LOG_SIDECAR_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long the log must be idle before the last flush is confirmed by an empty one (docs/log-format.md).
pub const LOG_CONFIRM_AFTER: Duration = Duration::from_secs(1);

/// How often bytes that must be there are read, from the medium, before the log is given up as damaged: a bad page
/// in memory or a path to the disk that comes back costs no replica.
pub const LOG_READ_TRIES: u32 = 3;

/// Between two tries.
pub const LOG_READ_PAUSE: Duration = Duration::from_millis(200);

/// What is read of the mark of a damaged log: a path and a sentence.
pub const LOG_MARK_BYTES_MAX: usize = 8 * 1024;

/// How often the log is read through, unless the configuration says otherwise: a bit that rots meets a second one on
/// another node within a week rarely enough.
pub const SCRUB_PERIOD: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the scrub reads in a second: one twentieth of what a slow disk reads, and 4 TiB in a week.
pub const SCRUB_BYTES_PER_SECOND: u64 = 8 * 1024 * 1024;

/// What the scrub reads at once: others wait a few milliseconds for it on a disk that turns.
pub const SCRUB_READ_BYTES: usize = 256 * 1024;

/// A scrub that is overdue at a start begins within this time: starting is work enough, and nodes are started together.
pub const SCRUB_START_SPREAD: Duration = Duration::from_secs(3600);

/// How often free space is measured, and how often a spare segment that could not be made is tried again: others have
/// to know within two seconds that a disk is low.
pub const SPACE_POLL: Duration = Duration::from_millis(500);

/// After so long without a commit the last ones say nothing of how fast the next will be.
pub const COMMIT_TIME_AGE_MAX: Duration = Duration::from_secs(10);

/// Bytes of proposals that go together: one request to a follower, well below a flush of the log. When so many wait
/// they do not wait any longer.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Proposals that go together: all that sessions and deliveries of a busy node have at one time.
pub const BATCH_ENTRIES_MAX: usize = 1024;

/// So long others wait for the batch that is under way: a disk that turns, or a far follower, answers later, and then
/// several batches are on their way.
pub const BATCH_HOLD_MAX: Duration = Duration::from_millis(10);

/// News of a commit waits so long for entries to go with: a follower that applies it a moment later keeps nobody waiting.
pub const COMMIT_NEWS_MAX: Duration = Duration::from_millis(5);

/// The first wait of the log when its disk is full; most waits end when a purge has freed a file …
pub const LOG_FULL_RETRY_MIN: Duration = Duration::from_millis(10);

/// … and the longest: an operator has to make room.
pub const LOG_FULL_RETRY_MAX: Duration = Duration::from_secs(1);

/// Part of a segment that a log without a spare keeps for votes, purges and checkpoints: entries of other leaders are
/// not taken when less than one in so many bytes is left.
pub const LOG_LAST_RESERVE: u64 = 4;

// ---- queue ----

/// The longest text kept of an attempt's result: the reply of a next hop is quoted in bounces and logs, not more.
pub const OUTCOME_TEXT_BYTES_MAX: usize = 1024;

/// The longest entry that is proposed: an envelope of thousands of recipients, or the outcome of as many, fits,
/// and replication still moves in pieces well below the 4 MiB at which gRPC refuses a message.
pub const ENTRY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Chunks of one message: 3.25 to 4 GiB, far above any size limit of a front end; bounds what a bad entry can claim.
pub const CHUNKS_PER_MESSAGE_MAX: u32 = 16 * 1024;

/// So many of the last entries are remembered by their message, to refuse what comes too late (a chunk behind its
/// abort, a carry behind an outcome). Checkpoints keep as many entries. Has to exceed what can be proposed
/// and not yet applied: 40,000 entries a second for 10 ms, twice over.
pub const HISTORY_ENTRIES: u64 = 1024;

/// After an unplanned takeover, messages that may have been in flight wait this long (design §4): a next hop has
/// answered the final dot, or never will, of most attempts by then.
pub const TAKEOVER_GRACE: Duration = Duration::from_secs(30);

/// How long a chunk may wait for a majority: `commit_deadline`, as for the message itself (design §3).
pub const CHUNK_COMMIT_MAX: Duration = Duration::from_secs(60);

/// How long an abort, or another entry that can be proposed again, may wait for a majority.
pub const ABORT_COMMIT_MAX: Duration = Duration::from_secs(10);

/// How long the mark of an attempt may wait for a majority; the other server waits with its dialogue meanwhile.
pub const MARK_COMMIT_MAX: Duration = Duration::from_secs(10);

/// Marks are gathered for so long: at most 500 entries a second, and the dialogue that they run beside takes longer.
pub const MARKS_GATHER: Duration = Duration::from_millis(2);

/// Then the entry waits so long for others that go to the log: on a busy node it goes with the next message.
pub const MARKS_PATIENCE: Duration = Duration::from_millis(3);

/// An outcome waits so long for others that go to the log; a crash meanwhile means a duplicate, as it does in the time of
/// the commit that follows.
pub const OUTCOMES_PATIENCE: Duration = Duration::from_millis(5);

/// Messages marked by one entry: some 15 bytes each.
pub const MARKS_PER_ENTRY_MAX: usize = 2_000;

/// Messages that wait for their abort to be committed: one per session that failed. More are left to the sweep of
/// unfinished uploads, or are delivered although their client got `451`, which RFC 5321 §6.1 allows.
pub const DOOMED_MAX: usize = 10_000;

/// How often a partition looks for entries to trim and for uploads that nobody continues; half of it is jitter, so
/// that the partitions of a node do not do it together.
pub const UPKEEP_PERIOD: Duration = Duration::from_secs(10);

/// A checkpoint is taken when it frees so many entries: it costs one small write, they cost time at a restart …
pub const TRIM_ENTRIES_MIN: u64 = 20_000;

/// … or so many bytes: a segment's worth.
pub const TRIM_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// Until its log has grown to this, a node does nothing about what is old in it (design §4): most mail is gone before.
pub const LOG_FLOOR_BYTES: u64 = 1024 * 1024 * 1024;

/// What a node keeps in memory of its log, if its configuration says nothing. What is read again is read at once: by its
/// followers, by the state machine, by the first attempt to deliver. More only spreads new messages over memory that has
/// left the processor's caches (docs/decisions/036-small-cache.md).
pub const LOG_CACHE_BYTES: usize = 4 * 1024 * 1024;

/// How often a node looks whether its log has grown too long. Between two looks a busy log grows by a segment or two.
pub const RETENTION_PERIOD: Duration = Duration::from_secs(2);

/// The same while it is too long: what is carried can go at once.
pub const RETENTION_PERIOD_LONG_LOG: Duration = Duration::from_millis(500);

/// How often a leader that has been asked to give up the beginning of its log looks whether it can go on.
pub const CARRY_RETRY: Duration = Duration::from_secs(5);

/// Bytes a second that a leader carries: a fifth of what the slowest disk in use here takes, so that live mail keeps
/// its latency; a log of 1 GiB of which half is alive is tidied in half a minute.
pub const CARRY_BYTES_PER_SECOND: u64 = 16 * 1024 * 1024;

/// Messages that are carried at a time, one entry of each in flight.
pub const CARRY_IN_FLIGHT: usize = 4;

/// How long an entry of a carry may wait for a majority.
pub const CARRY_COMMIT_MAX: Duration = Duration::from_secs(10);

/// Messages that are looked at under one lock, for those that are to be carried: some milliseconds.
pub const CARRY_LOOK: usize = 10_000;

/// Messages of one round of carrying; bounds what is remembered of them.
pub const CARRY_ROUND: usize = 100_000;

/// Entries that were applied so long ago need not be remembered to judge others by: nothing of their time is still on
/// its way, as every proposal has its deadline (`CHUNK_COMMIT_MAX`). Twice that.
pub const SETTLE_AGE: Duration = Duration::from_secs(120);

/// A message that has been coming in for so long is aborted when the log is too long because of it: a client that
/// sends a byte now and then must not hold the log of all voters. No honest one needs as long.
pub const UPLOAD_PINS_MAX: Duration = Duration::from_secs(3600);

/// How often a replica notes how far it has applied, to know later how old entries are.
pub const AGE_MARK_PERIOD: Duration = Duration::from_secs(10);

/// What an entry of the log has besides what the index keeps of its message, about: the log's own record, field numbers.
pub const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Entries between two marks of how long the log has become, from which the bytes to trim are estimated.
pub const VOLUME_MARK_ENTRIES: u64 = 256;

/// Marks that are kept: for 16 million entries; above that, the oldest are merged into one.
pub const VOLUME_MARKS_MAX: usize = 64 * 1024;

/// Marks that a local checkpoint keeps: enough to trim by, and few enough to be written every few seconds.
pub const VOLUME_MARKS_KEPT: usize = 512;

/// Messages whose change is remembered until they are written to the local checkpoint: more than change between two
/// rounds. Above that, all messages are written anew. Some 15 MiB.
pub const CHANGED_MAX: usize = 400_000;

/// Messages that are copied at a time for a local checkpoint: under a millisecond of a lock that delivery needs, too.
pub const KEPT_PIECE_MESSAGES: usize = 1000;

/// … or bytes of messages.
pub const KEPT_PIECE_BYTES: usize = 1024 * 1024;

/// The longest piece of a local checkpoint: one message, as long as it can become by expansion of its recipients, or
/// what is known of all uploads. A queue with a longer one has no local checkpoint.
pub const KEPT_FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How often changes are written to the local checkpoints: what is applied between is replayed after a crash, some
/// seconds' worth of mail.
pub const KEEP_PERIOD: Duration = Duration::from_secs(2);

/// Pieces of changes in one round before the rest is taken at once: changes that come faster than they are written
/// must not keep a round from ending.
pub const KEPT_PIECES_MAX: usize = 64;

/// A local checkpoint is written anew when it has grown to twice its messages, and by this: small ones are not
/// written all the time.
pub const KEPT_GROWTH_MIN: u64 = 16 * 1024 * 1024;

/// Bytes of a local checkpoint between two syncs: a sync of the log has to wait for no more of them.
pub const KEPT_SYNC_BYTES: u64 = 4 * 1024 * 1024;

/// The highest node number that fits the two base 62 digits of a message id.
pub const NODE_IN_ID_MAX: u64 = 62 * 62 - 1;

/// Results in one part of an outcome that is too long for one entry (thousands of recipients in one attempt): with
/// their addresses and texts, some 1.3 KiB each.
pub const OUTCOME_PART_RESULTS: usize = 1000;

/// Created messages in one part of such an outcome: 64 KiB each, and their envelopes.
pub const OUTCOME_PART_CREATES: usize = 16;

/// New recipients in one part of an expansion, in bytes: below [`ENTRY_BYTES_MAX`] with what stands around them.
pub const EXPAND_PART_BYTES: usize = 2 * 1024 * 1024;

/// Recipients that expansions may give a message, in bytes: with what stands around each of them ([`RECIPIENT_OVERHEAD`]),
/// a `Carry` must hold them all in one entry, with a body inside. 50,000 with addresses of 30 bytes fit.
pub const EXPANDED_BYTES_MAX: usize = ENTRY_BYTES_MAX - 384 * 1024;

/// What stands around the address of a recipient in a record: tags, state, attempts, due time, expansion.
pub const RECIPIENT_OVERHEAD: usize = 24;

/// Messages that are decoded at a time when the whole queue is looked at: some milliseconds of a lock that delivery
/// needs, too.
pub const LIST_PAGE_MESSAGES: usize = 1000;

/// How often a message that waits for a partition looks whether a lease has been renewed.
pub const LEASE_POLL: Duration = Duration::from_millis(50);
const _: () = assert!(ENTRY_BYTES_MAX < LOG_RECORD_BYTES_MAX);

// ---- group ----

/// Entries of one append request, in payload bytes: a slow peer gets pieces that it can answer soon.
pub const APPEND_BYTES_MAX: usize = 1024 * 1024;

/// Largest message between nodes: an append request with one entry of the largest size.
pub const RPC_BYTES_MAX: usize = 8 * 1024 * 1024;

/// An append stream with requests in flight and no answer for so long is given up: the peer hangs, or the
/// connection is dead without telling.
pub const APPEND_IDLE_MAX: Duration = Duration::from_secs(2);

/// A heartbeat, vote or checkpoint that is not answered for so long counts as lost.
pub const RPC_ANSWER_MAX: Duration = Duration::from_secs(2);

/// Entries that a successor may lack when leadership is handed over: it has them within milliseconds.
pub const TRANSFER_LAG_MAX: u64 = 2_000;

/// A transfer that has not moved leadership after so long is aborted by a second one (measured: 3 ms is normal).
pub const TRANSFER_STUCK: Duration = Duration::from_millis(300);

/// Longest proposal. A longer one is refused before it is written: an entry that no record of the log can hold, or no
/// message between nodes, would end or stop the group on every replica.
pub const PROPOSAL_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long a proposal that another node has forwarded may wait for a majority, whatever that node says.
pub const FORWARDED_PROPOSAL_MAX: Duration = Duration::from_secs(60);

/// Longest state of a checkpoint: it has to fit into one record and one message, as an entry has.
pub const CHECKPOINT_BYTES_MAX: usize = 6 * 1024 * 1024;

/// Room for what stands around payloads in a message: ids, a membership of thousands.
const RPC_OVERHEAD_BYTES: usize = 1024 * 1024;

const _: () = assert!(ENTRY_BYTES_MAX <= PROPOSAL_BYTES_MAX);
const _: () = assert!(PROPOSAL_BYTES_MAX < LOG_RECORD_BYTES_MAX);
const _: () = assert!(CHECKPOINT_BYTES_MAX + RPC_OVERHEAD_BYTES <= LOG_RECORD_BYTES_MAX);
const _: () = assert!(CHECKPOINT_BYTES_MAX + RPC_OVERHEAD_BYTES <= RPC_BYTES_MAX);
const _: () = assert!(APPEND_BYTES_MAX + PROPOSAL_BYTES_MAX + RPC_OVERHEAD_BYTES <= RPC_BYTES_MAX);

/// How long taking a checkpoint may last: one small write; a disk that needs longer is about to fail.
pub const CHECKPOINT_TAKE_MAX: Duration = Duration::from_secs(30);

/// How long a checkpoint that was asked for is waited for before asking again; taking one is a matter of milliseconds.
pub const CHECKPOINT_ASK_AGAIN: Duration = Duration::from_millis(200);

/// Bytes a second that a node sends to all replicas that lag together, while mail is taken: half of a gigabit link, and a
/// fraction of what a disk of these years reads. A replica of 10 GB is complete after three minutes.
pub const CATCH_UP_BYTES_PER_SECOND: u64 = 64 * 1024 * 1024;

/// A replica lags when it lacks so many entries that a majority has: one that merely follows lacks those of some
/// milliseconds, at 40,000 a second.
pub const CATCH_UP_LAG: u64 = 1_000;

/// When nothing has been committed for so long, catching up disturbs nobody.
pub const CATCH_UP_QUIET: Duration = Duration::from_secs(1);

/// Entries that a learner may lack when it becomes a voter: from then on commits may have to wait for it.
pub const LEARNER_LAG_MAX: u64 = 2_000;

/// A peer's free space that was not told again for so long is not known any more: heartbeats are answered every 150 ms.
pub const SPACE_KNOWN_MAX: Duration = Duration::from_secs(2);

/// What is taken off a lease for the time between looking at it and acting, and for clocks that run unequally.
pub const LEASE_MARGIN: Duration = Duration::from_millis(100);
