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

/// How often a browser gets the status page again; each looks at a view that is collected for all of them.
pub const PAGE_REFRESH: Duration = Duration::from_secs(10);

/// Nodes, and groups, on the status page: clusters are smaller, and a phone shows no more.
pub const PAGE_NODES_MAX: usize = 50;

/// Destinations on the status page: the largest; `ppswctl queue summary` has them all.
pub const PAGE_DESTINATIONS_MAX: usize = 20;

/// Sheds and suspensions on the status page; there can be a hundred.
pub const PAGE_RULES_MAX: usize = 20;

/// Reasons that are shown of one node, and partitions that it leads.
pub const PAGE_REASONS_MAX: usize = 8;

/// Lines of what is wrong, at the top of the status page.
pub const PAGE_TROUBLES_MAX: usize = 10;

/// Characters of a name, or reason, on the status page: a domain has 253 at most, and this much is enough to know it.
pub const PAGE_NAME_CHARS: usize = 160;

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

/// A start waits so long to hear which version of policy and tables the cluster runs, before it runs the node's own
/// directory: some elections.
pub const VERSION_PATIENCE: Duration = Duration::from_secs(10);

/// How much less of a busy processor than mail the compilation of a version gets (nice(2)).
pub const COMPILE_NICENESS: i32 = 10;

/// Largest `policy.kdl`: the paper's whole configuration has 40 KiB.
pub const POLICY_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Characters of a rule or condition that an explanation shows.
pub const PLACE_CHARS_MAX: usize = 300;

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

/// Addresses of one message that are routed at the same time (each may wait for DNS): a list of 50,000 in as many domains, each of which
/// takes 100 ms, is routed in less than three minutes, and a resolver has no more to do than of 32 messages.
pub const ROUTE_CONCURRENT: usize = 32;

/// Look-ups of one router that an explanation shows.
pub const ROUTE_NOTES_MAX: usize = 64;

/// Addresses of one redirection that an explanation shows in a line.
pub const ROUTE_SHOWN_MAX: usize = 8;

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

/// Longest domain in an address (RFC 5321 §4.5.3.1.2).
pub const DOMAIN_BYTES_MAX: usize = 255;

/// Longest name that is asked for (RFC 1035 §2.3.4).
pub const DNS_NAME_BYTES_MAX: usize = 255;

// === smtp: sessions ===

/// Time for the next bytes of a message after `354` (RFC 5321 §4.5.3.2.5), and of a BDAT chunk.
pub const DATA_BLOCK_TIMEOUT: Duration = Duration::from_secs(180);

/// Time for one whole message: 100 MiB over a slow line (15 KiB/s) fits; a byte a minute does not go on for ever.
pub const DATA_TIME_MAX: Duration = Duration::from_secs(2 * 3600);

/// Life of a session: long enough for every message of a queue, short enough that nobody keeps a slot for days.
pub const SESSION_TIME_MAX: Duration = Duration::from_secs(4 * 3600);

/// Time for a client to take a reply off our hands (RFC 5321 §4.5.3.2 gives no server value; same as a command).
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(300);

/// Time for a client to see our last reply and close, and what it may still send meanwhile.
pub const CLOSE_LINGER: Duration = Duration::from_secs(2);

/// See [`CLOSE_LINGER`].
pub const CLOSE_LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Time for a TLS handshake: some round trips, and a slow phone.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time that rules may take for one command, callouts included (4 minutes in the paper): a client waits 5 minutes.
pub const RULES_DEADLINE: Duration = Duration::from_secs(285);

/// Keys (clients, senders, users) that one rate counts: some 10 MB. Beyond, those that are not known yet pass.
pub const RATE_KEYS_MAX: usize = 100_000;

/// So many keys pass uncounted between two looks for keys that can be forgotten: looking takes milliseconds.
pub const RATE_KEYS_LOOK: u32 = 10_000;

/// Different rates that are counted at once; more come only of many changes of a policy.
pub const RATES_MAX: usize = 256;

/// Time for each command of a callout, if the rule says nothing (Exim's default).
pub const CALLOUT_TIME: Duration = Duration::from_secs(30);

