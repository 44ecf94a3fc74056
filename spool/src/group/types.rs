//! openraft's types for us, and their forms on wire and disk.

use std::{collections::BTreeSet, fmt};

use bytes::{BufMut, Bytes, BytesMut};
use openraft::{EntryPayload, impls::leader_id_std};
use ppsw_proto::raft as wire;
use prost::Message;

use super::{Position, Reply};

openraft::declare_raft_types!(
    /// How openraft is set up here.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Reply,
        Node = openraft::EmptyNode,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, super::machine::Adapter>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, openraft::EmptyNode>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, Bytes>;

/// What a group's users propose: bytes whose meaning is theirs. Kept as they stand in the log, behind the byte of
/// their kind, so that log and network share one buffer instead of copying each body several times.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal(Bytes);

impl Proposal {
    pub(crate) fn new(payload: &[u8]) -> Self {
        let mut framed = BytesMut::with_capacity(payload.len() + 1);
        framed.put_u8(NORMAL);
        framed.extend_from_slice(payload);
        Self(framed.freeze())
    }

    /// As they stand in the log.
    pub(crate) fn bytes(&self) -> usize {
        self.0.len()
    }

    /// What was proposed.
    pub(crate) fn payload(&self) -> Bytes {
        self.0.slice(1..)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Without the bytes: a log line must not carry a mail.
impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({self})")
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Value(value) => write!(f, "value of {} bytes", value.len()),
            Self::Refused(why) => write!(f, "refused: {why}"),
        }
    }
}

/// Bytes that are not what this version writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not understood: {0}")]
pub(crate) struct BadForm(pub(crate) String);

/// First byte of an entry's payload in the log: format version 1 in the high half, kind in the low half.
const BLANK: u8 = 0x10;
const NORMAL: u8 = 0x11;
const MEMBERSHIP: u8 = 0x12;

/// An entry's payload as it stands in the log.
pub(crate) fn encode_payload(payload: &EntryPayload<Proposal, u64, openraft::EmptyNode>) -> Bytes {
    match payload {
        EntryPayload::Blank => Bytes::from_static(&[BLANK]),
        EntryPayload::Normal(Proposal(framed)) => framed.clone(),
        EntryPayload::Membership(membership) => {
            let mut out = vec![MEMBERSHIP];
            out.extend(membership_to_wire(membership).encode_to_vec());
            Bytes::from(out)
        }
    }
}

/// Reads what [`encode_payload`] wrote.
pub(crate) fn decode_payload(
    bytes: &Bytes,
) -> Result<EntryPayload<Proposal, u64, openraft::EmptyNode>, BadForm> {
    match bytes.first() {
        Some(&BLANK) => Ok(EntryPayload::Blank),
        Some(&NORMAL) => Ok(EntryPayload::Normal(Proposal(bytes.clone()))),
        Some(&MEMBERSHIP) => wire::Membership::decode(bytes.slice(1..))
            .map(|m| EntryPayload::Membership(membership_from_wire(&m)))
            .map_err(|e| BadForm(format!("membership: {e}"))),
        kind => Err(BadForm(format!("entry of kind {kind:?}; a newer version wrote it"))),
    }
}

/// The proposal in an entry's payload.
pub(crate) fn proposal_of(bytes: &Bytes) -> Option<Bytes> {
    (bytes.first() == Some(&NORMAL)).then(|| bytes.slice(1..))
}

pub(crate) fn log_id(position: Position) -> LogId {
    let leader_id = leader_id_std::LeaderId { term: position.term, voted_for: 0_u64 };
    let leader_id = openraft::vote::RaftLeaderId::to_committed(&leader_id);
    LogId { leader_id, index: position.index }
}

pub(crate) fn position(log_id: &LogId) -> Position {
    Position { term: *log_id.leader_id, index: log_id.index }
}

pub(crate) fn entry(position: Position, payload: &Bytes) -> Result<Entry, BadForm> {
    Ok(Entry { log_id: log_id(position), payload: decode_payload(payload)? })
}

