//! Tells a machine, in order, who leads; and notices when a group has stopped for good.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;

use super::{Group, Leadership, Machine, types::TypeConfig};

/// Follows a group until it ends. `failed` is called if it ends otherwise than by [`Group::stop`].
pub(super) fn watch(
    group: Group,
    machine: Arc<dyn Machine>,
    failed: impl FnOnce(String) + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let label = group.id().to_string();
        let mut metrics = group.raft().metrics();
        let mut told = None;
        loop {
            let (change, term, running) = {
                let now = metrics.borrow_watched();
                (leadership(&now), now.current_term, now.running_state.clone())
            };
            if let Err(fatal) = running {
                group.set_led_term(0);
                if !group.is_stopping() {
                    failed(fatal.to_string());
                }
                return;
            }
            metrics::gauge!("ppsw_raft_term", "group" => label.clone()).set(term as f64);
            if told != Some(change) {
                told = Some(change);
                let leading = match change {
                    Leadership::Leading { term } => term,
                    Leadership::Following { .. } => 0,
                };
                // Before the machine is told when losing, after it when gaining: who asks for the lease in between
                // hears no.
                if leading == 0 {
                    group.set_led_term(0);
                }
                machine.leadership(change);
                group.set_led_term(leading);
                metrics::counter!("ppsw_raft_leader_changes_total", "group" => label.clone())
                    .increment(1);
                metrics::gauge!("ppsw_raft_leading", "group" => label.clone())
                    .set(if leading == 0 { 0.0 } else { 1.0 });
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    })
}

fn leadership(metrics: &openraft::RaftMetrics<TypeConfig>) -> Leadership {
    let term = metrics.current_term;
    let applied = metrics.last_applied.as_ref().map(|id| *id.leader_id);
    if metrics.state.is_leader() && applied == Some(term) {
        Leadership::Leading { term }
    } else {
        let leader = metrics.current_leader.filter(|leader| *leader != metrics.id);
        Leadership::Following { leader }
    }
}
