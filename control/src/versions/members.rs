//! What the node that coordinates asks of the other members.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use ppsw_proto::control::{self as pb, prepare_reply::Result as Wire};
use ppsw_spool::NodeId;
use tokio::time::{sleep, timeout};

use super::{Content, VersionError};
use crate::{limits, plane::Shared, state::State};

/// Who can switch at once.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) ready: Vec<NodeId>,
    pub(crate) behind: Vec<pb::LeftBehind>,
}

/// What one member said.
enum Said {
    Ready,
    Refused(String),
    Unable(String),
}

/// Has all members prepare a content that this node has prepared already. A majority has to; one that says that the
/// content is wrong ends it; the others get some more time, and are left behind then.
pub(crate) async fn prepare(
    shared: &Arc<Shared>,
    state: &State,
    content: &Content,
) -> Result<Prepared, VersionError> {
    let members: Vec<NodeId> = state.staying().filter(|node| state.has_started(*node)).collect();
    let needed = members.len() / 2 + 1;
    let others: Vec<NodeId> = members.iter().copied().filter(|n| *n != shared.node).collect();
    let mut asked: FuturesUnordered<_> = others
        .iter()
        .map(|node| async move { (*node, ask(shared, *node, content).await) })
        .collect();
    let mut prepared = Prepared { ready: vec![shared.node], behind: Vec::new() };
    let begun = shared.clock.instant();
    let mut patience = limits::PREPARE_DEADLINE;
    loop {
        if prepared.ready.len() >= needed {
            let more = elapsed(shared, begun) + limits::STRAGGLER_PATIENCE;
            patience = patience.min(more);
        }
        let left = patience.saturating_sub(elapsed(shared, begun));
        match timeout(left, asked.next()).await {
            Ok(Some((node, Said::Ready))) => prepared.ready.push(node),
            Ok(Some((node, Said::Refused(why)))) => {
                return Err(VersionError::refused(format!("node {node} refuses it: {why}")));
            }
            Ok(Some((node, Said::Unable(why)))) => {
                tracing::warn!(node, why, "left behind");
                prepared.behind.push(pb::LeftBehind { node, why });
            }
            Ok(None) => break,
            Err(_) => {
                let silent = others.iter().filter(|node| {
                    !prepared.ready.contains(node)
                        && !prepared.behind.iter().any(|left| left.node == **node)
                });
                let why = format!("was not prepared within {patience:?}");
                let silent: Vec<_> =
                    silent.map(|node| pb::LeftBehind { node: *node, why: why.clone() }).collect();
                prepared.behind.extend(silent);
                break;
            }
        }
    }
    if prepared.ready.len() >= needed {
        return Ok(prepared);
    }
    let why: Vec<String> =
        prepared.behind.iter().map(|left| format!("node {} {}", left.node, left.why)).collect();
    Err(VersionError::Unable(format!(
        "{} of {} members are prepared, and {needed} have to be; nothing has changed: {}",
        prepared.ready.len(),
        members.len(),
        why.join("; ")
    )))
}

/// Waits until members run a generation: those that do, and those that do not yet.
pub(crate) async fn running(
    shared: &Arc<Shared>,
    members: Vec<NodeId>,
    generation: u64,
) -> (Vec<NodeId>, Vec<pb::LeftBehind>) {
    let begun = shared.clock.instant();
    let (mut running, mut waiting) = (Vec::new(), members);
    while !waiting.is_empty() && elapsed(shared, begun) < limits::RUNNING_PATIENCE {
        let asked = waiting.iter().map(|node| async move {
            let report = shared.ask(*node).await.and_then(|report| report.tables);
            report.is_some_and(|tables| tables.generation >= generation).then_some(*node)
        });
        running.extend(join_all(asked).await.into_iter().flatten());
        waiting.retain(|node| !running.contains(node));
        if !waiting.is_empty() {
            sleep(limits::RUNNING_POLL).await;
        }
    }
    running.sort_unstable();
    let why = format!(
        "was prepared, and did not say within {:?} that it runs it",
        limits::RUNNING_PATIENCE
    );
    let behind = waiting.into_iter().map(|node| pb::LeftBehind { node, why: why.clone() });
    (running, behind.collect())
}

async fn ask(shared: &Arc<Shared>, node: NodeId, content: &Content) -> Said {
    let Some(mut client) = shared.dialer.transfer(node) else {
        return Said::Unable("has no known address".to_owned());
    };
    let deadline = limits::PREPARE_DEADLINE;
    let changes = content.changes.iter().map(|(path, hash)| pb::FileRef {
        path: path.clone(),
        sha256: hash.to_bytes(),
        bytes: 0,
    });
    let request = pb::PrepareRequest {
        manifest: content.manifest.to_bytes(),
        changes: changes.collect(),
        from: shared.node,
    };
    match timeout(deadline, client.prepare(request)).await {
        Err(_) => Said::Unable(format!("was not prepared within {deadline:?}")),
        Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
            Said::Unable("runs a program that knows no versions: update it".to_owned())
        }
        Ok(Err(status)) if status.code() == tonic::Code::Unavailable => {
            Said::Unable("does not answer".to_owned())
        }
        Ok(Err(status)) => Said::Unable(format!("says: {}", status.message())),
        Ok(Ok(reply)) => match reply.into_inner().result {
            Some(Wire::Prepared(_)) => Said::Ready,
            Some(Wire::Refused(why)) => Said::Refused(why),
            Some(Wire::Unable(why)) => Said::Unable(format!("cannot: {why}")),
            None => Said::Unable("gave an answer that this version does not know".to_owned()),
        },
    }
}

fn elapsed(shared: &Shared, begun: Instant) -> Duration {
    shared.clock.instant().saturating_duration_since(begun)
}