pub(crate) fn log_id_to_wire(id: &LogId) -> wire::LogId {
    let Position { term, index } = position(id);
    wire::LogId { term, index }
}

pub(crate) fn log_id_from_wire(id: &wire::LogId) -> LogId {
    log_id(Position { term: id.term, index: id.index })
}

pub(crate) fn vote_to_wire(vote: &Vote) -> wire::Ballot {
    let leader = &vote.leader_id;
    wire::Ballot { term: leader.term, node: leader.voted_for, committed: vote.committed }
}

pub(crate) fn vote_from_wire(vote: &wire::Ballot) -> Vote {
    if vote.committed {
        Vote::new_committed(vote.term, vote.node)
    } else {
        Vote::new(vote.term, vote.node)
    }
}

pub(crate) fn membership_to_wire(membership: &Membership) -> wire::Membership {
    wire::Membership {
        configurations: membership
            .get_joint_config()
            .iter()
            .map(|nodes| wire::Voters { nodes: nodes.iter().copied().collect() })
            .collect(),
        nodes: membership.nodes().map(|(id, _)| *id).collect(),
    }
}

fn membership_from_wire(membership: &wire::Membership) -> Membership {
    let configurations: Vec<BTreeSet<u64>> =
        membership.configurations.iter().map(|c| c.nodes.iter().copied().collect()).collect();
    // Voters that the list of nodes lacks are added by openraft, so this cannot be refused.
    Membership::new_with_defaults(configurations, membership.nodes.iter().copied())
}

/// Version of the form of checkpoints that this program writes, and the only one that it reads.
pub(crate) const CHECKPOINT_VERSION: u32 = 1;

/// A checkpoint as it is stored and sent.
pub(crate) fn checkpoint_to_wire(meta: &SnapshotMeta, state: Bytes) -> wire::StoredCheckpoint {
    wire::StoredCheckpoint {
        version: CHECKPOINT_VERSION,
        last: meta.last_log_id.as_ref().map(log_id_to_wire),
        membership: Some(stored_membership_to_wire(&meta.last_membership)),
        state,
    }
}

pub(crate) fn stored_membership_to_wire(membership: &StoredMembership) -> wire::StoredMembership {
    wire::StoredMembership {
        log_id: membership.log_id().as_ref().map(log_id_to_wire),
        membership: Some(membership_to_wire(membership.membership())),
    }
}

pub(crate) fn stored_membership_from_wire(stored: &wire::StoredMembership) -> StoredMembership {
    StoredMembership::new(
        stored.log_id.as_ref().map(log_id_from_wire),
        membership_from_wire(&stored.membership.clone().unwrap_or_default()),
    )
}

pub(crate) fn checkpoint_from_wire(
    stored: wire::StoredCheckpoint,
) -> Result<(SnapshotMeta, Bytes), BadForm> {
    if stored.version != CHECKPOINT_VERSION {
        return Err(BadForm(format!(
            "checkpoint of version {}; use a newer ppswd",
            stored.version
        )));
    }
    let membership = stored.membership.unwrap_or_default();
    let meta = SnapshotMeta {
        last_log_id: stored.last.as_ref().map(log_id_from_wire),
        last_membership: stored_membership_from_wire(&membership),
    };
    Ok((meta, stored.state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_read_back_and_foreign_ones_are_refused() {
        let joint = vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])];
        let membership = Membership::new_with_defaults(joint, [1, 2, 3]);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Proposal::new(b"x")),
            EntryPayload::Membership(membership),
        ] {
            assert_eq!(decode_payload(&encode_payload(&payload)), Ok(payload));
        }
        assert_eq!(
            proposal_of(&encode_payload(&EntryPayload::Normal(Proposal::new(b"x")))).unwrap(),
            "x"
        );
        assert_eq!(Proposal::new(b"x").payload(), "x");
        assert!(decode_payload(&Bytes::from_static(&[0x21])).is_err());
        assert!(decode_payload(&Bytes::new()).is_err());
    }
}
