//! The rounds, with the control group's real state, a clock that is moved by hand, and a web, a spool and tables of our own.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use ppsw_control::{
    https::Password,
    state::{self, State},
    versions::BlobHash,
};
use ppsw_proto::control::{self as pb, command::Change};
use ppsw_spool::{
    env::{Clock, SystemClock, UnixMs},
    group::Reply,
    queue::MessageId,
};
use tokio::sync::Semaphore;

use super::super::{
    Domains, Periods,
    aliases::{Size, table_name},
    fetch::{Fetch, FetchError, Fetched, Source, Validators},
    letter::Letter,
    round::Rounds,
    schedule,
    seams::{LiveCopies, LiveCopy, Post, Registry},
};
use crate::{
    dev::configuration::tests::loaded_with,
    limits,
    policy::{Configuration, golden::dns},
    tables::Tables,
};

const D: &str = "botolph.cam.ac.uk";
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);
const START: u64 = 1_795_464_000_000;

const GOOD: &str = "postmaster:spqr1@hermes.cam.ac.uk\nwebmaster:spqr1@hermes.cam.ac.uk\n\
                    abuse:spqr1@hermes.cam.ac.uk\nfellows:spqr2@hermes.cam.ac.uk\n";

/// A web server for all domains.
struct Web {
    answer: Mutex<Result<Fetched, FetchError>>,
    asked: Mutex<Vec<(String, Option<Validators>)>>,
    /// Fetches wait for a permit, if there is one to wait for.
    gate: Mutex<Option<Arc<Semaphore>>>,
}

struct Book {
    state: Mutex<State>,
    leads: AtomicBool,
}

struct Copies {
    files: Mutex<BTreeMap<String, String>>,
    failing: AtomicBool,
}

#[derive(Default)]
struct Letters {
    sent: Mutex<VecDeque<Letter>>,
    failing: AtomicBool,
}

struct HandClock(AtomicU64);

struct World {
    web: Arc<Web>,
    book: Arc<Book>,
    copies: Arc<Copies>,
    letters: Arc<Letters>,
    clock: Arc<HandClock>,
    domains: Domains,
}

impl Clock for HandClock {
    fn now(&self) -> UnixMs {
        UnixMs(self.0.load(Ordering::SeqCst))
    }

    fn instant(&self) -> Instant {
        SystemClock.instant()
    }
}

#[async_trait]
impl Fetch for Web {
    async fn fetch(
        &self,
        source: &Source,
        known: Option<&Validators>,
    ) -> Result<Fetched, FetchError> {
        assert_eq!((source.user.as_str(), source.password.expose()), ("ppsw", "secret"));
        self.asked.lock().unwrap().push((source.url.to_string(), known.cloned()));
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        self.answer.lock().unwrap().clone()
    }
}

#[async_trait]
impl Registry for Book {
    fn leads(&self) -> bool {
        self.leads.load(Ordering::SeqCst)
    }

    fn domains(&self) -> Vec<Arc<pb::HttpsDomain>> {
        self.state.lock().unwrap().https_domains.values().cloned().collect()
    }

    fn password(&self, domain: &pb::HttpsDomain) -> Result<Password, String> {
        assert_eq!(domain.sealed_password.as_ref(), b"sealed");
        Ok(Password::new("secret".to_owned()))
    }

    async fn record_fetch(&self, record: pb::RecordFetch) -> Result<(), String> {
        self.apply(Change::RecordFetch(record))
    }

    async fn record_letter(&self, record: pb::RecordLetter) -> Result<(), String> {
        self.apply(Change::RecordLetter(record))
    }
}

