//! One look after the other at this node and at the state of the cluster, and what has changed between them.

use std::{collections::BTreeMap, sync::Arc};

use ppsw_proto::control::{self as pb, drain_progress::Phase};
use ppsw_spool::PartitionId;
use tokio::time::sleep;

use super::{Kind, changes};
use crate::{limits, plane::Shared, state::State};

/// Tells what happens until the plane stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut observer = Observer::default();
    let stop = shared.stop.clone();
    let (mut view, mut progress) = (shared.view.subscribe(), shared.progress.subscribe());
    let text = format!("ppswd {}", env!("CARGO_PKG_VERSION"));
    shared.tell(pb::Event { text, ..Kind::NodeStarted.of(shared.node) });
    loop {
        observer.look(Look::at(&shared)).into_iter().for_each(|event| shared.tell(event));
        // The senders live in `shared`.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = view.changed() => {}
            _ = progress.changed() => {}
            () = sleep(limits::EVENTS_LOOK) => {}
        }
    }
}

/// What is at one time.
#[derive(Clone, Debug, Default)]
struct Look {
    node: u64,
    now_ms: u64,
    state: Arc<State>,
    /// Partitions that this node leads, with the terms; 0: the control group.
    led: BTreeMap<PartitionId, u64>,
    phase: Phase,
    not_ready: Vec<String>,
    /// Why the disk is low.
    disk: Option<String>,
    /// Version and generation.
    runs: (u64, u64),
    trouble: String,
}

impl Look {
    fn at(shared: &Shared) -> Self {
        let led = shared.led();
        let groups = led.iter().map(|partition| (partition.id(), partition.group()));
        let control =
            shared.control.leads().then(|| (crate::plane::CONTROL, shared.control.clone()));
        let led = groups.chain(control).map(|(id, group)| (id, group.status().term)).collect();
        let running = shared.shelf.running();
        Self {
            node: shared.node,
            now_ms: shared.now().0,
            state: shared.state(),
            led,
            phase: shared.progress.borrow().phase(),
            not_ready: shared.not_ready().into_iter().map(without_content).collect(),
            disk: shared.disk_low(),
            runs: (running.version, running.generation),
            trouble: shared.shelf.trouble().unwrap_or_default(),
        }
    }

    /// What makes this node not ready, without figures that change all the time.
    fn causes(&self) -> Vec<&str> {
        let cause = |text: &'_ String| match text.split_once(':') {
            Some((head @ "disk low", _)) => head.len(),
            _ => text.len(),
        };
        self.not_ready.iter().map(|text| &text[..cause(text)]).collect()
    }
}

/// Why a version does not run may quote it: viewers see events, and no tables.
fn without_content(mut reason: String) -> String {
    if reason.starts_with("runs ")
        && let Some(end) = reason.find(':')
    {
        reason.truncate(end);
    }
    reason
}

/// What was at the last look.
#[derive(Debug, Default)]
struct Observer {
    before: Option<Look>,
}

impl Observer {
    fn look(&mut self, now: Look) -> Vec<pb::Event> {
        let before = self.before.take();
        let first = before.is_none();
        let before = before.unwrap_or_default();
        let mut events = Vec::new();
        if before.state.known() {
            events = changes::between(&before.state, &now.state, before.now_ms, now.now_ms);
        }
        events.extend(now.led.iter().filter(|(id, term)| before.led.get(id) != Some(term)).map(
            |(id, term)| match *id {
                crate::plane::CONTROL => {
                    pb::Event { term: Some(*term), ..Kind::ControlLeader.of(now.node) }
                }
                id => {
                    let (partition, term) = (Some(id), Some(*term));
                    pb::Event { partition, term, ..Kind::Leader.of(now.node) }
                }
            },
        ));
        if let Some(phase) = phase(now.phase).filter(|_| now.phase != before.phase) {
            events.push(pb::Event { phase: phase.to_owned(), ..Kind::DrainPhase.of(now.node) });
        }
        if first || now.causes() != before.causes() {
            let reasons = now.not_ready.clone();
            let kind = if reasons.is_empty() { Kind::Ready } else { Kind::NotReady };
            events.push(pb::Event { reasons, ..kind.of(now.node) });
        }
        events.extend(disk(&before, &now));
        events.extend(version(&before, &now));
        self.before = Some(now);
        events
    }
}

