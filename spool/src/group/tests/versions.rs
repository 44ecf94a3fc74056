//! What a newer program has written: this one says so and stops, and changes nothing.

use ppsw_proto::raft as wire;
use prost::Message;

use super::{super::types, *};
use crate::log::{self, LogError};

/// Begins each entry of the future with this word.
const FUTURE: &[u8] = b"v2 ";

/// A machine that is too old for some entries.
#[derive(Default)]
struct Old {
    tape: Tape,
    outdated: AtomicBool,
}

impl Machine for Old {
    fn apply(&self, at: Position, payload: &Bytes) -> Reply {
        if payload.starts_with(FUTURE) {
            self.outdated.store(true, Ordering::SeqCst);
            return Reply::Refused("format 2".into());
        }
        self.tape.apply(at, payload)
    }
    fn checkpoint(&self, applied: Position) -> Checkpoint {
        self.tape.checkpoint(applied)
    }
    fn restore(&self, checkpoint: &Checkpoint) {
        self.tape.restore(checkpoint);
    }
    fn outdated(&self) -> Option<String> {
        self.outdated.load(Ordering::SeqCst).then(|| "format 2: use a newer ppswd".into())
    }
    fn leadership(&self, change: Leadership) {
        self.tape.leadership(change);
    }
}

fn groups(log: Log, net: &Arc<Net>) -> Groups {
    let dial = Arc::new(Wires { net: net.clone(), from: 1, channels: Mutex::default() });
    Groups::new(1, log, Arc::new(SystemClock), dial, Timing::default())
}

/// A log in which one voter has applied two entries; behind them, this one is appended as it stands.
async fn log_with(dir: &Path, net: &Arc<Net>, payload: &'static [u8]) -> u64 {
    let log = open_log(dir);
    let groups = groups(log.clone(), net);
    let group = groups.open(GROUP, Arc::new(Tape::default())).await.unwrap();
    group.initialise(&[1]).await.unwrap();
    until("it leads", || group.has_lease()).await;
    for text in ["one", "two"] {
        say(&group, text).await.unwrap();
    }
    groups.shutdown().await;
    let last = log.state(GROUP).last.unwrap();
    let position = Position { term: last.term, index: last.index + 1 };
    let entry = log::Entry { position, payload: Bytes::from_static(payload) };
    let (tell, told) = std::sync::mpsc::channel();
    log.append(GROUP, vec![entry], Box::new(move |done| tell.send(done).unwrap()));
    told.recv().unwrap().unwrap();
    position.index
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_a_newer_program_stops_an_older_one_and_is_kept_for_the_newer() {
    let net = Net::new().await;
    for payload in [b"\x11v2 entry".as_slice(), b"\x21a framing of the future".as_slice()] {
        let dir = tempfile::tempdir().unwrap();
        let index = log_with(dir.path(), &net, payload).await;
        // Again at each start, until it is a newer one.
        for _ in 0..2 {
            let groups = groups(open_log(dir.path()), &net);
            let old = Arc::new(Old::default());
            let why = match groups.open(GROUP, old.clone()).await {
                Ok(group) => {
                    let failed = tokio::time::timeout(20 * SECOND, groups.failed()).await;
                    assert!(!group.has_lease());
                    failed.unwrap()
                }
                Err(error) => error.to_string(),
            };
            assert!(why.contains("newer"), "{why}");
            assert!(!groups.is_damaged());
            assert!(old.tape.entries().len() <= 2, "{:?}", old.tape.entries());
            groups.shutdown().await;
        }
        assert_eq!(
            open_log(dir.path()).read(GROUP, index..index + 1, 1).unwrap()[0].payload,
            payload
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_a_newer_program_is_refused_with_its_version() {
    let net = Net::new().await;
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    let stored = wire::StoredCheckpoint { version: 2, ..Default::default() };
    let bytes: Bytes = stored.encode_to_vec().into();
    let (tell, told) = std::sync::mpsc::channel();
    log.save_checkpoint(GROUP, bytes.clone(), Box::new(move |done| tell.send(done).unwrap()));
    told.recv().unwrap().unwrap();

    let refused = groups(log.clone(), &net).open(GROUP, Arc::new(Tape::default())).await;
    let Err(error @ LogError::Version { found: 2, supported: 1, .. }) = refused else {
        panic!("{refused:?}")
    };
    let text = error.to_string();
    assert!(text.contains("checkpoint of group 7") && text.contains("newer ppswd"), "{text}");
    assert_eq!(log.state(GROUP).checkpoint, Some(bytes));
    // And as a leader would send it.
    let sent = types::checkpoint_from_wire(stored).unwrap_err().to_string();
    assert!(sent.contains("version 2") && sent.contains("newer"), "{sent}");
}