impl Book {
    fn apply(&self, change: Change) -> Result<(), String> {
        match self.state.lock().unwrap().apply(&state::encode_command(change)) {
            Reply::Refused(why) => Err(why),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl LiveCopies for Copies {
    fn current(&self) -> Arc<Configuration> {
        let files = self.files.lock().unwrap();
        let files: Vec<_> =
            files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        loaded_with(&files)
    }

    async fn find(&self, domain: &str) -> Result<Option<LiveCopy>, String> {
        let files = self.files.lock().unwrap();
        let Some(text) = files.get(&table_name(domain)) else { return Ok(None) };
        let tables = [(table_name(domain), text.clone().into_bytes())].into();
        let tables = Tables::from_files(&tables).unwrap();
        let size = Size::live(&tables, domain).unwrap();
        Ok(Some(LiveCopy { hash: BlobHash::of(text.as_bytes()), size }))
    }

    async fn publish(
        &self,
        domain: &str,
        table: String,
        before: Option<BlobHash>,
    ) -> Result<(), String> {
        if self.failing.load(Ordering::SeqCst) {
            return Err("no majority".to_owned());
        }
        let live = self.find(domain).await?;
        assert_eq!(live.map(|live| live.hash), before);
        self.files.lock().unwrap().insert(table_name(domain), table);
        Ok(())
    }
}

#[async_trait]
impl Post for Letters {
    async fn send(&self, letter: &Letter) -> Result<MessageId, String> {
        if self.failing.load(Ordering::SeqCst) {
            return Err("no space".to_owned());
        }
        self.sent.lock().unwrap().push_back(letter.clone());
        Ok(MessageId { second: 1, counter: 1, node: 1 })
    }
}

fn file(text: &str, etag: &str) -> Result<Fetched, FetchError> {
    let validators = Validators { etag: etag.to_owned(), last_modified: String::new() };
    Ok(Fetched::File { content: text.as_bytes().to_vec(), validators })
}

fn status(text: &str) -> Result<Fetched, FetchError> {
    Err(FetchError::Status(text.to_owned()))
}

impl World {
    fn new() -> Self {
        let web = Arc::new(Web {
            answer: Mutex::new(file(GOOD, "\"1\"")),
            asked: Mutex::default(),
            gate: Mutex::default(),
        });
        let book =
            Arc::new(Book { state: Mutex::new(State::default()), leads: AtomicBool::new(true) });
        let copies = Arc::new(Copies { files: Mutex::default(), failing: AtomicBool::default() });
        let letters = Arc::new(Letters::default());
        let clock = Arc::new(HandClock(AtomicU64::new(START)));
        let domains = Domains {
            registry: book.clone(),
            live: copies.clone(),
            fetcher: web.clone(),
            post: letters.clone(),
            dns: Arc::new(dns()),
            clock: clock.clone(),
            periods: Periods { fetch: HOUR, report: limits::REPORT_PERIOD },
        };
        Self { web, book, copies, letters, clock, domains }
    }

    fn set(&self, domain: &str) {
        let set = pb::SetHttpsDomain {
            domain: domain.to_owned(),
            url: format!("https://www.{domain}/aliases"),
            user: "ppsw".to_owned(),
            sealed_password: b"sealed".as_slice().into(),
            by: "admin".to_owned(),
            at_ms: self.clock.now().0,
            ..pb::SetHttpsDomain::default()
        };
        self.book.apply(Change::SetHttpsDomain(set)).unwrap();
    }

    fn answer(&self, answer: Result<Fetched, FetchError>) {
        *self.web.answer.lock().unwrap() = answer;
    }

    fn pass(&self, time: Duration) {
        self.clock.0.fetch_add(time.as_millis() as u64, Ordering::SeqCst);
    }

    /// Some looks one after the other: what one makes due, the next does.
    async fn look(&self, rounds: &mut Rounds) {
        for _ in 0..3 {
            rounds.look(&self.domains);
            rounds.settle(&self.domains).await;
        }
    }

    /// Goes on in steps of minutes.
    async fn live_through(&self, rounds: &mut Rounds, time: Duration) {
        let end = self.clock.now().plus(time);
        while self.clock.now() < end {
            self.pass(Duration::from_secs(60));
            self.look(rounds).await;
        }
    }

    fn fetches(&self) -> usize {
        std::mem::take(&mut *self.web.asked.lock().unwrap()).len()
    }

    fn subjects(&self) -> Vec<String> {
        self.letters.sent.lock().unwrap().drain(..).map(|letter| letter.subject).collect()
    }

    fn domain(&self, name: &str) -> pb::HttpsDomain {
        pb::HttpsDomain::clone(&self.book.state.lock().unwrap().https_domains[name])
    }

    fn live(&self) -> Option<String> {
        self.copies.files.lock().unwrap().get(&table_name(D)).cloned()
    }
}

#[tokio::test]
async fn a_domain_is_fetched_at_once_and_then_hourly() {
    let (world, mut rounds) = (World::new(), Rounds::default());
    world.look(&mut rounds).await;
    assert_eq!(world.fetches(), 0);
    world.set(D);
    world.look(&mut rounds).await;
    assert_eq!(
        world.web.asked.lock().unwrap().as_slice(),
        [("https://www.botolph.cam.ac.uk/aliases".to_owned(), None)]
    );
    assert!(world.live().unwrap().starts_with("abuse: spqr1@hermes.cam.ac.uk\nfellows: spqr2@"));
    let domain = world.domain(D);
    assert_eq!((domain.succeeded_ms, domain.changed_ms), (START, START));
    assert_eq!(domain.next_due_ms, schedule::next_fetch(D, UnixMs(START), HOUR).0);
    world.fetches();

    world.answer(Ok(Fetched::NotModified));
    world.live_through(&mut rounds, 10 * HOUR).await;
    let asked = world.web.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 10);
    let known = Validators { etag: "\"1\"".to_owned(), ..Validators::default() };
    assert!(asked.iter().all(|(_, with)| *with == Some(known.clone())), "{asked:?}");
    let domain = world.domain(D);
    assert_eq!(domain.changed_ms, START);
    assert!(domain.succeeded_ms > START + 9 * 3_600_000);

    // The same content by another tag is no change.
    world.fetches();
    world.answer(file(&GOOD.replace(':', " : "), "\"2\""));
    world.live_through(&mut rounds, HOUR).await;
    let domain = world.domain(D);
    assert_eq!((domain.changed_ms, domain.live.unwrap().etag.as_str()), (START, "\"2\""));
    // Who has changed the live copy otherwise gets the file again, whatever its tag says.
    world.copies.files.lock().unwrap().insert(table_name(D), "x: y@z.example\n".to_owned());
    world.fetches();
    world.live_through(&mut rounds, HOUR).await;
    assert_eq!(world.web.asked.lock().unwrap()[0].1, None);
    assert!(world.live().unwrap().contains("fellows"));
    assert_eq!(world.subjects(), Vec::<String>::new());
}

#[tokio::test]
async fn a_problem_is_told_once_and_daily_and_the_live_copy_stays() {
    let (world, mut rounds) = (World::new(), Rounds::default());
    world.set(D);
    world.look(&mut rounds).await;
    let live = world.live();
    let told = |kind: &str| format!("Mail domain {D}: the aliases file cannot be used ({kind})");

    world.answer(status("500 Internal Server Error"));
    world.live_through(&mut rounds, DAY - HOUR).await;
    assert_eq!(world.subjects(), [told("status")]);
    assert_eq!(world.fetches(), 24);
    world.live_through(&mut rounds, 2 * HOUR).await;
    assert_eq!(world.subjects(), [told("status")], "once more after a day");
    let since = world.domain(D).problem.unwrap().since_ms;
    assert!(since < START + 3_600_000 + 60_000);

    for (answer, kind) in [
        (status("404 Not Found"), "status"),
        (Err(FetchError::TooLarge { max: 1 }), "size"),
        (file("", ""), "incomplete"),
        (file(&GOOD.replace("abuse", "misuse"), ""), "incomplete"),
        (file(&format!("{GOOD}x\n"), ""), "unparsable"),
        (file(&format!("{GOOD}y\n"), ""), "unparsable"),
    ] {
        world.answer(answer);
        world.live_through(&mut rounds, HOUR).await;
        assert_eq!(world.subjects(), [told(kind)]);
        world.live_through(&mut rounds, 3 * HOUR).await;
        assert_eq!(world.subjects(), Vec::<String>::new(), "{kind}");
        assert_eq!(world.live(), live, "{kind}");
        assert_eq!(world.domain(D).problem.unwrap().kind, kind);
    }
    // Good again, and bad again.
    world.answer(file(GOOD, "\"3\""));
    world.live_through(&mut rounds, HOUR).await;
    assert!(world.domain(D).problem.is_none());
    assert_eq!(world.subjects(), Vec::<String>::new());
    world.answer(file(&format!("{GOOD}y\n"), ""));
    world.live_through(&mut rounds, HOUR).await;
    assert_eq!(world.subjects(), [told("unparsable")]);
}

#[tokio::test]
async fn a_file_that_has_shrunk_is_taken_only_by_force() {
    let (world, mut rounds) = (World::new(), Rounds::default());
    let many: String = (0..96).map(|n| format!("fellow{n}:spqr2@hermes.cam.ac.uk\n")).collect();
    let of = |aliases: usize| {
        let lines = many.lines().take(aliases - 4).map(|line| format!("{line}\n"));
        GOOD.to_owned() + &lines.collect::<String>()
    };
    world.answer(file(&of(100), ""));
    world.set(D);
    world.look(&mut rounds).await;
    world.answer(file(&of(74), ""));
    world.live_through(&mut rounds, HOUR).await;
    assert_eq!(world.live().unwrap().lines().count(), 100);
    let subjects = world.subjects();
    assert!(subjects[0].ends_with("(shrunk)"), "{subjects:?}");
    // Another count is the same problem.
    world.answer(file(&of(73), ""));
    world.live_through(&mut rounds, HOUR).await;
    assert_eq!(world.subjects(), Vec::<String>::new());

    let reply = world.domains.fetch(D, false).await.unwrap().result.unwrap();
    let pb::fetch_domain_reply::Result::Problem(problem) = reply else { panic!("{reply:?}") };
    assert!(problem.text.contains("has 73 aliases"), "{}", problem.text);
    let reply = world.domains.fetch(D, true).await.unwrap().result.unwrap();
    let pb::fetch_domain_reply::Result::Live(live) = reply else { panic!("{reply:?}") };
    assert!(live.changed && live.aliases == 73);
    assert_eq!(world.live().unwrap().lines().count(), 73);
    assert!(world.domain(D).problem.is_none());
    world.answer(file(&of(55), ""));
    world.domains.fetch(D, false).await.unwrap();
    assert_eq!(world.live().unwrap().lines().count(), 55, "a quarter may go");
    assert!(
        world.domains.fetch("other.cam.ac.uk", false).await.unwrap_err().contains("not fetched")
    );
}

#[tokio::test]
async fn the_next_leader_goes_on_where_the_last_one_was() {
    let world = World::new();
    let mut rounds = Rounds::default();
    world.set(D);
    world.look(&mut rounds).await;
    world.answer(status("500 Internal Server Error"));
    world.live_through(&mut rounds, 90 * Duration::from_secs(60)).await;
    assert_eq!(world.subjects().len(), 1);
    world.fetches();
    let due = world.domain(D).next_due_ms;

    // What a new leader has is a checkpoint of the state.
    {
        let mut state = world.book.state.lock().unwrap();
        *state = State::from_proto(state.to_proto()).unwrap();
    }
    let mut rounds = Rounds::default();
    while world.clock.now().0 < due - 60_000 {
        world.live_through(&mut rounds, Duration::from_secs(60)).await;
    }
    assert_eq!((world.fetches(), world.subjects().len()), (0, 0));
    world.live_through(&mut rounds, Duration::from_secs(120)).await;
    assert_eq!((world.fetches(), world.subjects().len()), (1, 0));

    // One that does not lead does nothing.
    world.book.leads.store(false, Ordering::SeqCst);
    world.live_through(&mut rounds, 2 * DAY).await;
    assert_eq!((world.fetches(), world.subjects().len()), (0, 0));
}

#[tokio::test]
async fn what_fails_for_a_reason_of_ours_is_tried_again_and_told_to_nobody() {
    let (world, mut rounds) = (World::new(), Rounds::default());
    world.copies.failing.store(true, Ordering::SeqCst);
    world.set(D);
    world.live_through(&mut rounds, Duration::from_secs(600)).await;
    assert_eq!(world.fetches(), 10, "each minute");
    assert_eq!((world.live(), world.subjects().len()), (None, 0));
    assert_eq!(world.domain(D).fetched_ms, 0);
    world.copies.failing.store(false, Ordering::SeqCst);
    world.live_through(&mut rounds, Duration::from_secs(120)).await;
    assert!(world.live().is_some());

    // A letter that was not taken is due until it is.
    world.letters.failing.store(true, Ordering::SeqCst);
    world.answer(status("500 Internal Server Error"));
    world.live_through(&mut rounds, 2 * HOUR).await;
    assert!(world.domain(D).told_fingerprint.is_empty());
    world.letters.failing.store(false, Ordering::SeqCst);
    world.live_through(&mut rounds, HOUR).await;
    assert_eq!(world.subjects().len(), 1);
}

#[tokio::test]
async fn a_report_comes_each_month_unless_there_is_nothing_to_say() {
    let (world, mut rounds) = (World::new(), Rounds::default());
    world.set(D);
    world.look(&mut rounds).await;
    world.answer(Ok(Fetched::NotModified));
    let begin = |rounds: &mut Rounds| {
        *rounds = Rounds::default();
        world.pass(limits::REPORT_PERIOD - DAY);
    };
    begin(&mut rounds);
    world.live_through(&mut rounds, DAY + HOUR).await;
    assert_eq!(world.subjects(), Vec::<String>::new(), "nothing to say");
    assert!(world.domain(D).reported_ms > START);

    let text =
        format!("{GOOD}a:b@{D}\nb:a@{D}\ngone:spqr77@hermes.cam.ac.uk\nGone:x@example.org\n");
    world.answer(file(&text, "\"2\""));
    world.live_through(&mut rounds, HOUR).await;
    assert_eq!(world.subjects(), Vec::<String>::new(), "warnings wait for the report");
    world.answer(Ok(Fetched::NotModified));
    begin(&mut rounds);
    world.live_through(&mut rounds, DAY + HOUR).await;
    let letters: Vec<Letter> = world.letters.sent.lock().unwrap().drain(..).collect();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].subject, format!("Mail domain {D}: report"));
    let body =
        letters[0].body.replace("\r\n", " ").split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "a: loops (a@botolph.cam.ac.uk → b@botolph.cam.ac.uk → a@botolph.cam.ac.uk)",
        "gone: mail for spqr77@hermes.cam.ac.uk cannot be routed",
        "line 8: gone is in line 7 already",
    ] {
        assert!(body.contains(expected), "{expected}: {body}");
    }
    world.live_through(&mut rounds, 3 * DAY).await;
    assert_eq!(world.subjects(), Vec::<String>::new(), "not again before the month is over");

    let check = world.domains.check(D, true).await.unwrap();
    assert_eq!((check.aliases, check.warnings.len()), (7, 4), "{check:?}");
    assert!(!check.letter.is_empty());
    assert_eq!(world.subjects().len(), 1);
    assert!(world.domains.check("no.cam.ac.uk", false).await.unwrap_err().contains("no managed"));
    let normal = world.domains.check("cam.ac.uk", false).await.unwrap();
    assert!(normal.letter.is_empty() && normal.problem.is_none());
}

