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
