//! openraft's storage suite on our log, and what it does not ask.

use futures::{StreamExt, TryStreamExt};
use openraft::{
    RaftLogReader, StorageError,
    storage::{RaftLogStorage, RaftLogStorageExt},
    testing::log::StoreBuilder,
};

use super::{
    super::{
        machine::Adapter,
        store::Store,
        types::{self, Entry, Proposal, TypeConfig},
    },
    *,
};
use crate::env::sim::{Lies, SimDisk};

struct Builder;

impl StoreBuilder<TypeConfig, Store, Adapter, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, Store, Adapter), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(open_log(dir.path()), 1);
        let adapter = Adapter::new(Arc::new(Tape::default()), store.clone()).unwrap();
        Ok((dir, store, adapter))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openraft_suite() {
    openraft::testing::log::Suite::test_all(Builder).await.unwrap();
}

fn entry(index: u64, bytes: usize) -> Entry {
    let log_id = types::log_id(Position { term: 1, index });
    let payload = openraft::EntryPayload::Normal(Proposal::new(&vec![index as u8; bytes]));
    Entry { log_id, payload }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_is_read_in_pieces_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::new(open_log(dir.path()), 1);
    let bytes = limits::CHUNK_BYTES_MAX;
    store.blocking_append((0..40).map(|index| entry(index, bytes))).await.unwrap();
    store.purge(types::log_id(Position { term: 1, index: 2 })).await.unwrap();

    let capped = store.limited_get_log_entries(3, 40).await.unwrap();
    assert!(capped.len() * bytes <= limits::APPEND_BYTES_MAX + bytes, "{}", capped.len());

    let all: Vec<Entry> = store.entries_stream(..).await.try_collect().await.unwrap();
    assert_eq!(all, (3..40).map(|index| entry(index, bytes)).collect::<Vec<_>>());
    let some: Vec<Entry> = store.entries_stream(5..=30).await.try_collect().await.unwrap();
    assert_eq!(some, (5..=30).map(|index| entry(index, bytes)).collect::<Vec<_>>());
    let none: Vec<_> = store.entries_stream(40..50).await.collect().await;
    assert!(none.is_empty());
}

#[tokio::test]
async fn what_a_failed_log_did_not_take_is_an_error_not_a_gap() {
    let disk = SimDisk::new(1, Lies::default());
    let options = Options { dir: "/log".into(), segment_bytes: 4096, cache_bytes: 0 };
    let (log, driver) = Log::open_driven(Arc::new(disk.clone()), options).unwrap();
    tokio::spawn(driver.run(|| Duration::ZERO));
    let mut store = Store::new(log, 1);
    store.blocking_append((0..3).map(|index| entry(index, 10))).await.unwrap();
    disk.stop();
    store.blocking_append([entry(3, 10)]).await.unwrap_err();
    // openraft may apply these, as others have committed them.
    store.blocking_append([entry(4, 10)]).await.unwrap_err();
    let applied: Result<Vec<Entry>, _> = store.entries_stream(4..5).await.try_collect().await;
    applied.unwrap_err();
}
