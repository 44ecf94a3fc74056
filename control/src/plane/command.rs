//! Commands to the control group from any node: proposed here, or with whoever leads.

use std::time::Duration;

use ppsw_spool::group::{ProposeError, Reply};
use tonic::Code;

use super::{Bytes, Change, Shared, limits, pb, sleep, timeout};
use crate::{NodeId, state};

/// Between two tries while there is no leader.
const RETRY: Duration = Duration::from_millis(100);

/// Why a command was not (as far as is known) carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The control group refused it; the reason is for people.
    #[error("{0}")]
    Refused(String),
    /// No leader or no majority in time.
    #[error(
        "the control group does not answer ({0}): are most of its nodes down? What was asked for may still be done when they \
         are back: look before asking again"
    )]
    NoMajority(String),
}

/// A change that was carried out.
struct Done {
    /// What applying it gave.
    value: Bytes,
    /// A revision of the control state that has it; 0: not known.
    revision: u64,
}

/// What one try gave.
enum Tried {
    Ended(Result<Done, CommandError>),
    /// Nothing was written; perhaps somebody else leads.
    Again {
        leader: Option<NodeId>,
        why: String,
    },
}

impl From<CommandError> for tonic::Status {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Refused(why) => Self::failed_precondition(why),
            CommandError::NoMajority(_) => Self::unavailable(error.to_string()),
        }
    }
}

impl Shared {
    /// Carries out a change of the control group; the value is what applying it gave.
    pub(crate) async fn command(&self, change: Change) -> Result<Bytes, CommandError> {
        self.carry_out(change).await.map(|done| done.value)
    }

    /// The same for somebody who will look at what it did, and most often ask this node: it knows of the change when this
    /// returns, unless that takes too long. Not for this node's agent, by whom it comes to know.
    pub(crate) async fn command_heard(&self, change: Change) -> Result<Bytes, CommandError> {
        let Done { value, revision } = self.carry_out(change).await?;
        let mut view = self.view.subscribe();
        let heard = async {
            while view.borrow_and_update().revision < revision {
                // Whoever has no vote, or has not been told yet, may ask another node.
                self.look.notify_one();
                let _ = timeout(limits::HEARSAY_RETRY, view.changed()).await;
            }
        };
        // It is done, heard of here or not.
        let _ = timeout(limits::HEARSAY_PATIENCE, heard).await;
        Ok(value)
    }

    async fn carry_out(&self, change: Change) -> Result<Done, CommandError> {
        let mut last = String::from("no leader is known");
        let tries = async {
            let mut hint = None;
            loop {
                let tried = match hint.take().or_else(|| self.control.leader()) {
                    Some(leader) if leader == self.node => self.propose_here(&change).await,
                    Some(leader) => self.propose_there(leader, &change).await,
                    None => self.propose_anywhere(&change).await,
                };
                match tried {
                    Tried::Ended(result) => return result,
                    Tried::Again { leader, why } => {
                        hint = leader;
                        last = why;
                    }
                }
                sleep(RETRY).await;
            }
        };
        let done = timeout(limits::COMMAND_DEADLINE, tries).await;
        done.unwrap_or_else(|_| Err(CommandError::NoMajority(last)))
    }

    /// Proposes only if this node leads the control group: the answer to a call, of another node or its own.
    pub(crate) async fn propose_if_leader(
        &self,
        command: pb::Command,
        deadline: Duration,
    ) -> pb::ProposeReply {
        use pb::propose_reply::Result as Wire;
        let payload = prost::Message::encode_to_vec(&command).into();
        let result = match self.control.propose(payload, deadline).await {
            Ok(Reply::Done) => Wire::Done(Bytes::new()),
            Ok(Reply::Value(value)) => Wire::Done(value),
            Ok(Reply::Refused(why)) => Wire::Refused(why),
            Err(ProposeError::NotLeader { leader }) => Wire::NotLeader(leader.unwrap_or(0)),
            Err(error) => Wire::Unknown(error.to_string()),
        };
        let applied = matches!(result, Wire::Done(_));
        let revision = if applied { self.machine.watch().borrow().revision } else { 0 };
        pb::ProposeReply { result: Some(result), revision }
    }

    async fn propose_here(&self, change: &Change) -> Tried {
        let command = state::command(change.clone());
        let reply = self.propose_if_leader(command, limits::COMMAND_DEADLINE).await;
        tried(self.node, reply)
    }

    async fn propose_there(&self, leader: NodeId, change: &Change) -> Tried {
        let again = |why: String| Tried::Again { leader: None, why };
        let Some(mut client) = self.dialer.node(leader) else {
            return again(format!("the address of node {leader} is not known"));
        };
        let deadline_ms = u32::try_from(limits::COMMAND_DEADLINE.as_millis()).unwrap_or(u32::MAX);
        let command = state::command(change.clone());
        let request = pb::ProposeRequest { command: Some(command), deadline_ms };
        match client.propose(request).await {
            Ok(reply) => tried(leader, reply.into_inner()),
            // All commands may be repeated.
            Err(status) if status.code() == Code::Unavailable => {
                again(format!("node {leader} does not answer"))
            }
            Err(status) => {
                let why = format!("node {leader}: {}", status.message());
                Tried::Ended(Err(CommandError::NoMajority(why)))
            }
        }
    }

    /// Without a known leader (this node is no voter, or an election runs): any node may know better.
    async fn propose_anywhere(&self, change: &Change) -> Tried {
        let mut last = Tried::Again { leader: None, why: "no leader is known".to_owned() };
        for node in self.dialer.known().into_iter().filter(|node| *node != self.node) {
            last = self.propose_there(node, change).await;
            if !matches!(last, Tried::Again { leader: None, .. }) {
                break;
            }
        }
        last
    }
}

/// What a node that was taken for the leader has answered, this one or another.
fn tried(asked: NodeId, reply: pb::ProposeReply) -> Tried {
    use pb::propose_reply::Result as Wire;
    let pb::ProposeReply { result, revision } = reply;
    match result {
        Some(Wire::Done(value)) => Tried::Ended(Ok(Done { value, revision })),
        Some(Wire::Refused(why)) => Tried::Ended(Err(CommandError::Refused(why))),
        Some(Wire::NotLeader(other)) => Tried::Again {
            leader: (other != 0 && other != asked).then_some(other),
            why: format!("node {asked} does not lead the control group"),
        },
        Some(Wire::Unknown(why)) => Tried::Ended(Err(CommandError::NoMajority(why))),
        None => Tried::Ended(Err(CommandError::NoMajority(format!(
            "node {asked} gave an answer that this version does not know"
        )))),
    }
}
