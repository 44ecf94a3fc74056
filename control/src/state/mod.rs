//! The state of the control group: members, wanted placement, drains, tokens. Pure: what a command does depends on
//! the state and the command alone, so every replica has the same.

mod https;
mod machine;
mod members;
mod standing;
pub(crate) mod versions;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use ppsw_proto::control::{self as pb, command::Change};
use ppsw_spool::{NodeId, PartitionId, group::Reply};
use prost::Message;

pub use machine::ControlMachine;
pub use versions::Versions;

use crate::{limits, token};

/// The version of commands and checkpoints that this program writes and reads.
const VERSION: u32 = 1;

/// What the control group knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Hexadecimal; empty before the first command.
    pub cluster: String,
    /// The node that has the CA's key.
    pub authority: NodeId,
    pub members: BTreeMap<NodeId, pb::Member>,
    /// Wanted voters of each partition.
    pub partitions: BTreeMap<PartitionId, Vec<NodeId>>,
    pub drains: BTreeMap<NodeId, pb::Drain>,
    /// By id, see [`token::id`].
    pub tokens: BTreeMap<String, pb::Token>,
    pub settings: pb::Settings,
    /// Nodes that are leaving for good.
    pub removals: BTreeMap<NodeId, pb::Removal>,
    /// Nodes that have left.
    pub removed: BTreeMap<NodeId, pb::Removal>,
    /// Nodes that have been silent for too long.
    pub away: BTreeMap<NodeId, pb::Away>,
    /// Managed domains whose aliases are fetched.
    pub https_domains: BTreeMap<String, Arc<pb::HttpsDomain>>,
    /// Policy and tables. Shared by states that do not differ in it: every command copies the state.
    pub versions: Arc<Versions>,
    /// Rules that operators have left, by number. Shared by states that do not differ in them.
    pub standing: Arc<BTreeMap<u64, pb::StandingRule>>,
    last_standing: u64,
    /// Counts the changes: of two states, the one with more is newer.
    pub revision: u64,
    /// The next number for a node. Never goes back, so no number is used twice.
    next_node: NodeId,
}

/// A state that this program cannot read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the control state is damaged: {0}")]
    Damaged(#[from] prost::DecodeError),
    #[error("the control state has format {0}, this program reads {VERSION}: use a newer ppswd")]
    Version(u32),
}

/// Wraps a change as an entry of the log.
#[must_use]
pub fn encode_command(change: Change) -> Bytes {
    command(change).encode_to_vec().into()
}

/// A change with the version of its format.
#[must_use]
pub const fn command(change: Change) -> pb::Command {
    pb::Command { version: VERSION, change: Some(change) }
}

impl State {
    /// Whether the control group has been founded, as far as this replica knows.
    #[must_use]
    pub fn known(&self) -> bool {
        !self.members.is_empty()
    }

    /// Whether a node is being drained, or is drained. One that is leaving is.
    #[must_use]
    pub fn drained(&self, node: NodeId) -> bool {
        self.drains.contains_key(&node) || self.removals.contains_key(&node)
    }

