//! Members that leave, are silent, or come back under a new number (docs/membership.md).

use std::{collections::BTreeSet, time::Duration};

use ppsw_proto::control as pb;
use ppsw_spool::{NodeId, PartitionId, group::Reply};
use prost::Message;

use super::{State, check_text, no_node};
use crate::limits;

impl State {
    /// A member that carries replicas: it has started, answers, and is not leaving.
    #[must_use]
    pub fn is_present(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|member| member.started)
            && !self.removals.contains_key(&node)
            && !self.away.contains_key(&node)
    }

    /// A member that has run.
    #[must_use]
    pub fn has_started(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|member| member.started)
    }

    /// All nodes that should carry replicas now.
    #[must_use]
    pub fn present(&self) -> BTreeSet<NodeId> {
        self.members.keys().copied().filter(|node| self.is_present(*node)).collect()
    }

    /// Members that are not leaving.
    pub fn staying(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.keys().copied().filter(|node| !self.removals.contains_key(node))
    }

    /// Whether a partition has no home any more: it takes no new messages, and is retired when it is empty.
    #[must_use]
    pub fn is_orphan(&self, partition: PartitionId) -> bool {
        let home = NodeId::from(partition);
        self.removals.contains_key(&home) || !self.members.contains_key(&home)
    }

    /// Whether a partition was retired. False for one of a node that this state does not know yet.
    #[must_use]
    pub fn is_retired(&self, partition: PartitionId) -> bool {
        self.has_left(partition.into()) && !self.partitions.contains_key(&partition)
    }

    /// Whether a node was a member and is none any more.
    #[must_use]
    pub fn has_left(&self, node: NodeId) -> bool {
        node < self.next_node && !self.members.contains_key(&node)
    }

    /// Wanted voters of a partition.
    #[must_use]
    pub fn voters(&self) -> usize {
        match self.settings.voters {
            0 => limits::PARTITION_VOTERS,
            count => usize::try_from(count).unwrap_or(limits::PARTITION_VOTERS),
        }
    }

    /// How long a node may be silent before others take its votes.
    #[must_use]
    pub fn replace_after(&self) -> Duration {
        match self.settings.replace_after_ms {
            0 => limits::REPLACE_AFTER,
            ms => Duration::from_millis(ms),
        }
    }

    pub(super) fn start_removal(&mut self, removal: pb::StartRemoval) -> Result<(), String> {
        let node = removal.node;
        let member = self.members.get(&node).ok_or_else(|| no_node(node))?;
        if self.removals.contains_key(&node) {
            return Ok(());
        }
        check_text("name", &removal.by)?;
        check_text("reason", &removal.reason)?;
        if self.staying().all(|other| other == node) {
            return Err(format!("node {node} is the last one: stop it, if the cluster is to end"));
        }
        let started = member.started;
        let entry = pb::Removal {
            node,
            since_ms: removal.at_ms,
            by: removal.by,
            reason: removal.reason,
            forced: removal.forced,
        };
        self.removals.insert(node, entry);
        if !started {
            // It never had a replica, nor a partition of its own.
            self.leave(node, removal.at_ms);
        }
        Ok(())
    }

    pub(super) fn finish_removal(&mut self, finish: &pb::FinishRemoval) -> Result<(), String> {
        if !self.removals.contains_key(&finish.node) {
            return Err(no_node(finish.node));
        }
        let placed = self.partitions.iter().find(|(_, voters)| voters.contains(&finish.node));
        if let Some((partition, _)) = placed {
            return Err(format!("partition {partition} is still placed on node {}", finish.node));
        }
        self.leave(finish.node, finish.at_ms);
        Ok(())
    }

    pub(super) fn retire_partition(&mut self, retire: &pb::RetirePartition) -> Result<(), String> {
        let partition = retire.partition;
        if !self.is_orphan(partition) {
            return Err(format!("partition {partition} has its home node, and stays"));
        }
        self.partitions.remove(&partition);
        Ok(())
    }

    pub(super) fn set_away(&mut self, change: &pb::SetAway) -> Result<(), String> {
        if !self.members.contains_key(&change.node) {
            return Err(no_node(change.node));
        }
        if change.away {
            let away = pb::Away { node: change.node, since_ms: change.at_ms };
            self.away.entry(change.node).or_insert(away);
        } else {
            self.away.remove(&change.node);
        }
        Ok(())
    }

    pub(super) fn configure(&mut self, change: &pb::Configure) -> Result<(), String> {
        let patience = Duration::from_millis(change.replace_after_ms);
        if change.voters != 0 && !limits::PARTITION_VOTERS_ALLOWED.contains(&change.voters) {
            return Err(format!(
                "expected {:?} voters, not {}: fewer would not survive the loss of a disk",
                limits::PARTITION_VOTERS_ALLOWED,
                change.voters
            ));
        }
        let range = limits::REPLACE_AFTER_MIN..=limits::REPLACE_AFTER_MAX;
        if change.replace_after_ms != 0 && !range.contains(&patience) {
            return Err(format!("expected a time of {range:?}, not {patience:?}"));
        }
        if change.voters != 0 {
            self.settings.voters = change.voters;
        }
        if change.replace_after_ms != 0 {
            self.settings.replace_after_ms = change.replace_after_ms;
        }
        Ok(())
    }

    /// A member that has lost its log gets a new number; the old one leaves.
    pub(super) fn readmit(&mut self, readmit: pb::Readmit) -> Reply {
        self.readmitted(readmit).map_or_else(Reply::Refused, |node| {
            Reply::Value(pb::Admitted { node }.encode_to_vec().into())
        })
    }

    fn readmitted(&mut self, readmit: pb::Readmit) -> Result<NodeId, String> {
        let known = self.members.values().find(|m| m.key_hash == readmit.key_hash).map(|m| m.id);
        let new = match known {
            Some(new) => new,
            None if self.members.contains_key(&readmit.old) => self.new_member(pb::Member {
                control: readmit.control,
                joined_ms: readmit.now_ms,
                key_hash: readmit.key_hash,
                ..pb::Member::default()
            })?,
            None => return Err(no_node(readmit.old)),
        };
        if self.members.contains_key(&readmit.old) {
            self.start_removal(pb::StartRemoval {
                node: readmit.old,
                by: format!("node-{new}"),
                reason: format!("its log was lost; it came back as node {new}"),
                at_ms: readmit.now_ms,
                forced: true,
            })?;
        }
        Ok(new)
    }

    fn leave(&mut self, node: NodeId, at_ms: u64) {
        self.members.remove(&node);
        self.drains.remove(&node);
        self.away.remove(&node);
        if let Some(removal) = self.removals.remove(&node) {
            self.removed.insert(node, pb::Removal { since_ms: at_ms, ..removal });
        }
    }
}
