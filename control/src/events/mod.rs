//! What happens in the cluster, for operators who watch (`ppswctl events`). `docs/logs.md` has the vocabulary, which is
//! closed. [`observe`] finds what happened by comparing what is with what was; here it is kept and handed out.

mod changes;
mod observe;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use ppsw_proto::control as pb;
use ppsw_spool::NodeId;
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        broadcast::{self, error::RecvError},
    },
    time::sleep,
};
use tonic::Status;

pub(crate) use observe::run;

use crate::limits;

/// Every event that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    CertificatesRefused,
    CertificatesReloaded,
    ControlLeader,
    DiskLow,
    DiskOk,
    DrainBegun,
    DrainEnded,
    DrainPhase,
    Leader,
    NodeAway,
    NodeBack,
    NodeJoined,
    NodeLeaving,
    NodeLeft,
    NodeReturned,
    NodeStarted,
    NodeUnreachable,
    NotReady,
    Ready,
    Resumed,
    RuleCleared,
    RuleSet,
    ShedCleared,
    ShedSet,
    Suspended,
    VersionActivated,
    VersionRefused,
    VersionRunning,
    VersionTrouble,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::CertificatesRefused => "certificates_refused",
            Self::CertificatesReloaded => "certificates_reloaded",
            Self::ControlLeader => "control_leader",
            Self::DiskLow => "disk_low",
            Self::DiskOk => "disk_ok",
            Self::DrainBegun => "drain_begun",
            Self::DrainEnded => "drain_ended",
            Self::DrainPhase => "drain_phase",
            Self::Leader => "leader",
            Self::NodeAway => "node_away",
            Self::NodeBack => "node_back",
            Self::NodeJoined => "node_joined",
            Self::NodeLeaving => "node_leaving",
            Self::NodeLeft => "node_left",
            Self::NodeReturned => "node_returned",
            Self::NodeStarted => "node_started",
            Self::NodeUnreachable => "node_unreachable",
            Self::NotReady => "not_ready",
            Self::Ready => "ready",
            Self::Resumed => "resumed",
            Self::RuleCleared => "rule_cleared",
            Self::RuleSet => "rule_set",
            Self::ShedCleared => "shed_cleared",
            Self::ShedSet => "shed_set",
            Self::Suspended => "suspended",
            Self::VersionActivated => "version_activated",
            Self::VersionRefused => "version_refused",
            Self::VersionRunning => "version_running",
            Self::VersionTrouble => "version_trouble",
        }
    }

    /// An event about a node; 0: about the one that tells it.
    pub(crate) fn of(self, node: NodeId) -> pb::Event {
        pb::Event { event: self.name().to_owned(), node, ..pb::Event::default() }
    }
}

/// The last events of a node, and who hears the next ones.
#[derive(Debug)]
pub(crate) struct EventLog {
    past: Mutex<VecDeque<pb::Event>>,
    live: broadcast::Sender<pb::Event>,
    seats: Arc<Semaphore>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            past: Mutex::default(),
            live: broadcast::Sender::new(limits::EVENTS_WAITING),
            seats: Arc::new(Semaphore::new(limits::EVENT_WATCHES_MAX)),
        }
    }
}

impl EventLog {
    /// Takes an event. Nobody is waited for.
    pub(crate) fn tell(&self, mut event: pb::Event) {
        cut(&mut event.text);
        event.reasons.iter_mut().for_each(cut);
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.len() == limits::EVENTS_KEPT {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Under the lock, so that whoever begins to watch misses none. An error: nobody does.
        let _ = self.live.send(event);
    }

    /// What has happened, as the first page, then what happens.
    pub(crate) fn watch(
        &self,
        request: &pb::EventsRequest,
    ) -> Result<BoxStream<'static, pb::EventsPage>, Status> {
        let time = time(request.for_ms)?;
        let seat = Arc::clone(&self.seats).try_acquire_owned().map_err(|_| {
            let max = limits::EVENT_WATCHES_MAX;
            Status::resource_exhausted(format!("{max} watch the events of this node already"))
        })?;
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.live.subscribe();
        let events = match request.since_ms {
            0 => {
                let last = usize::try_from(request.last).unwrap_or(usize::MAX);
                past.iter().skip(past.len().saturating_sub(last)).cloned().collect()
            }
            since => past.iter().filter(|event| event.time_ms >= since).cloned().collect(),
        };
        drop(past);
        let first = pb::EventsPage { events, ..pb::EventsPage::default() };
        let next = pages(live, seat).take_until(sleep(time));
        Ok(stream::once(async { first }).chain(next).boxed())
    }
}

fn pages(
    live: broadcast::Receiver<pb::Event>,
    seat: OwnedSemaphorePermit,
) -> impl Stream<Item = pb::EventsPage> + Send {
    stream::unfold((live, seat), |(mut live, seat)| async move {
        let mut page = pb::EventsPage::default();
        match live.recv().await {
            Ok(event) => page.events.push(event),
            Err(RecvError::Lagged(lost)) => page.lost = lost,
            Err(RecvError::Closed) => return None,
        }
        Some((page, (live, seat)))
    })
}

