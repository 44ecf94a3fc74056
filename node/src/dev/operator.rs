//! `dev` as an operator of its own cluster: join tokens, and who leads what.

use std::{net::SocketAddr, path::Path, time::Duration};

use ppsw_control::client::{self, Credentials};
use ppsw_proto::control::{GroupStatus, NodeStatus, activate_reply::Result as Done};
use tokio::time::timeout;

use crate::{files, limits::DEV_START_MAX};

/// Time for one answer of the control plane, which may have to ask nodes that are down.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What `status` says, as far as `dev` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ClusterStatus {
    pub(super) nodes: Vec<NodeState>,
    pub(super) partitions: Vec<PartitionStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeState {
    pub(super) id: u64,
    /// `up`, `down`, `draining`, `drained`.
    pub(super) state: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartitionStatus {
    pub(super) id: u64,
    /// 0: nobody.
    pub(super) leader: u64,
    pub(super) voters: Vec<u64>,
    pub(super) messages: u64,
}

/// Voters of a partition when there are nodes enough (design §4).
const VOTERS: usize = 3;

impl ClusterStatus {
    /// What is not yet as it should be in a cluster of `nodes`: every partition at home and with all its voters.
    pub(super) fn missing(&self, nodes: u16) -> Vec<String> {
        let voters = VOTERS.min(usize::from(nodes));
        let mut reasons = Vec::new();
        for home in 1..=u64::from(nodes) {
            let Some(partition) = self.partitions.iter().find(|partition| partition.id == home)
            else {
                reasons.push(format!("partition {home} does not exist yet"));
                continue;
            };
            if partition.voters.len() < voters {
                reasons.push(format!(
                    "partition {home} has {} of {voters} voters",
                    partition.voters.len()
                ));
            }
            if partition.leader != home {
                reasons.push(format!("partition {home} is led by node {}", partition.leader));
            }
        }
        reasons
    }
}

/// A connection to the control plane. Errors are texts for people.
pub(super) struct Operator {
    client: client::Operator,
}

impl Operator {
    pub(super) async fn connect(address: SocketAddr, credentials: &Path) -> Result<Self, String> {
        let credentials = Credentials::load(credentials).map_err(|error| error.to_string())?;
        let address = address.to_string();
        let connect = client::Operator::connect(&address, &credentials);
        let client = within(connect).await?.map_err(|error| error.to_string())?;
        Ok(Self { client })
    }

    /// A token that lets the other nodes of this cluster join now.
    pub(super) async fn create_token(&self) -> Result<String, String> {
        within(self.client.create_token(DEV_START_MAX)).await?.map_err(|status| text(&status))
    }

    /// Pushes a directory as the cluster's version of policy and tables; nothing happens if it is active already.
    pub(super) async fn push(&self, dir: &Path) -> Result<(), String> {
        let files = files::read_tree(dir).map_err(|errors| {
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        })?;
        let version = client::NewVersion {
            files: files.into_iter().map(|(path, content)| (path, content.into())).collect(),
            reason: "ppswd dev".to_owned(),
            ..client::NewVersion::default()
        };
        let mut admin = self.client.admin();
        let push = client::push(&mut admin, version);
        let pushed = timeout(DEV_START_MAX, push).await.map_err(|_| "no answer to a push")?;
        match pushed.map_err(|status| text(&status))?.done {
            Done::Refused(refusal) => Err(refusal.lines.join("\n")),
            Done::Activated(_) | Done::Unchanged(_) => Ok(()),
        }
    }

    pub(super) async fn status(&self) -> Result<ClusterStatus, String> {
        let reply = within(self.client.status()).await?.map_err(|status| text(&status))?;
        let node = |node: NodeStatus| NodeState {
            id: node.member.map_or(0, |member| member.id),
            state: node.state,
        };
        let partition = |group: GroupStatus| PartitionStatus {
            id: u64::from(group.id),
            leader: group.leader,
            voters: group.voters,
            messages: group.messages,
        };
        Ok(ClusterStatus {
            nodes: reply.nodes.into_iter().map(node).collect(),
            partitions: reply.partitions.into_iter().map(partition).collect(),
        })
    }
}

async fn within<T>(call: impl Future<Output = T>) -> Result<T, String> {
    timeout(ANSWER_MAX, call)
        .await
        .map_err(|_| format!("no answer within {} s", ANSWER_MAX.as_secs()))
}

fn text(status: &tonic::Status) -> String {
    format!("{}: {}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_at_home_with_all_voters() {
        let partition = |id, leader, voters: &[u64]| PartitionStatus {
            id,
            leader,
            voters: voters.to_vec(),
            messages: 0,
        };
        let mut status = ClusterStatus {
            nodes: vec![],
            partitions: vec![
                partition(1, 1, &[1, 2, 3]),
                partition(2, 3, &[1, 2, 3]),
                partition(3, 3, &[3]),
            ],
        };
        assert_eq!(
            status.missing(3),
            ["partition 2 is led by node 3", "partition 3 has 1 of 3 voters"]
        );
        assert_eq!(status.missing(4)[2], "partition 4 does not exist yet");
        status.partitions = vec![partition(1, 1, &[1])];
        assert!(status.missing(1).is_empty());
    }
}