#[tokio::test]
async fn fetches_at_once_are_bounded() {
    let (world, mut rounds) = (World::new(), Rounds::default());
    let gate = Arc::new(Semaphore::new(0));
    *world.web.gate.lock().unwrap() = Some(gate.clone());
    for n in 0..30 {
        world.set(&format!("college-{n}.cam.ac.uk"));
    }
    for _ in 0..20 {
        rounds.look(&world.domains);
        tokio::task::yield_now().await;
    }
    assert_eq!(world.web.asked.lock().unwrap().len(), limits::FETCHES_CONCURRENT);
    gate.add_permits(1_000);
    for _ in 0..10 {
        world.look(&mut rounds).await;
    }
    assert_eq!(world.fetches(), 30, "each once");
}

#[tokio::test]
async fn a_new_setting_is_fetched_at_once_though_the_old_one_was_being_fetched() {
    let (world, mut rounds) = (World::new(), Rounds::default());
    let gate = Arc::new(Semaphore::new(0));
    *world.web.gate.lock().unwrap() = Some(gate.clone());
    world.set(D);
    rounds.look(&world.domains);
    tokio::task::yield_now().await;
    assert_eq!(world.fetches(), 1);
    world.set(D);
    gate.add_permits(2);
    world.look(&mut rounds).await;
    assert_eq!(
        world.fetches(),
        1,
        "what came of the old one is not recorded, and keeps nobody waiting"
    );
    assert_eq!(world.domain(D).fetched_ms, START);
}

#[tokio::test]
async fn lists_show_no_secret() {
    let (world, mut rounds) = (World::new(), Rounds::default());
    world.set(D);
    world.set("aa.cam.ac.uk");
    world.look(&mut rounds).await;
    let list = world.domains.list("");
    let names: Vec<&str> = list.iter().map(|info| info.domain.as_str()).collect();
    assert_eq!(names[..3], ["aa.cam.ac.uk", D, "cam.ac.uk"]);
    let info = &world.domains.list(D)[0];
    assert_eq!((info.live, info.aliases, info.addresses, info.managers), (true, 4, 4, 2));
    assert!(info.https.as_ref().unwrap().sealed_password.is_empty());
    assert!(world.domains.list("nowhere.cam.ac.uk").is_empty());
}
