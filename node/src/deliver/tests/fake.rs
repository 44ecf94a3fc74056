//! A partition's queue in memory, and the rest of a node around it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use ppsw_control::Orders;
use ppsw_spool::{
    PartitionId,
    env::{Clock, UnixMs},
    group::{ProposeError, Reply},
    log::LogError,
    queue::{
        Attempt, Body, Envelope, Expand, Expansion, MessageId, MessageState, Outcome, Pulse,
        QueuedMessage, Recipient, RecipientState, Turn, Verdict,
    },
};
use tokio::sync::{Semaphore, watch};

use crate::{
    deliver::{
        Deliverer, Parts, Programs, Sources,
        connect::TcpConnector,
        retry::{RULE_OTHERS, RetryRule, Trouble},
        seams::{BodySource, Forward, QueueSource, Queues, Router, Routing},
    },
    load::{Load, LoadAverage},
    maillog::{LogThread, MailLog},
    policy::Options,
    route::{Destination, Fate, Target},
    trace::Tracer,
};

/// A clock that tests move, and that goes on by itself.
pub(crate) struct TestClock(pub(crate) AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> UnixMs {
        UnixMs(self.0.load(Ordering::SeqCst))
    }
    #[allow(clippy::disallowed_methods, reason = "time-outs of a test are real")]
    fn instant(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.0.load(Ordering::SeqCst).saturating_sub(START))
    }
}

pub(super) struct Queue {
    messages: Mutex<BTreeMap<MessageId, Arc<QueuedMessage>>>,
    bodies: Mutex<HashMap<MessageId, Bytes>>,
    pub(super) leading: AtomicBool,
    /// Bodies cannot be read now.
    pub(super) unreadable: AtomicBool,
    pub(super) outcomes: Mutex<Vec<Outcome>>,
    /// What the next calls of `record` say instead of recording.
    pub(super) troubles: Mutex<VecDeque<ProposeError>>,
    /// Attempts that may be marked.
    pub(super) marks: Semaphore,
    pub(super) begun: Mutex<Vec<MessageId>>,
    pub(super) expanded: Mutex<Vec<Expand>>,
    pulse: watch::Sender<Pulse>,
}

impl Queue {
    fn new() -> Self {
        Self {
            messages: Mutex::default(),
            bodies: Mutex::default(),
            leading: AtomicBool::new(true),
            unreadable: AtomicBool::new(false),
            outcomes: Mutex::default(),
            troubles: Mutex::default(),
            marks: Semaphore::new(100_000),
            begun: Mutex::default(),
            expanded: Mutex::default(),
            pulse: watch::Sender::new(Pulse::default()),
        }
    }

    pub(super) fn put(&self, id: MessageId, envelope: Envelope, body: Bytes) {
        let recipients = envelope.recipients.iter().map(|recipient| Attempt {
            recipient: recipient.clone(),
            state: RecipientState::New,
            attempts: 0,
            last_error: String::new(),
            next_due: envelope.received,
            done: BTreeSet::new(),
            expansion: None,
        });
        let message = QueuedMessage {
            id,
            recipients: recipients.collect(),
            expansions: vec![],
            state: MessageState::Queued,
            body: Body::Inline { index: 0 },
            size: body.len() as u64,
            warned: false,
            not_before: UnixMs(0),
            envelope,
        };
        self.bodies.lock().unwrap().insert(id, body);
        self.messages.lock().unwrap().insert(id, Arc::new(message));
        self.pulse.send_modify(|pulse| pulse.changes += 1);
    }

    pub(super) fn message(&self, id: MessageId) -> Option<Arc<QueuedMessage>> {
        self.messages.lock().unwrap().get(&id).cloned()
    }

    pub(super) fn len(&self) -> usize {
        self.messages.lock().unwrap().len()
    }

    pub(super) fn apply(&self, outcome: &Outcome) {
        for (id, envelope, bytes) in &outcome.creates {
            self.put(*id, envelope.clone(), bytes.clone());
        }
        let mut messages = self.messages.lock().unwrap();
        let Some(message) = messages.get_mut(&outcome.message) else { return };
        let message = Arc::make_mut(message);
        for result in &outcome.results {
            let attempt = &mut message.recipients[result.recipient as usize];
            attempt.attempts += 1;
            attempt.last_error.clone_from(&result.text);
            attempt.state = RecipientState::Deferred;
            match result.verdict {
                Verdict::Deferred { next_due } => attempt.next_due = next_due,
                _ => _ = attempt.done.insert(result.address.clone()),
            }
        }
        for number in &outcome.finished {
            message.recipients[*number as usize].state = RecipientState::Delivered;
        }
        message.warned |= outcome.warned;
        if !message.recipients.iter().any(Attempt::is_open) {
            messages.remove(&outcome.message);
        }
        drop(messages);
        self.outcomes.lock().unwrap().push(outcome.clone());
        self.pulse.send_modify(|pulse| pulse.changes += 1);
    }