/// Callouts that a node makes at once: each holds a session of a client.
pub const CALLOUTS_MAX: usize = 200;

/// Callouts to one host at once: half of what a stranger may open here (the paper's `smtp_accept_max_per_host`).
pub const CALLOUTS_PER_HOST_MAX: usize = 5;

/// Call-backs to one host within [`CALLBACK_WINDOW`]: whoever forges senders must not make us a burden for others.
pub const CALLBACKS_PER_HOST_MAX: u32 = 100;

/// See [`CALLBACKS_PER_HOST_MAX`].
pub const CALLBACK_WINDOW: Duration = Duration::from_secs(60);

/// Hosts whose callouts are counted: some megabytes.
pub const CALLOUT_HOSTS_MAX: usize = 10_000;

/// Answers to callouts that are kept, the most used ones: some 30 MB, with the longest addresses 100 MB.
pub const CALLOUT_CACHE_MAX: u64 = 100_000;

/// Text of a refusal that is kept with it.
pub const CALLOUT_TEXT_BYTES_MAX: usize = 256;

/// Largest file of kept answers; twice what is ever written.
pub const CALLOUT_CACHE_BYTES_MAX: u64 = 128 << 20;

/// How often answers are written down: what a crash loses is asked again.
pub const CALLOUT_SAVE_PERIOD: Duration = Duration::from_secs(300);

/// How long an address that was taken is not asked about again (this one and the next three: Exim's defaults).
pub const CALLOUT_ADDRESS_YES_TIME: Duration = Duration::from_secs(24 * 3_600);

/// How long a refused address stays refused.
pub const CALLOUT_ADDRESS_NO_TIME: Duration = Duration::from_secs(2 * 3_600);

/// How long a domain that takes every local part is not asked again.
pub const CALLOUT_DOMAIN_YES_TIME: Duration = Duration::from_secs(7 * 24 * 3_600);

/// How long a domain that refused a reverse-path is not asked again with it.
pub const CALLOUT_DOMAIN_NO_TIME: Duration = Duration::from_secs(3 * 3_600);

/// Longest delay that rules may ask for; more, and the client gives up instead (RFC 5321 §4.5.3.2).
pub const RULES_DELAY_MAX: Duration = Duration::from_secs(180);

/// Time for the reverse name of a client and its verification: then it has none.
pub const CLIENT_NAME_DEADLINE: Duration = Duration::from_secs(10);

/// PTR names of a client that are verified: more are a misconfiguration or an attack on our resolver.
pub const CLIENT_NAMES_MAX: usize = 5;

/// Time that the spool may take to say where a message will go, while a partition has no leader yet (failover: 2 s).
pub const BEGIN_PATIENCE: Duration = Duration::from_secs(10);

/// Protocol errors (5xx for syntax or sequence) after which a session ends: honest clients make none.
pub const SESSION_ERRORS_MAX: u32 = 20;

/// Refused recipients after which a session ends: a list with some dead members passes, a dictionary doesn't.
pub const SESSION_REFUSED_RECIPIENTS_MAX: u32 = 200;

/// Commands in a row that neither begin nor advance a message (NOOP, RSET, HELO, VRFY …).
pub const SESSION_IDLE_COMMANDS_MAX: u32 = 100;

/// Messages of one session: nobody has a slot for ever; far above what a busy relay sends on one connection.
pub const SESSION_MESSAGES_MAX: u32 = 100_000;

/// Failed AUTH commands after which a session ends.
pub const AUTH_FAILURES_MAX: u32 = 3;

/// Failed AUTH commands of one host within [`AUTH_FAILURES_TIME`] after which it is not heard: a house behind one
/// address with some forgotten programs in it stays below, a guesser gets fifteen thousand tries a day at most.
pub const AUTH_FAILURES_PER_HOST_MAX: u32 = 100;

/// See [`AUTH_FAILURES_PER_HOST_MAX`].
pub const AUTH_FAILURES_TIME: Duration = Duration::from_secs(600);

/// Hosts whose failures are counted: a few megabytes.
pub const AUTH_HOSTS_MAX: usize = 50_000;

/// Wait before `535`: makes guessing slow.
pub const AUTH_FAILURE_DELAY: Duration = Duration::from_secs(2);

