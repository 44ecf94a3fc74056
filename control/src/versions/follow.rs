//! What each node does by itself: it runs what the control group says is active, and keeps the contents of all versions
//! that are kept.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use tokio::{
    task::spawn_blocking,
    time::{Duration, sleep},
};

use super::{
    BlobHash, Content, active,
    prepare::{self, Unprepared},
    shelf::Running,
    transfer,
};
use crate::{limits, plane::Shared, state::State};

/// Follows until the plane stops. `before` is what this node ran last.
pub(crate) async fn run(shared: Arc<Shared>, before: Option<Running>) {
    let stop = shared.stop.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow(shared, before) => {}
    }
}

async fn follow(shared: Arc<Shared>, before: Option<Running>) {
    resume(&shared, before).await;
    let mut view = shared.view.subscribe();
    let mut looked = Kept::default();
    loop {
        let state = view.borrow_and_update().clone();
        if state.known() && !state.versions.any() {
            // Nothing to wait for: the node's own directory counts.
            shared.shelf.settle();
        }
        let up_to_date = catch_up(&shared, &state).await;
        gauges(&shared, &state);
        if up_to_date {
            looked.keep(&shared, &state).await;
        }
        let patience = if up_to_date { limits::KEEP_INTERVAL } else { limits::FOLLOW_RETRY };
        tokio::select! {
            // The sender lives in `shared`.
            _ = view.changed() => {}
            () = sleep(patience) => {}
        }
    }
}

/// Runs again what this node ran last: from its own disk, as a rule.
async fn resume(shared: &Arc<Shared>, before: Option<Running>) {
    let Some((before, content)) = before.and_then(|b| b.content.clone().map(|c| (b, c))) else {
        return;
    };
    match prepare::prepare(shared, &content, None).await {
        Ok(prepared) => {
            let (version, generation) = (before.version, before.generation);
            tracing::info!(
                version,
                generation,
                "runs the version of policy and tables that it ran last"
            );
            prepared.compiled.activate();
            shared.shelf.run(before);
            shared.shelf.settle();
        }
        Err(error) => {
            let why = words(error);
            tracing::error!(
                why,
                "cannot run the version that ran last; the control group is waited for"
            );
            shared.shelf.complain(Some(why));
        }
    }
}

/// Switches to what is active; false if it could not yet.
async fn catch_up(shared: &Arc<Shared>, state: &State) -> bool {
    let versions = &state.versions;
    let Some(content) = versions.content() else { return true };
    let running = shared.shelf.running();
    if running.generation == versions.generation {
        return true;
    }
    let same = running.content.as_ref() == Some(&content);
    if !same && let Err(why) = switch(shared, &content).await {
        tracing::error!(
            version = versions.active,
            generation = versions.generation,
            why,
            "cannot run the active version of policy and tables yet"
        );
        shared.shelf.complain(Some(why));
        return false;
    }
    let running = Running {
        generation: versions.generation,
        version: versions.active,
        content: Some(content),
        since: shared.now(),
    };
    shared.shelf.run(running.clone());
    shared.shelf.settle();
    shared.shelf.tidy(shared.clock.instant());
    tracing::info!(
        version = running.version,
        generation = running.generation,
        "switched to this version of policy and tables"
    );
    let data = shared.options.data.clone();
    match spawn_blocking(move || active::store(&data, &running)).await {
        Ok(Ok(())) => {}
        // It starts with an older one then, and catches up.
        Ok(Err(error)) => tracing::error!(%error, "cannot remember which version is active"),
        // Only at the end of the runtime.
        Err(_) => {}
    }
    true
}

async fn switch(shared: &Arc<Shared>, content: &Content) -> Result<(), String> {
    let compiled = match shared.shelf.ready(content) {
        Some(compiled) => compiled,
        None => prepare::prepare(shared, content, None).await.map_err(words)?.compiled,
    };
    compiled.activate();
    Ok(())
}

fn words(error: Unprepared) -> String {
    match error {
        Unprepared::Refused(lines) => lines.join("\n"),
        Unprepared::Unable(why) => why,
    }
}

fn gauges(shared: &Shared, state: &State) {
    let running = shared.shelf.running();
    metrics::gauge!("ppsw_tables_version").set(running.version as f64);
    metrics::gauge!("ppsw_tables_generation").set(running.generation as f64);
    metrics::gauge!("ppsw_tables_active_generation").set(state.versions.generation as f64);
    metrics::gauge!("ppsw_tables_activated_timestamp_seconds").set(running.since.0 as f64 / 1000.0);
    let sizes = shared.shelf.sizes(shared.hooks.running().as_deref());
    metrics::gauge!("ppsw_tables_entries").set(sizes.entries as f64);
    metrics::gauge!("ppsw_tables_bytes").set(sizes.bytes as f64);
    metrics::gauge!("ppsw_tables_behind").set(u8::from(shared.shelf.behind(state).is_some()));
}

/// The contents of versions that can be rolled back to, on every node; and no others.
#[derive(Default)]
struct Kept {
    /// The generation whose contents are all here.
    complete: Option<u64>,
    fetched: Option<Instant>,
    collected: Option<Instant>,
}

impl Kept {
    async fn keep(&mut self, shared: &Arc<Shared>, state: &State) {
        let now = shared.clock.instant();
        let due = |last: Option<Instant>, every: Duration| {
            last.is_none_or(|last| now.saturating_duration_since(last) >= every)
        };
        if !state.known() || !state.versions.any() {
            return;
        }
        let generation = Some(state.versions.generation);
        if self.complete != generation && due(self.fetched, limits::KEEP_INTERVAL) {
            self.fetched = Some(now);
            let wanted = wanted(shared, state).await.into_iter().collect();
            match transfer::fetch(shared, wanted, None).await {
                Ok(_) => self.complete = generation,
                Err(why) => tracing::warn!(why, "contents of older versions are lacking here"),
            }
        }
        if due(self.collected, limits::BLOB_COLLECT_INTERVAL) {
            self.collected = Some(now);
            collect(shared, state).await;
        }
    }
}

/// Names of all contents that kept versions and changes refer to, as far as their lists are to be had.
async fn wanted(shared: &Arc<Shared>, state: &State) -> BTreeSet<BlobHash> {
    let versions = &state.versions;
    let mut wanted = BTreeSet::new();
    for number in versions.kept.keys() {
        let Some(hash) = versions.manifest(*number) else { continue };
        wanted.insert(hash);
        if let Ok((manifest, _)) = prepare::manifest(shared, hash, None).await {
            wanted.extend(manifest.hashes());
        }
    }
    wanted.extend(versions.changes.values().filter_map(|c| BlobHash::from_bytes(&c.sha256)));
    wanted
}

async fn collect(shared: &Arc<Shared>, state: &State) {
    let mut keep = wanted(shared, state).await;
    // What is run may be older than what is kept.
    if let Some(content) = shared.shelf.running().content {
        if let Ok((manifest, _)) = prepare::manifest(shared, content.manifest, None).await {
            keep.extend(manifest.hashes());
        }
        keep.insert(content.manifest);
        keep.extend(content.changes.values());
    }
    let (blobs, now) = (shared.shelf.blobs.clone(), shared.now());
    match spawn_blocking(move || blobs.collect(&keep, now)).await {
        Ok(Ok(kept)) => {
            metrics::gauge!("ppsw_blobs").set(kept.blobs as f64);
            metrics::gauge!("ppsw_blobs_bytes").set(kept.bytes as f64);
        }
        Ok(Err(error)) => tracing::warn!(%error, "cannot look for unused contents"),
        Err(_) => {}
    }
}
