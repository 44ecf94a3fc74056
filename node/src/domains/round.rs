//! The rounds of the control leader: what is due is fetched, and managers get their letters. Whoever leads next goes on
//! by what was recorded.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ppsw_proto::control::{self as pb, record_letter::About};
use ppsw_spool::env::UnixMs;
use tokio::{task::JoinSet, time::sleep};

use super::{
    Domains,
    letter::Letter,
    schedule::{self, Letter as Due},
};
use crate::limits;

/// Work on one domain. At most one of each kind at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Fetch(String),
    Letter(String),
}

/// What runs, and what is to be left alone for a while.
#[derive(Default)]
pub(crate) struct Rounds {
    running: BTreeSet<Work>,
    /// With the setting of the domain (`HttpsDomain.setting`) that each was begun by.
    tasks: JoinSet<(Work, u64, Result<(), String>)>,
    /// What failed for a reason of our own.
    paused: BTreeMap<Work, Pause>,
}

/// Until when something is not tried again, unless its domain is set anew. What was under way then has failed because of that: nothing
/// is recorded of a setting that is not there any more.
struct Pause {
    setting: u64,
    until: UnixMs,
}

impl Rounds {
    /// Never returns.
    pub(crate) async fn run(mut self, domains: Domains) {
        loop {
            self.look(&domains);
            sleep(limits::FETCH_LOOK).await;
        }
    }

    /// Begins what is due, and takes what has ended.
    pub(crate) fn look(&mut self, domains: &Domains) {
        while let Some(ended) = self.tasks.try_join_next() {
            match ended {
                Ok((work, setting, result)) => self.ended(work, setting, result, domains.now()),
                // The task has panicked, which its thread has reported; nobody waits for it any more.
                Err(_) => self.running.clear(),
            }
        }
        if !domains.registry.leads() {
            self.paused.clear();
            watch(&[], domains.now());
            return;
        }
        let now = domains.now();
        let all = domains.registry.domains();
        watch(&all, now);
        for domain in all {
            let name = &domain.domain;
            if schedule::fetch_is_due(&domain, now, domains.periods.fetch)
                && self.tasks.len() < limits::FETCHES_CONCURRENT
                && self.may_begin(Work::Fetch(name.clone()), domain.setting, now)
            {
                let (domains, domain) = (domains.clone(), Arc::clone(&domain));
                self.tasks.spawn(async move {
                    let result = domains.fetch_and_record(&domain, false).await;
                    (Work::Fetch(domain.domain.clone()), domain.setting, result.map(|_| ()))
                });
            }
            if let Some(due) = schedule::letter_due(&domain, now, domains.periods.report)
                && self.tasks.len() < limits::FETCHES_CONCURRENT
                && self.may_begin(Work::Letter(name.clone()), domain.setting, now)
            {
                let domains = domains.clone();
                self.tasks.spawn(async move {
                    let result = write(&domains, &domain, due).await;
                    (Work::Letter(domain.domain.clone()), domain.setting, result)
                });
            }
        }
    }

    /// Waits for all that runs.
    #[cfg(test)]
    pub(crate) async fn settle(&mut self, domains: &Domains) {
        while let Some(ended) = self.tasks.join_next().await {
            let (work, setting, result) = ended.unwrap();
            self.ended(work, setting, result, domains.now());
        }
    }

    fn may_begin(&mut self, work: Work, setting: u64, now: UnixMs) -> bool {
        let paused = |pause: &Pause| pause.setting == setting && now < pause.until;
        if self.paused.get(&work).is_some_and(paused) {
            return false;
        }
        self.paused.remove(&work);
        self.running.insert(work)
    }

    fn ended(&mut self, work: Work, setting: u64, result: Result<(), String>, now: UnixMs) {
        self.running.remove(&work);
        if let Err(why) = result {
            tracing::warn!(?work, why, "not done; it is tried again soon");
            self.paused.insert(work, Pause { setting, until: now.plus(limits::LETTER_RETRY) });
        }
    }
}

/// Writes what is due, and notes that it was written. In this order: a letter may come twice when a leader dies in
/// between, but not be lost.
async fn write(domains: &Domains, domain: &pb::HttpsDomain, due: Due) -> Result<(), String> {
    let (letter, about) = match due {
        Due::Problem => {
            let Some(problem) = &domain.problem else { return Ok(()) };
            let letter = Letter::of_problem(domain, problem);
            (Some(letter), About::Problem(problem.fingerprint.clone()))
        }
        Due::Report => {
            let audit = domains.audit(&domain.domain).await.unwrap_or_default();
            let letter = Letter::of_report(&domain.domain, &audit, Some(domain));
            let sent = letter.is_some();
            (letter, About::Report(sent))
        }
    };
    if let Some(letter) = letter {
        let id = domains.post.send(&letter).await?;
        let about = if due == Due::Problem { "problem" } else { "report" };
        tracing::info!(domain = domain.domain, %id, about, "letter to the managers");
        metrics::counter!("ppsw_https_letters_total", "about" => about).increment(1);
    }
    let record = pb::RecordLetter {
        domain: domain.domain.clone(),
        setting: domain.setting,
        at_ms: domains.now().0,
        about: Some(about),
    };
    domains.registry.record_letter(record).await
}

/// Figures about all domains.
fn watch(domains: &[Arc<pb::HttpsDomain>], now: UnixMs) {
    let failing = domains.iter().filter(|domain| domain.problem.is_some()).count();
    let oldest = domains.iter().map(|domain| UnixMs(domain.succeeded_ms.max(domain.at_ms)));
    let age = oldest.min().map_or(Duration::ZERO, |oldest| now.since(oldest));
    metrics::gauge!("ppsw_https_domains").set(domains.len() as f64);
    metrics::gauge!("ppsw_https_domains_failing").set(failing as f64);
    metrics::gauge!("ppsw_https_oldest_success_age_seconds").set(age.as_secs_f64());
}