/// Passwords hashed at the same time in a node: a few ms of CPU each, two cores stay for mail.
pub const AUTH_CONCURRENT_MAX: usize = 4;

/// Longest user name; it goes into logs and headers.
pub const USER_BYTES_MAX: usize = 64;

/// First size of a session's read buffer: 10,000 idle sessions cost 20 MB.
pub const SESSION_READ_BYTES_MIN: usize = 2 * 1024;

/// What is read at first while content arrives: most messages are not longer, and a buffer of this size is cheap to get
/// and to give back.
pub const SESSION_READ_BYTES_FIRST: usize = 8 * 1024;

/// Room that is made for a read from a client while content arrives, when reads have filled smaller buffers. A buffer that grows has
/// up to twice as much, and a read fills it.
pub const SESSION_READ_BYTES_MAX: usize = 64 * 1024;

/// Replies held back for pipelining before they are sent anyway.
pub const SESSION_REPLY_BYTES_MAX: usize = 16 * 1024;

/// Longest reply line with CRLF (RFC 5321 §4.5.3.1.5).
pub const REPLY_LINE_BYTES_MAX: usize = 512;

/// Longest header block that is taken; it is buffered for fix-ups. Same as Exim's `header_maxsize`.
pub const HEADER_BYTES_MAX: usize = 1024 * 1024;

/// Of what was read at once, so much at a time is searched for the end of the header: most headers need three or fewer.
pub const HEADER_PIECE_BYTES: usize = 1024;

/// Addresses of a header that are rewritten: far more than anybody writes to at once. The fields beyond stay as they are.
pub const HEADER_ADDRESSES_MAX: usize = 10_000;

/// Longest line of a header that we make (RFC 5322 §2.1.1).
pub const HEADER_LINE_BYTES_MAX: usize = 998;

/// Rewriting rules of a policy: each is tried for each address of each message.
pub const REWRITE_RULES_MAX: usize = 64;

/// How often a rewriting rule with the flag `R` is applied to its own result, as in Exim.
pub const REWRITE_REPEATS_MAX: usize = 10;

/// Rewritten addresses of one message that the log tells of.
pub const REWRITE_LOG_LINES_MAX: usize = 50;

/// A message with more `Received` fields than this loops (RFC 5321 §6.3: at least 100; Exim's own default is 30).
pub const RECEIVED_FIELDS_MAX: u32 = 100;

/// Longest local part (RFC 5321 §4.5.3.1.1).
pub const LOCAL_PART_BYTES_MAX: usize = 64;

/// Longest ENVID (RFC 3461 §4.4).
pub const ENVELOPE_ID_BYTES_MAX: usize = 100;

/// Longest ORCPT (RFC 3461 §4.2).
pub const ORIGINAL_RECIPIENT_BYTES_MAX: usize = 500;

/// `Message-ID` value kept for the log.
pub const MESSAGE_ID_FIELD_BYTES_MAX: usize = 256;

/// Made-up sessions (`ppswctl session`) at once: each is a person who wants to know something.
pub const REHEARSALS_MAX: usize = 8;

/// Longest line of a made-up session; a real one ends at 2,048 or less.
pub const REHEARSAL_LINE_BYTES_MAX: usize = 4_096;

/// Largest chunk (BDAT) of a made-up session: somebody types it.
pub const REHEARSAL_CHUNK_BYTES_MAX: u64 = 64 * 1024;

/// Names that are kept of a client's certificate: those of machines have a few.
pub const CERTIFICATE_NAMES_MAX: usize = 32;

/// Subject that is kept of a client's certificate; it goes into logs.
pub const CERTIFICATE_SUBJECT_BYTES_MAX: usize = 512;

// === smtp: listeners ===

/// Connections that the kernel holds for us before `accept`.
pub const LISTEN_BACKLOG: i32 = 1_024;

/// Wait after `accept` fails for want of file descriptors or memory, so that the failure is no hot loop.
pub const ACCEPT_BACK_OFF: Duration = Duration::from_millis(200);