fn phase(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::None => None,
        Phase::Sessions => Some("sessions"),
        Phase::Partitions => Some("partitions"),
        Phase::Safe => Some("safe"),
    }
}

fn disk(before: &Look, now: &Look) -> Option<pb::Event> {
    match (&before.disk, &now.disk) {
        (None, Some(why)) => Some(pb::Event { text: why.clone(), ..Kind::DiskLow.of(now.node) }),
        (Some(_), None) => Some(Kind::DiskOk.of(now.node)),
        _ => None,
    }
}

fn version(before: &Look, now: &Look) -> Vec<pb::Event> {
    let mut events = Vec::new();
    let (version, generation) = (Some(now.runs.0), Some(now.runs.1));
    if now.runs != before.runs && now.runs.1 > 0 {
        events.push(pb::Event { version, generation, ..Kind::VersionRunning.of(now.node) });
    }
    if now.trouble != before.trouble && !now.trouble.is_empty() {
        let active = &now.state.versions;
        events.push(pb::Event {
            version: Some(active.active),
            generation: Some(active.generation),
            ..Kind::VersionTrouble.of(now.node)
        });
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::cluster;

    fn look(change: impl FnOnce(&mut Look)) -> Look {
        let mut look = Look { node: 2, state: Arc::new(cluster(3)), ..Look::default() };
        change(&mut look);
        look
    }

    fn told(observer: &mut Observer, look: Look) -> Vec<String> {
        observer.look(look).into_iter().map(|event| event.event).collect()
    }

    #[test]
    fn a_node_tells_what_changes_on_it_and_nothing_twice() {
        let mut observer = Observer::default();
        let unknown = Look { not_ready: vec!["nobody is heard".into()], ..Look::default() };
        assert_eq!(told(&mut observer, unknown), ["not_ready"]);
        assert_eq!(told(&mut observer, look(|_| ())), ["ready"], "no member has joined just now");
        assert_eq!(told(&mut observer, look(|_| ())), Vec::<String>::new());
        let leads = look(|look| look.led = [(0, 4), (2, 7)].into());
        assert_eq!(told(&mut observer, leads.clone()), ["control_leader", "leader"]);
        assert_eq!(told(&mut observer, leads), Vec::<String>::new());
        let again = look(|look| look.led = [(2, 9)].into());
        assert_eq!(observer.look(again)[0].term, Some(9), "it was another's meanwhile");
        let drained = |phase| look(|look| look.phase = phase);
        assert_eq!(told(&mut observer, drained(Phase::Sessions)), ["drain_phase"]);
        assert_eq!(observer.look(drained(Phase::Safe))[0].phase, "safe");
        assert_eq!(told(&mut observer, drained(Phase::None)), Vec::<String>::new());
    }

    #[test]
    fn a_disk_that_gets_fuller_is_told_once() {
        let mut observer = Observer::default();
        assert_eq!(told(&mut observer, look(|_| ())), ["ready"]);
        let low = |free: u32| {
            let why = format!("disk low: {free}M are free");
            look(|look| (look.disk, look.not_ready) = (Some(why.clone()), vec![why]))
        };
        assert_eq!(told(&mut observer, low(90)), ["not_ready", "disk_low"]);
        assert_eq!(told(&mut observer, low(80)), Vec::<String>::new());
        assert_eq!(told(&mut observer, look(|_| ())), ["ready", "disk_ok"]);
    }

    #[test]
    fn versions_are_told_without_what_is_in_them() {
        let mut observer = Observer::default();
        assert_eq!(told(&mut observer, look(|_| ())), ["ready"]);
        let runs = look(|look| look.runs = (3, 5));
        let event = observer.look(runs.clone());
        assert_eq!((event[0].event.as_str(), event[0].version), ("version_running", Some(3)));
        let trouble = Look { trouble: "policy.kdl: spy@x.example".into(), ..runs };
        let events = observer.look(trouble.clone());
        assert_eq!(events[0].event, "version_trouble");
        assert!(!format!("{events:?}").contains("spy@"));
        assert_eq!(observer.look(trouble), []);
    }
}
