//! The whole cluster as one node sees it, for those who only look: collected once for all who ask within some seconds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ppsw_proto::control as pb;
use ppsw_spool::{NodeId, env::UnixMs};
use tokio::{join, sync::Mutex};

use crate::{
    limits,
    overview::{group_status, node_status},
    plane::{CONTROL, Shared},
    serve::{filter::Filter, queue, standing},
};

/// What a node knows of the cluster at a time.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    /// When it was collected.
    pub taken: UnixMs,
    /// Nodes and groups. A node without a report did not answer.
    pub status: pb::StatusReply,
    /// The queue of all nodes; `silent` are those that did not say theirs in time.
    pub queue: pb::QueueSummary,
    /// Rules of operators that stand, with those that shed and suspend.
    pub standing: Vec<pb::StandingRule>,
    /// The active version of policy and tables; 0: each node runs its own directory.
    pub version: u64,
    /// Its generation.
    pub generation: u64,
}

/// The view that was collected last.
#[derive(Default)]
pub(crate) struct Views(Arc<Mutex<Option<Kept>>>);

struct Kept {
    view: Arc<ClusterView>,
    good_until: Instant,
}

impl Views {
    /// The last view, or a new one if that is too old. At most one is collected at a time; `None`: the process ends.
    pub(crate) async fn get(&self, shared: &Arc<Shared>) -> Option<Arc<ClusterView>> {
        let mut last = Arc::clone(&self.0).lock_owned().await;
        if let Some(kept) = last.as_ref().filter(|kept| shared.clock.instant() < kept.good_until) {
            return Some(Arc::clone(&kept.view));
        }
        let shared = Arc::clone(shared);
        // A task of its own, so that who goes away while it runs does not make the next one begin anew.
        let collected = tokio::spawn(async move {
            let (view, cost) = collect(&shared).await;
            let view = Arc::new(view);
            let good_until = shared.clock.instant() + lifetime(cost);
            *last = Some(Kept { view: Arc::clone(&view), good_until });
            view
        });
        collected.await.ok()
    }
}

/// Nodes and groups, as all members that answer tell.
pub(crate) async fn status(shared: &Shared) -> pb::StatusReply {
    let state = shared.state();
    let reports = shared.ask_all(&state).await;
    let partitions =
        state.partitions.keys().map(|id| group_status(*id, &state, &reports)).collect();
    let nodes = state.members.values().map(|m| node_status(m, &state, &reports)).collect();
    pb::StatusReply {
        cluster: shared.identity.cluster.clone(),
        asked: shared.node,
        nodes,
        partitions,
        control: Some(group_status(CONTROL, &state, &reports)),
        settings: Some(pb::Settings {
            voters: u32::try_from(state.voters()).unwrap_or(u32::MAX),
            replace_after_ms: u64::try_from(state.replace_after().as_millis()).unwrap_or(u64::MAX),
        }),
        removed: state.removed.values().cloned().collect(),
    }
}

/// How long a view is good that cost so much. What a silent node made it wait cost nobody anything.
fn lifetime(cost: Duration) -> Duration {
    cost.saturating_mul(limits::VIEW_REST).clamp(limits::VIEW_LIFETIME, limits::VIEW_LIFETIME_MAX)
}

/// A view, and how long the slowest node that answered took to sum up its queue.
async fn collect(shared: &Shared) -> (ClusterView, Duration) {
    let state = shared.state();
    let nodes: Vec<NodeId> = state.members.keys().copied().collect();
    let (filter, request) = (Filter::default(), pb::QueueRequest::default());
    let patience = limits::REPORT_PATIENCE;
    let (status, (queue, cost)) =
        join!(status(shared), queue::summary_of(shared, &nodes, &filter, &request, patience));
    let view = ClusterView {
        taken: shared.now(),
        status,
        queue,
        standing: standing::list(shared),
        version: state.versions.active,
        generation: state.versions.generation,
    };
    (view, cost)
}

const _: () = assert!(limits::REPORT_PATIENCE.as_millis() < limits::VIEW_LIFETIME.as_millis());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_costly_view_is_good_for_longer() {
        assert_eq!(lifetime(Duration::ZERO), limits::VIEW_LIFETIME);
        assert_eq!(lifetime(Duration::from_secs(1)), Duration::from_secs(20));
        assert_eq!(lifetime(Duration::MAX), limits::VIEW_LIFETIME_MAX);
    }
}