    /// An operator's change.
    fn revise(&self, id: MessageId, change: impl FnOnce(&mut QueuedMessage)) -> Reply {
        let mut messages = self.messages.lock().unwrap();
        let Some(message) = messages.get_mut(&id) else { return Reply::Refused("gone".into()) };
        change(Arc::make_mut(message));
        drop(messages);
        self.pulse.send_modify(|pulse| pulse.changes += 1);
        Reply::Done
    }

    fn due_times(&self) -> Vec<(UnixMs, Arc<QueuedMessage>)> {
        let due = |message: &QueuedMessage| {
            message.recipients.iter().filter(|r| r.is_open()).map(|r| r.next_due).min().unwrap()
        };
        let messages = self.messages.lock().unwrap();
        let queued = messages.values().filter(|m| m.state == MessageState::Queued);
        let mut out: Vec<_> = queued.map(|m| (due(m), Arc::clone(m))).collect();
        out.sort_by_key(|(due, message)| (*due, message.id));
        out
    }
}

/// `None`: cannot be read.
struct OneChunk(Option<Option<Bytes>>);

#[async_trait]
impl BodySource for OneChunk {
    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        match &mut self.0 {
            Some(chunk) => Ok(chunk.take()),
            None => Err(LogError::Misuse("another entry stands there".to_owned())),
        }
    }
}

#[async_trait]
impl QueueSource for Queue {
    fn id(&self) -> PartitionId {
        1
    }
    fn watch(&self) -> watch::Receiver<Pulse> {
        self.pulse.subscribe()
    }
    fn get(&self, id: MessageId) -> Option<Arc<QueuedMessage>> {
        self.message(id)
    }
    fn due(
        &self,
        now: UnixMs,
        turn: Turn,
        limit: usize,
        skip: &dyn Fn(MessageId) -> bool,
    ) -> Vec<Arc<QueuedMessage>> {
        let due = self.due_times().into_iter().filter(|(due, _)| *due <= now);
        let of = |message: &Arc<QueuedMessage>| {
            let tried = message.recipients.iter().any(|r| r.attempts > 0);
            (if tried { Turn::Again } else { Turn::First }) == turn
        };
        let due = due.map(|(_, message)| message).filter(of);
        due.filter(|m| !skip(m.id)).take(limit).collect()
    }
    fn next_due(&self) -> Option<UnixMs> {
        self.due_times().first().map(|(due, _)| *due)
    }
    fn may_deliver(&self) -> bool {
        self.leading.load(Ordering::SeqCst)
    }
    fn are_open(&self, id: MessageId, addresses: &[(u32, &str)]) -> bool {
        let Some(message) = self.message(id) else { return false };
        addresses.iter().all(|(number, address)| {
            let attempt = &message.recipients[*number as usize];
            attempt.is_open() && !attempt.done.contains(*address)
        })
    }
    async fn expand(&self, expand: Expand, _: Duration) -> Result<Reply, ProposeError> {
        if let Some(trouble) = self.troubles.lock().unwrap().pop_front() {
            return Err(trouble);
        }
        let mut messages = self.messages.lock().unwrap();
        let message = Arc::make_mut(messages.get_mut(&expand.message).unwrap());
        assert_eq!(message.recipients.len(), expand.first as usize);
        let number = message.expansions.len() as u32;
        let from = &mut message.recipients[expand.from.recipient as usize];
        assert!(from.done.insert(Expansion::key(&expand.from.address)));
        message.expansions.push(expand.from.clone());
        message.recipients.extend(expand.into.iter().map(|recipient| Attempt {
            recipient: recipient.clone(),
            state: RecipientState::New,
            attempts: 0,
            last_error: String::new(),
            next_due: expand.due,
            done: BTreeSet::new(),
            expansion: Some(number),
        }));
        self.expanded.lock().unwrap().push(expand);
        Ok(Reply::Done)
    }
    async fn begin(&self, id: MessageId) -> bool {
        // Permits may be given at any later time.
        let Ok(permit) = self.marks.acquire().await else { return false };
        permit.forget();
        self.begun.lock().unwrap().push(id);
        true
    }
    async fn record(&self, outcome: Outcome, _: Duration) -> Result<(), ProposeError> {
        let trouble = self.troubles.lock().unwrap().pop_front();
        match trouble {
            Some(trouble) => Err(trouble),
            None => {
                self.apply(&outcome);
                Ok(())
            }
        }
    }
    async fn hold(&self, id: MessageId, _: Duration) -> Result<Reply, ProposeError> {
        Ok(self.revise(id, |message| message.state = MessageState::Held))
    }
    async fn release(
        &self,
        id: MessageId,
        due: UnixMs,
        _: Duration,
    ) -> Result<Reply, ProposeError> {
        Ok(self.revise(id, |message| {
            message.state = MessageState::Queued;
            message.recipients.iter_mut().for_each(|attempt| attempt.next_due = due);
        }))
    }
    async fn redirect(
        &self,
        id: MessageId,
        recipient: u32,
        address: &str,
        due: UnixMs,
        _: Duration,
    ) -> Result<Reply, ProposeError> {
        Ok(self.revise(id, |message| {
            let attempt = &mut message.recipients[recipient as usize];
            address.clone_into(&mut attempt.recipient.address);
            (attempt.state, attempt.next_due) = (RecipientState::New, due);
        }))
    }
    fn find(&self, wanted: &dyn Fn(&QueuedMessage) -> bool) -> Vec<MessageId> {
        let messages = self.messages.lock().unwrap();
        messages.values().filter(|message| wanted(message)).map(|message| message.id).collect()
    }
    fn body(&self, message: &QueuedMessage) -> Box<dyn BodySource> {
        let readable = !self.unreadable.load(Ordering::SeqCst);
        let body = || self.bodies.lock().unwrap().get(&message.id).cloned();
        Box::new(OneChunk(readable.then(body)))
    }
}