/// Time for the PROXY header of a balancer (HAProxy's specification asks for at least 3 s).
pub const PROXY_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest PROXY v2 header that is taken: addresses and some TLVs.
pub const PROXY_HEADER_BYTES_MAX: usize = 1_024;

/// Connections that may wait for their PROXY header at once.
pub const PROXY_HEADERS_PENDING_MAX: usize = 256;

/// Agent checks that are answered at once: balancers ask each node about once a second.
pub const AGENT_CHECKS_MAX: usize = 32;

/// Time for a balancer to take the one line of the agent check.
pub const AGENT_ANSWER_MAX: Duration = Duration::from_secs(2);

/// The least weight that a ready node asks for, in percent: none at all would be a drain.
pub const AGENT_WEIGHT_MIN: u8 = 10;

/// Networks in `proxy_from` of one listener; an address is looked for in all of them.
pub const PROXY_NETWORKS_MAX: usize = 64;
// === deliver ===

/// Messages taken from the queue at once on a node: those that transmit and those that wait for a place in their
/// destination's queue. Bounds memory (a few KiB each) and what a crash may have had in flight.
pub const MESSAGES_TAKEN_MAX: usize = 2_000;

/// Transactions with other servers at once on a node: bounds sockets.
pub const TRANSACTIONS_MAX: usize = 200;

/// Of these, transactions for messages that had been tried before: servers that do not answer hold no more places than these.
pub const RETRY_TRANSACTIONS_MAX: usize = TRANSACTIONS_MAX / 2;

/// Transactions at once with one destination: enough to be fast, few enough to be polite.
pub const TRANSACTIONS_PER_DESTINATION_MAX: usize = 20;

/// Transactions at once with a destination that nothing is known of: each that is answered allows one more.
pub const TRANSACTIONS_PER_DESTINATION_FIRST: usize = 2;

/// Transactions at once with one address of a host, whatever destinations lead there.
pub const TRANSACTIONS_PER_HOST_MAX: usize = 20;

/// Messages that have been tried before and are in flight at once: new mail always finds places, also when all the world is down.
pub const RETRIES_TAKEN_MAX: usize = MESSAGES_TAKEN_MAX / 2;

/// How long the signals of a node that may have too much to do are taken for true: asking the queue is not free.
pub const PRESSURE_AGE_MAX: Duration = Duration::from_secs(1);

/// How long a load average is taken for true: the kernel makes a new one every 5 seconds.
pub const LOAD_AGE_MAX: Duration = Duration::from_secs(1);

/// Messages that wait for a place at one destination. More stay in the queue, so that a slow destination cannot
/// fill [`MESSAGES_TAKEN_MAX`].
pub const WAITING_PER_DESTINATION_MAX: usize = 100;

/// How long a message whose destination is full is left alone, unless the destination has a place before.
pub const DESTINATION_FULL_DELAY: Duration = Duration::from_secs(60);

/// What was delivered waits so long for other destinations of its message before it is recorded without them: most
/// messages get one outcome, and a crash repeats little.
pub const OUTCOME_GATHER: Duration = Duration::from_millis(100);

/// After what was delivered has been recorded before the end, the next time comes this many times as long after as that took: a list of
/// tens of thousands spends a tenth of its time on it, however long its record is.
pub const OUTCOME_PAUSE_FACTOR: u32 = 9;

/// The longest that what was delivered waits to be recorded: a crash repeats no more of a list than goes out in that time.
pub const OUTCOME_GATHER_MAX: Duration = Duration::from_secs(2);

/// When recipients are due again whose destination was full while others of their message were tried.
pub const DESTINATION_FULL_RETRY: Duration = Duration::from_secs(5);

/// When a message that could not be read here is tried again although its retry rules have come to their end.
pub const UNREAD_RETRY: Duration = Duration::from_secs(15 * 60);

/// Messages remembered as left alone, 50 bytes each: beyond, none is taken until some of the delays are over.
pub const POSTPONED_MAX: usize = 1_000_000;

/// Messages asked of a partition at once: the queue's lock is held for that long.
pub const DUE_BATCH: usize = 500;

/// The queue is looked at at least this often, whatever its watch says.
pub const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// Wake-ups closer together than this are one: a scan of the queue is not free, a message a millisecond is nothing.
pub const SCAN_COALESCE: Duration = Duration::from_millis(2);

