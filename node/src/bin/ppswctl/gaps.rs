//! What an answer about the queue may lack: a message is told of by whoever leads its partition, and by nobody else.

use std::collections::BTreeMap;

use ppsw_proto::control::StatusReply;

use crate::{address::Admin, status};

/// Who led which partition when a question was about to be asked.
pub(crate) struct Before(Leaders);

/// What is missing: nothing, if the nodes that do not answer lead nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Gaps {
    /// Nodes that were asked for, and did not answer.
    pub(crate) nodes: Vec<u64>,
    /// Partitions that nobody leads who answered.
    pub(crate) partitions: Vec<u32>,
}

/// Leader (0: none) and term of each partition.
type Leaders = BTreeMap<u32, (u64, u64)>;

fn leaders(status: &StatusReply) -> Leaders {
    let groups = status.partitions.iter();
    groups.map(|group| (group.id, (group.leader, group.term))).collect()
}

impl Before {
    pub(crate) fn new(status: &StatusReply) -> Self {
        Self(leaders(status))
    }

    /// What the answer lacks; `node` if it was asked of that one alone.
    pub(crate) async fn gaps(&self, admin: &mut Admin, node: u64, silent: &[u64]) -> Gaps {
        if node != 0 {
            return Gaps { nodes: silent.to_vec(), partitions: Vec::new() };
        }
        if silent.is_empty() && self.0.values().all(|(leader, _)| *leader != 0) {
            return Gaps::default();
        }
        match status::ask(admin).await {
            Ok(status) => missing(&self.0, &leaders(&status), silent),
            Err(_) => Gaps { nodes: silent.to_vec(), partitions: self.0.keys().copied().collect() },
        }
    }
}

/// Partitions that were not led all the time by one that answered. A leader that changed meanwhile may have been asked when it
/// did not lead yet.
fn missing(before: &Leaders, after: &Leaders, silent: &[u64]) -> Gaps {
    let whole = |(id, (leader, term)): &(&u32, &(u64, u64))| {
        *leader != 0 && !silent.contains(leader) && before.get(*id) == Some(&(*leader, *term))
    };
    let partitions: Vec<u32> =
        after.iter().filter(|group| !whole(group)).map(|(id, _)| *id).collect();
    let nodes = if partitions.is_empty() { Vec::new() } else { silent.to_vec() };
    Gaps { nodes, partitions }
}

impl Gaps {
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.partitions.is_empty()
    }

    /// Says on standard error what is missing.
    pub(crate) fn warn(&self) {
        let list = |all: Vec<String>| all.join(", ");
        let nodes = list(self.nodes.iter().map(u64::to_string).collect());
        let partitions = list(self.partitions.iter().map(u32::to_string).collect());
        match (nodes.as_str(), partitions.as_str()) {
            ("", "") => {}
            (nodes, "") => {
                eprintln!("ppswctl: no answer from node {nodes}: its messages are missing here");
            }
            ("", partitions) => eprintln!(
                "ppswctl: messages of partition {partitions} may be missing here: it has no leader, or changed it just now"
            ),
            (nodes, partitions) => eprintln!(
                "ppswctl: no answer from node {nodes}: messages of partition {partitions} may be missing here"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_missed_only_for_what_it_led() {
        let led = |all: &[(u32, u64, u64)]| -> Leaders {
            all.iter().map(|(id, leader, term)| (*id, (*leader, *term))).collect()
        };
        let gaps = |before: &[_], after: &[_], silent: &[u64]| {
            let gaps = missing(&led(before), &led(after), silent);
            assert_eq!(gaps.nodes.is_empty(), gaps.partitions.is_empty() || silent.is_empty());
            gaps.partitions
        };
        let well = [(1, 1, 5), (2, 3, 5)];
        assert!(gaps(&well, &well, &[2]).is_empty(), "others lead all");
        assert_eq!(gaps(&well, &well, &[3]), [2]);
        assert_eq!(gaps(&[(1, 1, 5), (2, 0, 5)], &well, &[2]), [2], "nobody led it at first");
        assert_eq!(gaps(&well, &[(1, 1, 5), (2, 0, 5)], &[2]), [2], "nobody leads it now");
        assert_eq!(
            gaps(&well, &[(1, 1, 5), (2, 3, 7)], &[2]),
            [2],
            "it was with another meanwhile"
        );
        assert_eq!(gaps(&[(1, 1, 5)], &well, &[2]), [2], "it is new");
    }
}