struct Node {
    queue: Arc<Queue>,
    next: AtomicU64,
}

impl Queues for Node {
    fn partitions(&self) -> Vec<Arc<dyn QueueSource>> {
        vec![Arc::clone(&self.queue) as Arc<dyn QueueSource>]
    }
    fn new_id(&self) -> Option<MessageId> {
        Some(id(self.next.fetch_add(1, Ordering::SeqCst)))
    }
}

/// Routes by table.
#[derive(Clone, Default)]
pub(super) struct Table {
    pub(super) routes: BTreeMap<String, Vec<Target>>,
    /// In place of those, once it is set.
    pub(super) moved: Arc<AtomicBool>,
    pub(super) moved_routes: BTreeMap<String, Vec<Target>>,
    pub(super) options: Options,
}

#[async_trait]
impl Routing for Table {
    async fn route(&self, message: &QueuedMessage, numbers: &[u32]) -> Vec<Vec<Target>> {
        let routed = |number: &u32| {
            let address = &message.recipients[*number as usize].recipient.address;
            let moved = self.moved.load(Ordering::SeqCst);
            let moved = moved.then(|| self.moved_routes.get(address)).flatten();
            moved.or_else(|| self.routes.get(address)).cloned().unwrap_or_else(|| {
                vec![target(address, Fate::Fail(format!("5.1.1 no route to {address}")))]
            })
        };
        numbers.iter().map(routed).collect()
    }
    fn options(&self) -> &Options {
        &self.options
    }
    fn retry(&self, _: &str, _: &Trouble) -> RetryRule {
        RULE_OTHERS.parse().unwrap()
    }
}

struct Fixed(Arc<Table>);

impl Router for Fixed {
    fn current(&self) -> Arc<dyn Routing> {
        Arc::clone(&self.0) as Arc<dyn Routing>
    }
}

/// Counts what is forwarded; refuses the first `refusals`.
#[derive(Default)]
pub(super) struct Forwarded {
    pub(super) refusals: Mutex<u32>,
    pub(super) outcomes: Mutex<Vec<Outcome>>,
}

#[async_trait]
impl Forward for Forwarded {
    async fn forward(&self, _: PartitionId, outcome: Outcome, _: Duration) -> Result<(), String> {
        let mut refusals = self.refusals.lock().unwrap();
        if *refusals > 0 {
            *refusals -= 1;
            return Err("no leader".into());
        }
        self.outcomes.lock().unwrap().push(outcome);
        Ok(())
    }
}