/// The pause after a scan is at least this many times as long as the scan: a long queue costs a tenth of a core.
pub const SCAN_PAUSE_FACTOR: u32 = 9;

/// How often a waiting attempt asks whether the partition may still deliver.
pub const FENCE_POLL: Duration = Duration::from_millis(200);

/// Recipients per transaction: RFC 5321 §4.5.3.1.8 lets every server take 100.
pub const RECIPIENTS_PER_TRANSACTION_MAX: usize = 100;

/// Addresses tried for one transaction (Exim's `hosts_max_try`).
pub const HOSTS_TRIED_MAX: usize = 5;

/// Time to connect; a live host answers in a few seconds, and there may be others to try.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Retry rules of a policy: one is looked for at each failure.
pub const RETRY_RULES_MAX: usize = 100;

/// Time for the handshake of TLS with another server, which takes a few round trips.
pub const REMOTE_TLS_TIMEOUT: Duration = Duration::from_secs(60);

/// Time for greeting, and for replies to EHLO, MAIL, RCPT (RFC 5321 §4.5.3.2.1-3).
pub const REMOTE_REPLY_TIMEOUT: Duration = Duration::from_secs(300);

/// Time for the reply to DATA (RFC 5321 §4.5.3.2.4).
pub const DATA_REPLY_TIMEOUT: Duration = Duration::from_secs(120);

/// Content that is held until its end can go with it. Each write costs a call, and the other end one more awakening: most
/// messages are shorter and go as one. What is longer does not wait for the mark that an attempt has begun.
pub const CONTENT_HELD_BYTES: usize = 32 * 1024;

/// Time for one write of data (RFC 5321 §4.5.3.2.5).
pub const DATA_WRITE_TIMEOUT: Duration = Duration::from_secs(180);

/// Time for the reply to the final dot (RFC 5321 §4.5.3.2.6: shorter makes duplicates).
pub const FINAL_REPLY_TIMEOUT: Duration = Duration::from_secs(600);

/// Time for the program of a `pipe` transport, unless it says otherwise. As long as a server may take after the final dot.
pub const PIPE_TIMEOUT: Duration = Duration::from_secs(600);

/// The longest that a `pipe` transport may say (Exim's default): a drain waits for what is under way.
pub const PIPE_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// Output of a program that is kept (Exim's default for `max_output`); the rest is read and thrown away.
pub const PIPE_OUTPUT_BYTES_MAX: u64 = 20 * 1024;

/// Output of a program that goes into a bounce: it has [`BOUNCE_RECIPIENTS_BYTES_MAX`] for all of its recipients.
pub const PIPE_RETURN_BYTES_MAX: usize = 8 * 1024;

/// How long the output of a program that has ended is waited for: what it started may keep it open for ever.
pub const PIPE_OUTPUT_PATIENCE: Duration = Duration::from_secs(1);

/// Programs of one `pipe` transport at once: a process each, and memory of its own.
pub const PIPES_MAX: usize = 8;

/// The user database of this machine, in which the `user` of a `pipe` transport is looked up; the largest that is read.
pub const PASSWD_BYTES_MAX: u64 = 16 * 1024 * 1024;

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

/// A host that could not be reached is left alone for at least this long, whatever the retry rule says, so that not each message of
/// a queue run waits for it.
pub const HOST_DOWN_TIME_MIN: Duration = Duration::from_secs(1);

/// A host that a callout could not reach is left alone for this long by callouts: a client waits for each.
pub const CALLOUT_HOST_DOWN_TIME: Duration = Duration::from_secs(10);

/// Addresses of our own in `ppswd.toml` for connections to other servers: each is compared for each connection.
pub const SOURCES_MAX: usize = 100;

/// How often a node looks whether a suspension has ended: as soon as it hears of it, as people see it.
pub const STANDING_POLL: Duration = Duration::from_secs(1);

/// Messages that are made due at once after a suspension, in flight to the log: a hundred thousand of them take seconds, and leave room.
pub const RESUMED_AT_ONCE: usize = 100;

