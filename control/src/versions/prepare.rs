//! Making a configuration of a content on this node: get what is lacking, compile, keep.

use std::{collections::BTreeMap, sync::Arc};

use ppsw_proto::control as pb;
use ppsw_spool::NodeId;
use tokio::task::spawn_blocking;

use super::{BlobHash, Content, Files, manifest::Manifest, transfer};
use crate::{CompileError, Compiled, limits, plane::Shared};

/// Why there is no configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unprepared {
    /// The content is wrong, everywhere.
    Refused(Vec<String>),
    /// This node cannot, at the moment.
    Unable(String),
}

/// A configuration, and how much came over the network for it.
pub(crate) struct Prepared {
    pub(crate) compiled: Arc<dyn Compiled>,
    pub(crate) fetched: u64,
}

/// Makes a configuration of a content, and keeps it ready; contents that this node lacks come from `first`, or from
/// whichever member has them. All of it is durable then.
pub(crate) async fn prepare(
    shared: &Arc<Shared>,
    content: &Content,
    first: Option<NodeId>,
) -> Result<Prepared, Unprepared> {
    let shelf = &shared.shelf;
    let _one_at_a_time = shelf.making.lock().await;
    let now = shared.clock.instant();
    shelf.tidy(now);
    if let Some(compiled) = shelf.ready(content) {
        return Ok(Prepared { compiled, fetched: 0 });
    }
    let mut fetched = 0;
    // A second time, if a file turns out to be damaged here: it is removed, and fetched again.
    for last in [false, true] {
        let (manifest, bytes) = manifest(shared, content.manifest, first).await?;
        fetched += bytes;
        let files = manifest.with(&content.changes);
        let hashes = files.values().copied().collect();
        fetched += transfer::fetch(shared, hashes, first).await.map_err(Unprepared::Unable)?;
        match shared.hooks.compile(files_of(shared, files)).await {
            Ok(compiled) => {
                shelf.put(content.clone(), Arc::clone(&compiled), shared.clock.instant());
                return Ok(Prepared { compiled, fetched });
            }
            Err(CompileError::Wrong(mut lines)) => {
                lines.truncate(limits::REFUSAL_LINES_MAX);
                return Err(Unprepared::Refused(lines));
            }
            Err(CompileError::Unread(why)) if last => return Err(Unprepared::Unable(why)),
            Err(CompileError::Unread(_)) => {}
        }
    }
    Err(Unprepared::Unable("files of the version are damaged again and again".to_owned()))
}

/// The list of a version's files, and how many bytes came over the network for it.
pub(crate) async fn manifest(
    shared: &Arc<Shared>,
    hash: BlobHash,
    first: Option<NodeId>,
) -> Result<(Arc<Manifest>, u64), Unprepared> {
    if let Some(known) = shared.shelf.manifest(&hash) {
        return Ok((known, 0));
    }
    let mut fetched = 0;
    for _ in 0..2 {
        fetched += transfer::fetch(shared, vec![hash], first).await.map_err(Unprepared::Unable)?;
        if let Ok(encoded) = read(shared, hash).await {
            let manifest = Manifest::decode(&encoded).map_err(Unprepared::Unable)?;
            return Ok((shared.shelf.keep_manifest(hash, manifest), fetched));
        }
    }
    Err(Unprepared::Unable("the list of the version's files cannot be read".to_owned()))
}

/// A content, read and checked off the reactor.
pub(crate) async fn read(shared: &Shared, hash: BlobHash) -> Result<Vec<u8>, String> {
    let blobs = shared.shelf.blobs.clone();
    let read = spawn_blocking(move || blobs.read(&hash)).await;
    read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

fn files_of(shared: &Shared, files: BTreeMap<String, BlobHash>) -> Files {
    Files { paths: files.into_iter().collect(), blobs: shared.shelf.blobs.clone() }
}

/// Another node's question.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    request: pb::PrepareRequest,
) -> pb::prepare_reply::Result {
    use pb::prepare_reply::Result as Wire;
    let begun = shared.clock.instant();
    let Some(content) = content(&request) else {
        return Wire::Unable("the question names no content that this program knows".to_owned());
    };
    match prepare(shared, &content, Some(request.from)).await {
        Ok(Prepared { compiled, fetched }) => {
            let took = shared.clock.instant().saturating_duration_since(begun);
            metrics::histogram!("ppsw_tables_prepare_seconds").record(took.as_secs_f64());
            Wire::Prepared(pb::Prepared {
                entries: compiled.entries(),
                fetched_bytes: fetched,
                took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            })
        }
        Err(Unprepared::Refused(lines)) => Wire::Refused(lines.join("\n")),
        Err(Unprepared::Unable(why)) => Wire::Unable(why),
    }
}

fn content(request: &pb::PrepareRequest) -> Option<Content> {
    let changes = request
        .changes
        .iter()
        .map(|file| Some((file.path.clone(), BlobHash::from_bytes(&file.sha256)?)))
        .collect::<Option<_>>()?;
    Some(Content { manifest: BlobHash::from_bytes(&request.manifest)?, changes })
}
