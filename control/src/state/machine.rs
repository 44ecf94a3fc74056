//! The control state as a Raft state machine, and how the rest of the node sees it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use ppsw_proto::control as pb;
use ppsw_spool::group::{Checkpoint, Leadership, Machine, Position, Reply};
use prost::Message;
use tokio::sync::watch;

use super::State;

/// Publishes each new state; readers never wait.
pub struct ControlMachine {
    state: watch::Sender<Arc<State>>,
    leadership: watch::Sender<Leadership>,
    /// Why this program is too old for what it was given.
    outdated: OnceLock<String>,
}

impl Default for ControlMachine {
    fn default() -> Self {
        Self {
            state: watch::Sender::default(),
            leadership: watch::Sender::new(Leadership::Following { leader: None }),
            outdated: OnceLock::new(),
        }
    }
}

impl ControlMachine {
    /// The newest state, and a wake-up with each change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// Wakes up when the leader of the control group changes.
    #[must_use]
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }
}

impl Machine for ControlMachine {
    fn apply(&self, _at: Position, payload: &Bytes) -> Reply {
        if let Some(why) = State::outdated_for(payload) {
            // The first reason counts.
            let _ = self.outdated.set(why.clone());
            return Reply::Refused(why);
        }
        let mut next = State::clone(&self.state.borrow());
        let reply = next.apply(payload);
        if !matches!(reply, Reply::Refused(_)) {
            self.state.send_replace(Arc::new(next));
        }
        reply
    }

    fn checkpoint(&self, applied: Position) -> Checkpoint {
        let state = self.state.borrow().to_proto().encode_to_vec().into();
        Checkpoint { upto: Some(applied.index), state }
    }

    fn restore(&self, checkpoint: &Checkpoint) {
        let state = if checkpoint.state.is_empty() {
            Ok(State::default())
        } else {
            pb::ControlState::decode(checkpoint.state.clone())
                .map_err(super::StateError::from)
                .and_then(State::from_proto)
        };
        match state {
            Ok(state) => {
                self.state.send_replace(Arc::new(state));
            }
            // The log's CRC was right, so another version wrote this.
            Err(error) => {
                tracing::error!(%error, "cannot take the control state of a checkpoint");
                let _ = self.outdated.set(error.to_string());
            }
        }
    }

    fn outdated(&self) -> Option<String> {
        self.outdated.get().cloned()
    }

    fn leadership(&self, change: Leadership) {
        self.leadership.send_replace(change);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::cluster, *};

    #[test]
    fn a_replica_continues_from_a_checkpoint() {
        let one = ControlMachine::default();
        one.state.send_replace(Arc::new(cluster(3)));
        let checkpoint = one.checkpoint(Position { term: 2, index: 41 });
        assert_eq!(checkpoint.upto, Some(41));
        let other = ControlMachine::default();
        other.restore(&checkpoint);
        assert_eq!(*other.watch().borrow(), *one.watch().borrow());
        other.restore(&Checkpoint::default());
        assert!(!other.watch().borrow().known());
    }
}