/// What is suspended is looked at again after this time: a node that was away when the suspension ended does not know.
pub const SUSPENDED_RETRY: Duration = Duration::from_secs(15 * 60);

/// Threads of a node: more than any machine has processors is a slip of the pen.
pub const THREADS_MAX: usize = 1024;

/// How long a node that is to be drained goes on taking sessions: balancers that look every second have seen it then.
pub const DRAIN_NOTICE: Duration = Duration::from_secs(3);

/// Longer, and a drain does not fit into the time that a service manager gives it.
pub const DRAIN_NOTICE_MAX: Duration = Duration::from_secs(60);

/// Mechanisms of AUTH that are noted of a server's offer: there are not so many.
pub const AUTH_MECHANISMS_MAX: usize = 30;

/// Bytes of a file with a password.
pub const PASSWORD_FILE_BYTES_MAX: u64 = 4_096;

/// Bytes of a file with certificate authorities: those of all the web are about 250 KiB.
pub const AUTHORITIES_BYTES_MAX: u64 = 4 << 20;

/// A host whose failures have been forgotten for this long begins anew: nobody has had mail for it.
pub const HOST_DOWN_FORGOTTEN: Duration = Duration::from_secs(2 * 86_400);

/// Hosts remembered as down, or with a transaction: beyond, those in no use are forgotten, which costs a connection attempt.
pub const HOSTS_KNOWN_MAX: usize = 10_000;

/// How long an operator's verb waits for an attempt that is under way, and then for a majority: together less than the
/// control plane waits for an answer.
pub const OPERATE_PATIENCE: Duration = Duration::from_secs(4);

/// Recipients of one message that become another address at once: each is an entry, which costs as much as the message has
/// recipients.
pub const REDIRECTED_RECIPIENTS_MAX: usize = 100;

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

/// Events that wait for the log's writer: a slow disk must not stop mail; what does not fit is counted. Those of a list's
/// 50,000 members come at once, and have half a kilobyte each.
pub const LOG_QUEUE_MAX: usize = 65_536;

/// Longest field of a log line (an address has at most 320 bytes, a reply 1 KiB, a list of recipients is cut).
pub const LOG_FIELD_BYTES_MAX: usize = 4_096;

/// Recipients that the log names of those that an operator's verb was about.
pub const LOG_ADDRESSES_MAX: usize = 50;

/// After the first event that it finds, the writer waits so long for others, and writes them together: under load a
/// hundred writes a second instead of one for each event. Lines are that much later; a crash loses that much more.
pub const LOG_GATHER_TIME: Duration = Duration::from_millis(10);

/// How often the writer looks whether its files have been renamed.
pub const LOG_REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// Time that sessions and attempts have to end when the node is told to stop; systemd waits longer.
pub const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Longest `ppswd.toml`: a page or two of text.
pub const NODE_CONFIG_BYTES_MAX: u64 = 256 * 1024;

/// The shortest period of the log's scrub: an hour of reading at its rate is more than a log has between two.
pub const SCRUB_PERIOD_MIN: Duration = Duration::from_secs(3600);

/// The longest: by then a second disk has rotted.
pub const SCRUB_PERIOD_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

// === domains: managed mail domains ===

/// Aliases of one domain: the whole university has fewer people.
pub const DOMAIN_ALIASES_MAX: usize = 200_000;

/// Addresses of one alias, as the line of the table that they become.
pub const DOMAIN_ALIAS_BYTES_MAX: usize = TABLE_LINE_BYTES_MAX;

/// Characters of a line of others that are shown in a report about it.
pub const DOMAIN_TEXT_SHOWN: usize = 80;

/// How often an https domain is fetched (the seed: hourly).
pub const FETCH_PERIOD: Duration = Duration::from_secs(3_600);

/// More often, and we are a burden even for a web server of our own.
pub const FETCH_PERIOD_MIN: Duration = Duration::from_secs(10);

/// More rarely, and managers wait longer than a day for their changes.
pub const FETCH_PERIOD_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Time for a connection to a web server, TLS included.
pub const FETCH_CONNECT_TIME: Duration = Duration::from_secs(20);