/// How long somebody watches.
pub(crate) fn time(asked_ms: u64) -> Result<Duration, Status> {
    let asked = Duration::from_millis(asked_ms);
    if asked > limits::EVENTS_TIME_MAX {
        let days = limits::EVENTS_TIME_MAX.as_secs() / 86_400;
        return Err(Status::invalid_argument(format!("expected --for at most {days} days")));
    }
    Ok(asked)
}

fn cut(text: &mut String) {
    if text.len() > limits::EVENT_TEXT_BYTES_MAX {
        let end = (0..=limits::EVENT_TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str(" ...");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kind; 29] = [
        Kind::CertificatesRefused,
        Kind::CertificatesReloaded,
        Kind::ControlLeader,
        Kind::DiskLow,
        Kind::DiskOk,
        Kind::DrainBegun,
        Kind::DrainEnded,
        Kind::DrainPhase,
        Kind::Leader,
        Kind::NodeAway,
        Kind::NodeBack,
        Kind::NodeJoined,
        Kind::NodeLeaving,
        Kind::NodeLeft,
        Kind::NodeReturned,
        Kind::NodeStarted,
        Kind::NodeUnreachable,
        Kind::NotReady,
        Kind::Ready,
        Kind::Resumed,
        Kind::RuleCleared,
        Kind::RuleSet,
        Kind::ShedCleared,
        Kind::ShedSet,
        Kind::Suspended,
        Kind::VersionActivated,
        Kind::VersionRefused,
        Kind::VersionRunning,
        Kind::VersionTrouble,
    ];

    #[test]
    fn the_documentation_has_every_event_and_no_other() {
        let text = include_str!("../../../docs/logs.md");
        let section = text.split("## Events of the cluster").nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let mut documented: Vec<&str> = rows.map(|(name, _)| name).skip(1).collect();
        documented.sort_unstable();
        // In the order of their names; a kind that is added to the enum and not here is found by its number.
        assert_eq!(Kind::VersionTrouble as usize + 1, ALL.len());
        assert_eq!(documented, ALL.map(Kind::name));
    }

    fn told(log: &EventLog, node: NodeId, time_ms: u64) {
        log.tell(pb::Event { time_ms, ..Kind::Leader.of(node) });
    }

    async fn next(pages: &mut BoxStream<'static, pb::EventsPage>) -> (Vec<u64>, u64) {
        let page = pages.next().await.unwrap();
        (page.events.iter().map(|event| event.node).collect(), page.lost)
    }

    fn request(since_ms: u64, last: u32) -> pb::EventsRequest {
        pb::EventsRequest { since_ms, last, for_ms: 60_000, node: 0 }
    }

    #[tokio::test]
    async fn whoever_comes_late_hears_the_past_first_and_misses_nothing() {
        let log = EventLog::default();
        (1..=4).for_each(|node| told(&log, node, node * 1_000));
        let mut since = log.watch(&request(3_000, 0)).unwrap();
        let mut last = log.watch(&request(0, 1)).unwrap();
        told(&log, 5, 5_000);
        assert_eq!(next(&mut since).await, (vec![3, 4], 0));
        assert_eq!(next(&mut since).await, (vec![5], 0));
        assert_eq!(next(&mut last).await, (vec![4], 0));
        assert_eq!(next(&mut last).await, (vec![5], 0));
    }

    #[tokio::test]
    async fn who_is_slow_loses_the_oldest_and_is_told() {
        let log = EventLog::default();
        let mut slow = log.watch(&request(0, 0)).unwrap();
        let all = limits::EVENTS_WAITING as u64 + 7;
        (1..=all).for_each(|node| told(&log, node, node));
        assert_eq!(next(&mut slow).await, (vec![], 0));
        assert_eq!(next(&mut slow).await, (vec![], 7));
        assert_eq!(next(&mut slow).await, (vec![8], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn watching_has_bounds() {
        let log = EventLog::default();
        (0..limits::EVENTS_KEPT as u64 + 5).for_each(|node| told(&log, node, 1));
        let mut all = log.watch(&request(1, 0)).unwrap();
        let (kept, _) = next(&mut all).await;
        assert_eq!((kept.len(), kept[0]), (limits::EVENTS_KEPT, 5));
        assert_eq!(all.next().await, None, "its time is over");
        drop(all);
        let far = pb::EventsRequest { for_ms: u64::MAX, ..request(0, 0) };
        assert!(log.watch(&far).is_err_and(|status| status.message().contains("--for")));
        let watches: Vec<_> =
            (0..limits::EVENT_WATCHES_MAX).map(|_| log.watch(&request(0, 0)).unwrap()).collect();
        assert!(log.watch(&request(0, 0)).is_err());
        drop(watches);
        assert!(log.watch(&request(0, 0)).is_ok());
        log.tell(pb::Event { text: "é".repeat(9_999), ..Kind::VersionTrouble.of(1) });
        let longest = log.past.lock().unwrap().back().unwrap().text.len();
        assert!(longest <= limits::EVENT_TEXT_BYTES_MAX + 4, "{longest}");
    }
}