    /// The member that an operator means by number or name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&pb::Member> {
        name.parse()
            .ok()
            .and_then(|id: NodeId| self.members.get(&id))
            .or_else(|| self.members.values().find(|member| member.name.eq_ignore_ascii_case(name)))
    }

    /// The valid token with this hash.
    #[must_use]
    pub fn token(&self, hash: &[u8], now_ms: u64) -> Option<&pb::Token> {
        self.tokens.get(&token::id(hash)).filter(|t| t.hash == hash && now_ms < t.expires_ms)
    }

    /// Why this program is too old for an entry: a newer one wrote it. `None`: it is not.
    #[must_use]
    pub fn outdated_for(payload: &Bytes) -> Option<String> {
        let command = pb::Command::decode(payload.clone()).ok()?;
        let newer = command.version > VERSION || command.change.is_none();
        newer.then(|| {
            format!(
                "a control command of format {} or of an unknown kind, this program reads up to {VERSION}: use a \
                 newer ppswd",
                command.version
            )
        })
    }

    /// Applies one entry.
    pub fn apply(&mut self, payload: &Bytes) -> Reply {
        let command = match pb::Command::decode(payload.clone()) {
            Ok(command) => command,
            Err(error) => return Reply::Refused(format!("a damaged control command: {error}")),
        };
        if command.version != VERSION {
            return Reply::Refused(format!(
                "a control command of format {}, this program knows {VERSION}: update ppswd on all nodes",
                command.version
            ));
        }
        let reply = self.change(command.change);
        if !matches!(reply, Reply::Refused(_)) {
            self.revision += 1;
        }
        reply
    }

    fn change(&mut self, change: Option<Change>) -> Reply {
        let applied = match change {
            Some(Change::Found(found)) => self.found(found),
            Some(Change::Admit(admit)) => return self.admit(admit),
            Some(Change::Readmit(readmit)) => return self.readmit(readmit),
            Some(Change::Activate(activate)) => return self.activate(activate),
            Some(Change::ChangePaths(change)) => return self.change_paths(change),
            Some(Change::StartRemoval(removal)) => self.start_removal(removal),
            Some(Change::FinishRemoval(finish)) => self.finish_removal(&finish),
            Some(Change::RetirePartition(retire)) => self.retire_partition(&retire),
            Some(Change::SetAway(away)) => self.set_away(&away),
            Some(Change::Configure(settings)) => self.configure(&settings),
            Some(Change::Announce(announce)) => self.announce(announce),
            Some(Change::Place(place)) => self.place(place),
            Some(Change::StartDrain(drain)) => self.start_drain(drain),
            Some(Change::EndDrain(end)) => self.end_drain(&end),
            Some(Change::CreateToken(create)) => self.create_token(create),
            Some(Change::RevokeToken(revoke)) => self.revoke_token(&revoke),
            Some(Change::SetHttpsDomain(set)) => self.set_https_domain(set),
            Some(Change::UnsetHttpsDomain(unset)) => self.unset_https_domain(&unset),
            Some(Change::RecordFetch(record)) => self.record_fetch(record),
            Some(Change::RecordLetter(record)) => self.record_letter(record),
            Some(Change::AddStanding(add)) => return self.add_standing(add),
            Some(Change::CancelStanding(cancel)) => self.cancel_standing(&cancel),
            None => {
                Err("a control command of an unknown kind: update ppswd on all nodes".to_owned())
            }
        };
        applied.map_or_else(Reply::Refused, |()| Reply::Done)
    }

    /// As a checkpoint holds it.
    #[must_use]
    pub fn to_proto(&self) -> pb::ControlState {
        pb::ControlState {
            version: VERSION,
            cluster: self.cluster.clone(),
            next_node: self.next_node,
            authority: self.authority,
            members: self.members.values().cloned().collect(),
            partitions: self
                .partitions
                .iter()
                .map(|(id, voters)| pb::Place { partition: *id, voters: voters.clone() })
                .collect(),
            drains: self.drains.values().cloned().collect(),
            tokens: self.tokens.values().cloned().collect(),
            revision: self.revision,
            settings: Some(self.settings),
            removals: self.removals.values().cloned().collect(),
            removed: self.removed.values().cloned().collect(),
            away: self.away.values().copied().collect(),
            https_domains: self.https_domains.values().map(|d| pb::HttpsDomain::clone(d)).collect(),
            versions: Some(self.versions.to_proto()),
            standing: self.standing.values().cloned().collect(),
            last_standing: self.last_standing,
        }
    }

    /// The reverse of [`State::to_proto`].
    ///
    /// # Errors
    /// If the state is of another version.
    pub fn from_proto(state: pb::ControlState) -> Result<Self, StateError> {
        if state.version != VERSION {
            return Err(StateError::Version(state.version));
        }
        Ok(Self {
            cluster: state.cluster,
            authority: state.authority,
            members: state.members.into_iter().map(|m| (m.id, m)).collect(),
            partitions: state.partitions.into_iter().map(|p| (p.partition, p.voters)).collect(),
            drains: state.drains.into_iter().map(|d| (d.node, d)).collect(),
            tokens: state.tokens.into_iter().map(|t| (token::id(&t.hash), t)).collect(),
            next_node: state.next_node,
            settings: state.settings.unwrap_or_default(),
            removals: state.removals.into_iter().map(|r| (r.node, r)).collect(),
            removed: state.removed.into_iter().map(|r| (r.node, r)).collect(),
            away: state.away.into_iter().map(|a| (a.node, a)).collect(),
            https_domains: state
                .https_domains
                .into_iter()
                .map(|d| (d.domain.clone(), Arc::new(d)))
                .collect(),
            versions: Arc::new(Versions::from_proto(state.versions.unwrap_or_default())),
            standing: Arc::new(state.standing.into_iter().map(|r| (r.id, r)).collect()),
            last_standing: state.last_standing,
            revision: state.revision,
        })
    }

    fn found(&mut self, found: pb::Found) -> Result<(), String> {
        let Some(first) = found.first else {
            return Err("a founding command without a member".to_owned());
        };
        if self.known() {
            return Err(format!("the cluster {} exists already", self.cluster));
        }
        self.cluster = found.cluster;
        self.authority = first.id;
        self.next_node = first.id + 1;
        // It has the CA's key, and its partition from the beginning.
        let first = pb::Member { started: true, signs: true, ..first };
        self.members.insert(first.id, first);
        Ok(())
    }

    fn admit(&mut self, admit: pb::Admit) -> Reply {
        let answer = |node| Reply::Value(pb::Admitted { node }.encode_to_vec().into());
        if self.token(&admit.token_hash, admit.now_ms).is_none() {
            return Reply::Refused(
                "the token is unknown, revoked or expired: get a new one with `ppswctl token create`"
                    .to_owned(),
            );
        }
        if let Some(member) = self.members.values_mut().find(|m| m.key_hash == admit.key_hash) {
            member.control = admit.control;
            return answer(member.id);
        }
        let member = pb::Member {
            control: admit.control,
            joined_ms: admit.now_ms,
            key_hash: admit.key_hash,
            ..pb::Member::default()
        };
        self.new_member(member).map_or_else(Reply::Refused, answer)
    }

    /// Gives a member its number.
    fn new_member(&mut self, member: pb::Member) -> Result<NodeId, String> {
        check_text("address", &member.control)?;
        let id = self.next_node;
        if id > limits::NODE_ID_MAX {
            return Err(format!("all {} node numbers have been used", limits::NODE_ID_MAX));
        }
        self.next_node += 1;
        self.members.insert(id, pb::Member { id, name: format!("node-{id}"), ..member });
        Ok(id)
    }

    fn announce(&mut self, announce: pb::Announce) -> Result<(), String> {
        check_text("address", &announce.control)?;
        check_text("address", &announce.http)?;
        let member = self.members.get_mut(&announce.node).ok_or_else(|| no_node(announce.node))?;
        member.control = announce.control;
        member.http = announce.http;
        member.signs = announce.signs;
        member.started = true;
        Ok(())
    }

    fn place(&mut self, place: pb::Place) -> Result<(), String> {
        if let Some(stranger) = place.voters.iter().find(|node| !self.members.contains_key(node)) {
            return Err(no_node(*stranger));
        }
        let home = NodeId::from(place.partition);
        let needed = self.is_present(home) && !place.voters.contains(&home);
        if needed || place.voters.is_empty() {
            return Err(format!("partition {home} needs a replica on its home node {home}"));
        }
        if !self.members.contains_key(&home) && !self.partitions.contains_key(&place.partition) {
            return Err(format!("partition {home} has been retired"));
        }
        self.partitions.insert(place.partition, place.voters);
        Ok(())
    }

    fn start_drain(&mut self, drain: pb::StartDrain) -> Result<(), String> {
        if !self.members.contains_key(&drain.node) {
            return Err(no_node(drain.node));
        }
        if self.drained(drain.node) {
            return Ok(());
        }
        if let Some(other) = self.drains.keys().next()
            && !drain.force
        {
            return Err(format!(
                "node {other} is drained already, and one node at a time keeps the cluster safe: \
                 `ppswctl undrain {other}` first, or use --force"
            ));
        }
        check_text("name", &drain.by)?;
        let entry = pb::Drain { node: drain.node, since_ms: drain.at_ms, by: drain.by };
        self.drains.insert(drain.node, entry);
        Ok(())
    }

    fn end_drain(&mut self, end: &pb::EndDrain) -> Result<(), String> {
        if !self.members.contains_key(&end.node) {
            return Err(no_node(end.node));
        }
        if self.removals.contains_key(&end.node) {
            return Err(format!("node {} is being removed, which cannot be undone", end.node));
        }
        self.drains.remove(&end.node);
        Ok(())
    }

    fn create_token(&mut self, create: pb::CreateToken) -> Result<(), String> {
        check_text("name", &create.by)?;
        self.tokens.retain(|_, token| create.created_ms < token.expires_ms);
        if self.tokens.len() >= limits::TOKENS_MAX {
            return Err(format!(
                "{} tokens are valid at this time and no more are allowed: revoke some",
                limits::TOKENS_MAX
            ));
        }
        let id = token::id(&create.hash);
        if self.tokens.get(&id).is_some_and(|token| token.hash == create.hash) {
            // Asked again after a lost answer.
            return Ok(());
        }
        if create.hash.len() != 32 || self.tokens.contains_key(&id) {
            return Err("this token cannot be used; make another".to_owned());
        }
        let token = pb::Token {
            hash: create.hash,
            created_ms: create.created_ms,
            expires_ms: create.expires_ms,
            by: create.by,
        };
        self.tokens.insert(id, token);
        Ok(())
    }

    fn revoke_token(&mut self, revoke: &pb::RevokeToken) -> Result<(), String> {
        self.tokens.remove(&revoke.id).map(|_| ()).ok_or_else(|| {
            format!("there is no token {}: `ppswctl token list` shows all", revoke.id)
        })
    }
}

fn no_node(node: NodeId) -> String {
    format!("there is no node {node}: `ppswctl node list` shows all")
}

fn check_text(what: &str, text: &str) -> Result<(), String> {
    if text.len() > limits::NAME_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!(
            "expected {what} of at most {} bytes without control characters",
            limits::NAME_BYTES_MAX
        ));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