/// Time for a whole fetch: half a megabyte over a slow line.
pub const FETCH_TIME: Duration = Duration::from_secs(120);

/// Less, and a healthy server far away fails.
pub const FETCH_TIME_MIN: Duration = Duration::from_secs(1);

/// More, and a hanging server takes a place for a good part of the hour.
pub const FETCH_TIME_MAX: Duration = Duration::from_secs(600);

/// Largest aliases file: some hundred thousand short lines.
pub const FETCH_BYTES: u64 = 8 << 20;

/// A page of text must do.
pub const FETCH_BYTES_MIN: u64 = 4 << 10;

/// It is held in memory, and an operator may set this.
pub const FETCH_BYTES_MAX: u64 = 64 << 20;

/// Head of an answer: status line and fields.
pub const FETCH_HEAD_BYTES_MAX: usize = 64 << 10;

/// Redirections that are followed, all on one server.
pub const FETCH_REDIRECTIONS_MAX: usize = 3;

/// Addresses of a web server that are tried.
pub const FETCH_ADDRESSES_MAX: usize = 4;

/// `ETag` and `Last-Modified` that are kept; longer ones are not used.
pub const FETCH_VALIDATOR_BYTES_MAX: usize = 256;

/// Fetches at once: each holds a connection and up to [`FETCH_BYTES`].
pub const FETCHES_CONCURRENT: usize = 8;

/// How often the control leader looks what is due.
pub const FETCH_LOOK: Duration = Duration::from_secs(1);

/// After this the same problem is told again.
pub const PROBLEM_LETTER_PERIOD: Duration = Duration::from_secs(24 * 3_600);

/// How often managers hear what could be better (the seed: each month).
pub const REPORT_PERIOD: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Who wants to hear more often asks for a check.
pub const REPORT_PERIOD_MIN: Duration = Duration::from_secs(3_600);

/// Longer is never.
pub const REPORT_PERIOD_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);

/// Wait after a letter that the spool did not take.
pub const LETTER_RETRY: Duration = Duration::from_secs(60);

/// Addresses of a domain that are routed at once by a check, each of which may wait for DNS.
pub const CHECK_CONCURRENT: usize = 16;

/// Time for the check of a whole domain; the rest is left out, and that is said.
pub const CHECK_TIME: Duration = Duration::from_secs(240);

/// Warnings of one check: who has more does not read them.
pub const CHECK_WARNINGS_MAX: usize = 500;

/// Characters of one warning: an alias, an address, a reason.
pub const CHECK_WARNING_CHARS_MAX: usize = 1_000;

// ---- Traces of SMTP dialogue ----

/// Traces at once on a node: each compares every line of every session.
pub const TRACES_MAX: usize = 8;

/// A trace ends after this time if nobody says otherwise: long enough to see a message through.
pub const TRACE_TIME: Duration = Duration::from_secs(10 * 60);

/// The longest time that may be asked for: a forgotten trace must end, for it costs, and shows who writes to whom.
pub const TRACE_TIME_MAX: Duration = Duration::from_secs(4 * 3_600);

/// Lines that wait for whoever watches; the next ones are lost. With lines of [`TRACE_LINE_BYTES_MAX`] at most 2 MB a trace.
pub const TRACE_LINES_WAITING: usize = 2_048;

/// Lines of one page: bounded memory on both sides.
pub const TRACE_PAGE_LINES: usize = 256;

/// Lines that a session keeps while somebody watches: a submission has 35 before its first transaction.
pub const TRACE_KEPT_LINES: usize = 128;

/// Longest line that is shown, without the mark that it was cut: an address of the longest kind fits, with its verb.
pub const TRACE_LINE_BYTES_MAX: usize = 512;

/// Longest pattern: the longest address.
pub const TRACE_PATTERN_BYTES_MAX: usize = 320;

const _: () = assert!(TRACE_KEPT_LINES >= 16 && TRACE_LINES_WAITING > TRACE_KEPT_LINES);
const _: () = assert!(TRACE_LINE_BYTES_MAX > TRACE_PATTERN_BYTES_MAX);
const _: () = assert!(TRACE_TIME.as_secs() <= TRACE_TIME_MAX.as_secs());
