//! Every limit of this crate, with its reason.

use std::time::Duration;

/// Nodes that vote in the control group: more would only make its commits slower; five survive two losses.
pub const CONTROL_VOTERS_MAX: usize = 5;

/// Voters of a partition: survives the loss of one (design §4).
pub const PARTITION_VOTERS: usize = 3;

/// What an operator may set instead: an even number would survive no more losses than the odd one below it.
pub const PARTITION_VOTERS_ALLOWED: [u32; 2] = [3, 5];

/// A node that is silent for so long loses its votes: longer than a restart of the machine, much shorter than the time
/// in which a second one is likely to fail. Copying its replicas elsewhere is work that a reboot is not worth.
pub const REPLACE_AFTER: Duration = Duration::from_secs(10 * 60);

/// Shorter, and every restart of a node would move replicas.
pub const REPLACE_AFTER_MIN: Duration = Duration::from_secs(5);

/// Longer, and nobody meant it; the logs of the others would be full before.
pub const REPLACE_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A silent node is replaced sooner when a leader has to keep more log than this for it (openraft's leader cannot purge
/// what a follower has not got): the size at which a log is to be shortened even if all is well (design §4), twice.
pub const PINNED_BYTES_MAX: u64 = 2 << 30;

/// ... but not before it has been silent for so long: a restart must not count.
pub const PINNED_PATIENCE: Duration = Duration::from_secs(30);

/// Lags above this are reported: replicas that follow lack some milliseconds of entries.
pub const LAG_REPORTED_BYTES: u64 = 64 << 20;

/// A node that was away has to answer so often in a row, one question a round, before it gets votes again.
pub const ANSWERS_TO_RETURN: u32 = 3;

/// How often the control leader looks who answers, and what of a removal is done.
pub const CENSUS_INTERVAL: Duration = Duration::from_secs(1);

/// How often a node that does not lead the control group asks another whether it is still a member: its own replica
/// of the state is not told when it loses its vote.
pub const MEMBERSHIP_CHECK: Duration = Duration::from_secs(3);

/// Members of a cluster: the node's number has two base-62 digits in a message id.
pub const NODE_ID_MAX: u64 = 62 * 62 - 1;

/// Rules that operators leave: each is compared with each message that comes to delivery.
pub const STANDING_MAX: usize = 100;

/// Bytes of one: an operator's reason (500), and a filter.
pub const STANDING_BYTES_MAX: usize = 4_096;

/// The longest life of one: nobody remembers it after a month.
pub const STANDING_LIFETIME_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

/// Bytes of a message in one piece of `ppswctl queue cat`.
pub const CAT_CHUNK_BYTES: usize = 256 << 10;

/// Tokens that are valid at one time; a bound on the control state.
pub const TOKENS_MAX: usize = 1000;

/// How long a join token is good if nobody says otherwise: long enough to set up a machine.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// The longest life of a token that may be asked for: a forgotten one must not stay a door.
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A message that is not delivered by then is given back to its sender (the paper's retry rules end at 5 days).
pub const MESSAGE_LIFETIME: Duration = Duration::from_secs(5 * 24 * 3600);

/// Life of the CA. Its certificate is on every node, so it must outlive the machines.
pub const CA_YEARS: i16 = 30;

/// Life of the certificates of nodes and operators. As long as nothing renews them, an expiry would stop mail.
pub const CERTIFICATE_YEARS: i16 = 10;

/// Certificates are valid from this long before they are made: clocks of new machines may be behind.
pub const CERTIFICATE_BACKDATE: Duration = Duration::from_secs(2 * 24 * 3600);

/// A proposal in the control group: several elections (2 s each) fit in.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// Waiting for a report of another node: longer and `status` seems to hang when a node is down.
pub const REPORT_PATIENCE: Duration = Duration::from_millis(1500);

/// A view of the whole cluster is good for so long, however many look at it: about as long as a person reads.
pub const VIEW_LIFETIME: Duration = Duration::from_secs(3);

/// ... or for so many times as long as its queue took to sum up, so that looking costs a twentieth of a processor at most,
/// even with a queue that takes seconds.
pub const VIEW_REST: u32 = 20;

/// ... but no longer than this: older is not what anybody wants to look at.
pub const VIEW_LIFETIME_MAX: Duration = Duration::from_secs(60);

/// Ages by which a summary counts messages: what passes at once, what the first retries (every 15 minutes) take, hours, the
/// warning after a day, and what will soon be given up.
pub const AGE_STEPS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_secs(600),
    Duration::from_secs(3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(24 * 3600),
    Duration::from_secs(3 * 24 * 3600),
];

/// How often lags and ages are looked at: as often as Prometheus asks, by default.
pub const GAUGES_INTERVAL: Duration = Duration::from_secs(15);

/// Messages that are looked at to find the oldest one of a state: a tenth of a second's work.
pub const OLDEST_SEARCH_MAX: usize = 100_000;

/// Waiting for one page of another node's queue.
pub const QUEUE_PATIENCE: Duration = Duration::from_secs(10);

/// Opening a connection to a peer, TLS included.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// Waiting for a signature of a node that has the CA's key, before the next is asked.
pub const SIGN_PATIENCE: Duration = Duration::from_secs(5);

/// Between two rounds of asking all members to come back.
pub const REJOIN_RETRY: Duration = Duration::from_millis(500);

/// A whole join, the election of a control leader included.
pub const JOIN_PATIENCE: Duration = Duration::from_secs(30);

/// HTTP/2 keep-alive between nodes, and the wait for its answer: a dead peer is noticed within two seconds.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// HTTP/2 windows: the largest append in flight (4 × 256 KiB per message, several messages) must not wait.
pub const WINDOW_BYTES: u32 = 8 << 20;

/// HTTP/2 frames of up to this size: fewer wake-ups per append.
pub const FRAME_BYTES: u32 = 1 << 20;

/// The largest single gRPC message that is read: one queue item with thousands of recipients fits.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Messages of one node that an operator's verb is about at once: each needs an entry of the log, and they share syncs.
pub const OPERATED_AT_ONCE: usize = 64;

/// Messages of one page of what became of them.
pub const OPERATED_PAGE: usize = 1_000;

/// Longest address of a redirection (RFC 5321 §4.5.3.1.3, and what local parts and domains may have).
pub const REDIRECT_BYTES_MAX: usize = 320;

/// A page of a queue listing is sent when it has this many bytes: bounded memory on both sides.
pub const QUEUE_PAGE_BYTES: usize = 512 << 10;

/// Domains that a queue summary tells apart; the rest are summed up as `*`.
pub const SUMMARY_DOMAINS_MAX: usize = 10_000;

/// A certificate request is smaller than this; anybody may send one.
pub const CSR_BYTES_MAX: usize = 16 << 10;

/// A name or address in the control group's state.
pub const NAME_BYTES_MAX: usize = 255;

/// How often the node compares what is with what should be, if nothing happens before.
pub const RECONCILE_INTERVAL: Duration = Duration::from_secs(1);

/// One change of a group's voters; a new replica has to read the whole live log.
pub const VOTER_CHANGE_DEADLINE: Duration = Duration::from_secs(60);

/// One transfer of leadership, a second try at another voter included.
pub const HANDOVER_DEADLINE: Duration = Duration::from_secs(5);

/// A partition goes home when its home node is at most this many entries behind.
pub const HOME_LAG_ENTRIES: u64 = 100;

/// Between two tries to hand a partition over, so that a failing one does not stop delivery all the time.
pub const HANDOVER_RETRY: Duration = Duration::from_secs(3);

/// A drain waits this long for SMTP transactions: the longest wait of RFC 5321 §4.5.3.2 would be 10 minutes, but a
/// client that gets no answer tries again and nothing is lost.
pub const DRAIN_TRANSACTIONS: Duration = Duration::from_secs(60);

/// A drain waits this long for delivery attempts in flight; those that go on are counted as possible duplicates.
pub const DRAIN_ATTEMPTS: Duration = Duration::from_secs(30);

/// While stopping, leadership is given away within this time or not at all.
pub const SHUTDOWN_HANDOVER: Duration = Duration::from_secs(3);

/// While stopping, answers that are under way get this long.
pub const SHUTDOWN_ANSWERS: Duration = Duration::from_secs(1);

/// The control group's log is cut when it has this many entries behind its checkpoint.
pub const CONTROL_CHECKPOINT_ENTRIES: u64 = 512;

/// Domains whose aliases are fetched: each is some kilobytes of the control group's state, which nodes send each other.
pub const HTTPS_DOMAINS_MAX: usize = 1000;

/// Longest URL; servers take 8,000 bytes at most.
pub const URL_BYTES_MAX: usize = 2048;

/// Longest password of a web server.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// Certificates of the authorities of one domain: three or four of them.
pub const CA_PEM_BYTES_MAX: usize = 16 << 10;

/// What a problem's text, or the remarks about a file, may take of the state; a letter needs no more.
pub const PROBLEM_BYTES_MAX: usize = 8 << 10;

// === versions of policy and tables ===

/// Versions that can be rolled back to: some weeks of daily pushes; each costs the files that only it has.
pub const VERSIONS_KEPT: usize = 20;

/// Activations that `versions` tells of; also how late a lost answer may be asked for again.
pub const ACTIVATIONS_KEPT: usize = 100;

/// Users' tables that are changed alone at one time: 150 bytes each in the control group's state, which travels whole.
pub const CHANGED_PATHS_MAX: usize = 10_000;

/// Users' tables of one change: all that one domain and some lists have.
pub const CHANGE_PATHS_MAX: usize = 100;

/// Paths of a change that its record names.
pub const ACTIVATION_PATHS: usize = 3;

/// Bytes of a command's id: nobody guesses or repeats it.
pub const COMMAND_ID_BYTES: usize = 16;

/// A reason, in the control group's state.
pub const REASON_BYTES_MAX: usize = 500;

/// The largest file of a version: a million entries of 64 bytes are 64 MB; beyond this it is the wrong file.
pub const BLOB_BYTES_MAX: u64 = 512 << 20;

/// All files of one version: what a node can keep in memory twice.
pub const VERSION_BYTES_MAX: u64 = 2 << 30;

/// Files of one version: a hundred thousand are four for each of 25,000 domains and lists. Their manifest has 10 MB.
pub const VERSION_FILES_MAX: usize = 100_000;

/// A path of a file: `domains/DOMAIN/managers` with the longest domain.
pub const PATH_BYTES_MAX: usize = 300;

/// A piece of a content on the wire: few enough wake-ups, and bounded memory on both sides.
pub const BLOB_CHUNK_BYTES: usize = 256 << 10;

/// Operators' uploads to one node at once: each is a person at a push.
pub const UPLOADS_MAX: usize = 4;

/// Nodes that fetch contents from one node at once: all the others of a usual cluster.
pub const FETCHES_MAX: usize = 8;

/// The next piece of a content has to come within this time.
pub const CHUNK_PATIENCE: Duration = Duration::from_secs(30);

/// Time until a majority is prepared: a gigabyte over a slow network, and its compilation on a busy machine.
pub const PREPARE_DEADLINE: Duration = Duration::from_secs(300);

/// When a majority is prepared, the others get this much longer: they would only lag behind otherwise.
pub const STRAGGLER_PATIENCE: Duration = Duration::from_secs(20);

/// After the commit, whoever pushed waits this long for the nodes to say that they run it.
pub const RUNNING_PATIENCE: Duration = Duration::from_secs(10);

/// How often nodes are asked for that.
pub const RUNNING_POLL: Duration = Duration::from_millis(50);

/// Within this time a node hears itself of what the control group's leader has applied: of a newer generation, because of which it was
/// refused, or of a change that it was asked for: several of the seconds after which a node hears of it in any case
/// (`RECONCILE_INTERVAL`), for a machine that has too much to do.
pub const HEARSAY_PATIENCE: Duration = Duration::from_secs(5);

/// How often it asks meanwhile. The node that it asks may not have heard of it either.
pub const HEARSAY_RETRY: Duration = Duration::from_millis(100);

/// How often a change of a users' table is made anew because something else became active meanwhile.
pub const CHANGE_TRIES: usize = 10;

/// Configurations that a node keeps ready to switch to: of two pushes at a time one may win.
pub const READY_KEPT: usize = 2;

/// ... and for how long: whoever prepared it has given up by then.
pub const READY_TIME: Duration = Duration::from_secs(600);

/// Lists of a version's files that are kept in memory: those of the active version and of a push; 10 MB each at most.
pub const MANIFESTS_KEPT: usize = 3;

/// Contents that nothing refers to are kept for so long: an interrupted push goes on where it was.
pub const BLOB_IDLE: Duration = Duration::from_secs(3600);

/// How often unused contents are looked for.
pub const BLOB_COLLECT_INTERVAL: Duration = Duration::from_secs(600);

/// Between two tries to get what is active.
pub const FOLLOW_RETRY: Duration = Duration::from_secs(2);

/// Between two looks for contents of older versions that this node lacks.
pub const KEEP_INTERVAL: Duration = Duration::from_secs(60);

/// A table that shrinks by more than this part of its entries is most likely cut off (design §5).
pub const SHRINK_PERCENT_MAX: u64 = 25;

/// Entries that `tables diff` shows of one file, and files that it lists.
pub const DIFF_ENTRIES_MAX: usize = 1_000;

/// See [`DIFF_ENTRIES_MAX`].
pub const DIFF_FILES_MAX: usize = 1_000;

/// Lines of a refusal: who has more reads no further anyway.
pub const REFUSAL_LINES_MAX: usize = 200;

// === events ===

/// Events that a node keeps for whoever comes later: some days of a quiet cluster, the whole of a bad night.
pub const EVENTS_KEPT: usize = 1_000;

/// Events that wait for one who watches; if there are more, the oldest are lost.
pub const EVENTS_WAITING: usize = 256;

/// Who watches the events of one node at once: people, and programs that page them; the other nodes' among them.
pub const EVENT_WATCHES_MAX: usize = 64;

/// The longest time that may be watched: whoever wants more begins again.
pub const EVENTS_TIME_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

/// A text of an event: a reason why a node is not ready.
pub const EVENT_TEXT_BYTES_MAX: usize = 1_000;

/// How often a node looks what has changed on it, if nothing says so before.
pub const EVENTS_LOOK: Duration = Duration::from_millis(250);

/// Rounds of the control leader's questions that a node must leave unanswered before that is told: one may be lost.
pub const UNREACHABLE_MISSES: u32 = 2;

/// Between two tries to watch a node that does not answer.
pub const WATCH_RETRY: Duration = Duration::from_secs(2);

const _: () = assert!(BLOB_CHUNK_BYTES < MESSAGE_BYTES_MAX);
const _: () = assert!(PREPARE_DEADLINE.as_secs() < READY_TIME.as_secs());
const _: () = assert!(READY_TIME.as_secs() < BLOB_IDLE.as_secs());
const _: () = assert!(VERSION_FILES_MAX * (PATH_BYTES_MAX + 50) < MESSAGE_BYTES_MAX);
const _: () = assert!(QUEUE_PAGE_BYTES < MESSAGE_BYTES_MAX);
const _: () = assert!(PARTITION_VOTERS <= CONTROL_VOTERS_MAX);
