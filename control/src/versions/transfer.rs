//! Contents between nodes, and from operators to a node.

use std::{collections::BTreeSet, sync::Arc};

use futures::{Stream, StreamExt, stream, stream::BoxStream};
use ppsw_proto::control as pb;
use ppsw_spool::NodeId;
use tokio::{sync::OwnedSemaphorePermit, task::spawn_blocking, time::timeout};
use tonic::Status;

use super::{
    BlobHash, Blobs,
    blobs::{Arrival, Pieces},
};
use crate::{limits, plane::Shared};

/// What came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Received {
    pub(crate) blobs: u32,
    pub(crate) bytes: u64,
}

/// Takes contents off a stream, until it ends. All that was taken is durable then; what came before an error is kept,
/// and need not be sent again.
pub(crate) async fn receive(
    blobs: &Blobs,
    mut chunks: impl Stream<Item = Result<pb::BlobChunk, Status>> + Unpin,
) -> Result<Received, String> {
    let mut received = Received::default();
    let mut arrival: Option<Arrival> = None;
    loop {
        let chunk = match timeout(limits::CHUNK_PATIENCE, chunks.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(status))) => return Err(status.message().to_owned()),
            Ok(None) => break,
            Err(_) => return Err(format!("nothing came for {:?}", limits::CHUNK_PATIENCE)),
        };
        received.bytes += chunk.data.len() as u64;
        if received.bytes > limits::VERSION_BYTES_MAX {
            return Err(format!("more than {} bytes", limits::VERSION_BYTES_MAX));
        }
        let (blobs, before) = (blobs.clone(), arrival.take());
        let stored = spawn_blocking(move || take(&blobs, before, &chunk));
        let stored = stored.await.map_err(|error| format!("storing a content ended: {error}"))?;
        arrival = stored.map_err(|error| error.to_string())?;
        received.blobs += u32::from(arrival.is_none());
        if received.blobs as usize > limits::VERSION_FILES_MAX {
            return Err(format!("more than {} files", limits::VERSION_FILES_MAX));
        }
    }
    if arrival.is_some() {
        return Err("the last content was cut off".to_owned());
    }
    let blobs = blobs.clone();
    let synced = spawn_blocking(move || blobs.sync()).await;
    synced.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    Ok(received)
}

/// Stores one piece; what is still on its way then.
fn take(
    blobs: &Blobs,
    before: Option<Arrival>,
    chunk: &pb::BlobChunk,
) -> std::io::Result<Option<Arrival>> {
    let mut arrival = match (before, BlobHash::from_bytes(&chunk.sha256)) {
        (Some(arrival), None) if chunk.sha256.is_empty() => arrival,
        (None, Some(hash)) => blobs.begin(hash, chunk.bytes)?,
        (Some(_), _) => return Err(std::io::Error::other("a content was cut off by the next one")),
        (None, None) => return Err(std::io::Error::other("expected the name of a content")),
    };
    arrival.write(&chunk.data)?;
    if !arrival.is_complete() {
        return Ok(Some(arrival));
    }
    arrival.finish()?;
    Ok(None)
}

/// Sends contents, off the reactor; the permit is held for as long.
pub(crate) fn send(
    pieces: Pieces,
    permit: OwnedSemaphorePermit,
) -> BoxStream<'static, Result<pb::BlobChunk, Status>> {
    stream::unfold(Some((pieces, permit)), |state| async move {
        let (mut pieces, permit) = state?;
        let step = spawn_blocking(move || {
            let chunk = pieces.next();
            (pieces, chunk)
        });
        match step.await {
            Ok((pieces, Some(chunk))) => Some((Ok(chunk), Some((pieces, permit)))),
            Ok((_, None)) => None,
            Err(error) => Some((Err(Status::internal(error.to_string())), None)),
        }
    })
    .boxed()
}

/// Gets contents that this node lacks: from `first`, then from the other members, until none is lacking. Gives the
/// number of bytes that came.
///
/// # Errors
/// How many are lacking still, and what the nodes said.
pub(crate) async fn fetch(
    shared: &Arc<Shared>,
    hashes: Vec<BlobHash>,
    first: Option<NodeId>,
) -> Result<u64, String> {
    let mut lacking = still_lacking(shared, hashes).await?;
    let mut nodes: Vec<NodeId> = first.into_iter().collect();
    nodes.extend(shared.dialer.known().into_iter().filter(|node| Some(*node) != first));
    nodes.retain(|node| *node != shared.node);
    let (mut bytes, mut said) = (0, Vec::new());
    for node in nodes {
        if lacking.is_empty() {
            break;
        }
        match fetch_from(shared, node, &lacking).await {
            Ok(received) => bytes += received.bytes,
            Err(why) => said.push(format!("node {node}: {why}")),
        }
        lacking = still_lacking(shared, lacking).await?;
    }
    if lacking.is_empty() {
        return Ok(bytes);
    }
    said.insert(
        0,
        format!("{} files of the version are not to be had from any node", lacking.len()),
    );
    Err(said.join("; "))
}

async fn still_lacking(
    shared: &Shared,
    hashes: impl IntoIterator<Item = BlobHash> + Send + 'static,
) -> Result<BTreeSet<BlobHash>, String> {
    let (blobs, now) = (shared.shelf.blobs.clone(), shared.now());
    let asked = spawn_blocking(move || blobs.lacking(hashes, now)).await;
    asked.map_err(|error| error.to_string())
}

async fn fetch_from(
    shared: &Shared,
    node: NodeId,
    lacking: &BTreeSet<BlobHash>,
) -> Result<Received, String> {
    // A connection of its own: heartbeats and entries do not wait behind it.
    let mut client =
        shared.dialer.transfer(node).ok_or_else(|| "its address is not known".to_owned())?;
    let sha256 = lacking.iter().map(|hash| hash.to_bytes()).collect();
    let opened = timeout(limits::CHUNK_PATIENCE, client.fetch(pb::FetchRequest { sha256 })).await;
    let chunks = opened
        .map_err(|_| format!("no answer within {:?}", limits::CHUNK_PATIENCE))?
        .map_err(|status| status.message().to_owned())?;
    receive(&shared.shelf.blobs, chunks.into_inner()).await
}
