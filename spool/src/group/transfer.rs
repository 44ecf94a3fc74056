//! Handing leadership over.

use std::time::Duration;

use openraft::{Instant, async_runtime::watch::WatchReceiver};
use tokio::time::timeout;

use super::{ChangeError, Group, ProposeError};
use crate::{NodeId, limits};

impl Group {
    /// Hands leadership to `to`; checks its lag first. A transfer that is stuck is aborted by a second one, to
    /// another voter: until then this leader would refuse writes and send no heartbeats. From the moment it begins,
    /// this replica has no lease any longer in this term, even if leadership does not move.
    ///
    /// # Errors
    /// `Unfit` if `to` is no voter, lags or is silent, or if another node leads in the end; `NotNow` if leadership
    /// did not move in time or a transfer is under way; `Propose` if this replica does not lead.
    pub async fn transfer(&self, to: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        let Ok(_one) = self.transferring().try_lock() else {
            return Err(ChangeError::NotNow("another transfer is under way".to_owned()));
        };
        if to == self.node() && self.leads() {
            return Ok(());
        }
        self.check_successor(to)?;
        let term = self.status().term;
        self.give_up_lease(term);
        let leader =
            timeout(deadline, self.transfer_or_abort(to, term)).await.map_err(|_| {
                ChangeError::NotNow(format!("leadership has not moved within {deadline:?}"))
            })??;
        if leader == to {
            return Ok(());
        }
        let why = format!("it did not take over in time; node {leader} leads now");
        Err(ChangeError::Unfit { node: to, why })
    }

    /// The voter (not this one) that has the most entries and answers; candidate for `transfer`.
    #[must_use]
    pub fn best_successor(&self) -> Option<NodeId> {
        self.successor_except(None)
    }

    /// Whether [`Group::transfer`] to this node would be tried now.
    #[must_use]
    pub fn transfer_is_possible(&self, to: NodeId) -> bool {
        self.check_successor(to).is_ok()
    }

    fn successor_except(&self, except: Option<NodeId>) -> Option<NodeId> {
        let status = self.status();
        let fit = |node: &NodeId| Some(*node) != except && self.check_successor(*node).is_ok();
        let matched = |node: &NodeId| status.matched.get(node).copied().flatten();
        status.voters.iter().copied().filter(fit).max_by_key(matched)
    }

    fn check_successor(&self, to: NodeId) -> Result<(), ChangeError> {
        let status = self.status();
        let unfit = |why: &str| ChangeError::Unfit { node: to, why: why.to_owned() };
        if status.leader != Some(self.node()) {
            return Err(ProposeError::NotLeader { leader: status.leader }.into());
        }
        if to == self.node() {
            return Err(unfit("it leads already"));
        }
        if !status.voters.contains(&to) {
            return Err(unfit("it is no voter of this group"));
        }
        let matched = status.matched.get(&to).copied().flatten();
        let last = status.last_index.unwrap_or(0);
        if matched.is_none_or(|m| m + limits::TRANSFER_LAG_MAX < last) {
            return Err(unfit("it lags behind; wait until it has caught up"));
        }
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(&to).copied().flatten());
        if heard.is_none_or(|at| at.elapsed() > self.timing().election_min) {
            return Err(unfit("it has not answered a heartbeat lately"));
        }
        Ok(())
    }

    /// Returns who leads after `term`.
    async fn transfer_or_abort(&self, to: NodeId, term: u64) -> Result<NodeId, ChangeError> {
        self.ask_to_take_over(to).await?;
        if let Ok(next) = timeout(limits::TRANSFER_STUCK, self.leader_after(term)).await {
            return next;
        }
        // Looked for anew: it may have fallen behind or silent meanwhile. Without any, the voters elect by
        // themselves when they have heard no heartbeat for long enough.
        if let Some(other) = self.successor_except(Some(to)) {
            tracing::warn!(
                group = self.id(),
                to,
                other,
                "a transfer is stuck; another voter is asked"
            );
            self.ask_to_take_over(other).await?;
        }
        self.leader_after(term).await
    }

    async fn ask_to_take_over(&self, to: NodeId) -> Result<(), ChangeError> {
        let asked = self.raft().trigger().transfer_leader(to).await;
        asked.map_err(|e| ProposeError::Stopped(e.to_string()).into())
    }

    async fn leader_after(&self, term: u64) -> Result<NodeId, ChangeError> {
        let mut metrics = self.raft().server_metrics();
        loop {
            let leader = {
                let now = metrics.borrow_watched();
                now.current_leader.filter(|_| now.vote.leader_id.term > term)
            };
            if let Some(leader) = leader {
                return Ok(leader);
            }
            if metrics.changed().await.is_err() {
                return Err(ProposeError::Stopped("during a transfer".to_owned()).into());
            }
        }
    }
}