/// A deliverer with everything that it needs.
pub(super) struct Setting {
    pub(super) queue: Arc<Queue>,
    pub(super) clock: Arc<TestClock>,
    pub(super) forwarded: Arc<Forwarded>,
    pub(super) deliverer: Deliverer,
    /// Rules that stand.
    pub(super) orders: Arc<Mutex<Arc<Orders>>>,
    dir: tempfile::TempDir,
    _thread: LogThread,
}

pub(crate) const START: u64 = 1_795_464_000_000;

impl Setting {
    pub(super) fn new(table: Table) -> Self {
        Self::with(table, Arc::new(|| None), Vec::new())
    }

    pub(super) fn with(table: Table, load: LoadAverage, sources: Sources) -> Self {
        let clock = Arc::new(TestClock(AtomicU64::new(START)));
        let (queue, forwarded) = (Arc::new(Queue::new()), Arc::new(Forwarded::default()));
        let dir = tempfile::tempdir().unwrap();
        let time: Arc<dyn Clock> = Arc::clone(&clock) as _;
        let (log, thread) = MailLog::open(dir.path(), 1, Arc::clone(&time)).unwrap();
        let orders: Arc<Mutex<Arc<Orders>>> = Arc::default();
        let given = Arc::clone(&orders);
        let deliverer = Deliverer::new(Parts {
            name: "us.example".into(),
            queues: Arc::new(Node { queue: Arc::clone(&queue), next: AtomicU64::new(1_000) }),
            router: Arc::new(Fixed(Arc::new(table))),
            connector: Arc::new(TcpConnector::default()),
            sources,
            load: Arc::new(Load::new(load)),
            orders: Arc::new(move || Arc::clone(&given.lock().unwrap())),
            forward: Arc::clone(&forwarded) as _,
            clock: time,
            log,
            programs: Programs { dir: dir.path().join("programs"), smtp: None },
            tracer: Tracer::default(),
        });
        let running = deliverer.clone();
        tokio::spawn(async move { running.run_all().await });
        Self { queue, clock, forwarded, deliverer, orders, dir, _thread: thread }
    }

    /// Stops delivery, soon.
    pub(super) async fn finish(&self) {
        assert!(self.deliverer.finish(Duration::from_secs(5)).await);
    }

    /// Queues a message of `sender` for `recipients`; its number is its id's.
    pub(super) fn put(&self, number: u64, sender: &str, recipients: &[&str]) -> MessageId {
        let recipient = |a: &&str| Recipient { address: (*a).into(), ..Recipient::default() };
        let envelope = Envelope {
            sender: sender.into(),
            recipients: recipients.iter().map(recipient).collect(),
            received: self.clock.now(),
            ..Envelope::default()
        };
        self.put_envelope(number, envelope)
    }

    pub(super) fn put_envelope(&self, number: u64, envelope: Envelope) -> MessageId {
        let body = Bytes::from_static(b"Subject: hello\r\n\r\nbody\r\n");
        self.queue.put(id(number), envelope, body);
        id(number)
    }

    pub(super) fn clock_now(&self) -> UnixMs {
        self.clock.now()
    }

    /// Moves the clock.
    pub(super) fn later(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.clock.0.fetch_add(ms, Ordering::SeqCst);
    }

    /// Waits for something to become true.
    pub(super) async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..1_500 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not so after 15 s: {what}; outcomes: {:#?}", self.queue.outcomes.lock().unwrap());
    }

    pub(super) fn outcomes(&self) -> Vec<Outcome> {
        self.queue.outcomes.lock().unwrap().clone()
    }

    pub(super) fn outcomes_of(&self, id: MessageId) -> usize {
        self.outcomes().iter().filter(|outcome| outcome.message == id).count()
    }

    #[allow(clippy::disallowed_methods, reason = "tests look at the files")]
    pub(super) fn mainlog(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("mainlog")).unwrap()
    }
}

pub(super) fn id(counter: u64) -> MessageId {
    MessageId { second: START / 1_000, counter, node: 1 }
}

pub(super) fn target(address: &str, fate: Fate) -> Target {
    Target { address: address.into(), copy: None, parents: vec![], errors_to: None, fate }
}

pub(super) fn deliver_to(address: &str, destination: &Destination) -> Target {
    target(address, Fate::Deliver(Box::new(destination.clone())))
}
