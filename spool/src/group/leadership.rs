//! Tells a machine, in order, who leads; and notices when a group has stopped for good.

use std::sync::Arc;

use openraft::{
    async_runtime::watch::WatchReceiver,
    metrics::{RaftDataMetrics, RaftServerMetrics},
};

use super::{Group, Leadership, Machine, types::TypeConfig};
use crate::NodeId;

/// Follows a group until it ends. `failed` is called if it ends otherwise than by [`Group::stop`].
pub(super) fn watch(
    group: Group,
    machine: Arc<dyn Machine>,
    failed: impl FnOnce(String) + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut server = group.raft().server_metrics();
        let mut data = group.raft().data_metrics();
        let mut herald = Herald::new(group.clone(), machine);
        loop {
            // openraft publishes what was applied before who leads, so what is read here is never behind.
            let (change, awaits_entry) = {
                let server = server.borrow_watched();
                herald.term.set(server.vote.leader_id.term as f64);
                leadership(&server, &data.borrow_watched())
            };
            herald.tell(change);
            let goes_on = tokio::select! {
                changed = server.changed() => changed.is_ok(),
                // With each commit: only looked at while the first entry of a new term is on its way.
                changed = data.changed(), if awaits_entry => changed.is_ok(),
            };
            if !goes_on {
                break;
            }
        }
        herald.tell(Leadership::Following { leader: None });
        if !group.is_stopping() {
            let ended = group.raft().metrics().borrow_watched().running_state.clone();
            failed(
                ended.map_or_else(|fatal| fatal.to_string(), |()| "its task has panicked".into()),
            );
        }
    })
}

/// The leadership, and whether this replica leads but waits for the first entry of its term.
fn leadership(
    server: &RaftServerMetrics<TypeConfig>,
    data: &RaftDataMetrics<TypeConfig>,
) -> (Leadership, bool) {
    let term = server.vote.leader_id.term;
    let leads = server.state.is_leader() && server.current_leader == Some(server.id);
    let applied = data.last_applied.as_ref().is_some_and(|id| *id.leader_id == term);
    match (leads, applied) {
        (true, true) => (Leadership::Leading { term }, false),
        (true, false) => (Leadership::Following { leader: None }, true),
        (false, _) => {
            let leader = server.current_leader.filter(|leader| *leader != server.id);
            (Leadership::Following { leader }, false)
        }
    }
}

/// Remembers what the machine was told last.
struct Herald {
    group: Group,
    machine: Arc<dyn Machine>,
    told: Option<Leadership>,
    leader: Option<NodeId>,
    term: metrics::Gauge,
    leading: metrics::Gauge,
    changes: metrics::Counter,
}

impl Herald {
    fn new(group: Group, machine: Arc<dyn Machine>) -> Self {
        let label = group.id().to_string();
        Self {
            group,
            machine,
            told: None,
            leader: None,
            term: metrics::gauge!("ppsw_raft_term", "group" => label.clone()),
            leading: metrics::gauge!("ppsw_raft_leading", "group" => label.clone()),
            changes: metrics::counter!("ppsw_raft_leader_changes_total", "group" => label),
        }
    }

    fn tell(&mut self, change: Leadership) {
        if self.told == Some(change) {
            return;
        }
        if let (Some(Leadership::Leading { .. }), Leadership::Leading { .. }) = (self.told, change)
        {
            // Deposed and elected again between two looks: what was begun in the old term has to end all the same.
            self.deliver(Leadership::Following { leader: None });
        }
        self.deliver(change);
    }

    fn deliver(&mut self, change: Leadership) {
        // The lease is lost before the machine hears of it, and won after it has heard: who asks for it in between
        // gets a no.
        let leader = match change {
            Leadership::Leading { term } => {
                self.machine.leadership(change);
                self.group.set_led_term(term);
                self.leading.set(1.0);
                Some(self.group.node())
            }
            Leadership::Following { leader } => {
                self.group.set_led_term(0);
                self.machine.leadership(change);
                self.leading.set(0.0);
                leader
            }
        };
        if leader.is_some() && leader != self.leader {
            self.leader = leader;
            self.changes.increment(1);
        }
        self.told = Some(change);
    }
}
