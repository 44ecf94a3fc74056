//! How long the logs of nodes are, and what keeps them.

use futures::future::join_all;
use ppsw_proto::control::{self as pb, kept_log::Reason};
use ppsw_spool::queue::{Kept, KeptFor};
use tokio::time::timeout;

use crate::{NodeId, limits, plane::Shared};

/// This node's log.
pub(super) fn here(shared: &Shared) -> pb::NodeLog {
    let report = shared.spool.log_report();
    let now = shared.now().0;
    pb::NodeLog {
        node: shared.node,
        segments: report.usage.segments,
        bytes: report.usage.bytes,
        free_bytes: report.usage.free_bytes,
        live_bytes: report.live_bytes,
        bound_bytes: report.bound_bytes,
        kept: report.kept.into_iter().map(|kept| kept_to_proto(kept, now)).collect(),
    }
}

/// The logs of all members, asked at once.
pub(super) async fn everywhere(shared: &Shared) -> pb::LogReply {
    let state = shared.state();
    let mut reply = pb::LogReply::default();
    let asked = state.members.keys().map(|node| async { (*node, ask(shared, *node).await) });
    for (node, log) in join_all(asked).await {
        match log {
            Some(log) => reply.nodes.push(log),
            None => reply.silent.push(node),
        }
    }
    reply
}

async fn ask(shared: &Shared, node: NodeId) -> Option<pb::NodeLog> {
    if node == shared.node {
        return Some(here(shared));
    }
    let mut client = shared.dialer.node(node)?;
    let answer = timeout(limits::REPORT_PATIENCE, client.log(pb::LogRequest {})).await;
    answer.ok()?.ok().map(tonic::Response::into_inner)
}

fn kept_to_proto(kept: Kept, now_ms: u64) -> pb::KeptLog {
    let reason = match kept.reason {
        KeptFor::Message { id, received } => Some(Reason::Message(pb::KeptMessage {
            id: id.to_string(),
            received_ms: received.0,
            age_ms: now_ms.saturating_sub(received.0),
        })),
        KeptFor::Upload { id } => Some(Reason::Upload(id.to_string())),
        KeptFor::History => Some(Reason::History(true)),
        KeptFor::Checkpoint { entries } => Some(Reason::Checkpoint(entries)),
        KeptFor::Voter { node, silent_ms } => {
            Some(Reason::Voter(pb::KeptVoter { node, silent_ms }))
        }
        KeptFor::Other => None,
    };
    pb::KeptLog {
        group: kept.group,
        first_index: kept.first,
        segments: kept.segments,
        bytes: kept.bytes,
        reason,
    }
}
